"""Paper against ours, claim by claim: what notebook 12 shows.

A function below looks into the artifacts of one scale for the numbers that answer a claim, and decides by rule whether
it holds; `paper/claims.toml` has the sentence that these numbers fill. The status of a claim is "reproduced" (at the
paper's own scale, or exact), "reduced scale" (it holds at a smaller scale), "differs" (it does not hold, or the paper's
own numbers contradict it), "not decided" (these numbers give no verdict) or "not run (why)".
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import pandas as pd

from graphnas_lib import store
from graphnas_lib.clusters import ZC_NAMES, choose_k
from graphnas_lib.macro import CHANNELS, MAX_CELLS
from graphnas_lib.paper import CLAIMS, DEVIATIONS, SCALES, TABLE_3, TABLE_4, Claim, Row
from graphnas_lib.space import EDGES, OP_NODES, OPERATIONS
from graphnas_lib.stages import comparison, evidence, evolution, table1, table2, table3, table4
from graphnas_lib.stages.costs import DATA_STAGES, hours
from graphnas_lib.store import MissingArtifactError
from graphnas_lib.zennet import INVERTED_KINDS

STATUSES = ("reproduced", "reduced scale", "differs", "not decided", "not run")  # the last is followed by its reason
STRIDES = 2  # a stride is 1 or 2
MIN_INDEX = 0.5  # of R^2, rank correlation or adjusted Rand index, from which on "predicts", "follows", "agrees" hold


@dataclass(frozen=True)
class Finding:
    """What answers one claim: the numbers and rows that fill its sentence, and whether it holds by its rule."""

    numbers: dict = field(default_factory=dict)  # for `Claim.finding`
    rows: Iterable[dict] = ()  # each for `Claim.row`
    n: str = "-"  # networks, cells or runs behind it
    holds: bool | None = None  # None: these numbers give no verdict
    exact: bool = False  # arithmetic or a count: no scale is involved
    why: str = ""  # nothing was run


FINDINGS: dict[str, Callable[[Claim, str], Finding]] = {}  # id of a claim -> (claim, scale) -> what answers it


def answers(*ids: str) -> Callable:
    """Enters the function below it in `FINDINGS`."""
    return lambda function: FINDINGS.update(dict.fromkeys(ids, function)) or function


def claims(scale: str, notebook: str = "") -> pd.DataFrame:
    """Every claim (of one notebook) with our finding at a scale.

    Columns id, claim, where, paper, ours, n, scale, status, tables (what public tables of trained networks say),
    notebook, note.
    """
    lines, tables = [], evidence.on_claims(scale)
    for claim in (claim for claim in CLAIMS if notebook in ("", claim.notebook)):
        try:
            finding = FINDINGS[claim.id](claim, scale)
        except MissingArtifactError as error:
            finding = Finding(why=str(error))
        line = {"id": claim.id, "claim": claim.text, "where": claim.where, "paper": ", ".join(claim.numbers) or "-"}
        line |= {"ours": sentence(claim, finding), "n": finding.n, "scale": "-" if finding.exact else scale}
        line |= {"status": status(finding, scale), "tables": tables.get(claim.id, "-")}
        lines.append(line | {"notebook": claim.notebook, "note": claim.note})
    return pd.DataFrame(lines)


def sentence(claim: Claim, finding: Finding) -> str:
    """The claim's own words around the numbers of a finding."""
    if finding.why:
        return f"not run ({finding.why})"
    rows = "; ".join(claim.row.format_map(row) for row in finding.rows)
    return claim.finding.format(**finding.numbers, rows=rows)


def status(finding: Finding, scale: str) -> str:
    """One word for a finding; below the paper's scale nothing is called reproduced unless it is exact.

    Smoke runs take minutes and train to chance: they show that every step works, and decide nothing.
    """
    if finding.why:
        return f"not run ({finding.why})"
    if finding.holds is None or (scale == "smoke" and not finding.exact):
        return "not decided"
    if not finding.holds:
        return "differs"
    return "reproduced" if finding.exact or scale == "paper" else "reduced scale"


def deviations() -> pd.DataFrame:
    """Every entry of `paper.DEVIATIONS`, without its measured effect."""
    return pd.DataFrame(DEVIATIONS).drop(columns="effect")


# ---- exact: arithmetic and counts


