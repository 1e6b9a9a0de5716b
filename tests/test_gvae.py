"""G-VAE: cells as tensors, the losses of Eq. 4-5 against closed forms, training, decode, artifacts."""

import importlib.util
import math
import os
import pickle
import subprocess
import sys
from collections import Counter
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch_geometric.nn import DenseGraphConv, GraphConv

from graphnas_lib.gvae import (
    GVAE,
    GVAEConfig,
    element_accuracy,
    reconstruction_rate,
    train,
    valid_draws,
    validity,
)
from graphnas_lib.gvae.losses import (
    choose_triplets,
    cycle_loss,
    decorrelation_loss,
    gradient_through,
    kl_divergence,
    loose_ends_loss,
    predictor_loss,
    reconstruction_loss,
    triplet_margin_loss,
)
from graphnas_lib.gvae.networks import propagation
from graphnas_lib.gvae.training import cycle, gvae_loss
from graphnas_lib.space import (
    EDGES,
    KERNEL_OF,
    KERNELS,
    OP_TYPES,
    OPERATIONS,
    REFERENCE_CELL,
    TYPE_OF,
    UNUSED,
    Cell,
    CellCodes,
    Logits,
    connect_loose_ends,
    decoded,
    graph_view,
    hard_decode,
    sample_cells,
    soft_decodes,
)
from graphnas_lib.space import cell as cell_module
from graphnas_lib.space import codes as codes_module
from graphnas_lib.stages import cells as corpus
from graphnas_lib.store import Checkpoint, artifacts

N_TYPES = len(OP_TYPES) + 1  # of a slot: "unused" is one
TINY = GVAEConfig(hidden=8, latent_dim=4, decoder_hidden=8, layers=2, learning_rate=1e-2)
UNFOLDED = Cell.from_edges([(0, 1), (1, 7), (0, 7), (0, 2), (2, 7)], ["skip", "conv_3", None, None, None, None])


@pytest.fixture(scope="module")
def cells():
    return sample_cells(64, seed=0)


@pytest.fixture(scope="module")
def codes(cells):
    return CellCodes.of(cells)


def truth(codes):
    """Logits of a decoder that is sure of the given cells."""
    operations = codes.operations.long()
    types = 20.0 * F.one_hot(TYPE_OF[operations], N_TYPES)
    kernels = 20.0 * F.one_hot(KERNEL_OF[operations].clamp(min=0), len(KERNELS))
    return Logits(40.0 * codes.edges.float() - 20.0, types.float(), kernels.float())


def zc_of(n, seed=0):
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# ---- cells as tensors


def test_codes_come_back_as_the_same_cells(cells, codes):
    assert codes.cells() == cells
    assert CellCodes.of(cells, canonical=True).cells() == cells
    assert CellCodes.of([]).cells() == []


def test_codes_are_of_the_canonical_form():
    loose = Cell.from_edges([(0, 3), (3, 7), (0, 5)], [None, None, "conv_3", None, "conv_1", None])
    assert CellCodes.of([loose]).cells() == [loose.canonical()]


def test_view_has_the_papers_shape_and_a_global_node(codes):
    adjacency, features = graph_view(codes)
    assert adjacency.shape == (64, 9, 9) and features.shape == (64, 9, 15)  # Tab. 6
    assert bool((adjacency[:, 0] == 1).all()) and bool((adjacency.diagonal(dim1=1, dim2=2) == 1).all())
    assert bool((adjacency[:, 1:, 0] == 0).all())
    assert features[0, [0, 1, 8]].argmax(dim=-1).tolist() == [11, 9, 10]


def test_view_of_one_more_type_has_one_more_column(codes, monkeypatch):
    monkeypatch.setattr(cell_module, "OP_TYPES", (*OP_TYPES, "more"))
    monkeypatch.setattr(cell_module, "OPERATIONS", (*OPERATIONS, *(f"more_{k}" for k in KERNELS)))
    spec = importlib.util.spec_from_file_location("codes_of_eleven_types", codes_module.__file__)
    other = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, other)
    spec.loader.exec_module(other)
    more = torch.arange(len(OPERATIONS), other.UNUSED, dtype=torch.uint8)
    made = other.CellCodes(codes.edges[:1], F.pad(more, (0, 3), value=0)[None])
    features = other.graph_view(made)[1][0]
    assert [row.nonzero().flatten().tolist() for row in features[[0, 1, 8]]] == [[12], [10], [11]]
    assert [row.nonzero().flatten().tolist() for row in features[2:6]] == [[9, 13], [9, 14], [9, 15], [13]]
    old = graph_view(codes)[1]
    wider = other.CellCodes(codes.edges, torch.where(codes.operations == UNUSED, other.UNUSED, codes.operations))
    assert torch.equal(other.graph_view(wider)[1][..., [*range(9), *range(10, 16)]], old)


