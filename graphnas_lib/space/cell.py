"""The micro search space Omega (Sec. 3, App. B): cells, their validity, their canonical form.

A cell is a directed acyclic graph of 8 nodes: node 0 is the input, node 7 the output, nodes 1 to 6 each carry one of 28
operations or are unused. Edges run forward; a node sums its inputs and applies its operation. Many (A, F) compute the
same function: nodes can be renumbered, nodes on no input-output path do nothing, and a skip only forwards a sum.
`Cell.canonical` picks one representative, and `Cell.key` is its hash; everything that counts distinct cells uses it.
"""

from __future__ import annotations

import hashlib
import re
import reprlib
from collections.abc import Sequence
from functools import cached_property
from itertools import compress
from operator import index

import numpy as np
import torch

from graphnas_lib.space.canonical import INPUT, N_NODES, NONE, OP_NODES, OUTPUT, SHIFT, canonical, live_nodes

_BOTTLENECKS = ("mbconv2", "mbconv3", "mbconv6", "bconv0.5", "bconv0.25")  # with the factor of the inner width
OP_TYPES = ("skip", "avg_pool", "conv", "sep_conv", "dil_conv", *_BOTTLENECKS)  # paper: App. B, nine types and skip
KERNELS = (1, 3, 5)
OPERATIONS = ("skip", *(f"{op}_{k}" for op in OP_TYPES[1:] for k in KERNELS))
EDGES = tuple((a, b) for b in range(1, N_NODES) for a in range(b))  # the 28 possible edges, by target

_OP_INDEX = {name: i for i, name in enumerate(OPERATIONS)}
_NATS_NODES = {(0, 1): 1, (0, 2): 2, (1, 2): 3, (0, 3): 4, (1, 3): 5, (2, 3): 6}  # NATS edge -> our operation node
_NATS_OPS = {"skip_connect": "skip", "nor_conv_1x1": "conv_1", "nor_conv_3x3": "conv_3", "avg_pool_3x3": "avg_pool_3"}
_NASLIB_OPS = ("skip_connect", "none", "nor_conv_3x3", "nor_conv_1x1", "avg_pool_3x3")  # in the order of its numbers
_NATS_OP = f"(none|{'|'.join(_NATS_OPS)})"
_NATS_PATTERN = re.compile(r"\|OP~0\|\+\|OP~0\|OP~1\|\+\|OP~0\|OP~1\|OP~2\|".replace("OP", _NATS_OP))
_COLUMNS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")  # mask -> its 8 bits
_SHORT = reprlib.Repr()  # what came, in a message that stays readable
_SHORT.maxstring = _SHORT.maxother = 120


class InvalidCellError(ValueError):
    """A graph that is no member of Omega."""


def nats_operations(text: str | Sequence[int]) -> tuple[str, ...]:
    """Operations of the six edges 0-1, 0-2, 1-2, 0-3, 1-3, 2-3 of a NATS-Bench-TSS architecture.

    Args:
        text: its string, blanks and quotes aside; or NASLib's six numbers of operations, such as (4, 0, 3, 1, 4, 3).

    Raises:
        InvalidCellError: it is none.
    """
    if not isinstance(text, (str, bytes)):
        try:
            numbers = [index(n) for n in text]
        except TypeError:
            numbers = []
        if len(numbers) == 6 and set(numbers) <= set(range(5)):
            names = [_NASLIB_OPS[n] for n in numbers]
            return tuple(names[edge] for edge in (0, 1, 3, 2, 4, 5))  # NASLib's edges are 0-1, 0-2, 0-3, 1-2, 1-3, 2-3
    if isinstance(text, (int, np.integer)) and not isinstance(text, bool):
        at = f"benchmarks.nats_string({text})"
        raise InvalidCellError(f"A NATS-Bench index must be looked up in its table: {at} gives the string; got {text}.")
    found = _NATS_PATTERN.fullmatch("".join(text.split()).strip("'\"")) if isinstance(text, str) else None
    if found is None:
        must = f"|op~0|+|op~0|op~1|+|op~0|op~1|op~2|, each op none or one of {tuple(_NATS_OPS)}"
        raise InvalidCellError(f"A NATS-Bench string must look like {must}; got {_SHORT.repr(text)}.")
    return found.groups()


