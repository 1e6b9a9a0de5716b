"""The flow: densities against closed forms, traces against each other, both objectives on toys, resumption."""

import dataclasses
import itertools
import math
import warnings

import pytest
import torch
from torch import nn

from graphnas_lib.ccnf import CCNF, CCNFConfig, PosteriorBatches, gaussian_baselines, latents, train
from graphnas_lib.ccnf.dynamics import (
    Dynamics,
    SolverError,
    VectorField,
    exact_trace,
    hutchinson_trace,
    rademacher,
    solve,
)
from graphnas_lib.ccnf.latents import Whitening
from graphnas_lib.store import Checkpoint, artifacts

TINY = CCNFConfig(latent_dim=4, condition_dim=2, hidden=16, layers=3, condition_names=("a", "b"))
TOY = CCNFConfig(latent_dim=2, condition_dim=2, hidden=32, layers=3, condition_names=("a", "b"))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=dtype)


class LinearField(nn.Module):
    """g(u, t, z) = M u + C z, whose flow is known."""

    def __init__(self, m: int = 3, p: int = 2):
        super().__init__()
        self.M = nn.Parameter(0.6 * normal(m, m, seed=1, dtype=torch.float64))
        self.C = nn.Parameter(normal(m, p, seed=2, dtype=torch.float64))

    def forward(self, t, u, zc):
        return u @ self.M.T + zc @ self.C.T

    def density(self, zc) -> torch.distributions.MultivariateNormal:
        """Law of u_1 = e^M u_0 + M^-1 (e^M - I) C z for u_0 ~ N(0, I)."""
        M, C = self.M.detach(), self.C.detach()
        exp = torch.linalg.matrix_exp(M)
        mean = zc @ C.T @ (torch.linalg.solve(M, exp - torch.eye(len(M), dtype=M.dtype))).T
        return torch.distributions.MultivariateNormal(mean, exp @ exp.T)


@pytest.fixture
def linear() -> CCNF:
    config = CCNFConfig(latent_dim=3, condition_dim=2, tolerance=1e-9, condition_names=("a", "b"))
    flow = CCNF(config, LinearField()).double()
    flow.whitening.mean.copy_(torch.tensor([0.5, -1.0, 2.0]))
    flow.whitening.slope.copy_(torch.tensor([[1.0, 0.0, -2.0], [0.0, 3.0, 0.5]]))
    flow.whitening.factor.copy_(torch.tensor([[2.0, 0.0, 0.0], [0.7, 0.5, 0.0], [-0.3, 0.2, 1.5]]))
    return flow


