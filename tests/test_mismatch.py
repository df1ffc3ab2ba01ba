import math

import numpy as np
import pytest
import torch
from agreement import assert_agrees, assert_at_least, assert_at_most, assert_honest, coverage
from scipy.stats import chi2, norm
from torch.distributions import (
    Categorical,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    Uniform,
)
from torch.distributions.kl import kl_divergence

from priormatch.distributions import AggregatedPosterior
from priormatch.divergences import kl_between_gaussians, kl_from_uniform
from priormatch.estimate import Estimate, TooFewCodesError, average
from priormatch.mismatch import (
    active_units,
    dimension_wise_kl,
    held_out_kl,
    hole_share,
    in_sample_kl,
    matched_dimensions,
    mean_rate,
    mean_square_per_dimension,
    moment_bound,
    nearest_patch,
    rate_per_dimension,
    reverse_kl,
    thin_share,
    total_correlation,
)
from priormatch.models import draw, standard_normal
from priormatch.reporting import Result
from priormatch.two_sample import classifier_test, radius, sliced_wasserstein

# The aggregated posterior of this population is exactly N(shift, spread): its examples have
# Gaussian means and one scale. Its KL from N(0, I) is therefore known.
SCALE = 0.3


def population(latent, spread=1.0, shift=0.0):
    mean = torch.full((latent,), shift)
    covariance = spread * torch.eye(latent)
    truth = kl_between_gaussians(mean, covariance, torch.zeros(latent), torch.eye(latent)).item()
    return MultivariateNormal(mean, covariance - SCALE**2 * torch.eye(latent)), truth


def encoded(examples, examples_wanted):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        means = examples.sample((examples_wanted,))
    return AggregatedPosterior(means, torch.full_like(means, SCALE))


def gaussian(kind, latent):
    """Return a mean and a covariance; the rotated one has correlated dimensions."""
    mean, identity = torch.zeros(latent), torch.eye(latent)
    if kind == "shifted":
        return mean + 0.3, identity
    if kind == "scaled":
        return mean, 1.3 * identity
    turn = rotation(latent)
    return mean, turn @ torch.diag(torch.linspace(0.5, 1.5, latent)) @ turn.T


def rotation(latent):
    noise = torch.randn(latent, latent, generator=torch.Generator().manual_seed(0))
    return torch.linalg.qr(noise).Q


def bimodal(offset, latent):
    """Return rotated independent bimodal dimensions as one mixture, and the KL of each of them.

    Mean and covariance are the prior's, and so in high dimension are the margins, nearly.
    """
    corners = torch.cartesian_prod(*[torch.tensor([-offset, offset])] * latent)
    corners = corners.reshape(-1, latent)
    scale = math.sqrt(1 - offset**2)
    alone = AggregatedPosterior(torch.tensor([[-offset], [offset]]), torch.full((2, 1), scale))
    truth = integral(alone)
    return AggregatedPosterior(corners @ rotation(latent).T, torch.full_like(corners, scale)), truth


def integral(density):
    """Return KL(density || N(0, 1)) in one dimension by quadrature."""
    axis = torch.linspace(-12, 12, 20_001)[:, None]
    log_q = density.log_prob(axis).double()
    log_p = standard_normal(1).log_prob(axis).double()
    return torch.trapezoid(log_q.exp() * (log_q - log_p), axis[:, 0].double()).item()


def intervals(*starts):
    """Return the mixture of uniform posteriors on intervals of length 1 in (0, 10)."""
    lower = torch.tensor(starts, dtype=torch.float32)[:, None]
    posteriors = Independent(Uniform(lower, lower + 1, validate_args=False), 1)
    weights = Categorical(torch.ones(len(starts)))
    return MixtureSameFamily(weights, posteriors, validate_args=False)


