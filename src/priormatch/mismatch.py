"""Measures of the mismatch of the aggregated posterior q(z) and the prior, each with its error.

With rate R = average KL(Q(z|x_n) || p) and N training examples, R = I[n; z] + KL(q || p) and
I[n; z] <= ln N. The in-sample KL therefore cannot fall below R - ln N, whatever the truth is.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from scipy.interpolate import CubicSpline
from torch import Tensor
from torch.distributions import Distribution, Normal, kl_divergence

from priormatch.distributions import AggregatedPosterior
from priormatch.divergences import kl_between_gaussians, kl_from_prior_per_dimension
from priormatch.estimate import Estimate, average


def mean_rate(aggregated: AggregatedPosterior) -> Float[Tensor, ""]:
    """Return the average KL from N(0, I) of the mixture's posteriors, in nats: exact.

    >>> mean_rate(AggregatedPosterior(torch.ones(3, 2), torch.ones(3, 2)))
    tensor(1.)
    """
    return rate_per_dimension(aggregated).sum()


def rate_per_dimension(aggregated: AggregatedPosterior) -> Float[Tensor, " latent"]:
    """Return the average KL from N(0, 1) of the posteriors in each latent dimension: exact.

    Args:
        aggregated: Mixture over the examples.

    Returns:
        Nats, of shape ``(latent,)``; their sum is the rate.

    Introduced in "The estimators on trial".

    >>> rate_per_dimension(AggregatedPosterior(torch.tensor([[0.0, 1.0]]), torch.ones(1, 2)))
    tensor([0.0000, 0.5000])
    """
    log_variances = 2 * aggregated.scales.log()
    return kl_from_prior_per_dimension(aggregated.means, log_variances).mean(0)


def active_units(aggregated: AggregatedPosterior, threshold: float = 0.01) -> int:
    r"""Count the latent dimensions whose posterior mean varies with the example.

    .. math:: \#\{j : \operatorname{Var}_x \left(\mathbb E_{Q(z|x)}[z_j]\right) > 0.01\}

    Args:
        aggregated: Mixture over the examples.
        threshold: Variance from which a dimension counts.

    Returns:
        A number of dimensions, exact for these examples.

    Source: :cite:t:`burda2016`.

    Introduced in "The estimators on trial".

    >>> means = torch.tensor([[-1.0, -0.05], [1.0, 0.05]])
    >>> active_units(AggregatedPosterior(means, torch.ones(2, 2)))
    1
    """
    return int((aggregated.means.double().var(0) > threshold).sum())


def in_sample_kl(
    aggregated: AggregatedPosterior,
    prior: Distribution,
    draws: int,
    generator: torch.Generator,
) -> Estimate:
    r"""Estimate KL(q || p) of the mixture over the training examples at its own draws.

    .. math:: \mathbb E_{z \sim \hat q} \left[\ln \hat q(z) - \ln p(z)\right]

    Unbiased for this mixture of N posteriors, and in expectation above the population's KL: the
    mixture knows its own examples. Its floor is rate - ln N, so it says nothing where the rate
    comes near ln N.

    Args:
        aggregated: Mixture over the training examples.
        prior: The prior, with the mixture's event shape.
        draws: Number of draws; the standard error falls with its square root.
        generator: Source of the draws.

    Returns:
        Nats, an upper estimate, with its floor where the rate is known in closed form.

    Source: :cite:t:`hoffman2016`.

    Introduced in "The latent picture".
    """
    codes = aggregated.sample((draws,), generator=generator)
    try:
        rate = kl_divergence(aggregated.posteriors, prior).mean().item()
        floor = max(0.0, rate - math.log(aggregated.components))
    except NotImplementedError:  # no closed form
        floor = None
    return average(aggregated.log_prob(codes) - prior.log_prob(codes), "upper", floor)


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
        Nats, a lower bound; the standard error is over the held-out examples.

    Source: derived from the non-negativity of KL(q || r).

    Introduced in "The latent picture".
    """
    return average(density.log_prob(codes) - prior.log_prob(codes), "lower")


