"""Data files that are broken, incomplete, mistyped or mislabelled: each ends in a named error that says which."""

import gzip
import os
import pickle
import random
import shutil

import numpy as np
import pytest
import torch
from test_datasets import IMAGES, LABELS, write_binary, write_python
from test_nasbench360 import write_cosmic, write_darcy, write_ecg, write_proteins, write_satellite

from graphnas_lib import cli, store
from graphnas_lib.datasets import MissingDataError, available, load, load_task
from graphnas_lib.datasets.archives import UnsafePickleError
from graphnas_lib.store import CorruptArtifactError

NAMED = (CorruptArtifactError, MissingDataError, UnsafePickleError)
ASKED = os.environ.get("GRAPHNAS_FUZZ")
RNG = np.random.default_rng(1)


@pytest.fixture(autouse=True)
def nowhere(monkeypatch, tmp_path):
    monkeypatch.delenv("GRAPHNAS_DATA", raising=False)
    monkeypatch.setenv("GRAPHNAS_HOME", str(tmp_path / "home"))


def spherical(root, change=lambda data: data, labels=tuple(range(10))):
    (root / "spherical").mkdir(parents=True, exist_ok=True)
    images = RNG.integers(0, 256, (10, 3, 6, 6), np.uint8)
    data = {split: {"images": images, "labels": list(labels)} for split in ("train", "test")}
    (root / "spherical" / "s2_cifar100.gz").write_bytes(gzip.compress(pickle.dumps(change(data)), 1))


def ninapro(root, first=0, missing=0):
    (root / "ninapro").mkdir(parents=True, exist_ok=True)
    for split in ("train", "val", "test"):
        np.save(root / "ninapro" / f"ninapro_{split}.npy", RNG.random((18, 52, 16)))
        np.save(root / "ninapro" / f"label_{split}.npy", np.arange(18 - missing) + first)


def deepsea(root, **changed):
    (root / "deepsea").mkdir(parents=True, exist_ok=True)
    arrays = {}
    for split in ("train", "val", "test"):
        arrays[f"x_{split}"] = np.eye(4, dtype=np.uint8)[RNG.integers(0, 4, (4, 20))]
        arrays[f"y_{split}"] = RNG.integers(0, 2, (4, 36))
    np.savez(
        root / "deepsea" / "deepsea_filtered.npz", **{k: v for k, v in (arrays | changed).items() if v is not None}
    )


def satellite(root, labels=tuple(range(1, 25)) + tuple(range(1, 7))):
    for split in ("train", "test"):
        write_satellite(root / "satellite", RNG.random((30, 46)), np.asarray(labels), split)


def ecg(root):
    write_ecg(root / "ECG", [1100] * 20, ["N", "A", "O", "~"] * 5)


