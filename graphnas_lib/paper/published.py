"""The paper's tables and claims, and our deviations from it, read from the TOML files beside this one.

A number keeps its printed form (`Printed.text`) beside the parsed one (`Printed.value`), and says where it stands.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, field, fields, replace

from graphnas_lib.paper.scales import frozen, read

_NUMBER = re.compile(r"(?:c\. |<)?(\d[\d,]*(?:\.\d+)?(?:e-?\d+)?)(?:±(\d+(?:\.\d+)?))?")
_RATIO = re.compile(r"(\d+)/(\d+)")


@dataclass(frozen=True)
class Printed:
    """One cell of a published table: `text` as printed (None: blank), place, rank (1 best, 2 second), note."""

    text: str | None
    place: str
    rank: int = 0
    note: str = ""

    @property
    def value(self) -> float | None:
        """The number: 793.0 of "793±49", 0.45 of "9/20", 4000.0 of "c. 4,000"; None for words, "?", "-" and blanks."""
        if ratio := _RATIO.fullmatch(self.text or ""):
            return int(ratio[1]) / int(ratio[2])
        number = _NUMBER.fullmatch(self.text or "")
        return float(number[1].replace(",", "")) if number else None

    @property
    def spread(self) -> float | None:
        """The number after ±, in the unit of `value`; None when none is printed."""
        number = _NUMBER.fullmatch(self.text or "")
        return float(number[2]) if number and number[2] else None


@dataclass(frozen=True)
class Row:
    """One row of a published table: `group` (design space, budget) and `name` as printed; `quoted` from other work."""

    table: int
    group: str
    name: str
    cells: tuple[tuple[str, Printed], ...]  # (column, cell), left to right
    quoted: bool = False

    @property
    def key(self) -> str:
        """Name that is unique in its table: "GraphNet: Evo(T-CET)", or the plain name."""
        return f"{self.group}: {self.name}" if self.group else self.name

    def __getitem__(self, column: str) -> Printed:
        cells = dict(self.cells)
        if column not in cells:
            raise KeyError(f"Table {self.table} has the columns {tuple(cells)}; got {column!r}.")
        return cells[column]

    def __iter__(self) -> Iterator[tuple[str, Printed]]:
        return iter(self.cells)


@dataclass(frozen=True)
class Claim:
    """One claim of the paper's text (`text` in our words), its numbers as printed, and the notebook that answers it.

    `note` says how it stands with the paper's own numbers. `finding` and `row` are the sentence that the ledger fills
    with our numbers; `given` holds what these are computed with or compared to.
    """

    id: str
    text: str
    where: str
    notebook: str
    finding: str
    row: str = ""
    numbers: tuple[str, ...] = ()
    note: str = ""
    given: dict[str, float | str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Protocol:
    """How claims are put to public tables of trained networks, and the rule of its verdict, set before it ran.

    `margin` and `floor` are the numbers of `rule`; `margin_size` is that over a control of equal size. `unit` is what
    intervals are taken over; `published` has values of others on the same question, from `source`.
    """

    id: str
    title: str
    question: str
    unit: str
    statistic: str
    control: str
    rule: str
    margin: float
    claims: tuple[str, ...] = ()
    floor: float | None = None
    margin_size: float = 0.0
    published: dict[str, tuple[float, ...]] = field(default_factory=dict, hash=False)
    source: str = ""


@dataclass(frozen=True)
class Deviation:
    """One departure: what the paper says, what we do, why, and its measured effect (None where none is measured)."""

    id: str
    paper: str
    ours: str
    why: str
    effect: str | None = None


def check(entry: dict, where: str, must: set[str], may: set[str]) -> None:
    """ValueError where a TOML entry lacks a key that it must have, or has one that is not known."""
    missing, unknown = sorted(must - entry.keys()), sorted(entry.keys() - must - may)
    if missing or unknown:
        raise ValueError(
            f"{where} must have the keys {sorted(must)} and may have {sorted(may)}; "
            f"missing are {missing}, unknown are {unknown}. Mend the entry."
        )


def entries(kind: type, name: str, source: dict[str, dict]) -> tuple:
    """One `Claim` or `Deviation` for each entry of the file `name`."""
    keys = {f.name: f.default is MISSING and f.default_factory is MISSING for f in fields(kind) if f.name != "id"}
    must = {key for key, needed in keys.items() if needed}
    for key, entry in source.items():
        check(entry, f"{name}, [{key}]", must, keys.keys() - must)
    return tuple(kind(key, **frozen(entry)) for key, entry in source.items())


def row(number: int, columns: list[str], line: dict) -> Row:
    """One row of a published table; ValueError where cells or notes do not fit its columns."""
    where = f"tables.toml, Table {number}, row {line.get('name')!r}"
    check(line, where, {"name", "cells"}, {"group", "quoted", "notes"})
    check(line.get("notes", {}), f"{where}, notes", set(), set(columns))
    if len(line["cells"]) != len(columns):
        raise ValueError(f"{where} must have {len(columns)} cells, one a column; got {len(line['cells'])}. Mend it.")
    head = Row(number, line.get("group", ""), line["name"], (), line.get("quoted", False))
    cells = []
    for column, text in zip(columns, line["cells"], strict=True):
        rank, note = {"*": 1, "_": 2}.get(text[:1], 0), line.get("notes", {}).get(column, "")
        cells.append((column, Printed(text.strip("*_") or None, f"Tab. {number}, {head.key}, {column}", rank, note)))
    return replace(head, cells=tuple(cells))


def table(number: int, source: dict) -> tuple[Row, ...]:
    """The rows of one published table."""
    check(source, f"tables.toml, Table {number}", {"caption", "columns", "rows"}, set())
    return tuple(row(number, source["columns"], line) for line in source["rows"])


CLAIMS: tuple[Claim, ...] = entries(Claim, "claims.toml", read("claims.toml"))
DEVIATIONS: tuple[Deviation, ...] = entries(Deviation, "deviations.toml", read("deviations.toml"))
PROTOCOLS: dict[str, Protocol] = {p.id: p for p in entries(Protocol, "evidence.toml", read("evidence.toml"))}
_SOURCE = read("tables.toml")
NATS_TAU: dict[str, dict[str, float]] = _SOURCE.pop("nats_tau")  # source -> proxy -> Kendall's tau
TABLES: dict[int, tuple[Row, ...]] = {i: table(i, source) for i, source in enumerate(_SOURCE.values(), 1)}
CAPTIONS: dict[int, str] = {i: source["caption"] for i, source in enumerate(_SOURCE.values(), 1)}
TABLE_1, TABLE_2, TABLE_3, TABLE_4, TABLE_5, TABLE_6 = TABLES.values()
