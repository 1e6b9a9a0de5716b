"""Where the boxes and lines of a small graph go: layers by longest path, few crossings, no line through a box.

An edge that skips layers gets a lane of its own in every layer it passes (Sugiyama's dummy nodes). networkx gives the
layers; its `multipartite_layout` has no lanes, so that the edges of a dense cell would run through the boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, pairwise

import numpy as np

BOX_WIDTH, BOX_HEIGHT, LAYER = 1.04, 0.56, 1.62  # data units; a layer is a box and the gap to the next


def layered_layout(nodes: Sequence[int], edges: Sequence[tuple[int, int]]) -> tuple[dict, dict]:
    """Positions of a small DAG, its nodes in topological order, drawn left to right, the last one in the last layer.

    Returns:
        node -> (x, y), and edge -> list of the lanes (x, y) in the layers that it passes between its ends.
    """
    level = layer_of(nodes, edges)
    layers: list[list] = [[n for n in nodes if level[n] == depth] for depth in range(level[nodes[-1]] + 1)]
    chains = {}
    for a, b in edges:
        lanes = [(a, b, depth) for depth in range(level[a] + 1, level[b])]
        for lane in lanes:
            layers[lane[2]].append(lane)
        chains[a, b] = [a, *lanes, b]
    links = [pair for chain in chains.values() for pair in pairwise(chain)]
    layers = _with_few_crossings(layers, links)
    y = _heights(layers, links)
    place = {item: (depth * LAYER, y[item]) for depth, layer in enumerate(layers) for item in layer}
    lanes = {edge: [place[lane] for lane in chain[1:-1]] for edge, chain in chains.items()}
    return {node: place[node] for node in nodes}, lanes


def layer_of(nodes: Sequence[int], edges: Sequence[tuple[int, int]]) -> dict[int, int]:
    """Longest path of each node from the first one; all others lie between the first node and the last."""
    import networkx as nx

    first, *inner, last = nodes
    graph = nx.DiGraph([(first, last), *edges, *((first, n) for n in inner), *((n, last) for n in inner)])
    return {node: depth for depth, layer in enumerate(nx.topological_generations(graph)) for node in layer}


def _with_few_crossings(layers: list[list], links: list[tuple]) -> list[list]:
    """The layers, ordered by barycentre sweeps: each item goes to the mean place of its neighbours before or after."""
    best, fewest = layers, _crossings(layers, links)
    for sweep in range(24):
        forward, ties = sweep % 2 == 0, 1 if sweep % 4 < 2 else -1
        layers = [list(layer) for layer in layers]
        for fixed, moved in pairwise(layers if forward else layers[::-1]):
            rank, here = ({item: i for i, item in enumerate(layer)} for layer in (fixed, moved))
            met = {item: [] for item in moved}
            for a, b in links if forward else ((b, a) for a, b in links):
                if b in met:
                    met[b].append(rank[a])
            moved.sort(key={i: (np.mean(met[i] or [here[i]]), ties * here[i]) for i in moved}.__getitem__)
        count = _crossings(layers, links)
        if count < fewest:
            best, fewest = layers, count
    return best


def _crossings(layers: list[list], links: list[tuple]) -> int:
    place = {item: (depth, i) for depth, layer in enumerate(layers) for i, item in enumerate(layer)}
    lines = [(*place[a], place[b][1]) for a, b in links]
    return sum(d == e and (a - c) * (b - f) < 0 for (d, a, b), (e, c, f) in combinations(lines, 2))


def _heights(layers: list[list], links: list[tuple]) -> dict:
    """y of every item: pulled to its neighbours, lanes kept straight, a least distance within a layer."""
    y = {item: (i - (len(layer) - 1) / 2) * 0.7 for layer in layers for i, item in enumerate(layer)}
    is_lane = {item: isinstance(item, tuple) for item in y}
    pulls: dict = {item: [] for item in y}  # (neighbour, weight)
    for a, b in links:
        weight = 4.0 if is_lane[a] and is_lane[b] else 1.0
        pulls[a].append((b, weight))
        pulls[b].append((a, weight))
    for sweep in range(40):
        for layer in layers if sweep % 2 else layers[::-1]:
            wish = [sum(w * y[n] for n, w in pulls[i]) / max(sum(w for _, w in pulls[i]), 1.0) for i in layer]
            gaps = [(0.92, 0.58, 0.3)[is_lane[a] + is_lane[b]] for a, b in pairwise(layer)]
            y.update(zip(layer, spaced(wish, [1.0 if is_lane[i] else 3.0 for i in layer], gaps), strict=True))
    return y


def spaced(wish: Sequence[float], weight: Sequence[float], gaps: Sequence[float]) -> list[float]:
    """Nearest positions (weighted least squares) to those wished for that keep the order and at least the gaps."""
    from scipy.optimize import isotonic_regression

    offset = np.concatenate([[0.0], np.cumsum(gaps)])
    return list(isotonic_regression(np.asarray(wish) - offset, weights=weight).x + offset)
