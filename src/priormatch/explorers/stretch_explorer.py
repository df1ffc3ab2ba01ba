"""The live figure of the stretched line: three patches, their moments, and three costs."""

import traitlets

from priormatch.explorers import patches, stills
from priormatch.explorers.patches import Costs, LineExplorer


class StretchExplorer(LineExplorer):
    """Explorer of a line that is shifted and stretched under three patches.

    The mismatch is least where the codes have mean 0 and mean square 1.

    Attributes:
        shift: What is added to each code, between -1 and 1.
        factor: By what each code is multiplied before, between 0.4 and 1.6.

    Introduced in "Why the mixture nearly matches".
    """

    module = "stretch"
    caption = (
        "Shift and stretch the line with the mouse, a finger or the arrow keys, until the mismatch "
        "is as small as it gets. The decoder undoes both. What are the mean and the mean square of "
        "the codes there?"
    )
    alt = (
        "Two states of a line with three patches. Before, their average lies left of the bell "
        "curve of N(0, 1) and is wider; after, it is centred and as wide, but two gaps remain. "
        "The bar of the mismatch is about half as long as before; those of reconstruction and "
        "information, and the three pictures, are the same."
    )
    heights = ("17.5rem", "33.5rem")
    state = ("shift", "factor", "line")

    shift = traitlets.Float(0.0, min=-1.0, max=1.0).tag(sync=True)
    factor = traitlets.Float(1.0, min=0.4, max=1.6).tag(sync=True)

    @property
    def costs(self) -> Costs:
        """What the codes cost where they are."""
        return patches.costs(patches.stretch(self.shift, self.factor))

    def still(self) -> bytes:
        """Return the still picture, a PNG."""
        best = patches.best_stretch()
        return stills.changes({"before": patches.stretch(0.0, 1.0), "after": best})
