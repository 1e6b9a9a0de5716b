"""Fixtures shared by all tests: the optional real data beside the repository, and the markers `cuda` and `slow`."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run tests marked slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip, with a reason, what this machine or this call cannot run."""
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))
    marked = [item for item in items if "cuda" in item.keywords]
    if marked:
        import torch

        if not torch.cuda.is_available():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason="no CUDA device on this machine"))


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
