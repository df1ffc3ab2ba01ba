"""The live figure of the encoder: draw a digit, see its posterior and its reconstruction."""

import re
from typing import Any, ClassVar

import torch
import traitlets
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution, kl_divergence

from priormatch.explorers import assets, stills
from priormatch.explorers.base import Explorer, in_bytes


class DrawExplorer(Explorer):
    """Explorer of the encoder: Q(z|X) and the reconstruction of an image X, drawn or picked.

    A drawing is prepared as MNIST was: scaled into a box of 20 by 20 pixels, anti-aliased, and
    centred by its mass in 28 by 28. A pixel is 1 where its grey value is at least 0.5, because the
    encoder was trained on binary pixels.

    Attributes:
        digit: Index of X among the stored test images, or -1 if it was drawn.
        pixels: X as text, one ``"0"`` or ``"1"`` for each pixel.

    Source: :cite:t:`lecun2010`, for the preparation.

    Introduced in "The latent picture".
    """

    module = "draw"
    caption = (
        "Draw a digit with the mouse or a finger, or pick a test image: the question’s own encoder "
        "answers in your browser. Its posterior Q(z|X) is the mark on the quilt, magnified in the "
        "corner with ellipses at one and two standard deviations; the decoder draws its mean."
    )
    alt = (
        "The quilt of the aggregated posterior over the latent plane with a mark where the "
        "posterior of a test image lies, a small patch. Beside it the image and its "
        "reconstruction."
    )
    heights = ("28rem", "53rem")
    state = ("digit", "pixels")
    carried: ClassVar[dict[str, str]] = {
        "encoder": "question-encoder",
        "decoder": "question-decoder",
        "field": "question-field",
        "digits": "test-digits",
    }

    digit = traitlets.Int(2, min=-1, max=19).tag(sync=True)
    pixels = traitlets.Unicode().tag(sync=True)
    encoder = traitlets.Bytes().tag(sync=True)
    decoder = traitlets.Bytes().tag(sync=True)
    field = traitlets.Bytes().tag(sync=True)
    digits = traitlets.Bytes().tag(sync=True)

    @traitlets.default("pixels")
    def _first_pixels(self) -> str:
        return as_text(assets.some_digits().images[self.digit])

    @traitlets.observe("digit")
    def _pick(self, change: dict[str, Any]) -> None:
        if change["new"] >= 0:
            self.pixels = as_text(assets.some_digits().images[change["new"]])

    @traitlets.validate("pixels")
    def _binary(self, proposal: dict[str, Any]) -> str:
        if not re.fullmatch("[01]{784}", proposal["value"]):
            raise traitlets.TraitError("pixels are 784 characters, each 0 or 1")
        return proposal["value"]

    @property
    def image(self) -> Float[Tensor, " pixels"]:
        """X as a tensor."""
        return torch.tensor([float(pixel) for pixel in self.pixels])

    @property
    def posterior(self) -> Distribution:
        """Q(z|X)."""
        with torch.no_grad():
            return assets.vae().posterior(self.image)

    @property
    def kl(self) -> float:
        """KL(Q(z|X) || p) in nats."""
        return kl_divergence(self.posterior, assets.vae().prior).item()

    @property
    def picture(self) -> Float[Tensor, " pixels"]:
        """The decoder's mean at the mean of Q(z|X)."""
        with torch.no_grad():
            return assets.vae().likelihood(self.posterior.mean).mean

    def still(self) -> bytes:
        """Return the still picture, a PNG."""
        mean = tuple(self.posterior.mean.tolist())
        pictures = {"X": self.image, "reconstruction": self.picture}
        return stills.quilt(assets.field().log_ratio, assets.axis(), mean, pictures)

    def initial_state(self) -> dict[str, object]:
        """Return the posterior of X and the reconstruction."""
        mean, scale = self.posterior.mean.tolist(), self.posterior.stddev.tolist()
        return {"answer": {"mean": mean, "scale": scale, "picture": in_bytes(self.picture)}}


def as_text(image: Float[Tensor, " pixels"]) -> str:
    """Return binary pixels as characters."""
    return "".join("1" if pixel else "0" for pixel in image.tolist())
