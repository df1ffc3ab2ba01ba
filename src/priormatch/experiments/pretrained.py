"""Pretrained models by name, stored in half precision under ``results/models``.

``python -m priormatch.experiments.pretrained question`` trains the model called ``question`` and
stores it.
"""

import argparse
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch

from priormatch.data import load_mnist
from priormatch.experiments import store, study
from priormatch.recipe import Recipe, build
from priormatch.training import Epoch, Trained, fit

OF_THE_STUDY: dict[str, Recipe] = {
    # The first seed of the study in two, ten, twenty and fifty dimensions.
    **{
        f"d{latent}-seed0": replace(study.BASE, latent_dimension=latent)
        for latent in (2, 10, 20, 50)
    },
    # The same recipe in ten dimensions, with a VampPrior in place of N(0, I).
    "vamp-d10-seed0": replace(study.BASE, latent_dimension=10, prior="vamp"),
}
"""Recipes that a table has rows of; they are trained in the same way as its other recipes."""

RECIPES: dict[str, Recipe] = {
    # The VAE of the question: 784-500-500-2, trained on binary pixels, as its likelihood assumes.
    "question": Recipe(),
    # Metzen's notebook of 2015, from which the question's picture may have come.
    "picture": Recipe(
        activation="softplus",
        pixels="grayscale",
        epochs=75,
        batch_size=100,
        learning_rate=1e-3,
        schedule="constant",
    ),
    # The thought experiment of the question's discussion: codes on (0, 10), uniform prior.
    "interval": replace(study.BASE, latent_dimension=1, posterior="interval"),
    # The same networks with the prior N(0, 1).
    "line": replace(study.BASE, latent_dimension=1),
    **OF_THE_STUDY,
}
"""The recipes of the stored models."""


def load(name: str, folder: Path = store.MODELS) -> Trained:
    """Load the model of a name; train and store it if its file is missing.

    Args:
        name: A key of `RECIPES`.
        folder: Holds ``<name>.safetensors`` and ``<name>.json``.

    Returns:
        The model, in evaluation mode, with the weights rounded to half precision, and its history.

    Raises:
        KeyError: No recipe has that name.
        StaleModelError: The stored model was made by another recipe.

    Introduced in "The KL term".
    """
    if name not in RECIPES:
        raise KeyError(f"no recipe is called {name!r}; there are {', '.join(RECIPES)}")
    if not (folder / f"{name}.safetensors").exists():
        print(f"{folder / name}.safetensors is not there: training {RECIPES[name]}")
        return train(name, folder)
    record = store.load_record(folder / f"{name}.json")
    if Recipe(**record["recipe"]) != RECIPES[name]:
        raise store.StaleModelError(
            f"{folder / name}.safetensors was made by {record['recipe']}, but {name!r} now means "
            f"{RECIPES[name]}: run `{_command(name)}`."
        )
    model = store.load_weights(build(RECIPES[name]), folder / f"{name}.safetensors")
    return Trained(model, [Epoch(**row) for row in record["history"]])


def train(name: str, folder: Path = store.MODELS, trainings: Path = store.TRAININGS) -> Trained:
    """Train the model of a name, store it with a record of how it was made, and return it.

    An interrupted training resumes from its last epoch.

    Args:
        name: A key of `RECIPES`.
        folder: Folder to store the model in.
        trainings: Folder of the tables' models; a model found there is not trained again.

    Raises:
        FallbackModelError: Only the fallback digits are available.
    """
    store.require_mnist(f"the model {name!r}")
    recipe = RECIPES[name]
    if name in OF_THE_STUDY:
        torch.set_num_threads(1)
        kept = study.train_or_load(recipe, trainings)
        trained = Trained(kept.converged, kept.history)
    else:
        trained = fit(
            recipe,
            load_mnist("train").images,
            load_mnist("validation").images,
            checkpoint=store.CheckpointFile(folder / f"{name}.checkpoint"),
        )
    save(name, trained, folder)
    return load(name, folder)


def save(name: str, trained: Trained, folder: Path = store.MODELS) -> None:
    """Store a trained model in half precision, with a record of how it was made."""
    store.save_weights(trained.model, folder / f"{name}.safetensors")
    record = {
        "recipe": asdict(RECIPES[name]),
        "command": _command(name),
        "seconds": round(sum(epoch.seconds for epoch in trained.history)),
        "threads": torch.get_num_threads(),
        "versions": store.versions(),
        "history": [epoch._asdict() for epoch in trained.history],
    }
    store.save_record(record, folder / f"{name}.json")


def _command(name: str) -> str:
    return f"python -m priormatch.experiments.pretrained {name}"


def main(arguments: list[str] | None = None) -> int:
    """Train and store the models named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="+", choices=list(RECIPES), metavar="name")
    for name in parser.parse_args(arguments).names:
        print(f"{name}: {RECIPES[name]}")
        train(name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