def moment_bound(codes: Float[Tensor, "draws latent"]) -> Estimate:
    r"""Estimate the KL from N(0, I) of the Gaussian with the mean and covariance of the codes.

    .. math:: \mathrm{KL}(\mathcal N(m, S) \| p) \le \mathrm{KL}(q \| p), \quad p = \mathcal N(0, I)

    Of all laws with mean m and covariance S the Gaussian has the largest entropy, so the bound
    holds for every q and needs no density model. The first-order bias of the plug-in estimate,
    d (d + 3) / 4n for Gaussian codes, is taken out. The standard error is the delta method's.

    Args:
        codes: Independent draws of q, of shape ``(draws, latent)``.

    Returns:
        Nats, a lower bound.

    Introduced in "The latent picture".
    """
    codes = codes.double()
    draws, latent = codes.shape
    mean, covariance = codes.mean(0), torch.cov(codes.T).reshape(latent, latent)
    identity = torch.eye(latent, dtype=torch.float64)
    value = kl_between_gaussians(mean, covariance, torch.zeros_like(mean), identity)
    centred = codes - mean
    curvature = identity - torch.linalg.inv(covariance)
    influence = 0.5 * ((centred @ curvature) * centred).sum(1) + centred @ mean
    bias = latent * (latent + 3) / (4 * draws)
    return Estimate(value.item() - bias, (influence.std() / math.sqrt(draws)).item(), bound="lower")


