"""What to sample in place of N(0, I), and what each sampler buys: one row a model and sampler.

``python -m priormatch.sampling`` makes ``results/sampling.csv`` from the models that the study
keeps, and trains those that are missing. It can be killed at any moment: finished rows stay.
"""

import argparse
import functools
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
)

from priormatch import quality, study, zoo
from priormatch.aggregated import AggregatedPosterior
from priormatch.data import Part, binarize, binarized, prepare
from priormatch.densities import VampPrior, fit_flow, fit_gaussian, fit_mixture, mixture_sizes
from priormatch.evidence import exact_inference_in_the_plane
from priormatch.mismatch import Estimate, active_units, average, held_out_kl
from priormatch.models import VAE, draw, globally_seeded
from priormatch.objectives import BoundParts, bound_parts_in_chunks, encode
from priormatch.training import Recipe

TABLE = study.TABLE.with_name("sampling.csv")
"""The stored table, in a checkout of the book."""

PICTURES = 2_500
"""Pictures of each sampler, and of each set of real ones that they are held against."""

# Of these many pictures the nearest training image is looked for; it takes the longest.
_NEAREST = 250

# Images whose evidence is bounded, and draws of the posterior of each.
_IMAGES, _DRAWS = 250, 100

_TEN = replace(study._BASE, latent_dimension=10)

# 100 floats for each of these codes and each of 50 components are 100 MB.
_CODES = 5_000


class Sampler(NamedTuple):
    """A distribution to sample in place of the prior.

    Attributes:
        density: With ``log_prob`` and ``sample``.
        seconds: What it took to fit, on one thread.
    """

    density: Distribution
    seconds: float


class Codes(NamedTuple):
    """What an encoder makes of the digits, binarised once: posteriors, and a draw of each.

    Attributes:
        aggregated: Aggregated posterior of the training images.
        draws: Codes by part of the digits.
        parts: Distortion and rate by part, of other draws.
    """

    aggregated: AggregatedPosterior
    draws: dict[Part, Float[Tensor, "examples latent"]]
    parts: dict[Part, BoundParts]


def encode_digits(vae: VAE, seed: int = 0) -> Codes:
    """Encode training, validation and test images; the draws are those of `study.measure`.

    Introduced in "Sampling the quilt".
    """
    generator = torch.Generator().manual_seed(seed)
    posteriors, draws, parts = {}, {}, {}
    everything: tuple[Part, ...] = ("train", "validation", "test")
    for part in everything:
        parts[part] = bound_parts_in_chunks(vae, binarized(part), generator)
        posteriors[part] = AggregatedPosterior(*encode(vae, binarized(part)))
        draws[part] = draw(posteriors[part].posteriors, generator)
    return Codes(posteriors["train"], draws, parts)


def fit_samplers(codes: Codes, prior: Distribution, seed: int = 0) -> dict[str, Sampler]:
    """Fit each sampler to the training codes, and take the time.

    Args:
        codes: The codes; those of validation images tell when the flow should have stopped.
        prior: What the model was trained with.
        seed: Decides the fits.

    Returns:
        Samplers by name, the prior first and the training posteriors last.

    Introduced in "Sampling the quilt".
    """
    train, validation = codes.draws["train"], codes.draws["validation"]
    fits: dict[str, Callable[[], Distribution]] = {
        "prior": lambda: prior,
        "Gaussian": lambda: fit_gaussian(train),
        **{
            f"mixture of {size}": functools.partial(fit_mixture, train, size, seed)
            for size in mixture_sizes(train.shape[1])
        },
        "flow": lambda: fit_flow(train, validation, seed),
        "training posteriors": lambda: codes.aggregated,
    }
    samplers = {}
    for name, fit in fits.items():
        start = time.perf_counter()
        density = fit()
        samplers[name] = Sampler(density, time.perf_counter() - start)
    return samplers


