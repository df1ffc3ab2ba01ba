import json

import pytest
import torch
from test_training import pictures
from torch import nn

from priormatch import data, quality
from priormatch.data import Digits, Source
from priormatch.zoo import STORE, FallbackModelError


def bars(examples=400, seed=0):
    """Return grey images whose digit is the place of a bar, which any classifier learns."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (examples,), generator=generator)
    columns = torch.arange(784) % 28
    images = 0.1 + 0.8 * (columns // 2 - 4 == labels[:, None]).float()
    return Digits(images, labels)


def same_weights(one, other):
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(first, second) for first, second in pairs)


def test_a_classifier_learns_to_read_grey_and_binary_pictures():
    classifier = quality.fit(bars(), epochs=20)
    assert not classifier.training
    unseen = bars(seed=1)
    binary = Digits(torch.bernoulli(unseen.images, generator=torch.Generator()), unseen.labels)
    for digits in (unseen, binary):
        assert quality.right_answers(classifier, digits).mean() > 0.95


def test_the_seed_decides_a_training_and_nothing_else_does():
    digits = bars(100)
    images = digits.images.clone()
    torch.manual_seed(1)
    first = quality.fit(digits, epochs=1)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert same_weights(first, quality.fit(digits, epochs=1))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(images, digits.images), "the images of the caller stay grey"
    assert not same_weights(first, quality.fit(digits, seed=1, epochs=1))


def test_probabilities_add_up_and_chunks_change_nothing():
    classifier = quality.fit(bars(100), epochs=1)
    images = pictures(25)
    whole = quality.class_probabilities(classifier, images)
    assert whole.shape == (25, 10)
    torch.testing.assert_close(whole.sum(1), torch.ones(25))
    torch.testing.assert_close(quality.class_probabilities(classifier, images, chunk=7), whole)


def test_right_answers_are_counted_against_the_labels():
    class Constant(nn.Module):
        def forward(self, images):
            return torch.eye(10)[torch.full((len(images),), 3)]

    digits = Digits(torch.zeros(4, 784), torch.tensor([3, 1, 3, 3]))
    assert quality.right_answers(Constant(), digits).tolist() == [1, 0, 1, 1]


def test_a_classifier_is_stored_and_comes_back(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(quality, "load_mnist", lambda part: bars(100))
    monkeypatch.setattr(quality, "source", lambda: Source.FULL)
    stored = quality.load(tmp_path)
    assert "training" in capsys.readouterr().out
    again = quality.load(tmp_path)
    assert "training" not in capsys.readouterr().out
    assert same_weights(stored, again)
    assert not again.training
    record = json.loads((tmp_path / f"{quality.NAME}.json").read_text())
    assert set(record["test_accuracy"]) == {"grey", "binarised"}
    assert (tmp_path / f"{quality.NAME}.safetensors").stat().st_size < 1e6


def test_the_fallback_digits_never_make_a_stored_classifier(tmp_path, monkeypatch):
    monkeypatch.setattr(quality, "source", lambda: Source.FALLBACK)
    with pytest.raises(FallbackModelError, match="PRIORMATCH_DATA"):
        quality.train(tmp_path)


def test_the_books_classifier_reads_as_its_record_says():
    record = json.loads((STORE / f"{quality.NAME}.json").read_text())
    assert record["command"] == "python -m priormatch.quality"
    assert set(record["versions"]) == {"python", "priormatch", "torch", "torchvision"}
    grey, binary = (record["test_accuracy"][pixels] for pixels in ("grey", "binarised"))
    assert min(grey["value"], binary["value"]) > 0.985
    test = data.load_mnist("test")
    accuracy = quality.right_answers(quality.load(), test).mean().item()
    if data.source() is Source.FULL:
        assert accuracy == pytest.approx(grey["value"], abs=5e-4)
    else:
        assert accuracy > 0.98
