"""Measurement of any VAE's codes: the mismatch of their aggregated posterior from the prior."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution, kl_divergence

from priormatch.checks import ShapeError, check_draws, check_event, log_density
from priormatch.codes import Codes
from priormatch.densities import Fitted, fit_best
from priormatch.distributions import AggregatedPosterior, PaddedDensity
from priormatch.estimate import Estimate, TooFewCodesError, average
from priormatch.goodness_of_fit import henze_zirkler, rank_uniformity, sliced_epps_pulley
from priormatch.known_prior import KnownPrior, known_prior
from priormatch.mismatch import (
    active_dimensions,
    active_units,
    dimension_wise_kl,
    held_out_kl,
    hole_share,
    in_sample_kl,
    matched_dimensions,
    mean_square_per_dimension,
    moment_bound,
    nearest_patch,
    rate_per_dimension,
    rates,
    reverse_kl,
    thin_share,
    total_correlation,
)
from priormatch.models import draw
from priormatch.summaries import Measure, MeasuresTaken, Summary
from priormatch.two_sample import classifier_test, radius, sliced_wasserstein, squared_mmd


def summary(
    train_means: Float[Tensor, "examples latent"],
    train_scales: Float[Tensor, "examples latent"],
    test_means: Float[Tensor, "held_out latent"],
    test_scales: Float[Tensor, "held_out latent"],
    *,
    validation_means: Float[Tensor, "others latent"] | None = None,
    validation_scales: Float[Tensor, "others latent"] | None = None,
    draws: int = 10_000,
    seed: int = 0,
) -> Summary:
    """Measure the mismatch of the average of diagonal Gaussian posteriors from N(0, I).

    Densities are fitted to the training codes, chosen on the validation codes and reported on the
    test codes. Densities, ellipsoids and tests use the active dimensions alone.

    Measures that the codes do not allow, for instance because they are too few, are not measured; a
    note says why, and another one says where a bound is vacuous. `priormatch.audit` takes more
    kinds of codes and of priors, and gives advice.

    Args:
        train_means: Means of the posteriors of the training examples: tensors or NumPy arrays of
            shape ``(examples, latent)``. `positions_as_rows` makes rows of latent maps.
        train_scales: Their standard deviations, not variances.
        test_means: Means of the posteriors of examples that the model was not trained on.
        test_scales: Their standard deviations.
        validation_means: Means of the posteriors of other examples, on which the density is chosen.
            If None, a tenth of the training examples is set apart for this.
        validation_scales: Their standard deviations.
        draws: Draws of the mixture. The prior is drawn as often, or once for each test example if
            these are more. Each posterior is drawn once.
        seed: Decides the draws and the fits.

    Returns:
        Measures by name: estimates with error, side and floor. Measures of single latent dimensions
        are tuples. Names of measures on the validation codes end with ``_validation``.

    Raises:
        ShapeError: The shapes differ, or are not these.
        NonFiniteError: A mean or a scale is infinite or not a number.
        ScaleError: A scale is not positive.
        PrecisionError: A mean or a scale is out of range, or too narrow for double precision.
        TooFewCodesError: There are fewer than twenty training or two test examples.

    Introduced in "The estimators on trial".
    """
    if (validation_means is None) != (validation_scales is None):
        raise ShapeError("validation_means and validation_scales come together")
    validation = None
    if validation_means is not None:
        validation = Codes(validation_means, validation_scales)
    train, test = Codes(train_means, train_scales), Codes(test_means, test_scales)
    return measure(train, test, validation, draws=draws, seed=seed).summary


class Measured(NamedTuple):
    """Measures of codes, and what they were made from.

    Attributes:
        summary: The measures.
        train: Training codes of the mixture, without those that chose the density.
        unseen: One draw of each held-out posterior.
        prior: The prior.
        prior_draws: Draws of it.
        fitted: The fitted density and its rivals; None where none could be fitted.
        active: Latent dimensions that tell examples apart; all of them, of draws alone.
    """

    summary: Summary
    train: Codes
    unseen: Float[Tensor, "held_out latent"]
    prior: KnownPrior
    prior_draws: Float[Tensor, "draws latent"]
    fitted: Fitted | None
    active: list[int]

    @property
    def silent(self) -> list[int]:
        """Latent dimensions that do not tell examples apart; none, of draws alone."""
        # Where no dimension is active, measures were taken on all.
        active = self.active if self.summary["active_units"] else []
        return [j for j in range(self.train.latent) if j not in {*active}]


def measure(
    train: Codes,
    test: Codes,
    validation: Codes | None = None,
    *,
    prior: KnownPrior | None = None,
    draws: int = 10_000,
    seed: int = 0,
    most_posteriors: int | None = None,
    say: Callable[[str], None] = lambda what: None,
) -> Measured:
    """Take every measure that codes and prior allow.

    Args:
        train: Codes of the training examples.
        test: Codes of examples that the model was not trained on.
        validation: Codes of others; if None, a tenth of the training codes.
        prior: The prior, N(0, I) if it is None. A Gaussian one is N(0, I) in other units, for which
            more measures are known: see `Codes.in_units_of`.
        draws: Draws of the mixture, and of the prior if there are not more test codes.
        seed: Decides the draws and the fits.
        most_posteriors: Most posteriors of the mixture, chosen at random; densities are fitted to
            codes of all of them.
        say: Is told what is done next.

    Raises:
        ShapeError: Codes and prior do not have one number of dimensions.
        TooFewCodesError: There are fewer than twenty training or two test codes.

    Introduced in "Audit your own VAE".
    """
    generator = torch.Generator().manual_seed(seed)
    check_draws(draws)
    for name, some, fewest in (("training", train, 20), ("test", test, 2)):
        if len(some) < fewest:
            raise TooFewCodesError(
                f"{fewest} {name} examples or more are needed, and there are {len(some)}"
            )
    if validation is None:
        validation, train = train.set_apart(max(1, len(train) // 10), generator)
    latent = train.latent
    for name, some in (("test", test), ("validation", validation)):
        check_event(some.points(), latent, f"the mixture of {name} posteriors")
    prior = prior or known_prior(None, latent)
    codes, unseen, choosing = (some.draw(generator) for some in (train, test, validation))
    many = max(draws, len(unseen))
    if prior.is_standard:
        prior_draws = draw(prior.law.expand(torch.Size((many,))), generator)
    else:
        prior_draws = prior.sample(many, seed)
    # Silent dimensions follow N(0, 1) only where that is their prior.
    known, table = train.mixture if prior.is_standard else None, MeasuresTaken(say)
    if most_posteriors is not None:
        train = train.at_most(most_posteriors, generator)
    _of_posteriors(table, train, unseen, choosing, prior, draws, generator)
    fitted = _fit(table, lambda: fit_best(codes, choosing, seed, known))
    _by_density(table, fitted, train, choosing, unseen, prior, prior_draws)
    active = [*range(latent)]
    if train.mixture is not None:
        active = active_dimensions(train.mixture) or active
    _on_active(table, train, unseen[:, active], prior_draws[:, active], active, generator, seed)
    _of_standard_normal(table, train, unseen, active, prior, generator)
    found = Summary(table.measures, table.reasons, prior.name)
    return Measured(found, train, unseen, prior, prior_draws, fitted, active)


def _unless_posteriors(codes: Codes) -> str:
    return "" if codes.mixture else "it needs the posteriors, and these codes are draws alone"


def _unless_standard(prior: KnownPrior) -> str:
    return "" if prior.is_standard else f"it is known for Gaussian priors, and not for {prior.name}"


def _of_posteriors(
    table: MeasuresTaken,
    train: Codes,
    unseen: Tensor,
    choosing: Tensor,
    prior: KnownPrior,
    draws: int,
    generator: torch.Generator,
) -> None:
    """Take the measures of the mixture, and those of single dimensions."""
    needs_posteriors, needs_standard = _unless_posteriors(train), _unless_standard(prior)
    mixture, law = train.kernel(), prior.law
    needs_both = needs_posteriors or needs_standard

    def of_dimensions() -> tuple[Measure, ...]:
        alone = dimension_wise_kl(mixture, unseen)
        return alone.total, alone.per_dimension, len(matched_dimensions(mixture, alone))

    table.put(("rate",), lambda: (average(_rates(mixture, prior)),), needs_posteriors)
    table.put(("log_examples",), lambda: (math.log(len(train)),), needs_posteriors)
    table.put(("active_units",), lambda: (active_units(mixture),), needs_posteriors)
    table.put(
        ("in_sample_kl",),
        lambda: (in_sample_kl(mixture, law, draws, generator),),
        needs_posteriors,
        "the mixture at its own draws",
    )
    table.put(
        ("held_out_kl",),
        lambda: (held_out_kl(mixture, unseen, law),),
        needs_posteriors,
        "the mixture at held-out codes",
    )
    table.put(
        ("held_out_kl_validation",),
        lambda: (held_out_kl(mixture, choosing, law),),
        needs_posteriors,
    )
    table.put(("moment_bound",), lambda: (moment_bound(unseen),), needs_standard)
    table.put(("moment_bound_validation",), lambda: (moment_bound(choosing),), needs_standard)
    table.put(
        ("dimension_wise_kl", "kl_of_dimensions", "matched_units"),
        of_dimensions,
        needs_standard,
        "single dimensions",
    )
    table.put(
        ("rate_of_dimensions",),
        lambda: (tuple(rate_per_dimension(mixture).tolist()),),
        needs_both,
    )
    table.put(
        ("mean_square_of_dimensions",),
        lambda: (tuple(mean_square_per_dimension(train.points()).tolist()),),
        needs_standard,
    )


def _rates(mixture: AggregatedPosterior, prior: KnownPrior) -> Float[Tensor, " examples"]:
    """Return the KL of each posterior from the prior, exact or from one draw of each."""
    if prior.is_standard:
        return rates(mixture)
    posteriors = mixture.double().posteriors
    try:
        return kl_divergence(posteriors, prior.law)
    except NotImplementedError:
        codes = draw(posteriors, torch.Generator().manual_seed(0))
        return posteriors.log_prob(codes) - log_density(prior.law, codes, "the prior")


def _fit(table: MeasuresTaken, fit: Callable[[], Fitted]) -> Fitted | None:
    """Fit the density, or keep why there is none."""
    found: list[Fitted] = []

    def density() -> tuple[Measure, ...]:
        found.append(fit())
        return (found[0].name,)

    table.put(("density",), density, saying="densities")
    if not found:
        table.measures["density"] = "none"
    return found[0] if found else None


def _by_density(
    table: MeasuresTaken,
    fitted: Fitted | None,
    train: Codes,
    choosing: Float[Tensor, "others latent"],
    unseen: Float[Tensor, "held_out latent"],
    prior: KnownPrior,
    prior_draws: Float[Tensor, "draws latent"],
) -> None:
    """Take the measures that need the fitted density."""
    law, failed = prior.law, table.reasons.get("density", "")
    r: Distribution = fitted.density if fitted else law
    table.put(("density_bound",), lambda: (held_out_kl(r, unseen, law),), failed)
    # These codes chose the density, which makes the number a little too high for a bound.
    table.put(
        ("density_bound_validation",),
        lambda: (replace(held_out_kl(r, choosing, law), bound="none"),),
        failed,
    )
    table.put(
        ("total_correlation",), lambda: (total_correlation(r, train.kernel(), unseen),), failed
    )
    table.put(("reverse_kl",), lambda: (reverse_kl(r, prior_draws, law),), failed)
    table.put(("thin_share",), lambda: (thin_share(r, prior_draws, law),), failed)
    table.put(("hole_share",), lambda: (_hole_share(r, unseen, prior_draws),), failed)


def _hole_share(density: Distribution, codes: Tensor, prior_draws: Tensor) -> Estimate:
    """Return the share of prior draws in holes of the fitted dimensions: silent ones blur it."""
    if isinstance(density, PaddedDensity):
        active = density.dimensions
        return hole_share(density.density, codes[:, active], prior_draws[:, active])
    return hole_share(density, codes, prior_draws)


def _on_active(
    table: MeasuresTaken,
    train: Codes,
    unseen: Float[Tensor, "held_out active"],
    prior_draws: Float[Tensor, "draws active"],
    active: list[int],
    generator: torch.Generator,
    seed: int,
) -> None:
    """Take the measures of any prior on the active dimensions, which silent ones would blur."""

    def patches(codes: Tensor) -> tuple[Measure, ...]:
        return tuple(nearest_patch(train.kernel().marginal(*active), codes))

    def classifier() -> tuple[Measure, ...]:
        found = classifier_test(unseen, prior_draws[: len(unseen)], seed)
        return found.accuracy.estimate, found.auc.estimate

    needs_posteriors = _unless_posteriors(train)
    table.put(
        ("prior_patch_share", "prior_patch_distance"),
        lambda: patches(prior_draws),
        needs_posteriors,
        "the nearest patch",
    )
    table.put(
        ("codes_patch_share", "codes_patch_distance"), lambda: patches(unseen), needs_posteriors
    )
    table.put(("classifier_accuracy", "classifier_auc"), classifier, saying="a classifier")


def _of_standard_normal(
    table: MeasuresTaken,
    train: Codes,
    unseen: Float[Tensor, "held_out latent"],
    active: list[int],
    prior: KnownPrior,
    generator: torch.Generator,
) -> None:
    """Take the measures that are known for N(0, I), and the test of shape, which needs no prior."""
    needs_standard, some = _unless_standard(prior), unseen[:, active]
    table.put(
        ("squared_mmd",),
        lambda: (squared_mmd(train.points().marginal(*active), generator).estimate,),
        needs_standard,
        "tests of fit",
    )
    table.put(
        ("mean_square_radius",), lambda: (radius(unseen).mean_square.estimate,), needs_standard
    )
    table.put(("radius_distance",), lambda: (radius(some).distance.estimate,), needs_standard)
    table.put(
        ("sliced_wasserstein",),
        lambda: (sliced_wasserstein(some, generator).estimate,),
        needs_standard,
    )
    table.put(
        ("slices_p_value",),
        lambda: (sliced_epps_pulley(some, generator).p_value,),
        needs_standard,
    )
    table.put(("ranks_p_value",), lambda: (rank_uniformity(some).p_value,), needs_standard)
    table.put(("shape_p_value",), lambda: (henze_zirkler(some, generator).p_value,))
