"""Data files of the explorers: weights, the quilt on a grid, codes and digits.

Each is a gzipped safetensors file, made on demand from ``results/models`` and the digits. A static
page loads it from its own site; in Jupyter it is sent with the widget.
"""

import functools
import gzip
import math
from collections.abc import Callable
from enum import IntFlag
from typing import Final, NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int16, UInt8
from safetensors.torch import save
from torch import Tensor, nn
from torch.distributions import Independent, kl_divergence

from priormatch.data import Digits, binarized
from priormatch.densities import fit_mixture
from priormatch.distributions import INTERVAL, AggregatedPosterior
from priormatch.experiments import pretrained
from priormatch.explorers import history, slices
from priormatch.line import density_by_digit
from priormatch.models import VAE, encode, globally_seeded

SUFFIX: Final = ".safetensors.gz"

LIMIT: Final = 4.0
"""Half the width of the latent plane shown: from -4 to 4, as in the figures."""

STEPS: Final = 50
"""Nodes of the grid per unit of z, which moves in steps of 0.02, about a pixel on a screen."""

CODES: Final = 2_000
"""Number of test images whose codes are shown."""


class Quilt(NamedTuple):
    """Aggregated posterior of the question's VAE, with codes and the threshold of its holes.

    Attributes:
        aggregated: Mixture over the training images.
        codes: One draw from the posterior of each test image.
        threshold: Log density that 99 % of these codes exceed; holes are below it.
    """

    aggregated: AggregatedPosterior
    codes: Float[Tensor, "examples 2"]
    threshold: float


class Thinness(IntFlag):
    """Flags of the places where the aggregated posterior is thin."""

    THINNER = 1  # than the prior
    TEN_TIMES_THINNER = 2
    HOLE = 4


class Field(NamedTuple):
    """Aggregated posterior on the grid of codes; the first axis is z_1.

    Attributes:
        log_ratio: ln q(z)/p(z) in nats.
        thinness: Flags of `Thinness`, as a number.
    """

    log_ratio: Float[Tensor, "nodes nodes"]
    thinness: UInt8[Tensor, "nodes nodes"]


@functools.cache
def vae(name: str = "question") -> VAE:
    """Return a stored model."""
    return pretrained.load(name).model


@functools.cache
def quilt() -> Quilt:
    """Return the aggregated posterior of the question's VAE, as in "The latent picture"."""
    aggregated = AggregatedPosterior(*encode(vae(), binarized("train").images))
    means, scales = encode(vae(), binarized("test").images)
    noise = torch.randn(means.shape, generator=torch.Generator().manual_seed(6))
    codes = means + scales * noise
    return Quilt(aggregated, codes, aggregated.log_prob(codes).quantile(0.01).item())


def log_density_on_grid(
    aggregated: AggregatedPosterior, axis: Float[Tensor, " nodes"], chunk: int = 5_000
) -> Float[Tensor, "nodes nodes"]:
    r"""Return log q on the product of an axis with itself, in double precision.

    .. math:: q(x_i, y_j) = \frac1N \sum_n \mathcal N(x_i; \mu_{n1}, \sigma_{n1}^2)
              \, \mathcal N(y_j; \mu_{n2}, \sigma_{n2}^2)

    The sum is a product of two matrices, because the posteriors have independent dimensions. Where
    q underflows, the result is -inf.

    Args:
        aggregated: Mixture in two dimensions.
        axis: Coordinates, in double precision.
        chunk: Posteriors at a time.
    """
    total = axis.new_zeros(len(axis), len(axis))
    pairs = zip(aggregated.means.split(chunk), aggregated.scales.split(chunk), strict=True)
    for means, scales in pairs:
        first, second = (
            torch.distributions.Normal(means[:, [j]].double(), scales[:, [j]].double())
            .log_prob(axis)
            .exp()
            for j in (0, 1)
        )
        total += first.T @ second
    return (total / aggregated.components).log()


def axis() -> Float[Tensor, " nodes"]:
    """Return the coordinates of the grid, in double precision."""
    nodes = int(LIMIT * STEPS)
    return torch.arange(-nodes, nodes + 1, dtype=torch.float64) / STEPS


@functools.cache
def field() -> Field:
    """Return the aggregated posterior on the grid."""
    nodes = axis()
    log_density = log_density_on_grid(quilt().aggregated, nodes)
    log_prior = -0.5 * (nodes[:, None] ** 2 + nodes**2) - math.log(2 * math.pi)
    log_ratio = log_density - log_prior
    thinness = (
        Thinness.THINNER * (log_ratio < 0).to(torch.uint8)
        + Thinness.TEN_TIMES_THINNER * (log_ratio < -math.log(10)).to(torch.uint8)
        + Thinness.HOLE * (log_density < quilt().threshold).to(torch.uint8)
    )
    return Field(log_ratio, thinness)


