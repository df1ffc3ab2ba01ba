"""Small stand-ins that several tests share: images, recipes, and models whose truth is known."""

import contextlib
import functools
import math

import pytest
import torch
from agreement import assert_agrees
from torch import nn
from torch.distributions import (
    Categorical,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
)

from priormatch import data, densities
from priormatch.data import Digits, binarized
from priormatch.densities import choose, fit_flow, fit_gaussian
from priormatch.divergences import kl_between_gaussians
from priormatch.estimate import average
from priormatch.evidence import Grid, quadrature
from priormatch.experiments import study
from priormatch.models import VAE, GaussianPosterior, encode, standard_normal
from priormatch.recipe import Recipe

TINY = Recipe(encoder_width=8, decoder_width=8, epochs=3, batch_size=20)

OTHER_VALUES = {
    "latent_dimension": 3,
    "encoder_depth": 3,
    "encoder_width": 17,
    "decoder_depth": 1,
    "decoder_width": 17,
    "activation": "softplus",
    "pixels": "grayscale",
    "beta": 2.0,
    "kl_warm_up": 2,
    "epochs": 2,
    "batch_size": 25,
    "learning_rate": 1e-3,
    "schedule": "constant",
    "clip_grad_norm": 1.0,
    "ema_decay": 0.9,
    "min_improvement": 1e9,
    "seed": 1,
    "encoder_dropout": 0.2,
    "initial_log_variance": -2.0,
    "posterior": "interval",
    "prior": "vamp",
    "mmd_weight": 10.0,
    "network": "convolutional",
    "likelihood": "gaussian",
    "data_set": "FashionMNIST",
}
"""A value of each field of a recipe that no small recipe of the tests has."""


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def pictures(examples=100, seed=0):
    """Return grey images of two kinds, which a small VAE tells apart in a moment."""
    generator = seeded(seed)
    left = (torch.arange(784) % 28 < 14).float()
    kind = torch.randint(2, (examples, 1), generator=generator).float()
    return 0.05 + 0.9 * (kind * left + (1 - kind) * (1 - left))


def same_weights(one, other):
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(first, second) for first, second in pairs)


def only_a_gaussian(codes, validation_codes, seed, aggregated=None):
    return choose({"Gaussian": fit_gaussian(codes)}, validation_codes)


@contextlib.contextmanager
def quick_fits(components, steps):
    """One small mixture and a short flow: how good fits are is tested with the densities."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(densities, "mixture_sizes", lambda latent: (components,))
        patch.setattr(densities, "fit_flow", functools.partial(fit_flow, steps=steps))
        yield


class Constant(nn.Module):
    """A network that says the same of every example."""

    def __init__(self, *values):
        super().__init__()
        self.values = torch.tensor(values)

    def forward(self, inputs):
        return self.values.expand(*inputs.shape[:-1], -1)


@contextlib.contextmanager
def in_place_of_mnist(monkeypatch, load, *modules):
    """Let modules load other digits, and forget those that were binarised."""
    for module in (data, *modules):
        monkeypatch.setattr(module, "load_mnist", load)
    binarized.cache_clear()
    yield
    binarized.cache_clear()


@contextlib.contextmanager
def small_images(monkeypatch, examples):
    """Small images in place of MNIST, coarse quadrature; equal epochs are one epoch."""
    digits = Digits(pictures(examples), torch.arange(examples) % 10)
    monkeypatch.setattr(study, "EQUAL_EPOCHS", 1)
    monkeypatch.setattr(quadrature, "_HALF_WIDTHS", (12.0,))
    monkeypatch.setattr(quadrature, "Grid", functools.partial(Grid, spacing=0.1))
    with in_place_of_mnist(monkeypatch, lambda part: digits, study):
        yield


def drawn(distribution, draws, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return distribution.sample((draws,))


def corner(latent):
    """Return three narrow Gaussians, far from any product of one-dimensional laws."""
    means = torch.tensor([[-1.5, -1.0], [1.5, -1.0], [1.5, 1.5]]).repeat(1, latent)[:, :latent]
    factor = 0.4 * torch.eye(latent) + 0.2 * torch.ones(latent, latent).tril(-1)
    return MixtureSameFamily(
        Categorical(torch.tensor([0.5, 0.3, 0.2])),
        MultivariateNormal(means, scale_tril=factor.expand(3, latent, latent)),
    )


def plane(latent):
    """Return nodes that hold all of the mass of the fitted densities, and the volume of each."""
    axes = [torch.linspace(-17, 23, 401), torch.linspace(2, 4, 401)][:latent]
    volume = math.prod((axis[1] - axis[0]).item() for axis in axes)
    return torch.cartesian_prod(*axes).reshape(-1, latent), volume


def assert_draws_follow(draws, log_prob, latent):
    """Compare moments of draws, and their mean log density, with integrals of the density."""
    nodes, volume = plane(latent)
    log_density = log_prob(nodes).double()
    mass = log_density.exp() * volume
    assert mass.sum().item() == pytest.approx(1, abs=1e-3)
    # About the shift of the codes, where products of two dimensions vary least.
    first, last = nodes[:, 0].double() - 3, nodes[:, -1].double() - 3
    ours, others = draws[:, 0].double() - 3, draws[:, -1].double() - 3
    for inside, outside in (
        (ours, first),
        (ours.square(), first.square()),
        (others.square(), last.square()),
        (ours * others, first * last),
        (log_prob(draws).double(), log_density),
    ):
        estimate = average(inside)
        truth = torch.where(mass > 0, mass * outside, 0).sum() / mass.sum()
        assert_agrees(estimate.value, estimate.standard_error, truth.item())


# Linear-Gaussian models

NOISE = 0.5


class Linear(nn.Module):
    """Decoder N(W z + 1, NOISE^2 I), in double precision."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def forward(self, codes):
        return Independent(Normal(1 + codes @ self.weight.T, NOISE), 1)


