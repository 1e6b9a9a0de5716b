"""Figures and tables on disk, and the comparison with the paper: what a notebook saves and what README prints.

A figure is written as PDF, PNG and the CSV of the plotted data, with a receipt of their hashes; a table as CSV and
Markdown. The same figure gives the same bytes. A number that we do not have reads `not run (why)`, never blank.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from graphnas_lib import store
from graphnas_lib.paper import Row
from graphnas_lib.plots.draw import style

SMOKE_NOTE = "smoke scale: not comparable with the paper"
COLUMNS = ("row", "quantity", "paper", "ours", "delta", "n", "scale", "note")


def save_figure(fig: Figure, name: str, *, scale: str, data: pd.DataFrame | Mapping | list) -> list[Path]:
    """Write a figure into `figures/<scale>/` as <name>.pdf, .png, .csv (the plotted data) and .json (the receipt).

    Args:
        fig: from a `plot_*` function.
        name: file name without suffix.
        scale: "smoke" (adds a small note to the picture), "lite" or "paper".
        data: what is plotted, one row a point; a DataFrame or anything it is made of.

    Returns:
        The four paths.
    """
    if not name or Path(name).name != name or name.startswith("."):
        raise ValueError(f"A figure's name must be a plain file name without folders; got {name!r}.")
    folder = store.figures_dir(scale)
    table = data if isinstance(data, pd.DataFrame) else pd.DataFrame(data)
    if scale == "smoke":
        _watermark(fig)
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


def _watermark(fig: Figure) -> None:
    if not any(text.get_gid() == "scale" for text in fig.texts):
        lowest = min(0.0, fig.get_tightbbox().y0 / fig.get_figheight())  # a legend may hang under the figure
        fig.text(0.995, lowest - 0.005, SMOKE_NOTE, ha="right", va="top", fontsize=6.5, color="#8A8A8A", gid="scale")


def render(fig: Figure, path: Path) -> Path:
    """One file (.pdf, .png, .svg), atomically and without dates or program versions in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    fixed = _UNDATED[path.suffix]
    try:
        with style():
            fig.savefig(part, metadata=fixed, bbox_inches="tight", pad_inches=0.06)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


def save_table(table: pd.DataFrame, name: str, *, scale: str, note: str = "") -> list[Path]:
    """Write a table into `data/<scale>/results/` as <name>.csv and <name>.md (with the note under it)."""
    folder = store.results_dir(scale)
    text = markdown(table) + (f"\n{note}\n" if note else "")
    return [store.write(folder / f"{name}.csv", table), store.write(folder / f"{name}.md", text)]


