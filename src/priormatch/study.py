"""The study behind the chapters: a grid of recipes and seeds, one row of measures for each.

``python -m priormatch.study`` (``make study``) trains what ``results/study.csv`` lacks. It can be
killed at any moment: finished rows stay, and an unfinished training goes on from its last epoch.
"""

import argparse
import hashlib
import json
import multiprocessing
import multiprocessing.connection
import os
import platform
import signal
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor, as_completed
from dataclasses import asdict, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import get_args

import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from priormatch import zoo
from priormatch.aggregated import AggregatedPosterior
from priormatch.data import Part, binarized, load_mnist, prepare
from priormatch.densities import fit_best
from priormatch.evidence import (
    average_bounds,
    exact_inference_in_the_plane,
    importance_bounds,
)
from priormatch.mismatch import (
    Estimate,
    active_units,
    average,
    classifier_test,
    dimension_wise_kl,
    held_out_kl,
    hole_share,
    in_sample_kl,
    moment_bound,
    radius,
    rate_per_dimension,
    reverse_kl,
    sliced_wasserstein,
    thin_share,
    total_correlation,
)
from priormatch.models import VAE, draw
from priormatch.objectives import bound_parts_in_chunks, encode
from priormatch.stored import RESULTS
from priormatch.training import Epoch, Recipe, Trained, fit

TABLE = RESULTS / "study.csv"
"""The stored study."""

MODELS = TABLE.with_name("study-models")
"""The trained models of the study: kept, so that a new measure needs no new training."""

SEEDS = range(5)
EQUAL_EPOCHS = 20
"""Epochs after which every model of the study is measured, whether it has converged or not."""

STAGES = ("equal epochs", "converged")

_BASE = Recipe(schedule="inverse root", gradient_norm=100.0, weight_average=0.999, flat=1.0)


def fastest_format(recipe: Recipe) -> torch.dtype:
    """Return the format in which this processor multiplies the matrices of a training fastest.

    That is bfloat16 where the processor multiplies it by itself; elsewhere torch would imitate it,
    slowly. It rounds hidden layers, and so moves the means of posteriors: after 20 epochs, as root
    mean square over 1,000 test images and mean of five seeds, by 0.037 ± 0.002 of a scale in two
    dimensions with the ELBO, but by 0.17 ± 0.05 in one dimension, and where the rate weighs 0.01 by
    more than half a scale in each seed. Trainings with posteriors that narrow are in single
    precision.
    """
    narrow = recipe.beta < 1 or recipe.latent_dimension == 1
    # Older versions of torch do not tell.
    known: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    native = known.get("avx512_bf16") or known.get("amx_bf16")
    return torch.bfloat16 if native and not narrow else torch.float32


def grid() -> list[Recipe]:
    """Return the recipes of the study, one seed of each before the next seed of any."""
    dimensions = [
        replace(_BASE, latent_dimension=latent, encoder_depth=depth)
        for depth in (2, 3)
        for latent in (2, 3, 5, 10, 20, 50)
    ]
    beta = [replace(_BASE, beta=beta) for beta in (0.01, 0.1, 3.0, 10.0, 30.0, 100.0)]
    encoder = [
        replace(_BASE, latent_dimension=latent, encoder_depth=depth, encoder_width=width)
        for latent in (2, 10)
        for depth, width in ((1, 500), (4, 500), (2, 100), (2, 1000))
    ]
    cells = [*dimensions, *beta, *encoder]
    return [replace(cell, seed=seed) for seed in SEEDS for cell in cells]


