"""The canonical form of a cell's graph: prune, fold skips, number the nodes in one order. Compiled, many at a time.

Works on bare graphs of nodes 0 (input) to 7 (output): `ops` (8,) int8, an operation's index, 0 for skip, -1 for none;
`masks` (8,) uint8, bit a of `masks[n]` is the edge a -> n. `space.Cell.canonical` says what the form promises.

A code describes a canonical graph, left to right: for each node 32 * predecessors (a mask of new numbers) + operation,
then the output's predecessors. Shorter codes are smaller, equally long ones compare number by number.
"""

from __future__ import annotations

import numba
import numpy as np

N_NODES = 8
INPUT, OUTPUT = 0, 7
SKIP, NONE = 0, -1
OP_NODES = 6
SHIFT = 32  # more than there are operations
ORDERS = 720  # of six nodes

_compiled = numba.njit(cache=True, nogil=True)


def canonical(ops: np.ndarray, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Smallest code of each graph over all function-preserving skip folds, and which node became which.

    Args:
        ops: (n, 8) int8.
        masks: (n, 8) uint8; no edge touches a node without operation.

    Returns:
        code (n, 7) int16, padded with -1; its length less one, which is the number of live operation nodes (n,) int8;
        new number of each node, -1 where pruned, (n, 8) int8. A graph without a path has no node and output mask 0.
    """
    n = len(ops)
    codes, lengths = np.full((n, OP_NODES + 1), -1, np.int16), np.zeros(n, np.int8)
    numbers = np.full((n, N_NODES), -1, np.int8)
    _canonical(np.ascontiguousarray(ops, np.int8), np.ascontiguousarray(masks, np.uint8), codes, lengths, numbers)
    return codes, lengths, numbers


@_compiled
def _canonical(ops, masks, codes, lengths, numbers):
    orders = np.empty((2, ORDERS, N_NODES), np.int8)
    code, number = np.empty(OP_NODES + 1, np.int16), np.empty(N_NODES, np.int8)
    graphs = np.empty((64, N_NODES), np.uint8)  # the pruned cell, and all that folds make of it
    for i in range(len(ops)):
        _copy(masks[i], graphs[0])
        _prune(graphs[0])
        done, count, first = 0, 1, True
        while done < count:
            graph, before = graphs[done], count
            if count + 42 > len(graphs):  # a graph has at most 6 x 7 folds
                graphs = _doubled(graphs)
            done, (folds, count) = done + 1, _fold(ops[i], graph, graphs, before)
            if folds:
                continue
            length = _code(ops[i], graph, orders, code, number)
            if first or _smaller(code, number, length, codes[i], numbers[i], lengths[i]):
                for j in range(OP_NODES + 1):
                    codes[i, j] = code[j] if j <= length else -1
                _copy(number, numbers[i])
                lengths[i], first = length, False


@_compiled
def _copy(row, to):
    for n in range(N_NODES):
        to[n] = row[n]


@_compiled
def _doubled(rows):
    more = np.empty((2 * len(rows), N_NODES), rows.dtype)
    for i in range(len(rows)):
        _copy(rows[i], more[i])
    return more


@_compiled
def _prune(masks):
    """Drop nodes that lie on no input-output path; a node is live when it has predecessors."""
    forward, backward = 1 << INPUT, 1 << OUTPUT
    for n in range(1, N_NODES):
        if masks[n] & forward:
            forward |= 1 << n
    for n in range(OUTPUT, 0, -1):
        if backward >> n & 1:
            backward |= masks[n]
    keep = forward & backward
    for n in range(N_NODES):
        masks[n] = masks[n] & keep if keep >> n & 1 else 0


@_compiled
def _fold(ops, masks, graphs, count):
    """Whether the graph allows a fold; each one edge fold away that is not among the first `count` is put behind them.

    A fold replaces skip -> consumer by the skip's own predecessors -> consumer. Also returns the new count.
    """
    found = False
    for skip in range(1, OUTPUT):
        if ops[skip] != SKIP or not masks[skip]:
            continue
        for consumer in range(skip + 1, N_NODES):
            if not masks[consumer] >> skip & 1:
                continue
            rest = masks[consumer] & ~(1 << skip)
            merged = rest | masks[skip]
            reads_raw = merged == 1 << INPUT and consumer != OUTPUT and ops[consumer] != SKIP
            if rest & masks[skip] or reads_raw:
                continue
            found = True
            _copy(masks, graphs[count])
            graphs[count, consumer] = merged
            _prune(graphs[count])
            count += not _among(graphs[count], graphs, count)
    return found, count


@_compiled
def _code(ops, masks, orders, code, number):
    """Smallest description over all topological orders into `code`, and the numbers of its nodes; returns its length.

    Built left to right: among nodes whose predecessors are placed, those with the smallest entry continue; ties branch.
    """
    now, count, length = 0, 1, 0
    for n in range(N_NODES):
        orders[0, 0, n] = 0 if n == INPUT else -1
        length += n != OUTPUT and masks[n] != 0
    for place in range(length):
        best, following = -1, 0
        for f in range(count):
            order = orders[now, f]
            for n in range(1, OUTPUT):
                if not masks[n] or order[n] >= 0:
                    continue
                entry = _renumbered(masks[n], order)
                if entry < 0:
                    continue
                entry = SHIFT * entry + ops[n]
                if best < 0 or entry < best:
                    best, following = entry, 0
                if entry == best:
                    new = orders[1 - now, following]
                    _copy(order, new)
                    new[n] = place + 1
                    if not _among(new, orders[1 - now], following):
                        following += 1
        code[place] = best
        now, count = 1 - now, following
    best = -1
    for f in range(count):
        entry = _renumbered(masks[OUTPUT], orders[now, f])
        if best < 0 or entry < best or (entry == best and _first(orders[now, f], number)):
            best = entry
            _copy(orders[now, f], number)
    code[length] = best
    return length


@_compiled
def _among(row, rows, count):
    for f in range(count):
        same = True
        for n in range(N_NODES):
            same &= row[n] == rows[f, n]
        if same:
            return True
    return False


@_compiled
def _renumbered(mask, order):
    """The mask in new numbers, -1 while a node of it has none."""
    new = 0
    for n in range(N_NODES):
        if mask >> n & 1:
            if order[n] < 0:
                return -1
            new |= 1 << order[n]
    return new


@_compiled
def _smaller(code, number, length, other, other_number, other_length):
    if length != other_length:
        return length < other_length
    for i in range(length + 1):
        if code[i] != other[i]:
            return code[i] < other[i]
    return _first(number, other_number)


@_compiled
def _first(number, other):
    """Whether a numbering comes before another: of those that give one code, a canonical cell keeps its own."""
    for n in range(N_NODES):
        if number[n] != other[n]:
            return number[n] < other[n]
    return False
