"""Algorithm 1 on toy problems: its invariants, its literal form, refusals, and bit-equal resumption."""

import json
import math
import os
import signal
import time
from collections import Counter
from dataclasses import replace

import pytest
import torch
from scipy.stats import spearmanr
from scoring import Deadly, width_score
from test_corpus import cluster  # noqa: F401  (a fixture)

from graphnas_lib import evolution
from graphnas_lib.evolution import (
    CELLS_PER_FAMILY,
    Problem,
    ScoreError,
    SearchError,
    Surrogate,
    algorithms,
    best_so_far,
    evaluation,
    evolve,
    history_table,
    mutations,
    network_problem,
)
from graphnas_lib.macro import MAX_CELLS, Architecture, HLArchitecture, HLTriple, Triple
from graphnas_lib.network import count, depth
from graphnas_lib.space import Cell, sample_cells
from graphnas_lib.store import Checkpoint, CorruptArtifactError

POOL = sample_cells(48, seed=0)
K = 8


def generate_cell(family: int, index: int):
    return POOL[(7 * family + index) % len(POOL)]


def hl_search(**changes):
    options = {"iterations": 400, "population": 24, "seed": 3, "n_families": K}
    options |= {"score": width_score, "feasible": lambda _: True, "generate_cell": generate_cell}
    return evolution.hl_evo(**{**options, **changes})


def toy_search(**changes):
    """Individuals are integers; neighbours differ by up to 3; the best is 40."""
    toy = {"start": 0, "key": str, "score": lambda x: -abs(x - 40), "feasible": lambda _: True}
    toy |= {"mutate": lambda x, _, g: x + torch.randint(-3, 4, (), generator=g).item()}
    toy |= {name: changes.pop(name) for name in list(changes) if name in Problem.__dataclass_fields__}
    return evolve(Problem(**toy), **{"iterations": 300, "population": 10, "seed": 0, **changes})


def families(individual: Architecture) -> list[int]:
    return [triple.family for triple in individual.triples]


def test_population_never_exceeds_its_size():
    result = toy_search()
    alive: dict[int, float] = {}
    for row in result.history:
        assert row["parent"] in alive or row["iteration"] == 0
        assert (row["removed"] >= 0) == (len(alive) >= 10)
        alive.pop(row["removed"], None)
        alive[row["iteration"]] = row["score"]
        assert len(alive) <= 10
    assert len(result.history) == 301 and result.best == 40 and result.best_score == 0


def test_removed_member_is_the_worst():
    alive: dict[int, float] = {}
    removals = 0
    for row in toy_search(seed=5).history:
        if row["removed"] >= 0:
            worst = min(alive.values())
            assert alive.pop(row["removed"]) == worst
            removals += 1
        alive[row["iteration"]] = row["score"]
    assert removals == 291


def test_best_so_far_never_falls_and_ends_at_the_best():
    result = hl_search()
    curve = best_so_far(result.history)
    assert all(a <= b for a, b in zip(curve, curve[1:]))
    assert curve[-1] == result.best_score == width_score(result.best) > curve[0]


def test_exploitation_never_changes_families_but_exploration_does():
    history = hl_search().history
    changed = Counter()
    for row in history[1:]:
        parent = history[row["parent"]]["individual"]
        changed[row["phase"]] += families(parent) != families(row["individual"])
    assert changed["exploitation"] == 0 and changed["exploration"] > 50
    phases = [row["phase"] for row in history[1:]]
    assert phases == ["exploration"] * 200 + ["exploitation"] * 200  # two phases with equal budget


def test_children_differ_from_their_parent_in_one_place():
    history = hl_search(depth_mutation=False).history
    for row in history[1:]:
        parent, child = history[row["parent"]]["individual"].triples, row["individual"].triples
        assert sum(a != b for a, b in zip(parent, child)) <= 1


