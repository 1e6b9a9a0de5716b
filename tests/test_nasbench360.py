"""Table 4's tasks: loaders on tiny files in the benchmark's formats and on real ones; the metrics."""

import gzip
import os
import pickle
import sys
from itertools import product

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from graphnas_lib import datasets
from graphnas_lib.datasets import (
    TASKS,
    DivergedError,
    MissingDataError,
    Task,
    available,
    load_task,
    metrics,
    nasbench360,
)
from graphnas_lib.datasets.archives import UnsafePickleError
from graphnas_lib.datasets.tasks import Split
from graphnas_lib.store import CorruptArtifactError

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def nowhere(monkeypatch, tmp_path):
    monkeypatch.delenv("GRAPHNAS_DATA", raising=False)
    monkeypatch.setenv("GRAPHNAS_HOME", str(tmp_path / "home"))


def everything(split):
    return split.fetch(torch.arange(len(split)))


# ---- point tasks


def test_the_sphere_is_that_of_the_published_projection():
    """S2CNN's formulas, point by point: rays from (0, 0, 2.001) through the sphere to the plane, the image on 1.5."""
    column, row = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="xy")
    images = torch.stack([column, row, 10 + column + 2 * row])[None] * 2
    rotation = torch.tensor(Rotation.from_rotvec([0.3, -1.1, 0.7]).as_matrix())
    found = nasbench360.on_sphere(images.to(torch.uint8), rotation)
    assert found.shape == (1, 3, 60, 60) and found.dtype == torch.uint8
    plain = np.zeros((3, 60, 60))
    for i, j in product(range(60), range(60)):
        polar, azimuth = np.pi * i / 60, np.pi * j / 30
        x, y, z = rotation.numpy() @ [np.sin(polar) * np.cos(azimuth), np.sin(polar) * np.sin(azimuth), np.cos(polar)]
        share = -(z + 1) / (z + 1 - 2.001)
        place = [(share * value + value + 1.5) / 3 * 32 - 0.5 for value in (x, y)]  # row, column
        if z <= 0:
            plain[:, i, j] = [
                map_coordinates(part, [[v] for v in place], order=1, mode="grid-constant")[0]
                for part in images[0].numpy()
            ]
    low, high = plain.min((1, 2), keepdims=True), plain.max((1, 2), keepdims=True)
    assert np.abs(found[0].numpy() - (plain - low) / (high - low) * 255).max() < 2
    assert (found[0, 0] == 0).float().mean() > 0.5  # the upper half


def test_spherical_is_projected_where_only_its_images_are(cifar):
    task, other = (load_task("spherical", seed=seed) for seed in (0, 1))
    assert "projected here" in task.source and task.input_shape == (3, 60, 60)
    plain = datasets.load("cifar100")
    assert len(task.test) == plain.size("test") and torch.equal(task.test.targets, plain.test_labels)
    black = [(part == 0).all(dim=1) for part in task.test.inputs[:501].split([500, 1])]
    assert torch.equal(black[0].all(dim=0), black[0][:9].all(dim=0)) and not torch.equal(black[0][0], black[1][0])
    assert not torch.equal(task.test.inputs, other.test.inputs)


def test_spherical(tmp_path):
    (tmp_path / "spherical").mkdir()
    images = RNG.integers(0, 256, (40, 3, 60, 60), dtype=np.uint8)
    labels = np.arange(40) % 100
    data = {
        "train": {"images": images[:30], "labels": labels[:30]},
        "test": {"images": images[30:], "labels": labels[30:]},
    }
    (tmp_path / "spherical" / "s2_cifar100.gz").write_bytes(gzip.compress(pickle.dumps(data), 1))
    task = load_task("spherical", tmp_path)
    assert task.input_shape == (3, 60, 60) and not task.dense and task.facts.classes == 100
    assert (len(task.train), len(task.valid), len(task.test)) == (24, 6, 10)
    x, y, mask = everything(task.test)
    assert x.dtype == torch.float32 and mask is None and y.tolist() == labels[30:].tolist()
    np.testing.assert_array_equal(x.numpy(), images[30:])  # 0..255, as the loaders of the benchmark leave it
    seen = torch.cat([everything(task.train)[1], everything(task.valid)[1]])
    assert sorted(seen.tolist()) == list(range(30))  # disjoint, and nothing lost


