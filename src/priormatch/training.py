"""Training: a recipe in, a model and its history out; the same recipe gives the same model."""

import contextlib
import functools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm.auto import tqdm

from priormatch.data import binarize, binarize_once
from priormatch.distributions import VampPrior
from priormatch.models import VAE, globally_seeded
from priormatch.objectives import bound_parts, bound_parts_in_chunks, penalised_bound_parts
from priormatch.recipe import PSEUDO_INPUTS, Recipe, build
from priormatch.schedules import is_flat, learning_rates, move_averages, rate_weight


class DivergedError(ArithmeticError):
    """The loss is no longer a finite number: lower the learning rate of the recipe."""


class CheckpointMismatchError(ValueError):
    """A checkpoint was written by another recipe: delete it, or name another one."""


@runtime_checkable
class Checkpoint(Protocol):
    """Store of a training's state from epoch to epoch, for instance a file."""

    def load(self) -> dict[str, Any] | None:
        """Return the state that was saved last, if any."""

    def save(self, state: dict[str, Any]) -> None:
        """Store a state in place of the one before; a kill must leave one of them whole."""

    def remove(self) -> None:
        """Delete the state when the training is over."""


class Epoch(NamedTuple):
    """Results of one epoch: means per example, in nats.

    The validation images are binarised once. The number format is that of training; validation is
    in single precision.
    """

    epoch: int
    train_distortion: float
    train_rate: float
    validation_distortion: float
    validation_rate: float
    seconds: float
    number_format: str = "float32"

    @property
    def train_elbo(self) -> float:
        """Mean ELBO over the epoch's batches, while the weights moved, in nats."""
        return -self.train_distortion - self.train_rate

    @property
    def validation_elbo(self) -> float:
        """Mean ELBO of the validation images after the epoch, in nats."""
        return -self.validation_distortion - self.validation_rate


class Trained(NamedTuple):
    """A trained model, in evaluation mode, and the history of its training."""

    model: VAE
    history: list[Epoch]