def markdown(table: pd.DataFrame) -> str:
    """A DataFrame as a Markdown table; numbers in few digits, to the right."""
    numeric = [pd.api.types.is_numeric_dtype(table[column]) for column in table.columns]
    lines = [list(map(str, table.columns)), ["--:" if right else "---" for right in numeric]]
    lines += [[text(value) for value in row] for row in table.itertuples(index=False, name=None)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def text(value) -> str:
    """One value for a reader: "12,345", "0.0123", "93.1"; "" for None and NaN."""
    if value is None or (isinstance(value, (float, np.floating)) and np.isnan(value)):
        return ""
    if isinstance(value, (bool, np.bool_, str)):
        return str(value).replace("\n", " ")
    if isinstance(value, (int, np.integer)):
        return f"{value:,}"
    if isinstance(value, (float, np.floating)):
        if not np.isfinite(value) or value == 0:
            return f"{value:g}"
        size = abs(value)
        if size < 1e-3:
            return f"{value:.2e}"
        return f"{value:,.0f}" if size >= 1000 else f"{value:.{2 if size >= 10 else 3 if size >= 1 else 4}f}"
    return str(value)


def compare(
    paper_rows: Iterable[Row],
    ours: Mapping[str, Mapping] | pd.DataFrame,
    *,
    scale: str,
    columns: Iterable[str] | None = None,
    why: str | Mapping[str, str] = "",
) -> pd.DataFrame:
    """The paper's table beside ours: one line for each number the paper prints, and for each that only we have.

    Args:
        paper_rows: one of `paper.TABLE_1` to `TABLE_6`, or some of its rows.
        ours: row key -> quantity -> number, or -> dict with value and, where known, spread, n, note; or a DataFrame
            with the columns row, quantity, value and these. Rows the paper lacks come last.
        scale: the scale of our numbers.
        columns: quantities to show; default all that are numbers in the paper.
        why: reason for numbers not run, one for all or by row key ("" key: default).

    Returns:
        DataFrame with the columns row, quantity, paper, ours, delta (ours - paper), n, scale, note; text for a reader
        except delta, which is a number or NaN.

    Raises:
        ValueError: `ours` names a quantity that the table does not have (a misspelling would hide a result).
    """
    store.check_scale(scale)
    rows, mine = list(paper_rows), _by_row(ours)
    known = list(dict.fromkeys(column for row in rows for column, _ in row))
    wanted = known if columns is None else list(columns)
    strange = {quantity for row in mine.values() for quantity in row} | set(wanted)
    if strange - set(known):
        raise ValueError(
            f"Quantities must be columns of the table, {tuple(known)}; got {sorted(strange - set(known))}."
        )
    reason = (lambda key: why.get(key, why.get("", ""))) if isinstance(why, Mapping) else (lambda key: why)
    lines = []
    for row in rows:
        for quantity in wanted:
            result = mine.get(row.key, {}).get(quantity)
            if row[quantity].value is not None or result is not None:
                unavailable = reason(row.key) or ("quoted from other work" if row.quoted else f"no result at {scale}")
                lines.append(_line(row.key, quantity, row[quantity], result, scale, unavailable))
    published = {row.key for row in rows}
    for key, quantities in mine.items():
        lines += [
            _line(key, quantity, None, result, scale, reason(key) or f"no result at {scale}")
            for quantity, result in quantities.items()
            if key not in published and quantity in wanted
        ]
    return pd.DataFrame(lines, columns=list(COLUMNS))


def _by_row(ours) -> dict[str, dict[str, dict]]:
    if isinstance(ours, pd.DataFrame):
        nested: dict[str, dict] = {}
        for line in ours.to_dict("records"):
            nested.setdefault(line["row"], {})[line["quantity"]] = line
        return nested
    return {
        row: {name: dict(v) if isinstance(v, Mapping) else {"value": v} for name, v in quantities.items()}
        for row, quantities in ours.items()
    }


def _line(key: str, quantity: str, printed, result: dict | None, scale: str, unavailable: str) -> dict:
    value = None if result is None else result.get("value")
    missing = value is None or (isinstance(value, (float, np.floating)) and np.isnan(value))
    paper = "-" if printed is None or printed.text is None else printed.text
    notes = [printed.note if printed else "", "" if result is None else result.get("note") or ""]
    if missing:
        own = "" if result is None else result.get("note") or ""
        shown, delta, n, notes = f"not run ({own or unavailable})", np.nan, "-", notes[:1]
    else:
        spread, n = result.get("spread"), text(result.get("n")) or "-"
        shown = text(value) + ("" if text(spread) == "" else f"±{text(spread)}")
        numeric = printed is not None and printed.value is not None and not isinstance(value, str)
        delta = float(value) - printed.value if numeric else np.nan
    note = "; ".join(dict.fromkeys(part for part in notes if part))
    line = (key, quantity, paper, shown, delta, n, "-" if missing else scale, note)
    return dict(zip(COLUMNS, line, strict=True))


def mean_interval(values: np.ndarray) -> dict[str, float]:
    """Student's 95% interval of the mean of `values`, (n,): "low" and "high", NaN below two values."""
    from scipy.stats import t

    if len(values) < 2:
        return {"low": float("nan"), "high": float("nan")}
    half = float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return {"low": float(np.mean(values)) - half, "high": float(np.mean(values)) + half}


def mean_difference(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    """Mean of `a` minus mean of `b`, with Welch's 95% interval: samples are small, and their variances differ.

    Args:
        a, b: (n,) and (m,), at least one value each.

    Returns:
        "difference", "low", "high"; the ends are NaN where one sample has a single value.
    """
    from scipy.stats import t

    a, b = np.asarray(a, float), np.asarray(b, float)
    difference = float(a.mean() - b.mean())
    if min(len(a), len(b)) < 2:
        return {"difference": difference, "low": float("nan"), "high": float("nan")}
    errors = np.array([x.var(ddof=1) / len(x) for x in (a, b)])  # squared standard errors
    if not errors.any():
        return {"difference": difference, "low": difference, "high": difference}
    freedom = errors.sum() ** 2 / (errors**2 / [len(a) - 1, len(b) - 1]).sum()  # Welch-Satterthwaite
    half = float(t.ppf(0.975, freedom) * np.sqrt(errors.sum()))
    return {"difference": difference, "low": difference - half, "high": difference + half}
