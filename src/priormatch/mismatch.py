"""Measures of the mismatch of the aggregated posterior q(z) and the prior, each with its error.

With rate R = average KL(Q(z|x_n) || p) and N training examples, R = I[n; z] + KL(q || p) and
I[n; z] <= ln N. The in-sample KL therefore cannot fall below R - ln N, whatever the truth is.
"""

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.interpolate import CubicSpline
from scipy.stats import chi2
from torch import Tensor
from torch.distributions import Distribution, Normal, kl_divergence

from priormatch.checks import (
    ShapeError,
    check_draws,
    check_event,
    log_density,
    rows,
)
from priormatch.degeneracy import atoms, correlation_factor
from priormatch.distributions import AggregatedPosterior
from priormatch.divergences import kl_from_prior_per_dimension
from priormatch.estimate import Estimate, TooFewCodesError, average

# Fewest codes of a covariance's jackknife, in any number of dimensions.
_FEWEST = 10


def rates(aggregated: AggregatedPosterior) -> Float[Tensor, " examples"]:
    """Return the exact KL of each of the mixture's posteriors from N(0, I), in nats.

    >>> rates(AggregatedPosterior(torch.tensor([[0.0], [2.0]]), torch.ones(2, 1)))
    tensor([0., 2.], dtype=torch.float64)
    """
    mixture = aggregated.double()
    log_variances = 2 * mixture.scales.log()
    alone = kl_from_prior_per_dimension(mixture.means, log_variances).sum(1)
    if mixture.scale_tril is None:
        return alone
    # What correlations within a posterior cost on top of its single dimensions.
    widths = mixture.scale_tril.diagonal(dim1=1, dim2=2).log().sum(1)
    return alone + 0.5 * log_variances.sum(1) - widths


def mean_rate(aggregated: AggregatedPosterior) -> Float[Tensor, ""]:
    """Return the rate: the exact average KL of the mixture's posteriors from N(0, I), in nats.

    >>> mean_rate(AggregatedPosterior(torch.ones(3, 2), torch.ones(3, 2)))
    tensor(1.)
    """
    return rates(aggregated).mean().to(aggregated.means.dtype)


def rate_per_dimension(aggregated: AggregatedPosterior) -> Float[Tensor, " latent"]:
    """Return the exact average KL of the posteriors from N(0, 1) in each latent dimension.

    Args:
        aggregated: Mixture over the examples.

    Returns:
        Nats, of shape ``(latent,)``. Their sum is the rate where the posteriors are diagonal, and
        below it where their dimensions correlate.

    Introduced in "The estimators on trial".

    >>> rate_per_dimension(AggregatedPosterior(torch.tensor([[0.0, 1.0]]), torch.ones(1, 2)))
    tensor([0.0000, 0.5000])
    """
    mixture = aggregated.double()
    each = kl_from_prior_per_dimension(mixture.means, 2 * mixture.scales.log()).mean(0)
    return each.to(aggregated.means.dtype)


def active_units(aggregated: AggregatedPosterior, threshold: float = 0.01) -> int:
    r"""Count the latent dimensions whose posterior mean varies with the example.

    .. math:: \#\{j : \operatorname{Var}_x \left(\mathbb E_{Q(z|x)}[z_j]\right) > 0.01\}

    Args:
        aggregated: Mixture over the examples.
        threshold: Variance above which a dimension counts.

    Returns:
        A number of dimensions, exact for these examples.

    Source: :cite:t:`burda2016`.

    Introduced in "The estimators on trial".

    >>> means = torch.tensor([[-1.0, -0.05], [1.0, 0.05]])
    >>> active_units(AggregatedPosterior(means, torch.ones(2, 2)))
    1
    """
    return len(active_dimensions(aggregated, threshold))