class LinearPosterior(nn.Module):
    """Mean and log variance of the exact posterior under N(0, I); wrong if widened or shifted."""

    def __init__(self, weight, widen, shift):
        super().__init__()
        self.precision = 1 + weight.square().sum(0) / NOISE**2
        self.weight, self.widen, self.shift = weight, widen, shift

    def forward(self, images):
        mean = (images - 1) @ self.weight / NOISE**2 / self.precision
        log_variance = 2 * math.log(self.widen) - self.precision.log().expand_as(mean)
        return torch.cat([mean + self.shift, log_variance], -1)


def linear_gaussian(latent, prior=None, widen=1.0, shift=0.0):
    """Return a VAE whose evidence is known, and that evidence as a distribution of images.

    The columns of W are orthogonal, so that the exact posterior is a diagonal Gaussian.
    """
    random = torch.randn(latent + 3, latent, generator=seeded(latent), dtype=torch.float64)
    weight = torch.linalg.qr(random).Q * torch.linspace(0.5, 2.0, latent, dtype=torch.float64)
    encoder = GaussianPosterior(LinearPosterior(weight, widen, shift))
    vae = VAE(encoder, Linear(weight), prior or standard_normal(latent))
    covariance = weight @ torch.diag(vae.prior.variance.double()) @ weight.T
    evidence = MultivariateNormal(
        1 + weight @ vae.prior.mean.double(),
        covariance + NOISE**2 * torch.eye(latent + 3, dtype=torch.float64),
    )
    return vae, evidence


def sample(distribution, count, generator):
    noise = torch.randn(count, *distribution.event_shape, generator=generator, dtype=torch.float64)
    return distribution.mean + noise @ distribution.scale_tril.T


def closed_form_gap(vae, images):
    """Return KL(Q(z|X) || P(z|X)) of each image of a linear-Gaussian model."""
    exact = LinearPosterior(vae.decoder.weight, 1.0, 0.0)
    mean, variance = encode(vae, images)[0], encode(vae, images)[1].square()
    exact_mean, exact_log_variance = exact(images).chunk(2, -1)
    gaussians = zip(mean, variance, exact_mean, exact_log_variance.exp(), strict=True)
    return torch.stack([kl_between_gaussians(m, v.diag(), n, w.diag()) for m, v, n, w in gaussians])


WIDE = Grid(lower=(-8.0, -8.0), upper=(8.0, 8.0), spacing=0.05)
LINE = Grid(lower=(-8.0,), upper=(8.0,), spacing=0.02)


def grid_for(latent):
    return {1: LINE, 2: WIDE}[latent]