def trained(recipe: Recipe, models: Path) -> tuple[dict[str, VAE], list[Epoch]]:
    """Return the models of a recipe and the history of its training; train them if need be.

    A training that was killed goes on from its last epoch.

    Args:
        recipe: What to train.
        models: Folder that keeps the models, and the states of unfinished trainings.

    Returns:
        The models by stage, ``"equal epochs"`` and ``"converged"``, and an entry an epoch.
    """
    models.mkdir(parents=True, exist_ok=True)
    name = _name(recipe)
    files = {stage: models / f"{name}-{stage.replace(' ', '-')}.safetensors" for stage in STAGES}
    record = models / f"{name}.json"
    if not record.exists():

        def keep(epoch: int, model: VAE) -> None:
            if epoch == EQUAL_EPOCHS:
                zoo.save_weights(model, files["equal epochs"])

        model, history = fit(
            recipe,
            load_mnist("train").images,
            load_mnist("validation").images,
            checkpoint=models / f"{name}.checkpoint",
            progress=False,
            after_epoch=keep,
            number_format=fastest_format(recipe),
        )
        zoo.save_weights(model, files["converged"])
        unfinished = record.with_suffix(".unfinished")
        unfinished.write_text(json.dumps([entry._asdict() for entry in history]) + "\n")
        unfinished.replace(record)
    kept = {stage: zoo.load_weights(recipe, file) for stage, file in files.items()}
    return kept, [Epoch(**entry) for entry in json.loads(record.read_text())]


def keep(names: Sequence[str], models: Path = MODELS, store: Path = zoo.STORE) -> None:
    """Store converged models of the study under their names of `priormatch.zoo`.

    Args:
        names: Keys of `zoo.RECIPES`; what is not among the models is trained.
        models: Folder that keeps the study's models.
        store: Folder of the models that chapters load.
    """
    torch.set_num_threads(1)
    for name in names:
        kept, history = trained(zoo.RECIPES[name], models)
        zoo.keep(name, Trained(kept["converged"], history), store)


def _name(recipe: Recipe) -> str:
    """Return a name that stays the same when recipes get a new field, at its default."""
    changes = {
        field.name: getattr(recipe, field.name)
        for field in fields(Recipe)
        if getattr(recipe, field.name) != field.default
    }
    return hashlib.sha256(json.dumps(changes, sort_keys=True).encode()).hexdigest()[:16]


