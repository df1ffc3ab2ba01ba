"""Advice in plain words, from the measures of an audit."""

import math
from dataclasses import dataclass
from typing import Literal

from priormatch.degeneracy import DegenerateCodesError, atoms, correlation_factor
from priormatch.estimate import Estimate
from priormatch.measurement import Measured

Kind = Literal[
    "matched",
    "mismatch",
    "small mismatch",
    "infinite",
    "unclear",
    "sampler",
    "rescale",
    "silent",
    "scale factor",
    "few codes",
    "unconverged",
    "units",
    "held out",
    "subsampled",
]
"""Kind of a piece of advice; the first five are verdicts."""

_LOWER = ("density_bound", "moment_bound", "held_out_kl", "dimension_wise_kl")

# Nats below which a mismatch is called a match, standard errors that a finding has to exceed, and
# the p-value below which a test rejects.
_NEGLIGIBLE, _ERRORS, _REJECTS = 0.01, 3, 0.001

# Most latent dimensions that a sentence names.
_NAMED = 12


@dataclass(frozen=True)
class Advice:
    """One piece of advice.

    Attributes:
        kind: What it is about.
        text: A sentence or two.
        nats: What it is worth, where that is known.
        dimensions: Latent dimensions that it is about.
        value: The number that it gives, such as a scale factor.
    """

    kind: Kind
    text: str
    nats: Estimate | None = None
    dimensions: tuple[int, ...] = ()
    value: float | None = None

    def __str__(self) -> str:
        return self.text


def advise(
    measured: Measured, examples: int, shift: float, factor: float, seen: bool
) -> tuple[Advice, ...]:
    """Return advice on codes, the verdict first.

    Args:
        measured: Measures of the codes.
        examples: Number of training codes, also of those that were not measured.
        shift: Mean of all numbers in the codes.
        factor: Reciprocal of their standard deviation.
        seen: Whether the held-out codes are of examples that the encoder was trained on.

    Introduced in "Audit your own VAE".
    """
    why = degenerate(measured)
    found = [
        verdict(measured, why),
        _sampler(measured),
        *([] if why else _rescale(measured)),
        *_silent(measured),
        _scale_factor(shift, factor),
        *_few_codes(measured, examples),
        *_unconverged(measured),
    ]
    if seen:
        found.append(
            Advice(
                "held out",
                f"No held-out codes were given, so {len(measured.unseen)} of the training codes "
                "were set apart. The densities have not seen them, but the encoder has seen their "
                "examples: codes of new examples can be further away.",
            )
        )
    return tuple(found)


def verdict(measured: Measured, why: str) -> Advice:
    """Return whether the codes match the prior, and by how much they miss it.

    Args:
        measured: Measures of the codes.
        why: Why the codes have no density, or nothing: see `degenerate`.
    """
    summary, prior = measured.summary, measured.prior.name
    if why:
        return Advice(
            "infinite",
            f"The KL of these codes from {prior} is infinite: {why}. Numbers in nats say nothing "
            "here, because they grow with the fit.",
        )
    bounds = [one for name in _LOWER if _is_finite(one := _estimate(measured, name))]
    informative = [one for one in bounds if one.value > -max(0.1, _ERRORS * one.standard_error)]
    infinite = [name for name in _LOWER if _estimate(measured, name).value == math.inf]
    if infinite:
        return Advice(
            "infinite",
            f"The KL of these codes from {prior} is infinite: some lie where the prior has no "
            "density.",
        )
    if not informative:
        return Advice(
            "unclear",
            f"These codes are too few to say whether they match {prior}: no lower bound on their "
            "mismatch could be measured that is not below zero.",
        )
    best = max(informative, key=lambda one: one.value - 2 * one.standard_error)
    upper = _estimate(measured, "in_sample_kl")
    at_most = ""
    if _is_finite(upper) and not upper.note and upper.value > best.value:
        at_most = f", and at most about {_plain(upper)}"
    if best.value > max(_NEGLIGIBLE, _ERRORS * best.standard_error):
        text = f"The codes are at least {_plain(best)} nats from {prior}{at_most}."
        return Advice("mismatch", text, best)
    against = [
        f"{name} {p:.2g}"
        for name in ("slices_p_value", "ranks_p_value")
        if isinstance(p := summary[name], float) and p < _REJECTS
    ]
    auc = _estimate(measured, "classifier_auc")
    if _is_finite(auc) and auc.value - 0.5 > 4 * auc.standard_error:
        against.append(f"a classifier with an area under the curve of {_plain(auc)}")
    if against:
        return Advice(
            "small mismatch",
            f"The codes differ from {prior}, by less than the bounds in nats can show: "
            f"{'; '.join(against)}.",
            best,
        )
    text = f"No measure tells the {len(measured.unseen)} held-out codes from {prior}."
    if _is_finite(upper) and not upper.note and abs(upper.value) > _NEGLIGIBLE:
        text += f" The mixture of training posteriors is about {_plain(upper)} nats away."
    return Advice("matched", text, best)


def degenerate(measured: Measured) -> str:
    """Return why the codes have no density, or nothing."""
    codes = measured.unseen
    found = atoms(codes)
    if not found and len(codes) >= 2 * codes.shape[1]:
        try:
            correlation_factor(codes)
        except DegenerateCodesError as error:
            found = str(error)
    return found


