import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from small_world import TINY, in_place_of_mnist, pictures
from torch.distributions import kl_divergence

from priormatch import line
from priormatch.data import Digits, Source, binarized, source
from priormatch.evidence import kl_on_grid
from priormatch.experiments import digit_classifier, pretrained, study, uniform_interval
from priormatch.experiments.table import columns, is_of
from priormatch.recipe import build
from priormatch.training import Epoch, Trained

HISTORY = Epoch(1, 0.0, 0.0, 0.0, 0.0, 0.0)
# Small steps: densities far out, or on the ends of the interval, would ask for more nodes.
ON_THE_LINE = replace(
    TINY,
    latent_dimension=1,
    epochs=25,
    batch_size=50,
    learning_rate=3e-4,
    min_improvement=1e9,
)


@pytest.fixture
def small_world(monkeypatch, tmp_path):
    """Small recipes, small images in place of MNIST, and an untrained classifier."""
    digits = Digits(pictures(), torch.arange(100) % 10)
    recipes = {"line": ON_THE_LINE, "interval": replace(ON_THE_LINE, beta=2.0)}
    monkeypatch.setattr(pretrained, "RECIPES", recipes)
    models = {
        name: Trained(build(recipe).eval().requires_grad_(False), [HISTORY])
        for name, recipe in recipes.items()
    }
    monkeypatch.setattr(pretrained, "load", models.get)
    monkeypatch.setattr(uniform_interval, "SEEDS", range(2))
    classifier = digit_classifier.DigitClassifier().eval()
    monkeypatch.setattr(digit_classifier, "load", lambda: classifier)
    with in_place_of_mnist(monkeypatch, lambda part: digits, study):
        yield tmp_path


@pytest.mark.slow
def test_the_table_has_a_line_for_each_training_and_its_mismatch_at_equal_epochs(small_world):
    table = replace(uniform_interval.TABLE, file=small_world / "interval.jsonl")
    with ThreadPoolExecutor(1) as executor:
        table.complete(executor, small_world / "trainings")
    order = ["min_improvement", "seed", "beta"]
    rows = table.read().sort_values(order, ascending=[False, True, False], ignore_index=True)
    assert list(zip(rows.beta, rows.seed, rows.min_improvement, strict=True)) == [
        (2.0, 0, 1e9),
        (1.0, 0, 1e9),
        (2.0, 1, 1e9),
        (1.0, 1, 1e9),
        (2.0, 0, 0.0),  # the long training
    ]
    assert rows.trained_epochs.tolist() == [1, 1, 20, 20, 25]  # the first two have names
    earlier = rows.mismatch_after_20_epochs
    assert earlier.isna().tolist() == [True, True, False, False, False]
    assert earlier[2:4].tolist() == pytest.approx(rows.mismatch[2:4].tolist())
    assert earlier[4] != pytest.approx(rows.mismatch[4], rel=1e-6)
    assert (rows.rate > 0).all()
    assert (rows.smallest_rate < rows.rate).all()
    assert (rows.rate_error > 0).all()
    for mass, decoded in zip(rows["mass"], rows.decoded, strict=True):
        assert sum(map(sum, mass)) == pytest.approx(1, abs=1e-4)
        assert (len(mass), len(mass[0]), len(decoded)) == (10, line.BINS, uniform_interval.PLACES)


def test_measures_are_those_of_the_model(small_world):
    vae = build(replace(ON_THE_LINE, posterior="interval")).eval()
    with torch.no_grad():  # narrower than the prior, with densities of zero at the ends
        vae.encoder.network[-1].bias[1] += 1.5
    measures = uniform_interval.measure(vae, nodes=300)
    digits = binarized("train")
    with torch.no_grad():
        rates = kl_divergence(vae.posterior(digits.images), vae.prior)
    assert measures["rate"].value == pytest.approx(rates.mean().item(), rel=1e-5)
    assert measures["smallest_rate"] == pytest.approx(rates.min().item(), rel=1e-5)
    for name, number in (("mismatch", 300), ("mismatch_every_third_node", 100)):
        grid = line.grid_of(vae.prior, number)
        with torch.no_grad():
            posterior = vae.posterior(digits.images)
        density = line.density_by_digit(posterior, digits.labels, grid.nodes.squeeze(1)).sum(0)
        expected = kl_on_grid(density, vae.prior, grid)
        assert measures[name] == pytest.approx(expected, abs=1e-6)
    assert -1e-3 < measures["information_on_the_digit"] < math.log(10)
    assert measures["held_out_kl"].bound == "lower"


def test_the_stored_table_is_small_and_tells_how_it_was_made():
    file = uniform_interval.TABLE.file
    assert file.stat().st_size < 500_000
    told = {"python", "priormatch", "torch", "seconds", "trained_epochs"}
    for one in file.read_text(encoding="utf-8").splitlines():
        assert told <= set(json.loads(one))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["interval", "line"])
def test_the_row_of_a_stored_model_is_what_is_measured_of_it(name):
    """On the processor of the stored row nearly to the bit."""
    if source() is not Source.FULL:
        pytest.skip("the table is made on the full MNIST: set PRIORMATCH_DATA to its folder")
    rows = uniform_interval.TABLE.read()
    (row,) = rows[is_of(rows, pretrained.RECIPES[name])].to_dict("records")
    measured = columns(uniform_interval.measure(pretrained.load(name).model))
    for share, known in zip(measured.pop("mass"), row["mass"], strict=True):
        assert share == pytest.approx(known, abs=1e-5)
    same = [
        digit == known for digit, known in zip(measured.pop("decoded"), row["decoded"], strict=True)
    ]
    assert sum(same) > 0.99 * len(same)
    for cell, value in measured.items():
        near = 0.02 * row.get(f"{cell}_error", 0.05 * abs(value))
        assert value == pytest.approx(row[cell], abs=near), cell
