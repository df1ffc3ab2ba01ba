"""Recipes: all settings of a training, and the untrained model that they mean."""

from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from priormatch.data import DataSet
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
from priormatch.schedules import Schedule

PIXELS = 784

PSEUDO_INPUTS = 200
"""Components of a VampPrior."""

_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "softplus": nn.Softplus}


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
        grey = torch.full((PSEUDO_INPUTS, PIXELS), 0.5)
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
