"""The audit of anybody's codes: how well they match their prior, what that costs, what to do."""

import math
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from priormatch.advice import Advice, advise
from priormatch.checks import FamilyError, ShapeError, check_draws, log_density, vector
from priormatch.codes import Codes, scale_factor
from priormatch.estimate import Estimate, TooFewCodesError
from priormatch.evidence import average_bounds, bounds_of_weights
from priormatch.known_prior import KnownPrior, known_prior
from priormatch.measurement import measure
from priormatch.models import draw, standard_normal
from priormatch.report import Report
from priormatch.summaries import Summary

# Most training codes to which densities are fitted, and most numbers in them.
_CODES, _NUMBERS = 100_000, 60_000_000

# Most posteriors of the mixture, and most numbers in them: what time allows.
_POSTERIORS, _MIXTURE = 100_000, 20_000_000

# Draws of each posterior for the evidence.
_DRAWS_FOR_EVIDENCE = 50


def audit(
    train: Codes,
    held_out: Codes | None = None,
    *,
    prior: Distribution | None = None,
    log_likelihood: Callable[[Tensor], Tensor] | None = None,
    draws: int = 10_000,
    seed: int = 0,
    progress: bool = False,
) -> Report:
    """Measure how well anybody's codes match their prior, and say what to do.

    Every measure that the codes allow is taken, each with its error, the side that it bounds, and
    its floor. What cannot be measured is named, with the reason. With a million codes or a thousand
    dimensions the audit takes some of them at random, and says how many.

    Args:
        train: Codes of the examples that the model was trained on.
        held_out: Codes of examples that it was not trained on. If None, some of the training codes
            are set apart; the encoder has then seen their examples, which the report says.
        prior: The model's prior, a distribution of torch with event shape ``(latent,)``, or a
            one-dimensional one that all latent dimensions share. None is N(0, I). For a Gaussian
            prior, codes are measured in its units, in which it is N(0, I); nats stay the same. For
            others, measures that are known for Gaussian priors are missing.
        log_likelihood: Function from codes of shape ``(held_out, latent)``, one for each held-out
            example in their order, to log P(X|z) of each, in nats. Adds the ELBO and importance-
            weighted evidence of the held-out examples. Called 50 times.
        draws: Draws of the mixture and of the prior, and most held-out codes that are measured.
        seed: Decides the draws, the fits, and what is set apart.
        progress: Whether to print to the standard error what is done next.

    Returns:
        The report: print it, show it in a notebook, or write `Report.html` to a file.

    Raises:
        ShapeError: Codes and prior do not have one number of latent dimensions.
        FamilyError: Codes are not `Codes`, or the prior is no distribution of torch.
        TooFewCodesError: There are fewer than 25 training or two held-out codes.

    Introduced in "Audit your own VAE".

    >>> from priormatch import Codes, audit
    >>> means, generator = torch.zeros(100, 1), torch.Generator().manual_seed(0)
    >>> report = audit(Codes(means, means + 1), Codes(means, means + 1), draws=500)
    >>> report.verdict
    'No measure tells the 100 held-out codes from N(0, I).'
    """
    _check(train, held_out, draws)
    generator, say = torch.Generator().manual_seed(seed), _sayer(progress)
    known = known_prior(prior, train.latent)
    shift, factor = scale_factor(train)
    settings = {
        "train": len(train),
        "held_out": 0,
        "held_out_given": held_out is not None,
        "latent": train.latent,
        "posteriors": train.mixture is not None,
        "prior": known.name,
        "draws": draws,
        "seed": seed,
    }
    if held_out is None:
        unseen, seen = train.set_apart(min(draws, max(2, len(train) // 5)), generator)
    else:
        unseen, seen = held_out, train
    settings["held_out"] = len(unseen)
    unseen = unseen.at_most(draws, generator)
    seen = seen.at_most(min(_CODES, max(1_000, _NUMBERS // train.latent)), generator)
    extra, units = [*_about_subsampling(settings, seen, unseen)], known
    if known.turn is not None and known.location is not None and not known.is_standard:
        seen, unseen = (one.in_units_of(known.location, known.turn) for one in (seen, unseen))
        units = known._replace(law=standard_normal(train.latent), is_standard=True)
        extra.append(_about_units(known))
    measured = measure(
        seen,
        unseen,
        prior=units,
        draws=draws,
        seed=seed,
        most_posteriors=_most_posteriors(train.latent),
        say=say,
    )
    if log_likelihood is not None:
        say("the evidence")
        _add_evidence(measured.summary, held_out, known, log_likelihood, generator)
    advice = advise(measured, len(train), shift, factor, held_out is None)
    return Report(measured, (*advice, *extra), settings)


def _check(train: Codes, held_out: Codes | None, draws: int) -> None:
    """Raise unless codes are codes that belong together, and are enough."""
    for name, codes in (("train", train), ("held_out", held_out)):
        if not isinstance(codes, Codes) and (name == "train" or codes is not None):
            raise FamilyError(f"{name} is made by Codes(means, scales), and is {type(codes)}")
    check_draws(draws)
    if held_out is not None and held_out.latent != train.latent:
        raise ShapeError(
            f"held-out codes have {held_out.latent} latent dimensions, and training codes "
            f"{train.latent}"
        )
    if len(train) < 25:
        raise TooFewCodesError(f"25 training codes or more are needed, and there are {len(train)}")


def _sayer(progress: bool) -> Callable[[str], None]:
    """Return a function that prints what is done next, with the seconds since the start."""
    start = time.perf_counter()

    def say(what: str) -> None:
        if progress:
            seconds = time.perf_counter() - start
            print(f"{seconds:6.0f} s  {what}", file=sys.stderr, flush=True)

    return say


def _about_units(known: KnownPrior) -> Advice:
    text = (
        f"All codes were moved and scaled to the units of {known.name}, in which it is N(0, I). "
        "Nats do not change by this; scales, squares and distances are in these units."
    )
    if known.mixes_dimensions:
        text += (
            " Its covariance ties latent dimensions together: each one was measured given those "
            "before it."
        )
    return Advice("units", text)


def _about_subsampling(settings: dict[str, Any], seen: Codes, unseen: Codes) -> list[Advice]:
    """Say which of the codes were measured, where not all of them were."""
    apart = 0 if settings["held_out_given"] else settings["held_out"]
    texts = []
    if len(seen) < settings["train"] - apart:
        texts.append(f"{len(seen):,} of {settings['train'] - apart:,} training codes")
    if len(unseen) < settings["held_out"]:
        texts.append(f"{len(unseen):,} of {settings['held_out']:,} held-out codes")
    most = _most_posteriors(seen.latent)
    if most < 0.9 * len(seen):
        texts.append(f"{most:,} posteriors in the mixture")
    if not texts:
        return []
    return [
        Advice(
            "subsampled",
            f"Taken at random, for time and memory: {', '.join(texts)}. Lower bounds hold all the "
            "same, with the errors of what was taken.",
        )
    ]


def _most_posteriors(latent: int) -> int:
    return min(_POSTERIORS, max(1_000, _MIXTURE // latent))


@torch.no_grad()
def _add_evidence(
    summary: Summary,
    held_out: Codes | None,
    known: KnownPrior,
    log_likelihood: Callable[[Tensor], Tensor],
    generator: torch.Generator,
) -> None:
    """Add the ELBO and the evidence of the held-out examples, or why they are missing."""
    if held_out is None or held_out.mixture is None:
        reason = (
            "the log-likelihood is that of held-out examples, and no held-out codes were given"
            if held_out is None
            else "it needs the posteriors, and these codes are draws alone"
        )
        for name in ("elbo", "log_evidence", "reliable_share"):
            summary.missing[name] = reason
            summary[name] = Estimate(math.nan, math.nan, note=reason)
        return
    posteriors = held_out.mixture.posteriors
    precise = held_out.mixture.double().posteriors
    log_weights = []
    for _ in range(_DRAWS_FOR_EVIDENCE):
        codes = draw(posteriors, generator)
        said = vector(log_likelihood(codes), "log_likelihood", len(held_out)).double()
        log_prior = log_density(known.law, codes, "the prior")
        log_weights.append(said + log_prior - precise.log_prob(codes.double()))
    found = average_bounds(bounds_of_weights(torch.stack(log_weights)))
    for name in ("elbo", "log_evidence", "reliable_share"):
        summary[name] = found[name]
