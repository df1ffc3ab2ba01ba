import math
import warnings

import numpy as np
import pytest
import torch
from agreement import assert_agrees, assert_at_least, assert_at_most
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from small_world import assert_draws_follow, corner, drawn, plane, quick_fits
from torch.distributions import (
    AffineTransform,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
)

from priormatch import densities
from priormatch.checks import NonFiniteError
from priormatch.densities import (
    DegenerateCodesError,
    Fitted,
    NoDensityError,
    choose,
    fit_best,
    fit_flow,
    fit_gaussian,
    fit_mixture,
    fit_mixture_by_class,
)
from priormatch.distributions import AggregatedPosterior, PaddedDensity
from priormatch.divergences import kl_between_gaussians
from priormatch.estimate import TooFewCodesError, average
from priormatch.expectation_maximisation import Components, maximise_expectation
from priormatch.mismatch import held_out_kl
from priormatch.models import standard_normal

KINDS = ("Gaussian", "mixture", "flow")


@pytest.fixture(scope="module")
def fitted():
    """Densities of each kind in one and two dimensions, fitted to codes of unlike scales."""
    found = {}
    for latent in (1, 2):
        stretch = AffineTransform(3.0, torch.tensor([2.0, 0.1])[:latent], event_dim=1)
        codes = stretch(drawn(corner(latent), 5_000))
        unseen = stretch(drawn(corner(latent), 1_000, seed=1))
        found["Gaussian", latent] = fit_gaussian(codes)
        found["mixture", latent] = fit_mixture(codes, 3)
        found["flow", latent] = fit_flow(codes, unseen, steps=150)
    return found