def measure(vae: VAE, draws: int = 10_000, seed: int = 0) -> dict[str, Estimate | int | str]:
    """Measure a trained model on MNIST binarised once: its bound, and its mismatch from N(0, I).

    Held-out numbers stand twice. Validation images come from the writers of the training images,
    and test images from others, so only the former are draws of what the model was trained on; but
    they also choose the density, so the density bound on them is a little flattered.

    Args:
        vae: A model with a prior N(0, I).
        draws: Draws of the mixture and of the prior; each posterior is drawn once.
        seed: Decides the pixels and the draws, so that models are compared on the same.

    Returns:
        Measures by name. Rates, distortions and divergences are in nats; those of single latent
        dimensions stand in one string, with spaces between them.
    """
    generator = torch.Generator().manual_seed(seed)
    measures: dict[str, Estimate | int | str] = {}
    codes: dict[Part, Tensor] = {}
    for part in get_args(Part):
        parts = bound_parts_in_chunks(vae, binarized(part), generator)
        mixture = AggregatedPosterior(*encode(vae, binarized(part)))
        codes[part] = draw(mixture.posteriors, generator)
        measures[f"{part}_distortion"] = average(parts.distortion)
        measures[f"{part}_rate"] = average(parts.rate)
        measures[f"{part}_elbo"] = average(parts.elbo)
        if part == "train":
            aggregated = mixture
    prior_draws = draw(vae.prior.expand((draws,)), generator)
    fitted = fit_best(codes["train"], codes["validation"], seed)

    # The evidence of every tenth test image: the two halves of the file are of different writers.
    some = binarized("test")[::10]
    bounds = average_bounds(importance_bounds(vae, some, 200, generator))
    measures |= {
        "log_evidence": bounds["log_evidence"],
        "inference_gap": bounds["gap"],
        "effective_draws": bounds["effective_draws"],
    }
    if prior_draws.shape[1] == 2:
        exact = exact_inference_in_the_plane(vae, some)
        measures |= {
            "exact_log_evidence": average(exact.log_evidence),
            "exact_inference_gap": average(exact.gap),
        }

    alone = dimension_wise_kl(aggregated, codes["test"])
    measures |= {
        "in_sample_kl": in_sample_kl(aggregated, vae.prior, draws, generator),
        "held_out_kl": held_out_kl(aggregated, codes["test"], vae.prior),
        "held_out_kl_validation": held_out_kl(aggregated, codes["validation"], vae.prior),
        "moment_bound": moment_bound(codes["test"]),
        "moment_bound_validation": moment_bound(codes["validation"]),
        "density": fitted.name,
        "density_bound": held_out_kl(fitted.density, codes["test"], vae.prior),
        "density_bound_validation": held_out_kl(fitted.density, codes["validation"], vae.prior),
        "dimension_wise_kl": alone.total,
        "kl_of_dimensions": _list(one.value for one in alone.per_dimension),
        "kl_of_dimensions_error": _list(one.standard_error for one in alone.per_dimension),
        "rate_of_dimensions": _list(rate_per_dimension(aggregated).tolist()),
        "total_correlation": total_correlation(fitted.density, aggregated, codes["test"]),
        "reverse_kl": reverse_kl(fitted.density, prior_draws, vae.prior),
        "thin_share": thin_share(fitted.density, prior_draws, vae.prior),
        "hole_share": hole_share(fitted.density, codes["test"], prior_draws),
        "mean_square_radius": radius(codes["test"]).mean_square.estimate,
        "radius_distance": radius(codes["test"]).distance.estimate,
        "sliced_wasserstein": sliced_wasserstein(codes["test"], generator).estimate,
        "active_units": active_units(aggregated),
    }
    classifier = classifier_test(codes["test"], prior_draws[: len(codes["test"])], seed)
    return measures | {
        "classifier_accuracy": classifier.accuracy.estimate,
        "classifier_auc": classifier.auc.estimate,
    }


def _list(numbers: Iterable[float]) -> str:
    return " ".join(f"{number:.5g}" for number in numbers)


def rows(recipe: Recipe, models: Path, draws: int = 10_000) -> list[dict[str, object]]:
    """Train a recipe in this process on one thread, and return its rows of the table.

    Args:
        recipe: What to train.
        models: Folder that keeps the models, and the states of unfinished trainings.
        draws: Draws of the Monte Carlo measures.

    Returns:
        A row for each stage: the recipe, how it was trained, and each measure with its standard
        error (``<measure>_error``) and, where it has one, its floor (``<measure>_floor``).
    """
    torch.set_num_threads(1)
    kept, history = trained(recipe, models)
    return [
        {
            **asdict(recipe),
            "stage": stage,
            **_record(history if stage == "converged" else history[:EQUAL_EPOCHS]),
            **_cells(measure(model, draws)),
        }
        for stage, model in kept.items()
    ]


def _record(history: list[Epoch]) -> dict[str, object]:
    return {
        "trained_epochs": len(history),
        "gain_of_10_epochs": history[-1].validation_elbo - history[-11:][0].validation_elbo,
        "seconds": round(sum(epoch.seconds for epoch in history)),
        "number_format": "+".join(sorted({epoch.number_format for epoch in history})),
        "python": platform.python_version(),
        **{package: version(package) for package in ("priormatch", "torch")},
    }


def _cells(measures: dict[str, Estimate | int | str]) -> dict[str, object]:
    cells: dict[str, object] = {}
    for name, measured in measures.items():
        if isinstance(measured, Estimate):
            cells[name] = measured.value
            cells[f"{name}_error"] = measured.standard_error
            if measured.floor is not None:
                cells[f"{name}_floor"] = measured.floor
        else:
            cells[name] = measured
    return cells


