"""The live figure of the KL term's price: the posterior of one digit, squeezed by hand."""

import math
from typing import Any, ClassVar

import torch
import traitlets
from jaxtyping import Float
from torch import Tensor

from priormatch.divergences import kl_from_prior_per_dimension
from priormatch.explorers import assets, stills
from priormatch.explorers.base import Explorer, in_bytes


class SqueezeExplorer(Explorer):
    """Explorer of both prices of a code: the posterior of one digit, as wide as the reader likes.

    The mean is the encoder's, and both latent dimensions have the scale that is chosen. It moves on
    a grid, so every reconstruction price was computed in Python, and none is interpolated.

    Attributes:
        digit: The test image X: the first of that digit, 0 to 9.
        sigma: Scale of the posterior, between 0.01 and 1, rounded to the grid.

    Introduced in "The KL term".
    """

    module = "squeeze"
    caption = (
        "Squeeze the posterior of one digit with the slider, or drag in the chart. Its mean is the "
        "encoder’s; six draws of it are decoded in your browser. The chart stacks both prices, "
        "orange for the KL from N(0, I) and grey for the reconstruction, a mean over 64 draws."
    )
    alt = (
        "Above, what the decoder makes of a seven while the scale of its posterior falls from 1 to "
        "0.01: first any digits, then sevens, at last always the same seven. Below, the two prices "
        "over the scale: the reconstruction falls steeply and levels off, the KL is a thin wedge "
        "that grows."
    )
    heights = ("31rem", "53.2rem")
    state = ("digit", "sigma")
    carried: ClassVar[dict[str, str]] = {
        "decoder": "question-decoder",
        "posteriors": "squeezed-posteriors",
    }

    digit = traitlets.Int(7, min=0, max=9).tag(sync=True)
    sigma = traitlets.Float(1.0, min=0.01, max=1.0).tag(sync=True)
    decoder = traitlets.Bytes().tag(sync=True)
    posteriors = traitlets.Bytes().tag(sync=True)

    @traitlets.validate("sigma")
    def _on_the_grid(self, proposal: dict[str, Any]) -> float:
        return assets.squeezed_scales()[self._step_of(proposal["value"])].item()

    @staticmethod
    def _step_of(sigma: float) -> int:
        return round(-assets.SQUEEZE_STEPS * math.log10(sigma))

    @property
    def mean(self) -> Float[Tensor, " latent"]:
        """Mean of Q(z|X)."""
        return assets.squeezed().means[self.digit]

    @property
    def kl(self) -> float:
        """KL(Q || p) in nats."""
        log_variance = torch.full_like(self.mean, 2 * math.log(self.sigma))
        return kl_from_prior_per_dimension(self.mean, log_variance).sum().item()

    @property
    def distortion(self) -> float:
        """Price of the reconstruction in nats, the mean of -ln P(X|z) over draws of Q."""
        return assets.squeezed().distortion[self.digit, self._step_of(self.sigma)].item()

    @property
    def pictures(self) -> Float[Tensor, "draws pixels"]:
        """The decoder's means at the draws of Q that are shown."""
        with torch.no_grad():
            return assets.vae().likelihood(self.mean + self.sigma * assets.squeezed().noise).mean

    def still(self) -> bytes:
        """Return the still picture, a PNG: the whole of the way from 1 to 0.01."""
        squeezed, steps = assets.squeezed(), assets.SQUEEZE_STEPS
        scales = assets.squeezed_scales()[: 2 * steps + 1]
        shown = scales[:: steps // 2].float()
        with torch.no_grad():
            codes = self.mean + shown[:, None, None] * squeezed.noise[:3]
            pictures = assets.vae().likelihood(codes).mean
        means = self.mean.double().expand(len(scales), -1)
        log_variances = (2 * scales.log()[:, None]).expand_as(means)
        kl = kl_from_prior_per_dimension(means, log_variances).sum(1)
        return stills.squeeze(scales, kl, squeezed.distortion[self.digit, : len(scales)], pictures)

    def initial_state(self) -> dict[str, object]:
        """Return the decoder's pictures."""
        return {"pictures": [in_bytes(picture) for picture in self.pictures]}