def fit(
    recipe: Recipe,
    train_images: Float[Tensor, "examples pixels"],
    validation_images: Float[Tensor, "others pixels"],
    *,
    checkpoint: Checkpoint | None = None,
    progress: bool = True,
    after_epoch: Callable[[int, VAE], None] | None = None,
    number_format: torch.dtype = torch.float32,
) -> Trained:
    """Train the VAE of a recipe.

    On the same machine and number of threads, the same recipe, images and number format give the
    same model, to the bit. So does a training that was killed and started again with the same
    `checkpoint`.

    Args:
        recipe: What to train.
        train_images: Grey values in [0, 1], of shape ``(examples, 784)``.
        validation_images: Grey values in [0, 1]; never trained on.
        checkpoint: Store of the state after each epoch; removed when training ends.
        progress: Whether to show a progress bar on stderr.
        after_epoch: Called with the number of finished epochs and the model, first with 0.
        number_format: Format of the layers' matrix products in training, ``torch.float32`` or
            ``torch.bfloat16``; see `bound_parts`. Weights and validation are in single precision.

    Returns:
        The model, in evaluation mode, and its history, one entry per epoch.

    Raises:
        DivergedError: The loss is not finite.
        CheckpointMismatchError: `checkpoint` was written by another recipe.

    Introduced in "The KL term".
    """
    model = build(recipe)
    if isinstance(model.prior, VampPrior):
        chosen = torch.randperm(len(train_images), generator=_generator(recipe))[:PSEUDO_INPUTS]
        # With fewer images than pseudo-inputs, images repeat.
        model.prior.start_from(train_images[chosen[torch.arange(PSEUDO_INPUTS) % len(chosen)]])
    average = AveragedModel(model, multi_avg_fn=functools.partial(move_averages, recipe.ema_decay))
    returned = cast("VAE", average.module) if recipe.ema_decay else model
    optimiser = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate, fused=True)
    batches = max(1, len(train_images) // recipe.batch_size)
    schedule = learning_rates(
        recipe.schedule, optimiser, recipe.learning_rate, recipe.epochs, batches
    )
    parts: dict[str, Any] = {
        "model": model,
        "average": average,
        "optimiser": optimiser,
        "schedule": schedule,
    }
    generator = _generator(recipe)
    history: list[Epoch] = []
    if checkpoint is not None and (state := checkpoint.load()) is not None:
        # A field that was added after the checkpoint was written takes its default.
        if Recipe(**state["recipe"]) != recipe:
            raise CheckpointMismatchError(
                f"{checkpoint} was written by {state['recipe']}, not by {recipe}: "
                "delete it, or name another one."
            )
        for name, part in parts.items():
            part.load_state_dict(state[name])
        generator.set_state(state["generator"])
        history = [Epoch(*row) for row in state["history"]]
    if after_epoch is not None and not history:
        after_epoch(0, returned)
    validation_pixels = _validation_pixels(recipe, validation_images)

    epochs = tqdm(
        range(len(history) + 1, recipe.epochs + 1),
        initial=len(history),
        total=recipe.epochs,
        unit="epoch",
        disable=not progress,
    )
    for epoch in epochs:
        if _is_flat(recipe, history):
            break
        start = time.perf_counter()
        with _seeded_dropout(recipe, generator):
            distortion, rate = _train_epoch(
                recipe,
                epoch,
                model,
                average,
                optimiser,
                schedule,
                train_images,
                batches,
                generator,
                number_format,
            )
        held_out = bound_parts_in_chunks(returned.eval(), validation_pixels, _generator(recipe))
        history.append(
            Epoch(
                epoch,
                distortion,
                rate,
                held_out.distortion.mean().item(),
                held_out.rate.mean().item(),
                time.perf_counter() - start,
                str(number_format).removeprefix("torch."),
            )
        )
        epochs.set_postfix_str(f"validation ELBO {history[-1].validation_elbo:.2f} nats")
        if after_epoch is not None:
            after_epoch(epoch, returned)
        if checkpoint is not None:
            checkpoint.save(
                {
                    "recipe": asdict(recipe),
                    **{name: part.state_dict() for name, part in parts.items()},
                    "generator": generator.get_state(),
                    "history": [tuple(row) for row in history],
                }
            )
    if checkpoint is not None:
        checkpoint.remove()
    return Trained(returned.eval(), history)


def fastest_format(recipe: Recipe) -> torch.dtype:
    """Return the fastest number format on this processor for the matrix products of a training.

    That is bfloat16 where the processor multiplies it natively; elsewhere torch would imitate it,
    slowly. Its rounding of hidden layers moves the means of posteriors: after 20 epochs in two
    dimensions with the ELBO, by 0.037 ± 0.002 of a scale (root mean square). Narrower posteriors
    move by more of their scale. So trainings in one dimension, or with a weight of the rate below
    1, are in single precision.
    """
    narrow = recipe.beta < 1 or recipe.latent_dimension == 1
    # Older versions of torch lack this function.
    known: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    native = known.get("avx512_bf16") or known.get("amx_bf16")
    return torch.bfloat16 if native and not narrow else torch.float32


def _generator(recipe: Recipe) -> torch.Generator:
    return torch.Generator().manual_seed(recipe.seed)


def _train_epoch(
    recipe: Recipe,
    epoch: int,
    model: VAE,
    average: AveragedModel,
    optimiser: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    images: Tensor,
    batches: int,
    generator: torch.Generator,
    number_format: torch.dtype,
) -> tuple[float, float]:
    model.train()
    order = torch.randperm(len(images), generator=generator)
    distortion = rate = 0.0
    for step, batch in enumerate(order[: batches * recipe.batch_size].tensor_split(batches)):
        pixels = images[batch]
        if recipe.pixels == "binarised":
            pixels = binarize(pixels, generator)
        weight = rate_weight(recipe.beta, recipe.kl_warm_up, epoch - 1 + (step + 1) / batches)
        penalty: Tensor | float = 0.0
        if recipe.mmd_weight:
            parts, discrepancy = penalised_bound_parts(model, pixels, generator, number_format)
            penalty = recipe.mmd_weight * discrepancy
        else:
            parts = bound_parts(model, pixels, generator, number_format)
        loss = (parts.distortion + weight * parts.rate).mean() + penalty
        if not math.isfinite(loss.item()):
            raise DivergedError(f"the loss is {loss.item()}: lower the learning rate of {recipe}")
        optimiser.zero_grad()
        loss.backward()
        if recipe.clip_grad_norm:
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_grad_norm)
        optimiser.step()
        schedule.step()
        if recipe.ema_decay:
            average.update_parameters(model)
        distortion += parts.distortion.mean().item() / batches
        rate += parts.rate.mean().item() / batches
    return distortion, rate


def _seeded_dropout(
    recipe: Recipe, generator: torch.Generator
) -> contextlib.AbstractContextManager[None]:
    """Seed torch's global generator, the only one that dropout uses, from the training's own."""
    if not recipe.encoder_dropout:
        return contextlib.nullcontext()
    return globally_seeded(int(torch.randint(2**63 - 1, (), generator=generator)))


def _is_flat(recipe: Recipe, history: list[Epoch]) -> bool:
    losses = [row.validation_distortion + recipe.beta * row.validation_rate for row in history]
    enough = recipe.min_improvement
    return enough > 0 and is_flat(losses, enough, recipe.kl_warm_up)


def _validation_pixels(recipe: Recipe, images: Tensor) -> Tensor:
    """Binarise once, alike for every recipe, so that validation curves can be compared."""
    if recipe.pixels == "grayscale":
        return images
    return binarize_once(images)
