"""The live figure of the interval: slide a code from 0 to 10."""

from typing import Any, ClassVar

import torch
import traitlets
from jaxtyping import Float
from torch import Tensor

from priormatch.distributions import INTERVAL
from priormatch.explorers import assets, stills
from priormatch.explorers.base import Explorer, in_bytes


class IntervalExplorer(Explorer):
    """Explorer of a code z on (0, 10): the decoded digit, and the density of each digit at z.

    Attributes:
        z: The code, between 0 and 10 without the ends, rounded to hundredths.

    Introduced in "The uniform interval".
    """

    module = "interval"
    caption = (
        "Slide z along the interval with the mouse, a finger or the arrow keys. The coloured areas "
        "are the digits’ shares of the density of all codes, the dashed line is the uniform prior; "
        "the vermillion bump is the posterior of the test image shown, not to scale."
    )
    alt = (
        "The density of all codes on the interval from 0 to 10, coloured by digit: ranges of "
        "single digits one after another, together higher in the middle and lower near the ends "
        "than the prior, a dashed line. Beside it, the digit that the decoder draws at the mark."
    )
    heights = ("26rem", "35rem")
    state = ("z",)
    carried: ClassVar[dict[str, str]] = {
        "decoder": "interval-decoder",
        "codes": "interval-codes",
    }

    z = traitlets.Float(4.2, min=assets.INTERVAL_STEP, max=INTERVAL - assets.INTERVAL_STEP).tag(
        sync=True
    )
    decoder = traitlets.Bytes().tag(sync=True)
    codes = traitlets.Bytes().tag(sync=True)

    @traitlets.validate("z")
    def _in_hundredths(self, proposal: dict[str, Any]) -> float:
        return round(proposal["value"], 2)

    @property
    def density(self) -> Float[Tensor, " digits"]:
        """Joint density of z and each digit under the aggregated posterior."""
        return assets.density_on_interval()[:, round(self.z / assets.INTERVAL_STEP) - 1]

    @property
    def picture(self) -> Float[Tensor, " pixels"]:
        """The decoder's mean at z."""
        with torch.no_grad():
            return assets.vae("interval").likelihood(torch.tensor([self.z])).mean

    def still(self) -> bytes:
        """Return the still picture, a PNG."""
        return stills.interval(assets.density_on_interval(), self.z, self.picture)

    def initial_state(self) -> dict[str, object]:
        """Return the decoder's picture at z."""
        return {"picture": in_bytes(self.picture)}
