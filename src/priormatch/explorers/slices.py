"""Trainings in the explorer of dimensions: rows of the study, and codes of some test images.

``python -m priormatch.explorers.slices`` draws the codes from stored models of the study: those in
its table that differ only in the number of latent dimensions and in their seed. The measures
themselves are not stored again, but read from that table.
"""

import functools
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Final, NamedTuple

import pandas as pd
import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from priormatch.data import binarized, load_mnist
from priormatch.distributions import AggregatedPosterior
from priormatch.divergences import kl_from_prior_per_dimension
from priormatch.estimate import Bound, Estimate, average
from priormatch.experiments import store, study
from priormatch.experiments.table import Table
from priormatch.mismatch import dimension_wise_kl
from priormatch.models import VAE, draw, encode
from priormatch.recipe import Recipe

STORED: Final = store.MODELS / "dimension-codes.safetensors"
"""The stored codes, in a checkout of the book."""

DIMENSIONS: Final = (2, 3, 5, 10, 20, 50)
"""Numbers of latent dimensions that can be shown."""

EVERY: Final = 20
"""Spacing of the test images whose codes are stored: 500 of 10,000."""

MEASURES: Final[dict[str, Bound]] = {
    "train_rate": "none",
    "test_elbo": "none",
    "density_bound": "lower",
    "dimension_wise_kl": "lower",
    "total_correlation": "none",
    "in_sample_kl": "upper",
    "hole_share": "none",
    "classifier_accuracy": "none",
}
"""Columns of the study that are shown with their errors, and the side of each one's bound."""

# Every other field of a recipe that can be shown is that of the study's base.
_FREE: Final = {"latent_dimension", "seed"}


class Training(NamedTuple):
    """A training of the study, its latent dimensions sorted by their rate, the highest first.

    Attributes:
        measures: Estimates by the names of `MEASURES`: nats, and shares.
        active_units: Number of latent dimensions whose mean varies with the image.
        rates: Rate of each latent dimension, in nats.
        marginal_kls: Lower bounds of KL(q_j || N(0, 1)) of each latent dimension, in nats.
        codes: One draw from the posterior of every 20th test image.
    """

    measures: dict[str, Estimate]
    active_units: int
    rates: list[Estimate]
    marginal_kls: list[Estimate]
    codes: Float[Tensor, "examples latent"]


@torch.no_grad()
def snapshot(vae: VAE) -> dict[str, Tensor]:
    """Draw codes of a model, with the errors that the study's table does not hold.

    Args:
        vae: A model with a prior N(0, I).

    Returns:
        ``codes`` of every 20th test image in half precision, of shape ``(examples, latent)``; and
        in nats, for each latent dimension, its ``rate`` and the standard errors ``rate_error`` and
        ``marginal_kl_error``, all in the order of the model.
    """
    train = AggregatedPosterior(*encode(vae, binarized("train").images))
    test = AggregatedPosterior(*encode(vae, binarized("test").images))
    codes = draw(test.posteriors, torch.Generator().manual_seed(0))
    kl = kl_from_prior_per_dimension(train.means, 2 * train.scales.log())
    rates = [average(kl_of_dimension) for kl_of_dimension in kl.T]
    alone = dimension_wise_kl(train, codes).per_dimension
    return {
        "codes": codes[::EVERY].half(),
        "rate": torch.tensor([rate.value for rate in rates]),
        "rate_error": torch.tensor([rate.standard_error for rate in rates]),
        "marginal_kl_error": torch.tensor([one.standard_error for one in alone]),
    }


def recipes() -> list[Recipe]:
    """Return the recipes of the study that can be shown."""
    return [
        recipe
        for recipe in study.grid()
        if recipe.latent_dimension in DIMENSIONS
        and recipe == replace(study.BASE, **{name: getattr(recipe, name) for name in _FREE})
    ]


def save(
    shown: Iterable[Recipe],
    table: Table = study.TABLE,
    trainings: Path = store.TRAININGS,
    file: Path = STORED,
) -> None:
    """Draw codes of every converged model in the table, and save them.

    Entries that are up to date are kept.

    Args:
        shown: Recipes that differ only in their latent dimension and their seed.
        table: The study.
        trainings: Folder of the trained models.
        file: File of the codes, which is read and replaced.

    Raises:
        FallbackModelError: Only the fallback digits are available.
    """
    store.require_mnist("the table of codes")
    measured = study_rows(table)
    stored = load_file(file) if file.exists() else {}
    tensors = {"labels": load_mnist("test").labels[::EVERY].to(torch.uint8)}
    for recipe in shown:
        key = (recipe.latent_dimension, recipe.seed)
        if key not in measured.index:
            continue
        found = _stored_snapshot(stored, *key)
        if not found or not _same_model(measured.loc[key], found):
            found = snapshot(study.train_or_load(recipe, trainings).converged)
            print(f"d = {key[0]}, seed {key[1]}", flush=True)
        for name, values in found.items():
            tensors[_key(*key, name)] = values.contiguous()
    made_by = {"command": "python -m priormatch.explorers.slices", "torch": torch.__version__}
    save_file(tensors, file, metadata=made_by)


