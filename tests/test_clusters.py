"""Families: the transform of z, the mixture of Eq. 3 against scikit-learn, the choice of K."""

import json
import math
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
import torch

from graphnas_lib.clusters import PARAMS, Families, ZCTransform, choose_k, criterion_curve, stability, zc_distance
from graphnas_lib.space import sample_cells
from graphnas_lib.store import artifacts

OPTIONS = {"n_clusters": 3, "seed": 0, "n_init": 2}


def labelled(n=240, seed=0):
    """Raw z of three well separated families, in a shuffled order, and the family of each row."""
    rng = np.random.default_rng(seed)
    family = rng.integers(3, size=n)
    log_params = np.array([6.5, 4.5, 5.5])[family] + 0.05 * rng.standard_normal(n)
    naswot = np.array([700.0, 760.0, 820.0])[family] + 3 * rng.standard_normal(n)
    ssnr = np.expm1(10 + 0.1 * rng.standard_normal(n))
    flops = 10 ** (np.array([8.5, 6.5, 7.5])[family] + 0.05 * rng.standard_normal(n))
    return np.stack([naswot, ssnr, 10**log_params, flops], axis=1), family


@pytest.fixture(scope="module")
def families():
    zc, _ = labelled()
    return Families.fit(zc, **OPTIONS)