def test_literal_form_keeps_depth_and_ours_changes_it():
    literal = hl_search(depth_mutation=False).history
    assert {len(row["individual"].triples) for row in literal} == {3}
    depths = {len(row["individual"].triples) for row in hl_search(iterations=800).history}
    assert len(depths) > 3 and max(depths) <= 20 and min(depths) >= 1


def test_individuals_know_the_families_of_their_cells():
    for row in hl_search().history:
        individual = row["individual"]
        assert all(t.cell in [generate_cell(t.family, i) for i in range(len(POOL))] for t in individual.triples)
        assert individual.hl.with_cells([t.cell for t in individual.triples]) == individual


def test_initial_individual_is_the_papers():
    start = mutations.initial_individual(lambda family: generate_cell(family, 0), 32)
    assert [(t.family, t.channels, t.stride) for t in start.triples] == [(5, 32, 1), (5, 64, 2), (5, 64, 1)]
    assert len({t.cell for t in start.triples}) == 1
    few = mutations.initial_individual(lambda family: generate_cell(family, 0), 4)
    assert families(few) == [1, 1, 1]


def test_cells_come_with_a_running_index():
    asked = []
    hl_search(generate_cell=lambda family, index: asked.append((family, index)) or generate_cell(family, index))
    by_family = {k: [index for family, index in asked if family == k] for k in range(K)}
    assert all(indices == list(range(len(indices))) for indices in by_family.values()) and len(asked) > 100


def test_twenty_thousand_iterations_at_the_papers_size():
    result = toy_search(
        iterations=20_000, population=512, mutate=lambda x, _, g: torch.randint(10**9, (), generator=g).item()
    )
    assert result.counts["recorded"] == 20_001
    assert result.best_score == max(row["score"] for row in result.history)


def test_equal_seeds_give_equal_histories():
    first, second, other = hl_search(), hl_search(), hl_search(seed=4)
    assert history_table(first.history).equals(history_table(second.history))
    assert not history_table(first.history).equals(history_table(other.history))


class Killed(Exception):
    """Stands for the kill: not an error that the search may catch."""


@pytest.mark.parametrize("dies_at", [1, 30, 100])
def test_resumed_search_equals_an_uninterrupted_one(tmp_path, dies_at):
    calls = Counter()

    def dying(architecture):
        calls["n"] += 1
        if calls["n"] == dies_at:
            raise Killed
        return {"score": width_score(architecture), "naswot": 1.5 * len(architecture.triples)}

    def whole(architecture):
        return {"score": width_score(architecture), "naswot": 1.5 * len(architecture.triples)}

    sizes = {"iterations": 110, "costs": count}
    expected = hl_search(score=whole, **sizes)
    checkpoint = Checkpoint(tmp_path / "evolution.safetensors", every=0.0)
    with pytest.raises(Killed):
        hl_search(score=dying, checkpoint=checkpoint, **sizes)
    resumed = hl_search(score=whole, checkpoint=checkpoint, **sizes)
    assert history_table(resumed.history).equals(history_table(expected.history))
    assert resumed.counts == expected.counts and resumed.best.key() == expected.best.key()


def assert_goes_on_after_a_kill(folder, row: int, score, **sizes) -> None:
    """A search that dies while it scores the individual of `row` and is started again equals an unkilled one."""
    expected = hl_search(score=score, **sizes)
    fatal = expected.history[row]["individual"].key()

    def dying(architecture):
        if architecture.key() == fatal:
            raise Killed
        return score(architecture)

    checkpoint = Checkpoint(folder / "evolution.safetensors", every=0.0)
    with pytest.raises(Killed):
        hl_search(score=dying, checkpoint=checkpoint, **sizes)
    resumed = hl_search(score=score, checkpoint=checkpoint, **sizes)
    assert history_table(resumed.history).equals(history_table(expected.history))


def test_resumed_parallel_search_equals_an_uninterrupted_one(tmp_path):
    sizes = {"iterations": 60, "workers": 2, "costs": count}
    assert_goes_on_after_a_kill(tmp_path, 40, width_score, **sizes)  # seven children had been drawn already


