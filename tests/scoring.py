"""Scores that other processes take in tests of searches. They import this file, and not the tests beside it."""

import math
import os
import signal
from dataclasses import dataclass
from pathlib import Path

from graphnas_lib.macro import Architecture


def width_score(architecture: Architecture) -> float:
    """Cheap, with a known direction: near 128 channels everywhere, shallow."""
    return -sum(abs(math.log2(t.channels / 128)) for t in architecture.triples) - 0.01 * len(architecture.triples)


@dataclass
class Deadly:
    """`width_score`; the process that scores one individual dies over it, the first `times`."""

    folder: Path
    key: str
    times: int

    def __call__(self, architecture: Architecture) -> float:
        fired = self.folder / "fired"
        if architecture.key() == self.key and (fired.stat().st_size if fired.exists() else 0) < self.times:
            with fired.open("a") as file:
                file.write("x")
            os.kill(os.getpid(), signal.SIGKILL)
        return width_score(architecture)
