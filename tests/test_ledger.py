"""The ledger: every number of a finding comes from artifacts, published tables or the code, and a rule decides."""

import numpy as np
import pandas as pd
import pytest

from graphnas_lib import paper, store
from graphnas_lib.paper import CLAIMS
from graphnas_lib.stages import ledger, table2, table4

STATUSES = ("reproduced", "reduced scale", "differs", "not decided", "not run")


@pytest.fixture(scope="module")
def lite() -> pd.DataFrame:
    return ledger.claims("lite").set_index("id")


def altered_table(table: pd.DataFrame) -> pd.DataFrame:
    """Every number of a table is another one, rows by other factors; whole numbers (1 stays 1) and truths stay such."""
    random, table = np.random.default_rng(0), table.copy()
    for name in table.columns:
        if pd.api.types.is_bool_dtype(table[name]):
            table[name] = random.random(len(table)) < 0.5
        elif pd.api.types.is_integer_dtype(table[name]):
            table[name] = 3 * table[name] - 2
        elif pd.api.types.is_float_dtype(table[name]):
            table[name] = table[name] * random.uniform(0.3, 3.0, len(table))
        else:  # truths with blanks between them
            table[name] = table[name].map(lambda value: not value if isinstance(value, bool) else value)
    return table.iloc[: max(1, len(table) - 1)] if len(table) > 1000 else table


def altered_facts(value):
    if isinstance(value, dict):
        return {key: altered_facts(v) for key, v in value.items()}
    if isinstance(value, list):
        return [altered_facts(v) for v in value]
    return value if isinstance(value, (bool, str)) or value is None else 3 * value - 2


def test_every_status_is_decided_by_rule(lite):
    for scale, table in (("lite", lite), ("paper", ledger.claims("paper").set_index("id"))):
        assert list(table.index) == [claim.id for claim in CLAIMS]
        assert table["status"].str.startswith(STATUSES).all(), scale
        assert not table["ours"].str.contains("{", regex=False).any()
    assert lite.loc[["operations", "clusters", "gpt-nas-size", "pretraining-cost"], "status"].tolist() == [
        *("reproduced", "reduced scale", "differs", "not decided"),
    ]


def test_measured_findings_follow_their_artifacts(lite, monkeypatch):
    load, load_manifest = store.load, store.load_manifest
    monkeypatch.setattr(store, "load", lambda *args: altered_table(load(*args)))
    monkeypatch.setattr(store, "load_manifest", lambda *args: altered_facts(load_manifest(*args)))
    table = ledger.claims("lite").set_index("id")
    measured = (lite["scale"] != "-") & ~lite["status"].str.startswith("not run")
    same = table.loc[measured & (table["ours"] == lite["ours"])].index
    assert measured.sum() > 20 and list(same) == []
    assert (table.loc[~measured, "ours"] == lite.loc[~measured, "ours"]).all()


def test_exact_findings_follow_tables_and_code(lite, monkeypatch):
    monkeypatch.setattr(ledger, "OPERATIONS", (*ledger.OPERATIONS, "mbconv4_7"))
    monkeypatch.setattr(ledger, "CHANNELS", range(8, 2048, 8))
    cells = tuple((c, paper.Printed("7.5", p.place)) if c == "Params. (M)" else (c, p) for c, p in paper.TABLE_3[3])
    rows = [paper.Row(3, row.group, row.name, cells) if "GPT NAS" in row.name else row for row in paper.TABLE_3]
    monkeypatch.setattr(ledger, "TABLE_3", tuple(rows))
    asked = {claim.id: claim for claim in CLAIMS}
    monkeypatch.setitem(asked["hidden-cost"].given, "flops", 1e20)
    table = ledger.claims("lite").set_index("id")
    exact = lite.index[lite["scale"] == "-"]
    assert len(exact) == 7 and (table.loc[exact, "ours"] != lite.loc[exact, "ours"]).all()
    assert table.loc["gpt-nas-size", "ours"].startswith("7.5 / 4.3 = 1.7 times")
    assert table.loc["superset", "ours"].startswith("no: kernel , expansions 1 and")
    assert table.loc["operations", "status"] == "differs"


def decided(claim_id: str, scale: str = "paper") -> ledger.Finding:
    return ledger.FINDINGS[claim_id](next(claim for claim in CLAIMS if claim.id == claim_id), scale)


@pytest.mark.parametrize(
    ("accuracies", "reached", "ranked"),
    [
        ([78.2, 78.4, 78.3], True, True),
        ([78.1, 78.2, 78.3], True, True),
        ([78.0, 78.0, 78.2], True, False),
        ([70.0, 70.2, 70.1], False, False),
    ],
)
def test_imagenet_holds_near_the_printed_mean(accuracies, reached, ranked, monkeypatch):
    rows = pd.DataFrame({"budget": "450M", "accuracy": accuracies})
    monkeypatch.setattr(ledger.table3, "load", lambda scale: (rows, {"trained": True}))
    assert (decided("imagenet-450").holds, decided("imagenet-rank").holds) == (reached, ranked)
    claim = next(claim for claim in CLAIMS if claim.id == "imagenet-450")
    assert ledger.sentence(claim, decided("imagenet-450")).startswith(f"{np.mean(accuracies):.1f}±")


def test_tasks_decide_where_all_are_run_on_all_samples(monkeypatch):
    columns = ledger.table4.COLUMNS
    rows = pd.DataFrame({"task": list(columns), "method": table4.OURS, "value": 0.001, "note": "", "at_chance": False})
    rows = pd.concat([rows, rows.assign(method=table4.WIDE, value=-1.0)], ignore_index=True)  # decides nothing
    facts = {"limit": None}
    monkeypatch.setattr(ledger.table4, "load", lambda scale: (rows, facts))
    assert decided("nb360-wrn").holds is True and decided("nb360-failures").holds is False
    facts["limit"] = 100
    assert decided("nb360-wrn").holds is None and decided("nb360-wrn").numbers["samples"] == 100
    facts["limit"] = None
    rows["value"] = 1000.0
    assert decided("nb360-wrn").holds is False and decided("nb360-failures").holds is True
    rows.loc[rows["task"] == "deepsea", "note"] = ledger.table4.MISSING
    assert decided("nb360-failures").holds is None and decided("nb360-dash").numbers["tasks"] == 7


def test_methods_without_networks_leave_a_claim_open(monkeypatch):
    rows = table2.load("lite")[0]
    monkeypatch.setattr(ledger.table2, "load", lambda scale: (rows[rows["method"] != table2.ZEN], None, {}))
    finding, claim = decided("superior", "lite"), next(claim for claim in CLAIMS if claim.id == "superior")
    assert finding.holds is None and "nan points" in ledger.sentence(claim, finding)