def test_checkpoint_without_text_form_is_refused(tmp_path):
    with pytest.raises(ValueError, match="dump"):
        toy_search(checkpoint=Checkpoint(tmp_path / "x.safetensors"))


def test_a_long_history_is_stored_row_by_row_and_read_back(tmp_path):
    scores = {"score": lambda x: float(x % 1_000), "dump": str, "parse": int}
    scores |= {"mutate": lambda x, _, g: x + torch.randint(10**6, (), generator=g).item()}
    whole = toy_search(iterations=3_000, **scores)
    checkpoint = Checkpoint(tmp_path / "evolution.safetensors", every=0.0)
    seen: Counter = Counter()

    def dying(x):
        size = checkpoint.log.stat().st_size if checkpoint.log.exists() else 0
        seen["growth"] = max(seen["growth"], size - seen["size"])
        seen["size"] = size
        seen["calls"] += 1
        if seen["calls"] == 2_000:
            raise Killed
        return float(x % 1_000)

    with pytest.raises(Killed):
        toy_search(iterations=3_000, checkpoint=checkpoint, **{**scores, "score": dying})
    assert seen["growth"] < 1_000 < seen["size"]  # a checkpoint writes what is new
    assert checkpoint.path.stat().st_size < 10_000
    with checkpoint.log.open("a") as log:
        log.write("what a killed run left behind the last state")
    resumed = toy_search(iterations=3_000, checkpoint=checkpoint, **scores)
    assert resumed.history == whole.history and resumed.counts == whole.counts


def test_a_shortened_log_is_refused(tmp_path):
    checkpoint = Checkpoint(tmp_path / "evolution.safetensors")
    hl_search(iterations=20, checkpoint=checkpoint)
    checkpoint.log.write_bytes(checkpoint.log.read_bytes()[:-40])
    with pytest.raises(CorruptArtifactError, match="Delete both"):
        hl_search(iterations=40, checkpoint=checkpoint)


def test_screening_scores_the_most_promising_children():
    sizes = {"iterations": 200, "channel_step": "local", "pooled": CELLS_PER_FAMILY, "feasible": narrow}
    plain, screened = (hl_search(score=content_score, **sizes, screened=k) for k in (1, 16))
    assert len(screened.history) == len(plain.history)  # equal evaluations
    assert screened.best_score > 1.1 * plain.best_score
    again = hl_search(score=content_score, **sizes, screened=16)
    assert history_table(again.history).equals(history_table(screened.history))


def narrow(architecture: Architecture) -> bool:
    return all(triple.channels <= 128 for triple in architecture.triples)


def content_score(architecture: Architecture) -> float:
    """As T-CET: a sum over layers, with the root of the width."""
    return sum(len(triple.cell.live) * triple.channels**0.5 for triple in architecture.triples)


def test_screened_search_resumes_as_if_it_was_never_killed(tmp_path):
    sizes = {"iterations": 120, "costs": count, "pooled": CELLS_PER_FAMILY, "screened": 8}
    assert_goes_on_after_a_kill(tmp_path, 90, content_score, **sizes)


def test_surrogate_ranks_networks_that_it_has_not_seen():
    history = hl_search(score=content_score, iterations=500).history
    surrogate = Surrogate()
    surrogate.learn(history[:300])
    held_out = history[300:]
    expected = surrogate.expected(*(row["individual"] for row in held_out))
    assert spearmanr(expected, [row["score"] for row in held_out]).statistic > 0.95


def test_screening_without_a_surrogate_is_refused():
    with pytest.raises(ValueError, match="surrogate"):
        toy_search(screened=4)


