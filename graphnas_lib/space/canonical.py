"""The canonical form of a cell's graph: prune, fold skips, number the nodes in one order. Compiled, many at a time.

Works on bare graphs of nodes 0 (input) to 7 (output). A graph is one integer: byte n holds the predecessors of node n,
bit a the edge a -> n. `ops` (8,) int8 holds an operation's index, 0 for skip, -1 for none. An order is one integer too,
three bits a node: its new number, 0 while it has none; node 1 comes first, so that integers compare as sequences do.
`space.Cell.canonical` says what the form promises.

A code describes a canonical graph, left to right: for each node 32 * predecessors (a mask of new numbers) + operation,
then the output's predecessors. Shorter codes are smaller, equally long ones compare number by number.
"""

from __future__ import annotations

import numpy as np

from graphnas_lib.space.compiled import compiled

N_NODES = 8
INPUT, OUTPUT = 0, 7
SKIP, NONE = 0, -1
OP_NODES = 6
SHIFT = 32  # more than there are operations
_LARGEST = np.int64(2**62)  # above every code

_compiled = compiled(nogil=True)


def canonical(ops: np.ndarray, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Smallest code of each graph over all function-preserving skip folds, and which node became which.

    Args:
        ops: (n, 8) int8.
        masks: (n, 8) uint8, predecessors of each node; no edge touches a node without operation.

    Returns:
        code (n, 7) int16, padded with -1; its length less one, which is the number of live operation nodes (n,) int8;
        new number of each node, -1 where pruned, (n, 8) int8. A graph without a path has no node and output mask 0.
    """
    n = len(ops)
    codes, lengths = np.full((n, OP_NODES + 1), -1, np.int16), np.zeros(n, np.int8)
    numbers = np.full((n, N_NODES), -1, np.int8)
    _canonical(np.ascontiguousarray(ops, np.int8), _graphs(masks), codes, lengths, numbers)
    return codes, lengths, numbers


def live_nodes(masks: np.ndarray) -> np.ndarray:
    """Which operation nodes lie on a path from input to output: bool (n, 6) of predecessors (n, 8) uint8."""
    kept = np.array([_kept(graph) for graph in _graphs(masks)], np.int64)
    return (kept[:, None] >> np.arange(1, OUTPUT) & 1).astype(bool)


def _graphs(masks: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(masks, np.uint8).view("<i8")[:, 0]


@_compiled
def _canonical(ops, graphs, codes, lengths, numbers):
    for i in range(len(ops)):
        seen, done, best = [_pruned(graphs[i])], 0, (OP_NODES + 1, _LARGEST, _LARGEST)
        while done < len(seen):
            folds = _folds(ops[i], seen[done])
            for graph in folds:
                if graph not in seen:
                    seen.append(graph)
            if not len(folds):
                code = _code(ops[i], seen[done])
                if code < best:
                    best = code
            done += 1
        length, rest, order = best
        lengths[i], codes[i, length], rest = length, rest & 127, rest >> 7
        for place in range(length - 1, -1, -1):
            codes[i, place], rest = rest & ((64 << place) - 1), rest >> (place + 6)
        numbers[i, INPUT] = 0
        for n in range(1, OUTPUT):
            if _number(order, n):
                numbers[i, n] = _number(order, n)


@_compiled
def _sources(graph, node):
    """Predecessors of a node, as a mask."""
    return graph >> 8 * node & 255


@_compiled
def _kept(graph):
    """Nodes on a path from input to output, as a mask."""
    forward, backward = 1 << INPUT, 1 << OUTPUT
    for n in range(1, N_NODES):
        if _sources(graph, n) & forward:
            forward |= 1 << n
    for n in range(OUTPUT, 0, -1):
        if backward >> n & 1:
            backward |= _sources(graph, n)
    return forward & backward


@_compiled
def _pruned(graph):
    """The graph of the nodes that lie on a path; a node is live when it has predecessors."""
    kept, pruned = _kept(graph), 0
    for n in range(1, N_NODES):
        if kept >> n & 1:
            pruned |= (_sources(graph, n) & kept) << 8 * n
    return pruned


@_compiled
def _folds(ops, graph):
    """What the graph becomes by each fold that it allows: skip -> consumer gives way to the skip's own predecessors."""
    folds = []
    for skip in range(1, OUTPUT):
        read = _sources(graph, skip)
        if ops[skip] != SKIP or not read:
            continue
        for consumer in range(skip + 1, N_NODES):
            rest = _sources(graph, consumer) & ~(1 << skip)
            reads_raw = rest | read == 1 << INPUT and consumer != OUTPUT and ops[consumer] != SKIP
            if rest != _sources(graph, consumer) and not rest & read and not reads_raw:
                others = graph & ~(255 << 8 * consumer)
                folds.append(_pruned(others | (rest | read) << 8 * consumer))
    return folds


@_compiled
def _number(order, node):
    """New number of a node, 0 while it has none."""
    return order >> 3 * (OP_NODES - node) & 7


@_compiled
def _renumbered(mask, order):
    """The mask in new numbers, -1 while a node of it has none."""
    new = mask & 1
    for n in range(1, OUTPUT):
        if mask >> n & 1:
            if not _number(order, n):
                return -1
            new |= 1 << _number(order, n)
    return new


@_compiled
def _code(ops, graph):
    """Number of operation nodes, smallest description over all topological orders as one integer, and that order.

    Built left to right: among nodes whose predecessors are placed, those with the smallest entry continue; ties branch.
    The entry of place p takes p + 6 bits, five of them the operation's; the output's takes seven.
    """
    length, code, orders = 0, 0, [0]
    for n in range(1, OUTPUT):
        length += _sources(graph, n) != 0
    for place in range(length):
        smallest, following = _LARGEST, [0]
        for order in orders:
            for n in range(1, OUTPUT):
                read = _renumbered(_sources(graph, n), order)
                if read <= 0 or _number(order, n):
                    continue
                entry, new = SHIFT * read + ops[n], order | (place + 1) << 3 * (OP_NODES - n)
                if entry < smallest:
                    smallest, following = entry, [new]
                elif entry == smallest and new not in following:
                    following.append(new)
        code, orders = code << (place + 6) | smallest, following
    best = _LARGEST, _LARGEST
    for order in orders:
        last = _renumbered(_sources(graph, OUTPUT), order), order
        if last < best:
            best = last
    return length, code << 7 | best[0], best[1]