def hole_share(
    density: Distribution,
    codes: Float[Tensor, "draws latent"],
    prior_draws: Float[Tensor, "others latent"],
    quantile: float = 0.01,
) -> Estimate:
    r"""Estimate the share of the prior's mass that lies where q has next to none.

    A prior draw lies in a hole if its density is below that of all but a share `quantile` of the
    held-out codes. A prior that matched would have that share of its draws there.

    Args:
        density: Density of the codes, made from training codes only.
        codes: Held-out codes, of shape ``(draws, latent)``.
        prior_draws: Draws from the prior, of shape ``(others, latent)``.
        quantile: Share of the held-out codes below the threshold.

    Returns:
        A share in [0, 1]. Its standard error is that of the prior draws and of the threshold.

    Introduced in "The latent picture".
    """
    of_codes = density.log_prob(codes).double()
    of_prior = density.log_prob(prior_draws).double()

    def share_below(threshold: Tensor) -> float:
        return (of_prior < threshold).double().mean().item()

    share = share_below(of_codes.quantile(quantile))
    # How far the threshold moves when the quantile moves by its own standard error.
    wobble = math.sqrt(quantile * (1 - quantile) / len(codes))
    higher = share_below(of_codes.quantile(min(1.0, quantile + wobble)))
    lower = share_below(of_codes.quantile(max(0.0, quantile - wobble)))
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

    It sees no dependence between dimensions. Each marginal of the training mixture is held
    against codes that it has not seen; in one dimension it hardly overfits, by 0.0003 nats for
    20,000 posteriors with a scale of 0.3.

    Args:
        aggregated: Mixture over the training examples.
        codes: One draw from the posterior of each held-out example, of shape ``(draws, latent)``.

    Returns:
        Nats, lower bounds; the standard errors are over the held-out examples.

    Introduced in "The estimators on trial".

    >>> pair = AggregatedPosterior(torch.tensor([[1.0, 1.0], [-1.0, -1.0]]), torch.ones(2, 2))
    >>> at_zero = dimension_wise_kl(pair, torch.zeros(2, 2))  # exp(-1/2) of N(0, 1) in each
    >>> round(at_zero.per_dimension[0].value, 4), round(at_zero.total.value, 4)
    (-0.5, -1.0)
    """
    gains = _log_marginals(aggregated, codes) - _standard_normal_log_prob(codes)
    return DimensionWise(
        average(gains.sum(1), "lower"), tuple(average(gain, "lower") for gain in gains.T)
    )


def total_correlation(
    density: Distribution,
    aggregated: AggregatedPosterior,
    codes: Float[Tensor, "draws latent"],
) -> Estimate:
    r"""Estimate the mismatch that no latent dimension shows alone: KL(q || product of marginals).

    .. math:: \mathbb E_{z \sim q} \Bigl[\ln r(z) - \sum_j \ln \hat q_j(z_j)\Bigr]

    On the same codes, `dimension_wise_kl` and this add up to `held_out_kl` of the density r for
    the prior N(0, I). The estimate loses KL(q || r), and gains the little by which the marginals
    of the training mixture overfit, the sum of KL(q_j || q̂_j): its side is not certain.

    Args:
        density: Distribution r, made from training codes only.
        aggregated: Mixture over the training examples.
        codes: One draw from the posterior of each held-out example, of shape ``(draws, latent)``.

    Returns:
        Nats; the standard error is over the held-out examples.

    Introduced in "The estimators on trial".

    >>> single = AggregatedPosterior(torch.zeros(1, 2), torch.ones(1, 2))
    >>> round(total_correlation(single, single, torch.ones(3, 2)).value, 4)
    0.0
    """
    return average(density.log_prob(codes) - _log_marginals(aggregated, codes).sum(1))


def _standard_normal_log_prob(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    return Normal(0.0, 1.0).log_prob(values.double())


def _log_marginals(
    aggregated: AggregatedPosterior, codes: Float[Tensor, "draws latent"]
) -> Float[Tensor, "draws latent"]:
    """Return the log density of each latent dimension of the codes under its own marginal."""
    latent = codes.shape[1]
    return torch.stack(
        [_log_prob_on_a_line(aggregated.marginal(j), codes[:, j]) for j in range(latent)], 1
    )


def _log_prob_on_a_line(
    marginal: AggregatedPosterior, codes: Float[Tensor, " draws"]
) -> Float[Tensor, " draws"]:
    """Return log q(z) in one dimension, by a spline where that costs less than all components."""
    # Codes from all parts of the data, where the spline is held against the mixture itself.
    checked = codes[:: max(1, len(codes) // 256)]
    exact = marginal.log_prob(checked[:, None])
    nodes = torch.linspace(codes.min().item(), codes.max().item(), 65, dtype=torch.float64)
    known = marginal.log_prob(nodes[:, None])
    while nodes[0] < nodes[-1] and len(nodes) < len(codes):
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
    r"""Estimate KL(p || r), what a sampler suffers that draws from p where r was wanted.

    .. math:: \mathbb E_{z \sim p} \left[\ln p(z) - \ln r(z)\right]

    Unbiased for r, and on no known side of KL(p || q): a density that is wrong where q has no
    mass pays nothing for it on codes, and all of it here. Infinite, without a standard error, if
    r is zero at a draw. Few draws can carry the average, so read it beside `thin_share`.

    Args:
        density: Distribution r, made from training codes only.
        prior_draws: Draws from the prior, of shape ``(draws, latent)``.
        prior: The prior p.

    Returns:
        Nats; the standard error is over the prior's draws.

    Introduced in "The estimators on trial".

    >>> prior = AggregatedPosterior(torch.zeros(1, 1), torch.ones(1, 1))
    >>> shifted = AggregatedPosterior(torch.ones(1, 1), torch.ones(1, 1))
    >>> round(reverse_kl(shifted, torch.tensor([[-1.0], [1.0]]), prior).value, 4)
    0.5
    """
    return average(prior.log_prob(prior_draws) - density.log_prob(prior_draws))


def thin_share(
    density: Distribution,
    prior_draws: Float[Tensor, "draws latent"],
    prior: Distribution,
    factor: float = 10.0,
) -> Estimate:
    r"""Estimate the share of the prior's mass where the codes are much thinner than the prior.

    .. math:: \Pr_{z \sim p} \left[r(z) < p(z) / 10\right]

    Zero under a match, whereas `hole_share` is then its quantile.

    Args:
        density: Distribution r, made from training codes only.
        prior_draws: Draws from the prior, of shape ``(draws, latent)``.
        prior: The prior p.
        factor: How many times thinner.

    Returns:
        A share in [0, 1]. Its standard error is binomial after two draws more of either kind, so
        that no draw at all does not pass for certainty: 1.4 / draws.

    Source: :cite:t:`agresti1998`, for the two draws.

    Introduced in "The estimators on trial".

    >>> single = AggregatedPosterior(torch.zeros(1, 1), torch.ones(1, 1))
    >>> print(thin_share(single, torch.zeros(96, 1), single))
    0.000 ± 0.014
    """
    excess = prior.log_prob(prior_draws).double() - density.log_prob(prior_draws).double()
    thin = excess > math.log(factor)
    draws = len(thin)
    cautious = (thin.sum().item() + 2) / (draws + 4)
    return Estimate(thin.double().mean().item(), math.sqrt(cautious * (1 - cautious) / (draws + 4)))
