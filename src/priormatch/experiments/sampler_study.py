"""Study of samplers in place of N(0, I), one row for each model and sampler.

``python -m priormatch.experiments.sampler_study`` makes ``results/sampler_study.csv``. It can be
killed at any moment: finished rows are kept.
"""

import functools
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributions import Distribution

from priormatch.data import PARTS, Part, binarized
from priormatch.distributions import AggregatedPosterior, VampPrior
from priormatch.estimate import Estimate, average
from priormatch.evidence import exact_inference_in_the_plane, importance_bounds_by_prior
from priormatch.experiments import digit_classifier, store, study
from priormatch.experiments.table import Row, Table, columns
from priormatch.mismatch import active_units, held_out_kl
from priormatch.models import VAE, draw, encode
from priormatch.objectives import BoundParts, bound_parts_in_chunks
from priormatch.recipe import Recipe
from priormatch.sample_quality import (
    class_imbalance,
    features,
    frechet_distance,
    nearest_distances,
    precision_and_recall,
    predict_proba,
)
from priormatch.samplers import Sampler, fit_samplers, pictures_of, sample

PICTURES = 2_500
"""Number of pictures of each sampler, and of each set of real ones they are compared with."""

# Pictures whose nearest training image is searched, the slowest measure.
_NEAREST = 250

# Test images whose evidence is measured, and draws from the posterior of each.
_IMAGES, _DRAWS = 250, 100

# Codes at a time: 100 floats for each of them and each of 50 components are 100 MB.
_CODES = 5_000

_TEN = replace(study.BASE, latent_dimension=10)


class Codes(NamedTuple):
    """Codes of the digits, binarised once: posteriors, and a draw from each.

    Attributes:
        aggregated: Aggregated posterior of the training images.
        draws: Codes by part of the digits.
        parts: Distortion and rate by part, from separate draws.
    """

    aggregated: AggregatedPosterior
    draws: dict[Part, Float[Tensor, "examples latent"]]
    parts: dict[Part, BoundParts]


def encode_digits(vae: VAE, seed: int = 0) -> Codes:
    """Encode training, validation and test images, and draw a code of each.

    Introduced in "Sampling the quilt".
    """
    generator = torch.Generator().manual_seed(seed)
    posteriors, draws, parts = {}, {}, {}
    for part in PARTS:
        parts[part] = bound_parts_in_chunks(vae, binarized(part).images, generator)
        posteriors[part] = AggregatedPosterior(*encode(vae, binarized(part).images))
        draws[part] = draw(posteriors[part].posteriors, generator)
    return Codes(posteriors["train"], draws, parts)


class Reference(NamedTuple):
    """Real pictures that samples are compared with.

    Attributes:
        features: Features of real pictures.
        probabilities: Their class probabilities.
        train: Pixels of the training images.
    """

    features: Float[Tensor, "pictures features"]
    probabilities: Float[Tensor, "pictures classes"]
    train: Float[Tensor, "examples pixels"]


