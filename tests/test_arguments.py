"""Arguments as NumPy users and users of other benchmarks have them: taken, or refused in words."""

import json

import numpy as np
import pytest
import torch

from graphnas_lib import datasets, network, proxies
from graphnas_lib.benchmarks import nats_string
from graphnas_lib.design import design, quantity, repeated
from graphnas_lib.design.budget import Request
from graphnas_lib.design.fitting import Target
from graphnas_lib.macro import Architecture, HLTriple, Triple, stack_cell, whole
from graphnas_lib.space import NATS_REFERENCE, Cell, InvalidCellError, nats_operations, sample_cells
from graphnas_lib.stages.costs import stage_costs
from graphnas_lib.store import MissingArtifactError
from graphnas_lib.synonyms import CellSampler, synonyms

CELL = Cell.from_nats(NATS_REFERENCE)
SIZES = {"input_shape": np.array([3, 8, 8]), "classes": np.int64(5)}


def test_numbers_of_numpy_are_numbers():
    plain = Architecture((Triple(CELL, 16, 2, 3),), 24, 1)
    given = Architecture((Triple(CELL, np.int64(16), np.int32(2), np.uint8(3)),), np.int16(24), torch.tensor(1))
    assert given == plain and given.key() == plain.key() and given.hl == plain.hl
    assert json.loads(given.to_json()) == json.loads(plain.to_json())  # JSON takes plain numbers alone
    assert HLTriple(np.int64(1), np.int64(8), np.int64(1)) == HLTriple(1, 8, 1)
    stacked = stack_cell(CELL, width=np.int64(8), repeats=np.int64(1))
    assert network.count(stacked, **SIZES) == network.count(stacked, input_shape=(3, 8, 8), classes=5)
    model = network.build(stacked, **SIZES, seed=np.int64(0))
    assert model.input_shape == (3, 8, 8) and model(torch.zeros(2, 3, 8, 8)).shape == (2, 5)
    assert sample_cells(np.int64(3), seed=np.int64(4)) == sample_cells(3, seed=4)
    digits = datasets.load("digits")
    split = [digits.split_validation(0.2, seed=seed).test_images for seed in (np.int64(1), 1)]
    assert torch.equal(*split)
    sampler = CellSampler.load("lite")
    drawn = [synonyms(CELL, n=2, seed=seed, sampler=sampler) for seed in (np.int64(1), 1)]
    assert drawn[0] == drawn[1] and len(drawn[0]) == 2


@pytest.mark.parametrize("value", [True, 8.0, "8", None, np.float64(8), [8]])
def test_what_is_no_whole_number_is_refused_in_words(value):
    assert whole(value) is None
    for wrong in ((value, 1, 0), (16, value, 0), (16, 1, value)):
        if not (wrong[2] is None and value is None):
            with pytest.raises(ValueError, match="Channels must be|Stride must be|family must be"):
                Triple(CELL, *wrong)
    with pytest.raises(ValueError, match="classes must be a positive number"):
        network.count(stack_cell(CELL), classes=value)
    with pytest.raises(ValueError, match="input_shape must be"):
        network.count(stack_cell(CELL), input_shape=value)
    with pytest.raises(ValueError, match="input_shape must be"):
        network.build(stack_cell(CELL), input_shape=(3, value, 8))


@pytest.mark.parametrize(
    ("text", "value"),
    [("1M", 1e6), (" 300 m ", 3e8), ("1.5G", 1.5e9), ("1e6", 1e6), (".5K", 500), (np.int64(7), 7), (np.float32(2), 2)],
)
def test_a_budget_is_a_number_or_text_of_one(text, value):
    assert quantity(text) == value and Target(params=text).params == value


