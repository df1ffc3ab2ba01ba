"""Summary of any VAE's codes: the mismatch of their aggregated posterior from N(0, I)."""

import contextlib
import math
from collections.abc import Callable
from dataclasses import replace
from html import escape

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution

from priormatch.checks import ShapeError, check_draws, check_event
from priormatch.degeneracy import DegenerateCodesError
from priormatch.densities import NoDensityError, fit_best
from priormatch.distributions import AggregatedPosterior, PaddedDensity
from priormatch.estimate import Estimate, TooFewCodesError, average
from priormatch.goodness_of_fit import henze_zirkler, rank_uniformity, sliced_epps_pulley
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
from priormatch.models import draw, standard_normal
from priormatch.two_sample import classifier_test, radius, sliced_wasserstein, squared_mmd

Measure = Estimate | tuple[Estimate, ...] | tuple[float, ...] | float | int | str

_MEANINGS = {
    "rate": "average KL of a training posterior from N(0, I), nats",
    "log_examples": "ln N: the information of a code on its example cannot exceed it",
    "active_units": "latent dimensions whose mean varies with the example",
    "matched_units": "those of them within 0.01 nats of N(0, 1), each seen alone",
    "in_sample_kl": "mismatch by the mixture of training posteriors at its own draws, nats",
    "held_out_kl": "mismatch by that mixture at held-out codes, nats",
    "moment_bound": "mismatch of mean and covariance alone, nats",
    "density": "the fitted density that the next lines use",
    "density_bound": "mismatch by that density: the ELBO it would gain as prior, nats",
    "dimension_wise_kl": "mismatch of each latent dimension alone, summed, nats",
    "total_correlation": "mismatch that no dimension shows alone, nats",
    "reverse_kl": "KL of N(0, I) from that density, nats",
    "thin_share": "prior draws where codes are ten times thinner than N(0, I)",
    "hole_share": "prior draws where codes are thinner than at 99 % of held-out codes",
    "prior_patch_share": "prior draws inside the 99 % ellipsoid of some training posterior",
    "codes_patch_share": "held-out codes inside one",
    "prior_patch_distance": "median distance of a prior draw to the nearest, in its own scales",
    "codes_patch_distance": "the same of held-out codes",
    "classifier_accuracy": "accuracy of a classifier of codes and prior draws; 0.5 is a match",
    "classifier_auc": "its area under the curve; 0.5 is a match",
    "squared_mmd": "squared maximum mean discrepancy from N(0, I); 0 is a match",
    "mean_square_radius": "mean of |z|²; a match has the number of latent dimensions",
    "radius_distance": "Kolmogorov distance of |z|² from chi-square",
    "sliced_wasserstein": "Wasserstein distance of projections from N(0, 1)",
    "slices_p_value": "Epps-Pulley test of projections (SIGReg); a match has a large p-value",
    "ranks_p_value": "Kolmogorov test of single dimensions; a match has a large p-value",
    "shape_p_value": "Henze-Zirkler test; any Gaussian, matching or not, has a large p-value",
}


