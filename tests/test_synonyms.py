"""The generator of cells: pools, redraws and fallbacks, Table 1's samplers, realisation, synonyms."""

import copy
import dataclasses
import warnings

import pytest
import torch

from graphnas_lib import ccnf, gvae
from graphnas_lib.ccnf import CCNF, CCNFConfig
from graphnas_lib.clusters import Families
from graphnas_lib.gvae import GVAE, GVAEConfig
from graphnas_lib.macro import HLArchitecture, HLTriple
from graphnas_lib.network import Costs
from graphnas_lib.space import REFERENCE_CELL, Cell, InvalidCellError, sample_cells
from graphnas_lib.store import artifacts
from graphnas_lib.synonyms import (
    CELLS_PER_POOL,
    MAX_DRAWS,
    MAX_ZC_GAP_STD,
    NEIGHBOURHOOD_SIGMAS,
    SIGMA_HALVINGS,
    CellSampler,
    Generated,
    ccnf_cells,
    checked_draws,
    label_costs,
    matched_neighbourhood,
    neighbourhood_cells,
    random_cells,
    realise,
    synonyms,
)

SMALL = {"hidden": 16, "latent_dim": 8, "layers": 2}


def made_up_zc(cells: list[Cell]) -> torch.Tensor:
    """Raw vectors that grow with the size of a cell, so that a condition means something."""
    ops = torch.tensor([float(sum(op is not None for op in cell.operations)) for cell in cells])
    edges = torch.tensor([float(len(cell.edges)) for cell in cells])
    kernels = torch.tensor([float(sum(int(op[-1]) for op in cell.operations if op and op != "skip")) for cell in cells])
    return torch.stack([500 + 30 * ops, 10 + edges, 1e4 * (1 + kernels), 1e7 * (1 + kernels + edges)], dim=1)


@pytest.fixture(scope="module")
def parts() -> tuple[GVAE, CCNF, Families, list[Cell]]:
    """A G-VAE and a flow of a few hundred steps, and families of made-up vectors; nobody changes them."""
    cells = sample_cells(300, seed=0)
    raw = made_up_zc(cells)
    families = Families.fit(raw, n_clusters=3, seed=0, cells=cells, n_init=1)
    standard, zc_hash = families.transform(raw), families.zc_transform.hash()
    config = GVAEConfig(**SMALL, decoder_hidden=32, learning_rate=5e-3, labelled_fraction=0.5)
    options = {"config": config, "steps": 400, "batch_size": 64, "seed": 0, "device": "cpu", "zc_hash": zc_hash}
    model, _ = gvae.train(cells, cells, standard, **options)
    mu, logvar = model.encode_distribution(cells)
    flow_config = CCNFConfig(latent_dim=8, hidden=32, layers=3, zc_hash=zc_hash)
    corpus = (mu, logvar, model.predict_zc(mu))
    flow, _ = ccnf.train(corpus, config=flow_config, steps=150, batch_size=128, learning_rate=1e-2, seed=0)
    flow.zc_low.fill_(-5.0)  # a corpus this small would make warnings of no interest here
    flow.zc_high.fill_(5.0)
    return model, flow, families, cells


@pytest.fixture
def sampler(parts) -> CellSampler:
    return CellSampler(*parts[:3])


@pytest.fixture
def barren(parts) -> CellSampler:
    """A sampler whose decoder draws no edge at all: no decode is a cell."""
    model = GVAE(GVAEConfig(**SMALL, decoder_hidden=32))
    with torch.no_grad():
        model.decoder.edges[-1].weight.zero_()
        model.decoder.edges[-1].bias.fill_(-5.0)
    return CellSampler(model, parts[1], parts[2])


def keys(cells) -> list[str | None]:
    return [cell.key() if cell is not None else None for cell in cells]


# ---- GenCell


def test_a_generated_cell_depends_on_seed_family_and_index_alone(parts):
    requests = [
        (seed, family, index)
        for seed in (0, 1)
        for family in range(3)
        for index in (0, 3, CELLS_PER_POOL - 1, CELLS_PER_POOL, 70)
    ]
    first, second = CellSampler(*parts[:3]), CellSampler(*parts[:3])
    second.generate_cells([2, 1, 0], seed=5)  # requests of another kind in between change nothing
    found = {r: first.generate_cell(r[1], index=r[2], seed=r[0]).key() for r in requests}
    reverse = {r: second.generate_cell(r[1], index=r[2], seed=r[0]).key() for r in reversed(requests)}
    assert found == reverse
    assert len(set(found.values())) > len(requests) / 2


