"""Cells: what is admitted, what is refused, and that the canonical form keeps the computed function."""

import itertools

import numpy as np
import pytest
import torch

from graphnas_lib.network import CellModule
from graphnas_lib.space import (
    EDGES,
    NATS_REFERENCE,
    OPERATIONS,
    REFERENCE_CELL,
    Cell,
    InvalidCellError,
    random_cell,
    sample_cells,
)


def relabelled(cell: Cell, generator: torch.Generator) -> tuple[Cell, dict[int, int]]:
    """The same graph under a random renumbering of its operation nodes that keeps edges forward."""
    preds = {n: set(cell.predecessors(n)) for n in range(1, 7)}
    order: list[int] = []
    while len(order) < 6:
        ready = [n for n in preds if n not in order and preds[n] <= {0, *order}]
        order.append(ready[torch.randint(len(ready), (), generator=generator).item()])
    number = {0: 0, 7: 7, **{old: new for new, old in enumerate(order, start=1)}}
    operations = [cell.operations[old - 1] for old in order]
    return Cell.from_edges([(number[a], number[b]) for a, b in cell.edges], operations), number


def randomised(module: CellModule, generator: torch.Generator) -> CellModule:
    """The module in eval mode and float64, its norms' statistics and scales drawn from `generator`."""
    for part in module.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_mean.normal_(generator=generator)
            part.running_var.uniform_(0.5, 1.5, generator=generator)
            if part.affine:
                part.weight.normal_(generator=generator)
    return module.eval().double()


def with_skips(cell: Cell, generator: torch.Generator) -> Cell:
    """The same graph with about every third operation replaced by a skip."""
    keep = torch.rand(6, generator=generator) > 0.35
    return Cell(cell.adjacency, [op if k else "skip" for op, k in zip(cell.operations, keep, strict=True)])


def transplant(source: CellModule, target: CellModule, nodes: dict[int, int]) -> None:
    """Copy the weights of each node of `source` to its twin in `target`; the shapes must agree."""
    if len(target.state_dict().keys() & {"projection.1.weight"}):
        target.projection.load_state_dict(source.projection.state_dict())
    for old, new in nodes.items():
        if str(old) in source.nodes:
            target.nodes[str(new)].load_state_dict(source.nodes[str(old)].state_dict())


def test_2000_canonical_forms_keep_function_idempotence_and_relabelling():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 8, 3, 3, generator=generator, dtype=torch.float64)
    checked, folded, worst = 0, 0, 0.0
    with torch.no_grad():
        while checked < 2000:
            cell = random_cell(generator)
            cell = with_skips(cell, generator) if checked % 3 == 0 else cell
            if cell.status != "ok" or not cell.canonical().is_valid:
                continue
            checked += 1
            canonical = cell.canonical()
            assert canonical.canonical() == canonical
            twin, number = relabelled(cell, generator)
            assert twin.key() == cell.key() == canonical.key()
            assert twin.canonical() == canonical
            width, stride = (16, 2) if checked % 2 else (8, 1)
            before = randomised(CellModule(cell, 8, width, stride, dims=2), generator)
            after = CellModule(canonical, 8, width, stride, dims=2).eval().double()
            transplant(before, after, cell.canonical_nodes)
            folded += len(canonical.live) < len(cell.live)
            worst = max(worst, (before(x) - after(x)).abs().max().item())
    assert worst < 1e-5
    assert folded > 100  # skip folding was really exercised


def test_skip_is_not_folded_where_its_consumer_would_read_the_raw_input():
    cell = Cell.from_edges([(0, 1), (1, 2), (2, 7)], ["skip", "conv_3", None, None, None, None])
    assert cell.canonical().operations[:2] == ("skip", "conv_3")
    other = Cell.from_edges([(0, 1), (1, 7)], ["conv_3", None, None, None, None, None])
    assert other.key() != cell.key()


def test_skip_between_operations_folds_away():
    chain = Cell.from_edges([(0, 1), (1, 2), (2, 3), (3, 7)], ["conv_3", "skip", "conv_1", None, None, None])
    direct = Cell.from_edges([(0, 1), (1, 2), (2, 7)], ["conv_3", "conv_1", None, None, None, None])
    assert chain.key() == direct.key()


def test_dead_nodes_are_pruned():
    cell = Cell.from_edges([(0, 1), (1, 7), (0, 2)], ["conv_3", "conv_5", None, None, None, None])
    assert cell.live == (1,) and not cell.strict
    assert cell.canonical() == Cell.from_edges([(0, 1), (1, 7)], ["conv_3", None, None, None, None, None])


