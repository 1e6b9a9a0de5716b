"""On a machine with CUDA the same calls use it, and find what the CPU finds; simulated where there is none."""

import pytest
import torch

from graphnas_lib import gvae, proxies, sequence
from graphnas_lib.macro import HLArchitecture, HLTriple, stack_cell
from graphnas_lib.network import build
from graphnas_lib.space import REFERENCE_CELL, sample_cells
from graphnas_lib.store import artifacts

pytestmark = pytest.mark.usefixtures("cuda")


def batch(device: str):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(16, 3, 16, 16, generator=generator)
    return images.to(device), torch.randint(10, (16,), generator=generator).to(device)


def test_auto_is_cuda():
    assert artifacts.pick_device("auto").type == "cuda"


def test_zc_vectors_agree_with_the_cpu():
    for cell, repeats in [(REFERENCE_CELL, 5), *((cell, 1) for cell in sample_cells(4, seed=0))]:
        cpu = proxies.zc_vector(cell, *batch("cpu"), seed=0, repeats=repeats)
        cuda = proxies.zc_vector(cell, *batch("cuda"), seed=0, repeats=repeats)
        assert torch.equal(cpu[2:], cuda[2:])
        assert torch.allclose(cpu[:1], cuda[:1], rtol=0.05)  # NASWOT of deep eval maps follows the kernels' rounding
        assert torch.allclose(cpu[1:2], cuda[1:2], rtol=0.02)


def test_tcet_agrees_with_the_cpu():
    model = build(stack_cell(REFERENCE_CELL, width=8, repeats=1), input_shape=(3, 16, 16), seed=0)
    cpu = proxies.tcet(model, *batch("cpu"))
    assert proxies.tcet(model.cuda(), *batch("cuda")) == pytest.approx(cpu, rel=0.02)


def test_gvae_trains_and_decodes_on_cuda():
    cells = sample_cells(64, seed=0)
    config = gvae.GVAEConfig(hidden=32, latent_dim=16, decoder_hidden=32)
    options = {"config": config, "steps": 20, "batch_size": 32, "device": "cuda", "log_every": 5}
    model, log = gvae.train(cells, cells[:32], torch.randn(32, 4), **options)
    assert model.device.type == "cuda"
    assert log.rows[-1]["reconstruction"] < log.rows[0]["reconstruction"]
    assert len(model.decode(model.encode(cells))) == 64


def test_the_generator_trains_and_writes_on_cuda():
    designs = [HLArchitecture((HLTriple(i % 4, 8 * (1 + i), 1),)) for i in range(8)]
    conditions = torch.rand(8, 4, dtype=torch.float64) * 1e6 + 1
    config = sequence.SequenceConfig.small(n_families=4, hidden=16, layers=2, heads=2, warmup=1)
    generator, _ = sequence.train(designs, conditions, config=config, steps=5, seed=0, batch_size=4, device="cuda")
    assert generator.device.type == "cuda"
    assert len(generator.generate(params=5e5).triples) >= 1
