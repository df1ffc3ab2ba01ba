"""Tables of results: rows of measures for each recipe, made by a command that can be killed.

A row holds its whole recipe, so the missing recipes are known. The file is replaced whenever a
recipe is finished, and unfinished trainings resume from their last epoch.
"""

import argparse
import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from priormatch.data import prepare
from priormatch.estimate import Estimate
from priormatch.experiments import store
from priormatch.recipe import Recipe
from priormatch.summaries import Measure

Row = dict[str, object]


@dataclass(frozen=True)
class Table:
    """A stored table, the recipes it is about, and how their rows are made.

    Attributes:
        file: CSV, or JSON lines (``.jsonl``) for cells that are lists.
        recipes: Returns the recipes of the complete table.
        train_and_measure: Returns the rows of a recipe, given the recipe and the folder of trained
            models. It trains the models that are missing there, which may take an hour.
        rows_each: Least number of rows for a recipe; with fewer it is measured again.
        processes: Number of recipes at a time; None for one on each processor.
    """

    file: Path
    recipes: Callable[[], list[Recipe]]
    train_and_measure: Callable[[Recipe, Path], Sequence[Row]]
    rows_each: int = 1
    processes: int | None = None

    def read(self) -> pd.DataFrame:
        """Return the rows; none if there is no file.

        Introduced in "The KL term".
        """
        if not self.file.exists():
            return pd.DataFrame()
        if self.file.suffix == ".jsonl":
            lines = self.file.read_text(encoding="utf-8").splitlines()
            rows = pd.DataFrame([json.loads(line) for line in lines])
        else:
            rows = pd.read_csv(self.file)
        # Rows older than a field of the recipe were made with its default.
        later = [field for field in fields(Recipe) if field.name not in rows]
        return rows.assign(**{field.name: field.default for field in later})

    def write(self, rows: pd.DataFrame) -> None:
        """Replace the file atomically."""
        if self.file.suffix == ".jsonl":
            records = (row.dropna().to_dict() for _, row in rows.astype(object).iterrows())
            text = "".join(json.dumps(record) + "\n" for record in records)
        else:
            text = rows.to_csv(index=False, float_format="%.7g")
        store.write_whole(self.file, text)

    def lacks(self, recipe: Recipe, rows: pd.DataFrame) -> bool:
        """Return whether rows of a recipe are missing."""
        return bool(is_of(rows, recipe).sum() < self.rows_each)

    def complete(self, executor: Executor, trainings: Path = store.TRAININGS) -> None:
        """Train and measure the missing recipes, and write their rows as they are finished.

        Args:
            executor: Executor of the trainings: processes of this machine, or of a cluster.
            trainings: Folder of the trained models, and of the states of unfinished trainings.

        Raises:
            ExceptionGroup: Some recipes failed; the rows of the others are in the table.
        """
        rows = self.read()
        missing = {
            executor.submit(_on_one_thread, self.train_and_measure, recipe, trainings): recipe
            for recipe in self.recipes()
            if self.lacks(recipe, rows)
        }
        failed: list[Exception] = []
        try:
            for future in tqdm(as_completed(missing), total=len(missing), unit="recipe"):
                try:
                    new = future.result()
                except BrokenExecutor:
                    raise
                except Exception as error:  # one failure must not stop the others
                    failed.append(error)
                else:
                    others = rows[~is_of(rows, missing[future])]
                    rows = pd.concat([others, pd.DataFrame([*new])], ignore_index=True)
                    self.write(rows)
        finally:
            # Cancel pending work, or workers keep training after Ctrl-C.
            for future in missing:
                future.cancel()
        if failed:
            raise ExceptionGroup(f"{len(failed)} of {len(missing)} recipes have no rows", failed)

    def main(self, description: str, arguments: list[str] | None = None) -> int:
        """Complete the table from the command line, with a progress bar; return the exit code."""
        parser = argparse.ArgumentParser(description=description)
        file, processes = self.file, self.processes or os.cpu_count()
        parser.add_argument("--table", type=Path, default=file, help="file (%(default)s)")
        parser.add_argument(
            "--trainings",
            type=Path,
            default=store.TRAININGS,
            help="folder that keeps the trained models (%(default)s)",
        )
        parser.add_argument("--processes", type=int, default=processes, help="(%(default)s)")
        options = parser.parse_args(arguments)
        os.environ["PRIORMATCH_DATA"] = prepare()
        store.require_mnist(f"the table {options.table.name}")
        # A forked process would inherit torch's threads in the middle of their work.
        spawn = multiprocessing.get_context("spawn")
        table = Table(options.table, self.recipes, self.train_and_measure, self.rows_each)
        with ProcessPoolExecutor(options.processes, spawn, _end_with_parent) as executor:
            table.complete(executor, options.trainings)
        return 0


def is_of(rows: pd.DataFrame, recipe: Recipe) -> pd.Series:
    """Return a mask of the rows made by a recipe."""
    same = pd.Series(True, index=rows.index)
    if not rows.empty:
        for field in fields(Recipe):
            recorded, wanted = rows[field.name], getattr(recipe, field.name)
            if isinstance(wanted, float):  # CSV keeps seven digits
                same &= np.isclose(recorded, wanted, rtol=1e-6, atol=0)
            else:
                same &= recorded == wanted
    return same


def columns(measures: Mapping[str, Measure]) -> Row:
    """Return measures as cells of a row: value, ``<name>_error`` and, if any, ``<name>_floor``.

    Numbers of single latent dimensions share one cell, separated by spaces.
    """
    cells: Row = {}
    for name, measured in measures.items():
        if isinstance(measured, Estimate):
            cells[name] = measured.value
            cells[f"{name}_error"] = measured.standard_error
            if measured.floor is not None:
                cells[f"{name}_floor"] = measured.floor
        elif isinstance(measured, tuple):
            numbers = [one.value if isinstance(one, Estimate) else one for one in measured]
            cells[name] = " ".join(f"{number:.5g}" for number in numbers)
            errors = [one.standard_error for one in measured if isinstance(one, Estimate)]
            if errors:
                cells[f"{name}_error"] = " ".join(f"{error:.5g}" for error in errors)
        else:
            cells[name] = measured
    return cells


def _on_one_thread(
    train_and_measure: Callable[[Recipe, Path], Sequence[Row]], recipe: Recipe, trainings: Path
) -> Sequence[Row]:
    torch.set_num_threads(1)
    return train_and_measure(recipe, trainings)


def _end_with_parent() -> None:
    """End this worker when its parent ends: a killed study must not keep training unseen."""
    # Ctrl-C reaches workers, too. By default it ends only their task, and they take the next.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent.sentinel,), daemon=True).start()


def _end_after(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)
