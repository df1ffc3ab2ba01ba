"""Study of the mismatch: a grid of recipes and seeds, with rows of measures for each.

``python -m priormatch.experiments.study`` (``make study``) trains and measures the recipes that are
missing from ``results/study.csv``. It can be killed at any moment: finished rows are kept, and an
unfinished training resumes from its last epoch.
"""

import hashlib
import json
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import NamedTuple

import torch

from priormatch.data import PARTS, binarized, load_mnist
from priormatch.densities import fit_mixture_by_class
from priormatch.distributions import AggregatedPosterior
from priormatch.estimate import average
from priormatch.evidence import (
    average_bounds,
    exact_inference_in_the_plane,
    importance_bounds,
)
from priormatch.experiments import store
from priormatch.experiments.table import Row, Table, columns
from priormatch.measurement import summary
from priormatch.mismatch import held_out_kl
from priormatch.models import VAE, draw, encode
from priormatch.objectives import bound_parts_in_chunks
from priormatch.recipe import Recipe, build
from priormatch.summaries import Measure
from priormatch.training import Epoch, fastest_format, fit

SEEDS = range(5)
EQUAL_EPOCHS = 20
"""Epochs after which every model of the study is measured, whether it has converged or not."""

STAGES = ("equal epochs", "converged")

BASE = Recipe(schedule="inverse sqrt", clip_grad_norm=100.0, ema_decay=0.999, min_improvement=1.0)
"""Base recipe of the tables; others differ from it in a field or two."""


def grid() -> list[Recipe]:
    """Return the recipes, ordered by seed, so that an interrupted study has complete seeds."""
    dimensions = [
        replace(BASE, latent_dimension=latent, encoder_depth=depth)
        for depth in (2, 3)
        for latent in (2, 3, 5, 10, 20, 50)
    ]
    beta = [replace(BASE, beta=beta) for beta in (0.01, 0.1, 3.0, 10.0, 30.0, 100.0)]
    encoder = [
        replace(BASE, latent_dimension=latent, encoder_depth=depth, encoder_width=width)
        for latent in (2, 10)
        for depth, width in ((1, 500), (4, 500), (2, 100), (2, 1000))
    ]
    recipes = [*dimensions, *beta, *encoder]
    return [replace(recipe, seed=seed) for seed in SEEDS for recipe in recipes]


class Trainings(NamedTuple):
    """The trained models of a recipe, in evaluation mode and without gradients.

    Attributes:
        early: After `EQUAL_EPOCHS` epochs; None if it was not stored.
        converged: At the end of training.
        history: One entry for each epoch.
    """

    early: VAE | None
    converged: VAE
    history: list[Epoch]


def train_or_load(recipe: Recipe, trainings: Path = store.TRAININGS) -> Trainings:
    """Load the trained models of a recipe; train them if they are not stored.

    An interrupted training resumes from its last epoch.

    Args:
        recipe: Recipe of the models.
        trainings: Folder of the trained models, and of the states of unfinished trainings.
    """
    name = _name(recipe)
    early, converged = (
        trainings / f"{name}-{stage.replace(' ', '-')}.safetensors" for stage in STAGES
    )
    record = trainings / f"{name}.json"
    if not record.exists():

        def save_early(epoch: int, model: VAE) -> None:
            if epoch == EQUAL_EPOCHS:
                store.save_weights(model, early)

        model, history = fit(
            recipe,
            load_mnist("train").images,
            load_mnist("validation").images,
            checkpoint=store.CheckpointFile(trainings / f"{name}.checkpoint"),
            progress=False,
            after_epoch=save_early,
            number_format=fastest_format(recipe),
        )
        store.save_weights(model, converged)
        store.save_record({"history": [entry._asdict() for entry in history]}, record)
    history = [Epoch(**entry) for entry in store.load_record(record)["history"]]
    before = _load(recipe, early) if early.exists() else None
    return Trainings(before, _load(recipe, converged), history)


def _load(recipe: Recipe, file: Path) -> VAE:
    return store.load_weights(build(recipe), file).requires_grad_(False)


