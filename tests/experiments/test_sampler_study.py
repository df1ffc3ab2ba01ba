import time
from dataclasses import replace

import pandas as pd
import pytest
from small_world import small_images

from priormatch import samplers
from priormatch.data import binarized
from priormatch.densities import fit_flow, fit_gaussian
from priormatch.distributions import AggregatedPosterior
from priormatch.experiments import digit_classifier, sampler_study, study
from priormatch.mismatch import active_units
from priormatch.models import encode
from priormatch.recipe import Recipe

TINY = Recipe(encoder_width=8, decoder_width=8, epochs=2, batch_size=20)


@pytest.fixture
def small_world(monkeypatch):
    """Small images in place of MNIST, and samplers and pictures in small numbers."""
    monkeypatch.setattr(samplers, "mixture_sizes", lambda latent: (2,))
    monkeypatch.setattr(samplers, "fit_flow", lambda *given: fit_flow(*given, steps=15))
    monkeypatch.setattr(sampler_study, "PICTURES", 200)
    sampler_study.reference.cache_clear()
    with small_images(monkeypatch, 400):
        yield
    sampler_study.reference.cache_clear()


REAL = ["validation images", "test images", "training images"]
SAMPLERS = ["prior", "Gaussian", "mixture of 2", "flow", "training posteriors"]
QUALITY = ["frechet_distance", "precision", "recall", "confidence", "nearest_distance"]


@pytest.mark.parametrize("latent", [2, 3])
@pytest.mark.slow
def test_every_sampler_has_a_row_with_its_gain_and_its_pictures(small_world, tmp_path, latent):
    recipe = replace(TINY, latent_dimension=latent)
    table = pd.DataFrame(sampler_study.train_and_measure(recipe, tmp_path)).set_index("sampler")
    assert list(table.index[:6]) == [*SAMPLERS, "validation posteriors"]
    fitted = table.loc[SAMPLERS[1:]]
    assert (fitted[["gain_error", "seconds_to_fit", "seconds_to_sample"]] > 0).all(axis=None)
    assert table.loc["prior", "evidence_gain"] == 0
    assert table.loc[SAMPLERS[:4], "log_evidence"].notna().all()
    for name in QUALITY:
        assert table[f"{name}_error"].notna().all()
    assert (table[["precision", "recall", "confidence"]] <= 1).all(axis=None)
    # The same codes and fits as the study's: the gain is its density bound.
    model = study.train_or_load(recipe, tmp_path).converged
    codes = sampler_study.encode_digits(model)
    units = active_units(AggregatedPosterior(*encode(model, binarized("test").images)))
    assert (table["active_units"] == units).all()
    density, unseen = fit_gaussian(codes.draws["train"]), codes.draws["test"]
    gain = density.log_prob(unseen) - model.prior.log_prob(unseen)
    assert table.loc["Gaussian", "gain"] == pytest.approx(gain.mean().item(), rel=1e-4)


@pytest.mark.slow
def test_a_model_with_a_vamp_prior_has_its_prior_as_its_sampler(small_world, tmp_path):
    table = pd.DataFrame(sampler_study.train_and_measure(replace(TINY, prior="vamp"), tmp_path))
    assert table["sampler"].tolist() == ["prior", "validation posteriors"]
    assert table["prior"].tolist() == ["vamp", "vamp"]
    assert table["elbo_error"][0] > 0


@pytest.mark.slow
def test_the_first_sampler_is_not_charged_for_loading_the_classifier(
    small_world, tmp_path, monkeypatch
):
    load = digit_classifier.load
    monkeypatch.setattr(digit_classifier, "load", lambda: time.sleep(0.5) or load())
    table = pd.DataFrame(sampler_study.train_and_measure(replace(TINY, prior="vamp"), tmp_path))
    assert table["seconds_to_sample"][0] < 0.4


def test_the_stored_table_has_five_seeds_of_every_row_it_has():
    table = sampler_study.TABLE.read()
    rows = table[~table.sampler.isin(REAL)]
    seeds = rows.groupby(["latent_dimension", "prior", "sampler"])["seed"].nunique()
    assert (seeds == len(study.SEEDS)).all()
    assert {"standard normal", "vamp"} <= set(table.query("latent_dimension == 10").prior)


def test_the_gain_of_the_best_sampler_is_the_density_bound_of_the_study():
    table = sampler_study.TABLE.read().query("prior == 'standard normal'").set_index("seed")
    known = study.TABLE.read().query("stage == 'converged' and beta == 1 and encoder_depth == 2")
    known = known[
        (known.encoder_width == 500) & known.latent_dimension.isin(table.latent_dimension)
    ]
    assert len(known) >= len(study.SEEDS)
    for row in known.itertuples():
        same = (table.latent_dimension == row.latent_dimension) & (table.sampler == row.density)
        gain, error = table[same].loc[row.seed, ["gain", "gain_error"]]
        # The codes are the same draws; another processor fits otherwise by a little.
        assert gain == pytest.approx(row.density_bound, abs=error)
        assert (table[same].loc[row.seed, "active_units"] == row.active_units).all()
