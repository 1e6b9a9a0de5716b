"""The published numbers are complete, as printed and in their place; every departure is recorded."""

import re
import string
import subprocess
import sys
import tomllib

import pytest

from graphnas_lib import paper
from graphnas_lib.paper import published

ROWS = {1: 4, 2: 6, 3: 16, 4: 4, 5: 2, 6: 17}


@pytest.fixture(scope="module")
def paper_text(shared):
    path = shared / "reference" / "paper.md"
    if not path.is_file():
        pytest.skip("no text of the paper beside the repository (shared/reference/paper.md)")
    return path.read_text()


@pytest.fixture(scope="module")
def printed_rows(paper_text):
    """Every table row of the paper as a list of cells without markup."""
    markup = re.compile(r"</?(?:b|u|sup)>|[‡†]")
    lines = [line for line in paper_text.splitlines() if "\t" in line]
    return [[re.sub(r"\s+", " ", markup.sub("", cell)).strip() for cell in line.split("\t")] for line in lines]


@pytest.mark.parametrize("number", ROWS)
def test_table_has_all_rows_under_distinct_keys(number):
    rows = paper.TABLES[number]
    assert len(rows) == ROWS[number] == len({row.key for row in rows})
    assert all(row.table == number and dict(row).keys() == dict(rows[0]).keys() for row in rows)
    assert number in paper.CAPTIONS


@pytest.mark.parametrize("number", ROWS)
def test_every_row_stands_in_the_paper_cell_by_cell(number, printed_rows):
    for row in paper.TABLES[number]:
        cells = [cell.text for _, cell in row if cell.text is not None]
        assert any(_is_row(line, row, cells) for line in printed_rows), f"{row.key}: {cells}"


def _is_row(line, row, cells):
    """The line holds the row's name (after its group, where that is printed) and then these cells and no other."""
    line = [cell for cell in line if cell.strip("—")]
    return line[-len(cells) :] == cells and line[: -len(cells)] in ([row.name], [row.group, row.name])


def test_no_number_of_the_papers_tables_is_missing(printed_rows):
    ours = [cell.text for rows in paper.TABLES.values() for row in rows for _, cell in row if cell.text]
    names = " ".join(row.name + " " + row.group for rows in paper.TABLES.values() for row in rows)
    heads = ("Sampling method", "Model", "Method", "Design Space")
    for line in printed_rows:
        if line[0] in heads or "Acc.(%)" in line or "NASWOT" in line:
            continue
        for cell in line:
            if re.search(r"\d", cell) and cell not in names:
                assert cell in ours, cell


def test_claims_quote_the_paper(paper_text):
    assert len({claim.id for claim in paper.CLAIMS}) == len(paper.CLAIMS) >= 30
    for claim in paper.CLAIMS:
        assert re.fullmatch(r"0[1-9]|1[012]", claim.notebook), claim
        for number in claim.numbers:
            assert number in paper_text, (claim.id, number)


def test_values_are_parsed_from_the_printed_form():
    value = lambda table, row, column: next(r for r in table if r.key == row)[column]  # noqa: E731
    assert (value(paper.TABLE_1, "CCNF", "C-10 Mean").value, value(paper.TABLE_1, "CCNF", "C-10 Mean").spread) == (
        93.08,
        0.85,
    )
    assert value(paper.TABLE_1, "Random", "Gen. success").value == 9 / 20
    assert value(paper.TABLE_1, "NATS-Bench ref.", "C-10 Min").text is None
    assert value(paper.TABLE_2, "ZenNet: Evo(Zen)", "Evals.").value == 480_000
    assert value(paper.TABLE_2, "ZenNet: Evo(Zen)", "IN-1k Cost").value is None
    assert value(paper.TABLE_3, "450M: NSENet (Ci et al., 2021)", "Search cost").value == 4_000
    assert value(paper.TABLE_3, "450M: TE-NAS (Chen et al., 2021)", "FLOPs (M)").note == "upper bound"
    assert value(paper.TABLE_6, "TRAIN: Weight decay", "G-VAE").value == 5e-4
    assert value(paper.TABLE_6, "ARCH: Input dimension", "G-VAE").value is None
    assert [value(paper.TABLE_4, "Ours", task).rank for task in ("Spherical", "PSICOV", "Cosmic")] == [2, 1, 0]
    assert value(paper.TABLE_3, "600M: Ours", "Acc. (%)").place == "Tab. 3, 600M: Ours, Acc. (%)"


