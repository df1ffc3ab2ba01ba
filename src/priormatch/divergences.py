"""Kullback-Leibler divergences in closed form, in nats."""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from priormatch.checks import (
    ShapeError,
    as_tensor,
    check_finite,
    check_positive,
    factor,
    same_shape,
)


def kl_from_prior_per_dimension(
    mean: Float[Tensor, "*batch latent"], log_variance: Float[Tensor, "*batch latent"]
) -> Float[Tensor, "*batch latent"]:
    r"""Return KL(N(mean, variance) || N(0, 1)) of each latent dimension.

    .. math:: \tfrac12 \left(\mu^2 + \sigma^2 - 1 - \ln \sigma^2\right)

    Args:
        mean: Means of the posterior, of shape ``(..., latent)``.
        log_variance: Natural logarithm of its variances, of the same shape.

    Returns:
        Nats, of the same shape; the sum over the last axis is the KL of the joint, because both
        Gaussians have independent dimensions.

    Raises:
        ShapeError: The shapes differ.
        NonFiniteError: An entry is infinite or not a number.

    Source: :cite:t:`kingma2014`, appendix B.

    Introduced in "The KL term".

    >>> double_variance = torch.tensor([math.log(2.0)])
    >>> kl_from_prior_per_dimension(torch.zeros(1), double_variance)
    tensor([0.1534])
    """
    mean, log_variance = _pair(mean, log_variance, "mean", "log_variance")
    # expm1 keeps the digits of the difference exp(l) - 1 - l where l is near zero.
    return 0.5 * (mean.square() + torch.expm1(log_variance) - log_variance)


def kl_to_prior_per_dimension(
    mean: Float[Tensor, "*batch latent"], log_variance: Float[Tensor, "*batch latent"]
) -> Float[Tensor, "*batch latent"]:
    r"""Return KL(N(0, 1) || N(mean, variance)) of each latent dimension: the other direction.

    .. math:: \tfrac12 \left(\frac{1 + \mu^2}{\sigma^2} - 1 + \ln \sigma^2\right)

    Args:
        mean: Means, of shape ``(..., latent)``.
        log_variance: Natural logarithm of the variances, of the same shape.

    Returns:
        Nats, of the same shape.

    Raises:
        ShapeError: The shapes differ.
        NonFiniteError: An entry is infinite or not a number.

    Introduced in "What the KL term costs, and what it buys".

    >>> double_variance = torch.tensor([math.log(2.0)])
    >>> kl_to_prior_per_dimension(torch.zeros(1), double_variance)
    tensor([0.0966])
    """
    mean, log_variance = _pair(mean, log_variance, "mean", "log_variance")
    return 0.5 * (
        torch.expm1(-log_variance) + mean.square() * torch.exp(-log_variance) + log_variance
    )


def kl_between_gaussians(
    mean: Float[Tensor, " latent"],
    covariance: Float[Tensor, "latent latent"],
    other_mean: Float[Tensor, " latent"],
    other_covariance: Float[Tensor, "latent latent"],
) -> Float[Tensor, ""]:
    r"""Return KL(N(m, S) || N(n, T)) of two Gaussians with full covariances.

    .. math:: \tfrac12 \left(\operatorname{tr} T^{-1} S + (n - m)^\top T^{-1} (n - m) - d
              + \ln \frac{\det T}{\det S}\right)

    Args:
        mean: Mean m, of shape ``(latent,)``.
        covariance: Covariance S, of shape ``(latent, latent)``, positive definite.
        other_mean: Mean n.
        other_covariance: Covariance T.

    Returns:
        Nats.

    Raises:
        ShapeError: Means and covariances do not belong together.
        NonFiniteError: An entry is infinite or not a number.
        ScaleError: A covariance is not symmetric and positive definite.

    Introduced in "Seams, sizes, and ten Gaussians".

    >>> identity, zero = torch.eye(2), torch.zeros(2)
    >>> kl_between_gaussians(zero, 2 * identity, zero, identity)
    tensor(0.3069)
    """
    mean, other_mean = _pair(mean, other_mean, "mean", "other_mean")
    one, other = factor(covariance, "covariance"), factor(other_covariance, "other_covariance")
    for name, triangle in (("covariance", one), ("other_covariance", other)):
        if triangle.shape != (*mean.shape, *mean.shape):
            raise ShapeError(
                f"{name} has shape {tuple(triangle.shape)}, where {(*mean.shape, *mean.shape)} "
                "belongs to the means"
            )
    moved = torch.column_stack([one, (mean - other_mean).double()])
    squares = torch.linalg.solve_triangular(other, moved, upper=False).square().sum()
    log_ratio = (other.diagonal().log() - one.diagonal().log()).sum()
    return (0.5 * (squares - len(mean)) + log_ratio).to(mean.dtype)