def test_pools_are_filled_once_a_block(sampler):
    cells = [sampler.generate_cell(1, index=i) for i in range(2 * CELLS_PER_POOL)]
    again = [sampler.generate_cell(1, index=i) for i in range(2 * CELLS_PER_POOL)]
    assert keys(cells) == keys(again)
    assert sampler.requests == 2 * CELLS_PER_POOL <= sampler.attempts
    assert all(cell.is_valid for cell in cells) and len(set(keys(cells))) > CELLS_PER_POOL


def test_the_condition_decides_what_comes_out(sampler):
    """Predicted vectors of the flow's draws lie nearer to their own condition than to another draw's."""
    model, flow = sampler.gvae, sampler.ccnf
    zc = sampler.families.means.repeat(100, 1)  # (300, 4)
    predicted = model.predict_zc(flow.sample(zc, seed=1))
    own, other = (predicted - zc).abs().mean(), (predicted - zc.roll(1, dims=0)).abs().mean()
    assert own < 0.6 * other


def test_each_request_gets_its_own_family_s_centre(sampler):
    sampler.temperature = 0.0  # no noise: what the centre alone decodes to
    latent = sampler.ccnf.sample(sampler.families.means, noise=torch.zeros(3, 8))
    expected = keys(sampler.gvae.decode(latent))
    assert None not in expected and len(set(expected)) == 3
    assert keys(sampler.generate_cells([2, 0, 1], seed=0)) == [expected[2], expected[0], expected[1]]
    assert sampler.generate_cell(1, index=5).key() == expected[1]


