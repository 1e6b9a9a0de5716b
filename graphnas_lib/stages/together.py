"""One stage in several processes that torchrun has started, each with a GPU of its own: ImageNet-1k's trainings.

The first process makes the stage as one process would, keeps its rows and writes its artifact. The others are given
what it has found, and take their share of every batch.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import Any

import torch

LONGEST_SEARCH = timedelta(hours=12)  # that the others wait for what the first is making
TOGETHER = ("table3",)  # stages whose trainings take days of one GPU


@cache
def accelerator(stage: str) -> Any:
    """`accelerate.Accelerator` of this process under torchrun; None without it.

    Raises:
        ValueError: torchrun was asked for a stage whose jobs are independent.
        ImportError: accelerate is not installed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    if stage not in TOGETHER:
        raise ValueError(
            f"Under torchrun runs {', '.join(TOGETHER)} alone; got {stage}. Start it without torchrun: its jobs are "
            "independent, and --dask tcp://... spreads them."
        )
    try:
        from accelerate import Accelerator, InitProcessGroupKwargs
    except ImportError as error:
        raise ImportError(
            f"Training under torchrun needs accelerate ({error}). Run `make setup EXTRAS=paper`."
        ) from error
    no_gpu = not torch.cuda.is_available()  # accelerate would otherwise take each process for the only one
    return Accelerator(cpu=no_gpu, kwargs_handlers=[InitProcessGroupKwargs(timeout=LONGEST_SEARCH)])


def is_first(stage: str) -> bool:
    """Whether this process is the one that writes."""
    return accelerator(stage) is None or accelerator(stage).is_main_process


def shared(stage: str, make: Callable[[], Any]) -> Any:
    """What the first process makes, given to every one; anything that pickles."""
    if accelerator(stage) is None:
        return make()
    from accelerate.utils import broadcast_object_list

    box = [make() if is_first(stage) else None]
    broadcast_object_list(box)
    return box[0]
