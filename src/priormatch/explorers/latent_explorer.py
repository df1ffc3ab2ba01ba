"""The live figure of the latent plane: point at a code, see its digit."""

from typing import Any, ClassVar

import torch
import traitlets
from jaxtyping import Float
from torch import Tensor

from priormatch.explorers import assets, stills
from priormatch.explorers.base import Explorer, in_bytes


def _coordinate(initial: float) -> traitlets.Float:
    return traitlets.Float(initial, min=-assets.LIMIT, max=assets.LIMIT)


class LatentExplorer(Explorer):
    """Explorer of the latent plane: the decoded digit and the density of codes at z.

    z moves on a grid with steps of 0.02. So every log ratio shown was computed in Python, and none
    is interpolated.

    Attributes:
        z: The code, a pair of coordinates between -4 and 4, rounded to the grid.
        view: ``"density"``, ``"ratio"`` or ``"digits"``.
        points: Point shown for each test image: ``"draws"`` or ``"means"`` of the posteriors.
        ellipses: Whether posteriors are drawn as ellipses of two standard deviations.

    Introduced in "The latent picture".
    """

    module = "latent"
    caption = (
        "Point at a code with the mouse or a finger, or use the arrow keys: the question’s own "
        "decoder draws the digit in your browser. The colours are ln q(z), or how it compares with "
        "the prior’s ln p(z), blue for denser codes and red for thinner. The circles hold 50, 90 "
        "and 99 % of the mass of N(0, I)."
    )
    alt = (
        "A quilt of patches with seams between them and a ragged edge, the aggregated posterior "
        "over the latent plane, with three circles of N(0, I) around the middle. "
        "Beside it the digit that the decoder draws at the marked code."
    )
    heights = ("30rem", "44rem")
    state = ("z", "view", "points", "ellipses")
    carried: ClassVar[dict[str, str]] = {
        "decoder": "question-decoder",
        "field": "question-field",
        "codes": "question-codes",
    }

    z = traitlets.Tuple(_coordinate(0.0), _coordinate(0.0), default_value=(0.5, -0.5)).tag(
        sync=True
    )
    view = traitlets.Enum(["density", "ratio", "digits"], "density").tag(sync=True)
    points = traitlets.Enum(["draws", "means"], "draws").tag(sync=True)
    ellipses = traitlets.Bool(False).tag(sync=True)
    decoder = traitlets.Bytes(read_only=False).tag(sync=True)
    field = traitlets.Bytes().tag(sync=True)
    codes = traitlets.Bytes().tag(sync=True)

    @traitlets.validate("z")
    def _on_the_grid(self, proposal: dict[str, Any]) -> tuple[float, ...]:
        return tuple(round(x * assets.STEPS) / assets.STEPS for x in proposal["value"])

    @property
    def _node(self) -> tuple[int, ...]:
        return tuple(round((x + assets.LIMIT) * assets.STEPS) for x in self.z)

    @property
    def log_ratio(self) -> float:
        """Log ratio ln q(z)/p(z) at z, in nats."""
        return assets.field().log_ratio[self._node].item()

    @property
    def in_hole(self) -> bool:
        """Whether q is lower at z than at 99 % of the held-out codes, as in `hole_share`."""
        return bool(assets.field().thinness[self._node] & assets.Thinness.HOLE)

    @property
    def picture(self) -> Float[Tensor, " pixels"]:
        """The decoder's mean at z."""
        with torch.no_grad():
            return assets.vae().likelihood(torch.tensor(self.z)).mean

    def still(self) -> bytes:
        """Return the still picture, a PNG."""
        pictures = {f"z = ({self.z[0]:.2f}, {self.z[1]:.2f})": self.picture}
        against_prior = self.view == "ratio"
        return stills.quilt(
            assets.field().log_ratio, assets.axis(), self.z, pictures, against_prior
        )

    def initial_state(self) -> dict[str, object]:
        """Return the decoder's picture at z."""
        return {"picture": in_bytes(self.picture)}