def test_ninapro_turns_channels_and_time(tmp_path):
    folder = tmp_path / "ninapro"
    folder.mkdir()
    x = {split: RNG.random((n, 52, 16)) for split, n in (("train", 6), ("val", 3), ("test", 3))}
    for split, values in x.items():
        np.save(folder / f"ninapro_{split}.npy", values)
        np.save(folder / f"label_{split}.npy", np.arange(len(values)) + 12)
    task = load_task("ninapro", tmp_path)
    assert task.input_shape == (1, 16, 52)
    inputs, labels, _ = everything(task.valid)
    assert inputs[1, 0, 3, 40].item() == pytest.approx(x["val"][1, 40, 3]) and labels.tolist() == [12, 13, 14]


def write_ecg(folder, lengths, labels):
    folder.mkdir(parents=True, exist_ok=True)
    records = np.empty(len(lengths), dtype=object)
    for i, length in enumerate(lengths):
        records[i] = RNG.integers(-500, 500, length).astype(np.int16) + np.arange(length)
    (folder / "challenge2017.pkl").write_bytes(pickle.dumps({"data": records, "label": labels}))
    return records


def test_ecg_windows_are_those_of_the_benchmark(tmp_path):
    labels = ["N", "A", "O", "~"] * 5
    records = write_ecg(tmp_path / "ECG", [3000] * 20, labels)
    task = load_task("ecg", tmp_path)
    assert task.input_shape == (1, 1000) and task.facts.metric == "macro_f1_error"
    from sklearn.model_selection import train_test_split

    expected, kinds = [], []
    train, _ = train_test_split(np.arange(20), test_size=0.2, random_state=0)
    for i in train:  # the definition, written as loops
        z = (records[i] - records[i].mean()) / records[i].std()
        kind = "NAO~".index(labels[i])
        for start in range(0, 3000 - 1000, (500, 83, 250, 25)[kind]):
            expected.append(z[start : start + 1000])
            kinds.append(kind)
    x, y, _ = everything(task.train)
    np.testing.assert_allclose(x[:, 0].numpy(), np.array(expected), atol=1e-5)
    assert y.tolist() == kinds


def test_ecg_skips_recordings_shorter_than_a_window_and_refuses_unknown_labels(tmp_path):
    write_ecg(tmp_path / "ECG", [3000, 900] * 10, ["N"] * 20)
    task = load_task("ecg", tmp_path)
    assert len(task.train) + len(task.valid) + len(task.test) == 4 * 10
    write_ecg(tmp_path / "ECG", [3000] * 20, ["N"] * 19 + ["Q"])
    with pytest.raises(CorruptArtifactError, match=r"holds \['Q'\]"):
        load_task("ecg", tmp_path)


def write_satellite(folder, x, y, split):
    folder.mkdir(parents=True, exist_ok=True)
    box = np.empty((), dtype=object)
    box[()] = {"data": x, "label": y}
    np.save(folder / f"satellite_{split}.npy", box, allow_pickle=True)


def test_satellite_drops_and_counts_test_series_seen_in_training(tmp_path):
    x, y = RNG.random((90, 46)), np.arange(90) % 24 + 1
    write_satellite(tmp_path / "nb360" / "satellite", x[:60], y[:60], "train")
    test = np.concatenate([x[60:], x[:5]])
    write_satellite(tmp_path / "nb360" / "satellite", test, np.concatenate([y[60:], y[:5]]), "test")
    task = load_task("satellite", tmp_path)
    assert len(task.test) == 30 and "5 test series that repeat a training series dropped" in task.source
    inputs, labels, _ = everything(task.test)
    assert inputs.shape == (30, 1, 46) and labels.tolist() == (y[60:] - 1).tolist()
    assert inputs.mean(2).abs().max() < 1e-5 and (inputs.std(2, correction=0) - 1).abs().max() < 1e-4
    train = {tuple(row) for row in everything(task.train)[0][:, 0].tolist()}
    assert not train & {tuple(row) for row in everything(task.valid)[0][:, 0].tolist()} and len(train) == 54