@answers("operations")
def _operations(claim: Claim, scale: str) -> Finding:
    n = len(OPERATIONS)
    return Finding({"operations": n}, holds=n == claim.given["operations"], exact=True)


@answers("micro-space", "macro-space", "hl-space")
def _size_of_space(claim: Claim, scale: str) -> Finding:
    """Holds where the decimal exponent is less than 1 from the printed one."""
    families = SCALES["paper"].n_clusters
    cells = len(EDGES) * math.log10(2) + OP_NODES * math.log10(len(OPERATIONS))
    wide = math.log10(len(CHANNELS) * STRIDES)
    macro, hl = MAX_CELLS * (cells + wide), MAX_CELLS * (math.log10(families) + wide)
    exponent = {"micro-space": cells, "macro-space": macro, "hl-space": hl}[claim.id]
    numbers = {"edges": len(EDGES), "nodes": OP_NODES, "operations": len(OPERATIONS), "families": families}
    holds = abs(exponent - claim.given["exponent"]) < 1
    return Finding({**numbers, "exponent": exponent}, holds=holds, exact=True)


@answers("hidden-cost")
def _hidden_cost(claim: Claim, scale: str) -> Finding:
    given = claim.given
    hours = given["flops"] / (given["peak"] * given["utilisation"]) / 3600
    return Finding({**given, "hours": hours}, holds=abs(hours / given["hours"] - 1) < 0.01, exact=True)


@answers("superset")
def _superset(claim: Claim, scale: str) -> Finding:
    """Kernels and expansions of ZenNet's inverted blocks that no operation of ours has."""
    theirs = [re.fullmatch(r"SuperResIDWE(\d)K(\d)", kind).groups() for kind in INVERTED_KINDS]
    ours = [match.groups() for name in OPERATIONS if (match := re.fullmatch(r"mbconv(\d)_(\d)", name))]
    expansions, kernels = (sorted(set(a) - set(b)) for a, b in zip(zip(*theirs), zip(*ours)))
    numbers = {"kernels": " and ".join(kernels), "expansions": " and ".join(expansions)}
    return Finding(numbers, holds=not kernels and not expansions, exact=True)


@answers("gpt-nas-size")
def _gpt_nas_size(claim: Claim, scale: str) -> Finding:
    theirs, ours = (_printed(TABLE_3, key)["Params. (M)"].value for key in ("450M: GPT NAS", "450M: Ours"))
    numbers = {"theirs": theirs, "ours": ours, "ratio": theirs / ours, "table": TABLE_3[0].table}
    return Finding(numbers, holds=abs(theirs / ours - claim.given["ratio"]) < 1, exact=True)


# ---- families, latent space, generators


@answers("clusters")
def _clusters(claim: Claim, scale: str) -> Finding:
    facts = store.load_manifest("families", scale)["config"]
    return Finding(facts, n=f"{facts['n']:,} cells", holds=facts["seed_agreement"] > MIN_INDEX)


@answers("criteria")
def _criteria(claim: Claim, scale: str) -> Finding:
    curve = store.load("families", "criterion.csv", scale)
    numbers = {"chosen": choose_k(curve), "last": int(curve["k"].max())}
    return Finding(numbers, n=f"{len(curve)} fits", holds=numbers["chosen"] < numbers["last"])


@answers("regularised-latent")
def _regularised_latent(claim: Claim, scale: str) -> Finding:
    table = store.load("gvae", "gvae_neighbours.csv", scale)
    purity = table[table["metric"].str.startswith("kNN purity")]
    by_seed = purity.pivot(index="seed", columns="variant", values="value")
    holds = bool((by_seed["regularised"] > by_seed["naive"]).all())
    return Finding({**by_seed.mean(), "seeds": len(by_seed)}, n=f"{int(purity['n'].iloc[0]):,} cells", holds=holds)


@answers("predictor")
def _predictor(claim: Claim, scale: str) -> Finding:
    table = store.load("gvae", "gvae_measures.csv", scale).query("variant == 'regularised'")
    rows = [{"proxy": name, "r2": table[f"r2_{name}"].iloc[0]} for name in ZC_NAMES]
    return Finding(rows=rows, holds=min(row["r2"] for row in rows) > MIN_INDEX)


