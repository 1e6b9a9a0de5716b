"""Speed of what everything stands on, each beside a plain way to do the same (`make bench`); compare ratios only."""

import pytest
import torch

from graphnas_lib import proxies
from graphnas_lib.ccnf import CCNF, CCNFConfig
from graphnas_lib.gvae import GVAE, GVAEConfig
from graphnas_lib.macro import stack_cell
from graphnas_lib.network import build, count
from graphnas_lib.space import sample_cells

CELLS = sample_cells(64, seed=0)


@pytest.mark.benchmark(group="costs of one network")
def test_count_analytic(benchmark):
    """Warm: the costs of a cell at given sizes are kept."""
    architectures = [stack_cell(cell) for cell in CELLS]
    benchmark(lambda: [count(architecture) for architecture in architectures][0])


@pytest.mark.benchmark(group="costs of one network")
def test_count_by_building(benchmark):
    """Plain: build the network and count what runs."""
    benchmark(lambda: [proxies.module_costs(build(stack_cell(cell)), (3, 32, 32)) for cell in CELLS[:4]][0])


@pytest.mark.benchmark(group="ZC vector, 16 images of 16x16")
def test_zc_vector(benchmark):
    """One network, both proxies."""
    batch = torch.randn(16, 3, 16, 16), torch.arange(16) % 10
    benchmark(lambda: proxies.zc_vector(CELLS[0], *batch, seed=0))


@pytest.fixture(scope="module")
def flow():
    return CCNF(CCNFConfig(latent_dim=64, hidden=128, layers=5)).eval()


@pytest.mark.benchmark(group="256 flow samples")
def test_flow_batched_fixed_step(benchmark, flow):
    """As cells are generated."""
    benchmark(lambda: flow.sample(torch.zeros(256, 4), seed=0))


@pytest.mark.benchmark(group="256 flow samples")
def test_flow_one_at_a_time_dopri5(benchmark, flow):
    """Plain: an adaptive solve a sample; a 16th of the work, multiply by 16."""
    benchmark(lambda: [flow.sample(torch.zeros(1, 4), seed=i, method="dopri5") for i in range(16)][0])


@pytest.mark.benchmark(group="1,000 cells")
def test_encode(benchmark):
    """Codes made beforehand, as in training."""
    model, codes = GVAE(GVAEConfig(hidden=64, latent_dim=64)).eval(), CELLS * 16
    benchmark(lambda: model.encode(codes))


@pytest.mark.benchmark(group="1,000 cells")
def test_decode(benchmark):
    """To canonical cells."""
    model, latent = GVAE(GVAEConfig(hidden=64, latent_dim=64)).eval(), torch.randn(1_000, 64)
    benchmark(lambda: model.decode(latent))


@pytest.mark.benchmark(group="machine")
def test_matrix_multiply_peak(benchmark):
    """1000 x 1000 by 1000 x 1000 in float32: 2 GFLOP."""
    a = torch.randn(1_000, 1_000)
    benchmark(lambda: a @ a)
