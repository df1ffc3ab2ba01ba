"""The live figure of the bent line: three patches, their pictures, and three costs."""

import traitlets

from priormatch.explorers import patches, stills
from priormatch.explorers.patches import Costs, LineExplorer


class BendExplorer(LineExplorer):
    """Explorer of a line that is bent until the average of three patches is N(0, 1).

    Attributes:
        amount: The part of the way to there, between 0 and 1.
        lens: Whether the decoder undoes the bend before it looks at a code.

    Introduced in "Why the mixture nearly matches".
    """

    module = "bend"
    caption = (
        "Bend the line with the mouse, a finger or the arrow keys. Each patch is the posterior of "
        "one image. The pictures are decoded from the marked codes, and the bars are averages over "
        "the three images. Then clear the box: the decoder takes bent codes for straight ones."
    )
    alt = (
        "Two states of a line with three patches. Before, their average has two gaps and lies "
        "left of the bell curve of N(0, 1); after, the line is bent and the average is the bell "
        "curve. The three pictures below are the same. Of three bars one has shrunk to nothing, "
        "the mismatch; those of reconstruction and information are as long as before."
    )
    heights = ("17.5rem", "30rem")
    state = ("amount", "lens", "line")

    amount = traitlets.Float(0.0, min=0.0, max=1.0).tag(sync=True)
    lens = traitlets.Bool(True).tag(sync=True)

    @property
    def costs(self) -> Costs:
        """What the codes cost where they are."""
        return patches.costs(patches.bend(self.amount), self.lens)

    def still(self) -> bytes:
        """Return the still picture, a PNG."""
        return stills.changes({"before": patches.bend(0.0), "after": patches.bend(1.0)})
