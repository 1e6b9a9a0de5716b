"""`design()` over many budgets: how long an answer takes, and whether it holds what was asked (as a script).

Budgets are drawn log-uniformly inside the range of the history that the generator learnt; parameters, FLOPs and both
take turns. Both at once ask for the FLOPs that a network of the history with such parameters has.

    python tests/benchmarks/bench_design.py --scale lite --budgets 100 -n 10
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import time
import warnings

from tqdm.auto import tqdm

from graphnas_lib.design import BudgetUnreachable, Trained, design
from graphnas_lib.sequence.vocabulary import Vocabulary
from graphnas_lib.stages import evolution
from graphnas_lib.store import artifacts


def budgets(scale: str, vocabulary: Vocabulary, n: int, seed: int) -> list[dict[str, float]]:
    """`n` requests."""
    rng = random.Random(seed)
    history = evolution.load(scale)
    ranges = {name: vocabulary.range(name) for name in ("params", "flops")}
    found = []
    for i in range(n):
        drawn = {name: math.exp(rng.uniform(math.log(low), math.log(high))) for name, (low, high) in ranges.items()}
        if i % 3 == 2:
            near = history.loc[(history["params"] / drawn["params"] - 1).abs().idxmin()]
            found.append({"params": drawn["params"], "flops": float(near["flops"])})
        else:
            name = ("params", "flops")[i % 3]
            found.append({name: drawn[name]})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=artifacts.SCALE_NAMES, default=artifacts.default_scale())
    parser.add_argument("--budgets", type=int, default=100, help="requests (default 100)")
    parser.add_argument("-n", type=int, default=10, help="networks a request (default 10)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    trained = Trained.load(options.scale)
    asked = budgets(options.scale, trained.generator.vocabulary, options.budgets, options.seed)
    seconds, worst, kept, refused, few, macros, taken = [], 0.0, 0, [], [], set(), set()
    for i, budget in enumerate(tqdm(asked, desc="budgets")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            macros.add(trained.generator.generate(**budget))
            began = time.perf_counter()
            try:
                designs = design(**budget, n=options.n, seed=options.seed + i, trained=trained)
            except BudgetUnreachable:
                refused.append(budget)
                continue
            finally:
                seconds.append(time.perf_counter() - began)
        taken.add(tuple((triple.cluster, triple.stride) for triple in designs[0].hl.triples))
        errors = [abs(getattr(d, name) / wanted - 1) for d in designs for name, wanted in budget.items()]
        worst = max(worst, *errors)
        if len(designs) < options.n:
            few.append({**budget, "returned": len(designs)})
        kept += len(designs) == options.n and max(errors) <= 0.05
    report = {
        "budgets": options.budgets,
        "share_with_all_n_within_5_percent": kept / len(asked),
        "refused": len(refused),
        "fewer_than_n": len(few),
        "worst_error": worst,
        "median_seconds": statistics.median(seconds),
        "p95_seconds": statistics.quantiles(seconds, n=20)[-1],
        "distinct_greedy_sequences": len(macros),
        "distinct_families_and_strides_of_the_best": len(taken),
    }
    print(json.dumps(report, indent=1))
    for what, listed in (("refused", refused), ("fewer than n", few)):
        for budget in listed:
            print(f"{what}:", budget)


if __name__ == "__main__":
    main()