@torch.no_grad()
def log_evidence(
    vae: VAE,
    priors: dict[str, Distribution],
    images: Float[Tensor, "examples pixels"],
    draws: int,
    generator: torch.Generator,
) -> dict[str, Float[Tensor, " examples"]]:
    r"""Bound the evidence of each image under several priors, with common draws.

    .. math:: \log \frac1K \sum_{k=1}^K \frac{P(X|z_k) \, r(z_k)}{Q(z_k|X)}, \quad z_k \sim Q(z|X)

    The same as `priormatch.evidence.importance_bounds` for each of them, with one decoding.

    Args:
        vae: Encoder and decoder.
        priors: Distributions r by name.
        images: Pixels in {0, 1}, of shape ``(examples, pixels)``.
        draws: Draws K of each posterior.
        generator: Source of the draws.

    Returns:
        Nats by name, each of shape ``(examples,)``: lower bounds in expectation.

    Source: :cite:t:`burda2016`.

    Introduced in "Sampling the quilt".
    """
    bounds: dict[str, list[Tensor]] = {name: [] for name in priors}
    for some in images.split(max(1, _CODES // draws)):
        posterior = vae.posterior(some)
        codes = draw(posterior.expand(torch.Size((draws, len(some)))), generator)
        common = vae.likelihood(codes).log_prob(some).double() - posterior.log_prob(codes)
        for name, prior in priors.items():
            log_weights = common + prior.log_prob(codes)
            bounds[name].append(log_weights.logsumexp(0) - torch.tensor(draws).double().log())
    return {name: torch.cat(parts) for name, parts in bounds.items()}


def sample(density: Distribution, draws: int, seed: int = 0) -> Float[Tensor, "draws latent"]:
    """Draw from any distribution, with a seed and without a trace in the global generator.

    Introduced in "Sampling the quilt".
    """
    with globally_seeded(seed), torch.no_grad():
        return density.sample(torch.Size((draws,)))


@torch.no_grad()
def at_quantiles(
    density: Distribution, noise: Float[Tensor, "draws latent"]
) -> Float[Tensor, "draws latent"]:
    r"""Carry draws of N(0, I) to those of another distribution, quantile by quantile.

    .. math:: z_j = F^{-1}_j\left(\Phi(\varepsilon_j) \mid z_1, \dots, z_{j-1}\right)

    Here F is the distribution function of one latent dimension given those before it. So two
    samplers can be compared picture by picture. A flow has a map of its own, which is used. The
    draws follow the density, and N(0, I) itself gives back the noise.

    Args:
        density: N(0, I), a Gaussian, a mixture of Gaussians or a flow.
        noise: Draws of N(0, I).

    Raises:
        TypeError: The density is of another kind.

    Source: :cite:t:`rosenblatt1952`.

    Introduced in "Sampling the quilt".

    >>> twice = MultivariateNormal(torch.zeros(1), 4 * torch.eye(1))
    >>> at_quantiles(twice, torch.tensor([[1.5]]))
    tensor([[3.]])
    """
    if isinstance(density, TransformedDistribution):
        flow: Any = density.base_dist
        codes = flow.transform.inv(noise)
        for transform in density.transforms:
            codes = transform(codes)
        return codes
    if isinstance(density, MultivariateNormal):
        return density.loc + noise @ density.scale_tril.mT
    if isinstance(density, Independent):
        return density.mean + density.stddev * noise
    if isinstance(density, MixtureSameFamily):
        return _mixture_at_quantiles(density, noise)
    raise TypeError(f"no map of quantiles is known for {density}")


def _mixture_at_quantiles(density: MixtureSameFamily, noise: Tensor) -> Tensor:
    parts: Any = density.component_distribution
    means, factors = parts.loc.double(), parts.scale_tril.double()
    # Of each component: its weight given the dimensions before, and its own standardised draw.
    log_weights = density.mixture_distribution.logits.double().expand(len(noise), -1)
    own = torch.zeros(len(noise), len(means), 0, dtype=torch.float64)
    codes = []
    for j, levels in enumerate(Normal(0.0, 1.0).cdf(noise.double()).T):
        centres = means[:, j] + (own * factors[:, j, :j]).sum(-1)
        law = Normal(centres, factors[:, j, j].expand_as(centres))
        weights = log_weights.softmax(1)
        low = (law.mean - 10 * law.stddev).amin(1)
        high = (law.mean + 10 * law.stddev).amax(1)
        for _ in range(60):
            middle = (low + high) / 2
            below = (weights * law.cdf(middle[:, None])).sum(1) < levels
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        codes.append(low)
        log_weights = log_weights + law.log_prob(low[:, None])
        own = torch.cat([own, ((low[:, None] - law.mean) / law.stddev)[..., None]], -1)
    return torch.stack(codes, 1).to(noise)


class Reference(NamedTuple):
    """What drawn pictures are held against.

    Attributes:
        features: Features of real pictures.
        probabilities: Their class probabilities.
        train: Pixels of the training images.
    """

    features: Float[Tensor, "pictures features"]
    probabilities: Float[Tensor, "pictures classes"]
    train: Float[Tensor, "examples pixels"]


def chosen(part: Part) -> Int[Tensor, " pictures"]:
    """Return which images of a part stand for it: a random half at most, or `PICTURES`.

    Random, because neighbours in MNIST's files are of the same writers: its first test images
    differ from the others as much as a good sampler's pictures do.

    Introduced in "Sampling the quilt".
    """
    images = len(binarized(part))
    order = torch.randperm(images, generator=torch.Generator().manual_seed(0))
    return order[: min(PICTURES, images // 2)]


def others(part: Part) -> Int[Tensor, " pictures"]:
    """Return as many images of a part that are not among the chosen."""
    images = len(binarized(part))
    order = torch.randperm(images, generator=torch.Generator().manual_seed(0))
    return order[-min(PICTURES, images // 2) :]


@functools.cache
def reference() -> Reference:
    """Return half of the validation images, binarised, and what is known of them.

    They are of the writers of the training images, which the model was made to draw like; test
    images are of other writers.

    Introduced in "Sampling the quilt".
    """
    classifier, real = quality.load(), binarized("validation")[chosen("validation")]
    return Reference(
        quality.features(classifier, real),
        quality.class_probabilities(classifier, real),
        binarized("train"),
    )


def judge(
    images: Float[Tensor, "pictures pixels"], real: Reference, nearest: int = _NEAREST
) -> dict[str, Estimate]:
    """Judge binary pictures in the features of the digit classifier, and look for replays.

    Args:
        images: Binary pictures, as many as the real ones.
        real: What to hold them against.
        nearest: Of so many of them the nearest training image is looked for.

    Introduced in "Sampling the quilt".
    """
    classifier = quality.load()
    drawn = quality.features(classifier, images)
    probabilities = quality.class_probabilities(classifier, images)
    shares = quality.precision_and_recall(drawn, real.features)
    return {
        "frechet_distance": quality.frechet_distance(drawn, real.features),
        "precision": shares.precision,
        "recall": shares.recall,
        "class_imbalance": quality.class_imbalance(probabilities, real.probabilities).estimate,
        "confidence": average(probabilities.amax(1)),
        "nearest_distance": average(quality.nearest_distances(images[:nearest], real.train)),
    }


@torch.no_grad()
def pictures_of(
    vae: VAE, codes: Float[Tensor, "draws latent"], seed: int = 0
) -> Float[Tensor, "draws pixels"]:
    """Decode codes and draw their pixels.

    Introduced in "Sampling the quilt".
    """
    return binarize(vae.likelihood(codes).mean, torch.Generator().manual_seed(seed))


def rows(recipe: Recipe, models: Path) -> list[dict[str, object]]:
    """Return a row of measures for each sampler of a model, and for what they are held against.

    Args:
        recipe: A recipe of the study; with a VampPrior, that prior is the only sampler.
        models: Folder that keeps the study's models; the converged one is taken.
    """
    torch.set_num_threads(1)
    vae = study.trained(recipe, models)[0]["converged"].requires_grad_(False)
    codes = encode_digits(vae)
    trained_along = {"prior": Sampler(vae.prior, 0.0)}
    own = isinstance(vae.prior, VampPrior)
    samplers = trained_along if own else fit_samplers(codes, vae.prior)
    of_model = {
        "latent_dimension": recipe.latent_dimension,
        "seed": recipe.seed,
        "trained_prior": recipe.prior,
        "active_units": active_units(AggregatedPosterior(*encode(vae, binarized("test")))),
    }
    evidence = _evidence(vae, samplers)
    # Before the clock starts: the first call loads the digits and the classifier.
    pictures = len(reference().features)
    table = []
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
        table.append({**of_model, "sampler": name, **seconds, **_cells(measures)})
    for name, images in _real_and_decoded(vae, codes, recipe == recipes()[0]).items():
        table.append({**of_model, "sampler": name, **_cells(judge(images, reference()))})
    return table


def _evidence(vae: VAE, samplers: dict[str, Sampler]) -> dict[str, Tensor]:
    """Return log P(X) of some test images: exact in two dimensions, elsewhere bounds."""
    # With the training posteriors each code would meet all of them.
    priors = {
        name: sampler.density for name, sampler in samplers.items() if name != "training posteriors"
    }
    test = binarized("test")
    images = test[:: len(test) // _IMAGES]
    if vae.prior.event_shape != (2,):
        return log_evidence(vae, priors, images, _DRAWS, torch.Generator().manual_seed(0))
    swapped = {name: VAE(vae.encoder, vae.decoder, prior) for name, prior in priors.items()}
    return {
        name: exact_inference_in_the_plane(one, images).log_evidence
        for name, one in swapped.items()
    }


def _nats(vae: VAE, codes: Codes, density: Distribution) -> dict[str, Estimate]:
    """Return the held-out nats that a density gains, or the ELBO if it is the prior itself."""
    if density is vae.prior:
        parts = codes.parts["test"]
        return {"elbo": average(parts.elbo), "rate": average(parts.rate)}
    return {
        "gain": held_out_kl(density, codes.draws["test"], vae.prior),
        "gain_validation": held_out_kl(density, codes.draws["validation"], vae.prior),
    }


def _real_and_decoded(vae: VAE, codes: Codes, with_real: bool) -> dict[str, Tensor]:
    """Return pictures to compare samplers with: what the decoder can do at best, and real ones."""
    unseen = others("validation")
    decoded = {"validation posteriors": pictures_of(vae, codes.draws["validation"][unseen])}
    if not with_real:
        return decoded
    return decoded | {
        "validation images": binarized("validation")[unseen],
        "test images": binarized("test")[chosen("test")],
        "training images": binarized("train")[chosen("train")],
    }


def _cells(measures: dict[str, Estimate]) -> dict[str, object]:
    return study._cells({**measures})


def recipes() -> list[Recipe]:
    """Return the recipes of the table: every model that "Sampling the quilt" speaks of."""
    plain = [
        replace(_TEN, latent_dimension=latent, seed=seed)
        for latent in (10, 2, 20)
        for seed in study.SEEDS
    ]
    return [*plain, *(replace(_TEN, seed=seed, prior="vamp") for seed in study.SEEDS)]


def run(wanted: Sequence[Recipe], table: Path, models: Path) -> None:
    """Measure the models that the table lacks, and write their rows as they finish."""
    done = read(table)
    for recipe in wanted:
        if not done.empty and _is_of(done, recipe).any():
            continue
        done = study.extend(done, rows(recipe, models), table)


def _is_of(table: pd.DataFrame, recipe: Recipe) -> pd.Series:
    return (
        (table.latent_dimension == recipe.latent_dimension)
        & (table.seed == recipe.seed)
        & (table.trained_prior == recipe.prior)
    )


def read(table: Path = TABLE) -> pd.DataFrame:
    """Return the rows of the table; none if the file is not there.

    Introduced in "Sampling the quilt".
    """
    return pd.read_csv(table) if table.exists() else pd.DataFrame()


def main(arguments: list[str] | None = None) -> int:
    """Complete the stored table on one thread."""
    parser = argparse.ArgumentParser(prog="python -m priormatch.sampling", description=__doc__)
    parser.add_argument("--table", type=Path, default=TABLE, help="CSV file (%(default)s)")
    parser.add_argument("--models", type=Path, default=study.MODELS, help="folder (%(default)s)")
    options = parser.parse_args(arguments)
    os.environ["PRIORMATCH_DATA"] = prepare()
    zoo.require_mnist("the table of samplers")
    run(recipes(), options.table, options.models)
    return 0


if __name__ == "__main__":
    sys.exit(main())
