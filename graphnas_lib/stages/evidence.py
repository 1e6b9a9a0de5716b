"""Stage "evidence": protocols P1 to P8 on public tables, from the scores of stage "benchmark_scores" (`benchmarks`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pandas as pd

from graphnas_lib import benchmarks, store
from graphnas_lib.ccnf import CCNFConfig
from graphnas_lib.gvae import GVAEConfig
from graphnas_lib.paper import PROTOCOLS
from graphnas_lib.sequence import SequenceConfig
from graphnas_lib.stages.gvae import AS_PRINTED, WEIGHTS
from graphnas_lib.stages.stage import Stage

SCORED_AT = "lite"  # the one scale whose scores of trained networks ship
SEARCHES_A_FLOW = 10
LATENT_DIM = 64
MACRO = ("nb_macro", "tnb_macro")


def make(stage: Stage) -> tuple[dict, dict]:
    """Every protocol, each part kept at once; a killed run goes on.

    Raises:
        MissingArtifactError: the scores of all networks do not ship with this checkout.
        MissingDataError: a table of accuracies is not at hand.
    """
    sizes = stage.scale.evidence
    scores = load_scores(sizes["networks"])
    frames = {table: benchmarks.networks(table, scores) for table in benchmarks.TASKS}
    whole = {table for table in ("nats", *MACRO) if len(frames[table]) == benchmarks.NETWORKS[table]}
    training = trainings(sizes)
    scored = store.load_manifest("benchmark_scores", SCORED_AT)["files"]
    decides = {name: size for name, size in sizes.items() if name not in ("seeds", "generators")}  # more add to these
    settings = (decides, training, {name: file["sha256"] for name, file in scored.items()}, benchmarks.available())
    parts = _parts(stage, frames, training, whole)
    found = _collected(stage, parts, "protocols", *settings)
    config = SequenceConfig.small(bins=32, hidden=64, layers=3, heads=4, batch_size=64, warmup=50)
    jobs = {}
    for table in sorted(whole & set(MACRO)):
        codes = found["histories"].query("table == @table")["code"].tolist()
        job = partial(_generator, frames[table], table, codes, config, sizes["generator_steps"])
        jobs |= {f"{table} {seed}": partial(job, seed) for seed in range(sizes["generators"])}
    written = _collected(stage, jobs, "generators", config, *settings)
    return _files(found, written), sizes | {"n": {table: len(frame) for table, frame in frames.items()}}


def load_scores(networks: int = 0) -> dict[str, pd.DataFrame]:
    """Kind -> rows of `benchmarks.score_networks`, of the first so many networks (0: all), in a random order."""
    scores = {kind: store.load("benchmark_scores", f"benchmark_{kind}.parquet", SCORED_AT) for kind in benchmarks.KINDS}
    return {kind: rows.head(networks or len(rows)) for kind, rows in scores.items()}


def trainings(sizes: dict[str, int]) -> benchmarks.Training:
    """Sizes and weights of the models on the tables' cells: those of stages "gvae" and "ccnf", in a smaller latent."""
    gvae = GVAEConfig(hidden=128, latent_dim=LATENT_DIM, learning_rate=1e-3, **WEIGHTS)
    names = ("gvae_steps", "flow_steps", "references", "decodes", "families")
    given = {name: sizes[name] for name in names}
    flow = CCNFConfig(latent_dim=LATENT_DIM, hidden=256, layers=5)
    return benchmarks.Training(gvae=gvae, naive=replace(gvae, **AS_PRINTED), flow=flow, **given)


def _parts(
    stage: Stage, frames: dict[str, pd.DataFrame], training: benchmarks.Training, whole: set[str]
) -> dict[str, Callable]:
    """Part -> what gives its tables; the long ones first. `whole`: tables that can be searched (P5, P6)."""
    sizes, cells = stage.scale.evidence, frames["nats"]
    options = {"seed": stage.seed, "resamples": sizes["resamples"]}
    parts = {f"P2 {seed}": partial(_models, cells, training, seed, "nats" in whole) for seed in range(sizes["seeds"])}
    for table, tasks in benchmarks.TASKS.items():
        known = [task for task in tasks if task in frames[table]]
        parts[f"P4 {table}"] = partial(benchmarks.budget_selection, frames[table], table, known, **options)
    every = benchmarks.cells()
    noise = {task: benchmarks.noise(every, task) for task in benchmarks.CELL_TASKS if task in every}
    noise = {task: sd * (100 if task in benchmarks.HUNDREDTHS else 1) for task, sd in noise.items()}
    milliseconds = benchmarks.latencies().groupby(every["key"]).mean().loc[cells.index]
    draws = {"seed": stage.seed, "draws": 5 * sizes["resamples"]}
    for name in sorted(whole & set(MACRO)):
        parts[f"P5 {name}"] = partial(_searches, frames[name], name, sizes["searches"])
    return parts | {
        "P1": partial(benchmarks.family_premise, cells, noise, k=training.families, **draws),
        "P7": partial(benchmarks.reduced_training, cells, **options),
        "P8": partial(benchmarks.latency, cells, milliseconds, **options),
    }