@pytest.fixture
def tiny() -> CCNF:
    """A random non-linear flow in double precision, bent enough to be worth solving."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        flow = CCNF(dataclasses.replace(TINY, tolerance=1e-8)).double()
    with torch.no_grad():
        for parameter in flow.field.parameters():
            parameter.mul_(2.0)
    return flow


def clusters(g: torch.Generator, rows: int = 256) -> tuple[torch.Tensor, torch.Tensor]:
    """Four Gaussians of std 0.3 in the plane; the condition says which, and no linear map of it knows where (XOR)."""
    k = torch.randint(0, 4, (rows,), generator=g)
    return MEANS[k] + 0.3 * torch.randn(rows, 2, generator=g), CONDITIONS[k]


def few(g: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """A small batch of `clusters`; `FITTING` of them fit the affine map."""
    return clusters(g, rows=64)


MEANS = torch.tensor([[2.0, 1.5], [-2.0, -1.5], [-2.0, 1.5], [2.0, -1.5]])
CONDITIONS = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
FITTING = 512  # batches of `few`
ENTROPY = 0.5 * math.log(2 * math.pi * math.e * 0.3**2)  # nats per dimension, of the law that `clusters` draws from


# ---- the field and the traces


def test_the_default_field_has_the_paper_s_size():
    assert sum(p.numel() for p in CCNF(CCNFConfig()).parameters()) == 2_149_376


def test_time_and_every_condition_reach_the_field(tiny):
    u, zc = normal(5, 4, dtype=torch.float64), normal(5, 2, seed=1, dtype=torch.float64)
    base = tiny.field(torch.tensor(0.3), u, zc)
    assert (tiny.field(torch.tensor(0.4), u, zc) - base).abs().min() > 1e-6
    for column in range(2):
        moved = zc.clone()
        moved[:, column] += 0.1
        assert (tiny.field(torch.tensor(0.3), u, moved) - base).abs().min() > 1e-6
    each_row = tiny.field(torch.full((5, 1), 0.3, dtype=torch.float64), u, zc)
    assert torch.equal(each_row, tiny.field(torch.tensor(0.3, dtype=torch.float64), u, zc))


def test_traces_agree_with_the_jacobian_and_with_each_other(tiny):
    u, zc = normal(3, 4, dtype=torch.float64).requires_grad_(), normal(3, 2, seed=1, dtype=torch.float64)
    t = torch.tensor(0.3, dtype=torch.float64)
    velocity = tiny.field(t, u, zc)
    jacobian = torch.autograd.functional.jacobian(lambda v: tiny.field(t, v, zc).sum(dim=0), u)  # (m, B, m)
    truth = torch.einsum("ibi->b", jacobian)
    torch.testing.assert_close(exact_trace(velocity, u, chunk=3), truth)
    signs = [torch.tensor(s, dtype=torch.float64).expand(3, 4) for s in itertools.product((-1.0, 1.0), repeat=4)]
    estimates = torch.stack([hutchinson_trace(velocity, u, noise) for noise in signs])  # (16, B): all there are
    torch.testing.assert_close(estimates.mean(dim=0), truth)
    assert (estimates - truth).abs().max() > 0.1  # one draw alone is off


def test_hutchinson_noise_is_balanced_signs():
    noise = rademacher(torch.empty(400, 50), generator=generator())
    assert set(noise.unique().tolist()) == {-1.0, 1.0}
    assert abs(noise.mean()) < 0.03


# ---- densities and transport


def test_log_prob_of_a_linear_field_is_the_closed_form(linear):
    latent, zc = normal(6, 3, seed=5, dtype=torch.float64), normal(6, 2, seed=6, dtype=torch.float64)
    law = linear.field.density(zc)
    map_, factor = linear.whitening, linear.whitening.factor
    u = (latent - map_.mean - zc @ map_.slope) @ torch.linalg.inv(factor).T
    truth = law.log_prob(u) - torch.linalg.slogdet(factor).logabsdet
    torch.testing.assert_close(linear.log_prob(latent, zc, trace="exact"), truth, atol=1e-7, rtol=0)
    by_steps = linear.log_prob(latent, zc, trace="exact", method="rk4", steps=40)
    torch.testing.assert_close(by_steps, truth, atol=1e-5, rtol=0)


def test_hutchinson_noise_stays_fixed_inside_a_solve(linear):
    """For a linear field e^T J e is constant, so one noise a solve gives tr - e^T M e to solver precision."""
    latent, zc = normal(6, 3, seed=5, dtype=torch.float64), normal(6, 2, seed=6, dtype=torch.float64)
    noise = rademacher(latent, generator=generator(7))
    M = linear.field.M.detach()
    exact = linear.log_prob(latent, zc, trace="exact")
    expected = exact + M.trace() - torch.einsum("bi,ij,bj->b", noise, M, noise)
    found = linear.log_prob(latent, zc, generator=generator(7))
    torch.testing.assert_close(found, expected, atol=1e-7, rtol=0)
    assert (found - exact).abs().max() > 0.01
    assert torch.equal(found, linear.log_prob(latent, zc, generator=generator(7)))


def test_samples_of_a_linear_field_follow_its_law(linear):
    zc = torch.tensor([[1.0, -0.5]], dtype=torch.float64).expand(20_000, 2)
    law = linear.field.density(zc[:1])
    map_ = linear.whitening
    drawn = (linear.sample(zc, seed=1) - map_.mean - zc @ map_.slope) @ torch.linalg.inv(map_.factor).T
    torch.testing.assert_close(drawn.mean(dim=0), law.mean[0], atol=0.05, rtol=0)
    torch.testing.assert_close(drawn.T.cov(), law.covariance_matrix[0], atol=0.1, rtol=0.05)


def test_solving_backwards_inverts_a_sample(tiny):
    zc, noise = normal(8, 2, seed=1, dtype=torch.float64), normal(8, 4, dtype=torch.float64)
    tiny.whitening.mean.fill_(1.0)
    tiny.whitening.slope.fill_(0.5)
    tiny.whitening.factor.copy_(3.0 * torch.eye(4) + torch.ones(4, 4).tril(-1))
    for method, tolerance in (("dopri5", 1e-6), ("midpoint", 1e-3)):
        latent = tiny.sample(zc, noise=noise, method=method)
        assert (latent - 1 - 3 * noise).abs().max() > 0.5  # the flow does move
        dynamics, u1 = Dynamics(tiny.field, zc, limit=1000), tiny.whitening(latent, zc)
        back = solve(dynamics, u1, forward=False, method=method, steps=6, tolerance=1e-8)
        assert (back.detach() - noise).abs().max() < tolerance


def test_paths_lead_from_the_noise_to_the_sample(tiny):
    zc, noise = normal(8, 2, seed=1, dtype=torch.float64), normal(8, 4, dtype=torch.float64)
    tiny.whitening.mean.fill_(1.0)
    path = tiny.paths(zc, noise, steps=12)
    assert path.shape == (13, 8, 4) and torch.equal(path[0], noise)
    assert torch.equal(tiny.whitening.inverse(path[-1], zc), tiny.sample(zc, noise=noise, steps=12))
    moved = (path - path[-1]).norm(dim=2).mean(dim=1)
    assert moved.argmin() == 12 and moved[6] < moved[0]
    with pytest.raises(ValueError, match="one row a condition"):
        tiny.paths(zc, noise[:3])


def test_sample_depends_on_the_seed_and_scales_with_the_temperature(tiny):
    zc = normal(8, 2, seed=1, dtype=torch.float64)
    assert torch.equal(tiny.sample(zc, seed=3), tiny.sample(zc, seed=3))
    assert not torch.equal(tiny.sample(zc, seed=3), tiny.sample(zc, seed=4))
    noise = torch.randn(8, 4, generator=generator(3))
    torch.testing.assert_close(tiny.sample(zc, seed=3, temperature=0.5), tiny.sample(zc, noise=0.5 * noise))


def test_rows_of_a_sample_do_not_depend_on_their_batch(tiny):
    zc, noise = normal(8, 2, seed=1, dtype=torch.float64), normal(8, 4, dtype=torch.float64)
    whole = tiny.sample(zc, noise=noise)
    torch.testing.assert_close(tiny.sample(zc[2:5], noise=noise[2:5]), whole[2:5], atol=1e-12, rtol=0)


# ---- gradients


def gradients(flow: CCNF, gradient: str) -> list[torch.Tensor]:
    latent, zc = normal(3, 4, seed=5, dtype=torch.float64).requires_grad_(), normal(3, 2, seed=6, dtype=torch.float64)
    density = flow.density(latent, zc, "hutchinson", generator(), gradient=gradient)[0]
    return list(torch.autograd.grad(density.sum(), [latent, *flow.field.parameters()]))


def test_the_adjoint_method_gives_the_gradient_through_the_solver(tiny):
    pairs = zip(gradients(tiny, "adjoint"), gradients(tiny, "backprop"), strict=True)
    for adjoint, backprop in pairs:
        torch.testing.assert_close(adjoint, backprop, atol=1e-5, rtol=1e-4)


def test_log_prob_has_the_right_gradient(tiny):
    latent, zc = normal(2, 4, seed=5, dtype=torch.float64).requires_grad_(), normal(2, 2, seed=6, dtype=torch.float64)
    for trace in ("exact", "hutchinson"):
        assert torch.autograd.gradcheck(
            lambda f, trace=trace: tiny.density(f, zc, trace, generator(), "rk4", 2, gradient="backprop")[0], latent
        )


def test_log_prob_keeps_no_graph(tiny):
    latent, zc = normal(2, 4, dtype=torch.float64).requires_grad_(), normal(2, 2, dtype=torch.float64)
    assert not tiny.log_prob(latent, zc).requires_grad


# ---- training


def test_flow_matching_recovers_the_means_and_the_density_of_each_class():
    flow, log = train(clusters, config=TOY, steps=500, learning_rate=1e-2, seed=0)
    for mean, condition in zip(MEANS, CONDITIONS, strict=True):
        drawn = flow.sample(condition.expand(2000, 2), seed=1)
        assert (drawn.mean(dim=0) - mean).abs().max() < 0.1
        assert (drawn.std(dim=0) - 0.3).abs().max() < 0.1
    held_out, zc = clusters(generator(9), rows=500)
    nll = -float(flow.log_prob(held_out, zc, trace="exact").mean()) / 2
    assert ENTROPY - 0.05 < nll < ENTROPY + 0.1
    shuffled = -float(flow.log_prob(held_out, zc.roll(1, dims=0), trace="exact").mean()) / 2
    assert shuffled > nll + 1  # the condition matters
    assert log.rows[-1]["loss"] < 0.7 * log.rows[0]["loss"]
    assert log.steps == log.rows[-1]["step"] == 500


def test_the_paper_s_objective_lowers_the_likelihood_loss_and_logs_its_evaluations():
    config = dataclasses.replace(TOY, tolerance=1e-3, hidden=16, layers=2)
    start, _ = train(few, config=config, objective="nll", steps=1, learning_rate=0.0, seed=0)
    flow, log = train(few, config=config, objective="nll", steps=40, learning_rate=3e-2, seed=0)
    held_out, zc = clusters(generator(9))
    before, after = (-float(f.log_prob(held_out, zc, trace="exact").mean()) / 2 for f in (start, flow))
    assert after < before - 0.5
    assert after > ENTROPY - 0.05
    for row in log.rows:
        assert 8 <= row["nfe_forward"] <= config.max_evaluations
        assert 8 <= row["nfe_backward"] <= config.max_evaluations
    assert log.rows[-1]["loss"] < log.rows[0]["loss"] - 0.5


def test_the_limit_of_evaluations_holds_for_each_solve_of_a_step():
    config = dataclasses.replace(TOY, tolerance=1e-3, hidden=16, layers=2, max_evaluations=20)
    _, log = train(few, config=config, objective="nll", steps=1)
    row = log.rows[0]
    assert max(row["nfe_forward"], row["nfe_backward"]) <= 20 < row["nfe_forward"] + row["nfe_backward"]
    with pytest.raises(SolverError, match="at most 10 function evaluations"):
        train(few, config=dataclasses.replace(config, max_evaluations=10), objective="nll", steps=1)


def test_a_batch_whose_solve_fails_gives_way_to_the_next_two():
    config = dataclasses.replace(TOY, tolerance=1e-3, hidden=16, layers=2, max_evaluations=60)
    count = itertools.count()

    def batches(g, bad):
        latent, zc = few(g)
        return (latent * torch.nan if next(count) - FITTING in bad else latent), zc

    _, log = train(lambda g: batches(g, (0, 1, 4)), config=config, objective="nll", steps=3)
    assert next(count) == FITTING + 6 and log.steps == 3
    assert all(math.isfinite(row["loss"]) and row["loss"] < 10 for row in log.rows)
    count = itertools.count()
    with pytest.raises(SolverError):
        train(lambda g: batches(g, (1, 2, 3)), config=config, objective="nll", steps=3)


class Interrupted(Exception):
    pass


def failing_after(calls: int):
    """`few` until it has been called so often, then an interruption."""
    count = itertools.count()

    def batches(g):
        if next(count) >= calls:
            raise Interrupted
        return few(g)

    return batches


@pytest.mark.parametrize(("objective", "steps", "stop"), [("fm", 200, FITTING + 151), ("nll", 4, FITTING + 2)])
def test_a_killed_run_resumes_as_if_nothing_had_happened(tmp_path, objective, steps, stop):
    options = {"config": dataclasses.replace(TOY, hidden=8, tolerance=1e-3), "objective": objective, "steps": steps}
    whole, log = train(few, seed=3, **options)
    point = Checkpoint(tmp_path / "c.safetensors", every=0.0)
    with pytest.raises(Interrupted):
        train(failing_after(stop), seed=3, checkpoint=point, **options)
    assert 0 < point.load()["done"] < steps
    resumed, log_resumed = train(few, seed=3, checkpoint=point, **options)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    assert log.rows == log_resumed.rows
    # a finished run trains no more
    again, _ = train(failing_after(FITTING), seed=3, checkpoint=point, **options)
    assert torch.equal(again.field.layers[0].linear.weight, whole.field.layers[0].linear.weight)


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    point = Checkpoint(tmp_path / "c.safetensors", every=0.0)
    train(few, config=TOY, steps=2, seed=3, checkpoint=point)
    with pytest.raises(ValueError, match="must belong to this run"):
        train(few, config=TOY, steps=3, seed=3, checkpoint=point)


def test_training_leaves_global_randomness_alone_and_depends_on_its_seed():
    state = torch.random.get_rng_state()
    first, _ = train(few, config=TOY, steps=2, seed=3)
    second, _ = train(few, config=TOY, steps=2, seed=3)
    other, _ = train(few, config=TOY, steps=2, seed=4)
    assert torch.equal(torch.random.get_rng_state(), state)
    weight = [flow.field.layers[0].linear.weight for flow in (first, second, other)]
    assert torch.equal(weight[0], weight[1]) and not torch.equal(weight[0], weight[2])


def test_a_warm_start_keeps_the_affine_map_and_leaves_the_first_flow_as_it_was():
    first, _ = train(few, config=TOY, steps=2, seed=3)
    weight = first.field.layers[0].linear.weight.clone()
    second, _ = train(few, steps=2, seed=4, start=first, objective="nll")
    assert torch.equal(first.field.layers[0].linear.weight, weight)
    assert not torch.equal(second.field.layers[0].linear.weight, weight)
    before, after = first.whitening.state_dict(), second.whitening.state_dict()
    assert before["factor"][0, 0] != 1 and all(torch.equal(before[name], after[name]) for name in before)


def test_training_on_a_corpus_fits_the_affine_map_and_the_range():
    zc, mixing = normal(500, 2, seed=1), torch.tensor([[2.0, 0.0], [1.5, 0.5]])
    mu = 3.0 + normal(500, 2) @ mixing.T + zc @ torch.tensor([[4.0, -1.0], [0.0, 2.0]])
    flow, _ = train((mu, torch.full((500, 2), -2.0), zc), config=TOY, steps=1, batch_size=64)
    latent = mu + math.exp(-1.0) * normal(500, 2, seed=7)
    u = flow.whitening(latent, zc)
    joint = torch.cat([u, zc], dim=1).T.cov()
    torch.testing.assert_close(joint[:2, :2], torch.eye(2), atol=0.1, rtol=0)
    assert u.mean(dim=0).abs().max() < 0.1 and joint[:2, 2:].abs().max() < 0.1  # nothing linear in z is left
    torch.testing.assert_close(flow.whitening.inverse(u, zc), latent)
    assert torch.equal(flow.zc_low, zc.amin(dim=0)) and torch.equal(flow.zc_high, zc.amax(dim=0))


def test_a_loss_that_is_not_finite_stops_the_training():
    count = itertools.count()

    def batches(g):
        latent, zc = few(g)
        return (latent, zc) if next(count) < FITTING else (latent * torch.nan, zc)

    with pytest.raises(FloatingPointError, match="must stay finite; it was nan"):
        train(batches, config=TOY, steps=2)
    with pytest.raises(FloatingPointError, match="Latents and conditions must be finite; 8 of 8 rows are not"):
        Whitening(2, 2).fit(torch.full((8, 2), torch.nan), torch.zeros(8, 2))


# ---- what it is trained on, and what it must beat


def test_a_collapsed_dimension_gets_noise_and_is_counted(monkeypatch):
    mu = torch.cat([normal(4000, 1), torch.full((4000, 1), 2.0)], dim=1)
    batches = PosteriorBatches(mu, torch.full((4000, 2), -20.0), torch.zeros(4000, 2), batch_size=4000)
    latent, zc = batches(generator())
    assert batches.noised == 1
    assert abs(latent[:, 1].std() - 0.05) < 0.005
    assert abs(zc.std() - 0.02) < 0.002
    rows = torch.arange(4000)
    monkeypatch.setattr(latents, "MIN_STD", 0.0)
    kept = PosteriorBatches(mu, torch.full((4000, 2), -20.0), torch.zeros(4000, 2)).draw(rows, generator())
    torch.testing.assert_close(kept[0], mu, atol=1e-3, rtol=0)
    with pytest.raises(ValueError, match="one row a cell; got 3, 3, 2 rows"):
        PosteriorBatches(mu[:3], mu[:3], mu[:2])


def test_gaussian_baselines_are_the_entropies_of_the_laws_they_assume():
    n, zc = 40_000, normal(40_000, 2, seed=1)
    mixing = torch.tensor([[2.0, 0.0], [1.0, -1.0], [0.0, 3.0]])
    noise = normal(n, 3, seed=2) @ torch.tensor([[0.5, 0.4, 0.0], [0.0, 0.3, 0.0], [0.0, 0.0, 1.0]])
    latent = zc @ mixing.T + noise + 1.0
    half = n // 2
    nll = gaussian_baselines(latent[:half], zc[:half], latent[half:], zc[half:])
    constant = 0.5 * math.log(2 * math.pi * math.e)
    assert nll["linear_conditional"] == pytest.approx(constant + math.log(0.5 * 0.3 * 1.0) / 3, abs=0.01)
    variances = torch.tensor([4.25, 2.25, 10.0])
    assert nll["diagonal"] == pytest.approx(constant + 0.5 * float(variances.log().mean()), abs=0.01)
    second_moment = float((variances + 1.0).mean())
    assert nll["standard_normal"] == pytest.approx(0.5 * (math.log(2 * math.pi) + second_moment), abs=0.05)
    with pytest.raises(ValueError, match="needs over 6 rows; got 6"):
        gaussian_baselines(latent[:6], zc[:6], latent, zc)


# ---- refusals


def test_a_condition_out_of_range_is_named_with_its_range():
    flow = CCNF(TINY)
    flow.zc_low.copy_(torch.tensor([-1.0, -2.0]))
    flow.zc_high.copy_(torch.tensor([1.0, 2.0]))
    with pytest.warns(
        UserWarning, match=r"Condition b must lie in the trained range \[-2, 2\].*got \[0, 2.5\]"
    ) as caught:
        flow.sample(torch.tensor([[0.5, 0.0], [0.5, 2.5]]))
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        flow.sample(torch.tensor([[1.0, -2.0]]))


def test_too_many_evaluations_stop_a_solve_with_the_remedy(tiny):
    tiny.config = dataclasses.replace(tiny.config, max_evaluations=10)
    with pytest.raises(SolverError, match="at most 10 function evaluations.*raise max_evaluations"):
        tiny.log_prob(torch.zeros(2, 4), torch.zeros(2, 2))
    assert tiny.sample(torch.zeros(2, 2), method="midpoint", steps=5).shape == (2, 4)  # 10 evaluations are allowed
    with pytest.raises(SolverError, match="at most 10"):
        tiny.sample(torch.zeros(2, 2), method="midpoint", steps=6)


class Explosive(nn.Module):
    def forward(self, t, u, zc):
        return 1e3 * u**3


def test_a_solve_that_explodes_says_so():
    flow = CCNF(dataclasses.replace(TINY, max_evaluations=10**6), Explosive())
    with pytest.raises(SolverError, match="must stay finite and smooth.*fixed-step method"):
        flow.sample(torch.zeros(2, 2), noise=torch.ones(2, 4), method="dopri5")


def test_wrong_shapes_and_choices_are_refused():
    flow = CCNF(TINY)
    with pytest.raises(ValueError, match=r"zc must be \(B, 2\) in the order a, b; got \(3, 3\)"):
        flow.sample(torch.zeros(3, 3))
    with pytest.raises(ValueError, match=r"must be \(3, 4\), one row a condition; got \(2, 4\)"):
        flow.log_prob(torch.zeros(2, 4), torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"must be \(3, 4\).*got \(3, 5\)"):
        flow.sample(torch.zeros(3, 2), noise=torch.zeros(3, 5))
    with pytest.raises(ValueError, match=r"trace must be one of \('hutchinson', 'exact'\); got 'brute'"):
        flow.log_prob(torch.zeros(3, 4), torch.zeros(3, 2), trace="brute")
    with pytest.raises(ValueError, match="gradient must be one of"):
        flow.density(torch.zeros(3, 4), torch.zeros(3, 2), "exact", None, gradient="yes")
    with pytest.raises(ValueError, match="objective must be one of"):
        train(clusters, config=TOY, objective="ot", steps=1)


# ---- files and devices


def test_a_saved_flow_comes_back_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("GRAPHNAS_HOME", str(tmp_path))
    flow, _ = train(clusters, config=dataclasses.replace(TOY, zc_hash="abc"), steps=2)
    artifacts.save("ccnf", flow.to_files() | flow.to_files("ccnf_nll"), scale="smoke", seed=0, seconds=0.0)
    for name in ("ccnf", "ccnf_nll"):
        loaded = CCNF.load("smoke", name=name)
        assert loaded.config == flow.config
        assert torch.equal(loaded.sample(CONDITIONS, seed=1), flow.sample(CONDITIONS, seed=1))
        assert torch.equal(loaded.zc_low, flow.zc_low)


def test_weights_in_half_precision_on_disk_are_single_when_loaded(tmp_path, monkeypatch):
    monkeypatch.setenv("GRAPHNAS_HOME", str(tmp_path))
    flow, _ = train(clusters, config=TOY, steps=2)
    artifacts.save("ccnf", flow.to_files("ccnf_nll", half=True), scale="smoke", seed=0, seconds=0.0)
    stored = artifacts.load("ccnf", "ccnf_nll.safetensors", "smoke")
    assert stored["field.layers.0.linear.weight"].dtype == torch.float16
    assert torch.equal(stored["whitening.factor"], flow.whitening.factor)  # the affine map stays as it is
    loaded = CCNF.load("smoke", name="ccnf_nll")
    assert {value.dtype for value in loaded.state_dict().values()} == {torch.float32}
    torch.testing.assert_close(loaded.sample(CONDITIONS, seed=1), flow.sample(CONDITIONS, seed=1), atol=0.01, rtol=0.01)


@pytest.mark.parametrize("name", ["ccnf", "ccnf_nll"])
def test_shipped_flows_load_and_judge_their_own_samples_likely(name):
    """The flow trained by likelihood ships in half precision."""
    flow, zc = CCNF.load("lite", name=name), torch.zeros(8, 4)
    assert {value.dtype for value in flow.state_dict().values()} == {torch.float32}
    latent = flow.sample(zc, seed=0)
    own, other = (flow.log_prob(f, zc, method="rk4", steps=6) for f in (latent, latent + 5 * latent.std()))
    assert own.isfinite().all() and (own > other).all()


@pytest.mark.cuda
def test_cuda_and_cpu_draw_and_judge_alike():
    flow, _ = train(clusters, config=TOY, steps=2)
    here, noise = flow.sample(CONDITIONS, seed=1), flow.log_prob(MEANS, CONDITIONS, trace="exact")
    there = flow.cuda()
    torch.testing.assert_close(there.sample(CONDITIONS, seed=1).cpu(), here, atol=1e-4, rtol=0)
    found = there.log_prob(MEANS, CONDITIONS, trace="exact").cpu()
    torch.testing.assert_close(found, noise, atol=1e-3, rtol=0)


def test_the_field_stands_alone():
    field = VectorField(latent_dim=3, condition_dim=2, hidden=5, layers=2)
    assert field(torch.tensor(0.5), torch.zeros(4, 3), torch.zeros(4, 2)).shape == (4, 3)
