"""Data sets: official layouts written here byte by byte, the restricted unpickler, real CIFAR when it is there."""

import gzip
import hashlib
import os
import pickle
import tarfile

import numpy as np
import pytest
import torch

from graphnas_lib.datasets import MissingDataError, archives
from graphnas_lib.datasets import images as datasets
from graphnas_lib.datasets.archives import UnsafePickleError, load_npy, unpickle_restricted
from graphnas_lib.store import CorruptArtifactError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (30, 3072), dtype=np.uint8)
LABELS = np.arange(30) % 10


@pytest.fixture(autouse=True)
def nowhere(monkeypatch, tmp_path):
    """No data of this machine leaks into a test: the tests that want real data set the variable themselves."""
    monkeypatch.delenv("GRAPHNAS_DATA", raising=False)
    monkeypatch.setenv("GRAPHNAS_HOME", str(tmp_path / "home"))


def write_python(root, protocol=2):
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for i in range(2):
        part = slice(10 * i, 10 * i + 10)
        batch = {"data": IMAGES[part], "labels": LABELS[part].tolist(), "batch_label": f"batch {i}"}
        (folder / f"data_batch_{i + 1}").write_bytes(pickle.dumps(batch, protocol=protocol))
    test = {"data": IMAGES[20:], "labels": LABELS[20:].tolist()}
    (folder / "test_batch").write_bytes(pickle.dumps(test, protocol=protocol))
    return root


def write_binary(root):
    folder = root / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    records = np.concatenate([LABELS[:, None].astype(np.uint8), IMAGES], 1)
    (folder / "data_batch_1.bin").write_bytes(records[:10].tobytes())
    (folder / "data_batch_2.bin").write_bytes(records[10:20].tobytes())
    (folder / "test_batch.bin").write_bytes(records[20:].tobytes())
    return root


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_python_and_binary_layouts_hold_the_same_images(tmp_path, protocol):
    a = datasets.load("cifar10", root=write_python(tmp_path / "a", protocol))
    b = datasets.load("cifar10", root=write_binary(tmp_path / "b"))
    assert torch.equal(a.train_images, b.train_images) and torch.equal(a.test_labels, b.test_labels)
    assert torch.equal(a.train_images, torch.from_numpy(IMAGES[:20].reshape(-1, 3, 32, 32)))
    assert a.train_labels.tolist() == LABELS[:20].tolist()
    assert a.train_images.dtype == torch.uint8 and a.train_labels.dtype == torch.int64
    assert "a subset: 20 train + 10 test" in a.source


def test_cifar100_takes_the_fine_label_in_both_layouts(tmp_path):
    fine, coarse = np.arange(30) + 60, np.arange(30) % 20
    binary, python = tmp_path / "b" / "cifar-100-binary", tmp_path / "p" / "cifar-100-python"
    binary.mkdir(parents=True), python.mkdir(parents=True)
    records = np.concatenate([coarse[:, None], fine[:, None], IMAGES], 1).astype(np.uint8)
    for name, part in (("train", slice(0, 20)), ("test", slice(20, 30))):
        (binary / f"{name}.bin").write_bytes(records[part].tobytes())
        stored = {"data": IMAGES[part], "fine_labels": fine[part].tolist(), "coarse_labels": coarse[part].tolist()}
        (python / name).write_bytes(pickle.dumps(stored, protocol=2))
    for folder in ("b", "p"):
        found = datasets.load("cifar100", root=tmp_path / folder)
        assert found.train_labels.tolist() == fine[:20].tolist() and found.classes == 100
        assert found.test_images[0].flatten().tolist() == IMAGES[20].tolist()


def test_imagenet16_keeps_the_first_120_classes(tmp_path):
    folder = tmp_path / "ImageNet16"
    folder.mkdir()
    labels = np.array([1, 120, 121, 500, 60])
    data = RNG.integers(0, 256, (5, 768), dtype=np.uint8)
    for name in ("train_data_batch_1", "train_data_batch_2", "val_data"):
        (folder / name).write_bytes(pickle.dumps({"data": data, "labels": labels.tolist()}))
    found = datasets.load("imagenet16-120", root=tmp_path)
    assert found.train_labels.tolist() == [0, 119, 59] * 2 and found.input_shape == (3, 16, 16)
    assert torch.equal(found.test_images[2].flatten(), torch.from_numpy(data[4]))


def test_a_truncated_archive_is_refused(tmp_path):
    root = write_binary(tmp_path)
    path = root / "cifar-10-batches-bin" / "data_batch_1.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptArtifactError, match="data_batch_1.bin must hold whole records of 3073 bytes"):
        datasets.load("cifar10", root=root)
    other = write_python(tmp_path / "p")
    path = other / "cifar-10-batches-py" / "test_batch"
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(CorruptArtifactError, match="test_batch must be a pickle .*whole and unaltered"):
        datasets.load("cifar10", root=other)


def test_labels_out_of_range_are_refused(tmp_path):
    root = write_binary(tmp_path)
    path = root / "cifar-10-batches-bin" / "test_batch.bin"
    path.write_bytes(b"\x0a" + path.read_bytes()[1:])
    with pytest.raises(CorruptArtifactError, match=r"labels must lie in 0\.\.9"):
        datasets.load("cifar10", root=root)


