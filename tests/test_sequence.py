"""The sequence generator: tokens, grammar, training and its resumption, artifacts; on a model of 0.1M weights."""

import json
import math
import warnings
from dataclasses import asdict, replace

import pytest
import torch

from graphnas_lib.macro import CHANNELS, HLArchitecture, HLTriple
from graphnas_lib.paper import SCALES
from graphnas_lib.sequence import CONDITIONS, SequenceConfig, SequenceGenerator
from graphnas_lib.sequence import generator as sequence
from graphnas_lib.sequence.vocabulary import (
    BOS,
    DROP,
    EOS,
    MAX_NEW,
    PAD,
    PREFIX,
    GrammarMask,
    IllegalSequenceError,
    Vocabulary,
    drop_conditions,
)
from graphnas_lib.stages.sequence import settings
from graphnas_lib.store import Checkpoint, artifacts

CONFIG = SequenceConfig(n_families=6, bins=16, hidden=32, layers=2, heads=4, batch_size=8, lr=3e-3, dropout=0.1)


def random_design(generator: torch.Generator) -> HLArchitecture:
    n = 1 + torch.randint(20, (), generator=generator).item()
    families = torch.randint(6, (n,), generator=generator).tolist()
    channels = torch.randint(len(CHANNELS), (n,), generator=generator).tolist()
    return HLArchitecture(
        tuple(HLTriple(k, CHANNELS[c], 2 if i < 3 else 1) for i, (k, c) in enumerate(zip(families, channels)))
    )


