"""Cells as tensors: integer codes, the encoder's graph view (Tab. 6), decoder outputs read back into cells.

A canonical cell is 28 edge bits and six slots, each one of 28 operations or "unused". Codes are what models train on:
34 bytes a cell, indexed in batches without a Python loop. `graph_view` makes the 9 x 9 and 9 x 15 tensors that the
encoder reads, `hard_decode` and `decoded` go from logits back to cells and say what became of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from graphnas_lib.space.canonical import N_NODES, NONE, OP_NODES, SHIFT, canonical, live_nodes
from graphnas_lib.space.cell import EDGES, KERNELS, OP_TYPES, OPERATIONS, Cell, InvalidCellError, predecessor_masks

VIEW_NODES = N_NODES + 1  # paper: Tab. 6, [9 x 9, 15 x 9]
_FLAG_AT = len(OP_TYPES) - 1  # features of a node: types without skip, input / output / global flags, kernels
_KERNEL_AT = _FLAG_AT + 3
VIEW_FEATURES = _KERNEL_AT + len(KERNELS)  # 15
UNUSED = len(OPERATIONS)  # code of an empty slot
_NAMES = (*OPERATIONS, None)
_CODE = {name: code for code, name in enumerate(_NAMES)}
_SOURCE, _TARGET = (torch.tensor(ends) for ends in zip(*EDGES, strict=True))
TYPE_OF = torch.tensor([0, *(1 + i // len(KERNELS) for i in range(UNUSED - 1)), len(OP_TYPES)])  # (29,): 0..10
KERNEL_OF = torch.tensor([-1, *(i % len(KERNELS) for i in range(UNUSED - 1)), -1])  # (29,): -1 where a slot has none


@dataclass(frozen=True)
class CellCodes:
    """Canonical cells as integers, the form in which cells are trained on: 34 bytes a cell.

    Attributes:
        edges: uint8 (n, 28) of 0 and 1 in the order of `space.EDGES`.
        operations: uint8 (n, 6), index into `OPERATIONS`, 28 for an unused slot.
    """

    edges: Tensor
    operations: Tensor

    @classmethod
    def of(cls, cells: Sequence[Cell], *, canonical: bool = False) -> CellCodes:
        """Codes of cells; `canonical=True` promises that they are in canonical form and saves the work.

        Raises:
            InvalidCellError: a cell has no path from input to output.
        """
        adjacency = np.stack([cell.adjacency for cell in cells]) if cells else np.zeros((0, N_NODES, N_NODES), np.uint8)
        operations = [[_CODE[name] for name in cell.operations] for cell in cells]
        edges = torch.from_numpy(adjacency)[:, _SOURCE, _TARGET]
        codes = cls(edges, torch.tensor(operations, dtype=torch.uint8).reshape(-1, OP_NODES))
        return codes if canonical else codes.canonical()

    def __len__(self) -> int:
        return len(self.edges)

    def __getitem__(self, index: Tensor | slice) -> CellCodes:
        return CellCodes(self.edges[index], self.operations[index])

    def to(self, device: torch.device | str) -> CellCodes:
        """The same on another device."""
        return CellCodes(self.edges.to(device), self.operations.to(device))

    def cells(self) -> list[Cell]:
        """Cells as written, not made canonical.

        Raises:
            InvalidCellError: the tensors hold something else than their attributes say, or an edge touches an unused
                slot.
        """
        n, shapes = self.edges.shape[:1].numel(), (tuple(self.edges.shape), tuple(self.operations.shape))
        if shapes != ((n, len(EDGES)), (n, OP_NODES)):
            raise InvalidCellError(f"Codes of cells must be (n, 28) edges and (n, 6) operations; got {shapes}.")
        if self.operations.is_floating_point() or bool(((self.operations < 0) | (self.operations > UNUSED)).any()):
            kind, found = self.operations.dtype, sorted(set(self.operations.flatten().tolist()))
            raise InvalidCellError(f"Operation codes must be integers from 0 to {UNUSED}; got {kind} of {found[-5:]}.")
        rows = zip(edge_matrix(self.edges).cpu().numpy(), self.operations.tolist(), strict=True)
        return [Cell(matrix, [_NAMES[code] for code in codes]) for matrix, codes in rows]

    def canonical(self) -> CellCodes:
        """The same cells in canonical form (`space.Cell.canonical`), thousands at a time.

        Raises:
            InvalidCellError: a cell has no path from input to output.
        """
        found, lengths, _ = _canonical(self)
        output = found[np.arange(len(found)), lengths]
        if not output.all():
            Cell.canonical(self[int(output.argmin()) :][:1].cells()[0])  # says what must hold
        return _of_canonical(found, lengths)


def _of_canonical(found: np.ndarray, lengths: np.ndarray) -> CellCodes:
    """Cells of canonical codes (n, 7) with that many nodes (n,), see `canonical.canonical`."""
    placed = np.arange(OP_NODES) < lengths[:, None]
    entries = np.where(placed, found[:, :OP_NODES], 0)
    output = found[np.arange(len(found)), lengths]
    masks = np.column_stack([np.zeros_like(output), entries // SHIFT, output])  # (n, 8), predecessors
    edges = masks[:, _TARGET] >> _SOURCE.numpy() & 1
    operations = np.where(placed, entries % SHIFT, UNUSED)
    return CellCodes(*(torch.from_numpy(part.astype(np.uint8)) for part in (edges, operations)))


def edge_matrix(values: Tensor) -> Tensor:
    """Values of the 28 edges, (n, 28), at their places in a matrix, zero elsewhere: (n, 8, 8), [i, a, b] of a -> b."""
    matrix = values.new_zeros(len(values), N_NODES, N_NODES)
    matrix[:, _SOURCE, _TARGET] = values
    return matrix


def _masks(edges: Tensor) -> np.ndarray:
    """Predecessors of each node, (n, 8), of edge bits (n, 28)."""
    return predecessor_masks(edge_matrix(edges).cpu().numpy())


def _canonical(codes: CellCodes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes (n, 7) of the canonical forms, how many operations are live (n,), and new numbers of nodes (n, 8)."""
    operations = np.full((len(codes), N_NODES), NONE, np.int8)
    operations[:, 1:-1] = codes.operations.cpu().numpy()
    operations[operations == UNUSED] = NONE
    return canonical(operations, _masks(codes.edges))


