"""The macro search space S and its high-level twin (Sec. 3, Eq. 1-2): sequences of parametrised cells.

An `Architecture` is up to 20 triples (cell, channels, stride), each of which may know the family (cluster) that its
cell was generated for; an `HLArchitecture` names families in place of cells. Both are data, read from and written to
JSON; `network` turns an `Architecture` into a module.
"""

from __future__ import annotations

import hashlib
import json
import operator
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from graphnas_lib.space import Cell

CHANNELS = tuple(range(8, 1025, 8))  # paper: Sec. 3, C = {8, 16, ..., 1024}; printed |C| = 127, it has 128 members
STRIDES = (1, 2)
MAX_CELLS = 20


def whole(value: object) -> int | None:
    """`value` as an int where it is a whole number, NumPy's too; None for anything else (a truth value, 8.0, "8")."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


@dataclass(frozen=True)
class Triple:
    """t = [x, c, s]: a cell, its channels (a multiple of 8, 8 to 1024) and its stride (1 or 2).

    `family` is the index (from 0) of the family that the cell was generated for (x-hat of Eq. 8), or None.
    """

    cell: Cell
    channels: int
    stride: int
    family: int | None = None

    def __post_init__(self):
        if not isinstance(self.cell, Cell):
            raise ValueError(f"A triple's cell must be a Cell; got {type(self.cell).__name__}.")
        family = 0 if self.family is None else self.family
        family, channels, stride = _checked("triple's family", family, self.channels, self.stride)
        vars(self).update(channels=channels, stride=stride, family=None if self.family is None else family)

    def to_row(self) -> dict:
        """JSON-ready form; it has "family" where that is known."""
        row = {"cell": self.cell.to_dict(), "channels": self.channels, "stride": self.stride}
        return row if self.family is None else row | {"family": self.family}

    @classmethod
    def from_row(cls, row: dict) -> Triple:
        """Inverse of `to_row`."""
        cell = _cell(json.dumps(row["cell"], default=operator.index))
        return cls(cell, row["channels"], row["stride"], row.get("family"))


@lru_cache(maxsize=2**14)
def _cell(text: str) -> Cell:
    """Cell of its JSON: a history names few of them, in thousands of networks."""
    return Cell.from_dict(json.loads(text))


@dataclass(frozen=True)
class HLTriple:
    """t-hat: a family of cells (cluster index from 0), channels, stride."""

    cluster: int
    channels: int
    stride: int

    def __post_init__(self):
        cluster, channels, stride = _checked("high-level triple's cluster", self.cluster, self.channels, self.stride)
        vars(self).update(cluster=cluster, channels=channels, stride=stride)

    def to_row(self) -> list[int]:
        """JSON-ready form."""
        return [self.cluster, self.channels, self.stride]

    @classmethod
    def from_row(cls, row: Sequence[int]) -> HLTriple:
        """Inverse of `to_row`."""
        return cls(*row)


class JSONText:
    """Text form of what has `to_dict` and `from_dict`; `called` names it in messages."""

    called = "An architecture"

    def to_json(self) -> str:
        """Text that `from_json` reads anywhere."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str | bytes):
        """Inverse of `to_json`; ValueError also where the text is no JSON. Bytes are UTF-8 or UTF-16."""
        try:
            return cls.from_dict(json.loads(text))
        except json.JSONDecodeError as error:
            place = f"line {error.lineno}, column {error.colno}: {error.msg}"
            raise ValueError(f"{cls.called} must be valid JSON; {place}.") from error


class _Sequence(JSONText):
    """What a sequence of triples of either kind shares: its checks and its JSON."""

    def __post_init__(self):
        object.__setattr__(self, "triples", tuple(self.triples))
        n, head = len(self.triples), self.head_channels
        if not 1 <= n <= MAX_CELLS:
            raise ValueError(f"An architecture must have 1 to {MAX_CELLS} cells (Sec. 3); got {n}.")
        for i, triple in enumerate(self.triples):
            if not isinstance(triple, self.kind):
                raise ValueError(f"Triple {i} must be a {self.kind.__name__}; got {type(triple).__name__}.")
        if head is not None and (whole(head) is None or head < 1):
            raise ValueError(f"head_channels must be None or a positive number; got {head!r}.")
        if whole(self.stem_stride) not in STRIDES:
            raise ValueError(f"stem_stride must be 1 or 2; got {self.stem_stride!r}.")
        vars(self).update(head_channels=None if head is None else whole(head), stem_stride=whole(self.stem_stride))

    def to_dict(self) -> dict:
        """JSON-ready form."""
        rows = [triple.to_row() for triple in self.triples]
        return {"triples": rows, "head_channels": self.head_channels, "stem_stride": self.stem_stride}

    @classmethod
    def from_dict(cls, data: dict):
        """Inverse of `to_dict`; ValueError names the place that is wrong."""
        if not isinstance(data, dict) or not isinstance(data.get("triples"), list):
            raise ValueError(f"{cls.__name__} must be an object with a list 'triples'; got {str(data)[:80]!r}.")
        triples = []
        for i, row in enumerate(data["triples"]):
            try:
                triples.append(cls.kind.from_row(row))
            except (KeyError, TypeError, ValueError) as error:
                reason = f"'{error.args[0]}' is missing" if isinstance(error, KeyError) else error
                raise ValueError(f"{cls.__name__}, triple {i}: {reason}") from error
        return cls(tuple(triples), data.get("head_channels"), data.get("stem_stride", 1))


