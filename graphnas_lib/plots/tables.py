"""Figures and tables on disk, and the comparison with the paper: what a notebook saves and what README prints.

A figure is written as PDF, PNG and the CSV of the plotted data, with a receipt of their hashes; a table as CSV and
Markdown. The same figure gives the same bytes. A number that we do not have reads `not run (why)`, never blank.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from graphnas_lib import store
from graphnas_lib.paper import Printed, Row
from graphnas_lib.plots.style import style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

SMOKE_NOTE = "smoke scale: not comparable with the paper"
_NOT_PRINTED = Printed(None, "")
COLUMNS = ("row", "quantity", "paper", "ours", "delta", "n", "scale", "note")


def save_figure(fig: Figure, name: str, *, scale: str, data: pd.DataFrame | Mapping | list) -> list[Path]:
    """Write a figure into `figures/<scale>/` as <name>.pdf, .png, .csv (the plotted data) and .json (the receipt).

    `scale` "smoke" adds a small note to the picture; `data` is what is plotted, one row a point, a DataFrame or
    anything it is made of. Returns the four paths.
    """
    import pandas as pd

    if not name or Path(name).name != name or name.startswith("."):
        raise ValueError(f"A figure's name must be a plain file name without folders; got {name!r}.")
    folder = store.figures_dir(scale)
    table = pd.DataFrame(data)
    if scale == "smoke" and SMOKE_NOTE not in [text.get_text() for text in fig.texts]:
        lowest = min(0.0, fig.get_tightbbox().y0 / fig.get_figheight())  # a legend may hang under the figure
        fig.text(0.995, lowest - 0.005, SMOKE_NOTE, ha="right", va="top", fontsize=6.5, color="#8A8A8A")
    paths = [render(fig, folder / f"{name}.pdf"), render(fig, folder / f"{name}.png")]
    paths.append(store.write(folder / f"{name}.csv", table))
    receipt = {
        "figure": name,
        "scale": scale,
        "rows": len(table),
        "columns": [str(column) for column in table.columns],
        "files": {path.name: {"sha256": store.sha256(path), "bytes": path.stat().st_size} for path in paths},
        "versions": store.versions(),
    }
    return [*paths, store.write(folder / f"{name}.json", receipt)]


_UNDATED = {".pdf": {"CreationDate": None, "ModDate": None}, ".png": {"Software": None}, ".svg": {"Date": None}}


def render(fig: Figure, path: Path) -> Path:
    """One file (.pdf, .png, .svg), atomically and without dates or program versions in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        with style():
            fig.savefig(part, metadata=_UNDATED[path.suffix], bbox_inches="tight", pad_inches=0.06)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
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
        DataFrame with the columns row, quantity, paper, ours, delta (ours - paper), n, scale, note; text for a reader
        except delta, which is a number or NaN.

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
            reason = reason or ("quoted from other work" if row and row.quoted else f"no result at {scale}")
            lines.append((key, quantity, *_line(printed, result, reason, scale)))
    return pd.DataFrame(lines, columns=list(COLUMNS))


def _line(printed: Printed, result: Mapping, reason: str, scale: str) -> tuple:
    """The columns of `compare` from "paper" on, for one published number and our result."""
    value, note, paper = result.get("value"), text(result.get("note")), printed.text or "-"
    if text(value) == "":
        return paper, f"not run ({note or reason})", np.nan, "-", "-", printed.note
    spread = text(result.get("spread"))
    delta = np.nan if printed.value is None or isinstance(value, str) else float(value) - printed.value
    notes = "; ".join(dict.fromkeys(part for part in (printed.note, note) if part))
    return paper, text(value) + (spread and f"±{spread}"), delta, text(result.get("n")) or "-", scale, notes


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
