"""What a sampler gets: pictures judged by a small classifier of digits that is trained here.

``python -m priormatch.quality`` trains the classifier again and stores it.
"""

import argparse
import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from priormatch.data import Digits, Source, binarize, load_mnist, source
from priormatch.mismatch import average
from priormatch.zoo import STORE, FallbackModelError

NAME = "digit-classifier"
"""Its files in the store are ``digit-classifier.safetensors`` and ``.json``."""

_EPOCHS, _BATCH, _LEARNING_RATE = 12, 250, 3e-3


class DigitClassifier(nn.Sequential):
    """A small convolutional network from images of digits to the logits of the ten classes.

    It reads grey pictures, such as a decoder's means, and binarised ones. Maps
    ``(examples, 784)``, values in [0, 1], to ``(examples, 10)``.

    Source: :cite:t:`lecun1998`, in outline.

    Introduced in "The uniform interval".
    """

    def __init__(self) -> None:
        super().__init__(
            nn.Unflatten(1, (1, 28, 28)),
            nn.Conv2d(1, 16, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(512, 64),
            nn.ReLU(),
            nn.Linear(64, 10),
        )


@torch.no_grad()
def class_probabilities(
    classifier: nn.Module, images: Float[Tensor, "images 784"], chunk: int = 1_000
) -> Float[Tensor, "images 10"]:
    """Return the probabilities that a classifier gives to the ten digits.

    Args:
        classifier: Maps ``(images, 784)`` to ``(images, 10)`` logits.
        images: Grey or binary pictures, values in [0, 1].
        chunk: Images classified at a time.

    Returns:
        Probabilities, of shape ``(images, 10)``; they are not calibrated for decoded pictures.

    Introduced in "The uniform interval".
    """
    return torch.cat([classifier(some).softmax(1) for some in images.split(chunk)])


def fit(digits: Digits, seed: int = 0, epochs: int = _EPOCHS) -> DigitClassifier:
    """Train a classifier on digits, half of each batch grey and half binarised anew.

    Args:
        digits: Training images, grey values in [0, 1], and their labels.
        seed: Decides the initial weights, the order of the images and the pixels.
        epochs: Passes over the images.

    Returns:
        The classifier, in evaluation mode.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = DigitClassifier()
    generator = torch.Generator().manual_seed(seed)
    batches = max(1, len(digits.images) // _BATCH)
    optimiser = torch.optim.Adam(classifier.parameters(), lr=_LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, _LEARNING_RATE, total_steps=epochs * batches, cycle_momentum=False
    )
    for _ in range(epochs):
        order = torch.randperm(len(digits.images), generator=generator)
        for batch in order.tensor_split(batches):
            pixels = digits.images[batch]
            half = len(batch) // 2
            pixels[:half] = binarize(pixels[:half], generator)
            loss = nn.functional.cross_entropy(classifier(pixels), digits.labels[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return classifier.eval()


def right_answers(classifier: nn.Module, digits: Digits) -> Float[Tensor, " examples"]:
    """Return 1 for each image whose digit the classifier names, else 0.

    Args:
        classifier: Maps ``(images, 784)`` to ``(images, 10)`` logits.
        digits: Images, grey or binary, and labels.

    Introduced in "The uniform interval".
    """
    return (class_probabilities(classifier, digits.images).argmax(1) == digits.labels).double()


def train(store: Path = STORE) -> DigitClassifier:
    """Train the book's classifier, store it with a record of how it was made, and return it.

    Raises:
        FallbackModelError: Only the fallback digits are there.
    """
    if source() is Source.FALLBACK:
        raise FallbackModelError(
            "the digit classifier is trained on the full MNIST: set PRIORMATCH_DATA to a folder "
            "that holds it."
        )
    classifier = fit(load_mnist("train"))
    store.mkdir(parents=True, exist_ok=True)
    weights = {key: weight.half() for key, weight in classifier.state_dict().items()}
    save_file(weights, store / f"{NAME}.safetensors")
    stored, test = load(store), load_mnist("test")
    binary = Digits(binarize(test.images, torch.Generator().manual_seed(0)), test.labels)
    accuracy = {
        "grey": average(right_answers(stored, test)),
        "binarised": average(right_answers(stored, binary)),
    }
    record = {
        "command": "python -m priormatch.quality",
        "epochs": _EPOCHS,
        "batch_size": _BATCH,
        "learning_rate": _LEARNING_RATE,
        "seed": 0,
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in ("priormatch", "torch", "torchvision")},
        },
        "test_accuracy": {
            name: {"value": estimate.value, "standard_error": estimate.standard_error}
            for name, estimate in accuracy.items()
        },
    }
    (store / f"{NAME}.json").write_text(json.dumps(record, indent=1) + "\n")
    return stored


def load(store: Path = STORE) -> DigitClassifier:
    """Return the stored classifier of digits, in evaluation mode; train it if it is not there.

    Introduced in "The uniform interval".
    """
    file = store / f"{NAME}.safetensors"
    if not file.exists():
        print(f"{file} is not there: training it")
        return train(store)
    classifier = DigitClassifier()
    classifier.load_state_dict({key: weight.float() for key, weight in load_file(file).items()})
    return classifier.eval()


def main(arguments: list[str] | None = None) -> int:
    """Train and store the classifier of digits."""
    argparse.ArgumentParser(prog="python -m priormatch.quality", description=__doc__).parse_args(
        arguments
    )
    train()
    print((STORE / f"{NAME}.json").read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