def _sampler(measured: Measured) -> Advice:
    prior, bound = measured.prior.name, _estimate(measured, "density_bound")
    if measured.fitted is None or not _is_finite(bound):
        return Advice(
            "sampler",
            f"There is no sampler to name beside {prior}, because no density could be fitted to "
            "these codes.",
        )
    name = measured.fitted.name
    if name == prior or bound.value < max(_NEGLIGIBLE, _ERRORS * bound.standard_error):
        return Advice(
            "sampler",
            f"Sample from {prior}. The best of the densities fitted to the codes ({name}) would "
            f"gain {_plain(bound)} nats of ELBO at held-out examples.",
            bound,
        )
    text = (
        f"Sample from {_article(name)} fitted to the codes in place of {prior}: it is worth "
        f"{_plain(bound)} nats of ELBO at held-out examples."
    )
    moments = _estimate(measured, "moment_bound")
    shown = max(0.5 * bound.value, _ERRORS * moments.standard_error)
    if _is_finite(moments) and moments.value > shown:
        text += f" A Gaussian with their mean and covariance is worth {_plain(moments)}."
    return Advice("sampler", text, bound)


def _article(name: str) -> str:
    return name if name.startswith("N(") else f"a {name}"


def _rescale(measured: Measured) -> list[Advice]:
    squares = measured.summary["mean_square_of_dimensions"]
    if not isinstance(squares, tuple):
        return []
    off = [j for j, one in enumerate(squares) if isinstance(one, float) and not 0.9 <= one <= 1.1]
    if not off:
        return []
    sizes = [one for one in squares if isinstance(one, float)]
    low, high = min(sizes[j] for j in off), max(sizes[j] for j in off)
    spread = " to ".join(dict.fromkeys((f"{low:.2g}", f"{high:.2g}")))
    return [
        Advice(
            "rescale",
            f"The mean square of the codes is {spread} in {_dimensions(off, len(squares))}, where "
            f"{measured.prior.name} has 1 in its units. Where linear layers stand next to the "
            "codes, a training that has converged has 1, for it can stretch an axis for nothing.",
            dimensions=tuple(off),
        )
    ]


def _silent(measured: Measured) -> list[Advice]:
    silent, latent = measured.silent, measured.train.latent
    if not silent:
        return []
    text = (
        f"Silent: {_dimensions(silent, latent)}. The posterior's mean there hardly varies with the "
        "example, so that the decoder learns nothing from it."
    )
    costs = measured.summary["rate_of_dimensions"]
    if isinstance(costs, tuple) and costs:
        paid = sum(one for j in silent if isinstance(one := costs[j], float))
        if paid > 0.1:
            text += f" They cost {paid:.2g} nats all the same, because they are not N(0, 1)."
    return [Advice("silent", text, dimensions=tuple(silent))]


def _dimensions(some: list[int], latent: int) -> str:
    if len(some) == latent:
        return f"all {latent} latent dimensions" if latent > 1 else "the latent dimension"
    named = ", ".join(map(str, some[:_NAMED]))
    if len(some) > _NAMED:
        return f"{len(some)} of {latent} latent dimensions ({named}, …)"
    return f"latent dimension{'s' if len(some) > 1 else ''} {named} of {latent}"


def _scale_factor(shift: float, factor: float) -> Advice:
    if not math.isfinite(factor):
        return Advice("scale factor", "All numbers of the codes are equal: no factor scales them.")
    text = (
        f"Latent diffusion would multiply these codes by {factor:.4g}, the reciprocal of the "
        "standard deviation of all their numbers."
    )
    if abs(shift) * factor > 0.1:
        text += f" Their mean is {shift:.3g}: subtract it first."
    return Advice("scale factor", text, value=factor)


def _few_codes(measured: Measured, examples: int) -> list[Advice]:
    rate = _estimate(measured, "rate")
    floor = rate.value - math.log(examples)
    if not _is_finite(rate) or floor <= 0:
        return []
    return [
        Advice(
            "few codes",
            f"There are too few codes for their rate: {rate.value:.1f} nats exceed ln {examples} "
            f"by {floor:.1f}. So the mixture of training posteriors is at least that far from any "
            "prior, whatever the truth is, and its in-sample number says nothing. Held-out bounds "
            "are not touched by this.",
            value=floor,
        )
    ]


def _unconverged(measured: Measured) -> list[Advice]:
    fitted = measured.fitted
    note = fitted.notes.get(fitted.name, "") if fitted else ""
    if not note:
        return []
    return [
        Advice(
            "unconverged",
            f"The {fitted.name if fitted else ''} had not converged: {note}. The bound holds; a "
            "longer fit could raise it.",
        )
    ]


def _estimate(measured: Measured, name: str) -> Estimate:
    found = measured.summary[name]
    return found if isinstance(found, Estimate) else Estimate(math.nan, math.nan)


def _is_finite(one: Estimate) -> bool:
    return math.isfinite(one.value)


def _plain(one: Estimate) -> str:
    return str(Estimate(one.value, one.standard_error))