def active_dimensions(aggregated: AggregatedPosterior, threshold: float = 0.01) -> list[int]:
    """Return the latent dimensions that `active_units` counts.

    Introduced in "The estimators on trial".

    >>> means = torch.tensor([[0.0, 1.0], [0.0, -1.0]])
    >>> active_dimensions(AggregatedPosterior(means, torch.ones(2, 2)))
    [1]
    """
    if aggregated.components < 2:  # one example varies with nothing
        return []
    varies = aggregated.means.detach().double().var(0) > threshold
    return varies.nonzero().squeeze(1).tolist()


def mean_square_per_dimension(aggregated: AggregatedPosterior) -> Float[Tensor, " latent"]:
    r"""Return the exact mean square of the codes in each latent dimension.

    .. math:: \frac1N \sum_n \left(\mu_{nj}^2 + \sigma_{nj}^2\right)

    With linear layers next to the codes, it is 1 in every dimension wherever the training loss is
    stationary. This holds for every weight of the rate: a training that has converged gains nothing
    by stretching an axis.

    Args:
        aggregated: Mixture over the training examples.

    Introduced in "Why the mixture nearly matches".

    >>> mean_square_per_dimension(AggregatedPosterior(torch.ones(1, 1), torch.ones(1, 1)))
    tensor([2.])
    """
    mixture = aggregated.double()
    squares = mixture.means.square() + mixture.scales.square()
    return squares.mean(0).to(aggregated.means.dtype)


def in_sample_kl(
    aggregated: AggregatedPosterior,
    prior: Distribution,
    draws: int,
    generator: torch.Generator,
) -> Estimate:
    r"""Estimate KL(q || p) of the mixture over the training examples at its own draws.

    .. math:: \mathbb E_{z \sim \hat q} \left[\ln \hat q(z) - \ln p(z)\right]

    Unbiased for this mixture of N posteriors. In expectation it is above the population's KL,
    because the mixture knows its own examples. Its floor is rate - ln N, so it says nothing where
    the rate comes near ln N.

    Args:
        aggregated: Mixture over the training examples.
        prior: The prior, with the mixture's event shape.
        draws: Number of draws; the standard error falls with its square root.
        generator: Source of the draws.

    Returns:
        Nats, an upper estimate, with its floor where the rate is known in closed form. A note says
        so where it is at its floor.

    Raises:
        ShapeError: The prior has another event shape.
        TooFewCodesError: There are fewer than two draws.

    Source: :cite:t:`hoffman2016`.

    Introduced in "Seams, sizes, and ten Gaussians".
    """
    check_draws(draws)
    check_event(prior, aggregated.event_shape[0], "the prior")
    codes = aggregated.sample((draws,), generator=generator)
    try:
        rate = kl_divergence(aggregated.double().posteriors, prior).mean().item()
        floor = max(0.0, rate - math.log(aggregated.components))
    except NotImplementedError:  # no closed form
        floor = None
    found = average(
        log_density(aggregated, codes) - log_density(prior, codes, "the prior"), "upper", floor
    )
    if floor and found.value < floor + 3 * found.standard_error + 0.01 * floor:
        note = f"vacuous: at its floor, the rate less ln {aggregated.components}"
        return replace(found, note=note)
    return found


def held_out_kl(
    density: Distribution, codes: Float[Tensor, "draws latent"], prior: Distribution
) -> Estimate:
    r"""Estimate a lower bound on KL(q || p) from codes that the density has not seen.

    .. math:: \mathbb E_{z \sim q} \left[\ln r(z) - \ln p(z)\right]
              = \mathrm{KL}(q \| p) - \mathrm{KL}(q \| r)

    Below the population's KL in expectation for every density r, and exactly the held-out ELBO
    gained by sampling r in place of p.

    Args:
        density: Distribution r, made from training codes only; it may be the training mixture.
        codes: One draw from the posterior of each held-out example, of shape ``(draws, latent)``.
        prior: The prior p.

    Returns:
        Nats, a lower bound; the standard error is over the held-out examples. A note says so where
        the bound is vacuous, because it is below zero, and where the codes have atoms.

    Raises:
        ShapeError: Codes, density and prior do not have one number of dimensions.
        NonFiniteError: A code is infinite or not a number, or a log density is not a number.
        TooFewCodesError: There are fewer than two codes.

    Source: derived from the non-negativity of KL(q || r).

    Introduced in "Seams, sizes, and ten Gaussians".
    """
    codes = rows(codes, fewest=2)
    gains = log_density(density, codes) - log_density(prior, codes, "the prior")
    return _lower_bound(gains, atoms(codes) or _too_fine(density, codes))