@dataclass(frozen=True)
class MixedBatches:
    """Unlabelled cells, and labelled ones with their standardised z (n_labelled, 4); a draw is an index operation."""

    cells: CellCodes
    labelled: CellCodes
    zc: Tensor

    def __post_init__(self):
        if not len(self.cells):
            raise ValueError("Training needs at least one unlabelled cell; got none.")
        wanted = (len(self.labelled), 4)  # paper: Sec. 3.1, P = 4
        if self.zc.shape != wanted:
            raise ValueError(f"zc_standardised must be {wanted}, a row a labelled cell; got {tuple(self.zc.shape)}.")

    def draw(self, size: int, n_labelled: int, *, generator: torch.Generator) -> tuple[CellCodes, Tensor]:
        """`size` cells, the first `n_labelled` of them labelled, and the latter's z."""
        device = self.zc.device
        known = torch.randint(max(len(self.labelled), 1), (n_labelled,), generator=generator, device=device)
        other = torch.randint(len(self.cells), (size - n_labelled,), generator=generator, device=device)
        a, b = self.labelled[known], self.cells[other]
        return CellCodes(torch.cat([a.edges, b.edges]), torch.cat([a.operations, b.operations])), self.zc[known]


_TABLE = torch.zeros(UNUSED + 1, VIEW_FEATURES)  # features of each operation code; those of an unused slot are zero
_TABLE[0, _KERNEL_AT] = 1  # a skip is the kernel-1 bit alone
for _code in range(1, UNUSED):
    _TABLE[_code, [TYPE_OF[_code] - 1, _KERNEL_AT + KERNEL_OF[_code]]] = 1
_FLAGS = F.one_hot(torch.tensor([2, 0, 1]) + _FLAG_AT, VIEW_FEATURES).float()  # of the global, input and output node


def graph_view(codes: CellCodes) -> tuple[Tensor, Tensor]:
    """The encoder's view of cells: adjacency (n, 9, 9) and features (n, 9, 15), float32 (Tab. 6, deviation D09).

    Node 0 is global (a row of ones: it reads every node), 1 the input, 2 to 7 the slots, 8 the output; all have
    self-loops. `adjacency[n, a, b]` is 1 for the edge a -> b.
    """
    n, device = len(codes), codes.edges.device
    adjacency = torch.eye(VIEW_NODES, device=device).repeat(n, 1, 1)
    adjacency[:, 0] = 1
    adjacency[:, _SOURCE.to(device) + 1, _TARGET.to(device) + 1] = codes.edges.float()
    flags = _FLAGS.to(device).expand(n, -1, -1)  # (n, 3, 15)
    slots = _TABLE.to(device)[codes.operations.long()]  # (n, 6, 15)
    return adjacency, torch.cat([flags[:, :2], slots, flags[:, 2:]], dim=1)


class Logits(NamedTuple):
    """What the decoder says: edges (B, 28), types (B, 6, 11) with "unused" last, kernels (B, 6, 3)."""

    edges: Tensor
    types: Tensor
    kernels: Tensor


@dataclass(frozen=True)
class Decoded:
    """One decoded latent: canonical cell or None, status "ok" | "no_path" | "identity", and whether the raw graph was
    strictly valid (no dangling node, no edge at an unused slot) before pruning."""

    cell: Cell | None
    status: str
    strict: bool


