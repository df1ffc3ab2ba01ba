"""History of the question's VAE: codes of a few hundred test images during its training.

``python -m priormatch.explorers.history`` trains the model of the question again. It stores the
posteriors of some test images at chosen epochs, with the rate and the mismatch at each. The last of
these epochs is not trained again, but taken from the stored model. The command can be killed at any
moment; given again, it resumes.
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
from priormatch.recipe import build
from priormatch.training import fit

STORED = store.MODELS / "question-history.safetensors"
"""The stored history."""

NAME = "question"
EPOCHS = (0, 1, 2, 3, 5, 8, 13, 20, 35, 50, 70, 100)
"""Finished epochs at which the model is measured; the last one is the stored model's."""

EVERY = 20
"""Spacing of the test images whose codes are stored: 500 of 10,000."""

DRAWS = 5_000


class _Enough(Exception):
    """Signal to end a training once its last snapshot is saved; not an error."""


def train(snapshots: Path) -> None:
    """Train the model of the question, and store its weights at each of `EPOCHS` but the last.

    Args:
        snapshots: Folder of ``<epoch>.safetensors``, and of the state of an unfinished training.

    Raises:
        FallbackModelError: Only the fallback digits are available.
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
    """Measure a model at one epoch of its training.

    Returns:
        Rate, in-sample KL and held-out KL in nats; and means, scales and one draw of the
        posteriors of every 20th test image, with the same noise at every epoch.
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
    """Measure each snapshot and write the history, with its codes in half precision.

    Args:
        snapshots: Folder that `train` has filled.
        file: File of the history.
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
    """Train, measure and store the history; return the exit code."""
    snapshots = store.MODELS / "question-checkpoints"
    train(snapshots)
    save(snapshots)
    return 0


if __name__ == "__main__":
    sys.exit(main())
