import math
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from priormatch.data import Source
from priormatch.experiments import foreign_models, store
from priormatch.experiments.foreign_models import (
    MODELS,
    MissingPackageError,
    counts_of,
    load,
    published,
)
from priormatch.experiments.store import FallbackModelError
from priormatch.mismatch import rates


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_foreign_model_is_stored_with_how_it_was_made(name):
    train, held_out = load(name)
    assert len(train) > len(held_out) >= 200
    assert train.latent == held_out.latent == 10
    record = store.load_record(foreign_models.CODES / f"{name}.json")
    assert record["command"] == f"python -m priormatch.experiments.foreign_models {name}"
    assert record["package"] in record["versions"]
    assert record["seconds"] > 60


@pytest.mark.parametrize("name", ["pythae", "pythae-mse"])
def test_the_rate_of_the_codes_is_the_one_that_the_package_itself_computed(name):
    _, held_out = load(name)
    record = store.load_record(foreign_models.CODES / f"{name}.json")
    assert math.isclose(rates(held_out.mixture).mean(), record["test_rate"], rel_tol=1e-3)


def test_stored_codes_have_the_names_that_the_command_reads():
    stored = load_file(foreign_models.CODES / "pythae.safetensors")
    parts = ("train", "test")
    names = {f"{part}_{what}" for part in parts for what in ("means", "log_variances")}
    assert set(stored) == names
    assert all(codes.dtype == torch.float16 for codes in stored.values())


def test_published_factors_are_reciprocals_of_the_deviations():
    table = published().dropna(subset="scaling_factor")
    assert np.allclose(table.scaling_factor * table.deviation, 1)
    assert (published().groupby("model").channels.sum() >= 4).all()
    (diffusion,) = table[table.model == "Stable Diffusion 1"].deviation
    assert math.isclose(diffusion, 5.49, abs_tol=0.001)


def test_counts_are_found_behind_rounded_logarithms():
    generator = torch.Generator().manual_seed(0)
    counts = torch.poisson(torch.full((50, 200), 3.0), generator=generator)
    counts[:, 0] = 1  # the smallest positive count of a cell
    shares = 1e4 * counts / counts.sum(1, keepdim=True)
    logarithms = shares.log1p().mul(1_000).round().div(1_000)
    assert torch.equal(counts_of(logarithms), counts)
    with pytest.raises(ValueError, match="whole multiples"):
        counts_of(torch.tensor([[1.0, 2.0]]))


def test_a_missing_package_is_named_with_the_way_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pythae.models", None)
    with pytest.raises(MissingPackageError, match="pip install pythae"):
        foreign_models.train_with_pythae("bce")


def test_unknown_models_and_fallback_digits_are_refused(monkeypatch, tmp_path):
    with pytest.raises(KeyError, match="there are pythae"):
        load("vae")
    monkeypatch.setattr(store, "source", lambda: Source.FALLBACK)
    with pytest.raises(FallbackModelError, match="pythae"):
        foreign_models.train("pythae", tmp_path)