@dataclass(frozen=True)
class Architecture(_Sequence):
    """alpha(t_1, ..., t_n), n <= 20 (Sec. 3).

    Args:
        triples: the cells in order.
        head_channels: width of a final BN-ReLU-conv1x1-BN, or None for none (deviation D08).
        stem_stride: 1, or 2 at ImageNet size.
    """

    kind = Triple
    triples: tuple[Triple, ...]
    head_channels: int | None = None
    stem_stride: int = 1

    @property
    def stem_channels(self) -> int:
        """Width of the stem: the first cell's (the released networks re-count exactly so, ten of ten)."""
        return self.triples[0].channels

    @property
    def hl(self) -> HLArchitecture:
        """alpha-hat: the families in place of the cells; ValueError where a family is not known."""
        triples = tuple(HLTriple(t.family, t.channels, t.stride) for t in self.triples)
        return HLArchitecture(triples, self.head_channels, self.stem_stride)

    @classmethod
    def from_dict(cls, data: dict) -> Architecture:
        """Inverse of `to_dict`; ValueError names the place that is wrong.

        The shipped histories have families beside the network, as {"hl": ..., "architecture": ...}; these are read too.
        """
        if isinstance(data, dict) and data.keys() >= {"hl", "architecture"}:
            hl, bare = HLArchitecture.from_dict(data["hl"]), cls.from_dict(data["architecture"])
            if [(t.channels, t.stride) for t in hl.triples] != [(t.channels, t.stride) for t in bare.triples]:
                raise ValueError("'hl' must have the channels and strides of its 'architecture'; it has others.")
            return replace(bare, triples=hl.with_cells([t.cell for t in bare.triples]).triples)
        return super().from_dict(data)

    def key(self) -> str:
        """Hash of the sequence of canonical cells, widths and strides; families take no part: they are no network."""
        parts = [(t.cell.key(), t.channels, t.stride) for t in self.triples]
        return hashlib.sha256(repr((parts, self.head_channels, self.stem_stride)).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class HLArchitecture(_Sequence):
    """alpha-hat: a sequence over families instead of cells (Sec. 3.3)."""

    kind = HLTriple
    triples: tuple[HLTriple, ...]
    head_channels: int | None = None
    stem_stride: int = 1

    def with_cells(self, cells: Sequence[Cell]) -> Architecture:
        """alpha(alpha-hat) of Eq. 8 with a cell for each family; widths, strides, head and stem are kept."""
        pairs = zip(cells, self.triples, strict=True)
        triples = tuple(Triple(cell, hl.channels, hl.stride, hl.cluster) for cell, hl in pairs)
        return Architecture(triples, self.head_channels, self.stem_stride)


def widest(fits: Callable[[int], bool], widths: Sequence[int] = CHANNELS) -> int | None:
    """The largest of some ascending widths that fits, by bisection (costs grow with widths); None where none does."""
    place = bisect_right(widths, False, key=lambda width: not fits(width))
    return widths[place - 1] if place else None


def stack_cell(cell: Cell, *, width: int = 16, repeats: int = 5) -> Architecture:
    """alpha_x of Eq. 1-2: one cell stacked in three stages of widths 1, 2, 4 x `width`.

    i = 1..17, c_i = 16 * 2^floor(i / 6), s_i = 2 for i in {6, 12}: 5 cells at 16, then 6 at 32 and 6 at 64. Smaller
    `width` and `repeats` give the reduced skeletons of the smoke and lite scales (repeats r: r, r + 1, r + 1 cells).
    """
    places = [divmod(i, repeats + 1) for i in range(1, 3 * repeats + 3)]  # stage, place in it; repeats = 5 is Eq. 2
    return Architecture(tuple(Triple(cell, width * 2**stage, 1 if place else 2) for stage, place in places))


def repeat_cell(cell: Cell, n: int, width: int, *, strides: int, family: int | None = None, stem_stride: int = 1):
    """An `Architecture` of one cell n times at one width, the first `strides` of which halve the side."""
    strided, plain = (Triple(cell, width, stride, family) for stride in (2, 1))
    first = min(strides, n)
    return Architecture((strided,) * first + (plain,) * (n - first), stem_stride=stem_stride)


def _checked(name: str, *values: object) -> tuple[int, int, int]:
    """Family, channels and stride as ints."""
    family, channels, stride = values
    numbers = tuple(map(whole, values))
    if numbers[0] is None or numbers[0] < 0:
        raise ValueError(f"A {name} must be an index >= 0; got {family!r}.")
    if numbers[1] is None or numbers[1] % 8 or not 8 <= numbers[1] <= 1024:
        raise ValueError(f"Channels must be a multiple of 8 from 8 to 1024 (Sec. 3); got {channels!r}.")
    if numbers[2] not in STRIDES:
        raise ValueError(f"Stride must be 1 or 2 (Sec. 3); got {stride!r}.")
    return numbers