@pytest.mark.parametrize(("bound", "most"), [({"params": 1e5}, 0), ({"flops": 30e6}, 3)])
def test_deep_starts_repeat_a_cell_as_often_and_wide_as_the_constraints_let_them(bound, most):
    feasible = evolution.budget(count, **bound)
    starts = evolution.deep_starts(generate_cell, K, feasible, depth)
    assert [start.triples[0].family for start in starts] == list(range(K))
    for start in starts:
        assert feasible(start) and not feasible(mutations.scale_widths(start, 1.6))
        assert len({(t.cell.key(), t.channels, t.family) for t in start.triples}) == 1
        strided = [i for i, triple in enumerate(start.triples) if triple.stride == 2]
        assert strided == list(range(len(strided)))  # early strides pay for width
    assert max(len(start.triples) for start in starts) == MAX_CELLS
    assert max(sum(t.stride == 2 for t in start.triples) for start in starts) == most


def test_a_deep_start_is_of_the_cell_of_most_layers_for_its_cost():
    dear = Cell.from_edges([(0, 1), (1, 7)], ["conv_5", *[None] * 5])
    deep = Cell.from_edges([(0, 1), (1, 2), (2, 7)], ["sep_conv_3", "sep_conv_3", *[None] * 4])

    def of_two(family: int, index: int) -> Cell:
        return (dear, deep)[index % 2]

    (start,) = evolution.deep_starts(of_two, 1, evolution.budget(count, params=1e5), depth)
    assert start.triples[0].cell == deep
    assert evolution.deep_starts(of_two, 1, lambda _: False, depth) == []


def test_several_starts_all_enter_the_history_and_the_best_live():
    starts = list(range(0, 60, 2))
    result = toy_search(start=starts, iterations=50)
    assert [row["individual"] for row in result.history[:30]] == starts and len(result.history) == 80
    first = min(row["parent"] for row in result.history[30:])
    assert abs(result.history[first]["individual"] - 40) <= 10  # ten lived, those next to 40


def test_discards_use_up_no_iterations():
    kept = toy_search(feasible=lambda x: x % 2 == 0, iterations=100)
    assert kept.counts["recorded"] == 101 and kept.counts["discarded"] > 20
    assert all(row["individual"] % 2 == 0 for row in kept.history)


def test_failed_scores_are_counted_and_never_ranked():
    def score(x):
        if x % 3 == 1:
            raise ScoreError(f"no score for {x}")
        return -abs(x - 40)

    scored = Counter()
    result = toy_search(
        score=lambda x: scored.update([x]) or score(x),
        mutate=lambda x, _, g: x + torch.randint(-40, 41, (), generator=g).item(),
    )
    assert max(scored.values()) == 1  # neither a score nor a failure is computed twice
    assert result.counts["failed"] > 0 and "no score for" in result.failures[0]
    asked = [row["evaluations"] for row in result.history]
    assert asked == sorted(asked) and asked[0] == 1 and asked[-1] == len(scored)  # failures are evaluations as well
    assert all(row["individual"] % 3 != 1 for row in result.history) and len(result.history) == 301


def test_other_errors_stop_the_search():
    with pytest.raises(ZeroDivisionError):
        toy_search(score=lambda x: 1 / x)
    with pytest.raises(ValueError, match="NaN"):
        toy_search(score=lambda x: math.nan)


def test_hopeless_searches_end_with_a_reason():
    with pytest.raises(ValueError, match="initial individual"):
        toy_search(feasible=lambda _: False)
    with pytest.raises(SearchError, match="Loosen the constraints"):
        toy_search(feasible=lambda x: x == 0, mutate=lambda x, *_: x + 1)

    def score(x):
        if x:
            raise ScoreError("broken")
        return 0.0

    with pytest.raises(SearchError, match="broken"):
        toy_search(score=score, mutate=lambda x, *_: x + 1)
    with pytest.raises(ScoreError, match="initial"):
        toy_search(score=lambda x: score(x + 1))
    with pytest.raises(ValueError, match="population"):
        toy_search(population=0)


def test_equal_children_share_one_score():
    scored = Counter()
    toy_search(score=lambda x: scored.update([x]) or -abs(x - 40), iterations=500)
    assert max(scored.values()) == 1


