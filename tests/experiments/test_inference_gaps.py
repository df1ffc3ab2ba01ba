import functools
import math
from dataclasses import replace

import pytest
from small_world import TINY, only_a_gaussian, small_images

from priormatch import inference_gap, measurement
from priormatch.experiments import inference_gaps, study
from priormatch.experiments.inference_gaps import measure
from priormatch.inference_gap import refine
from priormatch.recipe import build


@pytest.fixture
def small_world(monkeypatch):
    monkeypatch.setattr(inference_gaps, "fit_best", only_a_gaussian)
    monkeypatch.setattr(inference_gap, "refine", functools.partial(refine, steps=2))
    monkeypatch.setattr(inference_gaps, "_IMAGES", 10)
    with small_images(monkeypatch, 300):
        yield


@pytest.mark.parametrize("posterior", ["gaussian", "full covariance"])
@pytest.mark.slow
def test_a_model_is_measured_as_the_study_measures_it(small_world, posterior, monkeypatch):
    model = build(replace(TINY, posterior=posterior)).eval().requires_grad_(False)
    found = measure(model)
    assert found == measure(model)
    for part in ("train", "test"):
        names = [f"{part}_{name}" for name in ("gap", "refined_gap", "diagonal_gap", "full_gap")]
        of_part = [found[name].value for name in names]
        assert of_part[0] >= of_part[1]
        assert of_part[2] >= of_part[3] > -0.1
        assert all(found[name].standard_error > 0 for name in names)
    if posterior == "gaussian":
        monkeypatch.setattr(measurement, "fit_best", only_a_gaussian)
        by_study = study.measure(model, draws=300)
        for name in ("train_rate", "test_rate", "train_elbo", "test_elbo"):
            assert found[name].value == pytest.approx(by_study[name].value, rel=1e-6)
        one, other = found["density_bound"], by_study["density_bound"]
        apart = math.hypot(one.standard_error, other.standard_error)
        assert abs(one.value - other.value) < 5 * apart


@pytest.mark.slow
def test_a_row_holds_the_recipe_and_the_measures_of_its_converged_model(small_world, tmp_path):
    recipe = replace(TINY, posterior="full covariance")
    (row,) = inference_gaps.train_and_measure(recipe, tmp_path)
    assert {name: row[name] for name in vars(recipe)} == vars(recipe)
    found = measure(study.train_or_load(recipe, tmp_path).converged)
    for name in ("test_gap", "train_full_gap", "density_bound"):
        assert (row[name], row[f"{name}_error"]) == (found[name].value, found[name].standard_error)
    assert row["density"] == "Gaussian"