def test_deepsea(tmp_path):
    (tmp_path / "deepsea").mkdir()
    arrays = {}
    for split, n in (("train", 8), ("val", 4), ("test", 4)):
        arrays[f"x_{split}"] = np.eye(4)[RNG.integers(0, 4, (n, 1000))]
        arrays[f"y_{split}"] = RNG.integers(0, 2, (n, 36))
    np.savez(tmp_path / "deepsea" / "deepsea_filtered.npz", **arrays)
    task = load_task("deepsea", tmp_path)
    x, y, _ = everything(task.valid)
    assert task.input_shape == (4, 1000) and (x.sum(1) == 1).all() and y.shape == (4, 36)
    np.testing.assert_array_equal(x[2].numpy(), arrays["x_val"][2].T)
    outputs = torch.zeros(4, 36, requires_grad=True)
    by_hand = (4 * y + (1 - y)).mean() * np.log(2)  # at logit 0 both terms are log 2, positives weigh four
    assert task.loss(outputs, y, None).item() == pytest.approx(by_hand.item(), rel=1e-5)


# ---- dense tasks


def write_darcy(folder, version):
    folder.mkdir(parents=True, exist_ok=True)
    fields = {}
    for part, n in (("1", 12), ("2", 5)):
        data = {"coeff": RNG.choice([3.0, 12.0], (n, 21, 21)), "sol": RNG.random((n, 21, 21)) * 1e-2}
        path = folder / f"piececonst_r421_N1024_smooth{part}.mat"
        if version == "v5":
            from scipy.io import savemat

            savemat(path, data)
        else:
            h5py = pytest.importorskip("h5py", reason="MATLAB v7.3 needs the optional package h5py")
            with h5py.File(path, "w", userblock_size=512 if version == "v7.3 with header" else 0) as file:
                for name, values in data.items():
                    file[name] = values.transpose(2, 1, 0)  # MATLAB's order
            if version == "v7.3 with header":
                with open(path, "r+b") as file:
                    file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(512))
        fields[part] = data
    return fields