def test_missing_data_says_where_and_what(tmp_path):
    with pytest.raises(MissingDataError, match=r"CIFAR-10 needs the folder 'cifar-10-batches-py'.*\$GRAPHNAS_DATA"):
        datasets.load("cifar10")
    (tmp_path / "cifar-10-batches-bin").mkdir()
    with pytest.raises(MissingDataError, match="all training files"):
        datasets.load("cifar10", root=tmp_path)
    with pytest.raises(ValueError, match="data set must be one of"):
        datasets.load("mnist")


def test_auto_is_cifar_when_it_is_there_else_digits(tmp_path, monkeypatch):
    assert datasets.load("auto").name == "digits"
    monkeypatch.setenv("GRAPHNAS_DATA", str(write_binary(tmp_path / "given")))
    assert datasets.load("auto").name == "cifar10"


# ---- the restricted unpickler


class Attack:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(6))
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path, protocol):
    target = tmp_path / "owned"
    payload = pickle.dumps({"data": [Attack(os.mkdir, str(target))]}, protocol=protocol)
    with pytest.raises(UnsafePickleError, match=r"file\.pkl asks for posix\.mkdir.*Nothing of it was run"):
        unpickle_restricted(payload, name="file.pkl")
    assert not target.exists()


@pytest.mark.parametrize("function, arguments", [(eval, ("1+1",)), (np.load, ("x",)), (getattr, ("x", "join"))])
def test_neither_builtins_nor_other_numpy_functions_are_admitted(function, arguments):
    with pytest.raises(UnsafePickleError, match="asks for"):
        unpickle_restricted(pickle.dumps(Attack(function, *arguments)))


def test_a_dotted_name_does_not_reach_through_an_admitted_class():
    stack_global = b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__init__\x93."
    with pytest.raises(UnsafePickleError, match=r"numpy\.ndarray\.__init__"):
        unpickle_restricted(stack_global)


def test_text_codecs_other_than_latin1_are_refused():
    call = b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00zip\x86R."
    with pytest.raises(UnsafePickleError, match="latin1 alone; it asks for 'zip'"):
        unpickle_restricted(call)


def test_a_malicious_object_array_is_refused(tmp_path):
    box = np.empty((), dtype=object)
    box[()] = Attack(os.mkdir, str(tmp_path / "owned"))
    np.save(tmp_path / "x.npy", box, allow_pickle=True)
    with pytest.raises(UnsafePickleError, match=r"x\.npy asks for posix\.mkdir"):
        load_npy(tmp_path / "x.npy")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_of_every_kind_come_back_whole(protocol):
    ragged = np.empty(2, dtype=object)
    ragged[0], ragged[1] = np.arange(3.0), np.arange(5, dtype=np.int16)
    value = {
        "f": np.asfortranarray(RNG.random((3, 4))), "b": np.array([True, False]), "text": np.array(["N", "~"]),
        "ragged": ragged, "scalar": np.float32(2.5), "bytes": b"\x00\xff", "list": [1, None, ("a", 2.0)],
    }  # fmt: skip
    back = unpickle_restricted(pickle.dumps(value, protocol=protocol))
    assert back["scalar"] == 2.5 and back["bytes"] == b"\x00\xff" and back["list"] == value["list"]
    for name in ("f", "b", "text"):
        np.testing.assert_array_equal(back[name], value[name])
    np.testing.assert_array_equal(back["ragged"][1], ragged[1])


def test_pickles_of_old_numpy_and_python_2_are_read():
    # what Python 2 wrote for {'data': np.arange(3, dtype=uint8)}: module numpy.core, byte strings as str
    stored = pickle.dumps({"data": np.arange(3, dtype=np.uint8)}, protocol=2)
    old = stored.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert old != stored and unpickle_restricted(old)["data"].tolist() == [0, 1, 2]


def test_npy_files_plain_and_object(tmp_path):
    np.save(tmp_path / "plain.npy", np.arange(6).reshape(2, 3))
    assert load_npy(tmp_path / "plain.npy").shape == (2, 3)
    np.save(tmp_path / "box.npy", np.array([7, "seq", np.eye(2)], dtype=object), allow_pickle=True)
    length, name, eye = load_npy(tmp_path / "box.npy")
    assert (length, name, eye[1, 1]) == (7, "seq", 1.0)
    (tmp_path / "no.npy").write_bytes(b"not an array")
    with pytest.raises(CorruptArtifactError, match=r"no\.npy must be an \.npy file"):
        load_npy(tmp_path / "no.npy")


# ---- what can be done with a data set


def test_digits_are_real_images_with_the_last_ones_for_testing():
    digits = datasets.load("digits")
    assert digits.size("train") == 1437 and digits.size("test") == 360 and not digits.mirror
    assert digits.input_shape == (3, 32, 32) and digits.classes == 10
    images, _ = digits.batch(1437)
    assert abs(images.mean().item()) < 1e-3 and abs(images.std().item() - 1) < 1e-3


