"""Figures and tables on disk, the comparison with the paper, and tables as notebooks show them.

A figure is written as PDF, PNG and the CSV of the plotted data, with a receipt of their hashes; a table as CSV and
Markdown. The same figure gives the same bytes. A number that we do not have reads `not run (why)`, never blank.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from graphnas_lib import store
from graphnas_lib.paper import Printed, Row
from graphnas_lib.plots.style import STYLE, seen, style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

SMOKE_NOTE = "smoke scale: not comparable with the paper"
_NOT_PRINTED = Printed(None, "")
QUOTED = "quoted from other work"  # in place of our number: the paper has not run it, nor have we
COLUMNS = ("row", "quantity", "paper", "ours", "spread", "delta", "n", "scale", "note")
LONGEST_TABLE = 16  # rows that a notebook shows at once; a longer table opens when asked
WORDS = tomllib.loads(Path(__file__).with_name("captions.toml").read_text(encoding="utf-8"))


def save_figure(
    fig: Figure, name: str, *, scale: str, data: pd.DataFrame | Mapping | list, title: str = ""
) -> list[Path]:
    """Write a figure into `figures/<scale>/` as <name>.pdf, .png, .csv (the plotted data) and .json (the receipt).

    Caption and alternative text stand in `captions.toml` under its name; they go into the receipt and, where a
    notebook shows the figure, beside its picture. Without an entry the text is read off the figure.

    Args:
        fig, name: of a `plot_*`, and the files' name.
        scale: "smoke" adds a small note to the picture.
        data: what is plotted, one row a point, a DataFrame or anything it is made of.
        title: the finding, above the figure.

    Returns:
        The four paths.
    """
    import pandas as pd

    if not name or Path(name).name != name or name.startswith("."):
        raise ValueError(f"A figure's name must be a plain file name without folders; got {name!r}.")
    folder = store.figures_dir(scale)
    table = pd.DataFrame(data)
    if title:
        fig.suptitle(title, x=0.01, ha="left", fontsize=11)
    words = {"caption": title, "alt": seen(fig), **WORDS.get(name, {})}
    fig.words = words | {"alt": ". ".join(part.rstrip(".") for part in (words["alt"], title) if part) + "."}
    if scale == "smoke" and SMOKE_NOTE not in [text.get_text() for text in fig.texts]:
        lowest = min(0.0, fig.get_tightbbox().y0 / fig.get_figheight())  # a legend may hang under the figure
        fig.text(0.995, lowest - 0.005, SMOKE_NOTE, ha="right", va="top", fontsize=6.5, color="#8A8A8A")
    paths = [render(fig, folder / f"{name}.pdf"), render(fig, folder / f"{name}.png")]
    paths.append(store.write(folder / f"{name}.csv", table))
    receipt = {
        "figure": name,
        "scale": scale,
        **fig.words,
        "rows": len(table),
        "columns": [str(column) for column in table.columns],
        "files": {path.name: {"sha256": store.sha256(path), "bytes": path.stat().st_size} for path in paths},
        "versions": store.versions(),
    }
    return [*paths, store.write(folder / f"{name}.json", receipt)]


_UNDATED = {".pdf": {"CreationDate": None, "ModDate": None}, ".png": {"Software": None}, ".svg": {"Date": None}}


def render(fig: Figure, path: Path) -> Path:
    """One file (.pdf, .png, .svg), atomically and without dates or program versions in it."""
    with store.replaced(path) as part, style():
        options = {"metadata": _UNDATED[path.suffix], "bbox_inches": "tight", "pad_inches": 0.06}
        fig.savefig(part, format=path.suffix[1:], **options)
    return path


def save_table(table: pd.DataFrame, name: str, *, scale: str, note: str = "") -> list[Path]:
    """Write a table into `data/<scale>/results/` as <name>.csv and <name>.md (with the note under it)."""
    folder = store.results_dir(scale)
    page = markdown(table) + (f"\n{note}\n" if note else "")
    return [store.write(folder / f"{name}.csv", table), store.write(folder / f"{name}.md", page)]


def markdown(table: pd.DataFrame) -> str:
    """A DataFrame as a Markdown table; numbers in few digits, to the right."""
    from pandas.api.types import is_numeric_dtype

    lines = [list(map(str, table.columns)), ["--:" if is_numeric_dtype(kind) else "---" for kind in table.dtypes]]
    lines += [[text(value) for value in row] for row in table.itertuples(index=False, name=None)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def text(value) -> str:
    """One value for a reader: "12,345", "0.0123", "93.1"; "" for None and NaN."""
    if value is None or (isinstance(value, (float, np.floating)) and np.isnan(value)):
        return ""
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, (float, np.floating)):
        size = abs(value)
        if size < 1e-3:
            return f"{value:.2e}" if size else f"{value:g}"
        return f"{value:,.0f}" if size >= 1000 else f"{value:.{2 if size >= 10 else 3 if size >= 1 else 4}f}"
    return str(value).replace("\n", " ")


def compare(
    paper_rows: Iterable[Row],
    ours: Mapping[str, Mapping],
    *,
    scale: str,
    columns: Iterable[str] | None = None,
    why: str | Mapping[str, str] = "",
) -> pd.DataFrame:
    """The paper's table beside ours: one line for each number the paper prints, and for each that only we have.

    Args:
        paper_rows: one of `paper.TABLE_1` to `TABLE_6`, or some of its rows.
        ours: row key -> quantity -> number, or -> dict with value and, where known, spread, n, note. Rows the paper
            lacks come last.
        columns: quantities to show; default all that are numbers in the paper.
        why: reason for numbers not run, one for all or by row key ("" key: default).

    Returns:
        DataFrame with the columns `COLUMNS`; text for a reader except delta (ours - paper), which is a number, or NaN
        where one of them is none or the paper's is a misprint.

    Raises:
        ValueError: `ours` names a quantity that the table does not have (a misspelling would hide a result).
    """
    import pandas as pd

    store.check_scale(scale)
    published = {row.key: row for row in paper_rows}
    known = list(dict.fromkeys(column for row in published.values() for column, _ in row))
    wanted = known if columns is None else list(columns)
    found = {(key, quantity): given for key, row in ours.items() for quantity, given in row.items()}
    strange = sorted(({quantity for _, quantity in found} | set(wanted)) - set(known))
    if strange:
        raise ValueError(f"Quantities must be columns of the table, {tuple(known)}; got {strange}.")
    pairs = [(key, quantity) for key in published for quantity in wanted]
    pairs += [pair for pair in found if pair[0] not in published and pair[1] in wanted]
    lines = []
    for key, quantity in pairs:
        row = published.get(key)
        printed, result = row[quantity] if row else _NOT_PRINTED, found.get((key, quantity))
        if printed.value is not None or result is not None:
            result = result if isinstance(result, Mapping) else {"value": result}
            reason = why.get(key, why.get("", "")) if isinstance(why, Mapping) else why
            reason = reason or ("" if row and row.quoted else f"no result at {scale}")
            lines.append((key, quantity, *_line(printed, result, reason, scale)))
    table = pd.DataFrame(lines, columns=list(COLUMNS))
    table.attrs["quantities"] = wanted
    return table


def _line(printed: Printed, result: Mapping, reason: str, scale: str) -> tuple:
    """The columns of `compare` from "paper" on, for one published number and our result."""
    value, note, paper = result.get("value"), text(result.get("note")), printed.text or "-"
    if text(value) == "":
        missing = f"not run ({note or reason})" if note or reason else QUOTED
        return paper, missing, "-", np.nan, "-", "-", printed.note
    none = printed.value is None or isinstance(value, str) or "misprint" in printed.note
    delta = np.nan if none else float(value) - printed.value
    notes = "; ".join(dict.fromkeys(part for part in (printed.note, note) if part))
    return paper, text(value), text(result.get("spread")) or "-", delta, text(result.get("n")) or "-", scale, notes


def show(table: pd.DataFrame, name: str = "table") -> Shown:
    """A table for a reader: few digits, no NaN, no bare index, a badge for a status; a long one is folded.

    The result of `compare` takes the layout of the paper's table, its numbers above ours with as many decimals.
    `name` is what the fold of a long table calls it.
    """
    if tuple(table.columns) == COLUMNS:
        return Shown(*as_printed(table), name)
    if table.index.name or table.index.nlevels > 1 or table.index.dtype.kind not in "iu":
        table = table.reset_index()
    if table.columns.nlevels > 1:
        table = table.set_axis([" · ".join(str(p) for p in parts if str(p)) for parts in table.columns], axis=1)
    return Shown(table, [], name)


class Shown:
    """A table and its notes as a notebook draws them: HTML, or Markdown where no HTML is drawn."""

    def __init__(self, table: pd.DataFrame, notes: list[str], name: str):
        self.header = [str(column).replace("_", " ") for column in table.columns]
        self.right = [kind.kind in "iuf" for kind in table.dtypes]
        for column in table.columns[[kind.kind == "f" for kind in table.dtypes]]:
            if table[column].dropna().mod(1).eq(0).all():  # counts that a gap has made floats
                table = table.assign(**{column: [int(x) if x == x else "-" for x in table[column]]})
        self.rows = [[plain(value) for value in row] for row in table.itertuples(index=False, name=None)]
        self.notes, self.name = notes, name

    def __repr__(self) -> str:
        ends = ["--:" if right else "---" for right in self.right]
        lines = [[cell.replace("|", "\\|") for cell in line] for line in (self.header, ends, *self.rows)]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
        return table + "".join(f"\n- {note}" for note in self.notes)

    def _repr_html_(self) -> str:
        sides = ["right" if right else "left" for right in self.right]
        head = "".join(f'<th style="text-align:{s}">{escape(c)}</th>' for s, c in zip(sides, self.header, strict=True))
        cells = [
            "".join(f'<td style="text-align:{s}">{badged(c)}</td>' for s, c in zip(sides, row, strict=True))
            for row in self.rows
        ]
        body = "".join(f"<tr>{row}</tr>" for row in cells)
        page = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        if len(self.rows) > LONGEST_TABLE:
            page = f"<details><summary>{escape(self.name)}: {len(self.rows)} rows</summary>{page}</details>"
        notes = "".join(f"<li>{escape(note)}</li>" for note in self.notes)
        return page + (f"<details><summary>notes</summary><ul>{notes}</ul></details>" if notes else "")

    def _repr_markdown_(self) -> str:
        return repr(self)


def plain(value) -> str:
    """One value for a reader as of `text`: a dash for none, words for truths, powers without LaTeX's braces."""
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    written = value if isinstance(value, str) else text(value) or "-"
    return re.sub(r"\^\{(\w+)\}", r"^\1", written.replace(r"\times", "×"))


