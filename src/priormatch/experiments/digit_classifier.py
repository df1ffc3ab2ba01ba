"""Digit classifier: training and storage of the small network that judges pictures.

``python -m priormatch.experiments.digit_classifier`` trains it again and stores it.
"""

from pathlib import Path

import torch
from torch import nn

from priormatch.data import Digits, binarize, binarized, load_mnist
from priormatch.estimate import average
from priormatch.experiments import store
from priormatch.models import globally_seeded
from priormatch.sample_quality import is_correct

NAME = "digit-classifier"
"""Its files in the store are ``digit-classifier.safetensors`` and ``.json``."""


_EPOCHS, _BATCH, _LEARNING_RATE = 12, 250, 3e-3


class DigitClassifier(nn.Sequential):
    """A small convolutional network from images of digits to the logits of the ten classes.

    Pictures may be grey, such as a decoder's means, or binarised. It maps ``(examples, 784)``,
    values in [0, 1], to ``(examples, 10)``.

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


def fit(digits: Digits, seed: int = 0, epochs: int = _EPOCHS) -> DigitClassifier:
    """Train a classifier on digits, half of each batch grey and half binarised anew.

    Args:
        digits: Training images, grey values in [0, 1], and their labels.
        seed: Decides the initial weights, the order of the images and the pixels.
        epochs: Passes over the images.

    Returns:
        The classifier, in evaluation mode.
    """
    with globally_seeded(seed):
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


def train(folder: Path = store.MODELS) -> DigitClassifier:
    """Train the book's classifier, store it with a record of how it was made, and return it.

    Raises:
        FallbackModelError: Only the fallback digits are available.
    """
    store.require_mnist("the digit classifier")
    store.save_weights(fit(load_mnist("train")), folder / f"{NAME}.safetensors")
    stored = load(folder)
    accuracy = {
        "grayscale": average(is_correct(stored, load_mnist("test"))),
        "binarised": average(is_correct(stored, binarized("test"))),
    }
    record = {
        "command": "python -m priormatch.experiments.digit_classifier",
        "epochs": _EPOCHS,
        "batch_size": _BATCH,
        "learning_rate": _LEARNING_RATE,
        "seed": 0,
        "threads": torch.get_num_threads(),
        "versions": store.versions(),
        "test_accuracy": {
            name: {"value": estimate.value, "standard_error": estimate.standard_error}
            for name, estimate in accuracy.items()
        },
    }
    store.save_record(record, folder / f"{NAME}.json")
    return stored


def load(folder: Path = store.MODELS) -> DigitClassifier:
    """Return the stored classifier of digits, in evaluation mode; train it if it is not there.

    Introduced in "The uniform interval".
    """
    file = folder / f"{NAME}.safetensors"
    if not file.exists():
        print(f"{file} is not there: training it")
        return train(folder)
    return store.load_weights(DigitClassifier(), file)


if __name__ == "__main__":
    train()
