"""The stored history of the question's VAE: where a few hundred codes lay while it was trained.

``python -m priormatch.explorers.history`` begins to train the model of the question again, as
``python -m priormatch.zoo question`` does, and keeps the posteriors of some test images at chosen
epochs, with the rate and the mismatch of that moment. The last epoch is that of the stored model.
It can be killed at any moment and goes on.
"""

import contextlib
import sys
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from priormatch import zoo
from priormatch.aggregated import AggregatedPosterior
from priormatch.data import Source, binarize, load_mnist, source
from priormatch.divergences import kl_from_prior_per_dimension
from priormatch.mismatch import Estimate, average, held_out_kl, in_sample_kl
from priormatch.models import VAE, draw
from priormatch.objectives import encode
from priormatch.training import fit

STORED = zoo.STORE / "question-history.safetensors"
"""The stored history."""

NAME = "question"
EPOCHS = (0, 1, 2, 3, 5, 8, 13, 20, 35, 50, 70, 100)
"""Finished epochs at which the model is looked at; the last one is the stored model's."""

EVERY = 20
"""Every so many test images have their codes stored: 500 of 10,000."""

DRAWS = 5_000


class _Enough(Exception):
    """No error: what is wanted of a training is kept, and it may end."""


def train(snapshots: Path) -> None:
    """Train the model of the question, and keep its weights at each of `EPOCHS` but the last.

    Args:
        snapshots: Folder of ``<epoch>.safetensors``, and of the state of an unfinished training.

    Raises:
        zoo.FallbackModelError: Only the fallback digits are there.
    """
    if source() is Source.FALLBACK:
        raise zoo.FallbackModelError("a history is of a training on the full MNIST")
    snapshots.mkdir(parents=True, exist_ok=True)

    def keep(epoch: int, model: VAE) -> None:
        if epoch in EPOCHS:
            zoo.save_weights(model, snapshots / f"{epoch}.safetensors")
        if epoch == EPOCHS[-2]:
            raise _Enough

    if not (snapshots / f"{EPOCHS[-2]}.safetensors").exists():
        with contextlib.suppress(_Enough):
            fit(
                zoo.RECIPES[NAME],
                load_mnist("train").images,
                load_mnist("validation").images,
                checkpoint=snapshots / f"{NAME}.checkpoint",
                after_epoch=keep,
            )


@torch.no_grad()
def look(vae: VAE) -> tuple[dict[str, Estimate], dict[str, Float[Tensor, "examples 2"]]]:
    """Measure a model of one moment of its training.

    Returns:
        Rate, in-sample KL and held-out KL in nats; and means, scales and one draw of the
        posteriors of every 20th test image, with the same noise at every moment.
    """
    generator = torch.Generator().manual_seed(0)
    pixels = {
        part: binarize(load_mnist(part).images, torch.Generator().manual_seed(0))
        for part in ("train", "validation", "test")
    }
    aggregated = AggregatedPosterior(*encode(vae, pixels["train"]))
    rates = kl_from_prior_per_dimension(aggregated.means, 2 * aggregated.scales.log()).sum(1)
    unseen = draw(vae.posterior(pixels["validation"]), generator)
    measures = {
        "rate": average(rates),
        "in_sample_kl": in_sample_kl(aggregated, vae.prior, DRAWS, generator),
        "held_out_kl": held_out_kl(aggregated, unseen, vae.prior),
    }
    some = vae.posterior(pixels["test"][::EVERY])
    codes = draw(some, torch.Generator().manual_seed(0))
    return measures, {"means": some.mean, "scales": some.stddev, "codes": codes}


def store(snapshots: Path, file: Path = STORED) -> None:
    """Look at each snapshot and write the history: codes in half precision, measures as they are.

    Args:
        snapshots: Folder that `train` has filled.
        file: Where the history goes.
    """
    looks = []
    recipe = zoo.RECIPES[NAME]
    for epoch in EPOCHS:
        final = epoch == recipe.epochs
        kept = zoo.STORE / f"{NAME}.safetensors" if final else snapshots / f"{epoch}.safetensors"
        looks.append(look(zoo.load_weights(recipe, kept)))
        print(f"epoch {epoch}:", *(f"{k} {v}" for k, v in looks[-1][0].items()), flush=True)
    tensors = {
        name: torch.stack([some[name] for _, some in looks]).half()
        for name in ("means", "scales", "codes")
    }
    for name in looks[0][0]:
        estimates = [measures[name] for measures, _ in looks]
        tensors[name] = torch.tensor([[e.value, e.standard_error] for e in estimates])
    tensors["epochs"] = torch.tensor(EPOCHS, dtype=torch.int32)
    tensors["labels"] = load_mnist("test").labels[::EVERY].to(torch.uint8)
    made_by = {"command": "python -m priormatch.explorers.history", "torch": torch.__version__}
    save_file(tensors, file, metadata=made_by)


def load(file: Path = STORED) -> dict[str, Tensor]:
    """Return the stored history.

    Returns:
        ``epochs`` and ``labels``; ``means``, ``scales`` and ``codes`` of shape
        ``(epochs, examples, 2)``; ``rate``, ``in_sample_kl`` and ``held_out_kl`` of shape
        ``(epochs, 2)``, value and standard error in nats.

    Introduced in "The latent picture".
    """
    return load_file(file)


def main() -> int:
    """Train, look and store."""
    snapshots = zoo.STORE / "question-checkpoints"
    train(snapshots)
    store(snapshots)
    return 0


if __name__ == "__main__":
    sys.exit(main())