def _models(cells: pd.DataFrame, training: benchmarks.Training, seed: int, searched: bool) -> dict[str, pd.DataFrame]:
    """P2 and P3 of one seed, and P6 where cells are searched."""
    tasks = [task for task in benchmarks.TASKS["nats"] if task in cells]
    space = benchmarks.Subspace(cells, training, seed=seed)
    rows = benchmarks.samples(space, tasks)
    grouped = benchmarks.compared(rows)
    by = ["form", "group", "strategy"]
    means = grouped.drop(columns="reference").groupby(by).mean().join(grouped.groupby(by).size().rename("references"))
    every = [task for task in (*tasks, *benchmarks.TASKS["tnb_micro"]) if task in cells]
    found = {"samples": means.reset_index(), "smoothness": benchmarks.smoothness(space, every)}
    found = {name: table.assign(seed=seed) for name, table in found.items()}
    if searched:
        pools = benchmarks.family_pools(space, training.decodes)
        seeds = range(SEARCHES_A_FLOW * seed, SEARCHES_A_FLOW * (seed + 1))
        found["cells"] = pd.concat([benchmarks.cell_searches(cells, pools, seed=one) for one in seeds])
    return found


def _searches(frame: pd.DataFrame, table: str, seeds: int) -> dict[str, pd.DataFrame]:
    found = benchmarks.searches(benchmarks.MacroSpace(table, frame), benchmarks.TASKS[table], seeds=seeds)
    codes = pd.DataFrame({"code": sorted(set(found["histories"]))})
    return {"generators": found["rows"].assign(table=table), "histories": codes.assign(table=table)}


def _generator(
    frame: pd.DataFrame, table: str, codes: list[str], config: SequenceConfig, steps: int, seed: int
) -> dict[str, pd.DataFrame]:
    space = benchmarks.MacroSpace(table, frame)
    rows = benchmarks.generated(space, codes, benchmarks.TASKS[table], seed=seed, config=config, steps=steps)
    return {"generators": rows.assign(table=table)}


def _collected(stage: Stage, parts: dict[str, Callable], loop: str, *settings) -> dict[str, pd.DataFrame]:
    """Tables of all parts, equal names joined; each part is kept as JSON the moment it is there."""

    def records(part: Callable[[], dict[str, pd.DataFrame]]) -> dict[str, list[dict]]:
        return {name: table.to_dict("records") for name, table in part().items()}

    rows = stage.collect({name: partial(records, part) for name, part in parts.items()}, loop, *settings)
    names = dict.fromkeys(name for row in rows for name in row if name != "id")
    found = {name: [pd.DataFrame(row[name]) for row in rows if name in row] for name in names}
    return {name: pd.concat(tables, ignore_index=True) for name, tables in found.items()}


