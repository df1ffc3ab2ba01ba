"""The live figure of the KL term: one dimension of a posterior, and the pull of the term."""

import torch
import traitlets
from torch import Tensor

from priormatch.divergences import kl_from_prior_per_dimension, kl_to_prior_per_dimension
from priormatch.explorers import stills
from priormatch.explorers.base import Explorer


class KLExplorer(Explorer):
    """Explorer of the KL term: its value and its pull, by mean and scale of a posterior.

    Attributes:
        mu: Mean of the posterior, between -3 and 3.
        sigma: Its scale, between 0.05 and 3.

    Introduced in "What the KL term costs, and what it buys".
    """

    module = "kl"
    caption = (
        "Drag the point, move the sliders, or use the arrow keys. Left, the prior N(0, 1) and one "
        "dimension of a posterior Q; right, contours of KL(Q‖p) in nats over its mean and scale, "
        "and the pull of the KL term, half of its negative gradient."
    )
    alt = (
        "Left, the bell curve of N(0, 1) and a narrower one beside it, the posterior. Right, "
        "contours of the KL over the mean and the scale of the posterior, round near N(0, 1), and "
        "an arrow from the posterior towards it."
    )
    heights = ("25.5rem", "51rem")
    state = ("mu", "sigma")

    mu = traitlets.Float(1.0, min=-3.0, max=3.0).tag(sync=True)
    sigma = traitlets.Float(0.4, min=0.05, max=3.0).tag(sync=True)

    @property
    def kl(self) -> float:
        """KL(Q || p) in nats."""
        return kl_from_prior_per_dimension(*self._parameters).item()

    @property
    def reverse_kl(self) -> float:
        """KL(p || Q) in nats."""
        return kl_to_prior_per_dimension(*self._parameters).item()

    @property
    def _parameters(self) -> tuple[Tensor, Tensor]:
        mean, scale = torch.tensor([[self.mu], [self.sigma]], dtype=torch.float64)
        return mean, 2 * scale.log()

    def still(self) -> bytes:
        """Return the still picture, a PNG."""
        return stills.kl(self.mu, self.sigma)