def test_parallel_search_is_deterministic_and_scores_each_child_once():
    first, second = hl_search(workers=2, iterations=40), hl_search(workers=2, iterations=40)
    assert history_table(first.history).equals(history_table(second.history))
    assert len(first.history) == 41
    assert [row["parent"] for row in first.history] != [row["parent"] for row in hl_search(iterations=40).history]


@pytest.mark.skipif(os.name != "posix", reason="kill -9 is POSIX")
def test_a_worker_that_dies_over_a_score_changes_nothing(tmp_path):
    expected = hl_search(workers=2, iterations=40)
    fatal = expected.history[20]["individual"].key()
    found = hl_search(score=Deadly(tmp_path, fatal, 2), workers=2, iterations=40)
    assert (tmp_path / "fired").stat().st_size == 2
    assert history_table(found.history).equals(history_table(expected.history)) and found.counts == expected.counts
    (tmp_path / "fired").unlink()
    with pytest.raises(RuntimeError, match="was killed, .* 3 times. Run the same command again"):
        hl_search(score=Deadly(tmp_path, fatal, 3), workers=2, iterations=40)


@pytest.mark.skipif(os.name != "posix", reason="kill -9 is POSIX")
def test_workers_that_die_while_nobody_waits_are_replaced():
    first, second, third = (Architecture((Triple(cell, 16, 1),)) for cell in POOL[:3])
    evaluator = evaluation.Evaluator(width_score, workers=2)
    expected = evaluator.record("first", first)["score"]
    executor = evaluation._processes(2)
    evaluator.begin([("second", second)])
    evaluator._begun["second"].result()
    for pid in executor._processes.copy():
        os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while not executor._flags.broken and time.monotonic() < deadline:
        time.sleep(0.1)
    evaluator.begin([("third", third)])
    assert evaluator.record("third", third)["score"] == width_score(third)
    assert evaluator.record("first", first)["score"] == expected and evaluation._processes(2) is not executor


@pytest.mark.skipif(os.name != "posix", reason="kill -9 is POSIX")
def test_a_dask_cluster_gives_the_same_history_although_a_worker_is_killed(cluster, tmp_path):  # noqa: F811
    expected = hl_search(workers=2, iterations=40)
    score = Deadly(tmp_path, expected.history[20]["individual"].key(), 1)
    before = {worker.pid for worker in cluster.workers.values()}
    found = hl_search(score=score, workers=2, iterations=40, dask=cluster.scheduler_address)
    assert (tmp_path / "fired").exists() and before != {worker.pid for worker in cluster.workers.values()}
    assert history_table(found.history).equals(history_table(expected.history))


def test_budget_bounds_costs_and_feature_maps():
    cell = POOL[0]
    small = Architecture((Triple(cell, 16, 1), Triple(cell, 32, 2)))
    costs = count(small)
    assert evolution.budget(count, params=costs.params, flops=costs.flops)(small)
    assert not evolution.budget(count, params=costs.params - 1)(small)
    assert not evolution.budget(count, flops=costs.flops - 1)(small)
    four = Architecture(tuple(Triple(cell, 16, 2) for _ in range(4)))
    assert not evolution.budget(count)(four) and evolution.budget(count, resolution=64)(four)
    assert [evolution.max_strides(n) for n in (4, 7, 8, 16, 32, 33, 224)] == [0, 1, 1, 2, 3, 3, 6]