def test_view_is_invertible(cells):
    """A second reading of the view, slot by slot, gives back the cell."""
    for cell, adjacency, features in zip(cells, *graph_view(CellCodes.of(cells)), strict=True):
        assert (adjacency[1:, 1:].numpy() - torch.eye(8).numpy() == cell.adjacency).all()
        for row, name in zip(features[2:8], cell.operations, strict=True):
            bits = torch.nonzero(row).flatten().tolist()
            op = None if not bits else "skip" if bits == [12] else OPERATIONS[1 + 3 * bits[0] + bits[1] - 12]
            assert op == name


def test_a_skip_that_cannot_be_folded_is_a_row_with_kernel_one_alone():
    cell = UNFOLDED.canonical()
    assert "skip" in cell.operations
    row = graph_view(CellCodes.of([UNFOLDED]))[1][0, 2 + cell.operations.index("skip")]
    assert torch.nonzero(row).flatten().tolist() == [12]


def test_every_operation_has_its_own_type_and_kernel():
    pairs = set(zip(TYPE_OF.tolist(), KERNEL_OF.tolist(), strict=True))
    assert len(pairs) == 29
    assert (TYPE_OF[OPERATIONS.index("mbconv2_5")], KERNEL_OF[OPERATIONS.index("mbconv2_5")]) == (5, 2)


# ---- decode


def test_decoding_the_true_logits_is_the_identity(cells, codes):
    raw = hard_decode(truth(codes))
    assert torch.equal(raw.edges, codes.edges) and torch.equal(raw.operations, codes.operations)
    outcomes = decoded(raw)
    assert [outcome.cell for outcome in outcomes] == cells
    assert {(outcome.status, outcome.strict) for outcome in outcomes} == {("ok", True)}


def raw_codes(edges, operations):
    """Codes that no cell may have."""
    matrix = torch.zeros(1, 8, 8, dtype=torch.uint8)
    for a, b in edges:
        matrix[0, a, b] = 1
    blank = CellCodes.of([REFERENCE_CELL])
    order = [(a, b) for b in range(1, 8) for a in range(b)]
    blank.edges[0] = torch.stack([matrix[0, a, b] for a, b in order])
    return CellCodes(blank.edges, torch.tensor([operations], dtype=torch.uint8))


EMPTY = [UNUSED] * 5


@pytest.mark.parametrize(
    "edges, first, status, strict",
    [
        ([(0, 1), (1, 7)], 4, "ok", True),
        ([(0, 1), (1, 7), (0, 2)], 4, "ok", False),  # an edge at an unused slot
        ([(0, 1)], 4, "no_path", False),
        ([], UNUSED, "no_path", False),
        ([(0, 7)], UNUSED, "identity", False),
        ([(0, 1), (0, 7)], 4, "identity", False),
    ],
)
def test_decode_says_what_became_of_a_graph(edges, first, status, strict):
    (outcome,) = decoded(raw_codes(edges, [first, *EMPTY]))
    assert (outcome.status, outcome.strict) == (status, strict)
    assert (outcome.cell is None) == (status != "ok")


def test_decode_prunes_to_the_canonical_cell_and_says_that_it_was_loose():
    (outcome,) = decoded(raw_codes([(0, 1), (0, 2), (2, 7)], [4, 5, *EMPTY[1:]]))
    assert outcome.cell == Cell.from_edges([(0, 1), (1, 7)], [OPERATIONS[5], *[None] * 5])
    assert outcome.status == "ok" and not outcome.strict


def test_equal_latents_decode_equally_in_the_order_given():
    model = GVAE(TINY)
    latent = torch.randn(6, 4, generator=generator())
    twice = model.decode(torch.cat([latent, latent.flip(0)]))
    assert twice[:6] == twice[6:][::-1] == model.decode(latent)
    assert model.decode(latent[:0]) == []


# ---- losses


def test_reconstruction_of_uniform_logits_is_the_code_length(codes):
    uniform = Logits(torch.zeros(64, 28), torch.zeros(64, 6, N_TYPES), torch.zeros(64, 6, len(KERNELS)))
    with_kernel = (KERNEL_OF[codes.operations.long()] >= 0).sum() / 64
    expected = 28 * math.log(2) + 6 * math.log(N_TYPES) + with_kernel * math.log(len(KERNELS))
    torch.testing.assert_close(reconstruction_loss(uniform, codes), expected)
    assert reconstruction_loss(truth(codes), codes) < 1e-5


def test_kl_equals_torch_distributions():
    mu, logvar = torch.randn(5, 3, generator=generator()), torch.randn(5, 3, generator=generator(1))
    ours, prior = torch.distributions.Normal(mu, (0.5 * logvar).exp()), torch.distributions.Normal(0.0, 1.0)
    expected = torch.distributions.kl_divergence(ours, prior).sum(dim=1).mean()
    torch.testing.assert_close(kl_divergence(mu, logvar), expected)


