"""Training: a recipe in, a model and its history out; the same recipe gives the same model."""

import contextlib
import functools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm.auto import tqdm

from priormatch.data import DataSet, binarize, binarize_once
from priormatch.distributions import VampPrior
from priormatch.models import (
    VAE,
    BernoulliLikelihood,
    Centre,
    FullCovariancePosterior,
    GaussianLikelihood,
    GaussianPosterior,
    IntervalPosterior,
    convolutional_decoder,
    convolutional_encoder,
    globally_seeded,
    multilayer_perceptron,
    standard_normal,
    uniform_interval,
)
from priormatch.objectives import bound_parts, bound_parts_in_chunks, penalised_bound_parts
from priormatch.schedules import Schedule, is_flat, learning_rates, move_averages, rate_weight

PIXELS = 784

# Components of a VampPrior.
_PSEUDO_INPUTS = 200

_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "softplus": nn.Softplus}


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


@dataclass(frozen=True)
class Recipe:
    """All settings of a training, in the field's terms; the defaults are the question's VAE.

    Attributes:
        latent_dimension: Number of latent dimensions d.
        encoder_depth: Hidden layers of the encoder.
        encoder_width: Units of each of them.
        decoder_depth: Hidden layers of the decoder.
        decoder_width: Units of each of them.
        activation: Nonlinearity between the layers.
        pixels: ``"binarised"`` draws fresh binary pixels at every use; ``"grayscale"`` trains on
            the cross-entropy of grey values, as many tutorials do; it is no likelihood.
        beta: Weight of the rate in the loss; 1 is the ELBO.
        kl_warm_up: Epochs over which that weight rises linearly from 0 to `beta`, step by step.
        epochs: Passes over the training images; with `min_improvement`, at most.
        batch_size: Images of a gradient step.
        learning_rate: Peak learning rate of Adam.
        schedule: ``"one cycle"`` rises to the peak in a tenth of the steps and falls to zero along
            a cosine; ``"inverse sqrt"`` rises during the first epoch and, from the fifth on, falls
            with the square root of the number of epochs, wherever training ends; ``"constant"``
            stays.
        clip_grad_norm: Norm to which longer gradients are shortened; 0 leaves them as they are.
        ema_decay: Decay per step of the exponential moving average of the weights. The average is
            validated and returned; with 0 the weights themselves are.
        min_improvement: Early stopping. Training ends once the best validation loss of the last 10
            epochs is less than this many nats below the best before them, though not before 20
            epochs after the warm-up; 0 trains all `epochs`. The loss weights the rate by `beta`.
        seed: Decides the initial weights, the order of the images, the pixels and the noise.
        encoder_dropout: Share of the encoder's hidden units that are left out at each training
            step, anew for each image.
        initial_log_variance: Log variance of the posteriors before training, to which the random
            weights add a part that depends on the image; diagonal posteriors only.
        posterior: ``"gaussian"``, which is diagonal, and ``"full covariance"`` go with the prior
            N(0, I). ``"interval"``, a Beta distribution stretched over (0, 10), goes with the
            uniform prior on that interval.
        prior: ``"standard normal"``; or ``"vamp"``, a mixture of the posteriors of 200 learned
            pseudo-inputs. These start at random training images; diagonal posteriors only.
        mmd_weight: Weight in the loss of the squared maximum mean discrepancy from N(0, I) of the
            batch's average posterior; diagonal posteriors only.
        network: ``"perceptron"``, of the depths and widths above; or ``"convolutional"``, a small
            network that ignores them, `activation` and `encoder_dropout`.
        likelihood: ``"bernoulli"``; or ``"gaussian"``, with one learned scale for all pixels, which
            goes with grey values.
        data_set: Images that a table trains on; `fit` takes any.

    Introduced in "The KL term".
    """

    latent_dimension: int = 2
    encoder_depth: int = 2
    encoder_width: int = 500
    decoder_depth: int = 2
    decoder_width: int = 500
    activation: Literal["relu", "softplus"] = "relu"
    pixels: Literal["binarised", "grayscale"] = "binarised"
    beta: float = 1.0
    kl_warm_up: int = 0
    epochs: int = 100
    batch_size: int = 250
    learning_rate: float = 3e-3
    schedule: Schedule = "one cycle"
    clip_grad_norm: float = 0.0
    ema_decay: float = 0.0
    min_improvement: float = 0.0
    seed: int = 0
    encoder_dropout: float = 0.0
    initial_log_variance: float = 0.0
    posterior: Literal["gaussian", "full covariance", "interval"] = "gaussian"
    prior: Literal["standard normal", "vamp"] = "standard normal"
    mmd_weight: float = 0.0
    network: Literal["perceptron", "convolutional"] = "perceptron"
    likelihood: Literal["bernoulli", "gaussian"] = "bernoulli"
    data_set: DataSet = "MNIST"


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