def badged(cell: str) -> str:
    """A cell as HTML; one that begins with a status is a badge, whose colour says no more than its word."""
    kind = next((k for k in STYLE["badges"] if cell == k or cell.startswith(f"{k} (")), None)
    if kind is None:
        return escape(cell)
    look = (
        f"background:{STYLE['badges'][kind]};color:#1A1A1A;border:1px solid #9A9A9A;border-radius:8px;padding:1px 7px"
    )
    return f'<span style="{look};white-space:nowrap"><b>{escape(kind)}</b></span>{escape(cell[len(kind) :])}'


def as_printed(compared: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The paper's rows and columns from a `compare`: its line above ours, and what the notes say of which numbers."""
    import pandas as pd

    lines, notes, quantities = [], {}, compared.groupby("quantity")["paper"]
    usual = {name: max(printed, key=lambda cell: (_decimals(cell), "±" in cell)) for name, printed in quantities}
    for row, part in compared.groupby("row", sort=False):
        names = iter((row, "" if (part["paper"] != "-").any() else row))
        ours = {}
        for line in part.to_dict("records"):
            shown, _, why = line["ours"].partition(" (")
            ours[line["quantity"]] = shown if why else rounded(line, usual[line["quantity"]])
            for note in filter(None, (why.removesuffix(")"), *line["note"].split("; "))):
                notes.setdefault(note, []).append(f"{row}, {line['quantity']}")
        if (part["paper"] != "-").any():
            who = "paper, quoted" if (part["ours"] == QUOTED).all() else "paper"
            lines.append({"row": next(names), "of": who, **dict(zip(part["quantity"], part["paper"], strict=True))})
        if not (part["ours"] == QUOTED).all():
            n = max(part["n"], key=lambda n: int(n.replace(",", "")) if n != "-" else 0)
            lines.append({"row": next(names), "of": "ours", **ours, "n": n})
    order = ["row", "of", *(q for q in compared.attrs["quantities"] if q in quantities.groups), "n"]
    told = [f"{note}: {'; '.join(w[:3])}{f'; and {len(w) - 3} more' * (len(w) > 3)}" for note, w in notes.items()]
    return pd.DataFrame(lines).reindex(columns=order), told


def _decimals(printed: str) -> int:
    """Decimals of the first number of a printed cell; -1 for none and for powers of ten."""
    found = re.match(r"[<>~]?\d[\d,]*(?:\.(\d+))?(?!\d*e)", printed)
    return len(found[1] or "") if found else -1


def rounded(line: Mapping, usual: str) -> str:
    """Our number with the decimals of the paper's beside it, or of `usual` in its column; a spread where it has one."""
    value, _, spread = (line["paper"] if line["paper"] != "-" else usual).partition("±")
    places = _decimals(value)
    try:
        given = float(line["ours"].replace(",", ""))
    except ValueError:
        return line["ours"]
    if places < 0 or (given and abs(given) < 0.5 * 10**-places):
        return line["ours"]
    shown = f"{given:,.{places}f}"
    if spread and line["spread"] != "-":
        shown += f"±{float(line['spread'].replace(',', '')):,.{max(_decimals(spread), 0)}f}"
    return shown


def mean_interval(values: np.ndarray) -> dict[str, float]:
    """Student's 95% interval of the mean of `values`, (n,): "low" and "high", NaN below two values."""
    from scipy import stats

    if len(values) < 2:
        return {"low": float("nan"), "high": float("nan")}
    mean, half = np.mean(values), stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return {"low": float(mean - half), "high": float(mean + half)}


def mean_difference(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    """Mean of `a` minus mean of `b`, with Welch's 95% interval: samples are small, and their variances differ.

    Keys are "difference", "low", "high"; the ends are NaN where one sample has a single value.
    """
    from scipy import stats

    a, b = np.asarray(a, float), np.asarray(b, float)
    difference = float(a.mean() - b.mean())
    if min(len(a), len(b)) < 2:
        low = high = float("nan")
    elif np.ptp(a) == 0 == np.ptp(b):
        low = high = difference
    else:
        low, high = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    return {"difference": difference, "low": float(low), "high": float(high)}
