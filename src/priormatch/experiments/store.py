"""Storage of results: folders, weights in half precision, and records of how each was made."""

import contextlib
import json
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from priormatch.data import Source, source

_INSTALLED = Path(__file__).parents[1] / "_results"

RESULTS = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parents[3] / "results"
"""The folder ``results`` of a checkout; in an installed package, the copy that came with it."""

MODELS = RESULTS / "models"
"""Models that the chapters load: weights as safetensors, and a JSON record beside each."""

TRAININGS = RESULTS / "trainings"
"""Trained models of the tables: a local cache, so that a new measure needs no new training."""

Module = TypeVar("Module", bound=nn.Module)


class StaleModelError(ValueError):
    """A stored model does not match the recipe of its name, and must be trained again."""


class FallbackModelError(RuntimeError):
    """Stored results need the full MNIST, and only the fallback digits are available."""


def require_mnist(subject: str) -> None:
    """Raise unless the full MNIST is available.

    Args:
        subject: Name of the result to be made, for the message.

    Raises:
        FallbackModelError: Only the fallback digits are available.
    """
    if source() is Source.FALLBACK:
        raise FallbackModelError(
            f"{subject} is made from the full MNIST: set PRIORMATCH_DATA to a folder that holds it."
        )


def save_weights(model: nn.Module, file: Path) -> None:
    """Write the weights of a model in half precision."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".unfinished")
    save_file({key: weight.half() for key, weight in model.state_dict().items()}, unfinished)
    unfinished.replace(file)


def load_weights(model: Module, file: Path) -> Module:
    """Load stored weights into a model, and return it in evaluation mode."""
    model.load_state_dict({key: weight.float() for key, weight in load_file(file).items()})
    return model.eval()


def save_record(record: dict[str, Any], file: Path) -> None:
    """Write the record of how a model was made, as JSON."""
    write_whole(file, json.dumps(record, indent=1) + "\n")


def load_record(file: Path) -> dict[str, Any]:
    """Return the record of how a model was made."""
    return json.loads(file.read_text(encoding="utf-8"))


def write_whole(file: Path, text: str) -> None:
    """Write a text file atomically: a kill leaves the old file or the new one."""
    with _in_place_of(file) as stream:
        stream.write(text.encode())


@dataclass(frozen=True)
class CheckpointFile:
    """File with the state of an unfinished training, for `priormatch.training.fit`.

    Attributes:
        file: Path of the file; a kill leaves the old state or the new one.
    """

    file: Path

    def load(self) -> dict[str, Any] | None:
        """Return the state that was saved last, if any."""
        return torch.load(self.file, weights_only=True) if self.file.exists() else None

    def save(self, state: dict[str, Any]) -> None:
        """Save a state in place of the previous one."""
        with _in_place_of(self.file) as stream:
            torch.save(state, stream)

    def remove(self) -> None:
        """Delete the file."""
        self.file.unlink(missing_ok=True)

    def __str__(self) -> str:
        return str(self.file)


@contextlib.contextmanager
def _in_place_of(file: Path) -> Iterator[BinaryIO]:
    """Open a temporary file, which replaces another once it is written and closed."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".unfinished")
    with unfinished.open("wb") as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())
    unfinished.replace(file)


def versions() -> dict[str, str]:
    """Return the versions of Python, of this package and of torch."""
    packages = {package: version(package) for package in ("priormatch", "torch")}
    return {"python": platform.python_version(), **packages}