def test_triplet_loss_by_hand():
    latent = torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 0.0], [0.5, 0.0]])
    anchor, positive, negative = torch.tensor([0, 0, 0]), torch.tensor([1, 3, 1]), torch.tensor([2, 1, 3])
    mask = torch.tensor([True, True, False])
    # D: 1 and 1 -> 0.1; 0.25 and 1 -> max(0.0625 - 1 + 0.1, 0) = 0
    found = triplet_margin_loss(latent, anchor, positive, negative, mask, margin=0.1)
    assert found.item() == pytest.approx((0.1 + 0.0) / 2)
    assert triplet_margin_loss(latent, anchor, positive, negative, mask & False, margin=0.1) == 0


def test_triples_are_ordered_by_d_and_never_hold_the_anchor_twice():
    zc = zc_of(200)
    anchor, positive, negative, mask = choose_triplets(zc, min_gap=0.25, generator=generator())
    near, far = (zc - zc[positive]).abs().sum(dim=1), (zc - zc[negative]).abs().sum(dim=1)
    assert bool((near <= far).all()) and bool((positive != anchor).all()) and bool((negative != anchor).all())
    torch.testing.assert_close(mask, far - near >= 0.25)
    assert 0.7 < mask.float().mean() < 1.0


def test_gradients_of_every_loss(codes):
    few = codes[:2]
    shapes = (2, 28), (2, 6, N_TYPES), (2, 6, len(KERNELS))
    draws = [torch.randn(shape, dtype=torch.float64, generator=generator()) for shape in shapes]
    logits = [draw.requires_grad_() for draw in draws]
    assert torch.autograd.gradcheck(lambda *parts: reconstruction_loss(Logits(*parts), few), logits)
    latent = torch.randn(4, 3, dtype=torch.float64, generator=generator()).requires_grad_()
    assert torch.autograd.gradcheck(lambda u: kl_divergence(u[:2], u[2:]), latent)
    triples = [torch.tensor(index) for index in ([0, 1], [1, 2], [2, 3])]
    assert torch.autograd.gradcheck(
        lambda u: triplet_margin_loss(u, *triples, torch.tensor([True, True]), margin=2.0), latent
    )
    zc = zc_of(4).double()[:, :3]
    assert torch.autograd.gradcheck(lambda u: predictor_loss(u, zc), latent)


def logits_of(codes, sharpness):
    """Decoder outputs whose arg-max is `codes`."""
    operations = codes.operations.long()
    kernels = F.one_hot(KERNEL_OF[operations].clamp(min=0), len(KERNELS)) * sharpness
    types = F.one_hot(TYPE_OF[operations], N_TYPES) * sharpness
    return Logits((codes.edges.float() - 0.5) * sharpness, types.float(), kernels.float())


def test_soft_decodes_are_the_hard_ones_with_the_softmax_gradient(codes):
    loose = Cell.from_edges([(0, 3), (3, 7), (0, 5)], [None, None, "conv_3", None, "conv_1", None])  # slot 3 becomes 1
    none = Cell.from_edges([], [None] * 6)
    given = CellCodes.of([loose, none, *codes[:5].cells()], canonical=True)
    logits = logits_of(given, sharpness=2.0)
    for part in logits:
        part.requires_grad_()
    cells, rows, features = soft_decodes(logits)
    assert rows.tolist() == [0, 2, 3, 4, 5, 6]
    assert cells.cells() == [loose.canonical(), *codes[:5].cells()]
    torch.testing.assert_close(features, graph_view(cells)[1])
    weight = torch.randn(15, generator=generator())
    types, kernels = torch.autograd.grad((features[0, 2] * weight).sum(), (logits.types, logits.kernels))
    t, k = (part.detach()[0, 2].clone().requires_grad_() for part in (logits.types, logits.kernels))  # slot 3
    p, q = t.softmax(0), k.softmax(0)
    bits = p[1:10].sum() * q + p[0] * torch.tensor([1.0, 0.0, 0.0])
    (p[1:10] @ weight[:9] + bits @ weight[12:]).backward()
    torch.testing.assert_close((types[0, 2], kernels[0, 2]), (t.grad, k.grad))
    assert types.count_nonzero() == types[0, 2].count_nonzero()  # no other slot, no other cell


def test_decorrelation_loss_sums_squared_correlations():
    latent = torch.randn(50, 3, generator=generator()) * torch.tensor([1.0, 30.0, 0.01]) + 5
    latent[:, 2] += 0.01 * latent[:, 0]
    correlations = torch.corrcoef(latent.T)
    wanted = 2 * correlations[[0, 0, 1], [1, 2, 2]].square().sum() / 3
    torch.testing.assert_close(decorrelation_loss(latent), wanted, atol=1e-5, rtol=1e-4)
    same = torch.stack([latent[:, 0], -2 * latent[:, 0]], dim=1).requires_grad_()
    assert decorrelation_loss(same).item() == pytest.approx(1, abs=1e-5)
    assert decorrelation_loss(latent[:, :1]).item() == pytest.approx(0, abs=1e-5)
    constant = torch.ones(4, 2, requires_grad=True)  # no spread: no correlation, and no gradient that is not finite
    decorrelation_loss(constant).backward()
    assert constant.grad.isfinite().all()