def study_rows(table: Table = study.TABLE) -> pd.DataFrame:
    """Return the rows of the study that can be shown, by latent dimension and seed."""
    rows = table.read()
    shown = rows["stage"] == "converged"
    for name, value in asdict(study.BASE).items():
        shown &= (rows[name] == value) | (name in _FREE)
    return rows[shown].set_index(["latent_dimension", "seed"]).sort_index()


@functools.cache
def trainings(table: Table = study.TABLE, file: Path = STORED) -> dict[tuple[int, int], Training]:
    """Return the trainings that both the study's table and the stored codes have.

    Returns:
        Trainings by latent dimension and seed, sorted by both.

    Raises:
        store.StaleModelError: The codes were drawn from other models than the table's.
    """
    stored = load_file(file)
    shown = {}
    for (latent, seed), row in study_rows(table).iterrows():
        if codes := _stored_snapshot(stored, latent, seed):
            shown[latent, seed] = _training(row, codes)
    return shown


def labels(file: Path = STORED) -> Tensor:
    """Return the digits of the test images whose codes are stored."""
    return load_file(file)["labels"]


def packed(latent: int, table: Table = study.TABLE, file: Path = STORED) -> dict[str, Tensor]:
    """Return all trainings with a number of latent dimensions, as a page reads them."""
    some = {seed: one for (d, seed), one in trainings(table, file).items() if d == latent}
    return pack(some, range(1, latent + 1), labels(file))


def pack(some: dict[int, Training], dimensions: Iterable[int], digits: Tensor) -> dict[str, Tensor]:
    """Return trainings in some of their latent dimensions, as a page reads them.

    Args:
        some: Trainings with the same latent dimension, by their seed.
        dimensions: Latent dimensions to pack; 1 is the one with the highest rate.
        digits: Labels of the codes.

    Returns:
        Nothing for no trainings, else ``seeds``, ``dimensions``, ``labels``, ``codes`` of shape
        ``(seeds, dimensions, examples)`` in half precision, ``rates`` and ``marginal_kls`` of shape
        ``(seeds, dimensions, 2)``, and each measure of shape ``(seeds, 2)``: value and error.
    """
    if not some:
        return {}
    chosen = [dimension - 1 for dimension in dimensions]

    def pairs(estimates: Iterable[Estimate]) -> list[tuple[float, float]]:
        return [(one.value, one.standard_error) for one in estimates]

    def double(numbers: Sequence[object]) -> Tensor:
        # In double precision, so that a page rounds to the same decimals as Python.
        return torch.tensor(numbers, dtype=torch.float64)

    values = some.values()
    return {
        "seeds": torch.tensor([*some], dtype=torch.uint8),
        "dimensions": torch.tensor([j + 1 for j in chosen], dtype=torch.uint8),
        "labels": digits,
        "codes": torch.stack([one.codes.T[chosen] for one in values]),
        "rates": double([pairs(one.rates[j] for j in chosen) for one in values]),
        "marginal_kls": double([pairs(one.marginal_kls[j] for j in chosen) for one in values]),
        **{name: double(pairs(one.measures[name] for one in values)) for name in MEASURES},
        "floor": double([one.measures["in_sample_kl"].floor for one in values]),
        "active_units": torch.tensor([one.active_units for one in values], dtype=torch.uint8),
    }


def _key(latent: int, seed: int, name: str) -> str:
    return f"{latent}-{seed}.{name}"


def _stored_snapshot(stored: dict[str, Tensor], latent: int, seed: int) -> dict[str, Tensor]:
    """Return the stored `snapshot` of a training; empty if there is none."""
    of_it = _key(latent, seed, "")
    return {key.removeprefix(of_it): stored[key] for key in stored if key.startswith(of_it)}


def _of_dimensions(row: pd.Series, name: str) -> Tensor:
    return torch.tensor([float(number) for number in row[name].split()], dtype=torch.float64)


def _same_model(row: pd.Series, found: dict[str, Tensor]) -> bool:
    """Return whether a row of the table and a snapshot come from one model, by their rates."""
    rates = _of_dimensions(row, "rate_of_dimensions")
    return torch.allclose(rates, found["rate"].double(), rtol=1e-3, atol=1e-5)


def _training(row: pd.Series, found: dict[str, Tensor]) -> Training:
    rates, kls = (_of_dimensions(row, name) for name in ("rate_of_dimensions", "kl_of_dimensions"))
    if not _same_model(row, found):
        raise store.StaleModelError(
            "The stored codes are of other models than the study's table: "
            "run `python -m priormatch.explorers.slices`."
        )
    order = rates.argsort(descending=True)
    errors = {name: found[name][order].tolist() for name in ("rate_error", "marginal_kl_error")}
    return Training(
        {
            name: Estimate(row[name], row[f"{name}_error"], bound, row.get(f"{name}_floor"))
            for name, bound in MEASURES.items()
        },
        int(row["active_units"]),
        [Estimate(*pair) for pair in zip(rates[order].tolist(), errors["rate_error"], strict=True)],
        [
            Estimate(*pair, "lower")
            for pair in zip(kls[order].tolist(), errors["marginal_kl_error"], strict=True)
        ],
        found["codes"][:, order],
    )


def main() -> int:
    """Draw codes of the models in the study's table, and save them; return the exit code."""
    save(recipes())
    return 0


if __name__ == "__main__":
    sys.exit(main())