def test_a_budget_that_is_none_is_refused_in_words():
    for text in ("a lot", "", "1.2.3", "M", "1MM", "-1M"):
        with pytest.raises(ValueError, match="flops must be a number such as 300M, 1.5G or 1e6; got"):
            Target(flops=text)
    for wrong in ([1e6], True, {}, 1j):
        with pytest.raises(TypeError, match="params must be a number, or text such as '1M'; got"):
            design(wrong)
    for wrong in (0, -5, float("nan"), float("inf"), "0"):
        with pytest.raises(ValueError, match="params must be a positive number"):
            design(wrong)
    for wrong in ("5%", 0, 1):
        with pytest.raises(ValueError, match="tolerance must lie between 0 and 1"):
            design("1M", tolerance=wrong)
    with pytest.raises(TypeError, match="seed must be a whole number; got 0.5"):
        repeated("1M", seed=0.5)
    with pytest.raises(ValueError, match="n must be a whole number from 1"):
        design("1M", n="3")


def test_a_request_in_numpys_numbers_is_one_in_pythons():
    given, plain = {**SIZES, "n": np.int64(1), "seed": np.int64(0)}, {"input_shape": (3, 8, 8), "classes": 5}
    images = np.random.default_rng(0).random((8, 3, 8, 8))
    labels = np.arange(8, dtype=np.uint8) % 5
    made = repeated("60K", **given, images=images, labels=labels)
    tensors = torch.from_numpy(images).float(), torch.from_numpy(labels).long()
    wanted = repeated(60_000, **plain, images=tensors[0], labels=tensors[1])
    assert made == wanted and json.loads(made[0].to_json()) == json.loads(wanted[0].to_json())
    request = Request(Target("1M"), (3, 8, 8), 5, False, 0)
    for batch, said in (((images[:0], labels[:0]), "at least one"), ((images, labels[:3]), "a label for each of 8")):
        with pytest.raises(ValueError, match=said):
            request.batch(*batch)
    z = proxies.zc_vector(CELL, images, labels, seed=0, width=8, repeats=1, classes=5)
    assert torch.equal(z, proxies.zc_vector(CELL, *tensors, seed=0, width=8, repeats=1, classes=5))


BLANK = [f"{NATS_REFERENCE}\n", f"  {NATS_REFERENCE}", f'"{NATS_REFERENCE}"', NATS_REFERENCE.replace("+", " + ")]


@pytest.mark.parametrize("text", [*BLANK, f" '{NATS_REFERENCE}'\r\n"])
def test_blanks_and_quotes_around_a_nats_string_are_left_aside(text):
    assert nats_operations(text) == nats_operations(NATS_REFERENCE) and Cell.from_nats(text) == CELL


def test_naslibs_numbers_of_operations():
    """The pair is a published example of NASLib's conversion."""
    text = "|avg_pool_3x3~0|+|skip_connect~0|none~1|+|nor_conv_1x1~0|avg_pool_3x3~1|nor_conv_1x1~2|"
    for numbers in (
        (4, 0, 3, 1, 4, 3),
        [4, 0, 3, 1, 4, 3],
        np.array([4, 0, 3, 1, 4, 3]),
        torch.tensor([4, 0, 3, 1, 4, 3]),
    ):
        assert nats_operations(numbers) == nats_operations(text)
        assert Cell.from_nats(numbers) == Cell.from_nats(text)


@pytest.mark.parametrize("wrong", [(5, 0, 0, 0, 0, 0), (0, 0, 0), (0.5,) * 6, "", None, b"|", {}, object(), [[0] * 6]])
def test_what_is_no_nats_architecture_is_refused_in_words(wrong):
    with pytest.raises(InvalidCellError, match="A NATS-Bench string must look like"):
        nats_operations(wrong)
    with pytest.raises(InvalidCellError, match="A NATS-Bench string must look like"):
        synonyms(wrong)


def test_an_index_of_nats_bench_leads_to_its_string():
    for index in (13714, np.int64(13714)):
        with pytest.raises(InvalidCellError, match=r"benchmarks\.nats_string\(13714\) gives the string"):
            synonyms(index)
    assert nats_string(13714) == NATS_REFERENCE
    with pytest.raises(ValueError, match="must be one of the 15,625 .*; got 15625"):
        nats_string(15625)


def test_costs_of_a_scale_without_artifacts_say_what_makes_them(monkeypatch, tmp_path):
    monkeypatch.setenv("GRAPHNAS_HOME", str(tmp_path))
    with pytest.raises(MissingArtifactError, match="run cells --scale smoke"):
        stage_costs("smoke")
