"""Properties that hold for any finite means and scales, and errors for all others."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from priormatch.checks import NonFiniteError, PrecisionError, ScaleError, ShapeError
from priormatch.distributions import AggregatedPosterior
from priormatch.estimate import Estimate
from priormatch.goodness_of_fit import rank_uniformity, sliced_epps_pulley
from priormatch.mismatch import (
    dimension_wise_kl,
    held_out_kl,
    hole_share,
    in_sample_kl,
    mean_square_per_dimension,
    moment_bound,
    nearest_patch,
    rate_per_dimension,
    rates,
    thin_share,
    total_correlation,
)
from priormatch.models import standard_normal
from priormatch.two_sample import radius, sliced_wasserstein, squared_mmd

FORMATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

quickly = settings(max_examples=25, deadline=None, derandomize=True)


@st.composite
def posteriors(draw, formats=FORMATS, fewest=1):
    """Return means and scales of any size, in any format, not out of proportion in double."""
    examples, latent = draw(st.integers(fewest, 30)), draw(st.integers(1, 6))
    kind = draw(st.sampled_from(formats))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    # Half precision has neither large nor small numbers.
    most = 3 if kind is torch.float16 else 12
    size, narrow = draw(st.integers(-most, most)), draw(st.integers(-9, 1))
    shape = (examples, latent)
    means = 10.0**size * torch.randn(shape, generator=generator, dtype=torch.float64)
    spread = torch.rand(shape, generator=generator, dtype=torch.float64)
    scales = means.abs() * 10.0 ** (narrow * spread) + 10.0 ** min(0, size)
    if kind is torch.float16:
        scales = scales.clamp(1e-3, 1e4)
    if draw(st.booleans()):  # one dimension that says nothing
        means[:, 0], scales[:, 0] = 0.0, 1.0
    return means.to(kind), scales.to(kind)


def numbers(found):
    """Yield all numbers of a result."""
    if isinstance(found, Estimate):
        yield found.value
        yield found.standard_error
    elif isinstance(found, torch.Tensor):
        yield from found.double().flatten().tolist()
    elif isinstance(found, tuple):
        for part in found:
            yield from numbers(part)
    else:
        yield found


@pytest.mark.slow
@given(posteriors())
@quickly
def test_any_finite_means_and_scales_give_finite_measures(parts):
    mixture = AggregatedPosterior(*parts)
    latent, generator = parts[0].shape[1], torch.Generator().manual_seed(0)
    prior, codes = standard_normal(latent), mixture.sample((50,), generator=generator)
    draws = torch.randn(50, latent, generator=generator)
    measures = {
        "moments": (mixture.mean, mixture.covariance, mean_square_per_dimension(mixture)),
        "rates": (rates(mixture), rate_per_dimension(mixture)),
        "in-sample": in_sample_kl(mixture, prior, 50, generator),
        "held-out": held_out_kl(mixture, codes, prior),
        "dimensions": dimension_wise_kl(mixture, codes),
        "correlation": total_correlation(mixture, mixture, codes),
        "shares": (thin_share(mixture, draws, prior), hole_share(mixture, codes, draws)),
        "patches": nearest_patch(mixture, draws),
        "radius": radius(codes),
        "slices": sliced_wasserstein(codes, generator, 2),
        "tests": (rank_uniformity(codes), sliced_epps_pulley(codes, generator, 2)),
    }
    for name, found in measures.items():
        assert all(map(math.isfinite, numbers(found))), (name, found)
    for share in (*measures["shares"], measures["patches"].share, radius(codes).distance.estimate):
        assert 0 <= share.value <= 1
    assert all(0 <= one <= 1 for one in measures["tests"][0].p_values)
    # Ordered: a mean of divergences is not negative, and the mixture's own is not below its floor.
    assert rates(mixture).min() >= -1e-9
    above = measures["in-sample"]
    assert above.floor >= 0
    assert above.value >= above.floor - 8 * above.standard_error - 1e-6 * above.floor - 1e-6


@given(posteriors())
@quickly
def test_log_density_is_that_of_double_precision_and_below_its_highest_peak(parts):
    mixture = AggregatedPosterior(*parts)
    exact = mixture.double()
    codes = mixture.sample((20,), generator=torch.Generator().manual_seed(0))
    found = mixture.log_prob(codes).double()
    standard = (codes.double()[:, None] - exact.means) / exact.scales
    each = -0.5 * standard.square() - exact.scales.log() - 0.5 * math.log(2 * math.pi)
    truth = each.sum(2).logsumexp(1) - math.log(mixture.components)
    torch.testing.assert_close(found, truth, atol=1e-4, rtol=1e-6)
    peak = (-exact.scales.log() - 0.5 * math.log(2 * math.pi)).sum(1).max()
    assert found.max() <= peak + 1e-3 + 1e-6 * peak.abs()


@given(posteriors(formats=(torch.float32, torch.float64), fewest=10))
@quickly
def test_the_moment_bound_and_the_discrepancy_are_finite_wherever_they_are_defined(parts):
    mixture = AggregatedPosterior(*parts)
    generator = torch.Generator().manual_seed(0)
    codes = mixture.sample((60,), generator=generator)
    found = moment_bound(codes)
    assert all(map(math.isfinite, numbers(found)))
    discrepancy = squared_mmd(mixture, generator)
    assert all(map(math.isfinite, numbers(discrepancy)))
    assert -2 <= discrepancy.value <= 2


@given(
    posteriors(formats=(torch.float32,)),
    st.sampled_from((math.nan, math.inf, -math.inf, 0.0, -1.0, 1e31)),
    st.booleans(),
    st.randoms(use_true_random=False),
)
@quickly
def test_one_wrong_entry_is_refused_by_its_place(parts, bad, in_means, random):
    damaged = [part.clone() for part in parts]
    row, column = random.randrange(len(parts[0])), random.randrange(parts[0].shape[1])
    damaged[0 if in_means else 1][row, column] = bad
    if in_means and bad in (0.0, -1.0):
        AggregatedPosterior(*damaged)
        return
    kind = {0.0: ScaleError, -1.0: ScaleError, 1e31: PrecisionError}.get(bad, NonFiniteError)
    name = "means" if in_means else "scales"
    with pytest.raises(kind, match=rf"^{name}\[{row}, {column}\] is "):
        AggregatedPosterior(*damaged)


@pytest.mark.usefixtures("without_shape_checks")
@given(st.lists(st.integers(0, 4), max_size=4), st.lists(st.integers(0, 4), max_size=4))
@quickly
def test_any_other_shapes_are_refused(of_means, of_scales):
    if len(of_means) == 2 and of_means == of_scales and math.prod(of_means):
        assert AggregatedPosterior(torch.zeros(of_means), torch.ones(of_scales)).components
        return
    with pytest.raises(ShapeError):
        AggregatedPosterior(torch.zeros(of_means), torch.ones(of_scales))