def _lower_bound(gains: Float[Tensor, " draws"], note: str = "") -> Estimate:
    """Return a lower bound on a KL, and say so where it is vacuous."""
    found = average(gains, "lower", note=note)
    # Below zero by more than the noise of a match, or by a nat.
    room = min(3 * found.standard_error, 1 + 2 * found.standard_error)
    if not note and found.value < -room:
        note = (
            "vacuous: no KL is below 0; the density misses these codes, as one of few examples in "
            "many dimensions does"
        )
    return replace(found, note=note)


def _too_fine(density: Distribution, codes: Float[Tensor, "draws latent"]) -> str:
    """Return a note if posteriors are too narrow for the number format of the codes, or nothing."""
    if not isinstance(density, AggregatedPosterior) or codes.dtype == torch.float64:
        return ""
    # In single precision a mixture is kept in it only if all of its scales are resolved.
    if density.means.dtype == torch.float32:
        return ""
    rounding = torch.finfo(codes.dtype).eps * codes.double().abs().median()
    narrow = density.scales.detach().double().median() < 200 * rounding
    return "below precision: draw codes of such narrow posteriors in float64" if narrow else ""


def moment_bound(codes: Float[Tensor, "draws latent"]) -> Estimate:
    r"""Estimate the KL from N(0, I) of the Gaussian with the mean and covariance of the codes.

    .. math:: \mathrm{KL}(\mathcal N(m, S) \| p) \le \mathrm{KL}(q \| p), \quad p = \mathcal N(0, I)

    Of all laws with mean m and covariance S the Gaussian has the largest entropy, so the bound
    holds for every q and needs no density model. With finitely many codes the plug-in estimate is
    too large, by half a nat and more in a thousand dimensions. The jackknife takes this bias away,
    also for codes with heavy tails, where it is larger. What the jackknife leaves is known exactly
    for Gaussian codes, from the expected log determinant of a Wishart matrix, and is taken away as
    well. The standard error is the delta method's.

    Args:
        codes: Independent draws of q, of shape ``(draws, latent)``, at least ten, and at least
            twice as many as latent dimensions.

    Returns:
        Nats, a lower bound. A note says so where the codes have atoms.

    Raises:
        ShapeError: The codes are no matrix.
        NonFiniteError: A code is infinite or not a number.
        TooFewCodesError: There are fewer codes than that.
        DegenerateCodesError: The codes lie in fewer dimensions, so that their KL is infinite.

    Source: :cite:t:`anderson2003`, for the expected log determinant.

    Introduced in "The estimators on trial".
    """
    codes = rows(codes)
    draws, latent = codes.shape
    needed = max(_FEWEST, 2 * latent)
    if draws < needed:
        raise TooFewCodesError(
            f"the covariance of {latent} latent dimensions needs {needed} codes or more, "
            f"and there are {draws}: draw more, or measure fewer dimensions."
        )
    note = atoms(codes)
    scales, factor = correlation_factor(codes)
    mean = codes.double().mean(0)
    centred = codes.double() - mean
    noise = torch.linalg.solve_triangular(factor, (centred / scales).T, upper=False)
    log_determinant = 2 * (scales.log().sum() + factor.diagonal().log().sum())
    # Leaving out a code lowers the log determinant by a function of its Mahalanobis distance.
    leverage = (noise.square().sum(0) * draws / (draws - 1) ** 2).clamp(max=1 - 1e-12)
    lost = latent * math.log((draws - 1) / (draws - 2)) + torch.log1p(-leverage)
    jackknifed = log_determinant - (draws - 1) * lost.mean()
    remaining = draws * _expected_log_determinant(draws, latent)
    remaining -= (draws - 1) * _expected_log_determinant(draws - 1, latent)
    squares = (1 - 1 / draws) * scales.square().sum() + mean.square().sum()
    value = 0.5 * (squares - latent - jackknifed + remaining)
    influence = 0.5 * (centred.square().sum(1) - noise.square().sum(0)) + centred @ mean
    error = influence.std() / math.sqrt(draws)
    return Estimate(value.item(), error.item(), "lower", note=note)


