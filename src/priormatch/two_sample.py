"""Two-sample tests of the codes against N(0, I): second opinions that need no density.

A null band holds 95 % of a test's values where the codes match the prior.
"""

import math
import warnings
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import chi2, ks_1samp, kstwo
from sklearn.ensemble import HistGradientBoostingClassifier, VotingClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.distributions import Normal

from priormatch.checks import ShapeError, check_draws, rows
from priormatch.distributions import AggregatedPosterior
from priormatch.estimate import Estimate, Statistic, average
from priormatch.objectives import log_kernel_mean

# Fewest codes to train and to test a classifier.
_FEWEST = 20


class ClassifierTest(NamedTuple):
    """Results of a classifier of codes and prior draws, on those that it has not seen.

    Attributes:
        accuracy: Share of right answers; 1/2 under a match, and at most that of the best
            classifier.
        auc: Share of pairs in which the code scores higher than the prior draw; 1/2 under a match.
        total_variation: Lower bound on the total variation between q and p, in [0, 1].
        kl: Lower bound on KL(q || p) that follows from it, in nats.
    """

    accuracy: Statistic
    auc: Statistic
    total_variation: Estimate
    kl: Estimate


def classifier_test(
    codes: Float[Tensor, "draws latent"],
    prior_draws: Float[Tensor, "draws latent"],
    seed: int = 0,
) -> ClassifierTest:
    r"""Train a classifier of codes and prior draws on one half of them, and test it on the other.

    .. math:: 2 \cdot \text{accuracy} - 1 \le \mathrm{TV}(q, p)
              \le \sqrt{\tfrac12 \mathrm{KL}(q \| p)}

    The first inequality holds for every classifier, the second is Pinsker's. The halves are drawn
    at random, because examples often come in an order that a classifier would learn. There is one
    split and no cross-validation. Answers of a cross-validation depend on each other: under a match
    they spread up to 1.5 times as wide as a binomial. The classifier averages gradient-boosted
    trees, which see sharp edges, and a small network, which sees rotated structure.

    Args:
        codes: One draw from the posterior of each held-out example, of shape ``(draws, latent)``.
        prior_draws: As many draws from the prior.
        seed: Decides the halves and the classifier's randomness.

    Returns:
        Accuracy and AUC with their null bands, and the bounds; the standard errors are over the
        codes and prior draws of the test half, for the classifier as trained.

    Raises:
        ShapeError: There are not as many prior draws as codes, or they have other dimensions.
        NonFiniteError: A code or a draw is infinite or not a number.
        TooFewCodesError: There are fewer than twenty codes.

    Source: :cite:t:`lopezpaz2017` for the test, :cite:t:`delong1988` for the error of the AUC.

    Introduced in "The estimators on trial".

    >>> far, near = torch.linspace(8, 9, 100)[:, None], torch.linspace(-1, 1, 100)[:, None]
    >>> classifier_test(far, near).total_variation.value
    1.0
    """
    codes = rows(codes, fewest=_FEWEST)
    prior_draws = rows(prior_draws, "prior_draws")
    if codes.shape != prior_draws.shape:
        raise ShapeError(
            "a classifier that answers at random is right half of the time only among as many "
            f"prior draws as codes, not {tuple(prior_draws.shape)} and {tuple(codes.shape)}"
        )
    train, test = train_test_split(np.arange(len(codes)), test_size=0.5, random_state=seed)
    seen = torch.cat([codes[train], prior_draws[train]]).numpy()
    with warnings.catch_warnings():
        # Few passes guard against overfitting, so not to converge is no failure.
        warnings.simplefilter("ignore", ConvergenceWarning)
        classifier = _classifier(seed).fit(seen, np.repeat([1, 0], len(train)))
    unseen = torch.cat([codes[test], prior_draws[test]]).numpy()
    scores = torch.from_numpy(classifier.predict_proba(unseen)[:, 1].copy())
    return _two_sample(*scores.chunk(2))


def _classifier(seed: int) -> VotingClassifier:
    network = MLPClassifier(
        (64, 64), alpha=0.1, learning_rate_init=2e-3, max_iter=30, random_state=seed
    )
    return VotingClassifier(
        [
            ("trees", HistGradientBoostingClassifier(random_state=seed)),
            ("network", make_pipeline(StandardScaler(), network)),
        ],
        voting="soft",
    )


