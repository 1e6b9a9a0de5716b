"""Cells: what is admitted, what is refused, and that the canonical form keeps the computed function."""

import itertools
import json
import pickle
import re
from collections import Counter

import networkx as nx
import numpy as np
import pytest
import torch

from graphnas_lib.network.modules import CellModule
from graphnas_lib.space import (
    EDGES,
    NATS_REFERENCE,
    OPERATIONS,
    REFERENCE_CELL,
    Cell,
    CellCodes,
    InvalidCellError,
    codes,
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


def canonical_nodes(cell: Cell) -> dict[int, int]:
    """Which operation node of the canonical form each surviving operation node of a cell becomes."""
    (numbers,) = codes._canonical(CellCodes.of([cell], canonical=True))[2].tolist()
    return {old: new for old, new in enumerate(numbers) if new > 0}


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
            transplant(before, after, canonical_nodes(cell))
            folded += len(canonical.live) < len(cell.live)
            worst = max(worst, (before(x) - after(x)).abs().max().item())
    assert worst < 1e-5
    assert folded > 100  # skip folding was really exercised


def code_by_search(cell: Cell) -> tuple[int, ...]:
    """Smallest code of a cell without skips over all orders of its live nodes that keep edges forward."""
    best = None
    for order in itertools.permutations(cell.live):
        number = {0: 0} | {node: new for new, node in enumerate(order, start=1)}
        sources = {node: [a for a in cell.predecessors(node) if a in number] for node in (*order, 7)}
        if any(number[a] > number[node] for node in order for a in sources[node]):
            continue
        masks = {node: sum(1 << number[a] for a in sources[node]) for node in (*order, 7)}
        code = [32 * masks[node] + OPERATIONS.index(cell.operations[node - 1]) for node in order] + [masks[7]]
        best = code if best is None else min(best, code)
    return tuple(best)


def test_canonical_code_is_the_smallest_of_all_orders():
    generator = torch.Generator().manual_seed(5)
    few = [OPERATIONS[i] for i in (4, 5, 13)]  # few operations, many ties
    cells = []
    while len(cells) < 300:
        drawn = random_cell(generator)
        cell = Cell(drawn.adjacency, [few[i] for i in torch.randint(3, (6,), generator=generator).tolist()])
        cells += [cell] * cell.is_valid
    assert sum(len(cell.live) == 6 for cell in cells) > 30
    for cell in cells:
        canonical = cell.canonical()
        assert canonical == Cell.of_code(code_by_search(cell))
        assert canonical_nodes(pickle.loads(pickle.dumps(canonical))) == {n: n for n in canonical.live}


def test_many_cells_are_made_canonical_as_one_by_one():
    generator = torch.Generator().manual_seed(6)
    cells = [with_skips(random_cell(generator), generator) for _ in range(400)]
    cells = [cell for cell in cells if cell.status == "ok"]
    assert CellCodes.of(cells).cells() == [cell.canonical() for cell in cells]
    with pytest.raises(InvalidCellError, match="path from input"):
        CellCodes.of([*cells[:3], Cell.from_edges([(0, 1)], ["conv_3", *[None] * 5])])


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


def test_live_nodes_are_those_of_networkx():
    """A node is live when it descends from the input and is an ancestor of the output."""
    generator = torch.Generator().manual_seed(7)
    for cell in [random_cell(generator) for _ in range(300)]:
        graph = nx.DiGraph(cell.edges)
        graph.add_nodes_from(range(8))
        on_path = nx.descendants(graph, 0) & nx.ancestors(graph, 7)
        assert set(cell.live) == on_path - {0, 7}
        assert cell.live == tuple(sorted(cell.live))


def test_a_trusted_cell_is_the_checked_one():
    trusted = Cell(np.array(REFERENCE_CELL.adjacency), REFERENCE_CELL.operations, trusted=True)
    assert trusted == REFERENCE_CELL and trusted.key() == REFERENCE_CELL.key()
    with pytest.raises(ValueError, match="read-only"):
        trusted.adjacency[0, 1] = 0


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


# ---- 5,000 malformed cells


def pick(rng: np.random.Generator, choices):
    """One of a list, as it is."""
    return choices[rng.integers(len(choices))]


NOT_BINARY = (float("nan"), float("inf"), -float("inf"), -1, 2, 255, 256, 0.5, 1e-9, 1 + 1e-6, 1e300)
NO_LIST = (None, 3, 1.5, object(), "conv_1", "", b"conv_1", {"conv_1": 1}, {1, 2}, float("nan"), True, len)
NO_NAME = ("conv_7", "Conv_3", "conv_3 ", "", "none", "None", b"conv_1", 3, -1, 0.5, float("nan"), True, ["conv_1"])
NO_NODE = (-1, 8, 10**30, 1.0, 0.5, float("nan"), float("inf"), "1", None, True, [1], np.float32(2))
NO_EDGE = (5, None, "01", b"01", (), (1,), (1, 2, 3), {0: 1, 1: 2}, float("nan"))
SAYS = {
    "adjacency": "adjacency must",
    "backward": "edges must run forward",
    "operation": "Node [1-6]: operation must be None or one of",
    "unused": r"Node [1-6] is unused \(None\) and must have no edges",
    "length": "must name six operations",
    "operations": "operations must be a list of six names",
    "edges": "edges? must be a (list of pairs|pair)|Edge ends must be (integers|nodes 0 to 7)",
    "back edge": "edges must run forward",
    "features": "features must",
    "two types": "Row [1-6] of the features must be one-hot",
    "ends' features": "Rows 0 and 7 of the features",
    "kernels": "Row [1-6] of the features must be one-hot",
    "dict": "must be {'edges'|[eE]dge|operation",
    "text": "NATS-Bench (string must look like|operation must be|index must be looked up)",
    "codes": "[cC]odes (of cells )?must be|adjacency must hold",
}  # what each kind's messages must say
NO_DICT = (None, 7, "{", "", "[]", [], b"{}", {}, {"edges": []}, {"operations": [None] * 6}, {"Edges": []}, "null")


def bad_array(rng: np.random.Generator, good: np.ndarray):
    """Something in place of an array of 0 and 1: other shapes, types, numbers."""
    rows, columns = good.shape
    spoilt = good.astype(pick(rng, (np.float64, np.float32)))
    spoilt[rng.integers(rows), rng.integers(columns)] = np.float32(pick(rng, NOT_BINARY[:-1]))
    shape = tuple(rng.integers(0, 12, rng.integers(0, 5)).tolist())
    ragged = good.tolist()
    ragged[rng.integers(rows)] = [0] * int(rng.integers(columns))
    nested = good.tolist()
    nested[rng.integers(rows)][rng.integers(columns)] = pick(rng, ([0], None, "1", object(), 10**30, 1j, [[1]]))
    return pick(
        rng,
        (
            spoilt,
            spoilt.tolist(),
            np.zeros(shape if shape != good.shape else (0,)),
            good.astype(pick(rng, ("U1", "S1", complex, object, "datetime64[s]"))),
            good.astype(np.int64) * pick(rng, (-1, 2, 256, 2**40)) + 3,
            ragged,
            nested,
            torch.ones(rows, columns, requires_grad=True),
            pick(rng, (None, 0, "0" * 64, b"\0" * 64, {}, object(), [], [[]], float("nan"))),
        ),
    )


def bad_nats(rng: np.random.Generator):
    """A string that is no NATS-Bench cell."""
    at = int(rng.integers(len(NATS_REFERENCE)))
    old, new = pick(rng, (("1x1", "7x7"), ("skip_connect", ""), ("~2", "~3"), ("~1", "~0"), ("|+|", "||"), ("~", "-")))
    garbage = "".join(chr(c) for c in rng.integers(0, 0x2000, rng.integers(0, 80)))
    return pick(
        rng,
        (
            NATS_REFERENCE[:at],
            NATS_REFERENCE[:at] + pick(rng, "|+~\0$") + NATS_REFERENCE[at:],
            NATS_REFERENCE + pick(rng, ("+", "|", "x", NATS_REFERENCE)),
            NATS_REFERENCE.replace(old, new),
            NATS_REFERENCE.encode(),
            garbage,
            pick(rng, (None, 3, float("nan"), [NATS_REFERENCE], {}, object())),
        ),
    )


def malformed(rng: np.random.Generator, cell: Cell):
    """(kind, function that must refuse) made from a valid cell by spoiling one thing."""
    adjacency, features, names, edges = np.array(cell.adjacency), cell.features, list(cell.operations), cell.edges
    node = int(rng.integers(6))
    a, b = sorted(rng.integers(0, 8, 2).tolist(), reverse=True)  # a self loop or a back edge
    backward = adjacency.astype(pick(rng, (np.uint8, np.int64, float, bool)))
    backward[a, b] = 1
    spoilt = [*names[:node], pick(rng, NO_NAME), *names[node + 1 :]]
    unused = [name if i != cell.live[0] - 1 else None for i, name in enumerate(names)]  # its edges stay
    wrong_length = pick(rng, (names[:node], names + [None], names * 2, []))
    ends = pick(rng, ((pick(rng, NO_NODE), 7), (0, pick(rng, NO_NODE)), pick(rng, NO_EDGE)))
    bad_edges = pick(rng, (pick(rng, NO_LIST), [*edges, ends], [ends]))
    two_hot, flagged, kernelless = (np.array(features) for _ in range(3))
    row = pick(rng, [n for n in cell.live if cell.operations[n - 1] != "skip"] or [0])
    two_hot[row or 1, :10] = 1
    flagged[pick(rng, (0, 7)), rng.integers(13)] = 1
    kernelless[row, 10:] = pick(rng, (0, 1)) if row else 1
    codes = CellCodes.of([cell])
    bad_codes = pick(
        rng,
        (
            CellCodes(codes.edges, codes.operations.long() - 29),
            CellCodes(codes.edges, codes.operations + 29),
            CellCodes(codes.edges, codes.operations.float()),
            CellCodes(codes.edges + 2, codes.operations),
            CellCodes(codes.edges + 0.5, codes.operations),
            CellCodes(codes.edges[:, : rng.integers(28)], codes.operations),
            CellCodes(codes.edges, codes.operations[:, : rng.integers(6)]),
            CellCodes(codes.edges[0, 0], codes.operations),
        ),
    )
    bad_dict = pick(
        rng,
        (
            pick(rng, NO_DICT),
            json.dumps(cell.to_dict())[: -int(rng.integers(0, 9)) or None],
            {"edges": bad_edges, "operations": names},
            {"edges": edges, "operations": pick(rng, (spoilt, wrong_length, pick(rng, NO_LIST)))},
            list(cell.to_dict().items()),
        ),
    )
    array, other = bad_array(rng, adjacency), bad_array(rng, features)
    text = bad_nats(rng)
    return (
        ("adjacency", array, lambda: Cell(array, names)),
        ("backward", backward, lambda: Cell(backward, names)),
        ("operation", spoilt, lambda: Cell(adjacency, spoilt)),
        ("unused", unused, lambda: Cell(adjacency, unused)),
        ("length", wrong_length, lambda: Cell(adjacency, wrong_length)),
        ("operations", "", lambda: Cell(adjacency, pick(rng, NO_LIST))),
        ("edges", bad_edges, lambda: Cell.from_edges(bad_edges, names)),
        ("back edge", (a, b), lambda: Cell.from_edges([*edges, (a, b)], names)),
        ("features", other, lambda: Cell.from_arrays(adjacency, other)),
        ("two types", two_hot, lambda: Cell.from_arrays(adjacency, two_hot)),
        ("ends' features", flagged, lambda: Cell.from_arrays(adjacency, flagged)),
        ("kernels", kernelless, lambda: Cell.from_arrays(adjacency, kernelless)),
        ("dict", bad_dict, lambda: Cell.from_dict(bad_dict)),
        ("text", text, lambda: Cell.from_nats(text)),
        ("codes", bad_codes, bad_codes.cells),
    )


def test_5000_malformed_cells_are_refused_with_the_reason():
    rng = np.random.default_rng(0)
    cells = sample_cells(334, seed=5)
    kinds, said = Counter(), {}
    for cell in cells:
        for kind, came, attempt in malformed(rng, cell):
            try:
                made = attempt()
            except InvalidCellError as error:
                kinds[kind] += 1
                said.setdefault(kind, set()).add(str(error))
            except Exception as error:
                pytest.fail(f"{kind} {came!r} must be refused as InvalidCellError; {type(error).__name__}: {error}")
            else:
                pytest.fail(f"{kind} {came!r} must be refused; it passed as {made!r}")
    assert kinds.total() >= 5000 and len(kinds) == 15
    for kind, messages in said.items():
        for message in messages:
            assert re.search(SAYS[kind], message), f"{kind}: {message}"
            assert "must " in message and re.search("; (got|it has|they are not|.* is missing|.* more than)", message)
            assert len(message) < 700  # what came is shown, and shortened


def test_valid_cells_pass_where_malformed_ones_are_refused():
    for cell in sample_cells(100, seed=6):
        for kind in (np.uint8, np.int64, float, bool):
            assert Cell(cell.adjacency.astype(kind), list(cell.operations)) == cell
            assert Cell.from_arrays(cell.adjacency.tolist(), cell.features.astype(kind)) == cell
        assert Cell(torch.tensor(cell.adjacency), cell.operations) == cell
        assert Cell.from_edges(np.argwhere(cell.adjacency), cell.operations) == cell
        assert Cell.from_dict(json.loads(json.dumps(cell.to_dict()))) == cell
        assert CellCodes.of([cell]).cells() == [cell]