@answers("conditioning")
def _conditioning(claim: Claim, scale: str) -> Finding:
    table = store.load("designed", "designed_requests.csv", scale)
    rho = min(group[["requested", "realised"]].corr("spearman").iloc[0, 1] for _, group in table.groupby("quantity"))
    numbers = {"rho": rho, "legal": table["legal_masked"].mean()}
    return Finding(numbers, n=f"{len(table)} requests", holds=rho > MIN_INDEX)


@answers("evolved-history")
def _evolved_history(claim: Claim, scale: str) -> Finding:
    """Holds where designs, with kept cells and with fresh ones, are above every random search of their budget."""
    budget = evolution.budget_name(*SCALES[scale].compared_budget)
    best = store.load("designed", "designed_best.csv", scale).query("budget == @budget and method.str.startswith('SG')")
    random = comparison.load(scale).query("method == 'Random'").groupby("seed")["score"].max()
    rows = [*best.to_dict("records"), {"method": "random search, best seed", "score": random.max()}]
    numbers = {"budget": budget, "seeds": len(random), "evaluations": best["evaluations"].max()}
    return Finding(numbers, rows, f"{len(random)} seeds", best["score"].min() > random.max())


@answers("history-size")
def _history_size(claim: Claim, scale: str) -> Finding:
    """Decided at the paper's scale alone: elsewhere the size is our own choice."""
    table = store.load("evolution", "evolution.parquet", scale)
    facts = store.load_manifest("evolution", scale)["config"]
    numbers = {"networks": len(table), "runs": table["budget"].nunique(), "population": facts["population"]}
    holds = len(table) >= claim.given["networks"] if scale == "paper" else None
    return Finding(numbers, n=f"{len(table):,}", holds=holds)


# ---- Table 1


@answers("decoding")
def _decoding(claim: Claim, scale: str) -> Finding:
    found = table1.load(scale)[1]["success"]
    rows = [{"strategy": name, "good": good, "tried": tried} for name, (good, tried) in found.items()]
    share = {row["strategy"]: row["good"] / row["tried"] for row in rows}
    holds = share["Random"] < min(share["Neighbourhood"], share["CCNF"])
    return Finding(rows=rows, n=_cells_a_strategy(scale), holds=holds)


@answers("focus")
def _focus(claim: Claim, scale: str) -> Finding:
    """The paper's own sampler decides, the checked draws stand beside it."""
    spread = table1.load(scale)[0].groupby("strategy")[["naswot", "snip_ssnr"]].std()
    shares = spread.loc[list(table1.FLOW)] / spread.loc["Neighbourhood"]
    holds = bool((shares.loc["CCNF"] < 1).all())
    return Finding(rows=shares.reset_index().to_dict("records"), n=_cells_a_strategy(scale), holds=holds)


@answers("mean-accuracy")
def _mean_accuracy(claim: Claim, scale: str) -> Finding:
    """Decided where the interval of the difference leaves 0 out."""
    table = table1.load(scale)[0]
    rows = [{"strategy": name, **table1.difference(table, name, "Neighbourhood")} for name in table1.FLOW]
    low, high = rows[0]["low"], rows[0]["high"]
    return Finding(rows=rows, n=_cells_a_strategy(scale), holds=None if low <= 0 <= high else low > 0)


@answers("worst-case", "best-case")
def _extreme_case(claim: Claim, scale: str) -> Finding:
    table = table1.load(scale)[0]
    cells = table.groupby("strategy")["accuracy"]
    found = cells.min() if claim.id == "worst-case" else cells.max()
    flow, near, reference = found["CCNF"], found["Neighbourhood"], cells.mean()[table1.REFERENCE]
    rows = [{"strategy": name, "accuracy": found[name]} for name in (*table1.FLOW, "Neighbourhood")]
    holds = flow > near if claim.id == "worst-case" else flow > reference >= near
    return Finding({"reference": reference}, rows, _cells_a_strategy(scale), bool(holds))


def _cells_a_strategy(scale: str) -> str:
    return f"{int((table1.load(scale)[0]['strategy'] == 'CCNF').sum())} cells a strategy"


# ---- costs


@answers("pretraining-cost", "cell-models-cost")
def _pretraining_cost(claim: Claim, scale: str) -> Finding:
    """Hours on another device than the paper's decide nothing."""
    stages = (*DATA_STAGES, "gvae", "ccnf", *(("evolution", "sequence") if claim.id == "pretraining-cost" else ()))
    spent, devices = hours(stages, scale)
    return Finding({"hours": spent, "devices": devices}, n="1 run")