def test_loose_ends_loss_counts_slots_with_edges_on_one_side(codes):
    tight = CellCodes.of([cell for cell in codes.cells() if cell.strict], canonical=True)
    assert len(tight) > 20 and loose_ends_loss(logits_of(tight, sharpness=60.0)) == pytest.approx(0, abs=1e-6)
    loose = Cell.from_edges([(0, 1), (1, 2), (3, 7), (0, 4), (4, 7)], ["conv_3"] * 6)  # 2, and 3
    given = CellCodes.of([loose, tight[:1].cells()[0]], canonical=True)
    assert loose_ends_loss(logits_of(given, sharpness=60.0)).item() == pytest.approx(1)
    logits = logits_of(given, sharpness=1.0)
    by_hand = 0.0
    for row in logits.edges.sigmoid().tolist():
        p = dict(zip(EDGES, row, strict=True))
        for node in range(1, 7):
            none_in = math.prod(1 - p[i, node] for i in range(node))
            none_out = math.prod(1 - p[node, i] for i in range(node + 1, 8))
            by_hand += (1 - none_in) * none_out + none_in * (1 - none_out)
    assert loose_ends_loss(logits).item() == pytest.approx(by_hand / 2, rel=1e-4)


def test_cycle_loss_by_hand():
    q_again, q_asked = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 4.0]])
    again, asked = torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, 4.0]])
    assert cycle_loss(q_again, q_asked, again, asked, latent_weight=0.0).item() == pytest.approx((1 + 4) / 2)
    assert cycle_loss(q_again, q_asked, again, asked, latent_weight=2.0).item() == pytest.approx(5 / 2 + 2 * 9 / 2)


def test_a_gradient_goes_through_to_the_features_alone():
    features, weight = torch.randn(3, 2, generator=generator()).requires_grad_(), torch.ones(2, requires_grad=True)
    given = features.detach().requires_grad_()
    loss = (given**2 * weight).sum()
    carried = gradient_through(loss, given, features)
    assert carried == loss
    carried.backward()
    torch.testing.assert_close(features.grad, 2 * features.detach())
    assert weight.grad is None


def test_cycle_moves_the_decoder_alone():
    torch.manual_seed(0)  # in one of forty such models q of all cells is the same: its hidden units are off
    model, latent = GVAE(TINY), torch.randn(64, 4, generator=generator())
    loss = cycle(model, latent, model.decoder(latent))
    valid = [i for i, cell in enumerate(model.decode(latent)) if cell is not None]
    again = model.predict_zc(model.encode([cell for cell in model.decode(latent) if cell is not None]))
    torch.testing.assert_close(loss.detach(), (again - model.predict_zc(latent[valid])).square().mean())
    loss.backward()
    assert model.decoder.operations[-1].weight.grad.abs().sum() > 0
    assert all(
        p.grad is None for part in (model.encoder, model.predictor, model.decoder.edges) for p in part.parameters()
    )
    with torch.no_grad():
        model.decoder.edges[-1].bias[:] = -30.0  # no path
    assert cycle(model, latent, model.decoder(latent)) == 0


def test_cycle_compares_latents_in_their_units():
    torch.manual_seed(0)
    config = replace(TINY, triplet_dims=2, width=16.0)
    q_alone, both = GVAE(config), GVAE(replace(config, cycle_latent=3.0))
    both.load_state_dict(q_alone.state_dict())
    latent = torch.randn(64, 4, generator=generator()) * both.encoder.unit
    valid = [(i, cell) for i, cell in enumerate(both.decode(latent)) if cell is not None]
    again = both.encode([cell for _, cell in valid])
    off = (again - latent[[i for i, _ in valid]]) / torch.tensor([16.0, 16.0, 1.0, 1.0])
    gap = [cycle(model, latent, model.decoder(latent)).item() for model in (both, q_alone)]
    assert gap[0] - gap[1] == pytest.approx(3 * off.square().mean().item(), rel=1e-4)


def test_cycle_term_makes_random_latents_decode_to_what_q_says(cells):
    codes_of = [[OPERATIONS.index(cell.operations[node - 1]) for node in cell.live] for cell in cells]
    zc = torch.tensor([[sum(codes) / len(codes) / 4 - 3.4, 0, 0, 0] for codes in codes_of])  # of the operations alone
    sizes = {"hidden": 32, "latent_dim": 32, "decoder_hidden": 128, "layers": 2, "learning_rate": 5e-3}
    weights = {"triplet_weight": 30.0, "predictor_weight": 10.0, "margin": 0.3, "labelled_fraction": 1.0}
    apart = {}
    for cycle_weight in (0.0, 30.0):
        config = GVAEConfig(**sizes, **weights, cycle_weight=cycle_weight)
        model, _ = train(cells, cells, zc, config=config, steps=150, batch_size=64, device="cpu")
        latent, drawn = valid_draws(model, 200, seed=1)
        apart[cycle_weight] = (model.predict_zc(latent) - model.predict_zc(model.encode(drawn)))[:, 0].abs().mean()
    assert apart[30.0] < 0.7 * apart[0.0]


