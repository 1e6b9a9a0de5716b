"""The table of `make bench`: every case is in the committed one, and one way of one case measures itself."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))
import table


def test_the_committed_table_has_every_case():
    committed = json.loads(table.COMMITTED.read_text(encoding="utf-8"))
    assert list(committed) == list(table.CASES)
    for row in committed.values():
        assert row["ratio"] == pytest.approx(row["plain seconds"] / row["ours seconds"]) and row["ratio"] > 1


@pytest.mark.parametrize("way", table.WAYS)
def test_a_way_measures_itself(way):
    command = [sys.executable, table.__file__, "--one", "eight samples of the flow", way]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert 0 < found["seconds"] < 60 and found["mb"] >= 0 and found["share"] == 0


def test_a_ratio_that_has_fallen_is_told(monkeypatch, tmp_path, capsys):
    first = next(iter(table.CASES))
    committed = tmp_path / "table.json"
    committed.write_text(json.dumps({first: {"ratio": 4.0}}))
    monkeypatch.setattr(table, "COMMITTED", committed)
    given = {f"{way} {what}": 1.0 for way in table.WAYS for what in ("seconds", "mb")}
    monkeypatch.setattr(table, "row", lambda name, turns: given | {"ratio": 3.0, "share of peak": 0.0})
    monkeypatch.setattr(sys, "argv", ["table.py"])
    table.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(table.CASES) and "4.00 **fallen**" in lines[2]
    assert not any("fallen" in line for line in lines[3:])