def _name(recipe: Recipe) -> str:
    """Return a file name for a recipe; fields at their defaults do not change it."""
    changes = {
        field.name: getattr(recipe, field.name)
        for field in fields(Recipe)
        if getattr(recipe, field.name) != field.default
    }
    return hashlib.sha256(json.dumps(changes, sort_keys=True).encode()).hexdigest()[:16]


def measure(vae: VAE, draws: int = 10_000, seed: int = 0) -> dict[str, Measure]:
    """Measure a trained model on MNIST binarised once: its bound, and its mismatch from N(0, I).

    Held-out measures are reported twice, on test images and on validation images. Test images come
    from other writers than the training images do. Validation images come from the same writers,
    but they also choose the density, so the density bound on them is slightly optimistic.

    Args:
        vae: A model with a prior N(0, I).
        draws: Draws of the mixture and of the prior; each posterior is drawn once.
        seed: Seed of the draws and the fits, the same for models that are compared.

    Returns:
        Measures by name: those of `priormatch.summary`, of the bound and of the evidence. Rates,
        distortions and divergences are in nats.
    """
    generator = torch.Generator().manual_seed(seed)
    measures: dict[str, Measure] = {}
    encoded, codes = {}, {}
    for part in PARTS:
        parts = bound_parts_in_chunks(vae, binarized(part).images, generator)
        encoded[part] = encode(vae, binarized(part).images)
        codes[part] = draw(AggregatedPosterior(*encoded[part]).posteriors, generator)
        measures[f"{part}_distortion"] = average(parts.distortion)
        measures[f"{part}_rate"] = average(parts.rate)
        measures[f"{part}_elbo"] = average(parts.elbo)
    validation_means, validation_scales = encoded["validation"]
    measures |= summary(
        *encoded["train"],
        *encoded["test"],
        validation_means=validation_means,
        validation_scales=validation_scales,
        draws=draws,
        seed=seed,
    )
    # One Gaussian for each class: the quilt of ten patches in the discussion.
    quilt_of_ten = fit_mixture_by_class(codes["train"], binarized("train").labels)
    measures["by_class_bound"] = held_out_kl(quilt_of_ten, codes["test"], vae.prior)

    # Every tenth test image, because the two halves of the file have different writers.
    some = binarized("test").images[::10]
    bounds = average_bounds(importance_bounds(vae, some, 200, generator))
    measures |= {
        "log_evidence": bounds["log_evidence"],
        "inference_gap": bounds["gap"],
        "effective_draws": bounds["effective_draws"],
        "reliable_share": bounds["reliable_share"],
    }
    if vae.prior.event_shape == (2,):
        exact = exact_inference_in_the_plane(vae, some)
        measures |= {
            "exact_log_evidence": average(exact.log_evidence),
            "exact_inference_gap": average(exact.gap),
        }
    return measures


def train_and_measure(recipe: Recipe, trainings: Path, draws: int = 10_000) -> list[Row]:
    """Train or load the models of a recipe, and return its rows of the table.

    Args:
        recipe: Recipe of the models.
        trainings: Folder of the trained models, and of the states of unfinished trainings.
        draws: Draws of the Monte Carlo measures.

    Returns:
        A row for each stage: the recipe, how it was trained, and each measure with its standard
        error (``<measure>_error``) and, where it has one, its floor (``<measure>_floor``).
    """
    early, converged, history = train_or_load(recipe, trainings)
    stages = zip(STAGES, (early, converged), (history[:EQUAL_EPOCHS], history), strict=True)
    return [
        {
            **asdict(recipe),
            "stage": stage,
            **_record(epochs),
            **columns(measure(model, draws)),
        }
        for stage, model, epochs in stages
        if model is not None
    ]


def _record(history: list[Epoch]) -> Row:
    return {
        "trained_epochs": len(history),
        "gain_of_10_epochs": history[-1].validation_elbo - history[-11:][0].validation_elbo,
        "seconds": round(sum(epoch.seconds for epoch in history)),
        "number_format": "+".join(sorted({epoch.number_format for epoch in history})),
        **store.versions(),
    }


TABLE = Table(store.RESULTS / "study.csv", grid, train_and_measure, rows_each=len(STAGES))
"""The stored study."""


if __name__ == "__main__":
    sys.exit(TABLE.main(__doc__))