class Summary(dict[str, Measure]):
    """Measures by name, printed as a table."""

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Return name, value with error, side of the bound, and meaning of each printed measure."""
        rows = []
        for name, meaning in _MEANINGS.items():
            measure = self[name]
            value, side = f"{measure:.2f}" if isinstance(measure, float) else str(measure), ""
            if isinstance(measure, Estimate):
                value = str(replace(measure, note="")) + ("*" if measure.note else "")
                side = {"lower": "at least", "upper": "at most", "none": ""}[measure.bound]
                if measure.floor is not None:
                    side += f", never below {measure.floor:.2f}"
            rows.append((name, value, side, meaning))
        return rows

    @property
    def notes(self) -> dict[str, str]:
        """What the marked measures cannot say, and why, by the name of the measure."""
        return {
            name: measure.note
            for name in _MEANINGS
            if isinstance(measure := self[name], Estimate) and measure.note
        }

    def __str__(self) -> str:
        widths = [max(map(len, column)) for column in zip(*self.rows(), strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in self.rows()
        ]
        return "\n".join(lines + [f"* {name}: {note}" for name, note in self.notes.items()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        body = "".join(
            f'<tr><th scope="row"><code>{escape(name)}</code></th>'
            + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
            + "</tr>"
            for name, *cells in self.rows()
        )
        head = "".join(
            f'<th scope="col">{cell}</th>' for cell in ("Measure", "Value", "Side", "Meaning")
        )
        notes = "".join(
            f"<li><code>{escape(name)}</code>: {escape(note)}</li>"
            for name, note in self.notes.items()
        )
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        return table + (f"<ul>{notes}</ul>" if notes else "")


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
    note says why, and another one says where a bound is vacuous.

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
        validation = AggregatedPosterior(validation_means, validation_scales)
    return summary_of(
        AggregatedPosterior(train_means, train_scales),
        AggregatedPosterior(test_means, test_scales),
        validation,
        draws=draws,
        seed=seed,
    )


def summary_of(
    train: AggregatedPosterior,
    test: AggregatedPosterior,
    validation: AggregatedPosterior | None = None,
    *,
    draws: int = 10_000,
    seed: int = 0,
) -> Summary:
    """Evaluate `summary` for mixtures of posteriors, which may have full covariances.

    Args:
        train: Mixture over the training examples.
        test: Mixture over examples that the model was not trained on.
        validation: Mixture over other examples; if None, a tenth of the training examples.
        draws: Draws of the mixture, as in `summary`.
        seed: Decides the draws and the fits.

    Returns:
        Measures by name.

    Raises:
        ShapeError: The mixtures do not have one number of dimensions.
        TooFewCodesError: There are fewer than twenty training or two test examples.

    Introduced in "The estimators on trial".
    """
    generator = torch.Generator().manual_seed(seed)
    train, test = train.on_cpu(), test.on_cpu()
    check_draws(draws)
    for name, mixture, fewest in (("training", train, 20), ("test", test, 2)):
        if mixture.components < fewest:
            raise TooFewCodesError(
                f"{fewest} {name} examples or more are needed, and there are {mixture.components}"
            )
    if validation is None:
        order = torch.randperm(train.components, generator=generator)
        apart = max(1, len(order) // 10)
        validation, train = train.examples(order[:apart]), train.examples(order[apart:])
    validation = validation.on_cpu()
    latent = train.event_shape[0]
    check_event(test, latent, "the mixture of test posteriors")
    check_event(validation, latent, "the mixture of validation posteriors")
    prior = standard_normal(latent)
    codes, unseen, choosing = (
        draw(mixture.posteriors, generator) for mixture in (train, test, validation)
    )
    prior_draws = draw(prior.expand((max(draws, len(unseen)),)), generator)
    alone = dimension_wise_kl(train, unseen)
    measures: dict[str, Measure] = {
        "rate": average(rates(train)),
        "log_examples": math.log(train.components),
        "active_units": active_units(train),
        "matched_units": len(matched_dimensions(train, alone)),
        "in_sample_kl": in_sample_kl(train, prior, draws, generator),
        "held_out_kl": held_out_kl(train, unseen, prior),
        "held_out_kl_validation": _measured(lambda: held_out_kl(train, choosing, prior)),
        "moment_bound": _measured(lambda: moment_bound(unseen)),
        "moment_bound_validation": _measured(lambda: moment_bound(choosing)),
        "dimension_wise_kl": alone.total,
        "kl_of_dimensions": alone.per_dimension,
        "rate_of_dimensions": tuple(rate_per_dimension(train).tolist()),
        "mean_square_of_dimensions": tuple(mean_square_per_dimension(train).tolist()),
        "mean_square_radius": radius(unseen).mean_square.estimate,
    }
    measures |= _by_density(train, codes, choosing, unseen, prior_draws, seed)
    measures |= _on_active(train, unseen, prior_draws, generator, seed)
    return Summary(measures)


def _measured(measure: Callable[[], Estimate]) -> Estimate:
    """Return a measure, or the reason why these codes do not allow it."""
    try:
        return measure()
    except (TooFewCodesError, DegenerateCodesError, NoDensityError) as error:
        return Estimate(math.nan, math.nan, note=str(error))


def _p_value(test: Callable[[], float]) -> float:
    """Return the p-value of a test, or NaN where there are too few codes for it."""
    try:
        return test()
    except (TooFewCodesError, DegenerateCodesError):
        return math.nan


def _by_density(
    train: AggregatedPosterior,
    codes: Float[Tensor, "examples latent"],
    choosing: Float[Tensor, "others latent"],
    unseen: Float[Tensor, "held_out latent"],
    prior_draws: Float[Tensor, "draws latent"],
    seed: int,
) -> dict[str, Measure]:
    """Return the measures that need a fitted density."""
    prior = standard_normal(codes.shape[1])
    names = (
        *("density_bound", "density_bound_validation", "total_correlation"),
        *("reverse_kl", "thin_share", "hole_share"),
    )
    try:
        fitted = fit_best(codes, choosing, seed, train)
    except NoDensityError as error:
        missing = Estimate(math.nan, math.nan, note=str(error))
        return {"density": "none", **dict.fromkeys(names, missing)}
    density = fitted.density
    found = (
        held_out_kl(density, unseen, prior),
        # These codes chose the density, which makes the number a little too high for a bound.
        _measured(lambda: replace(held_out_kl(density, choosing, prior), bound="none")),
        total_correlation(density, train, unseen),
        reverse_kl(density, prior_draws, prior),
        thin_share(density, prior_draws, prior),
        _hole_share(density, unseen, prior_draws),
    )
    return {"density": fitted.name, **dict(zip(names, found, strict=True))}


def _hole_share(density: Distribution, codes: Tensor, prior_draws: Tensor) -> Estimate:
    """Return the share of prior draws in holes of the fitted dimensions: silent ones blur it."""
    if isinstance(density, PaddedDensity):
        active = density.dimensions
        return hole_share(density.density, codes[:, active], prior_draws[:, active])
    return hole_share(density, codes, prior_draws)


def _on_active(
    train: AggregatedPosterior,
    codes: Float[Tensor, "held_out latent"],
    prior_draws: Float[Tensor, "draws latent"],
    generator: torch.Generator,
    seed: int,
) -> dict[str, Measure]:
    """Return the measures on the active dimensions, which silent ones would only blur."""
    active = active_dimensions(train) or [*range(codes.shape[1])]
    train, codes, prior_draws = train.marginal(*active), codes[:, active], prior_draws[:, active]
    of_prior, of_codes = nearest_patch(train, prior_draws), nearest_patch(train, codes)
    accuracy = auc = Estimate(math.nan, math.nan, note="twenty test examples or more are needed")
    with contextlib.suppress(TooFewCodesError):
        classifier = classifier_test(codes, prior_draws[: len(codes)], seed)
        accuracy, auc = classifier.accuracy.estimate, classifier.auc.estimate
    return {
        "prior_patch_share": of_prior.share,
        "prior_patch_distance": of_prior.distance,
        "codes_patch_share": of_codes.share,
        "codes_patch_distance": of_codes.distance,
        "classifier_accuracy": accuracy,
        "classifier_auc": auc,
        "squared_mmd": squared_mmd(train, generator).estimate,
        "radius_distance": radius(codes).distance.estimate,
        "sliced_wasserstein": sliced_wasserstein(codes, generator).estimate,
        "slices_p_value": _p_value(lambda: sliced_epps_pulley(codes, generator).p_value),
        "ranks_p_value": rank_uniformity(codes).p_value,
        "shape_p_value": _p_value(lambda: henze_zirkler(codes, generator).p_value),
    }
