import json

import pytest
import torch
from small_world import in_place_of_mnist, same_weights

from priormatch import data, sample_quality
from priormatch.data import Digits, Source
from priormatch.experiments import digit_classifier, store
from priormatch.experiments.store import FallbackModelError


def bars(examples=400, seed=0):
    """Return grey images whose digit is the place of a bar, which any classifier learns."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (examples,), generator=generator)
    columns = torch.arange(784) % 28
    images = 0.1 + 0.8 * (columns // 2 - 4 == labels[:, None]).float()
    return Digits(images, labels)


def test_a_classifier_learns_to_read_grey_and_binary_pictures():
    classifier = digit_classifier.fit(bars(), epochs=20)
    assert not classifier.training
    unseen = bars(seed=1)
    binary = Digits(torch.bernoulli(unseen.images, generator=torch.Generator()), unseen.labels)
    for digits in (unseen, binary):
        assert sample_quality.is_correct(classifier, digits).mean() > 0.95


def test_the_seed_decides_a_training_and_nothing_else_does():
    digits = bars(100)
    images = digits.images.clone()
    torch.manual_seed(1)
    first = digit_classifier.fit(digits, epochs=1)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert same_weights(first, digit_classifier.fit(digits, epochs=1))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(images, digits.images), "the images of the caller stay grey"
    assert not same_weights(first, digit_classifier.fit(digits, seed=1, epochs=1))


@pytest.fixture
def small_world(monkeypatch):
    monkeypatch.setattr(store, "source", lambda: Source.FULL)
    with in_place_of_mnist(monkeypatch, lambda part: bars(100), digit_classifier):
        yield


def test_a_classifier_is_stored_and_comes_back(small_world, tmp_path, capsys):
    stored = digit_classifier.load(tmp_path)
    assert "training" in capsys.readouterr().out
    again = digit_classifier.load(tmp_path)
    assert "training" not in capsys.readouterr().out
    assert same_weights(stored, again)
    assert not again.training
    record = json.loads((tmp_path / f"{digit_classifier.NAME}.json").read_text())
    assert set(record["test_accuracy"]) == {"grayscale", "binarised"}
    assert record["versions"] == store.versions()
    assert (tmp_path / f"{digit_classifier.NAME}.safetensors").stat().st_size < 1e6


def test_the_fallback_digits_never_make_a_stored_classifier(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "source", lambda: Source.FALLBACK)
    with pytest.raises(FallbackModelError, match="PRIORMATCH_DATA"):
        digit_classifier.train(tmp_path)


def test_the_books_classifier_reads_as_its_record_says():
    record = json.loads((store.MODELS / f"{digit_classifier.NAME}.json").read_text())
    assert record["command"] == "python -m priormatch.experiments.digit_classifier"
    assert set(store.versions()) <= set(record["versions"])
    grey, binary = (record["test_accuracy"][pixels] for pixels in ("grayscale", "binarised"))
    assert min(grey["value"], binary["value"]) > 0.985
    test = data.load_mnist("test")
    accuracy = sample_quality.is_correct(digit_classifier.load(), test).mean().item()
    if data.source() is Source.FULL:
        assert accuracy == pytest.approx(grey["value"], abs=5e-4)
    else:
        assert accuracy > 0.98
