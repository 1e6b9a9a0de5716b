"""The canonical form of a cell's graph: prune, fold skips, number the nodes in one order.

Works on bare graphs: (operations by node, predecessor bit mask by node) for nodes 0 to 7, where an operation is its
index, 0 for skip, or None. `space.Cell.canonical` says what the form promises.
"""

from __future__ import annotations

N_NODES = 8
INPUT, OUTPUT = 0, 7
SKIP = 0

Graph = tuple[tuple, tuple]
Code = tuple  # a (predecessors, operation) pair a node, then the output's predecessors


def canonical(ops: tuple, masks: tuple) -> tuple[Code, dict[int, int]]:
    """Smallest code over all function-preserving skip folds, and which node of the graph became which."""
    return min((_code(*graph) for graph in _folded(ops, masks)), key=lambda found: (len(found[0]), found[0]))


def _folded(ops: tuple, masks: tuple) -> list[Graph]:
    """All graphs reachable from the pruned cell by function-preserving skip folds that allow no further fold."""
    start = _pruned(ops, masks)
    todo, seen, final = [start], {start}, []
    while todo:
        graph = todo.pop()
        following = {_pruned(*step) for step in _fold_steps(*graph)}
        if not following:
            final.append(graph)
        for step in following - seen:
            seen.add(step)
            todo.append(step)
    return final


def _fold_steps(ops: tuple, masks: tuple):
    """Every graph one edge fold away: skip -> consumer replaced by the skip's own predecessors -> consumer."""
    for skip in range(1, OUTPUT):
        if ops[skip] != SKIP:
            continue
        for consumer in range(skip + 1, N_NODES):
            if not masks[consumer] >> skip & 1:
                continue
            rest = masks[consumer] & ~(1 << skip)
            merged = rest | masks[skip]
            reads_raw = merged == 1 << INPUT and consumer != OUTPUT and ops[consumer] != SKIP
            if not rest & masks[skip] and not reads_raw:
                yield ops, (*masks[:consumer], merged, *masks[consumer + 1 :])


def _pruned(ops, masks) -> Graph:
    """Drop nodes that lie on no input-output path."""
    forward, backward = 1 << INPUT, 1 << OUTPUT
    for n in range(1, N_NODES):
        if masks[n] & forward:
            forward |= 1 << n
    for n in range(OUTPUT, 0, -1):
        if backward >> n & 1:
            backward |= masks[n]
    keep = forward & backward
    return (
        tuple(ops[n] if keep >> n & 1 else None for n in range(N_NODES)),
        tuple(masks[n] & keep if keep >> n & 1 else 0 for n in range(N_NODES)),
    )


def _code(ops: tuple, masks: tuple) -> tuple[tuple, dict[int, int]]:
    """Smallest description over all topological orders: a (predecessors, operation) pair a node, then the output's.

    Built left to right: among nodes whose predecessors are placed, those with the smallest pair continue; ties branch.
    """
    nodes = [n for n in range(1, OUTPUT) if ops[n] is not None]
    frontier = [((), {INPUT: 0})]  # (code so far, node -> new number)
    for _ in nodes:
        best, following = None, []
        for code, number in frontier:
            placed = sum(1 << n for n in number)
            for n in nodes:
                if n in number or masks[n] & ~placed:
                    continue
                pair = (_renumbered(masks[n], number), ops[n])
                if best is None or pair < best:
                    best, following = pair, []
                if pair == best:
                    following.append(((*code, pair), {**number, n: len(number)}))
        frontier = list({tuple(sorted(number.items())): (code, number) for code, number in following}.values())
    output, code, number = min(
        ((_renumbered(masks[OUTPUT], number), code, number) for code, number in frontier), key=lambda found: found[0]
    )
    return (*code, output), number


def _renumbered(mask: int, number: dict[int, int]) -> int:
    return sum(1 << new for old, new in number.items() if mask >> old & 1)