def test_what_fails_is_drawn_again(parts):
    """An untrained decoder misses now and then; nobody sees it but the counters."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GVAE(GVAEConfig(**SMALL, decoder_hidden=32))
    sampler = CellSampler(model, parts[1], parts[2])
    raw = sampler.sample(torch.zeros(200, 4), seed=0, temperature=3.0)
    assert 0 < raw.cells.count(None) < 200 and raw.n_attempts == 200
    assert len(raw.valid) == 200 - raw.cells.count(None)
    sampler.temperature = 3.0
    cells = sampler.generate_cells([0, 1, 2] * 60, seed=0)
    assert all(cell.is_valid for cell in cells)
    assert sampler.attempts > sampler.requests == 180 and sampler.fallbacks == 0


def made_up_costs(cell: Cell) -> Costs:
    params, flops = made_up_zc([cell])[0, 2:].tolist()
    return Costs(int(params), 0, int(flops))


def test_cells_of_another_family_are_drawn_again(parts):
    """Sizes are exact, so a cell that the flow drew too small or too large for its family is seen."""
    sampler = CellSampler(*parts[:3], costs=made_up_costs)
    asked = [0, 1, 2] * 40

    def inside(cells):
        found = sampler.families.assign(sampler.known_zc(cells), standardised=True)
        return (found == torch.tensor(asked)).float().mean().item()

    once = sampler._decode(sampler.centres(asked), torch.Generator().manual_seed(0), 1.0).cells
    assert None not in once and inside(once) < 0.95
    cells = sampler.generate_cells(asked, seed=0)
    assert inside(cells) > 0.97 and sampler.fallbacks == 0
    real = sampler.families.transform(made_up_zc(cells))
    torch.testing.assert_close(sampler.known_zc(cells)[:, 2:], real[:, 2:], atol=1e-3, rtol=0)
    assert not torch.allclose(sampler.known_zc(cells)[:, 0], real[:, 0], atol=1e-3)  # no network was run


def test_sizes_are_those_of_the_labels(home_of_labels):
    reference = label_costs("smoke")(REFERENCE_CELL)
    assert (reference.params, reference.flops) == (1_148_474, 326_665_492)
    assert label_costs("lite") is None


@pytest.fixture
def home_of_labels(tmp_path, monkeypatch):
    monkeypatch.setenv("GRAPHNAS_HOME", str(tmp_path))
    facts = {"resolution": 32, "classes": 10}
    artifacts.save("labels", {"labels_card.md": ""}, scale="smoke", seed=0, seconds=0.0, config=facts)


def test_at_last_the_family_s_medoid_stands_in_and_is_counted(barren):
    cells = barren.generate_cells([2, 0, 2], seed=0)
    medoids = [Cell.from_dict(cell).key() for cell in barren.families.medoid_cells]
    assert keys(cells) == [medoids[2], medoids[0], medoids[2]]
    assert (barren.requests, barren.attempts, barren.fallbacks) == (3, 3 * MAX_DRAWS, 3)
    assert barren.generate_cell(1, index=0).key() == medoids[1]
    assert barren.fallbacks == 3 + CELLS_PER_POOL


def test_without_medoids_a_barren_family_is_an_error(barren):
    barren.families = dataclasses.replace(barren.families, medoid_cells=())
    with pytest.raises(ValueError, match=f"No valid cell of family 1 in {MAX_DRAWS} tries"):
        barren.generate_cell(1, index=0)


def test_unknown_families_and_indices_are_refused(sampler):
    with pytest.raises(ValueError, match="index from 0 to 2; got 3"):
        sampler.generate_cell(3, index=0)
    with pytest.raises(ValueError, match="index from 0 to 2; got -1"):
        sampler.generate_cells([0, -1], seed=0)
    with pytest.raises(ValueError, match="index must be 0 or above; got -2"):
        sampler.generate_cell(0, index=-2)


# ---- Table 1


def test_table_1_s_samplers_decode_once_a_request_and_keep_failures(barren, parts):
    reference = parts[3][0]
    for generated in (
        random_cells(barren, 7, seed=0),
        neighbourhood_cells(barren, reference, 7, seed=0, sigma=0.1),
        ccnf_cells(barren, torch.zeros(4), 7, seed=0),
    ):
        assert generated.cells == [None] * 7 and generated.n_attempts == 7 and generated.valid == []


def test_random_cells_follow_the_training_latents(sampler, parts):
    narrow = copy.deepcopy(sampler)
    gvae_ = narrow.gvae
    centres = gvae_.encode(parts[3][:6])
    given = random_cells(sampler, 20, seed=0)
    assert keys(given.cells) == keys(random_cells(sampler, 20, seed=0).cells)
    assert keys(given.cells) != keys(random_cells(sampler, 20, seed=1).cells)
    gvae_.latent_std.zero_()
    for centre in centres:  # without spread, the decode of the mean
        gvae_.latent_mean.copy_(centre)
        assert keys(random_cells(narrow, 2, seed=0).cells) == keys(gvae_.decode(centre.expand(2, 8)))
    assert len(set(keys(gvae_.decode(centres)))) > 1


def test_the_neighbourhood_widens_with_sigma(sampler, parts):
    reference = parts[3][0]
    code = sampler.gvae.decode(sampler.gvae.encode([reference]))
    assert keys(neighbourhood_cells(sampler, reference, 5, seed=0, sigma=0.0).cells) == keys(code) * 5
    near = [
        len(set(keys(neighbourhood_cells(sampler, reference, 60, seed=0, sigma=s).cells))) for s in (0.02, 0.2, 2.0)
    ]
    assert near[0] < near[1] < near[2]


def test_a_neighbourhood_is_as_wide_as_the_latents_in_each_dimension(parts):
    gvae_, flow, families, cells = parts
    model = copy.deepcopy(gvae_)
    model.latent_std.zero_()
    still = neighbourhood_cells(CellSampler(model, flow, families), cells[0], 5, seed=0, sigma=2.0)
    assert keys(still.cells) == keys(model.decode(model.encode(cells[:1]))) * 5


@pytest.mark.parametrize("checked", [False, True])
def test_the_matched_neighbourhood_is_the_smallest_that_is_as_distinct(parts, checked):
    model, flow, families, cells = parts
    sampler = CellSampler(model, flow, families, costs=made_up_costs)
    zc = sampler.known_zc(cells[:1])[0]
    near = zc if checked else None
    like = ccnf_cells(sampler, zc, 20, seed=0, checked=checked).valid[:10]
    wanted = len(set(keys(like)))
    found, sigma = matched_neighbourhood(sampler, cells[0], like, 20, seed=0, near=near)

    def distinct(width):
        drawn = neighbourhood_cells(sampler, cells[0], 20, seed=0, sigma=width, near=near)
        return len(set(keys(drawn.valid[:10])))

    assert wanted > 3 and len(set(keys(found.valid[:10]))) >= wanted
    step = next(
        high - low
        for low, high in zip((0.0, *NEIGHBOURHOOD_SIGMAS), NEIGHBOURHOOD_SIGMAS, strict=False)
        if sigma <= high
    )
    assert distinct(sigma) >= wanted > distinct(sigma - step / 2**SIGMA_HALVINGS)
    assert keys(found.cells) == keys(neighbourhood_cells(sampler, cells[0], 20, seed=0, sigma=sigma, near=near).cells)


def test_ccnf_cells_narrow_with_the_temperature(sampler):
    zc = sampler.families.means[1]
    varied = [len(set(keys(ccnf_cells(sampler, zc, 60, seed=0, temperature=t).cells))) for t in (0.0, 0.2, 1.0)]
    assert varied[0] == 1 < varied[1] < varied[2]
    assert keys(ccnf_cells(sampler, zc, 9, seed=2).cells) == keys(ccnf_cells(sampler, zc, 9, seed=2).cells)


def test_checked_draws_have_the_vector_that_was_asked_for(parts):
    """As far as is known without a network: exact sizes, q for the rest; what a neighbourhood keeps as well."""
    model, flow, families, cells = parts
    sampler = CellSampler(model, flow, families, costs=made_up_costs)
    zc = sampler.known_zc(cells[:1])[0]

    def off(found):
        return (sampler.known_zc(found.valid) - zc).abs().amax(dim=1)

    drawn, checked = (ccnf_cells(sampler, zc, 40, seed=0, checked=kept) for kept in (False, True))
    near, kept = (neighbourhood_cells(sampler, cells[0], 40, seed=0, sigma=1.0, near=z) for z in (None, zc))
    for plain, chosen in ((drawn, checked), (near, kept)):
        assert len(chosen.cells) == 40 < chosen.n_attempts <= 40 * MAX_DRAWS
        assert (off(chosen) <= MAX_ZC_GAP_STD).float().mean() > 0.6 > (off(plain) <= MAX_ZC_GAP_STD).float().mean()
        assert off(chosen).mean() < 0.5 * off(plain).mean()


def test_a_request_keeps_its_first_hit_else_the_nearest_miss(parts):
    cells = parts[3]
    tries = iter([(cells[0], None, cells[1]), (cells[2], None), (cells[3], None)])
    worth = {cells[0].key(): 0.5, cells[1].key(): 0.0, cells[2].key(): 0.4, cells[3].key(): 0.9}
    asked = []

    def draw(rows):
        asked.append(rows)
        drawn = next(tries, (None,) * len(rows))
        return Generated(list(drawn), len(drawn))

    found = checked_draws(3, draw, lambda drawn, rows: [worth[cell.key()] for cell in drawn])
    assert keys(found.cells) == [cells[2].key(), None, cells[1].key()]
    assert asked == [[0, 1, 2], *[[0, 1]] * (MAX_DRAWS - 1)] and found.n_attempts == 3 + 2 * (MAX_DRAWS - 1)


# ---- architectures and synonyms


def test_realise_keeps_the_macro_design_and_fills_in_cells(sampler):
    rows = (HLTriple(2, 16, 1), HLTriple(0, 32, 2), HLTriple(2, 64, 1))
    high = HLArchitecture(rows, head_channels=128, stem_stride=2)
    found = realise(high, sampler, seed=3)
    assert [(t.channels, t.stride) for t in found.triples] == [(16, 1), (32, 2), (64, 1)]
    assert (found.head_channels, found.stem_stride) == (128, 2)
    assert all(t.cell.is_valid for t in found.triples)
    assert found.triples[0].cell != found.triples[2].cell  # one family, two draws
    assert found == realise(high, sampler, seed=3) != realise(high, sampler, seed=4)
    with pytest.raises(ValueError, match="index from 0 to 2; got 7"):
        realise(HLArchitecture((HLTriple(7, 16, 1),)), sampler, seed=0)


def test_synonyms_are_distinct_valid_and_not_the_cell_itself(sampler, parts):
    for cell in parts[3][:3]:
        found = synonyms(cell, n=5, seed=0, sampler=sampler)
        assert len(found) == len(set(keys(found))) == 5
        assert cell.key() not in keys(found) and all(c.is_valid for c in found)
        assert keys(found) == keys(synonyms(cell, n=5, seed=0, sampler=sampler))
        assert keys(found) != keys(synonyms(cell, n=5, seed=1, sampler=sampler))


def test_a_nats_string_has_the_synonyms_of_its_cell(sampler):
    text = "|skip_connect~0|+|none~0|nor_conv_3x3~1|+|avg_pool_3x3~0|none~1|nor_conv_1x1~2|"
    found = synonyms(text, n=4, seed=0, sampler=sampler)
    assert len(found) == 4 and keys(found) == keys(synonyms(Cell.from_nats(text), n=4, seed=0, sampler=sampler))
    with pytest.raises(InvalidCellError, match="must look like"):
        synonyms("|conv~0|", n=4, sampler=sampler)


def test_a_cell_is_no_synonym_of_its_own(sampler, parts):
    """Without noise the flow maps some cells to themselves; their list of synonyms is empty."""
    cells = parts[3]
    for _ in range(4):
        zc = sampler.gvae.predict_zc(sampler.gvae.encode(cells))
        images = sampler.gvae.decode(sampler.ccnf.sample(zc, noise=torch.zeros(len(cells), 8)))
        fixed = [cell for cell, image in zip(cells, images, strict=True) if image is not None and image == cell]
        cells = list({image.key(): image for image in images if image is not None}.values())
    with pytest.warns(UserWarning, match="they gave 0"):
        assert synonyms(fixed[0], n=1, sampler=sampler, temperature=0.0) == []


def test_too_few_synonyms_are_said_to_be_so(sampler, parts):
    with pytest.warns(
        UserWarning, match="80 cells must give 5 distinct synonyms; they gave [01]\\. Raise the temperature"
    ):
        assert len(synonyms(parts[3][0], n=5, sampler=sampler, temperature=0.0)) <= 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert synonyms(parts[3][0], n=0, sampler=sampler) == []


def test_a_condition_beyond_the_labels_is_answered_in_raw_units(parts):
    model, flow, families, cells = parts
    narrow = copy.deepcopy(flow)
    narrow.zc_low.fill_(-1.0)
    narrow.zc_high.fill_(1.0)
    low, high = (families.zc_transform.inverse(torch.full((4,), end))[2].item() for end in (-1.0, 1.0))
    asked = torch.tensor([[0.0, 0.0, 2.0, 0.0]])
    came = families.zc_transform.inverse(asked[0])[2].item()
    with pytest.warns(UserWarning) as caught:
        CellSampler(model, narrow, families).sample(asked, seed=0)
    assert [str(w.message).split(". ")[0] for w in caught] == [
        f"Condition params must lie in the trained range [{low:.4g}, {high:.4g}]; got [{came:.4g}, {came:.4g}]"
    ]


def test_a_cell_without_a_path_has_no_synonyms(sampler):
    with pytest.raises(InvalidCellError):
        synonyms(Cell.from_edges([(0, 1)], ["conv_3"] + [None] * 5), n=2, sampler=sampler)


# ---- parts that fit together


def test_parts_of_different_transforms_or_sizes_are_refused(parts):
    model, flow, families, _ = parts
    other = CCNF(dataclasses.replace(flow.config, zc_hash="another"))
    with pytest.raises(ValueError, match="one transform of z; theirs are .*'CCNF': 'another'"):
        CellSampler(model, other, families)
    small = CCNF(dataclasses.replace(flow.config, latent_dim=6))
    with pytest.raises(ValueError, match="share the latent size; got 8 and 6"):
        CellSampler(model, small, families)


def test_a_sampler_comes_back_from_its_artifacts(parts, tmp_path, monkeypatch):
    monkeypatch.setenv("GRAPHNAS_HOME", str(tmp_path))
    with pytest.raises(artifacts.MissingArtifactError, match="stage 'gvae'"):
        CellSampler.load("smoke")
    model, flow, families, cells = parts
    stages = {"gvae": model.to_files(), "ccnf": flow.to_files(), "families": {"families.json": families.to_dict()}}
    for stage, files in stages.items():
        artifacts.save(stage, files, scale="smoke", seed=0, seconds=0.0)
    loaded, here = CellSampler.load("smoke"), CellSampler(*parts[:3])
    assert loaded.generate_cell(1, index=2) == here.generate_cell(1, index=2)
    assert keys(synonyms(cells[0], n=3, scale="smoke")) == keys(synonyms(cells[0], n=3, sampler=here))
