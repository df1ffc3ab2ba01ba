"""Trained models by name: stored in half precision under ``results/models``, or trained anew.

``python -m priormatch.zoo question`` trains the named models again and stores them.
"""

import argparse
import json
import platform
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from priormatch.data import Source, load_mnist, source
from priormatch.models import VAE
from priormatch.stored import RESULTS
from priormatch.training import Epoch, Recipe, Trained, build, fit

STORE = RESULTS / "models"
"""Where the stored models are."""

_AS_IN_THE_STUDY: dict[str, Any] = {
    "schedule": "inverse root",
    "gradient_norm": 100.0,
    "weight_average": 0.999,
    "flat": 1.0,
}

RECIPES: dict[str, Recipe] = {
    # The VAE of the question: 784-500-500-2, trained on what its likelihood speaks of.
    "question": Recipe(),
    # The recipe that the question's picture may have come from, Metzen's notebook of 2015.
    "picture": Recipe(
        activation="softplus",
        pixels="grey",
        epochs=75,
        batch_size=100,
        learning_rate=1e-3,
        schedule="constant",
    ),
    # The thought experiment of the question's discussion: codes on (0, 10), uniform prior.
    "interval": Recipe(**_AS_IN_THE_STUDY, latent_dimension=1, posterior="interval"),
    # The same networks with the prior N(0, 1).
    "line": Recipe(**_AS_IN_THE_STUDY, latent_dimension=1),
    # The first seed of the study in two, ten, twenty and fifty dimensions.
    **{
        f"d{latent}-seed0": Recipe(**_AS_IN_THE_STUDY, latent_dimension=latent)
        for latent in (2, 10, 20, 50)
    },
    # The one of them in ten dimensions again, with a VampPrior in place of N(0, I).
    "vamp-d10-seed0": Recipe(**_AS_IN_THE_STUDY, latent_dimension=10, prior="vamp"),
}
"""The recipes of the stored models."""


class StaleModelError(ValueError):
    """A stored model was made by another recipe than the one of its name: train it again."""


class FallbackModelError(RuntimeError):
    """A model trained on the fallback digits is not stored: the book's are trained on MNIST."""


def require_mnist(what: str) -> None:
    """Refuse to make what the book stores from the fallback digits.

    Raises:
        FallbackModelError: Only they are there.
    """
    if source() is Source.FALLBACK:
        raise FallbackModelError(
            f"{what} is made from the full MNIST: set PRIORMATCH_DATA to a folder that holds it."
        )


def load(name: str, store: Path = STORE) -> Trained:
    """Return the trained model of a name, from `store` or, if it is not there, by training it.

    Args:
        name: A key of `RECIPES`.
        store: Folder that holds ``<name>.safetensors`` and ``<name>.json``.

    Returns:
        The model, in evaluation mode, with the weights rounded to half precision, and its history.

    Raises:
        KeyError: No recipe has that name.
        StaleModelError: The stored model was made by another recipe.

    Introduced in "The KL term".
    """
    if name not in RECIPES:
        raise KeyError(f"no recipe is called {name!r}; there are {', '.join(RECIPES)}")
    if not (store / f"{name}.safetensors").exists():
        print(f"{store / name}.safetensors is not there: training {RECIPES[name]}")
        return train(name, store)
    record = json.loads((store / f"{name}.json").read_text())
    if Recipe(**record["recipe"]) != RECIPES[name]:
        raise StaleModelError(
            f"{store / name}.safetensors was made by {record['recipe']}, but {name!r} now means "
            f"{RECIPES[name]}: run `python -m priormatch.zoo {name}`."
        )
    model = load_weights(RECIPES[name], store / f"{name}.safetensors")
    return Trained(model, [Epoch(**row) for row in record["history"]])


def train(name: str, store: Path = STORE) -> Trained:
    """Train the model of a name, store it with a record of how it was made, and return it.

    A training that was stopped goes on from its last epoch.

    Raises:
        FallbackModelError: Only the fallback digits are there.
    """
    require_mnist(f"the model {name!r}")
    recipe = RECIPES[name]
    trained = fit(
        recipe,
        load_mnist("train").images,
        load_mnist("validation").images,
        checkpoint=store / f"{name}.checkpoint",
    )
    keep(name, trained, store)
    return load(name, store)


def keep(name: str, trained: Trained, store: Path = STORE) -> None:
    """Store the trained model of a name, in half precision, and a record of how it was made."""
    record = {
        "recipe": asdict(RECIPES[name]),
        "command": f"python -m priormatch.zoo {name}",
        "seconds": round(sum(epoch.seconds for epoch in trained.history)),
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in ("priormatch", "torch", "torchvision")},
        },
        "history": [epoch._asdict() for epoch in trained.history],
    }
    store.mkdir(parents=True, exist_ok=True)
    save_weights(trained.model, store / f"{name}.safetensors")
    (store / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")


def save_weights(model: VAE, file: Path) -> None:
    """Write the weights of a model in half precision."""
    save_file({key: weight.half() for key, weight in model.state_dict().items()}, file)


def load_weights(recipe: Recipe, file: Path) -> VAE:
    """Return the model of a recipe with stored weights, in evaluation mode."""
    model = build(recipe)
    model.load_state_dict({key: weight.float() for key, weight in load_file(file).items()})
    return model.eval()


def main(arguments: list[str] | None = None) -> int:
    """Train and store the models named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m priormatch.zoo", description=__doc__)
    parser.add_argument("names", nargs="+", choices=list(RECIPES), metavar="name")
    for name in parser.parse_args(arguments).names:
        print(f"{name}: {RECIPES[name]}")
        train(name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
