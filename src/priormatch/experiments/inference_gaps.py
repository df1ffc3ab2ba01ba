"""Inference gaps of models with two latent dimensions, one row for each model.

``python -m priormatch.experiments.inference_gaps`` makes ``results/inference_gaps.csv``. It can be
killed at any moment: finished rows are kept. The table also has the gaps that remain with a
posterior fitted to each image by itself.
"""

import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch

from priormatch.data import PARTS, Part, binarized
from priormatch.densities import fit_best
from priormatch.estimate import average
from priormatch.experiments import store, study
from priormatch.experiments.table import Row, Table, columns
from priormatch.inference_gap import gaps
from priormatch.mismatch import held_out_kl
from priormatch.models import VAE, draw
from priormatch.objectives import bound_parts_in_chunks
from priormatch.recipe import Recipe
from priormatch.summaries import Measure

EXAMINED: tuple[Part, ...] = ("train", "test")
"""Parts of MNIST with a refined posterior for each image."""

# Images of each part.
_IMAGES = 200


def measure(vae: VAE, seed: int = 0) -> dict[str, Measure]:
    """Measure the inference gaps and the mismatch of a model with two latent dimensions.

    Unlike `study.measure`, it also accepts posteriors with full covariances.

    Args:
        vae: A model with a prior N(0, I).
        seed: Seed of the draws and the fits, the same for models that are compared.

    Returns:
        Measures by name, in nats. Those of one part begin with its name: ``test_rate``.
    """
    generator = torch.Generator().manual_seed(seed)
    measures: dict[str, Measure] = {}
    codes = {}
    for part in PARTS:
        pixels = binarized(part).images
        parts = bound_parts_in_chunks(vae, pixels, generator)
        measures[f"{part}_rate"] = average(parts.rate)
        measures[f"{part}_elbo"] = average(parts.elbo)
        with torch.no_grad():
            encoded = [vae.posterior(some) for some in pixels.split(2_000)]
        codes[part] = torch.cat([draw(one, generator) for one in encoded])
    fitted = fit_best(codes["train"], codes["validation"], seed)
    measures["density"] = fitted.name
    measures["density_bound"] = held_out_kl(fitted.density, codes["test"], vae.prior)
    for part in EXAMINED:
        pixels = binarized(part).images
        # Spread over the file, because the two halves of the test images have different writers.
        some = pixels[:: len(pixels) // _IMAGES][:_IMAGES]
        measures |= {
            f"{part}_{name}": average(values) for name, values in gaps(vae, some, generator).items()
        }
    return measures


def recipes() -> list[Recipe]:
    """Return the recipes of the table: the encoders of "A deeper encoder" in two dimensions."""
    question = study.BASE
    encoders = [
        question,
        replace(question, posterior="full covariance"),
        *(replace(question, encoder_depth=depth) for depth in (1, 3, 4)),
        *(replace(question, encoder_width=width) for width in (100, 1000)),
    ]
    return [replace(encoder, seed=seed) for seed in study.SEEDS for encoder in encoders]


def train_and_measure(recipe: Recipe, trainings: Path) -> list[Row]:
    """Train or load the model of a recipe, and return its row of the table.

    Args:
        recipe: Recipe with two latent dimensions; its converged model is measured.
        trainings: Folder of the trained models, and of the states of unfinished trainings.
    """
    vae = study.train_or_load(recipe, trainings).converged
    return [{**asdict(recipe), **columns(measure(vae))}]


TABLE = Table(store.RESULTS / "inference_gaps.csv", recipes, train_and_measure)
"""The stored table."""


if __name__ == "__main__":
    sys.exit(TABLE.main(__doc__))