def test_transform_standardises_the_logged_columns():
    zc, _ = labelled()
    standard = ZCTransform.fit(zc).transform(zc)
    by_hand = (np.log10(zc[:, 3]) - np.log10(zc[:, 3]).mean()) / np.log10(zc[:, 3]).std()
    assert standard.dtype == torch.float32
    np.testing.assert_allclose(standard[:, 3], by_hand, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(standard.mean(dim=0), torch.zeros(4), atol=1e-5, rtol=0)


def test_inverse_undoes_the_transform_inside_the_clip():
    zc, _ = labelled()
    transform = ZCTransform.fit(zc)
    np.testing.assert_allclose(transform.inverse(transform.transform(zc)), zc, rtol=1e-4)
    far = zc[:1] * np.array([1, 1, 1e12, 1])
    assert transform.transform(far)[0, 2] == transform.clip


def test_hash_follows_the_numbers():
    zc, _ = labelled()
    first = ZCTransform.fit(zc)
    assert first.hash() == ZCTransform.from_dict(json.loads(json.dumps(asdict(first)))).hash()
    assert first.hash() != ZCTransform.fit(zc[1:]).hash()


@pytest.mark.parametrize("column, value", [(0, math.nan), (1, -1.0), (2, 0.0), (3, math.inf)])
def test_transform_refuses_failed_proxies(column, value):
    zc, _ = labelled()
    transform = ZCTransform.fit(zc)
    zc[5, column] = value
    with pytest.raises(ValueError, match="Leave failed cells out"):
        transform.transform(zc)


def test_transform_refuses_wrong_shapes_and_constant_columns():
    zc, _ = labelled()
    with pytest.raises(ValueError, match=r"order naswot, snip_ssnr, params, flops; got \(240, 3\)"):
        ZCTransform.fit(zc[:, :3])
    zc[:, 0] = 700.0
    with pytest.raises(ValueError, match="must vary"):
        ZCTransform.fit(zc)


def test_components_are_sorted_by_log_params_and_find_the_true_families(families):
    zc, truth = labelled()
    assert bool((families.means[:, PARAMS].diff() > 0).all())
    by_size = np.array([2, 0, 1])  # log-params 6.5, 4.5, 5.5 -> rank
    np.testing.assert_array_equal(families.assign(zc), by_size[truth])
    assert families.counts == tuple(np.bincount(by_size[truth]))
    assert families.means.shape == (3, 4) and families.means.dtype == torch.float32


def test_responsibilities_equal_scikit_learns():
    from sklearn.mixture import GaussianMixture

    zc = np.random.default_rng(3).lognormal(3, 1, size=(150, 4))
    ours = Families.fit(zc, n_clusters=3, n_init=1)
    standard = ours.transform(zc).double().numpy()
    theirs = GaussianMixture(3, covariance_type="diag", reg_covar=1e-3, tol=1e-4, max_iter=500, random_state=0)
    theirs.fit(standard)
    order = np.argsort(theirs.means_[:, PARAMS])
    probabilities = ours.log_responsibilities(torch.from_numpy(standard)).exp()
    np.testing.assert_allclose(probabilities, theirs.predict_proba(standard)[:, order], atol=1e-6)


def test_assign_takes_raw_or_standardised_vectors(families):
    zc, _ = labelled(30, seed=1)
    assert torch.equal(families.assign(zc), families.assign(families.transform(zc), standardised=True))


def test_json_round_trip_is_exact(families):
    copy = Families.from_dict(json.loads(json.dumps(families.to_dict())))
    assert copy == families
    assert torch.equal(copy.means, families.means)


def test_save_and_load_through_the_artifacts(families, tmp_path, monkeypatch):
    monkeypatch.setenv("GRAPHNAS_HOME", str(tmp_path))
    with pytest.raises(artifacts.MissingArtifactError, match="run families --scale smoke"):
        Families.load("smoke")
    artifacts.save("families", {"families.json": families.to_dict()}, scale="smoke", seed=0, seconds=0.0)
    assert Families.load("smoke") == families


def test_failed_rows_are_dropped_and_medoids_index_the_given_rows():
    zc, _ = labelled(120)
    zc[:7, 1] = math.nan
    cells = sample_cells(120, seed=0)
    families = Families.fit(zc, cells=cells, **OPTIONS)
    assert families.dropped == 7 and sum(families.counts) == 113
    for k, index in enumerate(families.medoids):
        near = zc_distance(families.transform(zc[7:]), families.means[k])
        assert index == 7 + int(near.argmin())
        assert families.medoid_cells[k] == cells[index].to_dict()


def test_distance_is_l1(families):
    z = families.transform(labelled(4)[0])
    assert zc_distance(z[0], z[1]) == (z[0] - z[1]).abs().sum()
    assert zc_distance(z, z[:1]).shape == (4,)


def test_bic_is_the_formula():
    zc = np.random.default_rng(0).lognormal(3, 1, size=(100, 4))
    curve = criterion_curve(zc, [1, 2], n_init=1)
    standard = ZCTransform.fit(zc).transform(zc).double()
    train = standard[torch.randperm(100, generator=torch.Generator().manual_seed(0))][20:]
    normal = torch.distributions.Normal(train.mean(dim=0), (train.var(dim=0, correction=0) + 1e-3).sqrt())
    log_likelihood = normal.log_prob(train).sum()  # K = 1: one diagonal Gaussian, 8 free parameters (9K - 1)
    assert curve["bic"][0] == pytest.approx(float(-2 * log_likelihood + 8 * math.log(80)), rel=1e-6)
    assert curve["aic"][0] == pytest.approx(float(-2 * log_likelihood + 2 * 8), rel=1e-6)


def test_curve_prefers_three_families_where_there_are_three():
    zc, _ = labelled()
    curve = criterion_curve(zc, [1, 2, 3, 4, 5], n_init=2)
    assert list(curve.columns) == ["k", "bic", "aic", "held_out", "min_weight", "converged"]
    assert choose_k(curve) == 3
    assert stability(zc, n_clusters=3, seeds=[0, 1, 2], n_init=2) == pytest.approx(1.0)


def test_choose_k_takes_the_later_plateau():
    curve = pd.DataFrame({"k": [1, 2, 4, 8], "bic": [100.0, 1.0, 0.0, 5.0], "aic": [100.0, 50.0, 1.5, 0.0]})
    assert choose_k(curve) == 4
    assert choose_k(curve, tolerance=0.0) == 8
    with pytest.raises(ValueError, match="k = 1"):
        choose_k(curve[1:])


def test_fit_refuses_what_it_cannot_fit():
    zc, _ = labelled(20)
    with pytest.raises(ValueError, match="needs at least 32 labelled cells; got 20"):
        Families.fit(zc, n_clusters=32)


def test_fit_leaves_the_global_generators_alone():
    before = torch.get_rng_state()
    state = np.random.get_state()[1].copy()
    Families.fit(labelled(60)[0], **OPTIONS)
    assert torch.equal(before, torch.get_rng_state())
    assert (state == np.random.get_state()[1]).all()