def history(n: int = 60) -> tuple[list[HLArchitecture], torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    designs = [random_design(generator) for _ in range(n)]
    conditions = 10 ** (4 + 3 * torch.rand(n, 4, generator=generator, dtype=torch.float64))
    return designs, conditions


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.fit(history()[1], n_families=6, bins=16)


@pytest.fixture(scope="module")
def untrained(vocabulary) -> SequenceGenerator:
    return SequenceGenerator(CONFIG, vocabulary)


# ---- vocabulary


def test_vocabulary_blocks_do_not_overlap_and_have_the_stated_size():
    wide = Vocabulary(32, 128, (0.0,) * 4, (1.0,) * 4)
    assert len(wide) == 4 + 4 * 128 + 32 + 128 + 2 == 678
    assert len(Vocabulary(32, 64, (0.0,) * 4, (1.0,) * 4)) == 422
    assert wide.families == 516 and wide.channels == 548 and wide.strides == 676


def test_designs_survive_the_vocabulary(vocabulary):
    for design in history()[0]:
        tokens = vocabulary.encode(design)
        assert len(tokens) == 3 * len(design.triples) + 1 and tokens[-1] == EOS
        assert vocabulary.decode(tokens) == design
        assert vocabulary.decode([*tokens, PAD, PAD]) == design
    assert Vocabulary.from_dict(json.loads(json.dumps(asdict(vocabulary)))) == vocabulary


def test_illegal_tokens_are_named(vocabulary):
    tokens = vocabulary.encode(history()[0][0])
    for wrong in ([EOS], tokens[:-1], tokens[:2] + [EOS], tokens[1:], [BOS, *tokens], []):
        with pytest.raises(IllegalSequenceError):
            vocabulary.decode(wrong)
    with pytest.raises(IllegalSequenceError, match="Token 1 of a design must be channels"):
        vocabulary.decode([tokens[0], tokens[0]])
    one = tokens[:3]
    assert len(vocabulary.decode(one * 20 + [EOS]).triples) == 20
    with pytest.raises(IllegalSequenceError):
        vocabulary.decode(one * 21 + [EOS])
    with pytest.raises(ValueError, match="0 to 5"):
        vocabulary.encode(HLArchitecture((HLTriple(6, 8, 1),)))


def test_conditions_fall_into_their_bins(vocabulary):
    conditions = history()[1]
    tokens = vocabulary.condition_tokens(conditions)
    start = 4 + 16 * torch.arange(4)
    assert bool(((tokens >= start) & (tokens < start + 16)).all())
    order = conditions[:, 0].argsort()
    assert bool((tokens[order, 0].diff() >= 0).all()) and len(tokens[:, 0].unique()) > 8
    extreme = torch.tensor([[1e-9, 1e30, math.nan, 1e30]])
    assert vocabulary.condition_tokens(extreme).tolist() == [[4, 4 + 31, DROP, 4 + 63]]  # ends are open
    low, high = vocabulary.range("params")
    middle = torch.tensor([[math.sqrt(low * high) * 1.0001, math.nan, math.nan, math.nan]])
    assert vocabulary.condition_tokens(middle)[0, 0] == 4 + 8
    assert vocabulary.condition_tokens(middle, jitter=-0.5)[0, 0] == 4 + 7


def test_a_request_gets_the_nearest_condition_that_the_history_has():
    """Bins between the budgets of a history were never learnt."""
    known = torch.tensor([[1e5, 1e7, 100.0, math.nan], [1e6, 2e8, 120.0, math.nan]], dtype=torch.float64)
    fitted = Vocabulary.fit(known, n_families=2, bins=32)
    fitted = Vocabulary.from_dict(json.loads(json.dumps(asdict(fitted))))
    (first, second), nan = fitted.condition_tokens(known), math.nan
    asked = torch.tensor([[2e5, nan, nan, nan], [5e5, 9e7, 130.0, 2e3], [nan, 1e6, nan, nan]], dtype=torch.float64)
    assert fitted.prefix(asked)[:, 1:].tolist() == [
        [first[0], DROP, DROP, DROP],
        [second[0], second[1], second[2], DROP],
        [DROP, first[1], DROP, DROP],
    ]
    tokens = fitted.condition_tokens(asked)
    assert fitted.prefix(asked, jitter=torch.zeros(3, 4))[:, 1:].equal(tokens) and tokens[0, 0] != first[0]


def test_conditions_are_checked(vocabulary):
    with pytest.raises(ValueError, match=r"\(n, 4\)"):
        vocabulary.condition_tokens(torch.ones(3, 3))
    with pytest.raises(ValueError, match="positive"):
        vocabulary.condition_tokens(torch.tensor([[0.0, 1.0, 1.0, 1.0]]))
    unknown = torch.ones(5, 4) * torch.arange(1, 6)[:, None]
    unknown[:, 2] = math.nan  # a condition that was never recorded is always dropped
    fitted = Vocabulary.fit(unknown, n_families=2, bins=4)
    assert bool((fitted.condition_tokens(unknown)[:, 2] == DROP).all())


def test_dropping_covers_the_sets_that_are_requested():
    kept = ~drop_conditions(torch.ones(20_000, 4), rate=0.3, generator=torch.Generator().manual_seed(0)).isnan()
    share = {
        given: (kept == torch.tensor(given, dtype=torch.bool)).all(dim=1).float().mean().item()
        for given in ((1, 0, 0, 0), (0, 1, 0, 0), (1, 1, 0, 0), (0, 0, 0, 0), (1, 1, 1, 1))
    }
    chance = 0.65 * 0.3**3 * 0.7
    assert share[1, 0, 0, 0] == pytest.approx(0.1 + chance, abs=0.01)
    assert share[0, 1, 0, 0] == pytest.approx(0.1 + chance, abs=0.01)
    assert share[1, 1, 0, 0] == pytest.approx(0.1 + 0.65 * 0.3**2 * 0.7**2, abs=0.01)
    assert share[0, 0, 0, 0] == pytest.approx(0.05 + 0.65 * 0.3**4, abs=0.01)
    assert share[1, 1, 1, 1] == pytest.approx(0.65 * 0.7**4, abs=0.01)


# ---- grammar


def random_decoding(vocabulary, n: int, max_strides: int, eos_bonus: float = 0.0) -> list[list[int]]:
    """What `generate` does with a model whose logits are noise: sample, and pad what has ended."""
    generator = torch.Generator().manual_seed(1)
    mask = GrammarMask(vocabulary, max_strides=max_strides)
    ids = torch.full((n, PREFIX), DROP)
    ended = torch.zeros(n, dtype=torch.bool)
    for _ in range(MAX_NEW):
        scores = torch.randn(n, len(vocabulary), generator=generator)
        scores[:, EOS] += eos_bonus
        legal = mask(ids, scores)
        assert not bool(legal.isnan().any()) and bool(legal.isfinite().any(dim=1).all())
        following = legal.argmax(dim=1).masked_fill(ended, PAD)
        ended |= following == EOS
        ids = torch.cat([ids, following[:, None]], dim=1)
    assert bool(ended.all())
    return ids[:, PREFIX:].tolist()


@pytest.mark.parametrize(("max_strides", "eos_bonus"), [(3, 0.0), (0, 2.0), (20, 9.0), (3, -99.0)])
def test_ten_thousand_masked_decodes_are_legal(vocabulary, max_strides, eos_bonus):
    rows = random_decoding(vocabulary, 2_500, max_strides, eos_bonus)
    designs = [vocabulary.decode(row) for row in rows]  # raises on the first illegal one
    assert max(sum(t.stride == 2 for t in d.triples) for d in designs) <= max_strides
    lengths = {len(d.triples) for d in designs}
    assert min(lengths) >= 1 and max(lengths) <= 20
    if eos_bonus == 9.0:
        assert 1 in lengths  # EOS wants to come first and may not
    if eos_bonus == -99.0:
        assert lengths == {20}  # EOS never wants to come and must
        assert {sum(t.stride == 2 for t in d.triples) for d in designs} == {3}


def test_eos_is_illegal_first_and_inside_a_cell(vocabulary):
    mask, ids = GrammarMask(vocabulary), torch.full((1, PREFIX), DROP)
    scores = torch.zeros(1, len(vocabulary))
    cell = torch.tensor([vocabulary.encode(HLArchitecture((HLTriple(0, 8, 1),)))[:3]])
    legal = []
    for _ in range(2):
        for step in range(3):
            legal.append(mask(ids, scores)[0, EOS].isfinite().item())
            ids = torch.cat([ids, cell[:, step : step + 1]], dim=1)
    assert legal == [False, False, False, True, False, False]
    full = torch.cat([torch.full((1, PREFIX), DROP), cell.repeat(1, 20)], dim=1)
    assert mask(full, scores)[0].isfinite().nonzero().flatten().tolist() == [EOS]


# ---- decoding with the model


def test_greedy_decoding_is_deterministic_and_legal(untrained):
    first, second = untrained.generate(params=1e5), untrained.generate(params=1e5)
    assert first == second and 1 <= len(first.triples) <= 20
    beams = untrained.generate(flops=1e5, n=3)
    assert len(beams) == 3 and len(set(beams)) == 3


def test_sampling_follows_its_seed_and_leaves_the_global_generator_alone(untrained):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    one, two, other = (untrained.generate(params=1e5, n=8, seed=seed) for seed in (1, 1, 2))
    assert one == two != other and len(set(one)) > 4
    assert torch.equal(torch.get_rng_state(), before)
    few = untrained.generate(params=1e5, n=8, seed=1, max_strides=1)
    assert all(sum(t.stride == 2 for t in design.triples) <= 1 for design in few)


def test_unmasked_decoding_reports_illegal_sequences_as_none(untrained):
    assert untrained.generate(params=1e5, n=6, seed=0, masked=False) == [None] * 6
    assert untrained.generate(params=1e5, seed=0, masked=False) is None


def test_requests_out_of_range_warn(untrained):
    with pytest.warns(UserWarning, match="knows params from"):
        untrained.generate(params=1e12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        untrained.generate(params=1e5)
    with pytest.raises(ValueError, match="positive"):
        untrained.generate(params=-1.0)


def test_a_condition_that_the_history_lacked_is_refused(untrained, monkeypatch):
    seen = ((8, 9), (40, 41), (70,), (DROP,))
    monkeypatch.setattr(untrained, "vocabulary", replace(untrained.vocabulary, seen=seen))
    with pytest.raises(ValueError, match="learnt from a history without snip_ssnr; got 5"):
        untrained.generate(params=1e5, snip_ssnr=5.0)


# ---- training


def test_loss_is_the_mean_over_triples_and_eos_alone(vocabulary):
    generator = torch.Generator().manual_seed(0)
    ids = torch.tensor([[BOS, DROP, DROP, DROP, DROP, 70, 80, 203, EOS, PAD, PAD]])
    logits = torch.randn(1, 11, len(vocabulary), generator=generator)
    expected = -sum(logits[0, i - 1].log_softmax(0)[ids[0, i]] for i in (5, 6, 7, 8)) / 4
    assert sequence.sequence_loss(logits, ids).item() == pytest.approx(expected.item(), rel=1e-5)


def test_loss_without_any_label_is_zero_and_not_nan(vocabulary):
    ids = torch.tensor([[BOS, DROP, DROP, DROP, DROP, PAD, PAD]])
    logits = torch.randn(1, 7, len(vocabulary), requires_grad=True)
    loss = sequence.sequence_loss(logits, ids)
    loss.backward()
    assert loss.item() == 0.0 and not bool(logits.grad.isnan().any())


def test_training_with_every_condition_dropped_stays_finite():
    designs, conditions = history(12)
    config = SequenceConfig(**{**vars(CONFIG), "drop_rate": 1.0})
    _, log = sequence.train(designs, conditions * math.nan, config=config, steps=6, seed=0, log_every=1)
    assert all(math.isfinite(row["loss"]) for row in log.rows) and len(log.rows) == 6


def test_training_learns_what_the_condition_asks():
    small, large = HLArchitecture((HLTriple(0, 8, 1),)), HLArchitecture((HLTriple(5, 1024, 2),) * 2)
    conditions = torch.tensor([[1e4, 1e6, 100.0, 1e3], [1e6, 1e8, 200.0, 1e5]], dtype=torch.float64)
    config = SequenceConfig(**{**vars(CONFIG), "dropout": 0.0, "lr": 1e-2, "drop_rate": 0.0})
    generator, log = sequence.train(
        [small, large], conditions, config=config, steps=120, seed=0, batch_size=16, log_every=10
    )
    assert generator.generate(params=1e4) == small and generator.generate(params=1e6) == large
    assert generator.generate(flops=1e6) == small and generator.generate(flops=1e8) == large
    assert log.rows[-1]["loss"] < 0.2 * log.rows[0]["loss"]


class Killed(Exception):
    """Stands for the kill."""


class DyingCheckpoint(Checkpoint):
    """Saves every step and dies after some."""

    def __init__(self, path, saves: int):
        super().__init__(path, every=0.0)
        self.saves = saves

    def save(self, state):
        super().save(state)
        self.saves -= 1
        if not self.saves:
            raise Killed


def test_resumed_training_equals_an_uninterrupted_one(tmp_path):
    designs, conditions = history(20)
    options = {"config": CONFIG, "steps": 7, "seed": 3, "log_every": 2}
    whole, log = sequence.train(designs, conditions, **options)
    with pytest.raises(Killed):
        sequence.train(designs, conditions, checkpoint=DyingCheckpoint(tmp_path / "sg.safetensors", 3), **options)
    resumed, again = sequence.train(
        designs, conditions, checkpoint=Checkpoint(tmp_path / "sg.safetensors", every=1e9), **options
    )
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name
    assert log.rows == again.rows and log.steps == again.steps == 7
    other, _ = sequence.train(designs, conditions, **{**options, "seed": 4})
    assert not torch.equal(other.model.lm_head.weight, whole.model.lm_head.weight)


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_rows_are_drawn_by_their_weights(vocabulary, batch_size):
    """At batches above 1 they are those of torch.multinomial, so that a seed keeps its generator."""
    n, generator = 20_000, torch.Generator()
    weights = torch.rand(n, generator=generator.manual_seed(0)) ** 4
    weights[::7] = 0
    designs, conditions = [HLArchitecture((HLTriple(0, 8, 1),))] * n, torch.rand(n, 4, dtype=torch.float64)
    batches = sequence._Batches(vocabulary, designs, conditions, weights, CONFIG, batch_size, 0)
    drawn = torch.stack([batches.rows(generator.manual_seed(seed)) for seed in range(500)])
    plain = [torch.multinomial(weights, batch_size, True, generator=generator.manual_seed(seed)) for seed in range(500)]
    assert batch_size == 1 or torch.equal(drawn, torch.stack(plain))
    assert (weights[drawn] > 0).all()
    assert weights[drawn].mean().item() == pytest.approx((weights**2).sum().item() / weights.sum().item(), rel=0.1)


def test_training_leaves_the_global_generator_alone():
    torch.manual_seed(11)
    before = torch.get_rng_state()
    sequence.train(*history(8), config=CONFIG, steps=2, seed=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_rates_and_refusals():
    cosine = SequenceConfig.small(warmup=10)
    rates = [sequence._rate(cosine, step, 100) for step in (0, 9, 10, 55, 99)]
    assert rates[0] == pytest.approx(5e-5) and rates[1] == rates[2] == 5e-4
    assert rates[3] == pytest.approx(2.5e-4) and rates[4] < 1e-6
    assert sequence._rate(SequenceConfig(), 10**6, 10**7) == 1e-3  # paper: constant
    with pytest.raises(ValueError, match="schedule"):
        SequenceConfig(schedule="step")
    with pytest.raises(ValueError, match="multiple of heads"):
        SequenceConfig(hidden=100, heads=3)
    with pytest.raises(ValueError, match="its conditions"):
        sequence.train([], torch.ones(0, 4), config=CONFIG, steps=1, seed=0)


def test_paper_sizes_are_gpt_neo_125m():
    config = SequenceConfig()
    assert (config.hidden, config.layers, config.heads) == (768, 12, 12)
    blocks = 12 * 768**2 * config.layers  # attention 4 d^2, feed-forward 8 d^2
    assert blocks == pytest.approx(85e6, rel=0.01)


# ---- artifacts and pretrained weights


@pytest.mark.parametrize("half", [False, True])
def test_artifacts_load_what_was_saved(tmp_path, monkeypatch, untrained, half):
    monkeypatch.setenv("GRAPHNAS_HOME", str(tmp_path))
    artifacts.save("sequence", untrained.to_files(half=half), scale="smoke", seed=0, seconds=0.0)
    loaded = SequenceGenerator.load("smoke")
    assert loaded.config == untrained.config and loaded.vocabulary == untrained.vocabulary
    for name, weight in untrained.model.state_dict().items():
        assert torch.allclose(loaded.model.state_dict()[name], weight, atol=1e-3 if half else 0.0), name
    assert loaded.model.lm_head.weight is loaded.model.transformer.wte.weight
    if not half:
        assert loaded.generate(params=1e5) == untrained.generate(params=1e5)


def test_missing_generator_names_its_stage(tmp_path, monkeypatch):
    monkeypatch.setenv("GRAPHNAS_HOME", str(tmp_path))
    with pytest.raises(artifacts.MissingArtifactError, match="run sequence --scale smoke"):
        SequenceGenerator.load("smoke")


def test_pretrained_trunk_is_taken_and_the_embedding_is_not(tmp_path, vocabulary, untrained):
    from transformers import GPTNeoConfig, GPTNeoForCausalLM

    torch.manual_seed(5)
    language_model = GPTNeoForCausalLM(
        GPTNeoConfig(
            vocab_size=50,
            max_position_embeddings=128,
            hidden_size=32,
            num_layers=2,
            num_heads=4,
            attention_types=[[["global", "local"], 1]],
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    language_model.save_pretrained(tmp_path)
    generator = SequenceGenerator(CONFIG, vocabulary, pretrained=tmp_path)
    ours, theirs = generator.model.transformer.state_dict(), language_model.transformer.state_dict()
    for name, weight in ours.items():
        if name == "wpe.weight":
            assert torch.equal(weight, theirs[name][: PREFIX + MAX_NEW])
        elif name != "wte.weight":
            assert torch.equal(weight, theirs[name]), name
    assert ours["wte.weight"].shape == (len(vocabulary), 32)
    assert torch.equal(ours["wte.weight"], untrained.model.transformer.wte.weight)
    with pytest.raises(ValueError, match="Match hidden, layers, heads"):
        SequenceGenerator(SequenceConfig(**{**vars(CONFIG), "hidden": 64}), vocabulary, pretrained=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        SequenceGenerator(CONFIG, vocabulary, pretrained=tmp_path / "nowhere")


def test_paper_scale_starts_from_the_weights_that_the_environment_names(tmp_path, monkeypatch):
    monkeypatch.setenv("GRAPHNAS_GPT_NEO", str(tmp_path))
    config, folder = settings(SCALES["paper"], n_families=32)
    assert (config.hidden, config.layers, folder) == (768, 12, str(tmp_path))
    config, folder = settings(SCALES["lite"], n_families=32)
    assert (config.hidden, folder) == (SCALES["lite"].sequence_hidden, None)  # GPT-Neo's widths are others
    monkeypatch.delenv("GRAPHNAS_GPT_NEO")
    assert settings(SCALES["paper"])[1] is None


def test_conditions_have_their_order():
    assert CONDITIONS == ("params", "flops", "naswot", "snip_ssnr")
