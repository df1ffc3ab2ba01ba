"""The live figure of the thought experiment: ten intervals, moved and stretched by hand."""

from typing import Any

import torch
import traitlets

from priormatch.distributions import INTERVAL
from priormatch.explorers import intervals, stills
from priormatch.explorers.base import Explorer
from priormatch.explorers.intervals import Costs


class DragExplorer(Explorer):
    """Explorer of ten intervals on (0, 10): the posteriors of ten digits, and what they cost.

    Attributes:
        intervals: Start and end of the interval of each digit, 0 to 9, in tenths; inside (0, 10),
            and at least 0.4 long.
        digit: The digit whose interval the sliders move.

    Introduced in "The uniform interval".
    """

    module = "drag"
    caption = (
        "Each digit’s posterior is uniform on its bar. Drag a bar to move it and its ends to "
        "stretch it; the arrow keys and the sliders do the same for the chosen digit. Below the "
        "bars is their mixture q, in the colours of the digits, and the uniform prior p, dashed."
    )
    alt = (
        "Two arrangements of ten coloured bars on the interval from 0 to 10, a bar for each digit. "
        "Apart, they form a staircase and their mixture is as flat as the prior: the rate of 2.3 "
        "nats is information alone. Piled up on one unit in the middle, the mixture is a tower ten "
        "times as high as the prior: the same rate is mismatch alone."
    )
    heights = ("27rem", "52rem")
    state = ("intervals", "digit")

    intervals: traitlets.List[Any] = traitlets.List().tag(sync=True)
    digit = traitlets.Int(3, min=0, max=9).tag(sync=True)

    @traitlets.default("intervals")
    def _apart(self) -> list[list[float]]:
        return [list(pair) for pair in intervals.APART]

    @traitlets.validate("intervals")
    def _in_tenths(self, proposal: dict[str, Any]) -> list[list[float]]:
        pairs = [[round(float(end), 1) for end in pair] for pair in proposal["value"]]
        if [len(pair) for pair in pairs] != [2] * intervals.DIGITS:
            raise traitlets.TraitError(f"ten digits have ten starts and ends, not {pairs}")
        for digit, (start, end) in enumerate(pairs):
            if not (start >= 0 and end <= INTERVAL and end - start > intervals.LEAST - 0.01):
                raise traitlets.TraitError(
                    f"the interval of digit {digit} is from {start} to {end}: choose one inside "
                    f"(0, {INTERVAL:g}) that is {intervals.LEAST} long or longer"
                )
        return pairs

    @property
    def costs(self) -> Costs:
        """What the posteriors cost."""
        return intervals.costs(torch.tensor(self.intervals))

    def still(self) -> bytes:
        """Return the still picture, a PNG."""
        return stills.ten_intervals({"apart": intervals.APART, "piled up": intervals.PILE})
