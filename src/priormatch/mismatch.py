"""Measures of the mismatch of the aggregated posterior q(z) and the prior, each with its error.

With rate R = average KL(Q(z|x_n) || p) and N training examples, R = I[n; z] + KL(q || p) and
I[n; z] <= ln N. The in-sample KL therefore cannot fall below R - ln N, whatever the truth is.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution

from priormatch.aggregated import AggregatedPosterior
from priormatch.divergences import kl_between_gaussians, kl_from_prior_per_dimension

Bound = Literal["none", "lower", "upper"]


@dataclass(frozen=True)
class Estimate:
    """A measured number.

    Attributes:
        value: The estimate.
        standard_error: Its standard error over draws or held-out examples, in the same unit.
        bound: On which side of the population's value its expectation lies.
        floor: Value below which the estimator cannot fall whatever the truth, if there is one.
    """

    value: float
    standard_error: float
    bound: Bound = "none"
    floor: float | None = None

    def __str__(self) -> str:
        """Return the value and its standard error with the digits that the error leaves."""
        digits = 1 - math.floor(math.log10(self.standard_error)) if self.standard_error > 0 else 4
        return f"{self.value:.{max(0, digits)}f} ± {self.standard_error:.{max(0, digits)}f}"


def average(
    values: Float[Tensor, " draws"], bound: Bound = "none", floor: float | None = None
) -> Estimate:
    """Return the mean of independent values and its standard error.

    >>> print(average(torch.tensor([0.0, 1.0, 2.0, 3.0])))
    1.50 ± 0.65
    """
    values = values.double()
    error = values.std() / math.sqrt(len(values))
    return Estimate(values.mean().item(), error.item(), bound, floor)


def mean_rate(aggregated: AggregatedPosterior) -> Float[Tensor, ""]:
    """Return the average KL from N(0, I) of the mixture's posteriors, in nats: exact.

    >>> mean_rate(AggregatedPosterior(torch.ones(3, 2), torch.ones(3, 2)))
    tensor(1.)
    """
    log_variances = 2 * aggregated.scales.log()
    return kl_from_prior_per_dimension(aggregated.means, log_variances).sum(1).mean()


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
        prior: The prior, with the mixture's event shape. The floor is stated for N(0, I).
        draws: Number of draws; the standard error falls with its square root.
        generator: Source of the draws.

    Returns:
        Nats, an upper estimate, with its floor.

    Source: :cite:t:`hoffman2016`.

    Introduced in "The latent picture".
    """
    codes = aggregated.sample((draws,), generator=generator)
    floor = max(0.0, mean_rate(aggregated).item() - math.log(aggregated.components))
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