def hundredths(values: Float[Tensor, "*shape"]) -> Int16[Tensor, "*shape"]:
    """Return values as whole hundredths, as a page shows them; values below -320 become -320."""
    return (100 * values.clamp(min=-320.0)).round().to(torch.int16)


def differences(values: Int16[Tensor, "nodes nodes"]) -> Int16[Tensor, "nodes nodes"]:
    """Return differences along both axes: small numbers, which compress well."""
    down = torch.cat([values[:1], values.diff(dim=0)])
    return torch.cat([down[:, :1], down.diff(dim=1)], dim=1)


def packed_field() -> dict[str, Tensor]:
    """Return the aggregated posterior on the grid, as a page reads it."""
    return {"differences": differences(hundredths(field().log_ratio)), "thinness": field().thinness}


def packed_codes() -> dict[str, Tensor]:
    """Return posteriors of test images, in half precision, and a draw from each."""
    images, labels = binarized("test")
    some = slice(None, None, max(1, len(images) // CODES))
    means, scales = encode(vae(), images[some])
    return {
        "means": means.half(),
        "scales": scales.half(),
        "draws": quilt().codes[some].half(),
        "labels": labels[some].to(torch.uint8),
    }


@functools.cache
def some_digits() -> Digits:
    """Return the test images to pick from: the first of each digit, then the second of each."""
    images, labels = binarized("test")
    firsts = torch.stack([(labels == digit).nonzero()[:2, 0] for digit in range(10)])
    chosen = firsts.T.flatten()
    return Digits(images[chosen], labels[chosen])


def packed_digits() -> dict[str, Tensor]:
    """Return the test images to pick from, one byte per pixel."""
    images, labels = some_digits()
    return {"images": images.to(torch.uint8), "labels": labels.to(torch.uint8)}


SQUEEZE_STEPS: Final = 20
"""Steps in which the scale of a squeezed posterior falls to a tenth; six of them halve it."""


class Squeezed(NamedTuple):
    """Posteriors of the first test image of each digit, with scales other than the encoder's.

    Attributes:
        means: The encoder's means.
        scales: The encoder's scales.
        distortion: Mean of -ln P(X|z) in nats over 64 draws, at each of `squeezed_scales`.
        noise: Six standard normal draws, those that are shown.
    """

    means: Float[Tensor, "digits 2"]
    scales: Float[Tensor, "digits 2"]
    distortion: Float[Tensor, "digits scales"]
    noise: Float[Tensor, "draws 2"]


def squeezed_scales() -> Float[Tensor, " scales"]:
    """Return the scales from 1 to 0.01, and on to the half of that, in double precision."""
    steps = torch.arange(2 * SQUEEZE_STEPS + 7, dtype=torch.float64)
    return 10 ** (-steps / SQUEEZE_STEPS)


@functools.cache
@torch.no_grad()
def squeezed() -> Squeezed:
    """Return the squeezed posteriors of ten digits and what their reconstructions cost."""
    images = some_digits().images[:10]
    means, scales = encode(vae(), images)
    even = torch.quasirandom.SobolEngine(2, scramble=True, seed=0).draw(64)
    noise = torch.special.ndtri(even.clamp(1e-6, 1 - 1e-6))
    distortion = [
        -vae().likelihood(means + scale * noise[:, None]).log_prob(images).mean(0)
        for scale in squeezed_scales().float()
    ]
    shown = torch.randn((6, 2), generator=torch.Generator().manual_seed(4))
    return Squeezed(means, scales, torch.stack(distortion, dim=1), shown)


def packed_squeezed() -> dict[str, Tensor]:
    """Return the squeezed posteriors and their test images, as a page reads them."""
    images, labels = some_digits()
    return {
        **squeezed()._asdict(),
        "images": images[:10].to(torch.uint8),
        "labels": labels[:10].to(torch.uint8),
    }


TWENTY: Final = 20
"""Codes that are drawn at a time."""

TURNS: Final = 30
"""How often a reader can draw before the first codes come again."""


class Drawn(NamedTuple):
    """Codes, in half precision as a page has them.

    Attributes:
        codes: The codes.
        log_ratio: Log ratio ln q(z)/p(z) in nats.
        distance: Distance to the nearest training posterior, in scales of that posterior.
    """

    codes: Float[Tensor, "draws 2"]
    log_ratio: Float[Tensor, " draws"]
    distance: Float[Tensor, " draws"]

    @property
    def in_seams(self) -> Bool[Tensor, " draws"]:
        """Which codes lie where q is ten times thinner than the prior."""
        return self.log_ratio < -math.log(10)


@functools.cache
def drawn_codes() -> dict[str, Drawn]:
    """Return draws of the prior, of the quilt, and of 50 Gaussians fitted to draws of the quilt."""
    aggregated, generator = quilt().aggregated, torch.Generator().manual_seed(8)
    prior = vae().prior
    fitted = fit_mixture(aggregated.sample((10_000,), generator=generator), 50, 0)
    drawn = {}
    for name, source in {"prior": prior, "quilt": aggregated, "mixture": fitted}.items():
        with globally_seeded(8):
            codes = source.sample((TWENTY * TURNS,)).half()
        exact = codes.float()
        log_ratio = aggregated.log_prob(exact) - prior.log_prob(exact)
        distance = aggregated.distance_to_nearest(exact)
        drawn[name] = Drawn(codes, log_ratio.half(), distance.half())
    return drawn


def packed_twenty() -> dict[str, Tensor]:
    """Return the draws of `drawn_codes`, as a page reads them."""
    return {
        f"{source}.{name}": values
        for source, drawn in drawn_codes().items()
        for name, values in drawn._asdict().items()
    }


INTERVAL_STEP: Final = 0.01
"""Step of z along the interval (0, 10), whose ends z does not reach."""

INTERVAL_EVERY: Final = 50
"""Spacing of the test images whose posteriors on the interval are shown: 200 of 10,000."""


@functools.cache
def density_on_interval() -> Float[Tensor, "digits nodes"]:
    """Return the joint density of digit and code of the interval's VAE at the positions of z."""
    images, labels = binarized("train")
    nodes = torch.arange(1, round(INTERVAL / INTERVAL_STEP), dtype=torch.float64) * INTERVAL_STEP
    with torch.no_grad():
        return density_by_digit(
            cast("Independent", vae("interval").posterior(images)), labels, nodes
        )


@torch.no_grad()
def packed_interval() -> dict[str, Tensor]:
    """Return the density of each digit along the interval, and posteriors of test images."""
    images, labels = (values[::INTERVAL_EVERY] for values in binarized("test"))
    posterior = cast("Independent", vae("interval").posterior(images))
    alpha = posterior.base_dist.concentration1[:, 0].double()
    beta = posterior.base_dist.concentration0[:, 0].double()
    return {
        "density": density_on_interval(),
        "alpha": alpha,
        "beta": beta,
        "constant": (alpha + beta).lgamma() - alpha.lgamma() - beta.lgamma(),
        "kl": kl_divergence(posterior, vae("interval").prior).double(),
        "images": images.to(torch.uint8),
        "labels": labels.to(torch.uint8),
    }


def packed_weights(network: nn.Module) -> dict[str, Tensor]:
    """Return the weights of a multilayer perceptron, in half precision, as they are stored."""
    layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
    return {
        f"{number}.{name}": weight.detach().half()
        for number, layer in enumerate(layers)
        for name, weight in (("weight", layer.weight), ("bias", layer.bias))
    }


FILES: Final[dict[str, Callable[[], dict[str, Tensor]]]] = {
    "question-decoder": lambda: packed_weights(vae().decoder),
    "question-encoder": lambda: packed_weights(vae().encoder),
    "question-field": packed_field,
    "question-codes": packed_codes,
    "test-digits": packed_digits,
    "squeezed-posteriors": packed_squeezed,
    "twenty-codes": packed_twenty,
    "question-history": history.load,
    "interval-decoder": lambda: packed_weights(vae("interval").decoder),
    "interval-codes": packed_interval,
    **{
        f"dimension-codes-{latent}": functools.partial(slices.packed, latent)
        for latent in slices.DIMENSIONS
    },
}
"""Functions that make the tensors of each file, by the file's name without its suffix."""


@functools.cache
def packed(name: str) -> bytes:
    """Return the bytes of a file, which are the same for the same results.

    Raises:
        KeyError: There is no such file.
    """
    return zipped(FILES[name]())


def zipped(tensors: dict[str, Tensor]) -> bytes:
    """Return tensors as a gzipped safetensors file."""
    contiguous = {key: tensor.contiguous() for key, tensor in tensors.items()}
    return gzip.compress(save(contiguous), mtime=0)