def reference_subset(part: Part) -> Int[Tensor, " pictures"]:
    """Return the indices of a random subset of a part: `PICTURES`, or half the part if fewer.

    Random, because neighbours in MNIST's files come from the same writers. The first test images
    differ from the others as much as a good sampler's pictures do.

    Introduced in "Sampling the quilt".
    """
    images = len(binarized(part).images)
    order = torch.randperm(images, generator=torch.Generator().manual_seed(0))
    return order[: min(PICTURES, images // 2)]


def held_back(part: Part) -> Int[Tensor, " pictures"]:
    """Return the indices of as many other images, disjoint from `reference_subset`."""
    images = len(binarized(part).images)
    order = torch.randperm(images, generator=torch.Generator().manual_seed(0))
    return order[-min(PICTURES, images // 2) :]


@functools.cache
def reference() -> Reference:
    """Return the reference of all samplers, made of binarised validation images.

    Validation images come from the writers of the training images, which the model was trained to
    imitate. Test images come from other writers.

    Introduced in "Sampling the quilt".
    """
    classifier = digit_classifier.load()
    real = binarized("validation").images[reference_subset("validation")]
    return Reference(
        features(classifier, real),
        predict_proba(classifier, real),
        binarized("train").images,
    )


def judge(
    images: Float[Tensor, "pictures pixels"], real: Reference, nearest: int = _NEAREST
) -> dict[str, Estimate]:
    """Compare binary pictures with real ones, in the features of the digit classifier.

    A sampler that replays training images has a small ``nearest_distance``.

    Args:
        images: Binary pictures, as many as the real ones.
        real: Real pictures to compare them with.
        nearest: Number of pictures whose nearest training image is searched.

    Introduced in "Sampling the quilt".
    """
    classifier = digit_classifier.load()
    drawn = features(classifier, images)
    probabilities = predict_proba(classifier, images)
    shares = precision_and_recall(drawn, real.features)
    return {
        "frechet_distance": frechet_distance(drawn, real.features),
        "precision": shares.precision,
        "recall": shares.recall,
        "class_imbalance": class_imbalance(probabilities, real.probabilities).estimate,
        "confidence": average(probabilities.amax(1)),
        "nearest_distance": average(nearest_distances(images[:nearest], real.train)),
    }


def train_and_measure(recipe: Recipe, trainings: Path) -> list[Row]:
    """Train or load the model of a recipe, and return a row for each of its samplers.

    Args:
        recipe: Recipe of the model; with a VampPrior, that prior is the only sampler.
        trainings: Folder of the trained models; the converged one is measured.

    Returns:
        Rows of the samplers, and of decoded and real pictures to compare them with.
    """
    vae = study.train_or_load(recipe, trainings).converged
    codes = encode_digits(vae)
    if isinstance(vae.prior, VampPrior):
        samplers = {"prior": Sampler(vae.prior, 0.0)}
    else:
        train, validation = codes.draws["train"], codes.draws["validation"]
        samplers = fit_samplers(vae.prior, codes.aggregated, train, validation)
    of_model = {
        **asdict(recipe),
        "active_units": active_units(AggregatedPosterior(*encode(vae, binarized("test").images))),
    }
    evidence = _evidence(vae, samplers)
    # Before the clock starts: the first call loads the digits and the classifier.
    pictures = len(reference().features)
    rows: list[Row] = []
    for name, sampler in samplers.items():
        start = time.perf_counter()
        drawn = sample(sampler.density, pictures)
        seconds = {
            "seconds_to_fit": sampler.seconds,
            "seconds_to_sample": time.perf_counter() - start,
        }
        measures = _nats(vae, codes, sampler.density) | judge(pictures_of(vae, drawn), reference())
        if name in evidence:
            measures["log_evidence"] = average(evidence[name], "lower")
            measures["evidence_gain"] = average(evidence[name] - evidence["prior"])
        rows.append({**of_model, "sampler": name, **seconds, **columns({**measures})})
    for name, images in _real_and_decoded(vae, codes, recipe == recipes()[0]).items():
        rows.append({**of_model, "sampler": name, **columns({**judge(images, reference())})})
    return rows


def _evidence(vae: VAE, samplers: dict[str, Sampler]) -> dict[str, Tensor]:
    """Return log P(X) of some test images in nats: exact in two dimensions, else lower bounds."""
    # The mixture of training posteriors is left out: each code would need all its components.
    priors = {
        name: sampler.density for name, sampler in samplers.items() if name != "training posteriors"
    }
    test = binarized("test").images
    images = test[:: len(test) // _IMAGES]
    if vae.prior.event_shape != (2,):
        generator = torch.Generator().manual_seed(0)
        bounds = importance_bounds_by_prior(vae, priors, images, _DRAWS, generator, _CODES)
        return {name: bound.log_evidence for name, bound in bounds.items()}
    swapped = {name: VAE(vae.encoder, vae.decoder, prior) for name, prior in priors.items()}
    return {
        name: exact_inference_in_the_plane(one, images).log_evidence
        for name, one in swapped.items()
    }


def _nats(vae: VAE, codes: Codes, density: Distribution) -> dict[str, Estimate]:
    """Return the held-out gain of a density in nats, or ELBO and rate for the prior itself."""
    if density is vae.prior:
        parts = codes.parts["test"]
        return {"elbo": average(parts.elbo), "rate": average(parts.rate)}
    return {
        "gain": held_out_kl(density, codes.draws["test"], vae.prior),
        "gain_validation": held_out_kl(density, codes.draws["validation"], vae.prior),
    }


def _real_and_decoded(vae: VAE, codes: Codes, with_real: bool) -> dict[str, Tensor]:
    """Return pictures to compare samplers with: decoded validation codes, and real images."""
    unseen = held_back("validation")
    decoded = {"validation posteriors": pictures_of(vae, codes.draws["validation"][unseen])}
    if not with_real:
        return decoded
    return decoded | {
        "validation images": binarized("validation").images[unseen],
        "test images": binarized("test").images[reference_subset("test")],
        "training images": binarized("train").images[reference_subset("train")],
    }


def recipes() -> list[Recipe]:
    """Return the recipes of the table: every model in "Sampling the quilt"."""
    plain = [
        replace(_TEN, latent_dimension=latent, seed=seed)
        for latent in (10, 2, 20)
        for seed in study.SEEDS
    ]
    return [*plain, *(replace(_TEN, seed=seed, prior="vamp") for seed in study.SEEDS)]


TABLE = Table(
    # One process, because the table records the seconds of fitting and of sampling.
    store.RESULTS / "sampler_study.csv",
    recipes,
    train_and_measure,
    processes=1,
)
"""The stored table."""


if __name__ == "__main__":
    sys.exit(TABLE.main(__doc__))
