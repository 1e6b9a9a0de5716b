"""What the paper says, as data: printed tables, its claims, our deviations from it, and the sizes of the three scales.

`tables.toml`, `claims.toml` and `deviations.toml` hold the first three, and `evidence.toml` the rules by which public
tables decide claims. Nothing here imports more than Python's own.
`STAGES` is the road of the paper: which stages there are, and what each reads; `sizes` gives a stage what it may read.
Symbols that the paper uses twice are settled in `paper.scales`.
"""

from graphnas_lib.paper.published import (
    CAPTIONS,
    CLAIMS,
    DEVIATIONS,
    NATS_TAU,
    PROTOCOLS,
    TABLE_1,
    TABLE_2,
    TABLE_3,
    TABLE_4,
    TABLE_5,
    TABLE_6,
    TABLES,
    Claim,
    Deviation,
    Printed,
    Protocol,
    Row,
)
from graphnas_lib.paper.road import STAGES, Sizes, sizes
from graphnas_lib.paper.scales import SCALES, Scale