@answers("nb360-cost")
def _cost_of_generating(claim: Claim, scale: str) -> Finding:
    """Seconds of the generator's search of Table 2; the paper names no number that they could be compared to."""
    line = table2.load(scale)[0].query("method == @table2.SG").iloc[0]
    return Finding({"seconds": line["search_seconds"], "evaluations": int(line["evaluations"])}, n="1 search")


# ---- Tables 2 to 4: trained networks


@answers("superior", "space-is-not-enough", "hl-evo", "sequence-generator")
@answers("reduced-training-selection", "flat-evolution")
def _difference_of_methods(claim: Claim, scale: str) -> Finding:
    """Holds where every one of the claim's `table2.QUESTIONS` is confirmed on every data set that decides anything."""
    table = table2.verdicts(table2.load(scale)[0]).replace("GraphNet: ", "", regex=True)
    table = table[table["question"].isin([claim.id, f"{claim.id}-zennet"])]
    table = table.astype(dict.fromkeys(("difference", "low", "high"), float))
    found, numbers = set(table["verdict"]) - {table2.UNDECIDED}, "; ".join(table["n"].unique())
    holds = True if found == {"confirmed"} else False if "contradicted" in found else None
    return Finding(rows=table.to_dict("records"), n=f"{numbers} networks", holds=holds)


@answers("imagenet-450", "imagenet-600", "imagenet-1000", "imagenet-rank")
def _imagenet(claim: Claim, scale: str) -> Finding:
    """Our mean is below the printed one by both deviations at most; no more rows of the table are above it."""
    table, facts = table3.load(scale)
    if not facts["trained"]:
        return Finding(why=facts["why"])
    budget = claim.given["budget"]
    accuracy, printed = table["accuracy"][table["budget"] == budget], _printed(TABLE_3, f"{budget}: Ours")["Acc. (%)"]
    numbers = {"budget": budget, "accuracy": accuracy.mean(), "spread": accuracy.std()}
    better, expected = (
        [row.name for row in TABLE_3 if row.group == budget and row.name != "Ours" and row["Acc. (%)"].value > limit]
        for limit in (accuracy.mean(), printed.value)
    )
    reached = accuracy.mean() + accuracy.std() >= printed.value - printed.spread
    holds = len(better) <= len(expected) if claim.id == "imagenet-rank" else reached
    return Finding({**numbers, "better": ", ".join(better) or "none"}, n=f"{len(accuracy)} searches", holds=bool(holds))


@answers("nb360-wrn", "nb360-dash")
def _wins_over_rival(claim: Claim, scale: str) -> Finding:
    done, samples, whole = _tasks(scale)
    if done.empty:
        return Finding(why="no task's files are there")
    rival = _printed(TABLE_4, claim.given["rival"])
    wins = sum(line.value < rival[table4.COLUMNS[line.task]].value for line in done.itertuples())
    holds = wins >= claim.given["wins"] if whole else None
    return Finding({"wins": wins, "tasks": len(done), "samples": samples}, n=f"{len(done)} tasks", holds=holds)


@answers("nb360-failures")
def _failures(claim: Claim, scale: str) -> Finding:
    """A task fails where training diverges, stays at chance, or ends above the Wide-ResNet's error."""
    done, _, whole = _tasks(scale)
    asked = done[done["task"].isin(["deepsea", "satellite"])]
    if asked.empty:
        return Finding(why="neither task's files are there")
    weak, rival = done["value"].isna() | done["at_chance"].eq(True), _printed(TABLE_4, "WRN")
    above = [line.value > rival[table4.COLUMNS[line.task]].value for line in asked.itertuples()]
    holds = bool((weak[asked.index].to_numpy() | above).all()) if whole else None
    return Finding({"weak": ", ".join(done.loc[weak, "task"]) or "none"}, n=f"{len(done)} tasks", holds=holds)


def _tasks(scale: str) -> tuple[pd.DataFrame, int | str, bool]:
    """Rows of the tasks that were tried, on how many samples; only all tasks on all of their samples decide a claim."""
    table, facts = table4.load(scale)
    done = table4.tried(table, table4.OURS)
    return done, facts["limit"] or "all", len(done) == table["task"].nunique() and not facts["limit"]


def _printed(table: tuple[Row, ...], key: str) -> Row:
    return next(row for row in table if row.key.startswith(key))