def test_claims_agree_with_the_tables_where_no_note_says_otherwise():
    table = {row.key.split()[0]: row for row in paper.TABLE_4}
    tasks = [column for column, _ in paper.TABLE_4[0]]
    wins = lambda other: sum(table["Ours"][t].value < table[other][t].value for t in tasks)  # noqa: E731
    assert wins("WRN") == 5
    assert wins("DASH") == 3  # the claim says 4/8, its note says "one tie"
    assert "tie" in next(claim.note for claim in paper.CLAIMS if claim.id == "nb360-dash")


def test_notes_on_the_papers_numbers_agree_with_them():
    note = {claim.id: claim.note for claim in paper.CLAIMS}
    size = {row.key.split(" (")[0]: row["Params. (M)"].value for row in paper.TABLE_3}
    assert f"a factor {size['450M: GPT NAS'] / size['450M: Ours']:.1f}" in note["gpt-nas-size"]
    hours = sum(cell.value or 0 for row in paper.TABLE_5 for _, cell in row)
    assert note["pretraining-cost"] == f"Table 5 sums to {hours:g}"
    assert f"K = {10 ** (78 / 20) / (127 * 2):.1f}" in note["hl-space"]


def test_no_number_of_ours_is_typed_in_a_finding():
    """Digits stand in placeholders alone; 2^{...} and 10^{...} are notation."""
    for claim in paper.CLAIMS:
        assert claim.finding and ("{rows}" in claim.finding) == bool(claim.row), claim.id
        for template in (claim.finding, claim.row):
            notation = re.sub(r"\b(?:2|10)\^\{", "{", template)
            typed = "".join(text for text, *_ in string.Formatter().parse(notation))
            assert not re.search(r"\d", typed), (claim.id, typed)


def test_entries_with_strange_or_missing_keys_are_refused():
    good = {"text": "t", "where": "w", "notebook": "01", "finding": "f"}
    (claim,) = published.entries(paper.Claim, "claims.toml", {"x": {**good, "numbers": ["1"]}})
    assert claim == paper.Claim("x", "t", "w", "01", "f", numbers=("1",))
    with pytest.raises(ValueError, match=r"claims.toml, \[x\] must have .*missing are \[\], unknown are \['txt'\]"):
        published.entries(paper.Claim, "claims.toml", {"x": {**good, "txt": ""}})
    with pytest.raises(ValueError, match=r"missing are \['text'\], unknown are \[\]. Mend"):
        published.entries(paper.Claim, "claims.toml", {"x": {k: v for k, v in good.items() if k != "text"}})
    with pytest.raises(ValueError, match=r"deviations.toml, \[D99-x\] .*missing are \['ours', 'paper', 'why'\]"):
        published.entries(paper.Deviation, "deviations.toml", {"D99-x": {}})


def test_tables_whose_cells_do_not_fit_are_refused():
    head = {"caption": "c", "columns": ["A", "B"]}
    (row,) = published.table(7, {**head, "rows": [{"name": "n", "cells": ["_1±2_", ""], "notes": {"A": "why"}}]})
    assert row["A"] == paper.Printed("1±2", "Tab. 7, n, A", 2, "why") and row["B"].text is None
    with pytest.raises(ValueError, match="Table 7, row 'n' must have 2 cells, one a column; got 1"):
        published.table(7, {**head, "rows": [{"name": "n", "cells": ["1"]}]})
    with pytest.raises(ValueError, match=r"row 'n', notes must have .*unknown are \['C'\]"):
        published.table(7, {**head, "rows": [{"name": "n", "cells": ["1", "2"], "notes": {"C": ""}}]})
    with pytest.raises(ValueError, match=r"row None must have .*missing are \['name'\]"):
        published.table(7, {**head, "rows": [{"cells": ["1", "2"]}]})
    with pytest.raises(ValueError, match=r"Table 7 must have .*missing are \['caption'\]"):
        published.table(7, {"columns": [], "rows": []})


