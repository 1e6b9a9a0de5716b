"""Cells: eight-node graphs of 28 operations (Sec. 3, App. B), their validity, canonical form and codes.

A `Cell` is checked when it is made; `Cell.canonical()` and `.key()` name the function that it computes, so isomorphic
cells are equal. `CellCodes` holds many cells as integer tensors, which is what the learnt models read.
"""

from graphnas_lib.space.canonical import INPUT, N_NODES, OP_NODES, OUTPUT
from graphnas_lib.space.cell import (
    EDGES,
    KERNELS,
    NATS_REFERENCE,
    OP_TYPES,
    OPERATIONS,
    REFERENCE_CELL,
    Cell,
    InvalidCellError,
    nats_operations,
    random_cell,
    sample_cells,
    valid_cell,
)
from graphnas_lib.space.codes import (
    KERNEL_OF,
    TYPE_OF,
    UNUSED,
    VIEW_FEATURES,
    VIEW_NODES,
    CellCodes,
    Decoded,
    Logits,
    MixedBatches,
    as_codes,
    connect_loose_ends,
    decoded,
    edge_matrix,
    graph_view,
    hard_decode,
    soft_decodes,
)
from graphnas_lib.space.compiled import compiled
