"""What the explorer of dimensions shows: rows of the study, and codes of some test images.

``python -m priormatch.explorers.slices`` draws the codes from the kept models of the study, those
of the rows of its table that differ only in the number of latent dimensions and in their seed. The
measures are read from the table itself, whenever they are shown.
"""

import functools
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import pandas as pd
import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from priormatch import study, zoo
from priormatch.aggregated import AggregatedPosterior
from priormatch.data import binarized, load_mnist
from priormatch.divergences import kl_from_prior_per_dimension
from priormatch.mismatch import Bound, Estimate, average, dimension_wise_kl
from priormatch.models import VAE, draw
from priormatch.objectives import encode
from priormatch.training import Recipe

STORED: Final = zoo.STORE / "dimension-codes.safetensors"
"""The stored codes, in a checkout of the book."""

DIMENSIONS: Final = (2, 3, 5, 10, 20, 50)
"""Numbers of latent dimensions that can be shown."""

EVERY: Final = 20
"""Every so many test images have their codes stored: 500 of 10,000."""

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
"""Columns of the study that are shown, each with its standard error, and the side of its bound."""

_SHOWN: Final = {"encoder_depth": 2, "encoder_width": 500, "beta": 1.0}


class Cell(NamedTuple):
    """A training of the study, its latent dimensions sorted by their rate, the highest first.

    Attributes:
        measures: Estimates by the names of `MEASURES`: nats, and shares.
        active_units: Number of latent dimensions whose mean varies with the image.
        rates: Rate of each latent dimension, in nats.
        marginal_kls: KL(q_j || N(0, 1)) of each latent dimension, in nats, from below.
        codes: One draw from the posterior of every 20th test image.
    """

    measures: dict[str, Estimate]
    active_units: int
    rates: list[Estimate]
    marginal_kls: list[Estimate]
    codes: Float[Tensor, "examples latent"]


@torch.no_grad()
def look(vae: VAE) -> dict[str, Tensor]:
    """Draw codes of a model, and measure what the study's table does not hold.

    Args:
        vae: A model with a prior N(0, I).

    Returns:
        ``codes`` of every 20th test image in half precision, of shape ``(examples, latent)``; and
        in nats, for each latent dimension, its ``rate`` and the standard errors ``rate_error`` and
        ``marginal_kl_error``, all in the order of the model.
    """
    train = AggregatedPosterior(*encode(vae, binarized("train")))
    test = AggregatedPosterior(*encode(vae, binarized("test")))
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
        and all(getattr(recipe, name) == value for name, value in _SHOWN.items())
    ]


def store(
    shown: Iterable[Recipe],
    table: Path = study.TABLE,
    models: Path = study.MODELS,
    file: Path = STORED,
) -> None:
    """Look at the converged models of those recipes that the table has rows of, and keep the looks.

    Looks that the file has already, at the models of these rows, are kept as they are.

    Args:
        shown: Recipes that differ only in their latent dimension and their seed.
        table: The study.
        models: Folder that keeps the models of the study.
        file: Where the looks are, and go.

    Raises:
        zoo.FallbackModelError: Only the fallback digits are there.
    """
    zoo.require_mnist("the table of codes")
    measured = rows(table)
    stored = load_file(file) if file.exists() else {}
    tensors = {"labels": load_mnist("test").labels[::EVERY].to(torch.uint8)}
    for recipe in shown:
        place = (recipe.latent_dimension, recipe.seed)
        if place not in measured.index:
            continue
        looked = _looked(stored, *place)
        if not looked or not _same_model(measured.loc[place], looked):
            kept, _ = study.trained(recipe, models)
            looked = look(kept["converged"])
            print(f"d = {place[0]}, seed {place[1]}", flush=True)
        for name, values in looked.items():
            tensors[_key(*place, name)] = values.contiguous()
    made_by = {"command": "python -m priormatch.explorers.slices", "torch": torch.__version__}
    save_file(tensors, file, metadata=made_by)


def rows(table: Path = study.TABLE) -> pd.DataFrame:
    """Return the rows of the study that can be shown, by latent dimension and seed."""
    everything = study.read(table)
    shown = everything["stage"] == "converged"
    for name, value in _SHOWN.items():
        shown &= everything[name] == value
    return everything[shown].set_index(["latent_dimension", "seed"]).sort_index()


