"""Search for a training recipe: validation ELBO of a few recipes, two seeds each.

``python -m priormatch.experiments.recipe_search`` makes ``results/recipe_search.csv``. It can be
killed at any moment: finished rows are kept, and an unfinished training resumes from its last
epoch.

The recipe is chosen on validation images. Test images play no part.
"""

import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch

from priormatch.data import PARTS, binarized
from priormatch.distributions import AggregatedPosterior
from priormatch.estimate import average
from priormatch.experiments import store, study
from priormatch.experiments.table import Row, Table, columns
from priormatch.mismatch import active_units, mean_square_per_dimension
from priormatch.models import encode
from priormatch.objectives import bound_parts_in_chunks
from priormatch.recipe import Recipe

SEEDS = range(2)

ONE_CYCLE = Recipe(epochs=60, clip_grad_norm=100.0, kl_warm_up=15)
"""Base recipe of the search; most others differ from it in a field or two."""

_VARIANTS = (
    ONE_CYCLE,
    replace(ONE_CYCLE, kl_warm_up=0),
    replace(ONE_CYCLE, learning_rate=1e-3),
    replace(ONE_CYCLE, epochs=90),
    replace(ONE_CYCLE, encoder_dropout=0.1),
    replace(ONE_CYCLE, kl_warm_up=0, initial_log_variance=-3.0),
    # The recipe of the first study, with a warm-up.
    replace(study.BASE, kl_warm_up=15),
)


def recipes() -> list[Recipe]:
    """Return the recipes, ordered by seed: all variants in 20 dimensions, some in others."""
    cells = [
        *((20, variant) for variant in _VARIANTS),
        *((latent, ONE_CYCLE) for latent in (2, 10, 50)),
        (2, replace(ONE_CYCLE, kl_warm_up=0)),
    ]
    return [
        replace(variant, latent_dimension=latent, encoder_depth=depth, seed=seed)
        for seed in SEEDS
        for latent, variant in cells
        for depth in (2, 3)
    ]


def train_and_measure(recipe: Recipe, trainings: Path) -> list[Row]:
    """Train or load the model of a recipe, and return its row of the table.

    ELBO and rate are those of training and validation images.

    Args:
        recipe: Recipe of the model.
        trainings: Folder of the trained models, and of the states of unfinished trainings.
    """
    trained = study.train_or_load(recipe, trainings)
    generator = torch.Generator().manual_seed(0)
    aggregated = AggregatedPosterior(*encode(trained.converged, binarized("train").images))
    row: Row = {
        **asdict(recipe),
        "trained_epochs": len(trained.history),
        "seconds": round(sum(epoch.seconds for epoch in trained.history)),
        "number_format": trained.history[-1].number_format,
        **store.versions(),
    }
    for part in PARTS[:2]:  # no test images
        parts = bound_parts_in_chunks(trained.converged, binarized(part).images, generator)
        row |= columns({f"{part}_elbo": average(parts.elbo), f"{part}_rate": average(parts.rate)})
    row["active_units"] = active_units(aggregated)
    row["largest_mean_square"] = mean_square_per_dimension(aggregated).max().item()
    return [row]


TABLE = Table(store.RESULTS / "recipe_search.csv", recipes, train_and_measure)
"""The stored table."""


if __name__ == "__main__":
    sys.exit(TABLE.main(__doc__))
