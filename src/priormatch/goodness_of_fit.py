"""Tests of fit to N(0, I) that need neither a density nor draws of the prior.

They look at slices, at single dimensions, or at the shape alone. A small p-value says that the
codes do not match; a large one that this many codes show no difference to this test.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import ks_1samp, kstwo, lognorm, norm
from torch import Tensor

from priormatch.checks import check_draws, rows
from priormatch.degeneracy import correlation_factor
from priormatch.estimate import Estimate, Statistic

# Nodes of the integral over t, its upper limit, and draws of the law under a match.
_NODES, _REACH, _MATCHES = 17, 3.0, 4_000


class SlicedTest(NamedTuple):
    """A test of the projections of codes.

    Attributes:
        statistic: The statistic, with its null band.
        p_value: Probability of a larger one under a match, between 0 and 1.
    """

    statistic: Statistic
    p_value: float


def sliced_epps_pulley(
    codes: Float[Tensor, "draws latent"], generator: torch.Generator, directions: int = 50
) -> SlicedTest:
    r"""Average the Epps-Pulley statistic of the projected codes over random directions.

    .. math:: \frac1K \sum_k n \int \left|\hat\varphi_{u_k \cdot z}(t) - e^{-t^2 / 2}\right|^2
              e^{-t^2 / 2} dt

    It compares the characteristic functions of projections with that of N(0, 1), and is the SIGReg
    of LeJEPA: the integral is a trapezoid sum over 17 nodes from 0 to 3, taken twice. Like every
    sliced measure it is blind to what only many dimensions together show.

    Args:
        codes: Independent draws of q, of shape ``(draws, latent)``.
        generator: Source of the directions u and of the null band.
        directions: Number K of directions.

    Returns:
        A number without a unit, which grows with the number of codes unless they match, with its
        null band and p-value for these directions. Both are those of many codes. The standard error
        is over the codes.

    Raises:
        ShapeError: The codes are no matrix.
        NonFiniteError: A code is infinite or not a number.
        TooFewCodesError: There are fewer than ten codes.

    Source: :cite:t:`henze1990`, for the statistic in any number of dimensions.

    Introduced in "The estimators on trial".

    >>> sliced_epps_pulley(torch.full((10, 1), 50.0), torch.Generator(), 1).p_value < 0.001
    True
    """
    check_draws(directions, 1)
    codes = rows(codes, fewest=10).float()
    draws, latent = codes.shape
    axes = torch.randn((latent, directions), generator=generator)
    axes = axes / axes.norm(dim=0)
    nodes = torch.linspace(0, _REACH, _NODES)
    weights = torch.full((_NODES,), 2 * _REACH / (_NODES - 1))
    weights[[0, -1]] /= 2
    normal = torch.exp(-0.5 * nodes.square())
    weights = weights * normal / directions
    # One node at a time, for the memory; the influence of a code is what it adds to the sum.
    total, influence = 0.0, torch.zeros(draws)
    projected = codes @ axes
    for node, weight, expected in zip(nodes, weights, normal, strict=True):
        for wave, mean in ((torch.cos, expected), (torch.sin, torch.zeros(()))):
            values = wave(node * projected)
            gaps = values.mean(0) - mean
            total += (weight * gaps.square().sum()).item() * draws
            influence += 2 * weight * ((values - values.mean(0)) @ gaps)
    matched = _matched(axes, nodes, weights, generator)
    # The influence of a code misses what the squares of the noise add, also under a match.
    error = math.hypot(math.sqrt(draws) * influence.std().item(), matched.std().item())
    low, high = np.quantile(matched.numpy(), [0.025, 0.975])
    beyond = ((matched >= total).sum().item() + 1) / (len(matched) + 1)
    return SlicedTest(Statistic(Estimate(total, error), float(low), float(high)), beyond)


def _matched(
    axes: Float[Tensor, "latent directions"],
    nodes: Float[Tensor, " nodes"],
    weights: Float[Tensor, " nodes"],
    generator: torch.Generator,
) -> Float[Tensor, " matches"]:
    """Draw from the law of the statistic of many codes that match N(0, I).

    There the means of cosines and sines are jointly normal, with covariances in closed form.
    """
    points = (axes.double()[:, :, None] * nodes[1:].double()).flatten(1).T
    near = torch.exp(-0.5 * torch.cdist(points, points).square())
    far = torch.exp(-0.5 * torch.cdist(points, -points).square())
    alone = torch.exp(-0.5 * points.square().sum(1))
    shares = weights[1:].double().repeat(axes.shape[1])
    total = torch.zeros(_MATCHES, dtype=torch.float64)
    for covariance in ((near + far) / 2 - torch.outer(alone, alone), (near - far) / 2):
        # Weighted sums of squares depend on the eigenvalues alone.
        scaled = shares.sqrt()[:, None] * covariance * shares.sqrt()
        values = torch.linalg.eigvalsh(scaled)
        values = values[values > 1e-6 * values[-1]]
        noise = torch.randn(
            (_MATCHES, len(values)), generator=generator, dtype=torch.float64
        ).square()
        total += noise @ values
    return total


class ShapeTest(NamedTuple):
    """A test of whether codes are Gaussian, whatever their mean and covariance.

    Attributes:
        statistic: The Henze-Zirkler statistic.
        p_value: Probability of a larger one for Gaussian codes, between 0 and 1.
    """

    statistic: float
    p_value: float


def henze_zirkler(
    codes: Float[Tensor, "draws latent"], generator: torch.Generator, most: int = 2_000
) -> ShapeTest:
    r"""Test whether the codes are Gaussian at all, after their own mean and covariance are out.

    .. math:: n \int \left|\hat\varphi_{S^{-1/2} (z - m)}(t) - e^{-|t|^2 / 2}\right|^2
              \mathcal N(t; 0, \beta^2 I) \, dt, \quad
              \beta = \tfrac{1}{\sqrt2} \left(\tfrac{(2 d + 1) n}{4}\right)^{1 / (d + 4)}

    Where this test finds nothing and the codes do not match, a Gaussian is the sampler to take. The
    integral has a closed form; the law under the hypothesis is the log-normal one with the right
    mean and variance.

    Args:
        codes: Independent draws of q, of shape ``(draws, latent)``.
        generator: Decides which codes are taken if there are more than `most`.
        most: Codes taken; time grows with the square of their number.

    Returns:
        The statistic and its p-value.

    Raises:
        ShapeError: The codes are no matrix.
        NonFiniteError: A code is infinite or not a number.
        TooFewCodesError: There are fewer than twenty codes, or than twice the latent dimensions.
        DegenerateCodesError: The codes lie in fewer dimensions than they have.

    Source: :cite:t:`henze1990`.

    Introduced in "The estimators on trial".

    >>> apart = torch.tensor([[-1.0], [1.0]]).repeat(50, 1) + torch.linspace(0, 0.1, 100)[:, None]
    >>> henze_zirkler(apart, torch.Generator()).p_value < 0.001
    True
    """
    codes = rows(codes)
    codes = codes[torch.randperm(len(codes), generator=generator)[:most]].double()
    draws, latent = codes.shape
    check_draws(draws, max(20, 2 * latent))
    scales, factor = correlation_factor(codes)
    centred = (codes - codes.mean(0)) / (scales * math.sqrt(1 - 1 / draws))
    noise = torch.linalg.solve_triangular(factor, centred.T, upper=False).T
    square = 0.5 * ((2 * latent + 1) * draws / 4) ** (2 / (latent + 4))  # beta^2
    pairs = torch.exp(-0.5 * square * torch.cdist(noise, noise).square()).mean()
    radii = noise.square().sum(1)
    single = torch.exp(-0.5 * square / (1 + square) * radii).mean()
    value = pairs - 2 * (1 + square) ** (-latent / 2) * single + (1 + 2 * square) ** (-latent / 2)
    statistic = draws * value.item()
    return ShapeTest(statistic, _henze_zirkler_tail(statistic, latent, square))


def _henze_zirkler_tail(statistic: float, d: int, square: float) -> float:
    """Return the probability that Gaussian codes have a larger statistic."""
    a, b = 1 + 2 * square, (1 + square) * (1 + 3 * square)
    mean = 1 - a ** (-d / 2) * (1 + d * square / a + d * (d + 2) * square**2 / (2 * a**2))
    variance = (
        2 * (1 + 4 * square) ** (-d / 2)
        + 2 * a**-d * (1 + 2 * d * square**2 / a**2 + 3 * d * (d + 2) * square**4 / (4 * a**4))
        - 4
        * b ** (-d / 2)
        * (1 + 3 * d * square**2 / (2 * b) + d * (d + 2) * square**4 / (2 * b**2))
    )
    spread = math.log1p(variance / mean**2)
    return float(lognorm.sf(statistic, math.sqrt(spread), scale=mean * math.exp(-spread / 2)))


class RankUniformity(NamedTuple):
    """Ranks of codes under N(0, 1), which are uniform in each dimension under a match.

    Attributes:
        distances: Kolmogorov distance of the ranks from uniform ones in each latent dimension, in
            expectation above that of q, with its null band.
        p_values: Probability of a larger distance under a match, in each dimension.
        p_value: Smallest of them times the number of dimensions, at most 1 (Bonferroni): the
            probability of so small a one anywhere is no larger.
    """

    distances: tuple[Statistic, ...]
    p_values: tuple[float, ...]
    p_value: float


def rank_uniformity(codes: Float[Tensor, "draws latent"]) -> RankUniformity:
    r"""Test in each latent dimension whether the codes' ranks under the prior are uniform.

    .. math:: u_{ij} = \Phi(z_{ij}), \qquad \sup_u \left|\hat F_{u_j}(u) - u\right|

    Codes drawn once for each example are draws of the posterior averaged over the data, which the
    prior equals in a model that is right. This is the check of calibration that simulation-based
    inference makes of its posteriors. It is blind to dependence between dimensions.

    Args:
        codes: One draw from the posterior of each held-out example, of shape ``(draws, latent)``.

    Returns:
        Distances and p-values by dimension, and one p-value for all of them.

    Raises:
        ShapeError: The codes are no matrix.
        NonFiniteError: A code is infinite or not a number.
        TooFewCodesError: There are fewer than two codes.

    Introduced in "The estimators on trial".

    >>> round(rank_uniformity(torch.zeros(100, 3)).distances[0].value, 2)
    0.5
    """
    codes = rows(codes, fewest=2).double()
    draws, latent = codes.shape
    low, high = kstwo.ppf((0.025, 0.975), draws)
    distances, p_values = [], []
    for column in codes.T:
        test = ks_1samp(column.numpy(), norm.cdf)
        share = (column <= test.statistic_location).double().mean().item()
        error = math.sqrt(share * (1 - share) / draws)
        distance = Estimate(float(test.statistic), error, "upper")
        distances.append(Statistic(distance, float(low), float(high)))
        p_values.append(float(test.pvalue))
    return RankUniformity(tuple(distances), tuple(p_values), min(1.0, latent * min(p_values)))
