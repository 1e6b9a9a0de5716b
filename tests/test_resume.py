"""A training of each table, killed in the middle and gone on with: the row of one that was not, no step made twice."""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_nasbench360 import write_satellite

from graphnas_lib import datasets, proxies
from graphnas_lib.design import Design
from graphnas_lib.macro import stack_cell
from graphnas_lib.network import count
from graphnas_lib.paper import Sizes
from graphnas_lib.space import REFERENCE_CELL
from graphnas_lib.stages import Stage, table1, table2, table3, table4
from graphnas_lib.store import Checkpoint, Journal, data_dir

SMALL = stack_cell(REFERENCE_CELL, width=8, repeats=1)
SIZES = {
    **{"train_width": 8, "train_repeats": 1, "train_epochs": 2, "table2_epochs": 2, "table2_recipe": "nats12"},
    **{"table4_budget": ("params", 1e4), "table4_epochs": 3, "table4_samples": None},
}


def job_of_table1(stage: Stage, folder) -> Callable:
    data = datasets.load("digits", resolution=8, n_train=64, n_test=16)
    images, labels = data.batch(4)
    vector = partial(proxies.zc_vector, images=images, labels=labels, width=8, repeats=1)
    return partial(table1.measure, stage, data, vector, "Random", REFERENCE_CELL, 0)


def job_of_table2(stage: Stage, folder) -> Callable:
    data = datasets.load("digits", resolution=8, n_train=64, n_test=16)
    return partial(table2.measure, stage, {"method": "HL"}, SMALL.to_json(), data)


def write_images(folder) -> None:
    """A folder of noise as ImageNet's lie: two splits of two classes."""
    from PIL import Image

    for split in ("train", "val"):
        for label in ("n01", "n02"):
            (folder / split / label).mkdir(parents=True)
            for i in range(16):
                noise = np.random.default_rng(i).integers(0, 255, (20, 20, 3), dtype=np.uint8)
                Image.fromarray(noise).save(folder / split / label / f"{i}.JPEG")


def job_of_table3(stage: Stage, folder) -> Callable:
    write_images(folder)
    data = datasets.ImageFolderDataset(folder, resolution=16, threads=1)
    costs = count(SMALL, input_shape=data.input_shape, classes=2)
    chosen = Design(architecture=SMALL, **vars(costs), tcet=1.0, batch="", input_shape=data.input_shape, classes=2)
    return partial(table3.measure, stage, chosen, data, 0)


def job_of_table4(stage: Stage, folder) -> Callable:
    generator = np.random.default_rng(0)
    for split, n in (("train", 1_000), ("test", 40)):
        write_satellite(folder / "nb360" / "satellite", generator.normal(size=(n, 46)), np.arange(n) % 24 + 1, split)
    return partial(table4.measure, stage, "satellite", table4.WIDE, {})


JOBS = [job_of_table1, job_of_table2, job_of_table3, pytest.param(job_of_table4, marks=pytest.mark.slow)]


@pytest.mark.parametrize("job_of", JOBS)
def test_a_killed_training_goes_on(tmp_path, monkeypatch, job_of):
    monkeypatch.setenv("GRAPHNAS_DATA", str(tmp_path))
    monkeypatch.setenv(table3.WITHOUT_TEACHER, "none")
    monkeypatch.setattr(table3, "RECIPE", "nats12")  # ZenNAS's has 480 epochs
    options = {"scale": Sizes(name="smoke", **SIZES), "device": torch.device("cpu"), "progress": False}
    stage = partial(Stage, name="table", seed=0, **options)
    job = job_of(stage(identity="whole"), tmp_path)
    monkeypatch.setenv("GRAPHNAS_HOME", str(tmp_path))

    def row(identity: str) -> tuple[dict, list[int]]:
        """The row, without seconds, and the steps after which state was saved."""
        steps = []

        def save(self, state):
            original(self, state)
            steps.append(state["step"])
            if stop.get("step") == state["step"]:
                raise KeyboardInterrupt

        original = Checkpoint.save
        with monkeypatch.context() as patch:
            patch.setattr(Checkpoint, "due", lambda self: True)
            patch.setattr(Checkpoint, "save", save)
            (found,) = stage(identity=identity).trainings({"a job: 1 | x": job}, "trainings", "settings", workers=1)
        return {name: value for name, value in found.items() if "seconds" not in name}, steps

    stop = {}
    expected, steps = row("whole")
    assert steps[:3] == [1, 2, 3] and len(steps) > 4
    stop["step"] = 3
    with pytest.raises(KeyboardInterrupt):
        row("killed")
    stop.clear()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # once more, before the row is kept
        patch.setattr(Journal, "add", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        row("killed")
    assert len(kept := list(data_dir("smoke").glob("checkpoints/*killed*.safetensors"))) == 1
    resumed, later = row("killed")
    assert later == steps[-1:]  # its training was complete
    assert resumed == expected or str(resumed) == str(expected)  # NaN
    assert not kept[0].exists()
    assert row("killed") == (resumed, [])


def test_a_budget_that_no_rival_meets_is_a_row(tmp_path, monkeypatch):
    monkeypatch.setenv("GRAPHNAS_DATA", str(tmp_path))
    for split in ("train", "test"):
        write_satellite(tmp_path / "nb360" / "satellite", np.random.rand(40, 46), np.arange(40) % 24 + 1, split)
    scale = SimpleNamespace(table4_samples=None, table4_budget=("flops", 1.0))
    stage = SimpleNamespace(scale=scale, seed=0, device="cpu")
    row = table4.measure(stage, "satellite", table4.WIDE, {}, checkpoint=Checkpoint())
    assert row["value"] is None and "nearest reachable" in row["note"] and row["method"] == table4.WIDE
