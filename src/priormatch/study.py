"""The study behind the chapters: a grid of recipes and seeds, one row of measures for each.

``python -m priormatch.study`` (``make study``) trains what ``results/study.csv`` lacks. It can be
killed at any moment: finished rows stay, and an unfinished training goes on from its last epoch.
"""

import argparse
import functools
import hashlib
import json
import multiprocessing
import multiprocessing.connection
import os
import platform
import sys
import threading
from collections.abc import Iterable
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from dataclasses import asdict, fields
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from priormatch.aggregated import AggregatedPosterior
from priormatch.data import Part, binarize, load_mnist, prepare
from priormatch.mismatch import (
    Estimate,
    average,
    held_out_kl,
    hole_share,
    in_sample_kl,
    moment_bound,
)
from priormatch.models import VAE, draw
from priormatch.objectives import bound_parts_in_chunks, encode
from priormatch.training import Recipe, fit

TABLE = Path(__file__).parents[2] / "results" / "study.csv"
"""The stored study, in a checkout of the book."""

SEEDS = range(5)
DECADES = (0.01, 0.1, 1.0, 10.0, 100.0)
BETWEEN = (3.0, 30.0)


def grid() -> list[Recipe]:
    """Return the recipes of the study, those that a killed study would miss most first."""
    return [
        Recipe(beta=beta, epochs=15, seed=seed)
        for betas in (DECADES, BETWEEN)
        for seed in SEEDS
        for beta in betas
    ]


def measure(vae: VAE, draws: int = 5_000, seed: int = 0) -> dict[str, Estimate]:
    """Measure a trained model on MNIST binarised once: its bound, and its mismatch from N(0, I).

    Args:
        vae: A model with a prior N(0, I).
        draws: Draws of the mixture and of the prior; posteriors of the test images are drawn once.
        seed: Decides the pixels and the draws, so that models are compared on the same.

    Returns:
        Estimates by name. Rates, distortions and divergences are in nats.
    """
    generator = torch.Generator().manual_seed(seed)
    train_pixels, test_pixels = _pixels("train"), _pixels("test")
    train = bound_parts_in_chunks(vae, train_pixels, generator)
    test = bound_parts_in_chunks(vae, test_pixels, generator)
    aggregated = AggregatedPosterior(*encode(vae, train_pixels))
    codes = draw(AggregatedPosterior(*encode(vae, test_pixels)).posteriors, generator)
    prior_draws = torch.randn((draws, codes.shape[1]), generator=generator)
    return {
        "train_distortion": average(train.distortion),
        "train_rate": average(train.rate),
        "test_distortion": average(test.distortion),
        "test_rate": average(test.rate),
        "test_elbo": average(test.elbo),
        "in_sample_kl": in_sample_kl(aggregated, vae.prior, draws, generator),
        "held_out_kl": held_out_kl(aggregated, codes, vae.prior),
        "moment_bound": moment_bound(codes),
        "hole_share": hole_share(aggregated, codes, prior_draws),
    }


def row(recipe: Recipe, checkpoints: Path, draws: int = 5_000) -> dict[str, object]:
    """Train a recipe in this process on one thread, and return its row of the table.

    Args:
        recipe: What to train.
        checkpoints: Folder for the state of unfinished trainings.
        draws: Draws of the Monte Carlo measures.

    Returns:
        The recipe, how it was trained, and each measure with its standard error
        (``<measure>_error``) and, where it has one, its floor (``<measure>_floor``).
    """
    torch.set_num_threads(1)
    key = hashlib.sha256(json.dumps(asdict(recipe)).encode()).hexdigest()[:16]
    model, history = fit(
        recipe,
        load_mnist("train").images,
        load_mnist("validation").images,
        checkpoint=checkpoints / f"{key}.checkpoint",
        progress=False,
    )
    cells: dict[str, object] = {
        **asdict(recipe),
        "validation_elbo": history[-1].validation_elbo,
        "seconds": round(sum(epoch.seconds for epoch in history)),
        "python": platform.python_version(),
        **{package: version(package) for package in ("priormatch", "torch")},
    }
    for name, estimate in measure(model, draws).items():
        cells[name] = estimate.value
        cells[f"{name}_error"] = estimate.standard_error
        if estimate.floor is not None:
            cells[f"{name}_floor"] = estimate.floor
    return cells


def run(recipes: Iterable[Recipe], table: Path, executor: Executor, draws: int = 5_000) -> None:
    """Train the recipes that the table lacks, and write each row as it is finished.

    Args:
        recipes: The grid.
        table: CSV file, made if it is not there.
        executor: Where to train: processes of this machine, or a cluster's.
        draws: Draws of the Monte Carlo measures.
    """
    done = read(table)
    missing = [recipe for recipe in recipes if not _holds(done, recipe)]
    checkpoints = table.with_name(f"{table.stem}-checkpoints")
    futures = [executor.submit(row, recipe, checkpoints, draws) for recipe in missing]
    for future in tqdm(as_completed(futures), total=len(futures), unit="model"):
        done = pd.concat([done, pd.DataFrame([future.result()])], ignore_index=True)
        unfinished = table.with_suffix(".unfinished")
        done.to_csv(unfinished, index=False)
        unfinished.replace(table)


def read(table: Path = TABLE) -> pd.DataFrame:
    """Return the rows of a study; none if the file is not there.

    Introduced in "The KL term".
    """
    return pd.read_csv(table) if table.exists() else pd.DataFrame()


def _holds(rows: pd.DataFrame, recipe: Recipe) -> bool:
    if rows.empty:
        return False
    same = pd.Series(True, index=rows.index)
    for field in fields(Recipe):
        same &= rows[field.name] == getattr(recipe, field.name)
    return bool(same.any())


def _end_with_parent() -> None:
    """Make this worker end when its parent does: a killed study must not go on unseen."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent.sentinel,), daemon=True).start()


def _end_after(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


@functools.cache
def _pixels(part: Part) -> Float[Tensor, "examples pixels"]:
    return binarize(load_mnist(part).images, torch.Generator().manual_seed(0))


def main(arguments: list[str] | None = None) -> int:
    """Complete the stored study on this machine's processors."""
    parser = argparse.ArgumentParser(prog="python -m priormatch.study", description=__doc__)
    parser.add_argument("--table", type=Path, default=TABLE, help="CSV file (%(default)s)")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="(%(default)s)")
    options = parser.parse_args(arguments)
    os.environ["PRIORMATCH_DATA"] = prepare()
    # A forked process would inherit torch's threads in the middle of their work.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.processes, spawn, _end_with_parent) as executor:
        run(grid(), options.table, executor)
    return 0


if __name__ == "__main__":
    sys.exit(main())