def test_width_is_a_unit_of_the_latent_and_nothing_else(cells, codes):
    zc = torch.randn(32, 4, generator=generator())
    weights = {"triplet_dims": 2, "margin": 1.0, "decorrelation_weight": 1.0, "loose_ends_weight": 1.0}
    plain, wide = (GVAE(replace(TINY, **weights, width=width)) for width in (1.0, 16.0))
    wide.load_state_dict(plain.state_dict())
    f, g = plain.encode(cells), wide.encode(cells)
    torch.testing.assert_close(g, f * torch.tensor([16.0, 16.0, 1.0, 1.0]))
    assert wide.decode(g) == plain.decode(f)
    torch.testing.assert_close(wide.predict_zc(g), plain.predict_zc(f))
    losses = [
        gvae_loss(model, codes, zc, kl_weight=0.1, regularised=True, generator=generator()).total
        for model in (plain, wide)
    ]
    torch.testing.assert_close(*losses)


def test_total_is_the_weighted_sum_and_naive_drops_both_terms_of_eq_5(codes):
    model = GVAE(GVAEConfig(hidden=8, latent_dim=4, decoder_hidden=8, triplet_weight=2.0, predictor_weight=3.0))
    options = {"kl_weight": 0.5, "generator": generator()}
    full = gvae_loss(model, codes, zc_of(16), regularised=True, **options)
    expected = full.reconstruction + 0.5 * full.kl + 2 * full.triplet + 3 * full.predictor
    torch.testing.assert_close(full.total, expected)
    assert full.triplet > 0 and full.predictor > 0
    naive = gvae_loss(model, codes, zc_of(16), regularised=False, **options)
    assert naive.triplet == 0 and naive.predictor == 0
    torch.testing.assert_close(naive.total, naive.reconstruction + 0.5 * naive.kl)


# ---- model and training


def test_the_papers_sizes_are_the_defaults():
    model = GVAE()
    assert [conv.out_channels for conv in model.encoder.convolutions()[0]] == [512] * 4  # Tab. 6
    assert [layer.out_features for layer in model.predictor if hasattr(layer, "out_features")] == [256, 4]
    assert model.encode([REFERENCE_CELL]).shape == (1, 256)


def test_a_layer_equals_a_loop_over_edges_and_the_sparse_convolution(codes):
    """What a node sums of successors, predecessors and itself, each with other weights and biases."""
    encoder, (adjacency, _) = GVAE(TINY).encoder, graph_view(codes[:3])
    along, against = (layers[0] for layers in encoder.convolutions())
    h = F.pad(torch.randn(3, 9, 8, generator=generator()), (0, 1), value=1.0)
    edges = [(n, a, b) for n, a, b in torch.nonzero(adjacency).tolist() if a != b]
    outward, inward = Counter((n, a) for n, a, _ in edges), Counter((n, b) for n, _, b in edges)
    weight = {(n, a, b): (outward[n, a] * inward[n, b]) ** -0.5 for n, a, b in edges}
    affine = lambda layer, state: layer.weight[:, :8] @ state[:8] + layer.weight[:, 8]  # noqa: E731
    expected = torch.stack([torch.stack([affine(along.lin_root, state) for state in graph]) for graph in h])
    for (n, a, b), w in weight.items():
        expected[n, a] += w * affine(along.lin_rel, h[n, b])
        expected[n, b] += w * affine(against.lin_rel, h[n, a])
    spread = propagation(adjacency)
    torch.testing.assert_close(along(h, spread) + against(h, spread.mT), expected)
    sparse = GraphConv(9, 8, bias=False)
    sparse.lin_rel, sparse.lin_root = along.lin_rel, along.lin_root
    index = torch.tensor([[9 * n + b for n, _, b in edges], [9 * n + a for n, a, _ in edges]])
    found = sparse(h.flatten(0, 1), index, torch.tensor(list(weight.values())))
    torch.testing.assert_close(along(h, spread), found.view(3, 9, 8))


def test_the_encoder_s_weights_stay_where_they_are_when_its_layers_are_built(cells):
    model = GVAE(TINY)
    names, parameters = list(model.state_dict()), list(model.parameters())
    copy = deepcopy(model)
    with torch.random.fork_rng(devices=[]):
        before = torch.get_rng_state()
        latent = model.encode(cells)
        assert torch.equal(before, torch.get_rng_state())
    assert list(model.state_dict()) == names
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert all(isinstance(layer, DenseGraphConv) for layers in model.encoder.convolutions() for layer in layers)
    for other in (copy, deepcopy(model), pickle.loads(pickle.dumps(model)), pickle.loads(pickle.dumps(GVAE(TINY)))):
        other.load_state_dict(model.state_dict())
        assert torch.equal(other.encode(cells), latent)
    view = [part.double() for part in graph_view(CellCodes.of(cells))]
    torch.testing.assert_close(model.double().encoder.of_view(*view)[0].float(), latent, atol=1e-5, rtol=1e-5)