def _two_sample(
    of_codes: Float[Tensor, " pairs"], of_prior: Float[Tensor, " pairs"]
) -> ClassifierTest:
    """Return the results of a classifier from its scores, the probabilities of being a code."""
    pairs = len(of_codes)
    # Codes and prior draws follow two laws, but pairs of them one, so the error is that of pairs.
    accuracy = average(((of_codes > 0.5).double() + (of_prior <= 0.5).double()) / 2, "lower")
    total_variation = Estimate(2 * accuracy.value - 1, 2 * accuracy.standard_error, "lower")
    return ClassifierTest(
        _with_normal_band(accuracy, math.sqrt(1 / (8 * pairs))),
        _with_normal_band(_auc(of_codes, of_prior), math.sqrt((2 * pairs + 1) / 12) / pairs),
        total_variation,
        _pinsker(total_variation),
    )


def _with_normal_band(estimate: Estimate, deviation: float) -> Statistic:
    return Statistic(estimate, 0.5 - 1.96 * deviation, 0.5 + 1.96 * deviation)


def _auc(of_codes: Float[Tensor, " pairs"], of_prior: Float[Tensor, " pairs"]) -> Estimate:
    """Return the share of all pairs in which the code has the higher score, ties counting half."""
    pairs = len(of_codes)

    def share_below(scores: Tensor, others: Tensor) -> Tensor:
        ordered = others.sort().values
        below = torch.searchsorted(ordered, scores) + torch.searchsorted(
            ordered, scores, right=True
        )
        return below / (2 * pairs)

    wins, losses = share_below(of_codes, of_prior), share_below(of_prior, of_codes)
    error = (wins - losses).double().std() / math.sqrt(pairs)
    return Estimate(wins.double().mean().item(), error.item(), "lower")


def _pinsker(total_variation: Estimate) -> Estimate:
    """Return the lower bound on the KL that a lower bound on the total variation implies."""
    noise = total_variation.standard_error**2
    # The square of an unbiased estimate is too large by its variance. The error is that of a
    # normal estimate's square; near zero, where its own noise enters, it is wide.
    square = total_variation.value**2 - noise
    error = math.sqrt(4 * max(square, 0.0) * noise + 2 * noise**2)
    return Estimate(2 * square, 2 * error, "lower")


def sliced_wasserstein(
    codes: Float[Tensor, "draws latent"], generator: torch.Generator, directions: int = 50
) -> Statistic:
    r"""Average the Wasserstein distance of the projected codes from N(0, 1) over directions.

    .. math:: \frac1K \sum_k \int \left|F_{u_k \cdot z}(t) - \Phi(t)\right| dt

    It gives a picture and never a verdict: a projection adds up latent dimensions, and a sum of
    many looks normal, whatever its terms are.

    Args:
        codes: Independent draws of q, of shape ``(draws, latent)``.
        generator: Source of the directions u and of the null band.
        directions: Number K of directions.

    Returns:
        A distance in units of z, in expectation above that of q, with its null band. The standard
        error is over the codes, for these directions.

    Raises:
        ShapeError: The codes are no matrix.
        NonFiniteError: A code is infinite or not a number.
        TooFewCodesError: There are fewer than two codes.

    Source: :cite:t:`bonneel2015`.

    Introduced in "The estimators on trial".
    """
    codes = rows(codes, fewest=2)
    draws, latent = codes.shape
    axes = torch.randn((latent, directions), generator=generator)
    axes = axes / axes.norm(dim=0)
    ordered, order = (codes.float() @ axes).sort(0)
    # Kantorovich's potential is the influence of a code on the distance: its slope is 1 where the
    # mass lies too far to the right, and -1 where it lies too far to the left.
    steps = (ordered - _quantiles(draws)[:, None]).sign() * ordered.diff(dim=0, prepend=ordered[:1])
    influence = torch.zeros_like(steps).scatter_(0, order, steps.cumsum(0)).mean(1)
    # Under a match the distance shrinks with the root of the number of codes: few give its law.
    few = min(draws, 500)
    matched = torch.stack(
        [torch.randn((few, latent), generator=generator) @ axes for _ in range(200)]
    )
    null = _distance(matched.sort(1).values).mean(1) * math.sqrt(few / draws)
    low, high = np.quantile(null.numpy(), [0.025, 0.975]).tolist()
    error = influence.std().item() / math.sqrt(draws)
    return Statistic(Estimate(_distance(ordered.double()).mean().item(), error, "upper"), low, high)


