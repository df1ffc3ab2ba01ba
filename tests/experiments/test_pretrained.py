import dataclasses
import json

import pytest
import torch
from small_world import TINY, in_place_of_mnist, pictures, same_weights

from priormatch import data
from priormatch.data import Digits, Source
from priormatch.estimate import average
from priormatch.experiments import pretrained, store, study
from priormatch.experiments.pretrained import load, train
from priormatch.experiments.store import FallbackModelError, StaleModelError
from priormatch.objectives import bound_parts_in_chunks
from priormatch.recipe import Recipe, build


@pytest.fixture
def small_world(monkeypatch):
    """One small recipe, and small images in place of MNIST."""
    digits = Digits(pictures(), torch.zeros(100, dtype=torch.int64))
    monkeypatch.setattr(pretrained, "RECIPES", {"tiny": TINY})
    monkeypatch.setattr(study, "EQUAL_EPOCHS", 1)
    monkeypatch.setattr(store, "source", lambda: Source.FULL)
    with in_place_of_mnist(monkeypatch, lambda part: digits, pretrained, study):
        yield


@pytest.mark.parametrize("name", sorted(pretrained.RECIPES))
def test_every_model_of_the_book_is_stored_with_how_it_was_made(name):
    model, history = load(name)
    record = json.loads((store.MODELS / f"{name}.json").read_text())
    assert Recipe(**record["recipe"]) == pretrained.RECIPES[name]
    assert record["command"] == f"python -m priormatch.experiments.pretrained {name}"
    assert record["seconds"] > 60
    assert set(store.versions()) <= set(record["versions"])
    recipe = pretrained.RECIPES[name]
    early = recipe.min_improvement and 20 < len(history) < recipe.epochs
    assert len(history) == recipe.epochs or early
    assert not model.training
    pickles = list(store.MODELS.glob("*.pt"))
    assert not pickles, "weights are stored as safetensors, never as pickles"


def test_the_stored_models_are_small():
    assert sum(file.stat().st_size for file in store.MODELS.glob("*.safetensors")) < 40e6


def test_a_stored_model_comes_back_with_its_weights_in_half_precision(small_world, tmp_path):
    stored = train("tiny", tmp_path)
    again = load("tiny", tmp_path)
    for key, weight in again.model.state_dict().items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, weight.half().float())
        assert torch.equal(weight, stored.model.state_dict()[key])
    assert again.history == stored.history
    assert not list(tmp_path.glob("*.checkpoint"))


def test_a_record_tells_what_made_the_model(small_world, tmp_path):
    stored = train("tiny", tmp_path)
    record = store.load_record(tmp_path / "tiny.json")
    assert Recipe(**record["recipe"]) == TINY
    assert record["versions"] == store.versions()
    assert record["threads"] == torch.get_num_threads()
    assert len(record["history"]) == len(stored.history) == TINY.epochs


def test_models_of_the_study_are_stored_for_the_chapters_without_training(
    small_world, tmp_path, monkeypatch
):
    monkeypatch.setattr(pretrained, "OF_THE_STUDY", {"tiny": TINY})
    kept = study.train_or_load(TINY, tmp_path / "trainings")
    for module in (study, pretrained):
        monkeypatch.setattr(module, "fit", lambda *_, **__: pytest.fail("trained again"))
    model, history = train("tiny", tmp_path / "models", tmp_path / "trainings")
    assert same_weights(model, kept.converged)
    assert history == kept.history


def test_a_missing_model_is_trained_and_that_is_said(small_world, tmp_path, capsys):
    load("tiny", tmp_path)
    assert "training Recipe(" in capsys.readouterr().out
    assert (tmp_path / "tiny.safetensors").exists()
    load("tiny", tmp_path)
    assert "training" not in capsys.readouterr().out


def test_a_model_of_another_recipe_is_refused(small_world, tmp_path, monkeypatch):
    train("tiny", tmp_path)
    monkeypatch.setattr(pretrained, "RECIPES", {"tiny": dataclasses.replace(TINY, beta=3.0)})
    with pytest.raises(StaleModelError, match=r"priormatch\.experiments\.pretrained tiny"):
        load("tiny", tmp_path)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(KeyError, match="question"):
        load("answer")


def test_the_fallback_digits_never_make_a_stored_model(small_world, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "source", lambda: Source.FALLBACK)
    with pytest.raises(FallbackModelError, match="PRIORMATCH_DATA"):
        train("tiny", tmp_path)


def test_the_command_trains_what_it_is_told(small_world, tmp_path, monkeypatch, capsys):
    told = []
    monkeypatch.setattr(pretrained, "train", lambda name: told.append(name))
    assert pretrained.main(["tiny"]) == 0
    assert told == ["tiny"]
    with pytest.raises(SystemExit):
        pretrained.main(["answer"])
    capsys.readouterr()


def test_half_precision_moves_the_bound_less_than_its_error():
    if data.source() is Source.FALLBACK:
        pytest.skip("the full MNIST is not here: set PRIORMATCH_DATA")
    model, history = load("question")
    pixels = data.binarized("validation").images
    elbo = average(bound_parts_in_chunks(model, pixels, torch.Generator().manual_seed(0)).elbo)
    # The history was measured in single precision, on the same pixels and draws.
    assert elbo.value == pytest.approx(history[-1].validation_elbo, abs=0.1)
    assert elbo.standard_error > 0.1
    assert build(pretrained.RECIPES["question"]).training