def _files(found: dict[str, pd.DataFrame], written: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    tasks = [task for task in benchmarks.TASKS["nats"] if task in found["samples"]]
    verdicts = [found.pop("verdicts"), benchmarks.of_samples(found["samples"], tasks)]
    verdicts.append(benchmarks.of_smoothness(found["smoothness"]))
    why = "not run: a search needs all networks of a table to be scored"
    missing = [name for name, part in (("P5", written), ("P6", "cells" in found)) if not part]
    verdicts += [benchmarks.not_decided(PROTOCOLS[name], why) for name in missing]
    if "cells" in found:
        verdicts.append(benchmarks.of_cell_searches(found["cells"]))
    if written:
        rows = pd.concat([found.pop("generators"), written["generators"]], ignore_index=True)
        found.pop("histories")
        found["generators"], tasks = rows, benchmarks.TASKS
        verdicts += [benchmarks.of_generators(part, name, tasks[name]) for name, part in rows.groupby("table")]
    found["verdicts"] = pd.concat(verdicts, ignore_index=True)
    return {f"evidence_{name}.csv": table for name, table in found.items()}


def load(name: str, scale: str) -> pd.DataFrame:
    """One table of the stage, for example "verdicts"."""
    return store.load("evidence", f"evidence_{name}.csv", scale)


def by_protocol(verdicts: pd.DataFrame) -> pd.DataFrame:
    """How the rows of each protocol ended: protocol, question, a count of each verdict, the claims it decides."""
    counts = verdicts.groupby(["protocol", "verdict"]).size().unstack(fill_value=0)
    counts = counts.reindex(columns=list(benchmarks.VERDICTS), fill_value=0)
    counts.insert(0, "question", [PROTOCOLS[name].question for name in counts.index])
    claims = [", ".join(PROTOCOLS[name].claims) or "beyond the paper" for name in counts.index]
    return counts.assign(claims=claims).reset_index()


def on_claims(scale: str) -> dict[str, str]:
    """Id of a claim -> how the protocols that decide it ended; empty where the stage has not run."""
    try:
        counts = by_protocol(load("verdicts", scale)).set_index("protocol")
    except store.MissingArtifactError:
        return {}
    said: dict[str, list[str]] = {}
    for name, row in counts.iterrows():
        ended = ", ".join(f"{row[verdict]} {verdict}" for verdict in benchmarks.VERDICTS if row[verdict])
        for claim in PROTOCOLS[name].claims:
            said.setdefault(claim, []).append(f"{name}: {ended}")
    return {claim: "; ".join(parts) for claim, parts in said.items()}


def rules() -> pd.DataFrame:
    """Each protocol: question, control and rule, as written down before it ran."""
    return pd.DataFrame(list(PROTOCOLS.values()))[["id", "question", "control", "rule"]]


def told(verdicts: pd.DataFrame, protocol: str) -> str:
    """What the rows of a protocol came to: counts of verdicts, and the largest and the least advantage."""
    rows = verdicts[verdicts["protocol"] == protocol]
    known = rows[rows["advantage"].notna()].sort_values("advantage")
    counts = counted(verdicts, protocol)
    if known.empty:
        return f"{counts} ({rows['note'].iloc[0]})"
    known = known if known["low"].isna().all() else known[known["low"].notna()]
    ends = [
        f"{r.task}: {r.ours} - {r.control} {r.advantage:+.3f} [{r.low:+.3f}, {r.high:+.3f}]" for r in known.itertuples()
    ]
    return f"{counts}.\nMost: {ends[-1]}.\nLeast: {ends[0]}."


def counted(verdicts: pd.DataFrame, protocol: str) -> str:
    """How many rows of a protocol have which verdict: "P1: 3 open, 1 contradicted"."""
    kinds = verdicts.loc[verdicts["protocol"] == protocol, "verdict"].value_counts()
    return f"{protocol}: " + ", ".join(f"{n} {verdict}" for verdict, n in kinds.items())


def best_rules(table: pd.DataFrame) -> pd.DataFrame:
    """P4: each rule's mean rank over tables, a table counting once; and its mean regret in each table's own spread."""
    table = table.assign(rank=table.groupby(["table", "task"])["accuracy"].rank(ascending=False))
    span = table.groupby(["table", "task"])["regret"].transform("max")
    by = table.assign(share=table["regret"] / span).groupby(["rule", "table"])[["rank", "share"]].mean().unstack()
    by.columns = [f"{'rank' if kind == 'rank' else 'regret'}, {name}" for kind, name in by.columns]
    by.insert(0, "mean rank", by[[name for name in by if name.startswith("rank")]].mean(axis=1))
    return by.sort_values("mean rank").round(2).reset_index()


def beside_published(table: pd.DataFrame) -> pd.DataFrame:
    """Kendall's tau on NATS-Bench, ours and published, for the rules that others printed; and ours for all tasks."""
    ours = table[table["table"] == "nats"].pivot(index="rule", columns="task", values="tau").round(3)
    columns = [f"published, {task}" for task in benchmarks.NATS_TASKS.values()]
    printed = pd.DataFrame.from_dict(PROTOCOLS["P4"].published, "index", columns=columns)
    return ours.join(printed, how="left").reset_index()