def _quantiles(draws: int) -> Float[Tensor, " draws"]:
    """Return the quantiles of N(0, 1) in the middle of cells of equal mass."""
    return Normal(0.0, 1.0).icdf((torch.arange(draws, dtype=torch.float64) + 0.5) / draws).float()


def _distance(
    ordered: Float[Tensor, "*batch draws directions"],
) -> Float[Tensor, "*batch directions"]:
    """Return the Wasserstein distance of sorted projections from N(0, 1), exact for each set."""
    draws = ordered.shape[-2]
    levels = torch.arange(draws + 1, dtype=torch.float64)[:, None] / draws
    edges = torch.special.ndtri(levels)
    # In its cell of mass 1 / draws a projection z is moved to all quantiles u between two edges.
    # The integral of |z - u| is split at z, and that of u over the mass is minus the density.
    split = torch.minimum(torch.maximum(ordered, edges[:-1].to(ordered)), edges[1:].to(ordered))
    below = torch.special.ndtr(split) - levels[:-1].to(ordered)
    cells = ordered * (2 * below - 1 / draws) + 2 * _density(split)
    return (cells - (_density(edges[:-1]) + _density(edges[1:])).to(ordered)).sum(-2)


def _density(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return the density of N(0, 1)."""
    return torch.exp(-0.5 * values.square()) / math.sqrt(2 * math.pi)


class Radius(NamedTuple):
    """Statistics of the codes' distance from the origin.

    Attributes:
        mean_square: Average squared radius; d under a match.
        distance: Largest difference between the share of codes within a radius and the prior's
            mass within it (Kolmogorov), in expectation above that of q.
    """

    mean_square: Statistic
    distance: Statistic


def radius(codes: Float[Tensor, "draws latent"]) -> Radius:
    r"""Compare the squared radii of the codes with chi-square, their law under N(0, I).

    .. math:: \frac1n \sum_i |z_i|^2, \qquad
              \sup_t \left|\hat F_{|z|^2}(t) - F_{\chi^2_d}(t)\right|

    It gives a picture and never a verdict: directions do not enter, and a shell of the right
    thickness passes.

    Args:
        codes: Independent draws of q, of shape ``(draws, latent)``.

    Returns:
        The mean squared radius, and the distance in [0, 1], each with its null band.

    Raises:
        ShapeError: The codes are no matrix.
        NonFiniteError: A code is infinite or not a number.
        TooFewCodesError: There are fewer than two codes.

    Introduced in "The estimators on trial".

    >>> radius(torch.ones(4, 3)).mean_square.estimate.value
    3.0
    """
    codes = rows(codes, fewest=2)
    squares = codes.double().square().sum(1)
    draws, latent = codes.shape
    tails = (0.025, 0.975)
    low, high = chi2.ppf(tails, draws * latent) / draws
    mean_square = Statistic(average(squares), float(low), float(high))
    test = ks_1samp(squares.numpy(), chi2(latent).cdf)
    share = (squares <= test.statistic_location).double().mean().item()
    error = math.sqrt(share * (1 - share) / draws)
    low, high = kstwo.ppf(tails, draws)
    distance = Statistic(Estimate(float(test.statistic), error, "upper"), float(low), float(high))
    return Radius(mean_square, distance)


# Posteriors of a block, each paired with all others: 24 MB in double precision.
_PAIRS = 1_000

# Sets of random signs for the null band of the discrepancy.
_SIGNS = 500


def squared_mmd(
    aggregated: AggregatedPosterior,
    generator: torch.Generator,
    beta: float | None = None,
    posteriors: int = 3_000,
) -> Statistic:
    r"""Estimate the squared maximum mean discrepancy of the population's q from N(0, I).

    .. math:: \frac{1}{N (N - 1)} \sum_{n \ne m} k_{nm} - \frac2N \sum_n c_n
              + (1 + 2 \beta^2)^{-d / 2}

    Here k_nm is the mean of the kernel ``exp(-beta^2 |x - y|^2 / 2)`` over draws of posteriors n
    and m, and c_n is its mean over draws of posterior n and of N(0, I). For Gaussians both have
    closed forms, so neither draws nor a density are needed. Leaving out n = m makes the estimate
    unbiased for the law that the examples come from, in any dimension. So it has no floor at ln N.

    Args:
        aggregated: Mixture over examples.
        generator: Decides which posteriors are taken if there are more.
        beta: Reciprocal width of the kernel; 1 / sqrt(latent) if it is None, which suits codes as
            wide as N(0, I).
        posteriors: Posteriors taken; time and error fall with their number.

    Returns:
        A number without a unit, 0 under a match; it can be negative. Its null band is that of the
        wild bootstrap, which changes the signs of examples at random.

    Raises:
        TooFewCodesError: There are fewer than ten posteriors.
        ValueError: The width is not positive.

    Source: :cite:t:`gretton2012` for the estimate, :cite:t:`henze1990` for the kernel.

    Introduced in "The estimators on trial".

    >>> single = AggregatedPosterior(torch.zeros(10, 1), torch.full((10, 1), 1e-6))
    >>> round(squared_mmd(single, torch.Generator(), beta=1.0).value, 4)  # 1 - sqrt(2) + sqrt(1/3)
    0.1631
    """
    latent = aggregated.event_shape[0]
    number = min(posteriors, aggregated.components)
    check_draws(number, 10)
    square = 1 / latent if beta is None else beta**2
    if not 0 < square < math.inf:
        raise ValueError(f"a reciprocal width is positive and finite, not {beta}")
    chosen = torch.randperm(aggregated.components, generator=generator)[:number]
    some = aggregated.on_cpu().examples(chosen).double()
    means, variances = some.means, some.scales.square()
    if some.scale_tril is not None:
        # One draw of each posterior in its place: draws have no correlations to account for.
        noise = torch.randn(means.shape, generator=generator, dtype=torch.float64)
        means = means + (some.scale_tril @ noise.unsqueeze(2)).squeeze(2)
        variances = torch.zeros_like(means)
    with_prior = log_kernel_mean(means, variances + 1, square).sum(1).exp()
    prior_alone = (1 + 2 * square) ** (-latent / 2)
    signs = torch.randint(2, (number, _SIGNS), generator=generator).double() * 2 - 1
    sums, square_sum, null = [], 0.0, torch.zeros(_SIGNS, dtype=torch.float64)
    for block in torch.arange(number).split(_PAIRS):
        log_kernel = torch.zeros(len(block), number, dtype=torch.float64)
        for j in range(latent):  # one dimension at a time, for the memory
            shift = means[block, j, None] - means[:, j]
            spread = variances[block, j, None] + variances[:, j]
            log_kernel += log_kernel_mean(shift, spread, square)
        kernel = log_kernel.exp_()
        kernel[torch.arange(len(block)), block] = 0.0  # no example is paired with itself
        sums.append(kernel.sum(1))
        square_sum += kernel.square().sum().item()
        # Under a match the mean over either example of a pair is zero, once the prior is out.
        centred = kernel.add_(prior_alone - with_prior[block, None]).sub_(with_prior)
        centred[torch.arange(len(block)), block] = 0.0
        null += (signs[block] * (centred @ signs)).sum(0)
    pairs = number * (number - 1)
    with_others = torch.cat(sums) / (number - 1)
    mean_square = square_sum / pairs
    value = with_others.mean() - 2 * with_prior.mean() + prior_alone
    # The variance has Hoeffding's two terms. Under a match the first is zero and the second alone
    # is left. But the estimate of the first contains the noise of the second, twice.
    linear = 4 * (with_others - with_prior).var().item() / number
    mean_square -= with_others.mean().item() ** 2 + 2 * with_others.var().item()
    second = 2 * max(0.0, mean_square) / pairs
    error = math.sqrt(max(linear - second, second))
    low, high = np.quantile(null.numpy() / pairs, [0.025, 0.975])
    return Statistic(Estimate(value.item(), error), float(low), float(high))
