"""Worker processes that score many small networks: how many, and one thread each.

Two workers of one thread beat one of two, and on a GPU a small network is bound by launches, so several share it.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

ON_CPU = 2
ON_CUDA = 8


def processes(device: torch.device) -> int:
    """How many worker processes serve a device."""
    return ON_CUDA if device.type == "cuda" else ON_CPU


@contextmanager
def single_threaded() -> Iterator[None]:
    """One task of a worker: one thread, so that results are equal wherever they are made; memory is given back after.

    joblib restarts a worker whose memory seems to grow, which costs more than the pages that are touched again.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        if sys.platform == "linux":
            trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc alone
            if trim is not None:
                trim(0)