LIGHT = """
import sys, torch
from graphnas_lib.gvae import GVAE, GVAEConfig
model = GVAE(GVAEConfig(hidden=8, latent_dim=4, decoder_hidden=8))
model.decode(torch.zeros(2, 4)), model.predict_zc(torch.zeros(2, 4)), model.state_dict()
heavy = {"torch_geometric", "pandas", "sklearn.cluster"} & set(sys.modules)
assert not heavy, heavy
"""


def test_who_only_decodes_imports_no_pytorch_geometric():
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", LIGHT], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("readout", ["both", "global"])
def test_encoder_sees_edges_and_operations(readout):
    model = GVAE(GVAEConfig(hidden=8, latent_dim=4, decoder_hidden=8, readout=readout))
    ops = ["conv_3", "conv_1", None, None, None, None]
    chain, wide = [(0, 1), (1, 2), (2, 7)], [(0, 1), (0, 2), (1, 7), (2, 7)]
    graphs = [Cell.from_edges(chain, ops), Cell.from_edges(wide, ops), Cell.from_edges(chain, ["conv_5", *ops[1:]])]
    latent = model.encode(graphs)
    assert (torch.cdist(latent, latent) + torch.eye(3)).min() > 1e-4


def test_one_layer_carries_operations_along_and_against_the_edges():
    """A node's state depends on its successor's operation and on its predecessor's."""
    model = GVAE(GVAEConfig(hidden=8, latent_dim=4, layers=1))
    states = []
    model.encoder.readout.register_forward_hook(lambda _, inputs, __: states.append(inputs[0].view(-1, 9, 8)))
    edges = [(0, 1), (1, 2), (2, 7)]
    for pair in (("conv_3", "conv_3"), ("conv_3", "conv_5"), ("conv_5", "conv_3")):
        model.encode([Cell.from_edges(edges, [*pair, None, None, None, None])])
    base, second_changed, first_changed = states
    assert not torch.allclose(base[0, 2], second_changed[0, 2])  # slot 1 reads its successor
    assert not torch.allclose(base[0, 3], first_changed[0, 3])  # slot 2 reads its predecessor
    assert torch.equal(base[0, 5], first_changed[0, 5])  # an unused slot reads neither


def test_encode_does_not_depend_on_how_a_cell_is_written():
    model = GVAE(TINY)
    loose = Cell.from_edges([(0, 3), (3, 7), (0, 5)], [None, None, "conv_3", None, "conv_1", None])
    assert torch.equal(model.encode([loose]), model.encode([loose.canonical()]))


def test_a_small_model_overfits_64_cells_exactly(cells, codes):
    config = GVAEConfig(hidden=32, latent_dim=32, decoder_hidden=128, layers=2, learning_rate=5e-3)
    model, log = train(cells, [], torch.zeros(0, 4), config=config, steps=200, batch_size=64, device="cpu")
    assert reconstruction_rate(model, cells) == 1.0
    assert [a == b for a, b in zip(model.decode(model.encode(cells)), cells, strict=True)] == [True] * 64
    assert element_accuracy(model, codes) == {"edges": 1.0, "operations": 1.0}
    assert log.rows[-1]["reconstruction"] < 2 < log.rows[0]["reconstruction"]
    assert reconstruction_rate(GVAE(config), cells) < 0.1  # the control: an untrained model
    torch.testing.assert_close(model.latent_mean, model.encode(codes).mean(dim=0))


def test_regularised_training_teaches_q_and_orders_the_latent_space(cells):
    """z is a function of the cell here; Spearman's rank correlation of L1(f) with d(z), and q, against the naive."""
    from scipy.stats import spearmanr

    live = torch.tensor([[len(c.live), len(c.edges), 0.0, 0.0] for c in cells])
    zc = (live - live.mean(dim=0)) / live.std(dim=0).clamp(min=1.0)
    config = GVAEConfig(hidden=16, latent_dim=8, decoder_hidden=32, layers=2, learning_rate=1e-2, labelled_fraction=1.0)
    upper = torch.triu_indices(64, 64, offset=1)
    agreement = {}
    for regularised in (True, False):
        options = {"steps": 200, "batch_size": 64, "device": "cpu", "regularised": regularised}
        model, _ = train(cells, cells, zc, config=config, **options)
        latent = model.encode(cells)
        near, d = (torch.cdist(u, u, p=1)[upper[0], upper[1]] for u in (latent, zc))
        agreement[regularised] = spearmanr(near, d).statistic
        if regularised:
            assert (model.predict_zc(latent) - zc).square().mean() < 0.1 * zc.square().mean()
        else:
            with pytest.raises(ValueError, match="this one is naive"):
                model.predict_zc(latent)
    assert agreement[True] > 0.7 and agreement[True] > agreement[False] + 0.1


def assert_equal_runs(one, other):
    (model, log), (model_2, log_2) = one, other
    assert log.rows == log_2.rows and log.steps == log_2.steps
    for name, value in model.state_dict().items():
        assert torch.equal(value, model_2.state_dict()[name]), name