@pytest.mark.parametrize("space", ["families", "flat"])
def test_inserted_cells_repeat_their_neighbour_on_request(space):
    generator, inserted = torch.Generator().manual_seed(0), 0
    parent = Architecture(tuple(Triple(cell, 16 + 8 * k, 2, k) for k, cell in enumerate(POOL[:4])))
    before = parent.triples
    for _ in range(200):
        if space == "flat":
            child = mutations.flat_mutate(parent, True, generator, repeats=True).triples
        else:
            options = {"generate_cell": lambda family: POOL[9], "n_families": K, "repeats": True}
            child = mutations.hl_mutate(parent, True, generator, **options).triples
        if len(child) > len(before):
            inserted += 1
            i = next(i for i, (a, b) in enumerate(zip(child, [*before, None])) if a != b)
            new, left = child[i], child[i - 1]
            assert (new.cell, new.channels, new.stride, new.family) == (left.cell, left.channels, 1, left.family)
    assert inserted > 10


def test_flat_mutation_stays_in_the_space_and_reaches_every_kind():
    generator = torch.Generator().manual_seed(0)
    architecture = Architecture(tuple(Triple(cell, 32, 1) for cell in POOL[:4]))
    seen = Counter()
    for _ in range(300):
        child = mutations.flat_mutate(architecture, True, generator)
        assert all(t.cell.is_valid for t in child.triples) and 1 <= len(child.triples) <= 20
        n, m = len(architecture.triples), len(child.triples)
        changed = [(a, b) for a, b in zip(architecture.triples, child.triples) if a != b] if n == m else []
        seen["insert" if m > n else "remove" if m < n else "same" if not changed else ""] += 1
        for a, b in changed:
            seen["cell"] += a.cell != b.cell
            seen["channels"] += a.channels != b.channels
            seen["stride"] += a.stride != b.stride
        architecture = child
    assert all(seen[kind] > 5 for kind in ("insert", "remove", "cell", "channels", "stride"))
    assert len(mutations.flat_mutate(architecture, False, generator).triples) == len(architecture.triples)


@pytest.mark.parametrize("kind", ["edge", "operation"])
def test_cell_mutation_gives_a_different_valid_canonical_cell(kind):
    generator = torch.Generator().manual_seed(1)
    for cell in POOL:
        changed = mutations.mutate_cell(cell, kind, generator)
        assert changed.is_valid and changed.key() != cell.key() and changed == changed.canonical()


def test_a_cell_without_a_neighbour_by_an_edge_gets_another_operation():
    alone = Cell.from_edges([(0, 1), (0, 7), (1, 7)], ["skip", *[None] * 5])  # a search never ended
    changed = mutations.mutate_cell(alone, "edge", torch.Generator().manual_seed(0))
    assert changed.is_valid and changed.key() != alone.key() and changed.adjacency.tolist() == alone.adjacency.tolist()


def test_flat_search_and_local_channels():
    start = Architecture((Triple(POOL[0], 64, 1), Triple(POOL[1], 64, 2)))
    feasible = evolution.budget(count, params=2e6)
    options = {"score": width_score, "feasible": feasible, "iterations": 60, "population": 8, "seed": 0}
    result = evolution.flat_evo(start, costs=count, **options)
    assert all(row["params"] <= 2e6 for row in result.history)
    assert [row["phase"] for row in result.history[1:]] == ["exploration"] * 30 + ["exploitation"] * 30
    generator = torch.Generator().manual_seed(0)
    widths = {mutations.mutate_channels(64, "local", generator) for _ in range(200)}
    assert 64 not in widths and min(widths) >= 48 and max(widths) <= 88
    with pytest.raises(ValueError, match="local"):
        mutations.mutate_channels(64, "brute", generator)


def test_random_search_spends_its_evaluations_on_feasible_draws():
    feasible = evolution.budget(count, params=5e5)
    problem = network_problem(
        mutate=lambda _, __, source: evolution.random_architecture(source, max_cells=6),
        score=width_score,
        feasible=feasible,
    )
    result = evolution.random_search(problem, iterations=30, seed=0)
    assert len(result.history) == 31 and all(feasible(row["individual"]) for row in result.history)
    assert {row["phase"] for row in result.history} == {"random"}
    assert len({len(row["individual"].triples) for row in result.history}) > 3