def _expected_log_determinant(draws: int, latent: int) -> float:
    """Return E ln det of the sample covariance of draws of N(0, I)."""
    degrees = draws - torch.arange(1, latent + 1, dtype=torch.float64)
    return (torch.digamma(degrees / 2) - math.log((draws - 1) / 2)).sum().item()


def hole_share(
    density: Distribution,
    codes: Float[Tensor, "draws latent"],
    prior_draws: Float[Tensor, "others latent"],
    quantile: float = 0.01,
) -> Estimate:
    r"""Estimate the share of the prior's mass in holes, where q has next to none.

    A prior draw lies in a hole if its density is below that of all but a share `quantile` of the
    held-out codes. Under a match, that share of the prior draws lies in holes.

    Args:
        density: Density of the codes, made from training codes only.
        codes: Held-out codes, of shape ``(draws, latent)``.
        prior_draws: Draws from the prior, of shape ``(others, latent)``.
        quantile: Share of the held-out codes below the threshold.

    Returns:
        A share in [0, 1]. Its standard error covers both the prior draws and the threshold.

    Raises:
        ShapeError: Codes, draws and density do not have one number of dimensions.
        NonFiniteError: A code is infinite or not a number.
        ValueError: The quantile is not between 0 and 1.

    Introduced in "Seams, sizes, and ten Gaussians".
    """
    codes = rows(codes)
    prior_draws = rows(prior_draws, "prior_draws", codes.shape[1])
    _check_share(quantile)
    # A density of zero stays below all others in an interpolated quantile.
    of_codes = log_density(density, codes).clamp(min=-1e300)
    of_prior = log_density(density, prior_draws).clamp(min=-1e300)

    def share_below(level: float) -> float:
        threshold = np.quantile(of_codes.numpy(), min(1.0, max(0.0, level)))
        return (of_prior < float(threshold)).double().mean().item()

    share = share_below(quantile)
    # Held-out codes are a sample, so the threshold has an error that moves the share, too.
    wobble = math.sqrt(quantile * (1 - quantile) / len(codes))
    higher, lower = share_below(quantile + wobble), share_below(quantile - wobble)
    binomial = math.sqrt(max(share * (1 - share), 1 / len(of_prior)) / len(of_prior))
    return Estimate(share, math.hypot(binomial, (higher - lower) / 2))


class DimensionWise(NamedTuple):
    """The mismatch that each latent dimension shows alone, in nats.

    Attributes:
        total: Sum over the latent dimensions.
        per_dimension: One estimate for each of them.
    """

    total: Estimate
    per_dimension: tuple[Estimate, ...]