@functools.cache
def cells(table: Path = study.TABLE, file: Path = STORED) -> dict[tuple[int, int], Cell]:
    """Return the trainings that both the study's table and the stored codes have.

    Returns:
        Cells by latent dimension and seed, in their order.

    Raises:
        zoo.StaleModelError: The codes were drawn from other models than the table's.
    """
    stored = load_file(file)
    found = {}
    for (latent, seed), row in rows(table).iterrows():
        if looked := _looked(stored, latent, seed):
            found[latent, seed] = _cell(row, looked)
    return found


def labels(file: Path = STORED) -> Tensor:
    """Return the digits of the test images whose codes are stored."""
    return load_file(file)["labels"]


def packed(latent: int, table: Path = study.TABLE, file: Path = STORED) -> dict[str, Tensor]:
    """Return all trainings with that many latent dimensions as a page reads them."""
    some = {seed: cell for (d, seed), cell in cells(table, file).items() if d == latent}
    return pack(some, range(1, latent + 1), labels(file))


def pack(some: dict[int, Cell], dimensions: Iterable[int], digits: Tensor) -> dict[str, Tensor]:
    """Return trainings as a page reads them.

    Args:
        some: Cells with the same latent dimension, by their seed.
        dimensions: Which latent dimensions, counted from 1, the one of the highest rate.
        digits: Labels of the codes.

    Returns:
        Nothing for no cells, else ``seeds``, ``dimensions``, ``labels``, ``codes`` of shape
        ``(seeds, dimensions, examples)`` in half precision, ``rates`` and ``marginal_kls`` of shape
        ``(seeds, dimensions, 2)``, and each measure of shape ``(seeds, 2)``: value and error.
    """
    if not some:
        return {}
    chosen = [dimension - 1 for dimension in dimensions]

    def pairs(estimates: Iterable[Estimate]) -> list[tuple[float, float]]:
        return [(one.value, one.standard_error) for one in estimates]

    def double(numbers: Sequence[object]) -> Tensor:
        # Not rounded: a page rounds to as many decimals as Python does.
        return torch.tensor(numbers, dtype=torch.float64)

    trainings = some.values()
    return {
        "seeds": torch.tensor([*some], dtype=torch.uint8),
        "dimensions": torch.tensor([j + 1 for j in chosen], dtype=torch.uint8),
        "labels": digits,
        "codes": torch.stack([cell.codes.T[chosen] for cell in trainings]),
        "rates": double([pairs(cell.rates[j] for j in chosen) for cell in trainings]),
        "marginal_kls": double([pairs(cell.marginal_kls[j] for j in chosen) for cell in trainings]),
        **{name: double(pairs(cell.measures[name] for cell in trainings)) for name in MEASURES},
        "floor": double([cell.measures["in_sample_kl"].floor for cell in trainings]),
        "active_units": torch.tensor([cell.active_units for cell in trainings], dtype=torch.uint8),
    }


def _key(latent: int, seed: int, name: str) -> str:
    return f"{latent}-{seed}.{name}"


def _looked(stored: dict[str, Tensor], latent: int, seed: int) -> dict[str, Tensor]:
    """Return what was stored of the look at a training: nothing, or all that `look` returns."""
    of_it = _key(latent, seed, "")
    return {key.removeprefix(of_it): stored[key] for key in stored if key.startswith(of_it)}


def _of_dimensions(row: pd.Series, name: str) -> Tensor:
    return torch.tensor([float(number) for number in row[name].split()], dtype=torch.float64)


def _same_model(row: pd.Series, looked: dict[str, Tensor]) -> bool:
    """Whether a row of the table and a look are of one model, by its rates."""
    rates = _of_dimensions(row, "rate_of_dimensions")
    return torch.allclose(rates, looked["rate"].double(), rtol=1e-3, atol=1e-5)


def _cell(row: pd.Series, looked: dict[str, Tensor]) -> Cell:
    rates, kls = (_of_dimensions(row, name) for name in ("rate_of_dimensions", "kl_of_dimensions"))
    if not _same_model(row, looked):
        raise zoo.StaleModelError(
            "The stored codes are of other models than the study's table: "
            "run `python -m priormatch.explorers.slices`."
        )
    order = rates.argsort(descending=True)
    errors = {name: looked[name][order].tolist() for name in ("rate_error", "marginal_kl_error")}
    return Cell(
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
        looked["codes"][:, order],
    )


def main() -> int:
    """Look at the models of the study's table, and store the looks."""
    store(recipes())
    return 0


if __name__ == "__main__":
    sys.exit(main())