def drawn(distribution, draws, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return distribution.sample((draws,))


def test_average_is_the_mean_with_its_standard_error():
    values = torch.tensor([1.0, 2.0, 3.0, 4.0])
    estimate = average(values)
    assert estimate.value == 2.5
    assert estimate.standard_error == pytest.approx(math.sqrt(5 / 3 / 4), rel=1e-12)
    assert str(Estimate(0.11823, 0.0052)) == "0.1182 ± 0.0052"
    assert str(Estimate(1234.5, 120.0)) == "1234 ± 120"


def test_mean_rate_is_the_average_of_the_closed_form():
    aggregated = AggregatedPosterior(torch.tensor([[0.0], [2.0]]), torch.ones(2, 1))
    assert mean_rate(aggregated).item() == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_in_sample_kl_of_one_mixture_is_its_integral(seed):
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(5, 1, generator=generator)
    aggregated = AggregatedPosterior(means, 0.1 + torch.rand(5, 1, generator=generator))
    axis = torch.linspace(-12, 12, 20_001)[:, None]
    log_q = aggregated.log_prob(axis).double()
    log_p = standard_normal(1).log_prob(axis).double()
    truth = torch.trapezoid(log_q.exp() * (log_q - log_p), axis[:, 0].double()).item()
    estimate = in_sample_kl(aggregated, standard_normal(1), 100_000, generator)
    assert_agrees(estimate.value, estimate.standard_error, truth)
    assert estimate.bound == "upper"


def test_standard_errors_of_the_mixture_measures_are_honest():
    generator = torch.Generator().manual_seed(0)
    aggregated = AggregatedPosterior(torch.tensor([[-0.7], [0.4], [1.1]]), torch.full((3, 1), 0.8))
    axis = torch.linspace(-12, 12, 20_001)[:, None]
    log_q = aggregated.log_prob(axis).double()
    log_p = standard_normal(1).log_prob(axis).double()
    truth = torch.trapezoid(log_q.exp() * (log_q - log_p), axis[:, 0].double()).item()
    prior = standard_normal(1)
    inside = [in_sample_kl(aggregated, prior, 500, generator) for _ in range(300)]
    assert_honest(coverage(inside, truth))
    outside = [
        held_out_kl(aggregated, aggregated.sample((500,), generator=generator), prior)
        for _ in range(300)
    ]
    assert_honest(coverage(outside, truth))


@pytest.mark.parametrize(
    ("latent", "spread", "shift"), [(1, 1.0, 0.0), (2, 1.0, 0.0), (2, 1.5, 0.0), (2, 0.6, 0.5)]
)
@pytest.mark.slow
def test_the_sandwich_holds_the_truth(latent, spread, shift):
    examples, truth = population(latent, spread, shift)
    train = encoded(examples, 20_000)
    generator = torch.Generator().manual_seed(1)
    prior = standard_normal(latent)
    unseen = MultivariateNormal(examples.mean, spread * torch.eye(latent))
    noise = torch.randn(20_000, latent, generator=generator)
    codes = unseen.mean + math.sqrt(spread) * noise
    above = in_sample_kl(train, prior, 20_000, generator)
    below = held_out_kl(train, codes, prior)
    assert_at_least(above.value, above.standard_error, truth)
    assert_at_most(below.value, below.standard_error, truth)
    # And it is narrow at a rate far below log N.
    assert above.value - below.value < 0.1


def test_beyond_log_n_the_in_sample_number_is_its_floor_and_not_the_truth():
    examples, truth = population(latent=20)
    assert truth == pytest.approx(0, abs=1e-6)
    train = encoded(examples, 1_000)
    prior = standard_normal(20)
    above = in_sample_kl(train, prior, 2_000, torch.Generator().manual_seed(0))
    assert above.floor == pytest.approx(mean_rate(train).item() - math.log(1_000), rel=1e-6)
    assert above.floor > 9
    assert above.value == pytest.approx(above.floor, abs=5 * above.standard_error + 0.05)


def test_the_floor_is_that_of_the_prior_it_is_asked_for():
    generator = torch.Generator().manual_seed(0)
    train = encoded(population(latent=2)[0], 1_000)
    moved = Independent(Normal(torch.tensor([5.0, -2.0]), 1.5), 1)
    above = in_sample_kl(train, moved, 2_000, generator)
    rates = torch.stack(
        [
            kl_divergence(Normal(mean, scale), moved.base_dist).sum()
            for mean, scale in zip(train.means, train.scales, strict=True)
        ]
    )
    assert above.floor == pytest.approx(rates.mean().item() - math.log(1_000), rel=1e-5)
    assert above.floor < above.value
    quilt = AggregatedPosterior(torch.zeros(3, 2), torch.ones(3, 2))
    assert in_sample_kl(train, quilt, 100, generator).floor is None


def test_held_out_kl_of_a_density_misses_exactly_its_own_divergence():
    generator = torch.Generator().manual_seed(0)
    codes = 1.3 * torch.randn(50_000, 1, generator=generator)
    density = standard_normal(1).expand(())
    wide = torch.distributions.Independent(Normal(torch.zeros(1), 1.2 * torch.ones(1)), 1)
    truth, prior = Normal(0.0, 1.3), Normal(0.0, 1.0)
    expected = (
        torch.distributions.kl_divergence(truth, prior)
        - torch.distributions.kl_divergence(truth, Normal(0.0, 1.2))
    ).item()
    estimate = held_out_kl(wide, codes, density)
    assert_agrees(estimate.value, estimate.standard_error, expected)
    assert estimate.bound == "lower"


def test_moment_bound_of_a_gaussian_is_its_divergence_with_an_honest_error():
    generator = torch.Generator().manual_seed(0)
    factor = torch.tensor([[1.2, 0.0], [0.4, 0.8]])
    mean = torch.tensor([0.3, -0.2])
    truth = kl_between_gaussians(mean, factor @ factor.T, torch.zeros(2), torch.eye(2)).item()
    estimates = [
        moment_bound(mean + torch.randn(1_000, 2, generator=generator) @ factor.T)
        for _ in range(300)
    ]
    assert_honest(coverage(estimates, truth))
    assert estimates[0].bound == "lower"


def test_moment_bound_is_unbiased_at_the_prior_even_in_many_dimensions():
    generator = torch.Generator().manual_seed(0)
    values = torch.tensor(
        [moment_bound(torch.randn(5_000, 50, generator=generator)).value for _ in range(50)]
    )
    estimate = average(values)
    # The plug-in estimate alone would be 0.13 nats above the truth of zero.
    assert abs(estimate.value) < 0.01


def test_moment_bound_is_below_the_divergence_of_a_bimodal_law():
    generator = torch.Generator().manual_seed(0)
    aggregated = AggregatedPosterior(torch.tensor([[-0.9], [0.9]]), torch.full((2, 1), 0.2))
    moments = moment_bound(aggregated.sample((20_000,), generator=generator))
    joint = in_sample_kl(aggregated, standard_normal(1), 20_000, generator)
    assert moments.value < 0.05
    assert joint.value > 0.5


def test_a_matching_prior_has_the_stated_share_in_holes():
    generator = torch.Generator().manual_seed(0)
    prior = standard_normal(2)
    shares = [
        hole_share(
            prior,
            torch.randn(2_000, 2, generator=generator),
            torch.randn(2_000, 2, generator=generator),
        )
        for _ in range(300)
    ]
    values = torch.tensor([share.value for share in shares])
    assert_agrees(values.mean().item(), values.std().item() / math.sqrt(300), 0.01)
    errors = torch.tensor([share.standard_error for share in shares])
    assert errors.mean().item() == pytest.approx(values.std().item(), rel=0.15)


def test_a_prior_with_half_of_its_mass_uncovered_has_half_in_holes():
    generator = torch.Generator().manual_seed(0)
    codes = draw(standard_normal(1).expand((5_000,)), generator).abs()
    narrow = AggregatedPosterior(codes, torch.full_like(codes, 0.02))
    share = hole_share(
        narrow,
        draw(standard_normal(1).expand((5_000,)), generator).abs(),
        torch.randn(5_000, 1, generator=generator),
    )
    assert_agrees(share.value, share.standard_error, 0.5 + 0.5 * 0.01)


@pytest.mark.parametrize("error", [12.0, 0.5, 0.0996, 0.0052])
def test_estimates_and_results_show_the_same_digits(error):
    assert str(Estimate(123.456, error)) == str(Result(123.456, "Monte Carlo", error))


def test_rate_per_dimension_is_the_average_of_each_closed_form():
    scales = torch.tensor([[1.0, 0.5], [1.0, 0.5]])
    aggregated = AggregatedPosterior(torch.tensor([[0.0, 1.0], [2.0, 1.0]]), scales)
    second = 0.5 * (1 + 0.25 - 1 - math.log(0.25))
    torch.testing.assert_close(rate_per_dimension(aggregated), torch.tensor([1.0, second]))
    assert mean_rate(aggregated).item() == pytest.approx(1.0 + second, rel=1e-6)


def test_active_units_counts_the_means_that_vary_by_more_than_a_hundredth():
    generator = torch.Generator().manual_seed(0)
    spreads = torch.tensor([0.0, 0.09, 0.11, 1.0])
    means = 5 + spreads * torch.randn(50_000, 4, generator=generator)
    aggregated = AggregatedPosterior(means, torch.ones_like(means))
    assert active_units(aggregated) == 2
    assert active_units(aggregated, threshold=0.001) == 3


@pytest.mark.parametrize(
    "latent", [2, 10, *(pytest.param(latent, marks=pytest.mark.slow) for latent in (20, 50))]
)
@pytest.mark.parametrize("kind", ["shifted", "scaled", "rotated"])
def test_measures_of_a_gaussian_are_its_closed_forms(kind, latent):
    mean, covariance = gaussian(kind, latent)
    unseen = MultivariateNormal(mean, covariance)
    zero, identity = torch.zeros(latent), torch.eye(latent)
    joint = kl_between_gaussians(mean, covariance, zero, identity).item()
    alone = 0.5 * (mean.square() + covariance.diagonal() - 1 - covariance.diagonal().log())
    between = MultivariateNormal(mean, covariance - SCALE**2 * identity)
    train, prior = encoded(between, 20_000), standard_normal(latent)
    codes = drawn(unseen, 5_000, seed=1)

    moments, density = moment_bound(codes), held_out_kl(unseen, codes, prior)
    assert_agrees(moments.value, moments.standard_error, joint)
    assert_agrees(density.value, density.standard_error, joint)

    marginal, dependence = (
        dimension_wise_kl(train, codes).total,
        total_correlation(unseen, train, codes),
    )
    assert marginal.value + dependence.value == pytest.approx(density.value, abs=1e-5)
    assert (marginal.bound, dependence.bound) == ("lower", "none")
    # The marginals of so many posteriors overfit by less than this, and never the other way.
    overfit = 0.0005 * latent
    truth = alone.sum().item()
    assert_at_most(marginal.value, marginal.standard_error, truth)
    assert_at_least(marginal.value + overfit, marginal.standard_error, truth)
    assert_at_least(dependence.value, dependence.standard_error, joint - truth)
    assert_at_most(dependence.value - overfit, dependence.standard_error, joint - truth)

    back = reverse_kl(unseen, drawn(prior, 5_000, seed=2), prior)
    backwards = kl_between_gaussians(zero, identity, mean, covariance).item()
    assert_agrees(back.value, back.standard_error, backwards)
    assert back.bound == "none"

    square = radius(codes).mean_square.estimate
    expected = (covariance.trace() + mean.square().sum()).item()
    assert_agrees(square.value, square.standard_error, expected)


@pytest.mark.parametrize("latent", [2, 10, 20, 50])
def test_measures_of_a_shrunk_prior_are_those_of_its_radius(latent):
    # With q = N(0, s^2 I) every ratio of densities is a function of |z|^2, chi-square under p.
    scale, count, square = 0.8, 20_000, chi2(latent)
    generator = torch.Generator().manual_seed(0)
    codes, prior_draws = torch.randn(2, count, latent, generator=generator)
    codes, prior = scale * codes, standard_normal(latent)
    law = Independent(Normal(torch.zeros(latent), scale), 1)

    hole = hole_share(law, codes, prior_draws)
    assert_agrees(hole.value, hole.standard_error, square.sf(scale**2 * square.ppf(0.99)))
    thin = thin_share(law, prior_draws, prior)
    beyond = 2 * (math.log(10) - latent * math.log(scale)) / (1 / scale**2 - 1)
    assert_agrees(thin.value, thin.standard_error, square.sf(beyond))

    found = radius(codes)
    mean_square = found.mean_square.estimate
    assert_agrees(mean_square.value, mean_square.standard_error, latent * scale**2)
    distance = found.distance.estimate
    axis = np.linspace(0, 200, 100_001)
    truth = np.abs(square.cdf(axis / scale**2) - square.cdf(axis)).max()
    assert_at_least(distance.value, distance.standard_error, truth)
    assert distance.value < truth + 0.02

    # Every projection is |s - 1| E|z| from N(0, 1).
    projected = sliced_wasserstein(codes, generator, 20).estimate
    truth = (1 - scale) * math.sqrt(2 / math.pi)
    assert_at_least(projected.value, projected.standard_error, truth)
    assert projected.value < truth + 0.01


@pytest.mark.slow
@pytest.mark.parametrize("latent", [2, 10])
@pytest.mark.parametrize(("scale", "quantile"), [(0.8, 0.01), (1.0, 0.01), (1.1, 0.1)])
def test_standard_errors_of_the_hole_share_are_honest(latent, scale, quantile):
    # A draw lies in a hole if |z|^2, chi-square under the prior, is beyond a quantile of q's.
    square = chi2(latent)
    truth = square.sf(scale**2 * square.isf(quantile))
    law = Independent(Normal(torch.zeros(latent), scale), 1)
    generator = torch.Generator().manual_seed(0)
    shares = [
        hole_share(
            law,
            scale * torch.randn(5_000, latent, generator=generator),
            torch.randn(5_000, latent, generator=generator),
            quantile,
        )
        for _ in range(300)
    ]
    assert_honest(coverage(shares, truth))
    assert {share.bound for share in shares} == {"none"}


def test_dimensions_are_told_apart():
    mean = torch.tensor([0.0, 0.5, 1.0])
    train = encoded(MultivariateNormal(mean, (1 - SCALE**2) * torch.eye(3)), 20_000)
    codes = mean + torch.randn(5_000, 3, generator=torch.Generator().manual_seed(1))
    total, each = alone = dimension_wise_kl(train, codes)
    assert matched_dimensions(train, alone) == [0]
    # A few narrow posteriors miss the codes, so that their bound says nothing about a match.
    few = AggregatedPosterior(train.means[:100], torch.full((100, 3), 0.02))
    assert dimension_wise_kl(few, codes).per_dimension[0].value < 0
    assert matched_dimensions(few, dimension_wise_kl(few, codes)) == []
    for one, truth in zip(each, (0.0, 0.125, 0.5), strict=True):
        assert_agrees(one.value, one.standard_error + 1e-4, truth)
        assert one.bound == "lower"
    assert sum(one.value for one in each) == pytest.approx(total.value, rel=1e-9)


def scattered(components, narrowest):
    """Return a mixture with scales from `narrowest` to 1, and codes of it."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(components, 2, generator=generator)
    scales = narrowest ** torch.rand(components, 2, generator=generator)
    aggregated = AggregatedPosterior(means, scales)
    return aggregated, aggregated.sample((5_000,), generator=generator)


@pytest.mark.parametrize(
    ("components", "narrowest"),
    [(1_000, 0.005), pytest.param(60_000, 0.02, marks=pytest.mark.slow)],
)
def test_interpolated_marginals_are_exact(components, narrowest):
    aggregated, codes = scattered(components, narrowest)
    prior = standard_normal(1)
    exact = [held_out_kl(aggregated.marginal(j), codes[:, [j]], prior).value for j in range(2)]
    total, each = dimension_wise_kl(aggregated, codes)
    assert [one.value for one in each] == pytest.approx(exact, abs=1e-5)
    assert total.value == pytest.approx(sum(exact), abs=2e-5)


def test_interpolated_marginals_are_cheap(monkeypatch):
    aggregated, codes = scattered(1_000, 0.1)
    evaluated = []
    log_prob = AggregatedPosterior.log_prob

    def counted(self, value):
        evaluated.append(len(value))
        return log_prob(self, value)

    monkeypatch.setattr(AggregatedPosterior, "log_prob", counted)
    dimension_wise_kl(aggregated, codes)
    assert sum(evaluated) < codes.numel() / 5


def test_a_spike_that_no_node_meets_is_not_lost():
    # Half of the codes lie in a spike a thousand times narrower than the first grid's spacing.
    means = torch.tensor([[0.01234], [0.0]])
    aggregated = AggregatedPosterior(means, torch.tensor([[1e-4], [1.0]]))
    codes = aggregated.sample((1_000,), generator=torch.Generator().manual_seed(0))
    # And it comes last in the order of the codes.
    codes = codes[(codes[:, 0] - 0.01234).abs().argsort(descending=True)]
    exact = held_out_kl(aggregated, codes, standard_normal(1)).value
    assert dimension_wise_kl(aggregated, codes).total.value == pytest.approx(exact, abs=1e-4)
    assert exact > 3


def test_margins_and_moments_do_not_see_a_rotated_mixture_and_densities_do():
    mixture, truth = bimodal(offset=0.8, latent=10)
    generator = torch.Generator().manual_seed(0)
    codes = mixture.sample((4_000,), generator=generator)
    joint = held_out_kl(mixture, codes, standard_normal(10))
    assert_agrees(joint.value, joint.standard_error, 10 * truth)
    assert joint.value > 0.3
    # Each of the ten marginals is a mixture of its own.
    alone = sum(integral(mixture.marginal(j)) for j in range(10))
    marginal = dimension_wise_kl(mixture, codes).total
    assert_agrees(marginal.value, marginal.standard_error, alone)
    dependence = total_correlation(mixture, mixture, codes)
    assert_agrees(dependence.value, dependence.standard_error, 10 * truth - alone)
    assert alone < 0.03
    assert abs(moment_bound(codes).value) < 0.02
    statistic = sliced_wasserstein(codes, generator)
    assert statistic.estimate.value < 1.2 * statistic.high


@pytest.mark.slow
def test_standard_errors_of_marginals_and_dependence_are_honest():
    mixture, truth = bimodal(offset=0.8, latent=2)
    alone = sum(integral(mixture.marginal(j)) for j in range(2))
    generator = torch.Generator().manual_seed(0)
    marginals, dependences, first = [], [], []
    for _ in range(300):
        codes = mixture.sample((500,), generator=generator)
        total, each = dimension_wise_kl(mixture, codes)
        marginals.append(total)
        first.append(each[0])
        dependences.append(total_correlation(mixture, mixture, codes))
    assert_honest(coverage(marginals, alone))
    assert_honest(coverage(first, integral(mixture.marginal(0))))
    assert_honest(coverage(dependences, 2 * truth - alone))


def test_a_match_far_beyond_log_n_is_found_by_what_does_not_know_the_examples():
    examples, truth = population(latent=20)
    assert truth == pytest.approx(0, abs=1e-6)
    train, prior = encoded(examples, 1_000), standard_normal(20)
    assert mean_rate(train).item() > math.log(1_000) + 9
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(5_000, 20, generator=generator)
    assert in_sample_kl(train, prior, 500, generator).value > 9
    assert held_out_kl(train, codes, prior).value < -9
    fitted = MultivariateNormal(train.mean, train.covariance)
    density = held_out_kl(fitted, codes, prior)
    assert_at_most(density.value, density.standard_error, truth)
    # What fitting d (d + 3) / 2 parameters to 1,000 examples costs.
    assert density.value > -2 * 20 * 23 / 4_000
    assert abs(moment_bound(codes).value) < 0.01
    assert abs(dimension_wise_kl(train, codes).total.value) < 0.1


@pytest.mark.parametrize(
    ("starts", "truth"),
    [
        (range(10), 0.0),
        ((0, 1, 2, 4, 7, 8), kl_from_uniform(0.6)),
        # Two of ten posteriors on one interval leave another one empty.
        ((0, 0, 2, 3, 4, 5, 6, 7, 8, 9), 0.2 * math.log(2)),
    ],
)
def test_uniform_intervals_cost_their_gaps_alone(starts, truth):
    aggregated, prior = intervals(*starts), intervals(*range(10))
    codes, prior_draws = drawn(aggregated, 10_000), drawn(prior, 10_000, seed=1)
    each = torch.distributions.kl_divergence(Uniform(0.0, 1.0), Uniform(0.0, 10.0))
    assert each.item() == pytest.approx(math.log(10), rel=1e-6)
    estimate = held_out_kl(aggregated, codes, prior)
    assert_agrees(estimate.value, estimate.standard_error + 1e-8, truth)
    empty = 1 - len(set(starts)) / 10
    thin = thin_share(aggregated, prior_draws, prior)
    assert_agrees(thin.value, thin.standard_error, empty)
    back = reverse_kl(aggregated, prior_draws, prior)
    assert back.value == (math.inf if empty else pytest.approx(0, abs=1e-6))
    variation = sum(max(starts.count(start) / len(starts) - 0.1, 0) for start in set(starts))
    found = classifier_test(codes, prior_draws).total_variation
    assert_at_most(found.value, found.standard_error, variation)
    assert found.value > variation - 0.03


def test_standard_errors_over_the_prior_are_honest():
    narrow, prior = (
        Independent(Normal(torch.zeros(1), torch.full((1,), 0.5)), 1),
        standard_normal(1),
    )
    generator = torch.Generator().manual_seed(0)
    draws = [torch.randn(1_000, 1, generator=generator) for _ in range(300)]
    divergence = torch.distributions.kl_divergence(prior, narrow).item()
    assert_honest(coverage([reverse_kl(narrow, some, prior) for some in draws], divergence))
    # ln p(z) - ln r(z) = ln 0.5 + 1.5 z^2 exceeds ln 10 where z^2 > ln 20 / 1.5.
    thin = chi2.sf(math.log(20) / 1.5, 1)
    assert_honest(coverage([thin_share(narrow, some, prior) for some in draws], thin))
    # A third of an expected draw: the error at a count of zero is not zero.
    factor = 0.5 * math.exp(1.5 * chi2.isf(1 / 3_000, 1))
    rare = [thin_share(narrow, some, prior, factor) for some in draws]
    assert sum(share.value == 0 for share in rare) > 150
    assert coverage(rare, 1 / 3_000) >= 0.95 * 300
    assert all(share.standard_error < 3 / 1_000 for share in rare if share.value == 0)


def test_codes_that_are_all_one_number_need_no_spline():
    aggregated = AggregatedPosterior(torch.ones(3, 1), torch.ones(3, 1))
    total = dimension_wise_kl(aggregated, torch.full((100, 1), 5.0)).total
    assert total.value == pytest.approx((5**2 - 4**2) / 2, rel=1e-6)


@pytest.mark.slow
def test_moment_bound_holds_in_expectation_with_few_codes_in_many_dimensions():
    generator = torch.Generator().manual_seed(0)
    for draws, latent in ((100, 50), (400, 200), (10_000, 1_024)):
        repetitions = 40 if latent < 1_000 else 2
        values = [
            moment_bound(torch.randn(draws, latent, generator=generator))
            for _ in range(repetitions)
        ]
        mean = average(torch.tensor([one.value for one in values]))
        error = max(mean.standard_error, values[0].standard_error / math.sqrt(repetitions))
        # The plug-in estimate would be 12, 49 and 0.9 nats above the truth of zero.
        assert_agrees(mean.value, error + 1e-6, 0.0)


def test_moment_bound_of_too_few_codes_is_refused_with_the_number_needed():
    with pytest.raises(TooFewCodesError, match=r"needs 100 codes or more, and there are 99"):
        moment_bound(torch.randn(99, 50))


def test_nearest_patch_of_one_posterior_is_chi_square():
    single = AggregatedPosterior(torch.full((1, 3), 2.0), torch.full((1, 3), 0.5))
    codes = single.sample((20_000,), generator=torch.Generator().manual_seed(0))
    found = nearest_patch(single, codes)
    assert_agrees(found.share.value, found.share.standard_error, 0.99)
    median = math.sqrt(chi2.ppf(0.5, 3))
    assert_agrees(found.distance.value, found.distance.standard_error, median)
    assert nearest_patch(single, codes + 10).share.value == 0
    assert nearest_patch(single, codes + 10).share.standard_error > 0


def test_the_error_of_the_median_distance_is_honest():
    single = AggregatedPosterior(torch.zeros(1, 1), torch.ones(1, 1))
    generator = torch.Generator().manual_seed(0)
    draws = [torch.randn(500, 1, generator=generator) for _ in range(300)]
    distances = [nearest_patch(single, some).distance for some in draws]
    assert_honest(coverage(distances, norm.ppf(0.75)))


def test_patches_that_cover_the_plane_do_not_cover_ten_dimensions():
    shares = {}
    for latent in (2, 10):
        train = encoded(population(latent)[0], 5_000)
        draws = torch.randn(1_000, latent, generator=torch.Generator().manual_seed(1))
        shares[latent] = nearest_patch(train, draws).share.value
    assert shares[2] > 0.95
    assert shares[10] < 0.5


def test_mean_squares_are_those_of_many_draws():
    mixture = bimodal(0.9, 2)[0]
    codes = mixture.sample((200_000,), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        mean_square_per_dimension(mixture), codes.square().mean(0), atol=0.01, rtol=0
    )