def hard_decode(logits: Logits) -> CellCodes:
    """Most likely graph: an edge where its logit is above 0, the arg-max type and kernel; not yet pruned."""
    types, kernels = logits.types.argmax(dim=-1), logits.kernels.argmax(dim=-1)  # (B, 6)
    operations = 1 + (types - 1) * len(KERNELS) + kernels
    operations = torch.where(types == 0, 0, torch.where(types == len(OP_TYPES), UNUSED, operations))
    return CellCodes((logits.edges > 0).to(torch.uint8), operations.to(torch.uint8))


def decoded(codes: CellCodes) -> list[Decoded]:
    """Outcomes of raw graphs: edges at unused slots dropped, then canonical form; one computation a distinct graph."""
    kept = _used_edges(codes).edges
    clean = (kept == codes.edges).all(dim=1, keepdim=True)
    rows = torch.cat([kept, codes.operations, clean], dim=1).cpu()  # (n, 28 + 6 + 1)
    distinct, inverse = torch.unique(rows, dim=0, return_inverse=True)
    raw = CellCodes(distinct[:, : len(EDGES)], distinct[:, len(EDGES) : -1])
    on_path = torch.from_numpy(live_nodes(_masks(raw.edges)))
    tight = distinct[:, -1].bool() & (on_path == (raw.operations != UNUSED)).all(dim=1)
    found, lengths, _ = _canonical(raw)
    outcomes = [  # without a live node the only path is an edge from input to output, or there is none
        Decoded(Cell.of_code(tuple(code[: length + 1])), "ok", strict)
        if length
        else Decoded(None, "identity" if code[0] else "no_path", False)
        for code, length, strict in zip(found.tolist(), lengths.tolist(), tight.tolist(), strict=True)
    ]
    return [outcomes[i] for i in inverse.tolist()]


def soft_decodes(logits: Logits) -> tuple[CellCodes, Tensor, Tensor]:
    """The valid cells among decoder outputs, canonical; the rows that they come from; and their features (n, 9, 15).

    The features equal `graph_view`'s and carry the gradient of the decoder's softmax (straight through); edges do not.
    """
    raw = _used_edges(hard_decode(logits))
    found, lengths, numbers = _canonical(raw)
    rows = np.flatnonzero(lengths)
    device = logits.edges.device
    cells, chosen = _of_canonical(found[rows], lengths[rows]).to(device), torch.from_numpy(rows).to(device)
    types, kernels = logits.types[chosen].softmax(dim=-1), logits.kernels[chosen].softmax(dim=-1)
    named = types[..., 1:-1]  # nine; a skip is the kernel-1 bit alone, an unused slot zero (`_TABLE`)
    bits = named.sum(dim=-1, keepdim=True) * kernels + F.pad(types[..., :1], (0, len(KERNELS) - 1))
    slots = torch.cat([named, named.new_zeros(*named.shape[:2], _KERNEL_AT - _FLAG_AT), bits], dim=-1)  # (n, 6, 15)
    source = np.zeros((len(rows), OP_NODES), np.int64)  # the raw slot that each canonical one comes from
    row, slot = np.nonzero(numbers[rows, 1:-1] > 0)
    source[row, numbers[rows, 1:-1][row, slot] - 1] = slot
    index = torch.from_numpy(source).to(device)
    soft = slots.gather(1, index[..., None].expand(-1, -1, VIEW_FEATURES))
    used = (cells.operations != UNUSED)[..., None]
    return cells, chosen, graph_view(cells)[1] + F.pad((soft - soft.detach()) * used, (0, 0, 2, 1))


def _used_edges(codes: CellCodes) -> CellCodes:
    """Without edges at unused slots."""
    used = F.pad(codes.operations != UNUSED, (1, 1), value=True)  # (n, 8): input and output always are
    device = used.device
    kept = codes.edges * (used[:, _SOURCE.to(device)] & used[:, _TARGET.to(device)])
    return CellCodes(kept, codes.operations)


def connect_loose_ends(codes: CellCodes) -> CellCodes:
    """A repair, as in D-VAE (Zhang et al., 2019): no used slot is left without a predecessor or a successor.

    Edges at unused slots go; then slots that nothing enters read the input, and slots that nothing leaves feed the
    output. What comes out is valid whenever one slot holds an operation other than a skip that folds away.
    """
    matrix = edge_matrix(_used_edges(codes).edges).bool()
    used, entered, left = codes.operations != UNUSED, matrix.any(dim=1)[:, 1:-1], matrix.any(dim=2)[:, 1:-1]
    matrix[:, 0, 1:-1] |= used & ~entered
    matrix[:, 1:-1, -1] |= used & ~left
    return CellCodes(matrix[:, _SOURCE, _TARGET].to(torch.uint8), codes.operations)


def as_codes(cells: Sequence[Cell] | CellCodes) -> CellCodes:
    """Codes as they are, cells made canonical first."""
    return cells if isinstance(cells, CellCodes) else CellCodes.of(cells)
