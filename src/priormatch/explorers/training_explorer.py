"""The live figure of the training: codes, rate and mismatch, epoch by epoch."""

from typing import ClassVar

import traitlets

from priormatch.estimate import Estimate
from priormatch.explorers import history, stills
from priormatch.explorers.base import Explorer


class TrainingExplorer(Explorer):
    """Explorer of the training of the question's VAE: codes, rate and mismatch by epoch.

    Attributes:
        step: Index of the stored epoch that is shown, counted from 0.
        points: ``"codes"``, one draw from each posterior, ``"means"`` or ``"posteriors"``; or
            ``"prior"``, as many draws of N(0, I).

    Introduced in "The latent picture".
    """

    module = "training"
    caption = (
        "The codes of 500 test images while the question’s VAE was trained, and, to compare, as "
        "many draws of N(0, I). The rate is the average KL of single posteriors, the mismatch that "
        "of their average. The circles hold 50, 90 and 99 % of the mass of N(0, I)."
    )
    alt = (
        "Four panels with the codes of test images, coloured by digit, at four epochs: at first "
        "one round cloud of mixed colours, then patches of one colour each, which get more "
        "distinct while the whole stays about as large as the circle of N(0, I)."
    )
    heights = ("32rem", "58rem")
    state = ("step", "points")
    carried: ClassVar[dict[str, str]] = {"history": "question-history"}

    step = traitlets.Int(0, min=0, max=len(history.EPOCHS) - 1).tag(sync=True)
    points = traitlets.Enum(["codes", "means", "posteriors", "prior"], "codes").tag(sync=True)
    history = traitlets.Bytes().tag(sync=True)

    @property
    def epoch(self) -> int:
        """The epoch shown."""
        return history.EPOCHS[self.step]

    @property
    def measures(self) -> dict[str, Estimate]:
        """Rate, in-sample KL (upper estimate) and held-out KL (lower bound), in nats."""
        stored = history.load()
        names = ("rate", "in_sample_kl", "held_out_kl")
        return {name: Estimate(*stored[name][self.step].tolist()) for name in names}

    def still(self) -> bytes:
        """Return the still picture, a PNG."""
        return stills.training(history.load())