def build(recipe: Recipe) -> VAE:
    """Return the untrained VAE of a recipe; its weights follow from the recipe's seed alone.

    The pseudo-inputs of a VampPrior are grey until `fit` puts training images in their place.

    Raises:
        ValueError: Fields of the recipe contradict each other, for instance a VampPrior and
            posteriors that are not diagonal.

    Introduced in "The latent picture".
    """
    _check(recipe)
    latent = recipe.latent_dimension
    encode, decode = _networks(recipe)
    likelihood = GaussianLikelihood if recipe.likelihood == "gaussian" else BernoulliLikelihood
    if recipe.posterior == "interval":
        prior = uniform_interval(latent)
        return VAE(
            IntervalPosterior(encode), likelihood(nn.Sequential(Centre(prior), *decode)), prior
        )
    if recipe.posterior == "full covariance":
        full = FullCovariancePosterior(encode, latent)
        return VAE(full, likelihood(decode), standard_normal(latent))
    posterior = GaussianPosterior(encode)
    if recipe.initial_log_variance:
        with torch.no_grad():
            cast("Tensor", encode[-1].bias)[latent : 2 * latent] += recipe.initial_log_variance
    if recipe.prior == "vamp":
        grey = torch.full((_PSEUDO_INPUTS, PIXELS), 0.5)
        return VAE(posterior, likelihood(decode), VampPrior(posterior, grey))
    return VAE(posterior, likelihood(decode), standard_normal(latent))


def _check(recipe: Recipe) -> None:
    """Raise if fields of a recipe contradict each other."""
    if recipe.posterior != "gaussian":
        changed = [
            name
            for name in ("prior", "initial_log_variance", "mmd_weight")
            if getattr(recipe, name) != getattr(Recipe, name)
        ]
        if changed:
            raise ValueError(f"{', '.join(changed)} goes with diagonal posteriors, unlike {recipe}")
    if recipe.network == "convolutional" and recipe.posterior == "interval":
        raise ValueError(f"posteriors on the interval go with perceptrons, unlike {recipe}")
    if recipe.likelihood == "gaussian" and recipe.pixels != "grayscale":
        raise ValueError(f"a Gaussian likelihood goes with grey values, unlike {recipe}")


def _networks(recipe: Recipe) -> tuple[nn.Sequential, nn.Sequential]:
    """Return the networks of encoder and decoder."""
    latent = recipe.latent_dimension
    full = recipe.posterior == "full covariance"
    outputs = latent * (latent + 3) // 2 if full else 2 * latent
    with globally_seeded(recipe.seed):
        if recipe.network == "convolutional":
            return convolutional_encoder(outputs), convolutional_decoder(latent)
        activation = _ACTIVATIONS[recipe.activation]
        encoder = [PIXELS, *[recipe.encoder_width] * recipe.encoder_depth, outputs]
        decoder = [latent, *[recipe.decoder_width] * recipe.decoder_depth, PIXELS]
        return (
            multilayer_perceptron(encoder, activation, recipe.encoder_dropout),
            multilayer_perceptron(decoder, activation),
        )


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
        chosen = torch.randperm(len(train_images), generator=_generator(recipe))[:_PSEUDO_INPUTS]
        # With fewer images than pseudo-inputs, images repeat.
        model.prior.start_from(train_images[chosen[torch.arange(_PSEUDO_INPUTS) % len(chosen)]])
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
