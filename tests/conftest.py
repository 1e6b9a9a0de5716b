"""Fixtures shared by all tests: the optional real data beside the repository, and the markers `cuda` and `slow`.

A test that takes the fixture `cuda` runs on a simulated device everywhere, and on a real one where there is one. From
all others a real one is hidden, so that they find the same on every machine.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from simulated_cuda import simulated_cuda

REPOSITORY = Path(__file__).resolve().parents[1]
# Of the minutes that each takes: the longest begin, so that no worker is left alone with one at the end.
LONGEST_FIRST = (
    *("machines", "design", "evolution", "corpus", "reproduce", "whole", "evidence", "plain", "stages", "panels"),
    *("plots", "gvae", "selection", "export", "site", "nats", "space", "benchmark_table", "sequence", "ccnf"),
    *("network", "teaching", "training", "synonyms", "benchmark_scores", "arguments", "resume", "main"),
)
CUDA, SHOWN = torch.cuda.is_available(), os.environ.get("CUDA_VISIBLE_DEVICES")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run tests marked slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The longest files first; skip, with a reason, what this machine or this call cannot run."""
    places = {f"test_{name}": place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))
    for item in items if not CUDA else ():
        if item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device on this machine"))


@pytest.hookimpl(tryfirst=True)  # before fixtures of any scope
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Hide CUDA from this process, and from those that it starts, unless the test is marked for it."""
    if CUDA and item.get_closest_marker("cuda"):
        torch.cuda.is_available = lambda: True
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        if SHOWN is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = SHOWN
    else:
        torch.cuda.is_available = lambda: False
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(params=["simulated", pytest.param("real", marks=pytest.mark.cuda)])
def cuda(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """A CUDA device."""
    if request.param == "real":
        yield torch.device("cuda", 0)
    else:
        with simulated_cuda() as device:
            yield device


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of this checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder `shared` beside the repository (reference numbers, real data); the test is skipped without it."""
    path = REPOSITORY.parent / "shared"
    if not path.is_dir():
        pytest.skip("no folder 'shared' beside the repository (reference numbers and real data)")
    return path


def _laid_out(root: Path) -> bool:
    return (root / "cifar-10-batches-bin" / "test_batch.bin").is_file() or (root / "cifar-10-batches-py").is_dir()


@pytest.fixture(scope="session")
def real_data(request: pytest.FixtureRequest) -> Path:
    """Folder with the real data sets in their official layouts: $GRAPHNAS_DATA, else `shared/data` unpacked once."""
    given = os.environ.get("GRAPHNAS_DATA")
    if given and _laid_out(Path(given)):
        return Path(given)
    packed = request.getfixturevalue("shared") / "data"
    if not (packed / "unpack.py").is_file():
        pytest.skip("no real data: neither $GRAPHNAS_DATA nor shared/data is there")
    user = os.getuid() if hasattr(os, "getuid") else "user"
    target = Path(tempfile.gettempdir()) / f"graphnas-real-data-{user}"
    # unpack.py skips what is there and writes each file atomically, so tests that run at the same time may share it
    subprocess.run([sys.executable, str(packed / "unpack.py"), str(target)], check=True, timeout=240)
    return target


@pytest.fixture
def cifar(real_data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`real_data`, with $GRAPHNAS_DATA set to it for this test."""
    monkeypatch.setenv("GRAPHNAS_DATA", str(real_data))
    return real_data
