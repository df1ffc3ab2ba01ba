"""Codes of models that other packages trained, and constants that others publish about theirs.

``python -m priormatch.experiments.foreign_models pythae`` trains a model again with the package
that made it, and stores its codes. The book does without that package: it must be installed first.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pandas as pd
import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from priormatch.codes import Codes
from priormatch.data import binarized
from priormatch.experiments import store
from priormatch.models import globally_seeded

CODES = store.RESULTS / "codes"
"""Folder with the codes of each model, in half precision, and a JSON record beside them."""

_LATENT, _EPOCHS, _BATCH, _LEARNING_RATE, _SEED = 10, 15, 200, 1e-3, 0

_TRAIN, _TEST = 10_000, 5_000
"""Images whose codes are stored, drawn at random: the first test images are the clearest ones."""

_HELD_OUT_CELLS = 200


class MissingPackageError(ImportError):
    """A package that only this training needs is not installed."""


class Encoded(NamedTuple):
    """The posteriors of a model and what its own package says about them.

    Attributes:
        codes: Means and log variances, as `store_codes` names them.
        record: How the model was made.
    """

    codes: dict[str, Tensor]
    record: dict[str, Any]


def load(name: str, folder: Path = CODES) -> tuple[Codes, Codes]:
    """Return the stored codes of training and of held-out examples of a foreign model.

    Args:
        name: A key of `MODELS`.
        folder: Holds ``<name>.safetensors``, a file that ``priormatch audit`` reads as it is.

    Returns:
        Codes of training and of held-out examples, rounded to half precision.

    Raises:
        KeyError: No model has that name.
        FileNotFoundError: The codes of this model are not stored.

    Introduced in "Audit your own VAE".
    """
    if name not in MODELS:
        raise KeyError(f"no foreign model is called {name!r}; there are {', '.join(MODELS)}")
    stored = {
        key: value.float() for key, value in load_file(folder / f"{name}.safetensors").items()
    }
    return (
        Codes(stored["train_means"], log_variances=stored["train_log_variances"]),
        Codes(stored["test_means"], log_variances=stored["test_log_variances"]),
    )


def published(file: Path = store.RESULTS / "published_latents.csv") -> pd.DataFrame:
    """Return the means and deviations of codes that others publish with their autoencoders.

    A row is one channel, or ``channels`` of them that share a published number. ``version`` is that
    of the package, or a commit of its repository, and ``file`` the file in it that has the number.

    Introduced in "Audit your own VAE".
    """
    return pd.read_csv(file)


def train_with_pythae(loss: str) -> Encoded:
    """Train a VAE on binarised MNIST as the manual of pythae says, with its default networks.

    Args:
        loss: Its ``reconstruction_loss``: ``"bce"``, or ``"mse"``, which is the default of pythae.

    Raises:
        MissingPackageError: pythae is not installed.
    """
    models, trainers, pipelines = (
        _needed(f"pythae.{part}", "pythae") for part in ("models", "trainers", "pipelines")
    )
    images = {
        part: binarized(part).images.unflatten(1, (1, 28, 28))
        for part in ("train", "validation", "test")
    }
    start = time.perf_counter()
    with globally_seeded(_SEED), tempfile.TemporaryDirectory() as folder:
        model = models.VAE(
            models.VAEConfig(input_dim=(1, 28, 28), latent_dim=_LATENT, reconstruction_loss=loss)
        )
        settings = trainers.BaseTrainerConfig(
            output_dir=folder,
            num_epochs=_EPOCHS,
            learning_rate=_LEARNING_RATE,
            per_device_train_batch_size=_BATCH,
            per_device_eval_batch_size=_BATCH,
            seed=_SEED,
            no_cuda=True,
        )
        pipeline = pipelines.TrainingPipeline(training_config=settings, model=model)
        pipeline(train_data=images["train"], eval_data=images["validation"])
        model = pipeline.model.cpu().eval()
    seconds = time.perf_counter() - start
    generator, codes = torch.Generator().manual_seed(_SEED), {}
    with torch.no_grad():
        for part, examples in (("train", _TRAIN), ("test", _TEST)):
            order = torch.randperm(len(images[part]), generator=generator)
            images[part] = images[part][order[:examples]]
            out = model.encoder(images[part])
            codes[f"{part}_means"] = out.embedding
            codes[f"{part}_log_variances"] = out.log_covariance
        own = model({"data": images["test"]})
    record = {
        "package": "pythae",
        "reconstruction_loss": loss,
        "latent_dimension": _LATENT,
        "epochs": _EPOCHS,
        "batch_size": _BATCH,
        "learning_rate": _LEARNING_RATE,
        "seed": _SEED,
        "seconds": round(seconds, 1),
        "test_rate": own.reg_loss.item(),  # in the package's own words
        "test_distortion": own.recon_loss.item(),
        "versions": store.versions() | {"pythae": version("pythae")},
    }
    return Encoded(codes, record)


def train_with_scvi() -> Encoded:
    """Train scvi-tools' model of single cells, as its manual says, on 700 blood cells of scanpy.

    The cells come with scanpy as logarithms of shares, rounded. Their counts are whole multiples of
    the smallest share in a cell, so rounding finds them: see `counts_of`.

    Raises:
        MissingPackageError: scvi-tools or scanpy is not installed.
    """
    scanpy, scvi = (_needed(package, "scvi-tools scanpy") for package in ("scanpy", "scvi"))
    cells = scanpy.datasets.pbmc68k_reduced()
    counts = counts_of(torch.from_numpy(cells.raw.X.toarray()).double())
    order = torch.randperm(len(counts), generator=torch.Generator().manual_seed(_SEED))
    table = scanpy.AnnData(counts[order].numpy().astype("float32"))
    train, held_out = table[:-_HELD_OUT_CELLS].copy(), table[-_HELD_OUT_CELLS:].copy()
    start = time.perf_counter()
    scvi.settings.seed = _SEED
    scvi.model.SCVI.setup_anndata(train)
    model = scvi.model.SCVI(train)
    model.train(accelerator="cpu", enable_progress_bar=False)
    seconds = time.perf_counter() - start
    codes = {}
    for part, some in (("train", train), ("test", held_out)):
        means, variances = model.get_latent_representation(some, return_dist=True)
        codes[f"{part}_means"] = torch.from_numpy(means)
        codes[f"{part}_log_variances"] = torch.from_numpy(variances).log()
    record = {
        "package": "scvi-tools",
        "model": str(model.summary_string),
        "epochs": len(model.history["elbo_train"]),
        "seed": _SEED,
        "seconds": round(seconds, 1),
        "versions": store.versions()
        | {package: version(package) for package in ("scvi-tools", "scanpy")},
    }
    return Encoded(codes, record)


def counts_of(logarithms: Float[Tensor, "cells genes"]) -> Float[Tensor, "cells genes"]:
    """Return the counts behind ln(1 + c s), where the scale s of each cell is not known.

    The smallest positive entry of a cell is taken for one count.

    Raises:
        ValueError: A cell is not made of whole multiples of its smallest entry.

    >>> counts_of(torch.log1p(torch.tensor([[0.0, 0.5, 1.5], [2.0, 4.0, 0.0]])))
    tensor([[0., 1., 3.],
            [1., 2., 0.]])
    """
    shares = logarithms.expm1()
    smallest = shares.where(shares > 0, torch.inf).amin(1, keepdim=True)
    counts = (shares / smallest).round()
    if ((shares / smallest - counts).abs() > 0.25).any():
        raise ValueError("a cell is not made of whole multiples of its smallest entry")
    return counts


def _needed(module: str, packages: str) -> ModuleType:
    """Import a module, or say what to install."""
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingPackageError(
            f"this training needs {module}, which the book does without: pip install {packages}"
        ) from error


MODELS: dict[str, Callable[[], Encoded]] = {
    "pythae": lambda: train_with_pythae("bce"),
    "pythae-mse": lambda: train_with_pythae("mse"),
    "scvi": train_with_scvi,
}
"""The models by name, each with the function that trains it."""


def train(name: str, folder: Path = CODES) -> None:
    """Train a foreign model and store its codes, with a record of how they were made.

    Raises:
        FallbackModelError: Only the fallback digits are available.
        MissingPackageError: The package that trains it is not installed.
    """
    store.require_mnist(f"the model {name}")
    codes, record = MODELS[name]()
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: value.half() for key, value in codes.items()}, folder / f"{name}.safetensors")
    command = f"python -m priormatch.experiments.foreign_models {name}"
    store.save_record({"command": command, **record}, folder / f"{name}.json")


def main(arguments: list[str] | None = None) -> None:
    """Train the models that are named on the command line."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("names", nargs="+", choices=sorted(MODELS))
    for name in parser.parse_args(arguments).names:
        train(name)


if __name__ == "__main__":
    main()