WRITERS = {
    "spherical": spherical, "ninapro": ninapro, "deepsea": deepsea, "satellite": satellite, "ecg": ecg,
    "darcy": lambda root: write_darcy(root / "darcy", "v5"), "psicov": lambda root: write_proteins(root, (12, 9, 8)),
    "cosmic": write_cosmic,
}  # fmt: skip
IMAGE_WRITERS = {"cifar10 python": write_python, "cifar10 binary": write_binary}
DAMAGES = {
    "web page": lambda data: b"<!DOCTYPE html><html><body>403 Forbidden</body></html>",
    "Git LFS pointer": lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n",
    "empty": lambda data: b"",
    "truncated": lambda data: data[: len(data) // 2],
    "last byte": lambda data: data[:-1],
    "first byte": lambda data: b"\x00" + data[1:],
    "noise": lambda data: random.Random(0).randbytes(300),
    "another pickle": lambda data: pickle.dumps(["not", "this"]),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One tiny folder a data set, whole."""
    folders = {}
    for name, write in (WRITERS | IMAGE_WRITERS).items():
        folders[name] = tmp_path_factory.mktemp("whole") / name.replace(" ", "_")
        write(folders[name])
    return folders


def files_of(folder):
    """Of each kind of file one, since proteins and images are many."""
    kinds = {}
    for path in sorted(
        p for p in folder.rglob("*") if p.is_file() and "f606w" not in p.parts and "9442" not in p.parts
    ):
        kinds.setdefault(
            (path.parent, path.suffix, path.stem.split("_")[0] if path.parent.name == "2" else path.name), path
        )
    return list(kinds.values())


def read(name, root):
    """The whole data set, every sample of it."""
    if " " in name:
        found = load(name.split()[0], root=root)
        assert found.train_images.dtype == torch.uint8 and found.train_labels.max() < found.classes
        return
    task = load_task(name, root)
    for split in (task.train, task.valid, task.test):
        if name == "psicov":
            split.side = 32
        x, y, _ = split.fetch(torch.arange(len(split)))
        assert len(x) == len(y) == len(split) > 0 and torch.isfinite(x).all()
        if task.facts.kind == "points":
            assert y.min() >= 0 and y.max() < task.facts.classes


@pytest.mark.parametrize("name", [*WRITERS, *IMAGE_WRITERS])
def test_a_broken_or_missing_file_is_named_with_what_it_must_be(whole, tmp_path, name):
    read(name, whole[name])
    for path in files_of(whole[name]):
        where = path.relative_to(whole[name])
        for kind, damage in (DAMAGES | {"missing": None}).items():
            root = tmp_path / "broken"
            shutil.copytree(whole[name], root, copy_function=os.link)
            (root / where).unlink()
            if damage is not None:
                (root / where).write_bytes(damage(path.read_bytes()))
            text = path.suffix == ".lst" and kind != "empty"
            unread = {  # what leaves a whole data set, or touches what nothing reads
                "missing": "batch_" in path.name or path.parent.name == "2",
                "truncated": path.suffix == ".bin",  # five records of ten
                "last byte": path.suffix == ".mat",
                "first byte": path.suffix in (".mat", ".npz", ".bin"),
            }.get(kind, False)
            try:
                read(name, root)
            except NAMED as error:
                assert "\n" not in str(error) and len(str(error)) < 800
                if not text and kind != "missing":
                    assert path.name in str(error), (kind, str(error))
                if kind in ("web page", "Git LFS pointer", "empty") and path.suffix not in (".bin", ".gz", ".lst"):
                    assert kind in str(error), (path.name, str(error))
            else:
                assert text or unread, f"{where}, {kind}: it was read"
            shutil.rmtree(root)


@pytest.mark.parametrize(
    ("name", "write", "said"),
    [
        ("spherical", lambda r: spherical(r, lambda d: {"train": d["train"]}), "s2_cifar100.gz .*KeyError: 'test'"),
        ("spherical", lambda r: spherical(r, lambda d: d | {"test": {"images": 3}}), "s2_cifar100.gz"),
        ("spherical", lambda r: spherical(r, labels=[100] * 10), r"in 0\.\.99"),
        ("spherical", lambda r: spherical(r, labels=[1] * 9), r"labels \(9,\) for inputs"),
        ("deepsea", lambda r: deepsea(r, y_val=None), "deepsea_filtered.npz .*x_val, y_val"),
        ("deepsea", lambda r: deepsea(r, y_val=np.array([{}], object)), "deepsea_filtered.npz .*allow_pickle"),
        ("deepsea", lambda r: deepsea(r, y_val=np.full((4, 36), 2)), r"must lie in 0\.\.1"),
        ("deepsea", lambda r: deepsea(r, y_val=np.zeros((4, 35))), r"labels \(4, 35\)"),
        ("ninapro", lambda r: ninapro(r, first=1), r"labels lie in 1\.\.18 and must lie in 0\.\.17"),
        ("ninapro", lambda r: ninapro(r, missing=1), r"labels \(17,\) for inputs \(18,"),
        ("ecg", lambda r: write_ecg(r / "ECG", [1100] * 3, ["N"] * 3), "10 or more recordings"),
        ("ecg", lambda r: write_ecg(r / "ECG", [1100] * 20, ["N"] * 19), "20 with 19 labels"),
        ("ecg", lambda r: write_ecg(r / "ECG", [900] * 20, ["N"] * 20), "has no sample"),
        ("satellite", lambda r: satellite(r, np.arange(30)), r"labels lie in -1\.\.28"),
        ("satellite", lambda r: satellite(r, np.arange(29)), "satellite_train.npy"),
        ("satellite", lambda r: satellite(r, np.arange(30) + 0.5), "satellite_train.npy must hold whole numbers"),
    ],
)  # fmt: skip
def test_whole_files_of_the_wrong_content_are_refused(tmp_path, name, write, said):
    write(tmp_path)
    with pytest.raises(NAMED, match=said):
        load_task(name, tmp_path)


def test_a_task_without_its_second_file_says_which(tmp_path):
    for name, write, gone in (
        ("ninapro", ninapro, "ninapro/label_val.npy"),
        ("satellite", satellite, "satellite/satellite_test.npy"),
        ("psicov", write_proteins, "protein/psicov/features/p2.pkl"),
    ):
        write(tmp_path)
        (tmp_path / gone).unlink()
        with pytest.raises(MissingDataError, match=gone.split("/")[-1] if name != "psicov" else "features/p2.pkl"):
            load_task(name, tmp_path)


# ---- CIFAR


def batch_with(folder, data=IMAGES[:10], labels=LABELS[:10], key=str, name="data_batch_1"):
    stored = {key("data"): data, key("labels"): labels}
    (folder / name).write_bytes(pickle.dumps(stored, protocol=2))


@pytest.fixture
def cifar_folder(tmp_path):
    return write_python(tmp_path) / "cifar-10-batches-py"


def test_keys_of_bytes_are_keys(cifar_folder, tmp_path):
    wanted = load("cifar10", root=tmp_path)
    batch_with(cifar_folder, labels=LABELS[:10].tolist(), key=str.encode)
    found = load("cifar10", root=tmp_path)
    assert torch.equal(found.train_images, wanted.train_images) and torch.equal(found.train_labels, wanted.train_labels)


@pytest.mark.parametrize(
    ("data", "labels", "said"),
    [
        (IMAGES[:10] / 255, LABELS[:10], "array of float64"),
        (IMAGES[:10].astype(np.int8), LABELS[:10], "pixels from -128 to 127, where 0 to 255"),
        (IMAGES[:10].astype(np.int16) + 1, LABELS[:10], "pixels from 1 to 256"),
        (IMAGES[:10, :-1], LABELS[:10], "3071"),
        (IMAGES[:10], LABELS[:9], r"shape \(9,\)"),
        (IMAGES[:10], LABELS[:10] / 1, "array of float64"),
        (IMAGES[:10], ["cat"] * 10, "array of <U3"),
        (IMAGES[:10], LABELS[:10] + 1, r"labels must lie in 0\.\.9"),
        (None, LABELS[:10], "data_batch_1"),
    ],
)
def test_batches_of_another_type_or_length_are_refused(cifar_folder, tmp_path, data, labels, said):
    batch_with(cifar_folder, data, labels)
    with pytest.raises(CorruptArtifactError, match=said):
        load("cifar10", root=tmp_path)


def test_whole_numbers_of_another_type_are_pixels(cifar_folder, tmp_path):
    wanted = load("cifar10", root=tmp_path)
    batch_with(cifar_folder, IMAGES[:10].astype(np.int64))
    assert torch.equal(load("cifar10", root=tmp_path).train_images, wanted.train_images)


@pytest.mark.parametrize(
    "backup", ["data_batch_1~", "data_batch_1 (1)", "data_batch_1_old2", "data_batch_1.bak", "data_batch_"]
)
def test_backups_are_no_training_data(cifar_folder, tmp_path, backup):
    batch_with(cifar_folder, name=backup)
    assert load("cifar10", root=tmp_path).size("train") == 20
    binary = write_binary(tmp_path / "b") / "cifar-10-batches-bin"
    shutil.copy(binary / "data_batch_1.bin", binary / f"{backup}.bin")
    assert load("cifar10", root=tmp_path / "b").size("train") == 20


# ---- $GRAPHNAS_DATA


def test_the_folder_of_data_is_expanded_and_must_be_one(tmp_path, monkeypatch, capsys):
    write_python(tmp_path / "d")
    satellite(tmp_path / "d")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GRAPHNAS_DATA", "~/d")
    assert load("auto").name == "cifar10" and available() == ("satellite",) and "cifar10" in store.data_at_hand()
    for wrong in (
        "~/nothing",
        f"{tmp_path / 'd'}:{tmp_path}",
        str(tmp_path / "d" / "cifar-10-batches-py" / "test_batch"),
    ):
        monkeypatch.setenv("GRAPHNAS_DATA", wrong)
        for call in (load, available, lambda: load("cifar10"), lambda: load_task("satellite")):
            with pytest.raises(MissingDataError, match="GRAPHNAS_DATA must be one folder that exists; it is ") as told:
                call()
            assert wrong in str(told.value)
        cli.main(["doctor"])
        assert wrong in capsys.readouterr().out
        assert load("digits").name == "digits"
    monkeypatch.setenv("GRAPHNAS_DATA", str(tmp_path))
    with pytest.raises(MissingDataError, match=str(tmp_path)):
        load("cifar10")
    with pytest.raises(MissingDataError, match=str(tmp_path)):
        load_task("ecg")


# ---- any damage


def damaged(rng, data, others):
    """Bytes of a file cut, flipped, swapped, doubled, or of another one."""
    kind, n = rng.randrange(6), len(data)
    at, to = sorted((rng.randrange(n + 1), rng.randrange(n + 1)))
    if kind == 0:
        return data[:at]
    if kind == 1:
        flipped = bytearray(data)
        for _ in range(rng.randint(1, 8)):
            place = min(rng.randrange(n), rng.randrange(n)) if n else 0  # headers more often
            flipped[place : place + 1] = bytes([rng.randrange(256)])
        return bytes(flipped)
    if kind == 2:
        return data[:at] + data[to:]
    if kind == 3:
        return data[to:] + data[at:to] + data[:at]
    if kind == 4:
        return data[:to] + data[at:]
    return rng.choice(others).read_bytes()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [*WRITERS, *IMAGE_WRITERS])
def test_any_damage_ends_in_right_ranges_or_a_named_error(whole, tmp_path, name):
    rng = random.Random(int.from_bytes(os.urandom(4), "big") if ASKED else name)
    files, every = files_of(whole[name]), [path for folder in whole.values() for path in files_of(folder)]
    for i in range(max(1, int(ASKED or 80) // 10)):
        root, path = tmp_path / str(i), rng.choice(files)
        shutil.copytree(whole[name], root, copy_function=os.link)
        where = root / path.relative_to(whole[name])
        where.unlink()
        where.write_bytes(damaged(rng, path.read_bytes(), every))
        try:
            read(name, root)
        except NAMED as error:
            assert "\n" not in str(error) and len(str(error)) < 800
        shutil.rmtree(root)