def test_random_evolution_fills_the_budget_at_every_depth():
    feasible = evolution.budget(count, params=5e5)
    options = {"generate_cell": generate_cell, "n_families": K, "score": width_score, "seed": 0}
    result = evolution.random_evo(feasible=feasible, iterations=40, costs=count, **options)
    depths = [len(row["individual"].triples) for row in result.history]
    assert all(feasible(row["individual"]) for row in result.history) and max(depths) > 12 and min(depths) < 5
    assert sum(row["params"] > 4e5 for row in result.history) > 30  # width steps of 8 leave something over
    again = evolution.random_evo(feasible=feasible, iterations=40, costs=count, **options)
    assert history_table(again.history).equals(history_table(result.history))
    drawn = evolution.random_evo(feasible=feasible, iterations=40, costs=count, fill=False, **options)
    assert all(feasible(row["individual"]) for row in drawn.history) and drawn.counts["discarded"] > 40
    assert sum(row["params"] > 4e5 for row in drawn.history) < 10
    indices = set()
    options["generate_cell"] = lambda family, index: indices.add(index) or generate_cell(family, index=index)
    evolution.random_evo(feasible=feasible, iterations=40, pooled=2, **options)
    assert indices == {0, 1}


def test_filled_takes_the_largest_widths_that_are_feasible():
    narrow = Architecture((Triple(POOL[0], 8, 1), Triple(POOL[1], 16, 2)))
    found = evolution.filled(narrow, evolution.budget(count, params=1e6))
    ratio = [t.channels for t in found.triples]
    assert count(found).params <= 1e6 and ratio[1] == pytest.approx(2 * ratio[0], abs=8)
    wider = Architecture(tuple(Triple(t.cell, t.channels + 16, t.stride) for t in found.triples))
    assert count(wider).params > 1e6
    assert evolution.filled(narrow, lambda _: False) == narrow


def test_alike_gives_half_of_the_new_cells_to_every_place_of_the_old():
    """Families and cells move together; widths, strides and all other places stay."""
    places = (0, 1, 0, 0, 1)
    parent = Architecture(tuple(Triple(POOL[i], 8 * (i + 1), 1, i) for i in places))
    moved = {True: [], False: []}
    for alike in moved:
        generator = torch.Generator().manual_seed(0)
        options = {"generate_cell": lambda family: POOL[4 + family], "n_families": K, "alike": alike}
        for _ in range(400):
            child = mutations.hl_mutate(parent, True, generator, depth_mutation=False, **options)
            pairs = list(zip(parent.triples, child.triples, strict=True))
            assert all((a.channels, a.stride) == (b.channels, b.stride) for a, b in pairs if a.cell != b.cell)
            changed = tuple(i for i, (a, b) in enumerate(pairs) if a.cell != b.cell)
            assert all(child.triples[i].cell == POOL[4 + child.triples[i].family] for i in changed)
            moved[alike] += [changed] * bool(changed)
    assert set(map(len, moved[False])) == {1}
    assert set(moved[True]) == {(0,), (1,), (2,), (3,), (4,), (0, 2, 3), (1, 4)}
    assert 0.4 < sum(len(changed) > 1 for changed in moved[True]) / len(moved[True]) < 0.6


@pytest.mark.parametrize("width", [8, 400])
def test_at_the_edge_no_width_can_grow(width):
    feasible, generator = evolution.budget(count, params=2e5), torch.Generator().manual_seed(0)
    start = Architecture(tuple(Triple(cell, width, 1, 3) for cell in POOL[:4]))
    found = evolution.to_the_edge(start, feasible, generator)
    assert feasible(found) and [(t.cell, t.stride, t.family) for t in found.triples] == [(c, 1, 3) for c in POOL[:4]]
    for i, triple in enumerate(found.triples):
        wider = replace(triple, channels=triple.channels + 8)
        assert not feasible(replace(found, triples=(*found.triples[:i], wider, *found.triples[i + 1 :])))
    assert len({t.channels for t in found.triples}) > 1  # places are taken at random
    assert evolution.to_the_edge(start, evolution.budget(count, params=10), generator) == start
    assert evolution.to_the_edge(found, feasible, generator) == found