def dimension_wise_kl(
    aggregated: AggregatedPosterior, codes: Float[Tensor, "draws latent"]
) -> DimensionWise:
    r"""Estimate KL(q_j || N(0, 1)) of each latent dimension, and their sum.

    .. math:: \sum_j \mathbb E_{z_j \sim q_j} \left[\ln \hat q_j(z_j) - \ln p(z_j)\right]

    It does not measure dependence between dimensions. Each marginal of the training mixture is
    evaluated at codes that it has not seen. In one dimension it hardly overfits: by 0.0003 nats for
    20,000 posteriors with a scale of 0.3.

    Args:
        aggregated: Mixture over the training examples.
        codes: One draw from the posterior of each held-out example, of shape ``(draws, latent)``.

    Returns:
        Nats, lower bounds; the standard errors are over the held-out examples. A note says so where
        the sum is vacuous, because it is below zero, and where the codes have atoms.

    Raises:
        ShapeError: The codes have another number of dimensions than the mixture.
        NonFiniteError: A code is infinite or not a number.
        TooFewCodesError: There are fewer than two codes.

    Introduced in "The estimators on trial".

    >>> pair = AggregatedPosterior(torch.tensor([[1.0, 1.0], [-1.0, -1.0]]), torch.ones(2, 2))
    >>> at_zero = dimension_wise_kl(pair, torch.zeros(2, 2))  # exp(-1/2) of N(0, 1) in each
    >>> round(at_zero.per_dimension[0].value, 4), round(at_zero.total.value, 4)
    (-0.5, -1.0)
    """
    codes = rows(codes, columns=aggregated.event_shape[0], fewest=2)
    gains = _log_marginals(aggregated, codes) - _standard_normal_log_prob(codes)
    note = atoms(codes) or _too_fine(aggregated, codes)
    return DimensionWise(
        _lower_bound(gains.sum(1), note), tuple(average(gain, "lower") for gain in gains.T)
    )


def matched_dimensions(
    aggregated: AggregatedPosterior, alone: DimensionWise, threshold: float = 0.01
) -> list[int]:
    r"""Return the active latent dimensions that nearly follow N(0, 1), each seen alone.

    .. math:: \{j \text{ active} : \mathrm{KL}(q_j \| \mathcal N(0, 1)) < 0.01\}

    Silent dimensions match as well, and for nothing; they are not counted, and neither is one whose
    estimate is too noisy to tell. Codes that match in each dimension need not match as a whole.

    Args:
        aggregated: Mixture over the training examples, which tells the active dimensions.
        alone: What `dimension_wise_kl` has returned for it.
        threshold: Nats below which a dimension counts.

    Raises:
        ShapeError: The measures are not those of as many dimensions.

    Introduced in "The estimators on trial".

    >>> spread = torch.linspace(-1.6, 1.6, 2001)[:, None]
    >>> alone = dimension_wise_kl(AggregatedPosterior(spread, 0 * spread + 0.4), 0.4 + spread)
    >>> matched_dimensions(AggregatedPosterior(spread, 0 * spread + 0.4), alone)
    []
    """
    if len(alone.per_dimension) != aggregated.event_shape[0]:
        raise ShapeError(f"{len(alone.per_dimension)} measures do not fit the mixture")
    # Far below zero the marginal misses the codes, and the bound says nothing.
    return [
        j
        for j in active_dimensions(aggregated)
        if (found := alone.per_dimension[j]).standard_error < threshold
        and -threshold - 3 * found.standard_error < found.value < threshold
    ]


def total_correlation(
    density: Distribution,
    aggregated: AggregatedPosterior,
    codes: Float[Tensor, "draws latent"],
) -> Estimate:
    r"""Estimate the mismatch that no latent dimension shows alone: KL(q || product of marginals).

    .. math:: \mathbb E_{z \sim q} \Bigl[\ln r(z) - \sum_j \ln \hat q_j(z_j)\Bigr]

    On the same codes, `dimension_wise_kl` and this add up to `held_out_kl` of the density r for the
    prior N(0, I). In expectation the estimate is too low by KL(q || r), and too high by the sum of
    KL(q_j || q̂_j), the little by which the marginals of the training mixture overfit. So it is a
    bound on neither side.

    Args:
        density: Distribution r, made from training codes only.
        aggregated: Mixture over the training examples.
        codes: One draw from the posterior of each held-out example, of shape ``(draws, latent)``.

    Returns:
        Nats; the standard error is over the held-out examples.

    Raises:
        ShapeError: Codes, density and mixture do not have one number of dimensions.
        NonFiniteError: A code is infinite or not a number.
        TooFewCodesError: There are fewer than two codes.

    Introduced in "The estimators on trial".

    >>> single = AggregatedPosterior(torch.zeros(1, 2), torch.ones(1, 2))
    >>> round(total_correlation(single, single, torch.ones(3, 2)).value, 4)
    0.0
    """
    codes = rows(codes, columns=aggregated.event_shape[0], fewest=2)
    return average(log_density(density, codes) - _log_marginals(aggregated, codes).sum(1))


