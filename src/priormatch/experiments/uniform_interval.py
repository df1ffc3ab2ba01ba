"""Models with one latent dimension and the prior U(0, 10) or N(0, 1), one row for each training.

``python -m priormatch.experiments.uniform_interval`` trains and measures the recipes that are
missing from ``results/uniform_interval.jsonl``. It can be killed at any moment: finished rows are
kept, and an unfinished training resumes from its last epoch.
"""

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Independent, kl_divergence

from priormatch.data import PARTS, binarized
from priormatch.estimate import average
from priormatch.evidence import Grid, kl_on_grid
from priormatch.experiments import digit_classifier, pretrained, store, study
from priormatch.experiments.table import Row, Table, columns
from priormatch.line import (
    decoded_digits,
    density_by_digit,
    grid_of,
    information_on_the_digit,
    mass_by_digit,
)
from priormatch.models import VAE, draw
from priormatch.objectives import bound_parts_in_chunks
from priormatch.recipe import Recipe

SEEDS = range(5)


PLACES = 1_000
"""Number of evenly spaced positions whose decoded digits are in the table."""


@torch.no_grad()
def measure(vae: VAE, nodes: int = 3_000) -> dict[str, Any]:
    """Measure a model with one latent dimension on MNIST binarised once.

    Args:
        vae: The model.
        nodes: Nodes of the quadrature.

    Returns:
        Rates, ELBO and divergences in nats; ``mass``, digits by bins; and ``decoded``, the digit
        that each of evenly spaced positions decodes into.
    """
    generator = torch.Generator().manual_seed(0)
    train, validation, test = (binarized(part) for part in PARTS)
    prior = cast("Independent", vae.prior)
    posterior = cast("Independent", vae.posterior(train.images))
    rates = kl_divergence(posterior, prior)
    bound = bound_parts_in_chunks(vae, test.images, generator)
    codes = draw(vae.posterior(validation.images), generator)

    grid = grid_of(prior, nodes)
    # Every third node, the middle one of each three.
    coarse = Grid((grid.lower[0] + grid.spacing,), grid.upper, 3 * grid.spacing)
    density = density_by_digit(posterior, train.labels, grid.nodes.squeeze(1))
    density_at_codes = density_by_digit(posterior, train.labels, codes[:, 0]).sum(0)
    positions = (torch.arange(PLACES, dtype=torch.float64) + 0.5) / PLACES
    return {
        "rate": average(rates),
        "smallest_rate": rates.min().item(),
        "test_rate": average(bound.rate),
        "test_elbo": average(bound.elbo),
        "mismatch": kl_on_grid(density.sum(0), prior, grid),
        "mismatch_every_third_node": kl_on_grid(density.sum(0)[1::3], prior, coarse),
        "held_out_kl": average(density_at_codes.log() - prior.log_prob(codes), "lower"),
        "information_on_the_digit": information_on_the_digit(density, grid),
        "mass": _rounded(mass_by_digit(posterior, train.labels, prior)),
        "decoded": decoded_digits(vae, digit_classifier.load(), positions).tolist(),
    }


def recipes() -> list[Recipe]:
    """Return the recipes of the table, ordered by seed, and then one long training."""
    both = [pretrained.RECIPES["interval"], pretrained.RECIPES["line"]]
    long = replace(pretrained.RECIPES["interval"], min_improvement=0.0)
    return [*(replace(recipe, seed=seed) for seed in SEEDS for recipe in both), long]


def train_and_measure(recipe: Recipe, trainings: Path) -> list[Row]:
    """Train or load the model of a recipe, and return its row of the table.

    Args:
        recipe: Recipe of the model.
        trainings: Folder of the trained models, and of the states of unfinished trainings.

    Returns:
        The recipe, how it was trained, and each measure, with its standard error
        (``<measure>_error``) where it has one. The mismatch after 20 epochs is missing for
        pretrained models, which are stored only at the end of training.
    """
    early = {}
    named = [name for name, stored in pretrained.RECIPES.items() if stored == recipe]
    if named:
        converged, history = pretrained.load(named[0])
    else:
        before, converged, history = study.train_or_load(recipe, trainings)
        if before is not None:
            name = f"mismatch_after_{study.EQUAL_EPOCHS}_epochs"
            early[name] = measure(before)["mismatch"]
    return [
        {
            **asdict(recipe),
            "trained_epochs": len(history),
            "seconds": round(sum(epoch.seconds for epoch in history)),
            **store.versions(),
            **columns(measure(converged)),
            **early,
        }
    ]


def _rounded(masses: Float[Tensor, "digits bins"]) -> list[list[float]]:
    return [[round(mass, 7) for mass in row] for row in masses.tolist()]


TABLE = Table(store.RESULTS / "uniform_interval.jsonl", recipes, train_and_measure)
"""The stored table: a line of JSON for each model."""


if __name__ == "__main__":
    sys.exit(TABLE.main(__doc__))