def run(
    recipes: Sequence[Recipe], table: Path, models: Path, executor: Executor, draws: int = 10_000
) -> None:
    """Train and measure the recipes that the table lacks, and write their rows as they finish.

    Args:
        recipes: The grid.
        table: CSV file, made if it is not there; rows are added at its end.
        models: Folder that keeps the models, and the states of unfinished trainings.
        executor: Where to train: processes of this machine, or a cluster's.
        draws: Draws of the Monte Carlo measures.

    Raises:
        ExceptionGroup: Trainings or measures failed; those of the other recipes are in the table.
    """
    done = read(table)
    missing = [recipe for recipe in recipes if not _holds(done, recipe)]
    futures = [executor.submit(rows, recipe, models, draws) for recipe in missing]
    failed: list[Exception] = []
    try:
        for future in tqdm(as_completed(futures), total=len(futures), unit="model"):
            try:
                new = future.result()
            except BrokenExecutor:
                raise
            except Exception as error:  # whatever it is, the others go on
                failed.append(error)
            else:
                done = extend(done, new, table)
    finally:
        # What is stopped must not train on, unseen and unrecorded.
        for future in futures:
            future.cancel()
    if failed:
        raise ExceptionGroup(f"{len(failed)} of {len(futures)} models have no rows", failed)


def extend(done: pd.DataFrame, new: Sequence[dict[str, object]], table: Path) -> pd.DataFrame:
    """Return a table with new rows, after it has replaced its file whole: a kill leaves one."""
    done = pd.concat([done, pd.DataFrame(new)], ignore_index=True)
    unfinished = table.with_suffix(".unfinished")
    done.to_csv(unfinished, index=False, float_format="%.7g")
    unfinished.replace(table)
    return done


def read(table: Path = TABLE) -> pd.DataFrame:
    """Return the rows of a study; none if the file is not there.

    Introduced in "The KL term".
    """
    if not table.exists():
        return pd.DataFrame()
    done = pd.read_csv(table)
    # A table from before a recipe had a field was made with its default.
    later = [field for field in fields(Recipe) if field.name not in done]
    return done.assign(**{field.name: field.default for field in later})


def is_of(table: pd.DataFrame, recipe: Recipe) -> pd.Series:
    """Return for each row of a table that holds recipes whether it is of this one."""
    same = pd.Series(True, index=table.index)
    if not table.empty:
        for field in fields(Recipe):
            same &= table[field.name] == getattr(recipe, field.name)
    return same


def _holds(done: pd.DataFrame, recipe: Recipe) -> bool:
    """Whether a table has the rows of a recipe."""
    return not done.empty and set(done.loc[is_of(done, recipe), "stage"]) == set(STAGES)


def _end_with_parent() -> None:
    """Make this worker end when its parent does: a killed study must not go on unseen."""
    # Ctrl-C reaches workers, too. Python would end their task alone, and they would take another.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent.sentinel,), daemon=True).start()


def _end_after(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


def main(arguments: list[str] | None = None) -> int:
    """Complete the stored study on this machine's processors."""
    parser = argparse.ArgumentParser(prog="python -m priormatch.study", description=__doc__)
    parser.add_argument("--table", type=Path, default=TABLE, help="CSV file (%(default)s)")
    parser.add_argument("--models", type=Path, default=MODELS, help="folder (%(default)s)")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="(%(default)s)")
    parser.add_argument(
        "--keep", nargs="+", metavar="name", help="store these models for the chapters, and end"
    )
    options = parser.parse_args(arguments)
    os.environ["PRIORMATCH_DATA"] = prepare()
    zoo.require_mnist("the study")
    if options.keep:
        keep(options.keep, options.models)
        return 0
    # A forked process would inherit torch's threads in the middle of their work.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.processes, spawn, _end_with_parent) as executor:
        run(grid(), options.table, options.models, executor)
    return 0


if __name__ == "__main__":
    sys.exit(main())