OPTIONS = {"config": TINY, "batch_size": 8, "device": "cpu", "log_every": 7, "seed": 3}


class Killed(Exception):
    pass


class Dying(Checkpoint):
    """A checkpoint on disk that stops the process' loop right after its first save at step 20."""

    def due(self):
        self.asked = getattr(self, "asked", 0) + 1
        return self.asked == 20

    def save(self, state):
        super().save(state)
        raise Killed


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(cells, tmp_path):
    whole = train(cells, cells[:20], zc_of(20), steps=40, **OPTIONS)
    with pytest.raises(Killed):
        train(cells, cells[:20], zc_of(20), steps=40, checkpoint=Dying(tmp_path / "point"), **OPTIONS)
    assert Checkpoint(tmp_path / "point").load()["step"] == 20
    resumed = train(cells, cells[:20], zc_of(20), steps=40, checkpoint=Checkpoint(tmp_path / "point"), **OPTIONS)
    assert_equal_runs(whole, resumed)
    again = train(cells, cells[:20], zc_of(20), steps=40, checkpoint=Checkpoint(tmp_path / "point"), **OPTIONS)
    assert_equal_runs(whole, again)  # a finished run costs nothing


CHILD = """
import sys, torch
from graphnas_lib.store import Checkpoint
from graphnas_lib.gvae import GVAEConfig, train
from graphnas_lib.space import sample_cells
torch.set_num_threads(1)
config = GVAEConfig(hidden=8, latent_dim=4, decoder_hidden=8, layers=2)
cells = sample_cells(16, seed=0)
point = Checkpoint(sys.argv[1], every=0.0)
train(cells, [], torch.zeros(0, 4), config=config, steps=10**6, batch_size=8, device="cpu", checkpoint=point)
"""


@pytest.mark.slow
def test_a_checkpoint_survives_kill_9(tmp_path):
    """A process killed mid-run leaves a whole checkpoint behind, from which training goes on."""
    import time

    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path / "point")], env=environment)
    deadline = time.monotonic() + 120
    while not (tmp_path / "point").exists() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    child.kill()
    child.wait()
    done = Checkpoint(tmp_path / "point").load()["step"]
    assert done > 0
    config = GVAEConfig(hidden=8, latent_dim=4, decoder_hidden=8, layers=2)
    options = {"config": config, "batch_size": 8, "device": "cpu", "checkpoint": Checkpoint(tmp_path / "point")}
    _, log = train(sample_cells(16, seed=0), [], torch.zeros(0, 4), steps=done + 5, **options)
    assert log.steps == done + 5