def test_different_functions_have_different_keys():
    names = [None] * 5
    keys = {Cell.from_edges([(0, 1), (1, 7)], [op, *names]).key() for op in OPERATIONS if op != "skip"}
    assert len(keys) == 27


def test_arrays_round_trip():
    for cell in sample_cells(200, seed=1):
        assert Cell.from_arrays(cell.adjacency, cell.features) == cell
        assert Cell.from_dict(cell.to_dict()) == cell
        assert cell.features.shape == (8, 13) and cell.adjacency.dtype == np.uint8


def test_sampling_is_deterministic_distinct_valid_and_a_prefix():
    cells = sample_cells(300, seed=3)
    assert cells[:100] == sample_cells(100, seed=3)
    assert cells[:100] != sample_cells(100, seed=4)
    assert len({cell.key() for cell in cells}) == 300
    assert all(cell.is_valid and cell.canonical() == cell for cell in cells)


def test_nats_strings():
    cell = Cell.from_nats(NATS_REFERENCE)
    assert cell.operations == ("conv_3", "conv_3", "conv_3", "skip", "conv_1", "conv_3")
    assert cell.edges == sorted([(0, 1), (0, 2), (0, 4), (1, 3), (1, 5), (2, 6), (3, 6), (4, 7), (5, 7), (6, 7)])
    partly = Cell.from_nats("|none~0|+|nor_conv_1x1~0|none~1|+|none~0|none~1|avg_pool_3x3~2|")
    assert partly.canonical() == Cell.from_edges(
        [(0, 1), (1, 2), (2, 7)], ["conv_1", "avg_pool_3", None, None, None, None]
    )
    assert Cell.from_nats("|none~0|+|none~0|none~1|+|none~0|none~1|none~2|").status == "no_path"
    assert Cell.from_nats("|none~0|+|none~0|none~1|+|skip_connect~0|none~1|none~2|").canonical().status == "identity"


def test_reference_cell_is_valid_and_strict():
    assert REFERENCE_CELL.is_valid and REFERENCE_CELL.strict


def test_every_edge_subset_of_a_small_cell_has_the_right_status():
    for keep in itertools.product((0, 1), repeat=3):
        edges = [e for e, k in zip([(0, 1), (1, 7), (0, 7)], keep, strict=True) if k]
        cell = Cell.from_edges(edges, ["conv_1", None, None, None, None, None])
        expected = "ok" if keep[0] and keep[1] else "identity" if keep[2] else "no_path"
        assert cell.status == expected
    assert len(EDGES) == 28


@pytest.mark.parametrize(
    ("edges", "operations", "message"),
    [
        ([(5, 2)], ["conv_1"] * 6, r"edges must run forward .*5 -> 2"),
        ([(0, 9)], ["conv_1"] * 6, r"nodes 0 to 7; got 0 -> 9"),
        ([(0, 1)], ["conv_7"] + [None] * 5, r"Node 1: operation must be None or one of .*'conv_7'"),
        ([(0, 1)], ["conv_1"] * 4, r"six operations .*got 4"),
        ([(0, 1), (1, 7)], [None] * 6, r"Node 1 is unused \(None\) and must have no edges"),
    ],
)
def test_bad_cells_are_refused(edges, operations, message):
    with pytest.raises(InvalidCellError, match=message):
        Cell.from_edges(edges, operations)


def test_bad_arrays_are_refused():
    with pytest.raises(InvalidCellError, match=r"must be \(8, 8\)"):
        Cell(np.zeros((7, 7)), [None] * 6)
    with pytest.raises(InvalidCellError, match="0 and 1 alone"):
        Cell(np.triu(np.full((8, 8), 2), 1), ["conv_1"] * 6)
    features = np.array(REFERENCE_CELL.features)
    features[1, 0] = 1  # two types at once
    with pytest.raises(InvalidCellError, match="one-hot"):
        Cell.from_arrays(REFERENCE_CELL.adjacency, features)
    with pytest.raises(InvalidCellError, match="none or one of"):
        Cell.from_nats(NATS_REFERENCE.replace("nor_conv_1x1", "nor_conv_7x7"))
    with pytest.raises(InvalidCellError, match="must look like"):
        Cell.from_nats("|nor_conv_3x3~0|")
    with pytest.raises(InvalidCellError, match="must have a path"):
        Cell.from_edges([], [None] * 6).canonical()