@pytest.mark.parametrize("latent", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_the_density_integrates_to_one(fitted, kind, latent):
    nodes, volume = plane(latent)
    total = fitted[kind, latent].log_prob(nodes).double().exp().sum().item() * volume
    assert total == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("latent", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_draws_follow_the_density_that_log_prob_reports(fitted, kind, latent):
    density = fitted[kind, latent]
    assert_draws_follow(drawn(density, 20_000), density.log_prob, latent)


def test_the_comparison_of_draws_refuses_a_variance_for_a_scale(fitted):
    right = fitted["mixture", 2]
    parts = right.component_distribution
    mistaken = MixtureSameFamily(
        right.mixture_distribution,
        MultivariateNormal(parts.mean, parts.covariance_matrix @ parts.covariance_matrix),
    )
    with pytest.raises(AssertionError, match="is not"):
        assert_draws_follow(drawn(mistaken, 20_000), right.log_prob, 2)


def test_the_comparison_of_draws_refuses_a_product_of_one_dimensional_mixtures(fitted):
    right = fitted["mixture", 2]
    parts = right.component_distribution

    def log_prob(codes):
        each = Normal(parts.mean, parts.stddev).log_prob(codes[:, None, :])
        weights = right.mixture_distribution.logits.log_softmax(0)[:, None]
        return torch.logsumexp(weights + each, 1).sum(1)

    with pytest.raises(AssertionError, match="is not"):
        assert_draws_follow(drawn(right, 20_000), log_prob, 2)


def test_the_integral_refuses_a_log_determinant_counted_per_dimension(fitted):
    flow = fitted["flow", 2]
    (standardise,) = flow.transforms
    nodes, volume = plane(2)
    noise, log_determinant = flow.base_dist.transform.call_and_ladj(standardise.inv(nodes))
    log_determinant = log_determinant - standardise.scale.log().sum()
    right = standard_normal(2).log_prob(noise) + log_determinant
    torch.testing.assert_close(flow.log_prob(nodes), right, atol=1e-3, rtol=1e-4)
    twice = right + log_determinant
    assert abs(twice.double().exp().sum().item() * volume - 1) > 0.1


def test_log_prob_of_the_flow_is_the_change_of_variables(fitted):
    flow = fitted["flow", 2]
    (standardise,) = flow.transforms
    codes = drawn(flow, 20)

    def to_base(code):
        return flow.base_dist.transform(standardise.inv(code))

    for code, log_density in zip(codes, flow.log_prob(codes), strict=True):
        jacobian = torch.autograd.functional.jacobian(to_base, code)
        expected = standard_normal(2).log_prob(to_base(code)) + jacobian.det().abs().log()
        torch.testing.assert_close(log_density, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("latent", [2, 10, 20, 50])
def test_a_gaussian_recovers_shift_scale_and_rotation(latent):
    generator = torch.Generator().manual_seed(0)
    mean = 0.3 * torch.randn(latent, generator=generator)
    factor = 0.3 / math.sqrt(latent) * torch.randn(latent, latent, generator=generator).tril()
    factor = factor + torch.linspace(0.6, 1.2, latent).diag()
    law = MultivariateNormal(mean, scale_tril=factor)
    density = fit_gaussian(drawn(law, 50_000))
    covariance, zero, identity = factor @ factor.T, torch.zeros(latent), torch.eye(latent)
    truth = kl_between_gaussians(mean, covariance, zero, identity).item()
    missed = kl_between_gaussians(mean, covariance, density.mean, density.covariance_matrix).item()
    # Its number of parameters over twice the number of codes, with room.
    assert 0 <= missed < 2 * latent * (latent + 3) / 200_000 + 1e-4
    estimate = held_out_kl(density, drawn(law, 20_000, seed=1), standard_normal(latent))
    assert_agrees(estimate.value, estimate.standard_error, truth - missed)


@pytest.mark.slow
@pytest.mark.parametrize("latent", [1, 2, 10, 20, 50])
def test_a_mixture_finds_a_mixture_and_never_more_than_its_nats(latent):
    law = corner(latent)
    density = fit_mixture(drawn(law, 20_000), 3)
    codes = drawn(law, 20_000, seed=1)
    lost = average(density.log_prob(codes) - law.log_prob(codes))
    assert_at_most(lost.value, lost.standard_error, 0.0)
    # Its number of parameters over twice the number of codes, with room.
    assert lost.value > -0.01 - 1.5 * 3 * latent * (latent + 3) / 80_000


@pytest.mark.slow
@pytest.mark.parametrize(("latent", "room"), [(2, 0.1), (6, 0.25)])
def test_a_flow_finds_most_of_a_mixture_and_never_more_than_its_nats(latent, room):
    law = corner(latent)
    density = fit_flow(drawn(law, 20_000), drawn(law, 2_000, seed=2), steps=300)
    codes = drawn(law, 10_000, seed=1)
    lost = average(density.log_prob(codes) - law.log_prob(codes))
    assert_at_most(lost.value, lost.standard_error, 0.0)
    assert lost.value > -room
    # A Gaussian could not do that.
    gaussian = fit_gaussian(drawn(law, 20_000))
    assert (gaussian.log_prob(codes) - law.log_prob(codes)).mean().item() < -2 * room


@pytest.mark.slow
@pytest.mark.parametrize("latent", [10, 20, 50])
def test_a_flow_sees_dependence_in_many_dimensions_and_never_more_than_there_is(latent):
    law = corner(latent)
    codes, unseen = drawn(law, 10_000), drawn(law, 2_000, seed=1)
    density = fit_flow(codes, drawn(law, 1_000, seed=2), steps=60)
    alone = Independent(Normal(codes.mean(0), codes.std(0)), 1)
    gained = average(density.log_prob(unseen) - alone.log_prob(unseen))
    assert_at_least(gained.value, gained.standard_error, 1.0)
    lost = average(density.log_prob(unseen) - law.log_prob(unseen))
    assert_at_most(lost.value, lost.standard_error, 0.0)


@pytest.mark.parametrize("latent", [1, 3])
def test_steps_of_expectation_maximisation_are_those_of_scikit_learn(latent):
    codes = drawn(corner(latent), 5_000).double()
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    means, covariances = codes[:3], torch.eye(latent).double().expand(3, -1, -1)
    ours = maximise_expectation(codes, Components(weights, means, covariances), 3)
    theirs = GaussianMixture(
        3,
        max_iter=3,
        weights_init=weights.numpy(),
        means_init=means.numpy(),
        precisions_init=covariances.numpy(),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        theirs.fit(codes.numpy())
    parts = (theirs.weights_, theirs.means_, theirs.covariances_)
    for one, other in zip(ours[:3], parts, strict=True):
        torch.testing.assert_close(one, torch.from_numpy(other), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("latent", [1, 3])
def test_log_prob_of_the_mixture_is_that_of_scikit_learn(latent):
    codes = 5 + 3 * drawn(corner(latent), 3_000)
    density = fit_mixture(codes, 4, seed=3)
    unit = codes.double().std(0).square().mean().sqrt()
    standard = ((codes.double() - codes.double().mean(0)) / unit).numpy()
    reference = GaussianMixture(4, max_iter=15, random_state=3).fit(standard)
    expected = torch.from_numpy(reference.score_samples(standard)) - latent * unit.log()
    torch.testing.assert_close(density.log_prob(codes).double(), expected, atol=2e-2, rtol=0)
    # To single precision for one and the same mixture.
    reference.weights_ = density.mixture_distribution.probs.double().numpy()
    reference.means_ = density.component_distribution.mean.double().numpy()
    covariances = density.component_distribution.covariance_matrix.double()
    reference.precisions_cholesky_ = torch.linalg.cholesky(covariances).inverse().mT.numpy()
    same = torch.from_numpy(reference.score_samples(codes.double().numpy()))
    torch.testing.assert_close(density.log_prob(codes).double(), same, atol=1e-4, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("fit", [lambda z: fit_mixture(z, 4), lambda z: fit_flow(z, z, steps=60)])
def test_the_unit_of_the_codes_does_not_matter(fit):
    # Short binary fractions with an exact mean: a change of unit rounds nothing, so that the two
    # trainings of the flow, which would enlarge any rounding, are the same to the last bit.
    half = (1024 * drawn(corner(2), 1_000)).round() / 1024
    codes = torch.cat([half, -half])
    moved = 1024 * codes + 4096
    here, there = fit(codes).log_prob(codes), fit(moved).log_prob(moved)
    torch.testing.assert_close(here, there + 2 * math.log(1024), atol=1e-4, rtol=0)


def test_the_choice_is_made_on_validation_codes():
    law = standard_normal(2)
    codes, validation_codes = drawn(law, 300), drawn(law, 2_000, seed=1)
    options = {"Gaussian": fit_gaussian(codes), "mixture of 50": fit_mixture(codes, 50)}
    # On the codes that it was fitted to, the overfitted mixture looks better.
    assert choose(options, codes).name == "mixture of 50"
    chosen = choose(options, validation_codes)
    assert chosen.name == "Gaussian"
    assert chosen.density is options["Gaussian"]
    for name, density in options.items():
        mean = density.log_prob(validation_codes).mean().item()
        assert chosen.validation_log_density[name] == pytest.approx(mean, rel=1e-5)


@pytest.mark.slow
def test_the_flow_is_kept_where_the_validation_codes_are_likeliest():
    codes, unseen = drawn(corner(6), 100), drawn(corner(6), 1_000, seed=1)
    stopped, overfitted = fit_flow(codes, unseen, steps=150), fit_flow(codes, codes, steps=150)
    assert stopped.log_prob(unseen).mean() > overfitted.log_prob(unseen).mean() + 0.5
    assert stopped.log_prob(codes).mean() < overfitted.log_prob(codes).mean() - 0.5


def test_the_best_of_all_candidates_is_chosen(monkeypatch):
    short = fit_flow
    monkeypatch.setattr(densities, "fit_flow", lambda *given: short(*given, steps=45))
    codes, validation_codes = drawn(corner(2), 2_000), drawn(corner(2), 1_000, seed=1)
    best = fit_best(codes, validation_codes, 0)
    assert isinstance(best, Fitted)
    names = ["Gaussian", "mixture of 10", "mixture of 200", "flow"]
    assert list(best.validation_log_density) == names
    assert best.name == "mixture of 10"
    assert best.validation_log_density[best.name] == max(best.validation_log_density.values())
    mean = best.density.log_prob(validation_codes).mean().item()
    assert best.validation_log_density[best.name] == pytest.approx(mean, rel=1e-5)


@pytest.mark.parametrize(
    "fit", [lambda z, s: fit_mixture(z, 5, s), lambda z, s: fit_flow(z, z[:100], s, steps=15)]
)
def test_the_seed_decides_the_fit_and_global_generators_are_left_alone(fit):
    codes = drawn(corner(2), 500)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first, again, other = fit(codes, 0), fit(codes, 0), fit(codes, 1)
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(numpy_before, np.random.get_state()[1])  # noqa: NPY002
    assert torch.equal(first.log_prob(codes), again.log_prob(codes))
    assert not torch.equal(first.log_prob(codes), other.log_prob(codes))


@pytest.mark.parametrize("latent", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_shapes_follow_torch_distributions(fitted, kind, latent):
    density = fitted[kind, latent]
    assert density.event_shape == (latent,)
    assert density.batch_shape == ()
    for shape in ((), (4,), (2, 3)):
        with torch.random.fork_rng(devices=[]):
            codes = density.sample(shape)
        log_density = density.log_prob(codes)
        assert codes.shape == (*shape, latent)
        assert log_density.shape == shape
        assert codes.dtype == log_density.dtype == torch.float32
        assert not log_density.requires_grad


def test_refuses_codes_that_no_density_can_be_fitted_to():
    codes = drawn(corner(2), 30)
    with pytest.raises(TooFewCodesError, match="31 codes or more are needed, there are 30"):
        fit_mixture(codes, 31)
    for fit in (fit_gaussian, lambda few: fit_mixture(few, 1), lambda few: fit_flow(few, codes)):
        with pytest.raises(TooFewCodesError, match="3 codes"):
            fit(codes[:2])
        with pytest.raises(DegenerateCodesError, match="scales"):
            fit(torch.cat([codes[:, :1], torch.ones(30, 1)], 1))
        with pytest.raises(NonFiniteError, match=r"codes.30, 0. is nan, the first of 2"):
            fit(torch.cat([codes, torch.full((1, 2), math.nan)]))
    with pytest.raises(DegenerateCodesError, match="2 dimensions lie in 1"):
        fit_gaussian(codes[:, :1].repeat(1, 2))
    assert issubclass(TooFewCodesError, ValueError)
    assert issubclass(DegenerateCodesError, ValueError)


def test_the_flow_library_leaves_the_checks_of_distributions_on():
    # zuko switches them off for the whole process when it is imported.
    with pytest.raises(ValueError, match="scale"):
        Normal(0.0, -1.0)
    wide = TransformedDistribution(
        Independent(Normal(torch.zeros(2), torch.ones(2)), 1), AffineTransform(0.0, 2.0)
    )
    with pytest.raises(ValueError, match="size"):
        wide.log_prob(torch.zeros(4, 3))


@pytest.mark.slow
def test_a_candidate_that_cannot_be_fitted_leaves_the_others():
    codes = drawn(corner(2), 150)
    best = fit_best(codes, drawn(corner(2), 100, seed=1))
    assert best.name in best.validation_log_density
    assert set(best.failed) == {"mixture of 200"}
    assert "200 codes or more are needed, there are 150" in best.failed["mixture of 200"]


def test_where_nothing_can_be_fitted_every_reason_is_given():
    with pytest.raises(NoDensityError, match=r"Gaussian, mixture of 10, .*flow: "):
        fit_best(torch.zeros(20, 2), torch.zeros(20, 2))


@pytest.fixture
def small_fits():
    with quick_fits(3, 30):
        yield


@pytest.mark.usefixtures("small_fits")
def test_densities_are_fitted_to_active_dimensions_alone():
    generator = torch.Generator().manual_seed(0)
    means = torch.zeros(2_000, 12)
    means[:, [7, 3]] = torch.randn(2_000, 2, generator=generator) * torch.tensor([1.5, 0.7])
    scales = torch.ones(2_000, 12)
    scales[:, [7, 3]] = 0.2
    aggregated = AggregatedPosterior(means, scales)
    codes, unseen, held_out = (aggregated.sample((2_000,), generator=generator) for _ in range(3))
    best = fit_best(codes, unseen, 0, aggregated)
    assert isinstance(best.density, PaddedDensity)
    assert best.density.dimensions == [3, 7]
    alone = fit_best(codes[:, [3, 7]], unseen[:, [3, 7]], 0, aggregated.marginal(3, 7))
    assert best.name == alone.name
    # In the ratio to the prior the silent dimensions cancel.
    whole = best.density.log_prob(held_out) - standard_normal(12).log_prob(held_out)
    active = held_out[:, [3, 7]]
    part = alone.density.log_prob(active) - standard_normal(2).log_prob(active)
    torch.testing.assert_close(whole, part, atol=1e-4, rtol=1e-4)


def test_posteriors_that_all_say_nothing_have_the_prior_as_their_density():
    silent = AggregatedPosterior(torch.zeros(50, 2), torch.ones(50, 2))
    codes = silent.sample((50,), generator=torch.Generator().manual_seed(0))
    best = fit_best(codes, codes, 0, silent)
    assert best.name == "N(0, I)"
    torch.testing.assert_close(best.density.log_prob(codes), standard_normal(2).log_prob(codes))


@pytest.mark.slow
def test_a_flow_on_fresh_draws_overfits_few_posteriors_less():
    # 300 posteriors, wide: their codes drawn once are a sample, drawn anew they are the mixture.
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(300, 2, generator=generator)
    aggregated = AggregatedPosterior(means, torch.full((300, 2), 0.5))
    once = aggregated.means + 0.5 * torch.randn(300, 2, generator=generator)
    unseen, held_out = (aggregated.sample((3_000,), generator=generator) for _ in range(2))
    fresh, fixed = fit_flow(aggregated, unseen), fit_flow(once, unseen)
    gain = average(fresh.log_prob(held_out) - fixed.log_prob(held_out))
    assert gain.value > 5 * gain.standard_error
    assert_at_most(*_closeness(fresh, aggregated, held_out), 0.1)


def _closeness(density, mixture, codes):
    lost = average(mixture.log_prob(codes) - density.log_prob(codes))
    return lost.value, lost.standard_error


def test_one_gaussian_a_class_has_the_moments_and_shares_of_the_classes():
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([4] * 3_000 + [9] * 1_000)
    codes = torch.randn(4_000, 2, generator=generator)
    codes[labels == 9] = codes[labels == 9] * 0.5 + 3
    found = fit_mixture_by_class(codes, labels)
    torch.testing.assert_close(found.mixture_distribution.probs, torch.tensor([0.75, 0.25]))
    for one, label in enumerate((4, 9)):
        own = codes[labels == label]
        torch.testing.assert_close(found.component_distribution.loc[one], own.mean(0))
        torch.testing.assert_close(
            found.component_distribution.covariance_matrix[one], torch.cov(own.T)
        )