def kl_from_uniform(covered_share: float) -> float:
    r"""Return KL(q || p) for p uniform and q equal to p restricted to a share of its mass.

    .. math:: -\ln(\text{covered share})

    An interval of length 1 in (0, 10) covers a share of 0.1 and costs ln 10 nats. The formula
    holds for every p, not only the uniform law: holes with mass h cost -ln(1 - h).

    Args:
        covered_share: Share of the mass of p on the support of q, in (0, 1].

    Returns:
        Nats.

    Raises:
        ValueError: The share is not in (0, 1].

    Introduced in "The uniform interval".

    >>> round(kl_from_uniform(0.1), 4)
    2.3026
    """
    if not 0 < covered_share <= 1:
        raise ValueError(f"a share of mass lies in (0, 1], not at {covered_share}")
    return -math.log(covered_share)


def kl_of_beta_from_uniform(
    concentration1: Float[Tensor, "*batch"], concentration0: Float[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    r"""Return KL(q || p) for q a Beta distribution on an interval and p uniform on the same one.

    .. math:: (\alpha - 1) \psi(\alpha) + (\beta - 1) \psi(\beta)
              - (\alpha + \beta - 2) \psi(\alpha + \beta) - \ln B(\alpha, \beta)

    It is minus the entropy of the Beta distribution on (0, 1). Stretching both distributions to
    another interval does not change the KL. Where the distribution is narrow, the terms are some
    hundred thousand times as large as their sum; so they are computed in double precision.

    Args:
        concentration1: First parameter, alpha, of any shape.
        concentration0: Second parameter, beta, of the same shape.

    Returns:
        Nats, of the same shape.

    Raises:
        ShapeError: The shapes differ.
        NonFiniteError: A parameter is infinite or not a number.
        ScaleError: A parameter is not positive.

    Introduced in "The uniform interval".

    >>> one = torch.ones(1)
    >>> kl_of_beta_from_uniform(2 * one, one)  # density 2z: ln 2 - 1/2
    tensor([0.1931])
    """
    first, second = _pair(concentration1, concentration0, "concentration1", "concentration0")
    check_positive(first.detach(), "concentration1")
    check_positive(second.detach(), "concentration0")
    alpha, beta = first.double(), second.double()
    total = alpha + beta
    log_beta_function = alpha.lgamma() + beta.lgamma() - total.lgamma()
    kl = (
        (alpha - 1) * alpha.digamma()
        + (beta - 1) * beta.digamma()
        - (total - 2) * total.digamma()
        - log_beta_function
    )
    return kl.to(first.dtype)


def _pair(one: Any, other: Any, name: str, other_name: str) -> tuple[Tensor, Tensor]:
    """Return two finite tensors of one shape, with their gradients."""
    one, other = as_tensor(one, name), as_tensor(other, other_name)
    same_shape(one, other, f"{name} and {other_name}")
    check_finite(one.detach(), name)
    check_finite(other.detach(), other_name)
    return one, other