@pytest.mark.parametrize("version", ["v5", "v7.3", "v7.3 with header"])
def test_darcy_flow(tmp_path, version):
    fields = write_darcy(tmp_path, version)
    task = load_task("darcy", tmp_path)
    assert (
        task.dense
        and task.input_shape == (3, 5, 5)
        and (len(task.train), len(task.valid), len(task.test)) == (11, 1, 5)
    )
    x, y, _ = everything(task.test)
    coeff, sol = fields["1"]["coeff"][:11, ::5, ::5], fields["2"]["sol"][:, ::5, ::5]
    expected = (fields["2"]["coeff"][:, ::5, ::5] - coeff.mean(0)) / (coeff.std(0, ddof=1) + 1e-5)
    np.testing.assert_allclose(x[:, 0].numpy(), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(y.numpy(), sol, rtol=1e-6)  # targets are the raw field
    np.testing.assert_allclose(x[0, 1, 2].numpy(), np.linspace(0, 1, 5), atol=1e-6)  # x runs along a row
    np.testing.assert_allclose(x[0, 2, :, 2].numpy(), np.linspace(0, 1, 5), atol=1e-6)
    perfect = task.output.encode(y)[:, None]  # a network that predicts the normalised field exactly
    assert task.score(task.predict(perfect), y, None) < 1e-5 and task.loss(perfect, y, None).item() < 1e-4
    assert task.score(task.predict(torch.zeros_like(perfect)), y, None) == pytest.approx(task.chance(), rel=1e-5)


def test_matlab_7_3_without_h5py_names_the_package(tmp_path, monkeypatch):
    write_darcy(tmp_path, "v7.3")
    monkeypatch.setitem(sys.modules, "h5py", None)  # as if it were not installed
    with pytest.raises(ImportError, match="needs the package h5py.*pip install h5py"):
        load_task("darcy", tmp_path)


def write_proteins(root, lengths=(40, 34, 30), malicious=None):
    folder, stored = root / "protein", {}
    names = {"deepcov": ["d1", "d2", "d3"], "psicov": ["p1", "p2"]}
    for source, ids in names.items():
        (folder / source / "features").mkdir(parents=True)
        (folder / source / "distance").mkdir(parents=True)
        (folder / f"{source}.lst").write_text("".join(f"{name} {5 * i}\n" for i, name in enumerate(ids)))
        for name, size in zip(ids, lengths):
            d = RNG.random((size, size)) * 30
            d = (d + d.T) / 2
            np.fill_diagonal(d, 0.0)
            features = {
                "seq": "A" * size, "ss": RNG.random((3, size)), "pssm": RNG.random((size, 22)), "sa": RNG.random(size),
                "entropy": RNG.random(size), "ccmpred": RNG.random((size, size)),
                "freecon": RNG.random((size, size)), "potential": RNG.random((size, size)),
            }  # fmt: skip
            (folder / source / "features" / f"{name}.pkl").write_bytes(pickle.dumps(malicious or features))
            box = np.array([size, "A" * size, d], dtype=object)
            np.save(folder / source / "distance" / f"{name}-cb.npy", box, allow_pickle=True)
            stored[name] = features, d
    return stored


def test_psicov_test_canvas(tmp_path):
    stored = write_proteins(tmp_path)
    task = load_task("psicov", tmp_path)
    assert (len(task.train), len(task.valid), len(task.test)) == (2, 1, 2) and task.test.names == ["p1", "p2"]
    assert task.input_shape == (57, 128, 128)
    x, y, inside = task.test.fetch(torch.tensor([1]))
    features, distances = stored["p2"]
    assert x.shape == (1, 57, 512, 512) and inside.sum() == 34**2 and inside[0, 5, 5] and not inside[0, 4, 5]
    r, c = 7, 20  # residues; channel 2j repeats feature j along rows, 2j + 1 along columns
    at = (5 + r, 5 + c)
    assert x[0, 0][at].item() == pytest.approx(features["ss"][0, c]) and x[0, 1][at].item() == pytest.approx(
        features["ss"][0, r]
    )
    assert x[0, 6][at].item() == pytest.approx(features["pssm"][c, 0])
    assert x[0, 50][at].item() == pytest.approx(features["sa"][c]) and x[0, 53][at].item() == pytest.approx(
        features["entropy"][r]
    )
    assert x[0, 56][at].item() == pytest.approx(features["potential"][r, c])
    assert y[0][at].item() == pytest.approx(max(1.0, distances[r, c]), rel=1e-6)
    diagonal = (np.maximum(distances[9, 8], 1) + np.maximum(distances[9, 10], 1)) / 2
    assert (
        y[0, 14, 14].item() == pytest.approx(diagonal, rel=1e-6)
        and y[0, 100, 100] == 100
        and x[0, :, 100, 100].abs().max() == 0
    )


def test_psicov_training_crops_at_random_and_clips(tmp_path):
    stored = write_proteins(tmp_path, lengths=(150, 40, 30))
    split = load_task("psicov", tmp_path).valid  # d1, 150 residues
    split.side = 128
    crops = [split.fetch(torch.tensor([0]), torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    assert not torch.equal(crops[0][1], crops[1][1]) and crops[0][1].max() == 16.0
    x, y, inside = crops[0]
    features, distances = stored["d1"]
    row, column = inside[0].any(1).nonzero()[0].item() + 3, inside[0].any(0).nonzero()[0].item() + 70
    maps = zip(("ccmpred", "freecon", "potential"), x[0, 54:57, row, column].tolist())
    gap = sum(np.abs(features[name] - value) for name, value in maps)
    pair = np.unravel_index(gap.argmin(), gap.shape)  # which pair of residues that pixel shows
    assert gap[pair] < 1e-6 and pair[0] != pair[1]
    assert y[0, row, column].item() == pytest.approx(np.clip(distances[pair], 1, 16), rel=1e-5)


def write_cosmic(root, proposal="10760", visit="2", with_ignore=True):
    for split, n in (("train", 4), ("test", 2)):
        for place in (f"f435w/{proposal}/{visit}", "f435w/9442/1", "f606w/10760/2"):  # the last two are filtered out
            folder = root / "cosmic" / f"npy_{split}" / place
            folder.mkdir(parents=True)
            for i in range(n):
                data = np.stack(
                    [np.full((256, 256), 100.0 + i), RNG.random((256, 256)) < 0.1, RNG.random((256, 256)) < 0.05]
                )
                np.save(folder / f"{i + 1}_x.npy", data[: 3 if with_ignore else 2].astype(np.float32))
            np.save(folder / "sky.npy", np.arange(n) + 10.0)


def test_cosmic_keeps_one_filter_and_galaxies_and_adds_sky_only_in_training(tmp_path):
    write_cosmic(tmp_path)
    task = load_task("cosmic", tmp_path)
    assert (len(task.train), len(task.valid), len(task.test)) == (3, 1, 2) and task.input_shape == (1, 128, 128)
    x, y, valid = everything(task.test)
    assert y.shape == valid.shape == (2, 128, 128) and 0.9 < valid.float().mean() < 0.99
    assert x[:, 0].flatten(1).tolist() == [[100.0] * 128**2, [101.0] * 128**2]
    noisy, _, _ = task.train.fetch(torch.arange(3), torch.Generator().manual_seed(0))
    quiet, _, _ = everything(task.train)
    added = (noisy - quiet).flatten(1)
    assert (added.std(1) < 1e-4).all() and (added[:, 0].abs() > 0.01).any() and added.max() <= 3 * 13 + 1e-3


def test_cosmic_pixels_to_ignore_count_neither_in_loss_nor_in_metric(tmp_path):
    write_cosmic(tmp_path)
    task = load_task("cosmic", tmp_path)
    _, y, valid = everything(task.test)
    outputs = (20 * y - 10)[:, None]
    wrong = torch.where(valid[:, None], outputs, -outputs)
    assert task.score(task.predict(wrong), y, valid) == 0.0
    assert task.loss(wrong, y, valid).item() == pytest.approx(task.loss(outputs, y, valid).item())


def test_a_task_without_galaxies_or_ignore_map(tmp_path):
    write_cosmic(tmp_path, with_ignore=False)
    assert everything(load_task("cosmic", tmp_path).test)[2].all()
    write_cosmic(tmp_path / "other", proposal="9442", visit="5")
    with pytest.raises(MissingDataError, match="none is there"):
        load_task("cosmic", tmp_path / "other")


# ---- all tasks


class Attack:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_malicious_task_files_are_refused(tmp_path):
    owned = Attack(str(tmp_path / "owned"))
    (tmp_path / "ECG").mkdir()
    (tmp_path / "ECG" / "challenge2017.pkl").write_bytes(pickle.dumps(owned))
    (tmp_path / "spherical").mkdir()
    (tmp_path / "spherical" / "s2_cifar100.gz").write_bytes(gzip.compress(pickle.dumps(owned)))
    write_satellite(tmp_path / "satellite", owned, owned, "train")
    write_satellite(tmp_path / "satellite", owned, owned, "test")
    for name in ("ecg", "spherical", "satellite"):
        with pytest.raises(UnsafePickleError, match="posix.mkdir"):
            load_task(name, tmp_path)
    write_proteins(tmp_path, malicious=owned)
    with pytest.raises(UnsafePickleError, match=r"p1\.pkl asks for posix\.mkdir"):
        load_task("psicov", tmp_path).test.fetch(torch.tensor([0]))
    assert not (tmp_path / "owned").exists()


def test_available_and_missing(tmp_path):
    assert available(tmp_path) == ()
    write_ecg(tmp_path / "nb360" / "ECG", [3000], ["N"])
    assert available(tmp_path) == ("ecg",)
    with pytest.raises(MissingDataError, match=r"'deepsea' needs deepsea/deepsea_filtered\.npz"):
        load_task("deepsea", tmp_path)
    with pytest.raises(ValueError, match="task must be one of"):
        load_task("mnist", tmp_path)


def test_limit_is_a_random_subset_of_every_split(tmp_path):
    x, y = RNG.random((90, 46)), np.repeat(np.arange(24), 4)[:90] + 1  # sorted by class, as UCR's files are
    write_satellite(tmp_path / "satellite", x[::2], y[::2], "train")
    write_satellite(tmp_path / "satellite", x[1::2], y[1::2], "test")
    task = load_task("satellite", tmp_path, limit=12, seed=3)
    assert (len(task.train), len(task.valid), len(task.test)) == (12, 4, 12) and "at most 12" in task.source
    assert len(set(everything(task.test)[1].tolist())) > 5
    assert torch.equal(everything(task.test)[1], everything(load_task("satellite", tmp_path, limit=12, seed=3).test)[1])


def test_chance_is_the_best_constant_answer_on_the_test_split():
    x, labels = torch.zeros(10, 1, 46), torch.tensor([3] * 6 + [5] * 4)
    train, test = Split(x, labels), Split(x, torch.tensor([3] + [5] * 4 + [7] * 5))  # 3 is common in training alone
    assert Task("satellite", train, train, test, source="").chance() == pytest.approx(50.0)


def test_every_task_of_table_4_is_there():
    names = ["spherical", "darcy", "psicov", "cosmic", "ninapro", "ecg", "satellite", "deepsea"]
    assert list(TASKS) == names
    assert all(hasattr(metrics, facts.metric) for facts in TASKS.values())


def test_real_ecg_and_satellite_when_they_are_there(real_data):
    folder = real_data / "nb360"
    if not folder.is_dir():
        pytest.skip("the real data set folder has no nb360")
    assert {"ecg", "satellite"} <= set(available(real_data))
    ecg = load_task("ecg", real_data)
    assert ecg.input_shape == (1, 1000) and len(ecg.train) > 5000
    assert set(everything(ecg.train)[1].tolist()) == {0, 1, 2, 3} and 0.5 < ecg.chance() < 1
    satellite = load_task("satellite", real_data)
    assert len(satellite.test) == 16_799 - 2_753 and len(satellite.train) + len(satellite.valid) == 7_200
    assert 80 < satellite.chance() < 100


def test_real_darcy_at_16x16_when_it_is_there(shared):
    folder = shared / "data"
    if not (folder / "nb360" / "darcy_flow_16.npz").exists():
        pytest.skip("no darcy_flow_16.npz in the shared data")
    task = load_task("darcy", folder)
    assert task.input_shape == (3, 16, 16) and len(task.train) == 900 and "not the task's 85x85" in task.source
    assert 0.1 < task.chance() < 1.0


# ---- metrics against second implementations


def test_macro_f1_from_counts():
    """A class counts when it occurs in the targets or in the predictions."""
    generator = torch.Generator().manual_seed(0)
    for n, classes in ((200, 4), (7, 4), (30, 3)):
        outputs = torch.randn(n, classes, generator=generator)
        targets, predicted = torch.randint(classes, (n,), generator=generator), outputs.argmax(1)
        counts = [
            [((targets == k) & (predicted == k)).sum(), (targets == k).sum() + (predicted == k).sum()]
            for k in range(classes)
        ]
        expected = np.mean([2 * hits.item() / support.item() for hits, support in counts if support])
        assert metrics.macro_f1_error(outputs, targets) == pytest.approx(1 - expected)
    assert metrics.macro_f1_error(torch.eye(4)[[0, 0, 1]], torch.tensor([0, 0, 0])) == pytest.approx(1 - (0.8 + 0) / 2)


def test_auroc_by_pairs_with_ties_and_constant_labels():
    """The share of (positive, negative) pairs in which the positive one is higher; a tie is half a win."""
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(60, 5, generator=generator).round(decimals=1)  # many ties
    targets = (torch.rand(60, 5, generator=generator) < 0.3).float()
    targets[:, 3] = 1.0  # no AUROC there
    gaps = [outputs[targets[:, k] == 1, k][:, None] - outputs[targets[:, k] == 0, k] for k in (0, 1, 2, 4)]
    expected = np.mean([((gap > 0).double() + 0.5 * (gap == 0)).mean().item() for gap in gaps])
    assert metrics.auroc_error(outputs, targets) == pytest.approx(1 - expected)
    with pytest.raises(ValueError, match="both as 0 and as 1"):
        metrics.auroc_error(outputs[:, 3:4], targets[:, 3:4])


def test_half_auroc_error_is_the_auroc_of_the_thresholded_mask():
    from sklearn.metrics import roc_auc_score

    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(2, 20, 20, generator=generator)
    targets = (torch.rand(2, 20, 20, generator=generator) < 0.2).float()
    mask = torch.rand(2, 20, 20, generator=generator) < 0.9
    expected = roc_auc_score(targets[mask], outputs[mask] > 0)
    assert metrics.half_auroc_error(outputs, targets, mask) == pytest.approx(1 - expected)
    missed = ((targets == 1) & (outputs <= 0) & mask).sum() / ((targets == 1) & mask).sum()
    wrong = ((targets == 0) & (outputs > 0) & mask).sum() / ((targets == 0) & mask).sum()
    assert metrics.half_auroc_error(outputs, targets, mask) == pytest.approx((missed + wrong).item() / 2)
    with pytest.raises(ValueError, match="pixels of both kinds; got 0 positive"):
        metrics.half_auroc_error(outputs, torch.zeros_like(targets), mask)


def test_contact_mae_by_loops():
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(2, 40, 40, generator=generator) * 5 + 6
    targets = torch.rand(2, 40, 40, generator=generator) * 20 + 1
    targets = (targets + targets.transpose(1, 2)) / 2
    inside = torch.zeros(2, 40, 40, dtype=torch.bool)
    inside[:, 5:37, 5:37] = True
    means = []
    for k in range(2):
        errors = []
        for i in range(5, 37):
            for j in range(i + 24, 37):
                if targets[k, i, j] <= 8:
                    predicted = max(((outputs[k, i, j] + outputs[k, j, i]) / 2).item(), 0.01)
                    errors.append(abs(predicted - targets[k, i, j].item()))
        means.append(np.mean(errors))
    assert metrics.contact_mae(outputs, targets, inside) == pytest.approx(np.mean(means), rel=1e-5)
    with pytest.raises(ValueError, match="there is none"):
        metrics.contact_mae(outputs, targets + 100, inside)


def test_error_and_relative_l2_by_hand():
    assert metrics.error_percent(torch.eye(4), torch.tensor([0, 1, 2, 0])) == 25.0
    targets = torch.tensor([[[3.0, 4.0]], [[0.0, 2.0]]])
    assert metrics.relative_l2(targets + torch.tensor([0.0, 1.0]), targets) == pytest.approx((1 / 5 + 1 / 2) / 2)


def test_outputs_that_are_not_finite_are_never_scored(tmp_path):
    write_darcy(tmp_path, "v5")
    task = load_task("darcy", tmp_path)
    _, y, _ = everything(task.test)
    with pytest.raises(DivergedError, match="must be finite"):
        task.score(torch.full_like(y, float("nan")), y, None)
