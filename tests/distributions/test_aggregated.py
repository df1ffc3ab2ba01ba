import math

import pytest
import torch
from agreement import assert_agrees
from scipy.stats import kstest
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from priormatch.distributions import AggregatedPosterior
from priormatch.estimate import average


def quilt(components, latent, seed=0, smallest_scale=0.001):
    """Return a mixture that is clearly no Gaussian, with scales down to `smallest_scale`."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(components, latent, generator=generator)
    scales = smallest_scale + 0.3 * torch.rand(components, latent, generator=generator)
    return AggregatedPosterior(means + means.sign(), scales)


def reference(aggregated, codes):
    """Return log q(z) by torch's own mixture in double precision."""
    components = Independent(Normal(aggregated.means.double(), aggregated.scales.double()), 1)
    weights = Categorical(logits=torch.zeros(aggregated.components, dtype=torch.float64))
    return MixtureSameFamily(weights, components).log_prob(codes.double())


@pytest.mark.parametrize(
    ("components", "latent"),
    [
        *((1, 1), (3, 2), (1_025, 2), (60_000, 2)),
        pytest.param(60_000, 20, marks=pytest.mark.slow),
    ],
)
def test_log_prob_is_that_of_torch_in_double_precision(components, latent):
    aggregated = quilt(components, latent)
    generator = torch.Generator().manual_seed(1)
    near = aggregated.sample((100,), generator=generator)
    far = 8 * torch.randn(29, latent, generator=generator)
    codes = torch.cat([near, far])
    # Far codes have log densities of many thousands of nats, beyond the digits of a float.
    allowed = 1e-4 + 1e-7 * reference(aggregated, codes).abs()
    difference = (aggregated.log_prob(codes).double() - reference(aggregated, codes)).abs()
    assert (difference <= allowed).all()
    assert difference[:100].max() < 1e-4


def test_shapes_follow_torch_distributions():
    aggregated = quilt(5, 3)
    assert aggregated.batch_shape == ()
    assert aggregated.event_shape == (3,)
    assert aggregated.components == 5
    generator = torch.Generator().manual_seed(0)
    for shape in ((), (4,), (2, 3)):
        codes = aggregated.sample(shape, generator=generator)
        assert codes.shape == (*shape, 3)
        assert aggregated.log_prob(codes).shape == shape
    assert aggregated.posteriors.batch_shape == (5,)
    with pytest.raises(NotImplementedError, match="no batch"):
        aggregated.expand((2,))


def test_memory_does_not_grow_with_draws_times_components():
    resource = pytest.importorskip("resource")
    aggregated = quilt(60_000, 2)
    codes = aggregated.sample((2_000,), generator=torch.Generator().manual_seed(0))
    aggregated.log_prob(codes[:10])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    aggregated.log_prob(codes)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < 100e6, f"{grown / 1e6:.0f} MB; the table of all pairs would take 960 MB"


@pytest.mark.slow
def test_a_million_components():
    aggregated = quilt(1_000_000, 2)
    codes = aggregated.sample((5,), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        aggregated.log_prob(codes).double(), reference(aggregated, codes), atol=1e-4, rtol=0
    )


def test_moments_are_exact():
    aggregated = quilt(50, 3)
    means, scales = aggregated.means.double(), aggregated.scales.double()
    second = torch.einsum("ni,nj->ij", means, means) / 50 + scales.square().mean(0).diag()
    covariance = second - torch.outer(means.mean(0), means.mean(0))
    torch.testing.assert_close(aggregated.mean.double(), means.mean(0), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(aggregated.covariance.double(), covariance, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(aggregated.variance, aggregated.covariance.diagonal())
    torch.testing.assert_close(aggregated.stddev, aggregated.variance.sqrt())


def test_draws_have_the_exact_moments():
    aggregated = quilt(50, 2)
    draws = aggregated.sample((200_000,), generator=torch.Generator().manual_seed(0)).double()
    centred = draws - aggregated.mean.double()
    for row in range(2):
        estimate = average(centred[:, row])
        assert_agrees(estimate.value, estimate.standard_error, 0.0)
        for column in range(2):
            estimate = average(centred[:, row] * centred[:, column])
            truth = aggregated.covariance[row, column].item()
            assert_agrees(estimate.value, estimate.standard_error, truth)


def test_draws_follow_the_density_that_log_prob_reports():
    aggregated = quilt(5, 1)
    draws = aggregated.sample((20_000,), generator=torch.Generator().manual_seed(0))[:, 0]

    def distribution_function(values):
        standardised = (torch.as_tensor(values)[:, None] - aggregated.means.T) / aggregated.scales.T
        return torch.special.ndtr(standardised.double()).mean(1).numpy()

    assert kstest(draws.numpy(), distribution_function).pvalue > 1e-6
    # The same test refuses the published mistake of drawing with variances for scales.
    mistaken = AggregatedPosterior(aggregated.means, aggregated.scales.square())
    wrong = mistaken.sample((20_000,), generator=torch.Generator().manual_seed(0))[:, 0]
    assert kstest(wrong.numpy(), distribution_function).pvalue < 1e-6


def test_the_density_integrates_to_one():
    aggregated = quilt(20, 2, smallest_scale=0.05)
    axis = torch.linspace(-8, 8, 801)
    codes = torch.cartesian_prod(axis, axis)
    total = aggregated.log_prob(codes).double().exp().sum() * (16 / 800) ** 2
    assert total.item() == pytest.approx(1, abs=1e-4)


def test_a_marginal_is_the_integral_over_the_other_dimensions():
    aggregated = quilt(20, 2, smallest_scale=0.05)
    axis = torch.linspace(-8, 8, 3_201)
    point = torch.tensor([0.4])
    column = torch.stack([point.expand(3_201), axis], 1)
    integral = torch.trapezoid(aggregated.log_prob(column).double().exp(), axis.double())
    marginal = aggregated.marginal(0).log_prob(point).double().exp()
    torch.testing.assert_close(integral, marginal, rtol=1e-5, atol=0)
    torch.testing.assert_close(
        aggregated.marginal(1, 0).covariance, aggregated.covariance.flip(0).flip(1)
    )


def test_one_component_is_a_gaussian():
    single = AggregatedPosterior(torch.zeros(1, 2), torch.ones(1, 2))
    assert single.log_prob(torch.zeros(2)).item() == pytest.approx(-math.log(2 * math.pi), rel=1e-6)


def test_refuses_what_is_no_mixture(without_shape_checks):
    with pytest.raises(ValueError, match="one shape"):
        AggregatedPosterior(torch.zeros(3, 2), torch.ones(2, 2))
    with pytest.raises(ValueError, match="scales"):
        AggregatedPosterior(torch.zeros(3, 2), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="means"):
        AggregatedPosterior(torch.full((3, 2), math.nan), torch.ones(3, 2))
    with pytest.raises(ValueError, match=r"where .…, 2. is needed"):
        quilt(3, 2).log_prob(torch.zeros(4, 3))


def test_same_generator_same_draws():
    aggregated = quilt(20, 2)
    first, second = (
        aggregated.sample((5,), generator=torch.Generator().manual_seed(3)) for _ in range(2)
    )
    assert torch.equal(first, second)