def test_children_are_moved_to_the_edge_before_they_are_looked_at():
    feasible, generator = evolution.budget(count, params=2e5), torch.Generator().manual_seed(0)
    start = evolution.to_the_edge(evolution.hl_start(generate_cell, K), feasible, generator)
    sizes = {"iterations": 60, "costs": count, "pooled": CELLS_PER_FAMILY, "channel_step": "local"}
    plain, filled = (hl_search(filling=filling, initial=start, feasible=feasible, **sizes) for filling in (False, True))
    least = [min(row["params"] for row in found.history) / 2e5 for found in (plain, filled)]
    assert least[0] < 0.6 < 0.9 < least[1] and filled.counts["discarded"] == 0


def test_searches_start_alike_and_narrow():
    hl, flat = evolution.hl_start(generate_cell, K), evolution.flat_start()
    sizes = [(8, 1), (16, 2), (16, 1)]  # a quarter of alpha_0's widths
    assert [(t.channels, t.stride) for t in flat.triples] == sizes
    assert [(t.channels, t.stride) for t in hl.triples] == sizes


def test_a_finished_search_is_not_run_again(tmp_path):
    checkpoint = Checkpoint(tmp_path / "evolution.safetensors")  # due after a minute: never in this search
    first = hl_search(iterations=20, checkpoint=checkpoint)
    assert checkpoint.path.exists()

    def unasked(_):
        raise AssertionError("a finished search has all its scores")

    again = hl_search(iterations=20, checkpoint=checkpoint, score=unasked)
    assert history_table(again.history).equals(history_table(first.history))


def test_individual_survives_json_and_history_is_a_table():
    result = hl_search(iterations=10, costs=count)
    for row in result.history:
        assert Architecture.from_json(row["individual"].to_json()) == row["individual"]
        assert row["params"] == count(row["individual"]).params
    table = history_table(result.history)
    assert list(table["iteration"]) == list(range(11)) and isinstance(table["individual"][3], str)


def test_histories_that_have_families_beside_the_network_are_read():
    """The form of the shipped history."""
    hl = HLArchitecture((HLTriple(3, 16, 1), HLTriple(5, 32, 2)))
    bare = Architecture((Triple(POOL[0], 16, 1), Triple(POOL[1], 32, 2)))
    text = json.dumps({"hl": hl.to_dict(), "architecture": bare.to_dict()})
    read = Architecture.from_json(text)
    assert read.hl == hl and read.key() == bare.key() and [t.cell for t in read.triples] == POOL[:2]
    assert read != bare and Architecture.from_json(read.to_json()) == read
    assert "family" not in bare.to_json()
    bare = replace(bare, head_channels=128, stem_stride=2)  # which families need not repeat
    assert Architecture.from_dict({"hl": hl.to_dict(), "architecture": bare.to_dict()}).key() == bare.key()
    wider = json.dumps(
        {"hl": HLArchitecture((HLTriple(3, 16, 1), HLTriple(5, 40, 2))).to_dict(), "architecture": bare.to_dict()}
    )
    with pytest.raises(ValueError, match="channels and strides of its 'architecture'"):
        Architecture.from_json(wider)


def test_equal_networks_of_other_families_are_other_individuals_with_one_network_key():
    one, other = (Architecture((Triple(POOL[0], 16, 1, family),)) for family in (0, 1))
    assert one.key() == other.key() and algorithms.hl_key(one) != algorithms.hl_key(other) and one != other
    with pytest.raises(ValueError, match="cluster must be an index >= 0; got None"):
        _ = Architecture((Triple(POOL[0], 16, 1),)).hl
    with pytest.raises(ValueError, match="family must be an index >= 0; got -1"):
        Triple(POOL[0], 16, 1, -1)
