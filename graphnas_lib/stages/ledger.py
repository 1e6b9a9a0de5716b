"""Paper against ours, claim by claim, and our Tables 5 and 6: what notebooks 11 and 12 show.

Every claim gets what we found, on how many networks, and a status: "reproduced" (at the paper's own scale, or exact),
"reduced scale" (the direction holds at a smaller scale), "differs" (it does not, or the paper's own numbers contradict
it), "not decided" (no verdict from these numbers), "not run (why)" or "quoted". A status is computed from the artifacts
of one scale and never borrowed from another.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from graphnas_lib import store
from graphnas_lib.macro import CHANNELS, MAX_CELLS
from graphnas_lib.paper import CLAIMS, SCALES, TABLE_4
from graphnas_lib.space import EDGES, OP_NODES, OPERATIONS
from graphnas_lib.stages import table1, table2, table3, table4
from graphnas_lib.store import MissingArtifactError

DATA_STAGES = ("cells", "labels")


@dataclass(frozen=True)
class Finding:
    """What we have on one claim: our words, the number behind it, whether the claim holds (None: cannot be told)."""

    ours: str
    n: str = "-"
    holds: bool | None = None
    exact: bool = False  # arithmetic or a count: no scale is involved


def claims(scale: str, notebook: str = "") -> pd.DataFrame:
    """Every claim (of one notebook) with our finding at a scale.

    Columns id, claim, where, paper, ours, n, scale, status, notebook, note.
    """
    rows = []
    for claim in CLAIMS:
        if notebook not in ("", claim.notebook):
            continue
        try:
            finding = FINDINGS[claim.id](scale)
        except MissingArtifactError as error:
            finding = Finding(f"not run ({error})")
        rows.append(
            {
                "id": claim.id,
                "claim": claim.text,
                "where": claim.where,
                "paper": ", ".join(claim.numbers) or "-",
                "ours": finding.ours,
                "n": finding.n,
                "scale": "-" if finding.exact else scale,
                "status": status(finding, scale),
                "notebook": claim.notebook,
                "note": claim.note,
            }
        )
    return pd.DataFrame(rows)


def status(finding: Finding, scale: str) -> str:
    """One word for a finding; below the paper's scale nothing is called reproduced unless it is exact.

    Smoke runs take minutes and train to chance: they show that every step works, and decide nothing.
    """
    if finding.ours.startswith(("not run", "quoted")):
        return finding.ours if finding.ours.startswith("not run") else "quoted"
    if finding.holds is None or (scale == "smoke" and not finding.exact):
        return "not decided"
    if not finding.holds:
        return "differs"
    return "reproduced" if finding.exact or scale == "paper" else "reduced scale"


def status_counts(table: pd.DataFrame) -> pd.Series:
    """Number of claims by status, reasons left out."""
    return table["status"].str.split(" (", regex=False).str[0].value_counts().rename("claims")


# ---- one function a claim


def _space(scale: str) -> Finding:
    size = len(EDGES) * math.log10(2) + OP_NODES * math.log10(len(OPERATIONS))
    return Finding(f"2^28 x 28^6 = 10^{size:.1f}", holds=round(size) == 17, exact=True)


def _macro(scale: str) -> Finding:
    cells = len(EDGES) * math.log10(2) + OP_NODES * math.log10(len(OPERATIONS))
    size = MAX_CELLS * (cells + math.log10(len(CHANNELS) * 2))
    return Finding(f"10^{size:.0f}", holds=abs(size - 390) < 1, exact=True)


def _hl(scale: str) -> Finding:
    size = MAX_CELLS * math.log10(32 * len(CHANNELS) * 2)
    return Finding(f"10^{size:.1f} with K = 32", holds=round(size) == 78, exact=True)


def _clusters(scale: str) -> Finding:
    facts = store.load_manifest("families", scale)["config"]
    text = f"K = {facts['n_clusters']}; ARI between seeds {facts['seed_agreement']:.2f}"
    return Finding(text, f"{facts['n']:,} cells", facts["seed_agreement"] > 0.5)


def _criteria(scale: str) -> Finding:
    from graphnas_lib.clusters import choose_k

    curve = store.load("families", "criterion.csv", scale)
    chosen, last = choose_k(curve), int(curve["k"].max())
    return Finding(f"plateau at K = {chosen} of a grid up to {last}", f"{len(curve)} fits", chosen < last)


def _latent(scale: str) -> Finding:
    table = store.load("gvae", "gvae_neighbours.csv", scale)
    purity = table[table["metric"].str.startswith("kNN purity")]
    by_seed = purity.pivot(index="seed", columns="variant", values="value")
    good, naive = by_seed["regularised"], by_seed["naive"]
    return Finding(
        f"kNN purity {good.mean():.2f} regularised, {naive.mean():.2f} naive, mean of {len(by_seed)} seed(s)",
        f"{int(purity['n'].iloc[0])} cells",
        bool((good > naive).all()),
    )


def _predictor(scale: str) -> Finding:
    row = store.load("gvae", "gvae_measures.csv", scale).query("variant == 'regularised'").iloc[0]
    names = ("naswot", "snip_ssnr", "params", "flops")
    text = ", ".join(f"{name} {row[f'r2_{name}']:.2f}" for name in names)
    return Finding(f"R^2 on held-out labels: {text}", "-", min(row[f"r2_{name}"] for name in names) > 0.5)


def _table1(decide: Callable[[pd.DataFrame, dict], tuple[str, bool | None]]) -> Callable[[str], Finding]:
    def finding(scale: str) -> Finding:
        table, facts = table1.load(scale)
        text, holds = decide(table, facts)
        counts = table["strategy"].value_counts()
        return Finding(text, f"{counts.get('CCNF', 0)} cells a strategy", holds)

    return finding


def _decoding(table: pd.DataFrame, facts: dict) -> tuple[str, bool]:
    share = {name: good / tried for name, (good, tried) in facts["success"].items()}
    text = ", ".join(f"{name} {facts['success'][name][0]}/{facts['success'][name][1]}" for name in share)
    return text, share["Random"] < min(share["Neighbourhood"], share["CCNF"])


def _focus(table: pd.DataFrame, facts: dict) -> tuple[str, bool]:
    spread = table.groupby("strategy")[["naswot", "snip_ssnr"]].std()
    ratios = {name: spread.loc[name] / spread.loc["Neighbourhood"] for name in table1.FLOW}
    texts = [f"{name} NASWOT {r['naswot']:.2f}, SSNR {r['snip_ssnr']:.2f}" for name, r in ratios.items()]
    return f"std as a share of the neighbourhood's: {'; '.join(texts)}", bool((ratios["CCNF"] < 1).all())


def _mean(table: pd.DataFrame, facts: dict) -> tuple[str, bool | None]:
    gaps = {name: table1.difference(table, name, "Neighbourhood") for name in table1.FLOW}
    low, high = gaps["CCNF"]["low"], gaps["CCNF"]["high"]
    text = "; ".join(f"{name} {_interval(gap)}" for name, gap in gaps.items())
    return text, None if low <= 0 <= high else low > 0


def _extreme(which: str):
    def decide(table: pd.DataFrame, facts: dict) -> tuple[str, bool]:
        found = table.groupby("strategy")["accuracy"].agg(which)
        flow, near = found["CCNF"], found["Neighbourhood"]
        text = ", ".join(f"{name} {found[name]:.1f}" for name in (*table1.FLOW, "Neighbourhood"))
        if which == "min":
            return text, flow > near
        reference = table.loc[table["strategy"] == table1.REFERENCE, "accuracy"].mean()
        return f"{text}, reference {reference:.1f}", flow > reference >= near

    return decide


def _conditioning(scale: str) -> Finding:
    table = store.load("designed", "designed_requests.csv", scale)
    rho = min(group[["requested", "realised"]].corr("spearman").iloc[0, 1] for _, group in table.groupby("quantity"))
    legal = table["legal_masked"].mean()
    return Finding(
        f"Spearman of requested and realised size {rho:.2f}; {legal:.0%} legal", f"{len(table)} requests", rho > 0.5
    )


def _history(scale: str) -> Finding:
    table = store.load("comparison", "comparison.parquet", scale)
    best = table.groupby(["method", "seed"])["score"].max().unstack("method")
    text = ", ".join(f"{name} {value:,.0f}" for name, value in best.median().items())
    won = int((best["HL-Evo"] > best["Random"]).sum())
    return Finding(
        f"median of the best T-CET at equal evaluations: {text}; HL-Evo above random search with {won} of {len(best)} "
        "seeds",
        f"{len(best)} seeds",
        won > len(best) / 2,
    )


def _history_size(scale: str) -> Finding:
    table = store.load("evolution", "evolution.parquet", scale)
    text = f"{len(table):,} networks of {table['budget'].nunique()} runs, N = {SCALES[scale].population}"
    return Finding(text, f"{len(table):,}", len(table) >= 60_000 if scale == "paper" else None)


def _cost(stages: tuple[str, ...]) -> Callable[[str], Finding]:
    def finding(scale: str) -> Finding:
        manifests = [store.load_manifest(stage, scale) for stage in stages]
        hours = sum(m["seconds"] for m in manifests) / 3600
        devices = ", ".join(sorted({m["device"] for m in manifests}))
        return Finding(f"{hours:.2f} hours on {devices}", "1 run", None)

    return finding


def _hidden(scale: str) -> Finding:
    hours = 2.25e20 / (156e12 * 0.44) / 3600
    return Finding(f"2.25e20 / (156e12 x 44%) = {hours:.0f} h", holds=abs(hours - 910) < 10, exact=True)


def _superset(scale: str) -> Finding:
    return Finding("no: kernel 7, expansions 1 and 4 and squeeze-excitation are not in it", holds=False, exact=True)


def _table2(*questions: str) -> Callable[[str], Finding]:
    """A claim that holds where every one of `table2.QUESTIONS` is confirmed on every data set."""

    def finding(scale: str) -> Finding:
        table = table2.verdicts(table2.load(scale)[0])
        lines = table[table["question"].isin(questions)].to_dict("records")
        texts = [f"{x['a']} - {x['b']} on {x['dataset']}: {_interval(x)}, {x['verdict']}" for x in lines]
        found = {x["verdict"] for x in lines}
        holds = True if found == {"confirmed"} else False if "contradicted" in found else None
        numbers = "; ".join(dict.fromkeys(x["n"] for x in lines))
        return Finding("; ".join(texts).replace("GraphNet: ", ""), f"{numbers} networks", holds)

    return finding


def _interval(gap: dict) -> str:
    return f"{gap['difference']:+.1f} points [{gap['low']:+.1f}, {gap['high']:+.1f}]"


def _imagenet(budget: str) -> Callable[[str], Finding]:
    def finding(scale: str) -> Finding:
        table, facts = table3.load(scale)
        if not facts["trained"]:
            return Finding(f"not run ({facts['why']})")
        accuracy = table.loc[table["budget"] == budget, "accuracy"]
        return Finding(f"{accuracy.mean():.1f}±{accuracy.std():.1f}", f"{len(accuracy)} searches", None)

    return finding


def _imagenet_rank(scale: str) -> Finding:
    _, facts = table3.load(scale)
    return Finding(f"not run ({facts['why']})") if not facts["trained"] else Finding("see notebook 09", holds=None)


def _gpt_nas(scale: str) -> Finding:
    return Finding("110.9 / 4.3 = 25.8 times, by Table 3's own numbers", holds=False, exact=True)


def _nb360(rival: str) -> Callable[[str], Finding]:
    def finding(scale: str) -> Finding:
        table, facts = table4.load(scale)
        done = table4.tried(table)
        if done.empty:
            return Finding("not run (no task's files are there)")
        row = next(row for row in TABLE_4 if row.name.startswith(rival))
        wins = sum(line.value < row[table4.COLUMNS[line.task]].value for line in done.itertuples())
        text = f"{wins} of {len(done)} tasks run, trained on {facts['limit'] or 'all'} samples"
        return Finding(text, f"{len(done)} tasks", None)

    return finding


def _failures(scale: str) -> Finding:
    table, _ = table4.load(scale)
    done = table4.tried(table)
    if not {"deepsea", "satellite"} & set(done["task"]):
        return Finding("not run (neither task's files are there)")
    weak = done[done["value"].isna() | done["at_chance"].eq(True)]
    return Finding("at chance or diverged: " + (", ".join(weak["task"]) or "none"), f"{len(done)} tasks", None)


def _nb360_cost(scale: str) -> Finding:
    return Finding("design() takes seconds; see notebooks 00 and 10", holds=None)


FINDINGS: dict[str, Callable[[str], Finding]] = {
    "operations": lambda scale: Finding(f"{len(OPERATIONS)} operations", holds=len(OPERATIONS) == 28, exact=True),
    "micro-space": _space,
    "macro-space": _macro,
    "hl-space": _hl,
    "clusters": _clusters,
    "criteria": _criteria,
    "regularised-latent": _latent,
    "predictor": _predictor,
    "decoding": _table1(_decoding),
    "focus": _table1(_focus),
    "mean-accuracy": _table1(_mean),
    "worst-case": _table1(_extreme("min")),
    "best-case": _table1(_extreme("max")),
    "conditioning": _conditioning,
    "evolved-history": _history,
    "pretraining-cost": _cost((*DATA_STAGES, "gvae", "ccnf", "evolution", "sequence")),
    "cell-models-cost": _cost((*DATA_STAGES, "gvae", "ccnf")),
    "hidden-cost": _hidden,
    "superior": _table2("superior"),
    "superset": _superset,
    "space-is-not-enough": _table2("space-is-not-enough"),
    "hl-evo": _table2("hl-evo", "hl-evo-zennet"),
    "sequence-generator": _table2("sequence-generator"),
    "imagenet-450": _imagenet("450M"),
    "imagenet-600": _imagenet("600M"),
    "imagenet-1000": _imagenet("1000M"),
    "imagenet-rank": _imagenet_rank,
    "gpt-nas-size": _gpt_nas,
    "nb360-wrn": _nb360("WRN"),
    "nb360-dash": _nb360("DASH"),
    "nb360-failures": _failures,
    "nb360-cost": _nb360_cost,
    "history-size": _history_size,
    "reduced-training-selection": _table2("reduced-training-selection"),
    "flat-evolution": _table2("flat-evolution"),
}


# ---- Tables 5 and 6


def costs(scale: str) -> dict[str, dict[str, dict]]:
    """Our Table 5 in the form that `results.compare` takes: hours, with the device in the note."""

    def hours(*stages: str) -> dict:
        manifests = [store.load_manifest(stage, scale) for stage in stages]
        devices = ", ".join(sorted({m["device"] for m in manifests}))
        return {"value": sum(m["seconds"] for m in manifests) / 3600, "n": 1, "note": f"hours on {devices}"}

    return {
        "Data gen.": {"Metrics predictor": hours(*DATA_STAGES), "Seq. Gen.": hours("evolution")},
        "Training": {
            "Metrics predictor": hours("gvae"),
            "CCNF": hours("ccnf"),
            "Seq. Gen.": hours("sequence"),
        },
    }


def stage_costs(scale: str) -> pd.DataFrame:
    """Seconds, device and seed of every stage that this scale has."""
    rows = []
    for path in sorted(store.data_dir(scale).glob("*.manifest.json")):
        manifest = store.read(path)
        size = sum(entry["bytes"] for entry in manifest["files"].values())
        rows.append({**{k: manifest[k] for k in ("stage", "seconds", "device", "seed")}, "megabytes": size / 1e6})
    return pd.DataFrame(rows)


def hyperparameters(scale: str) -> dict[str, dict[str, dict]]:
    """Our Table 6: the sizes of one scale under the paper's row names."""
    s = SCALES[scale]
    rows = {
        "ARCH: Number of layers": {
            "G-VAE": 4,
            "Metrics predictor": 2,
            "CCNF": s.ccnf_layers,
            "Seq. Gen.": s.sequence_layers,
        },
        "ARCH: Hidden dimension": {"G-VAE": s.gvae_hidden, "Metrics predictor": s.latent_dim, "CCNF": s.ccnf_hidden},
        "ARCH: Output dimension": {
            "G-VAE": s.latent_dim,
            "Metrics predictor": 4,
            "CCNF": s.latent_dim,
            "Seq. Gen.": s.sequence_hidden,
        },
        "TRAIN: Batch size": {"G-VAE": s.gvae_batch, "CCNF": s.ccnf_batch, "Seq. Gen.": s.sequence_batch},
        "TRAIN: Learning rate": {"G-VAE": s.gvae_lr},
    }
    return {row: {column: {"value": value, "n": 1} for column, value in cells.items()} for row, cells in rows.items()}