def _standard_normal_log_prob(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    return Normal(0.0, 1.0).log_prob(values.double())


def _log_marginals(
    aggregated: AggregatedPosterior, codes: Float[Tensor, "draws latent"]
) -> Float[Tensor, "draws latent"]:
    """Return the log density of each latent dimension of the codes under its own marginal."""
    latent, mixture = codes.shape[1], aggregated.double()
    return torch.stack(
        [_log_prob_on_a_line(mixture.marginal(j), codes[:, j].double()) for j in range(latent)], 1
    )


def _log_prob_on_a_line(
    marginal: AggregatedPosterior, codes: Float[Tensor, " draws"]
) -> Float[Tensor, " draws"]:
    """Return log q(z) in one dimension, by a spline where that is cheaper than all components."""
    # The spline is compared with the mixture itself, at codes from all parts of the data.
    checked = codes[:: max(1, len(codes) // 256)]
    exact = marginal.log_prob(checked[:, None])
    nodes = torch.linspace(codes.min().item(), codes.max().item(), 65, dtype=torch.float64)
    known = marginal.log_prob(nodes[:, None])
    while (nodes.diff() > 0).all() and len(nodes) < len(codes):
        spline = CubicSpline(nodes, known)
        if np.abs(spline(checked) - exact.numpy()).mean() < 1e-5:
            return torch.from_numpy(spline(codes))
        between = (nodes[1:] + nodes[:-1]) / 2
        nodes, order = torch.cat([nodes, between]).sort()
        known = torch.cat([known, marginal.log_prob(between[:, None])])[order]
    return marginal.log_prob(codes[:, None]).double()


def reverse_kl(
    density: Distribution, prior_draws: Float[Tensor, "draws latent"], prior: Distribution
) -> Estimate:
    r"""Estimate KL(p || r), the cost of sampling the prior p in place of r, in nats.

    .. math:: \mathbb E_{z \sim p} \left[\ln p(z) - \ln r(z)\right]

    Unbiased for r, but on no known side of KL(p || q). Errors of r where q has no mass cost nothing
    on codes, whereas here they count in full. Infinite, without a standard error, if r is zero at a
    draw. A few draws can carry the average, so read it beside `thin_share`.

    Args:
        density: Distribution r, made from training codes only.
        prior_draws: Draws from the prior, of shape ``(draws, latent)``.
        prior: The prior p.

    Returns:
        Nats; the standard error is over the prior's draws.

    Raises:
        ShapeError: Draws, density and prior do not have one number of dimensions.
        NonFiniteError: A draw is infinite or not a number.
        TooFewCodesError: There are fewer than two draws.

    Introduced in "The estimators on trial".

    >>> prior = AggregatedPosterior(torch.zeros(1, 1), torch.ones(1, 1))
    >>> shifted = AggregatedPosterior(torch.ones(1, 1), torch.ones(1, 1))
    >>> round(reverse_kl(shifted, torch.tensor([[-1.0], [1.0]]), prior).value, 4)
    0.5
    """
    draws = rows(prior_draws, "prior_draws", fewest=2)
    return average(log_density(prior, draws, "the prior") - log_density(density, draws))


def thin_share(
    density: Distribution,
    prior_draws: Float[Tensor, "draws latent"],
    prior: Distribution,
    factor: float = 10.0,
) -> Estimate:
    r"""Estimate the share of the prior's mass where the density of codes is far below the prior's.

    .. math:: \Pr_{z \sim p} \left[r(z) < p(z) / 10\right]

    Under a match it is zero, whereas `hole_share` equals its quantile.

    Args:
        density: Distribution r, made from training codes only.
        prior_draws: Draws from the prior, of shape ``(draws, latent)``.
        prior: The prior p.
        factor: How many times lower the density of codes must be.

    Returns:
        A share in [0, 1]. Its standard error is binomial, computed with two more draws of either
        kind. So a share of zero has an error, too: 1.4 / draws.

    Raises:
        ShapeError: Draws, density and prior do not have one number of dimensions.
        NonFiniteError: A draw is infinite or not a number.
        ValueError: The factor is not positive.

    Source: :cite:t:`agresti1998`, for the two draws.

    Introduced in "The estimators on trial".

    >>> single = AggregatedPosterior(torch.zeros(1, 1), torch.ones(1, 1))
    >>> print(thin_share(single, torch.zeros(96, 1), single))
    0.000 ± 0.014
    """
    draws = rows(prior_draws, "prior_draws")
    if not 0 < factor < math.inf:
        raise ValueError(f"a factor is positive, not {factor}")
    excess = log_density(prior, draws, "the prior") - log_density(density, draws)
    return _share(excess > math.log(factor))


def _check_share(share: float) -> None:
    if not 0 < share < 1:
        raise ValueError(f"a share of mass lies between 0 and 1, not at {share}")


def _share(found: Bool[Tensor, " draws"]) -> Estimate:
    """Return the share of draws that are marked true, with an error that is never zero."""
    draws = len(found)
    cautious = (found.sum().item() + 2) / (draws + 4)
    error = math.sqrt(cautious * (1 - cautious) / (draws + 4))
    return Estimate(found.double().mean().item(), error)


class NearestPatch(NamedTuple):
    """Closeness of codes to the nearest posterior of each.

    Attributes:
        share: Share of the codes inside the 99 % ellipsoid of some posterior.
        distance: Median distance to the nearest posterior, in scales of that posterior.
    """

    share: Estimate
    distance: Estimate


def nearest_patch(
    aggregated: AggregatedPosterior, codes: Float[Tensor, "draws latent"], mass: float = 0.99
) -> NearestPatch:
    r"""Measure whether a code is "probably close to the mean of some posterior".

    .. math:: \Pr_z \left[\min_n \sum_j (z_j - \mu_{nj})^2 / \sigma_{nj}^2
              \le F^{-1}_{\chi^2_d}(0.99)\right]

    Pass draws of the prior, and held-out codes for comparison. Codes of the mixture itself have a
    share of at least 0.99.

    Args:
        aggregated: Mixture over the training examples.
        codes: Draws of the prior, or held-out codes, of shape ``(draws, latent)``.
        mass: Mass of the ellipsoids.

    Returns:
        A share, its error as in `thin_share`, and a distance with the error of a sample median.

    Raises:
        ShapeError: The codes have another number of dimensions than the mixture.
        NonFiniteError: A code is infinite or not a number.
        ValueError: The mass is not between 0 and 1.

    Introduced in "The uniform interval".

    >>> single = AggregatedPosterior(torch.zeros(1, 1), torch.ones(1, 1))
    >>> nearest_patch(single, torch.tensor([[0.0], [1.0], [9.0]])).distance.value
    1.0
    """
    codes = rows(codes, columns=aggregated.event_shape[0])
    _check_share(mass)
    distances = aggregated.distance_to_nearest(codes).double().cpu()
    radius = math.sqrt(chi2.ppf(mass, codes.shape[1]))
    # The error is half the distance between the quantiles one deviation below and above the median.
    wobble = 0.5 / math.sqrt(len(distances))
    levels = [max(0.0, 0.5 - wobble), 0.5, min(1.0, 0.5 + wobble)]
    low, median, high = np.quantile(distances.numpy(), levels).tolist()
    return NearestPatch(_share(distances <= radius), Estimate(median, (high - low) / 2))
