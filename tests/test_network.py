"""Architectures, their networks and their exact costs."""

import math

import pytest
import torch
from torch import nn

from graphnas_lib.benchmarks import released_networks
from graphnas_lib.macro import CHANNELS, Architecture, HLArchitecture, HLTriple, Triple, stack_cell
from graphnas_lib.network import Costs, build, count
from graphnas_lib.space import REFERENCE_CELL, Cell, random_cell


def random_architecture(generator: torch.Generator, cells: int | None = None) -> Architecture:
    """A random architecture, invalid cells redrawn."""

    def draw(n):
        return torch.randint(n, (), generator=generator).item()

    triples = []
    for _ in range(cells or 1 + draw(6)):
        while not (cell := random_cell(generator)).is_valid:
            pass
        triples.append(Triple(cell, CHANNELS[draw(5)], 1 + draw(2)))
    return Architecture(tuple(triples), [None, 20][draw(2)], 1 + draw(2))


def hooked_costs(network: nn.Module, x: torch.Tensor) -> Costs:
    """Second implementation of the cost rule: by hooks on the modules that really run."""
    totals = {"macs": 0, "counted": 0}

    def hook(module, inputs, output):
        ins, outs = inputs[0].numel(), output.numel()
        if isinstance(module, (nn.Conv1d, nn.Conv2d)):
            macs = outs * math.prod(module.kernel_size) * module.in_channels // module.groups
            totals["macs"] += macs
            totals["counted"] += macs + (outs if module.bias is not None else 0)
        elif isinstance(module, nn.Linear):
            macs = outs * module.in_features
            totals["macs"] += macs
            totals["counted"] += macs + outs
        elif isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            totals["counted"] += ins * (2 if module.affine else 1)
        elif isinstance(module, nn.ReLU):
            totals["counted"] += outs
        elif not isinstance(module, nn.Identity) and not list(module.children()):
            totals["counted"] += ins  # pooling

    handles = [module.register_forward_hook(hook) for module in network.modules()]
    with torch.no_grad():
        network(x)
    for handle in handles:
        handle.remove()
    params = sum(p.numel() for p in network.parameters() if p.requires_grad)
    return Costs(params, totals["macs"], 2 * totals["counted"])


def test_build_agrees_with_count_on_200_random_architectures():
    generator = torch.Generator().manual_seed(0)
    shapes = [((3, 9, 9), False), ((1, 12, 7), False), ((2, 33), False), ((3, 8, 8), True)]
    for i in range(200):
        shape, dense = shapes[i % len(shapes)]
        architecture = random_architecture(generator)
        network = build(architecture, input_shape=shape, classes=7, dense=dense).eval()
        expected = hooked_costs(network, torch.zeros(1, *shape))
        assert count(architecture, input_shape=shape, classes=7, dense=dense) == expected, (i, architecture)


def test_nats_reference_row_of_table_1():
    costs = count(stack_cell(REFERENCE_CELL))
    assert (costs.params, costs.flops) == (1_148_474, 326_665_492)
    assert costs.macs == 160_874_496 + 640  # convolutions and the classifier's products


def test_ten_released_networks_count_exactly(shared, monkeypatch):
    monkeypatch.setenv("GRAPHNAS_DATA", str(shared / "data"))
    released = released_networks()
    assert len(released) == 10
    for architecture, recorded in released:
        costs = count(architecture, classes=100)
        assert (costs.params, costs.flops) == (recorded["params"], recorded["flops"])


def test_eq_2_widths_and_strides():
    expected = [(16 * 2 ** (i // 6), 2 if i in (6, 12) else 1) for i in range(1, 18)]
    assert [(t.channels, t.stride) for t in stack_cell(REFERENCE_CELL).triples] == expected


def test_canonical_cells_give_the_same_costs():
    generator = torch.Generator().manual_seed(5)
    for _ in range(50):
        architecture = random_architecture(generator)
        if not all(t.cell.canonical().is_valid for t in architecture.triples):
            continue
        twin = Architecture(
            tuple(Triple(t.cell.canonical(), t.channels, t.stride) for t in architecture.triples),
            architecture.head_channels,
            architecture.stem_stride,
        )
        assert count(architecture) == count(twin)
        assert architecture.key() == twin.key()


@pytest.mark.parametrize(
    ("shape", "dense", "output"),
    [((3, 16, 16), False, (2, 5)), ((4, 50), False, (2, 5)), ((3, 10, 12), True, (2, 5, 10, 12))],
)
def test_output_shapes(shape, dense, output):
    network = build(stack_cell(REFERENCE_CELL, width=8, repeats=1), input_shape=shape, classes=5, dense=dense)
    assert network(torch.randn(2, *shape)).shape == output


def test_seeded_build_repeats_and_leaves_the_global_generator_alone():
    architecture = stack_cell(REFERENCE_CELL, width=8, repeats=1)
    before = torch.get_rng_state()
    first, second = build(architecture, seed=1).state_dict(), build(architecture, seed=1).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(first["stem.0.weight"], build(architecture, seed=2).state_dict()["stem.0.weight"])


def test_json_round_trip_and_refusals():
    architecture = random_architecture(torch.Generator().manual_seed(1), cells=3)
    assert Architecture.from_json(architecture.to_json()) == architecture
    hl = HLArchitecture((HLTriple(3, 16, 1), HLTriple(0, 32, 2)))
    assert HLArchitecture.from_json(hl.to_json()) == hl
    damaged = architecture.to_dict()
    damaged["triples"][1]["cell"]["edges"].append([6, 2])
    with pytest.raises(ValueError, match=r"triple 1: .*run forward"):
        Architecture.from_dict(damaged)
    del damaged["triples"][0]["channels"]
    with pytest.raises(ValueError, match=r"triple 0: 'channels' is missing"):
        Architecture.from_dict(damaged)
    with pytest.raises(ValueError, match=r"valid JSON; line 1"):
        Architecture.from_json("{")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Triple(REFERENCE_CELL, 12, 1), r"multiple of 8 from 8 to 1024.*got 12"),
        (lambda: Triple(REFERENCE_CELL, 16, 3), r"Stride must be 1 or 2.*got 3"),
        (lambda: Architecture(()), r"1 to 20 cells .*got 0"),
        (lambda: Architecture((Triple(REFERENCE_CELL, 8, 1),) * 21), r"1 to 20 cells .*got 21"),
        (lambda: HLTriple(-1, 8, 1), r"index >= 0; got -1"),
        (lambda: count(stack_cell(REFERENCE_CELL), input_shape=(3, 0, 4)), r"input_shape must be"),
        (lambda: count(stack_cell(REFERENCE_CELL), classes=0), r"classes must be a positive number; got 0"),
        (lambda: build(stack_cell(Cell.from_edges([], [None] * 6))), r"must have a path from input"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()
