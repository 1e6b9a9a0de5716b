"""The road of the paper as stages: each reads the artifacts of those before it and writes its own.

`produce(stage, scale)` is what notebooks call: it makes a stage at smoke and opens it at lite and paper; `run` always
makes it. A stage is a module with a function `make`, and with functions that show what it wrote. `claims` sets every
claim of the paper beside these artifacts.
"""

from graphnas_lib.stages import (
    benchmark_scores,
    between,
    ccnf,
    cells,
    comparison,
    designed,
    evidence,
    evolution,
    families,
    generated,
    gvae,
    labels,
    longest,
    reach,
    selection,
    sequence,
    table1,
    table2,
    table3,
    table4,
    together,
    validation,
    variants,
)
from graphnas_lib.stages.costs import costs, hyperparameters, published_hours, stage_costs
from graphnas_lib.stages.ledger import STATUSES, Finding, claims, deviations, status
from graphnas_lib.stages.road import freshness, produce, run
from graphnas_lib.stages.shown import banner, exported, full, operation_costs, refusal, validation_table, written
from graphnas_lib.stages.stage import Stage
from graphnas_lib.stages.whole import plan, run_all, told