def test_batch_is_the_first_images_normalised(tmp_path):
    data = datasets.load("cifar10", root=write_binary(tmp_path))
    images, labels = data.batch(4)
    by_hand = (IMAGES[3].reshape(3, 32, 32)[1] / 255 - 123.0 / 255) / (62.1 / 255)
    np.testing.assert_allclose(images[3, 1], by_hand, rtol=1e-5, atol=1e-5)
    assert labels.tolist() == [0, 1, 2, 3]
    assert data.batch(4, split="test")[1].tolist() == LABELS[20:24].tolist()
    with pytest.raises(ValueError, match="split must be 'train' or 'test'; got 'val'"):
        data.batch(4, split="val")


def test_resizing_keeps_flat_images_flat_and_the_mean_of_others():
    digits = datasets.load("digits", n_train=20, n_test=5, resolution=16)
    assert digits.train_images.shape == (20, 3, 16, 16) and digits.test_images.shape == (5, 3, 16, 16)
    full = datasets.load("digits", n_train=20)
    difference = digits.train_images.float().mean((1, 2, 3)) - full.train_images.float().mean((1, 2, 3))
    assert difference.abs().max() < 2 and "16x16" in digits.source


def test_validation_split_is_balanced_disjoint_and_leaves_the_test_split_alone():
    digits = datasets.load("digits")
    split = digits.split_validation(0.2, seed=1)
    assert split.size("train") + split.size("test") == 1437
    share = torch.bincount(split.test_labels, minlength=10) / torch.bincount(digits.train_labels, minlength=10)
    assert ((share - 0.2).abs() < 0.02).all()
    held = datasets.stratified(digits.train_labels, 0.2, seed=1)
    assert torch.equal(split.test_images, digits.train_images[held])
    assert torch.equal(split.train_images, digits.train_images[~held])
    other = datasets.stratified(digits.train_labels, 0.2, seed=2)
    assert not torch.equal(held, other)
    with pytest.raises(ValueError, match="between 0 and 1"):
        digits.split_validation(1.0)


def test_download_checks_the_hash_and_leaves_nothing_behind(tmp_path):
    source = write_python(tmp_path / "source")
    archive = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(source / "cifar-10-batches-py", "cifar-10-batches-py")
    good, folder = hashlib.sha256(archive.read_bytes()).hexdigest(), tmp_path / "data"
    with pytest.raises(CorruptArtifactError, match="must have the SHA-256 0{64}; what came has " + good):
        archives.download(archive.as_uri(), "0" * 64, folder)
    assert not list(folder.iterdir())
    archives.download(archive.as_uri(), good, folder)
    assert [path.name for path in folder.iterdir()] == ["cifar-10-batches-py"]
    assert datasets.load("cifar10", root=folder).size("train") == 20


def test_image_folder_decodes_lazily_and_crops_by_the_seed(tmp_path):
    from PIL import Image

    for split, count in (("train", 3), ("val", 2)):
        for k, wnid in enumerate(("n02", "n01")):
            (tmp_path / split / wnid).mkdir(parents=True)
            for i in range(count):
                noise = RNG.integers(0, 80, (40, 60, 3), dtype=np.uint8) + np.uint8(150 * k)
                Image.fromarray(noise).save(tmp_path / split / wnid / f"{i}.JPEG")
    folder = datasets.ImageFolderDataset(tmp_path, resolution=16, threads=2)
    assert folder.class_names == ["n01", "n02"] and folder.size("train") == 6 and folder.size("test") == 4
    index = torch.tensor([0, 4])
    images, labels = folder.fetch("train", index, seed=1)
    assert images.shape == (2, 3, 16, 16) and images.dtype == torch.uint8 and labels.tolist() == [0, 1]
    assert images[0].float().mean() > images[1].float().mean() + 100  # n01 is the bright class
    assert torch.equal(images, folder.fetch("train", index, seed=1)[0])
    assert not torch.equal(images, folder.fetch("train", index, seed=2)[0])
    assert torch.equal(folder.fetch("test", index[:1])[0], folder.fetch("test", index[:1], seed=5)[0])
    sent = pickle.loads(pickle.dumps(folder))  # to a process that trains on it
    assert torch.equal(sent.fetch("train", index, seed=1)[0], images)
    with pytest.raises(MissingDataError, match="train/<class>/ and val/<class>/"):
        datasets.ImageFolderDataset(tmp_path / "nothing")


def test_real_cifar_when_it_is_there(cifar):
    data = datasets.load("cifar10")
    assert data.train_images.shape[1:] == (3, 32, 32) and data.size("train") >= 16_000
    counts = torch.bincount(data.train_labels, minlength=10)
    assert counts.max() < 1.1 * counts.min()
    images, labels = data.batch(64)
    assert labels[:8].tolist() == [6, 9, 9, 4, 1, 1, 2, 7]  # frog truck truck deer car ...: the official first
    assert images.mean().abs() < 0.2 and (images.std() - 1).abs() < 0.2


def test_gzip_streams_are_read(tmp_path):
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(pickle.dumps({"a": np.eye(3)})))
    with gzip.open(path) as file:
        assert unpickle_restricted(file)["a"].trace() == 3.0
