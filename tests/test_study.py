import dataclasses
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pytest
import torch
from test_training import pictures

from priormatch import study
from priormatch.data import Digits
from priormatch.study import grid, measure, read, row, run
from priormatch.training import Recipe, build

TINY = Recipe(encoder_width=8, decoder_width=8, epochs=1, batch_size=20)
MEASURES = (
    "train_distortion",
    "train_rate",
    "test_distortion",
    "test_rate",
    "test_elbo",
    "in_sample_kl",
    "held_out_kl",
    "moment_bound",
    "hole_share",
)


@pytest.fixture
def small_world(monkeypatch):
    """Small images in place of MNIST."""
    digits = Digits(pictures(), torch.zeros(100, dtype=torch.int64))
    monkeypatch.setattr(study, "load_mnist", lambda part: digits)
    study._pixels.cache_clear()
    yield
    study._pixels.cache_clear()


def test_a_row_holds_the_recipe_and_every_measure_with_its_error(small_world, tmp_path):
    cells = row(TINY, tmp_path, draws=200)
    assert {name: cells[name] for name in dataclasses.asdict(TINY)} == dataclasses.asdict(TINY)
    for name in MEASURES:
        assert isinstance(cells[name], float)
        assert cells[f"{name}_error"] > 0
    assert cells["in_sample_kl_floor"] >= 0
    assert {"seconds", "python", "torch", "priormatch", "validation_elbo"} <= set(cells)


def test_the_same_model_is_measured_alike(small_world):
    model = build(TINY).eval()
    assert measure(model, draws=200) == measure(model, draws=200)


def test_a_study_trains_what_its_table_lacks(small_world, tmp_path, capsys):
    table = tmp_path / "study.csv"
    recipes = [dataclasses.replace(TINY, seed=seed) for seed in range(3)]
    with ThreadPoolExecutor(1) as executor:
        run(recipes[:2], table, executor, draws=200)
    before = read(table)
    assert before["seed"].tolist() == [0, 1]
    with ThreadPoolExecutor(1) as executor:
        run(recipes, table, executor, draws=200)
    after = read(table)
    assert after["seed"].tolist() == [0, 1, 2]
    pd.testing.assert_frame_equal(after[:2], before)
    assert "1/1" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.unfinished"))


def test_a_table_that_is_not_there_is_empty(tmp_path):
    assert read(tmp_path / "study.csv").empty


def test_a_worker_ends_with_its_parent(tmp_path):
    """A killed study must not leave its workers behind: they would train on, unseen."""
    program = """
import multiprocessing, os, sys, time
from concurrent.futures import ProcessPoolExecutor
from priormatch.study import _end_with_parent
def work():
    open(sys.argv[1], "w").write(str(os.getpid()))
    time.sleep(600)
if __name__ == "__main__":
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, _end_with_parent) as executor:
        executor.submit(work).result()
"""
    script, note = tmp_path / "parent.py", tmp_path / "worker"
    script.write_text(program)
    parent = subprocess.Popen([sys.executable, str(script), str(note)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (note.exists() and note.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    worker = int(note.read_text())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    while time.monotonic() < deadline:
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail("the worker outlived its parent")


def test_the_stored_study_is_complete():
    rows = read()
    for recipe in grid():
        assert study._holds(rows, recipe), f"{recipe} is not in results/study.csv: run make study"
    assert len(rows) == len(grid())
    assert (rows[[f"{name}_error" for name in MEASURES]] > 0).all(axis=None)


def test_every_cell_of_the_grid_has_five_seeds():
    recipes = pd.DataFrame([dataclasses.asdict(recipe) for recipe in grid()])
    settings = [name for name in recipes.columns if name != "seed"]
    assert (recipes.groupby(settings)["seed"].nunique() >= 5).all()
