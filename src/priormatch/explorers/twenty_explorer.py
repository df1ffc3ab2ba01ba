"""The live figure of the book's question: twenty draws of N(0, I) and of the quilt, decoded."""

from typing import ClassVar, NamedTuple

import torch
import traitlets
from jaxtyping import Float
from torch import Tensor

from priormatch.explorers import assets, stills
from priormatch.explorers.base import Explorer, in_bytes


class Told(NamedTuple):
    """What the figure says of twenty codes.

    Attributes:
        in_seams: How many of them lie where codes are ten times thinner than N(0, I).
        nearest_patch: Median distance to the nearest training posterior, in scales of it.
    """

    in_seams: int
    nearest_patch: float


class TwentyExplorer(Explorer):
    """Explorer of sampling: twenty draws of N(0, I) beside twenty from another distribution.

    Attributes:
        turn: Which twenty draws are shown.
        source: What the other twenty are drawn from: ``"quilt"``, the mixture of the posteriors of
            the training images, or ``"mixture"``, of 50 Gaussians fitted to codes.

    Introduced on the first page.
    """

    module = "twenty"
    caption = (
        "Twenty draws of N(0, I), rings on the map, are decoded on the left, and twenty draws of "
        "the quilt, dots, on the right. The map is red where codes are thinner than N(0, I) and "
        "blue where they are denser. A red frame marks a picture from a seam, where they are ten "
        "times thinner. A patch is the posterior of one training image, and its width is one "
        "standard deviation; the distance to the nearest is a median."
    )
    alt = (
        "A map of the latent plane, blue patches with red seams between them, and the places of "
        "forty codes. On the left, twenty decoded draws of N(0, I), most of them clear digits; "
        "those in frames come from seams. On the right, twenty decoded draws of the quilt."
    )
    heights = ("25rem", "50.5rem")
    state = ("turn", "source")
    carried: ClassVar[dict[str, str]] = {
        "decoder": "question-decoder",
        "field": "question-field",
        "codes": "twenty-codes",
    }

    turn = traitlets.Int(0, min=0, max=assets.TURNS - 1).tag(sync=True)
    source = traitlets.Enum(["quilt", "mixture"], "quilt").tag(sync=True)
    decoder = traitlets.Bytes().tag(sync=True)
    field = traitlets.Bytes().tag(sync=True)
    codes = traitlets.Bytes().tag(sync=True)

    def draws(self, source: str) -> assets.Drawn:
        """Return the codes that are shown, of ``"prior"`` or of a `source`."""
        rows = slice(assets.TWENTY * self.turn, assets.TWENTY * (self.turn + 1))
        return assets.Drawn(*(values[rows] for values in assets.drawn_codes()[source]))

    def told(self, source: str) -> Told:
        """Return what the figure says of the codes of a source."""
        shown = self.draws(source)
        return Told(int(shown.in_seams.sum()), shown.distance.double().quantile(0.5).item())

    def pictures(self, source: str) -> Float[Tensor, "draws pixels"]:
        """Return the decoder's means at the codes of a source."""
        with torch.no_grad():
            return assets.vae().likelihood(self.draws(source).codes.float()).mean

    def still(self) -> bytes:
        """Return the still picture, a PNG."""
        sources = ("prior", self.source)
        return stills.twenty(
            assets.field().log_ratio,
            assets.axis(),
            [self.draws(source).codes.float() for source in sources],
            [self.pictures(source) for source in sources],
            [self.draws(source).in_seams for source in sources],
        )

    def initial_state(self) -> dict[str, object]:
        """Return the decoder's pictures, those of N(0, I) first."""
        shown = torch.cat([self.pictures("prior"), self.pictures(self.source)])
        return {"pictures": [in_bytes(picture) for picture in shown]}