class Cell:
    """One micro design x = (A, F); immutable.

    Args:
        adjacency: (8, 8) of 0 and 1, strictly upper triangular; `adjacency[a, b]` is the edge a -> b.
        operations: six names of `OPERATIONS`, or None for an unused node, which may have no edges.
        trusted: the caller promises a fresh uint8 array and a tuple of which all this holds; nothing is checked.

    Attributes:
        adjacency: A, uint8 (8, 8), read-only.
        operations: tuple of six.

    Raises:
        InvalidCellError: anything else.
    """

    def __init__(self, adjacency, operations, *, trusted: bool = False):
        self.adjacency, self.operations = (adjacency, operations) if trusted else _checked(adjacency, operations)
        self.adjacency.setflags(write=False)

    # ---- ways in

    @classmethod
    def from_edges(cls, edges, operations) -> Cell:
        """Cell from a list of (source, target) pairs of integers."""
        matrix = np.zeros((N_NODES, N_NODES), np.uint8)
        for edge in _listed(edges, "edges must be a list of pairs (source, target)"):
            a, b = _ends(edge)
            matrix[a, b] = 1
        return cls(matrix, operations)

    @classmethod
    def from_arrays(cls, adjacency, features) -> Cell:
        """Cell from A (8, 8) and F (8, 13): ten operation types, then three kernels, one-hot (Sec. 3)."""
        f = _binary(features, "features", (N_NODES, len(OP_TYPES) + len(KERNELS)))
        if f[[INPUT, OUTPUT]].any():
            raise InvalidCellError("Rows 0 and 7 of the features (input and output) must be zero; they are not.")
        names: list[str | None] = []
        for node, row in enumerate(f[1:OUTPUT], start=1):
            types, kernels = np.flatnonzero(row[: len(OP_TYPES)]), np.flatnonzero(row[len(OP_TYPES) :])
            skip = types.tolist() == [0]
            if row.any() and (len(types) != 1 or len(kernels) > 1 or not (skip or len(kernels))):
                raise InvalidCellError(
                    f"Row {node} of the features must be one-hot over 10 types and over 3 kernels; got {row.tolist()}."
                )
            names.append("skip" if skip else f"{OP_TYPES[types[0]]}_{KERNELS[kernels[0]]}" if row.any() else None)
        return cls(adjacency, names)

    @classmethod
    def from_nats(cls, text: str | Sequence[int]) -> Cell:
        """Cell of a NATS-Bench-TSS architecture; its six edges become operation nodes, `none` edges vanish."""
        operations: list[str | None] = [None] * OP_NODES
        live: dict[tuple[int, int], int] = {}
        for ((source, target), node), name in zip(_NATS_NODES.items(), nats_operations(text), strict=True):
            if name == "none":
                continue
            operations[node - 1], live[source, target] = _NATS_OPS[name], node
        edges = [(0, node) for (a, _), node in live.items() if a == 0]
        edges += [(node, OUTPUT) for (_, b), node in live.items() if b == 3]
        edges += [(n, m) for (_, b), n in live.items() for (a, _), m in live.items() if a == b]
        return cls.from_edges(edges, operations)

    @classmethod
    def of_code(cls, code: tuple[int, ...]) -> Cell:
        """Cell of a code of `canonical.canonical`, which is not checked."""
        nodes = len(code) - 1
        masks = (0, *(entry // SHIFT for entry in code[:-1]), *(0,) * (OP_NODES - nodes), code[-1])
        names = (*(OPERATIONS[entry % SHIFT] for entry in code[:-1]), *(None,) * (OP_NODES - nodes))
        cell = cls(np.ascontiguousarray(_COLUMNS[list(masks)].T), names, trusted=True)
        vars(cell).update(_canonical=code, live=tuple(range(1, nodes + 1)))  # its own form
        return cell

    @classmethod
    def from_dict(cls, data: dict) -> Cell:
        """Inverse of `to_dict`."""
        if not isinstance(data, dict) or not {"edges", "operations"} <= data.keys():
            must = "{'edges': [[a, b], ...], 'operations': [six names]}"
            raise InvalidCellError(f"A cell must be {must}; got {_SHORT.repr(data)}.")
        return cls.from_edges(data["edges"], data["operations"])

    # ---- views

    @property
    def features(self) -> np.ndarray:
        """F, uint8 (8, 13): operation type one-hot over 10, kernel one-hot over 3; skip has no kernel."""
        f = np.zeros((N_NODES, len(OP_TYPES) + len(KERNELS)), np.uint8)
        for node, name in enumerate(self.operations, start=1):
            if name is not None:
                kind, kernel = divmod(_OP_INDEX[name] + len(KERNELS) - 1, len(KERNELS))
                f[node, kind] = 1
                f[node, len(OP_TYPES) + kernel] = kind > 0
        return f

    @property
    def edges(self) -> list[tuple[int, int]]:
        """Edges (source, target) in row order."""
        return [(int(a), int(b)) for a, b in np.argwhere(self.adjacency)]

    def predecessors(self, node: int) -> list[int]:
        """Nodes that `node` sums."""
        return [int(a) for a in np.flatnonzero(self.adjacency[:, node])]

    def to_dict(self) -> dict:
        """JSON-ready form, read back by `from_dict`."""
        return {"edges": [list(edge) for edge in self.edges], "operations": list(self.operations)}

    # ---- validity

    @cached_property
    def live(self) -> tuple[int, ...]:
        """Operation nodes on some path from input to output."""
        (on_path,) = live_nodes(predecessor_masks(self.adjacency[None]))
        return tuple((1 + np.flatnonzero(on_path)).tolist())

    @cached_property
    def status(self) -> str:
        """'ok', 'no_path' (output unreachable) or 'identity' (only input -> output, no operation)."""
        if self.live:
            return "ok"
        return "identity" if self.adjacency[INPUT, OUTPUT] else "no_path"

    @property
    def is_valid(self) -> bool:
        """At least one operation lies on an input-output path."""
        return self.status == "ok"

    @property
    def strict(self) -> bool:
        """Valid with no dangling node: every used node lies on an input-output path."""
        return self.is_valid and len(self.live) == sum(name is not None for name in self.operations)

    # ---- canonical form

    @cached_property
    def _canonical(self) -> tuple[int, ...]:
        """The smallest code."""
        ops = np.array([[NONE, *(NONE if name is None else _OP_INDEX[name] for name in self.operations), NONE]])
        codes, lengths, _ = canonical(ops, predecessor_masks(self.adjacency[None]))
        return tuple(codes[0, : lengths[0] + 1].tolist())

    def canonical(self) -> Cell:
        """The representative of all cells that compute the same function by renumbering, pruning or skip folding.

        A skip node is folded into edges only where the function stays the same: no consumer may sum one node twice,
        and no consumer may be left with the cell input alone (it would then read the raw input and make the cell's
        stride or width change itself, deviation D04). Live nodes get numbers 1..n, unused ones follow.

        Raises:
            InvalidCellError: no path leads from input to output.
        """
        if self.status == "no_path":
            raise InvalidCellError("A canonical cell must have a path from input (0) to output (7); this one has none.")
        return Cell.of_code(self._canonical)

    def key(self) -> str:
        """Hash of the canonical form, 16 hexadecimal digits; equal for isomorphic cells."""
        if self.status == "no_path":
            return "no_path"
        *nodes, output = self._canonical
        pairs = (*(divmod(entry, SHIFT) for entry in nodes), output)  # (predecessors, operation) a node
        return hashlib.sha256(repr(pairs).encode()).hexdigest()[:16]

    def __eq__(self, other) -> bool:
        """Equal as written (same A, same operations); compare keys for equality of function."""
        if not isinstance(other, Cell):
            return NotImplemented
        return self.operations == other.operations and bool((self.adjacency == other.adjacency).all())

    def __hash__(self) -> int:
        return hash((self.operations, self.adjacency.tobytes()))

    def __reduce__(self):
        return Cell, (np.array(self.adjacency), self.operations)

    def __repr__(self) -> str:
        ops = " ".join(f"{n}:{name}" for n, name in enumerate(self.operations, start=1) if name is not None)
        return f"Cell({ops} | {' '.join(f'{a}>{b}' for a, b in self.edges)})"


def _checked(adjacency, operations) -> tuple[np.ndarray, tuple]:
    """A and the operation names of a cell, fresh; InvalidCellError for what is none."""
    matrix = _binary(adjacency, "adjacency", (N_NODES, N_NODES))
    if np.tril(matrix).any():
        a, b = np.argwhere(np.tril(matrix))[0]
        raise InvalidCellError(f"Cell edges must run forward (Sec. 3: node n reads earlier nodes); got {a} -> {b}.")
    operations = _listed(operations, "operations must be a list of six names")
    if len(operations) != OP_NODES:
        raise InvalidCellError(f"A cell must name six operations (None = unused node); got {len(operations)}.")
    for node, name in enumerate(operations, start=1):
        if name is not None and not (isinstance(name, str) and name in _OP_INDEX):
            raise InvalidCellError(
                f"Node {node}: operation must be None or one of {OPERATIONS}; got {_SHORT.repr(name)}."
            )
        if name is None and (matrix[node].any() or matrix[:, node].any()):
            raise InvalidCellError(f"Node {node} is unused (None) and must have no edges; it has some.")
    return matrix, operations


def _binary(value, name: str, shape: tuple[int, int]) -> np.ndarray:
    """A fresh uint8 array of 0 and 1 of that shape; InvalidCellError for anything else."""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists; tensors that are no arrays
        raise InvalidCellError(f"A cell's {name} must be {shape} (Sec. 3); got no array: {error}") from error
    if array.shape != shape:
        raise InvalidCellError(f"A cell's {name} must be {shape} (Sec. 3); got {array.shape}.")
    if array.dtype.kind not in "buif":
        first = _SHORT.repr(array.flat[0])
        raise InvalidCellError(f"A cell's {name} must be numbers; got dtype {array.dtype}, the first {first}.")
    wrong = (array != 0) & (array != 1)  # NaN is neither
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        found = f"{array[row, column]} in row {row}, column {column}"
        raise InvalidCellError(f"A cell's {name} must hold 0 and 1 alone; got {found}.")
    return array.astype(np.uint8)


def _listed(value, must: str) -> tuple:
    """Items of a sequence; text, mappings and sets, whose items mean something else, are refused."""
    if isinstance(value, (str, bytes, bytearray, dict, set, frozenset)):
        raise InvalidCellError(f"A cell's {must}; got the {type(value).__name__} {_SHORT.repr(value)}.")
    try:
        return tuple(value)
    except TypeError as error:
        raise InvalidCellError(f"A cell's {must}; got {_SHORT.repr(value)}.") from error


def _ends(edge) -> tuple[int, int]:
    """Source and target of an edge, integers 0 to 7."""
    ends = _listed(edge, "edge must be a pair (source, target)")
    if len(ends) != 2:
        raise InvalidCellError(f"A cell's edge must be a pair (source, target); got {_SHORT.repr(edge)}.")
    for end in ends:
        if not isinstance(end, (int, np.integer)) or isinstance(end, bool):
            raise InvalidCellError(f"Edge ends must be integers; got {_SHORT.repr(end)} in {_SHORT.repr(edge)}.")
        if not 0 <= end < N_NODES:
            raise InvalidCellError(f"Edge ends must be nodes 0 to 7; got {ends[0]} -> {ends[1]}.")
    return ends


def predecessor_masks(adjacency: np.ndarray) -> np.ndarray:
    """Bit a of [i, n] is the edge a -> n of graph i: (n, 8) uint8 of adjacencies (n, 8, 8)."""
    return np.packbits(adjacency, axis=1, bitorder="little")[:, 0]


def random_cell(generator: torch.Generator) -> Cell:
    """One draw before pruning, possibly invalid: edge probability p ~ U(0.3, 0.7) for the cell, operations uniform.

    The paper does not print its sampling law; this one gives cells of every size (2 to 6 live nodes).
    """
    p = 0.3 + 0.4 * torch.rand((), generator=generator).item()
    keep = (torch.rand(len(EDGES), generator=generator) < p).tolist()
    ops = torch.randint(len(OPERATIONS), (OP_NODES,), generator=generator)
    return Cell.from_edges(compress(EDGES, keep), [OPERATIONS[i] for i in ops.tolist()])


def valid_cell(generator: torch.Generator) -> Cell:
    """The first of such draws that is valid, in canonical form."""
    while True:
        cell = random_cell(generator)
        if cell.is_valid and (cell := cell.canonical()).is_valid:
            return cell


def sample_cells(n: int, *, seed: int) -> list[Cell]:
    """`n` distinct valid cells in canonical form, equal for equal seeds; a longer draw begins with them."""
    generator = torch.Generator().manual_seed(index(seed))
    cells: dict[str, Cell] = {}
    while len(cells) < n:
        cell = valid_cell(generator)
        cells.setdefault(cell.key(), cell)
    return list(cells.values())


# NATS-Bench's architecture 13714
NATS_REFERENCE = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_1x1~1|nor_conv_3x3~2|"

# paper: Table 1's reference row, 1.15M parameters and 327M FLOPs: four 3x3 and one 1x1 convolution count exactly so
REFERENCE_CELL = Cell.from_edges(
    [(0, 1), (0, 2), (1, 3), (1, 4), (2, 5), (3, 5), (0, 7), (4, 7), (5, 7)],
    ["conv_3", "conv_3", "conv_3", "conv_3", "conv_1", None],
)
