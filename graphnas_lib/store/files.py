"""Files that are whole or not there, one process at a time, and what to do where a disk refuses.

A write that fails leaves what was there before. What the system says of a full disk or a read-only folder becomes one
sentence with the remedy.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_ELSEWHERE = (
    "Results need a folder that can be written: name one in $GRAPHNAS_HOME (a copy of data/ and notebooks/), or "
    "give -o."
)
REFUSALS = {  # as the system words it -> what to do
    "No space left on device": "The disk is full: free some space and give the same command again; what was finished "
    "is kept.",
    "Disk quota exceeded": "Your share of the disk is used up: free some and give the same command again; what was "
    "finished is kept.",
    "Read-only file system": _ELSEWHERE,
    "Permission denied": _ELSEWHERE,
}


def remedy(text: str) -> str:
    """What to do about an error of the system, from its text; "" for any other error."""
    return next((advice for words, advice in REFUSALS.items() if words in text), "")


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of `path` when the block ends well; else nothing is left.

    What a killed process left of the same file is removed.

    Raises:
        OSError: the file could not be written, whatever the library that wrote it raises then.
    """
    import psutil
    from safetensors import SafetensorError

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    for other in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        maker = other.suffixes[-2][1:]
        if maker.isdigit() and not psutil.pid_exists(int(maker)):
            other.unlink(missing_ok=True)
    try:
        part.touch()
        mode = part.stat().st_mode  # as this user's other files, whatever mode a library gives its own
        yield part
        part.chmod(mode)
        os.replace(part, path)
    except SafetensorError as error:
        raise OSError(f"{path.name} could not be written ({error}).") from error
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def alone(path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[bool]:
    """The only process that is in a block of this path; says whether another one had to end first.

    The system lets go of the lock of a process that is killed. Where it knows no locks (some network disks), nothing
    is locked.

    Args:
        path: of the lock, an empty file.
        waiting: called once when another process is in the block.
    """
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    lock, waited = FileLock(path), False
    with suppress(NotImplementedError):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            waited = True
            waiting()
            lock.acquire()
    try:
        yield waited
    finally:
        lock.release()