def test_seeds_decide_everything_and_the_global_generator_is_left_alone(cells):
    first = train(cells, [], torch.zeros(0, 4), steps=5, **OPTIONS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        before = torch.get_rng_state()
        train(cells, [], torch.zeros(0, 4), steps=1, **OPTIONS)
        assert torch.equal(before, torch.get_rng_state())
    assert_equal_runs(first, train(cells, [], torch.zeros(0, 4), steps=5, **OPTIONS))
    other, _ = train(cells, [], torch.zeros(0, 4), steps=5, **{**OPTIONS, "seed": 4})
    assert not torch.equal(other.latent_mean, first[0].latent_mean)


def test_training_stops_when_the_loss_no_longer_falls(cells):
    config = GVAEConfig(hidden=8, latent_dim=4, decoder_hidden=8, layers=1, learning_rate=0.0, patience=2)
    _, log = train(cells, [], torch.zeros(0, 4), config=config, steps=4000, batch_size=8, device="cpu", log_every=8)
    assert 400 < log.steps < 900 and len(log.rows) == log.steps // 8


def test_kl_weight_warms_up_and_rows_average_the_steps_between(cells):
    _, log = train(cells, [], torch.zeros(0, 4), steps=40, **OPTIONS)
    assert [row["step"] for row in log.rows] == [7, 14, 21, 28, 35, 40]
    assert log.rows[0]["kl_weight"] == pytest.approx(0.005)
    _, fine = train(cells, [], torch.zeros(0, 4), steps=40, **{**OPTIONS, "log_every": 1})
    assert [row["kl_weight"] for row in fine.rows[:5]] == pytest.approx([0.00125, 0.0025, 0.00375, 0.005, 0.005])
    assert sum(row["total"] for row in fine.rows[35:]) / 5 == pytest.approx(log.rows[-1]["total"], rel=1e-5)


def test_training_refuses(cells):
    with pytest.raises(ValueError, match=r"must be \(3, 4\), a row a labelled cell; got \(2, 4\)"):
        train(cells, cells[:3], zc_of(2), steps=1, **OPTIONS)
    with pytest.raises(ValueError, match="at least one unlabelled cell"):
        train([], [], torch.zeros(0, 4), steps=1, **OPTIONS)
    with pytest.raises(FloatingPointError, match="must stay finite"):
        train(cells, cells, zc_of(64) * math.nan, steps=1, **OPTIONS)
    with pytest.raises(ValueError, match=r"one of \('both', 'global'\); got 'sum'"):
        GVAE(GVAEConfig(readout="sum"))
    with pytest.raises(ValueError, match=r"latent must be \(n, 4\); got \(3, 5\)"):
        GVAE(TINY).decode(torch.zeros(3, 5))


def test_validity_counts(cells):
    config = GVAEConfig(hidden=32, latent_dim=32, decoder_hidden=128, layers=2, learning_rate=5e-3)
    model, _ = train(cells[:8], [], torch.zeros(0, 4), config=config, steps=60, batch_size=16, device="cpu")
    latent = model.encode(cells[:8])
    found = validity(model, torch.cat([latent, latent]), {cell.key() for cell in cells[:2]})
    assert found == {"n": 16, "valid": 1.0, "unique": 0.5, "new": 0.75, "raw_strict": 1.0, "no_path": 0, "identity": 0}


def test_repair_joins_loose_ends_and_nothing_else(cells, codes):
    assert torch.equal(connect_loose_ends(codes).edges, codes.edges)  # canonical cells have none
    ops = [1, 2, 3, UNUSED, UNUSED, UNUSED]
    edges = torch.zeros(1, 28, dtype=torch.uint8)
    for edge in ((0, 1), (2, 3), (3, 4)):  # nothing leaves 1 and 3, nothing enters 2; slot 4 is unused
        edges[0, EDGES.index(edge)] = 1
    loose = CellCodes(edges, torch.tensor([ops], dtype=torch.uint8))
    wanted = Cell.from_edges([(0, 1), (1, 7), (0, 2), (2, 3), (3, 7)], [*(OPERATIONS[i] for i in ops[:3]), *[None] * 3])
    assert connect_loose_ends(loose).cells() == [wanted]
    assert [decoded(c)[0].status for c in (loose, connect_loose_ends(loose))] == ["no_path", "ok"]
    model, latent = GVAE(TINY), torch.randn(200, 4, generator=generator())
    plain, repaired = validity(model, latent), validity(model, latent, repair="loose_ends")
    assert repaired["valid"] >= plain["valid"] and repaired["raw_strict"] == repaired["valid"]
    with pytest.raises(ValueError, match="repair must be None or 'loose_ends'; got 'dvae'"):
        model.decode(latent, repair="dvae")


def test_valid_draws_are_valid():
    model = GVAE(TINY)
    with torch.no_grad():
        model.decoder.edges[-1].bias[:] = 3.0  # edges everywhere
    latent, cells = valid_draws(model, 6, seed=1)
    assert model.decode(latent) == cells and all(cell.is_valid for cell in cells)
    with torch.no_grad():
        model.decoder.edges[-1].bias[:] = -30.0
    with pytest.raises(RuntimeError, match="6 valid cells are needed of 120 random latents; got 0"):
        valid_draws(model, 6, seed=1)


def test_both_variants_through_the_artifacts(cells, tmp_path, monkeypatch):
    monkeypatch.setenv("GRAPHNAS_HOME", str(tmp_path))
    with pytest.raises(artifacts.MissingArtifactError, match="run gvae --scale smoke"):
        GVAE.load("smoke")
    full, naive = GVAE(TINY, zc_hash="abc"), GVAE(TINY, regularised=False, zc_hash="abc")
    files = {**full.to_files("gvae"), **naive.to_files("gvae_naive")}
    artifacts.save("gvae", files, scale="smoke", seed=0, seconds=0.0)
    for model, variant in ((full, "regularised"), (naive, "naive")):
        copy = GVAE.load("smoke", variant)
        assert torch.equal(copy.encode(cells), model.encode(cells))
        assert (copy.config, copy.zc_hash, copy.regularised) == (TINY, "abc", variant == "regularised")
    with pytest.raises(ValueError, match="variant must be one of"):
        GVAE.load("smoke", "plain")


def test_weights_in_half_precision_on_disk_are_single_when_loaded(cells, tmp_path, monkeypatch):
    monkeypatch.setenv("GRAPHNAS_HOME", str(tmp_path))
    model = GVAE(TINY, regularised=False)
    artifacts.save("gvae", model.to_files("gvae_naive", half=True), scale="smoke", seed=0, seconds=0.0)
    stored = artifacts.load("gvae", "gvae_naive.safetensors", "smoke")
    assert stored["encoder.along.0.lin_rel.weight"].dtype == torch.float16
    assert stored["latent_mean"].dtype == torch.float32  # statistics stay as they are
    copy = GVAE.load("smoke", "naive")
    assert {value.dtype for value in copy.state_dict().values()} == {torch.float32}
    torch.testing.assert_close(copy.encode(cells), model.encode(cells), atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("variant", ["regularised", "naive"])
def test_shipped_models_bring_held_out_cells_back(variant):
    """The released ones load in this code's names; the naive one ships in half precision."""
    held_out = corpus.split(corpus.load("lite"))[1][:1000]
    model = GVAE.load("lite", variant)
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}
    assert reconstruction_rate(model, held_out) == 1.0