def test_a_wheel_holds_the_data_of_the_package(repository):
    declared = tomllib.loads((repository / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    package = repository / "graphnas_lib"
    data = {p for p in package.rglob("*") if p.is_file() and p.suffix != ".py" and "__pycache__" not in p.parts}
    held = {path for pattern in declared["*"] for path in package.rglob(pattern)}
    assert data <= held and {path.name for path in data} >= {"claims.toml", "deviations.toml", "tables.toml"}


def test_our_rows_are_ours_and_the_rest_of_table_3_is_quoted():
    assert [row.key for row in paper.TABLE_3 if not row.quoted] == ["450M: Ours", "600M: Ours", "1000M: Ours"]
    assert [row.name.split()[0] for row in paper.TABLE_4 if row.quoted] == ["Expert", "WRN", "DASH"]


def test_unknown_column_names_the_columns():
    with pytest.raises(KeyError, match="Table 1 has the columns.*got 'Accuracy'"):
        paper.TABLE_1[0]["Accuracy"]


def test_deviations_are_numbered_complete_and_distinct():
    numbers = [int(re.match(r"D(\d\d)-[a-z0-9-]+$", deviation.id)[1]) for deviation in paper.DEVIATIONS]
    assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) >= 28
    assert all(d.paper and d.ours and d.why and d.effect != "" for d in paper.DEVIATIONS)


def test_every_resolved_row_has_its_deviation(shared, paper_text):
    path = shared / "reference" / "resolved.md"
    if not path.is_file():
        pytest.skip("no list of resolved points beside the repository (shared/reference/resolved.md)")
    rows = [line.split(" | ") for line in path.read_text().splitlines() if re.match(r"\| \d+ \|", line)]
    assert len(rows) == 28
    for number, (_, said, taken, evidence) in enumerate(rows, start=1):
        entry = next(d for d in paper.DEVIATIONS if d.id.startswith(f"D{number:02d}-"))
        ours = _words(f"{entry.id} {entry.paper} {entry.ours} {entry.why} {entry.effect}")
        common = ours & _words(f"{said} {taken} {evidence}")
        assert len(common) >= 3, (entry.id, common)
        for measured in re.findall(r"\d[\d.,]*\d", entry.effect or ""):
            assert measured in path.read_text() + paper_text, (entry.id, measured)


def _words(text):
    """Distinctive words and numbers."""
    common = {"released", "paper", "which", "their", "where", "there", "given", "table"}
    return {word for word in re.findall(r"[A-Za-z]{5,}|\d[\d.,]*\d", text.lower())} - common


def test_scales_share_one_shape():
    assert set(paper.SCALES) == {"smoke", "lite", "paper"}
    assert all(scale.name == name for name, scale in paper.SCALES.items())
    full = paper.SCALES["paper"]
    assert (full.unlabelled, full.labelled, full.iterations, full.population) == (400_000, 50_000, 20_000, 512)
    assert (full.latent_dim, full.ccnf_layers, full.ccnf_hidden, full.ccnf_batch) == (256, 9, 512, 256)


def test_import_stays_light():
    heavy = ("torch", "pandas", "numpy", "matplotlib")
    code = f"import sys, graphnas_lib.paper; print([m for m in {heavy} if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_citation_names_the_package_and_the_paper(repository):
    yaml = pytest.importorskip("yaml", reason="pyyaml is a development dependency")
    citation = yaml.safe_load((repository / "CITATION.cff").read_text())
    import graphnas_lib

    assert str(citation["version"]) == graphnas_lib.__version__
    reference = citation["references"][0]
    assert [author["family-names"] for author in reference["authors"]] == [
        "Xiang", "Dudziak", "Abdelfattah", "Mehrotra", "Lane", "Wen",
    ]  # fmt: skip
    assert (reference["volume"], reference["start"], reference["end"]) == (235, 54236, 54254)
