"""The stored history of the question's VAE: where a few hundred codes lay while it was trained.

``python -m priormatch.explorers.history`` begins to train the model of the question again, and
stores the posteriors of some test images at chosen epochs, with the rate and the mismatch of that
moment. The last epoch is that of the stored model. It can be killed at any moment and goes on.
"""

import contextlib
import sys
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from priormatch.data import PARTS, binarized, load_mnist
from priormatch.distributions import AggregatedPosterior
from priormatch.divergences import kl_from_prior_per_dimension
from priormatch.estimate import Estimate, average
from priormatch.experiments import pretrained, store
from priormatch.mismatch import held_out_kl, in_sample_kl
from priormatch.models import VAE, draw, encode
from priormatch.training import build, fit

STORED = store.MODELS / "question-history.safetensors"
"""The stored history."""

NAME = "question"
EPOCHS = (0, 1, 2, 3, 5, 8, 13, 20, 35, 50, 70, 100)
"""Finished epochs at which the model is measured; the last one is the stored model's."""

EVERY = 20
"""Every so many test images have their codes stored: 500 of 10,000."""

DRAWS = 5_000


class _Enough(Exception):
    """No error: what is wanted of a training is kept, and it may end."""


def train(snapshots: Path) -> None:
    """Train the model of the question, and store its weights at each of `EPOCHS` but the last.

    Args:
        snapshots: Folder of ``<epoch>.safetensors``, and of the state of an unfinished training.

    Raises:
        FallbackModelError: Only the fallback digits are there.
    """
    store.require_mnist("the history of a training")
    snapshots.mkdir(parents=True, exist_ok=True)

    def save_snapshot(epoch: int, model: VAE) -> None:
        if epoch in EPOCHS:
            store.save_weights(model, snapshots / f"{epoch}.safetensors")
        if epoch == EPOCHS[-2]:
            raise _Enough

    if not (snapshots / f"{EPOCHS[-2]}.safetensors").exists():
        with contextlib.suppress(_Enough):
            fit(
                pretrained.RECIPES[NAME],
                load_mnist("train").images,
                load_mnist("validation").images,
                checkpoint=store.CheckpointFile(snapshots / f"{NAME}.checkpoint"),
                after_epoch=save_snapshot,
            )


@torch.no_grad()
def snapshot(vae: VAE) -> tuple[dict[str, Estimate], dict[str, Float[Tensor, "examples 2"]]]:
    """Measure a model of one moment of its training.

    Returns:
        Rate, in-sample KL and held-out KL in nats; and means, scales and one draw of the
        posteriors of every 20th test image, with the same noise at every moment.
    """
    generator = torch.Generator().manual_seed(0)
    pixels = {part: binarized(part).images for part in PARTS}
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


def save(snapshots: Path, file: Path = STORED) -> None:
    """Measure each snapshot and write the history: codes in half precision, measures as they are.

    Args:
        snapshots: Folder that `train` has filled.
        file: Where the history goes.
    """
    moments = []
    recipe = pretrained.RECIPES[NAME]
    for epoch in EPOCHS:
        final = epoch == recipe.epochs
        weights = (
            store.MODELS / f"{NAME}.safetensors" if final else snapshots / f"{epoch}.safetensors"
        )
        moments.append(snapshot(store.load_weights(build(recipe), weights)))
        print(f"epoch {epoch}:", *(f"{k} {v}" for k, v in moments[-1][0].items()), flush=True)
    tensors = {
        name: torch.stack([some[name] for _, some in moments]).half()
        for name in ("means", "scales", "codes")
    }
    for name in moments[0][0]:
        estimates = [measures[name] for measures, _ in moments]
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
    """Train, measure and store."""
    snapshots = store.MODELS / "question-checkpoints"
    train(snapshots)
    save(snapshots)
    return 0


if __name__ == "__main__":
    sys.exit(main())
