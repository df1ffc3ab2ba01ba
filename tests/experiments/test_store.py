import pytest
import torch
from torch import nn

from priormatch.data import Source
from priormatch.experiments import store
from priormatch.experiments.store import FallbackModelError


def test_weights_are_kept_in_half_precision_and_come_back_in_single(tmp_path):
    file = tmp_path / "deep" / "model.safetensors"
    model = nn.Linear(30, 20)
    store.save_weights(model, file)
    again = store.load_weights(nn.Linear(30, 20), file)
    for key, weight in model.state_dict().items():
        assert again.state_dict()[key].dtype == torch.float32
        assert torch.equal(again.state_dict()[key], weight.half().float())
    assert not again.training
    assert file.stat().st_size < 2 * 620 + 500
    assert model.weight.dtype == torch.float32, "the caller's model stays as it is"


def test_a_record_comes_back(tmp_path):
    record = {"recipe": {"beta": 0.1}, "history": [{"seconds": 1 / 3}], "note": "Fréchet"}
    store.save_record(record, tmp_path / "deep" / "model.json")
    assert store.load_record(tmp_path / "deep" / "model.json") == record


@pytest.mark.parametrize("kind", ["text", "weights", "checkpoint"])
def test_a_write_that_fails_leaves_the_old_file_and_no_half(tmp_path, monkeypatch, kind):
    def fail(*_, **__):
        raise OSError("no space left")

    file = tmp_path / "file.of.results"
    checkpoint = store.CheckpointFile(file)
    write = {
        "text": lambda words: store.write_whole(file, words),
        "weights": lambda words: store.save_weights(nn.Linear(len(words), 1), file),
        "checkpoint": lambda words: checkpoint.save({"words": words}),
    }[kind]
    write("old")
    monkeypatch.setattr(store.os, "fsync", fail)
    monkeypatch.setattr(store, "save_file", fail)
    before = file.read_bytes()
    with pytest.raises(OSError, match="no space"):
        write("new and longer")
    assert file.read_bytes() == before


def test_results_are_not_made_from_the_fallback(monkeypatch):
    monkeypatch.setattr(store, "source", lambda: Source.FALLBACK)
    with pytest.raises(FallbackModelError, match=r"the table .* PRIORMATCH_DATA"):
        store.require_mnist("the table")
    monkeypatch.setattr(store, "source", lambda: Source.FULL)
    store.require_mnist("the table")


def test_a_checkpoint_is_there_from_its_first_save_to_its_removal(tmp_path):
    checkpoint = store.CheckpointFile(tmp_path / "deep" / "state.checkpoint")
    assert checkpoint.load() is None
    for epoch in (1, 2):
        checkpoint.save({"epoch": epoch, "weights": torch.ones(3)})
    assert checkpoint.load()["epoch"] == 2
    assert str(checkpoint) == str(checkpoint.file)
    checkpoint.remove()
    checkpoint.remove()
    assert checkpoint.load() is None
    assert list(checkpoint.file.parent.iterdir()) == []
