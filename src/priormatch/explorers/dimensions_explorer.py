"""The live figure of latent dimensions: any two of them, in any training of the study."""

import base64
from typing import Any, ClassVar

import traitlets

from priormatch.estimate import Estimate
from priormatch.explorers import assets, slices, stills
from priormatch.explorers.base import Explorer


class DimensionsExplorer(Explorer):
    """Explorer of codes in any two latent dimensions of a training of the study.

    The latent dimensions of a training are sorted by their rate: the first is the most used.

    Attributes:
        d: Number of latent dimensions, one of `offers`.
        seed: Seed of the training.
        pair: Two different latent dimensions, counted from 1.
        offers: Seeds in the study, by the number of latent dimensions.

    Introduced in "More latent dimensions".
    """

    module = "dimensions"
    caption = (
        "Choose the number d of latent dimensions, one training by its seed, and any two of its "
        "dimensions, sorted by their rate. Each dot is a draw of the posterior of one of 500 test "
        "images; the circles hold 50, 90 and 99 % of the mass of N(0, I) in this plane. A match "
        "would have a joint bound of 0, a hole share of 0.01 and a classifier accuracy of 0.5. "
        "A bound is as tight as the density that could be fitted, and loosest with d = 50. "
        "Standard errors are over images and draws, of this one training; another seed is another."
    )
    alt = (
        "Planes side by side, from few latent dimensions to many: codes of test images in the two "
        "dimensions that are used most, coloured by digit, over three circles of N(0, I). Above "
        "each stands how far the codes are from N(0, I) at least, in all dimensions together."
    )
    heights = ("34rem", "61rem")
    state = ("d", "seed", "pair", "offers")
    carried: ClassVar[dict[str, str]] = {
        f"codes_{latent}": f"dimension-codes-{latent}" for latent in slices.DIMENSIONS
    }

    d = traitlets.Int().tag(sync=True)
    seed = traitlets.Int().tag(sync=True)
    pair = traitlets.Tuple(traitlets.Int(), traitlets.Int(), default_value=(1, 2)).tag(sync=True)
    offers = traitlets.Dict(read_only=True).tag(sync=True)
    codes_2 = traitlets.Bytes().tag(sync=True)
    codes_3 = traitlets.Bytes().tag(sync=True)
    codes_5 = traitlets.Bytes().tag(sync=True)
    codes_10 = traitlets.Bytes().tag(sync=True)
    codes_20 = traitlets.Bytes().tag(sync=True)
    codes_50 = traitlets.Bytes().tag(sync=True)

    @traitlets.default("offers")
    def _what_the_study_has(self) -> dict[str, list[int]]:
        offers: dict[str, list[int]] = {}  # JSON has no numbers for keys
        for latent, seed in slices.trainings():
            offers.setdefault(str(latent), []).append(seed)
        return offers

    @traitlets.default("d")
    def _ten_if_there(self) -> int:
        return max(latent for latent in map(int, self.offers) if latent <= 10)

    @traitlets.default("seed")
    def _first_seed(self) -> int:
        return self.offers[str(self.d)][0]

    @traitlets.validate("d")
    def _offered(self, proposal: dict[str, Any]) -> int:
        if str(proposal["value"]) not in self.offers:
            raise traitlets.TraitError(f"d is one of {', '.join(self.offers)}")
        return proposal["value"]

    @traitlets.validate("seed")
    def _trained(self, proposal: dict[str, Any]) -> int:
        if proposal["value"] not in self.offers[str(self.d)]:
            raise traitlets.TraitError(f"seed is one of {self.offers[str(self.d)]}")
        return proposal["value"]

    @traitlets.validate("pair")
    def _different(self, proposal: dict[str, Any]) -> tuple[int, int]:
        first, second = proposal["value"]
        if first == second or not {first, second} <= set(range(1, self.d + 1)):
            raise traitlets.TraitError(f"pair is two different dimensions from 1 to {self.d}")
        return proposal["value"]

    @traitlets.observe("d")
    def _stay_inside(self, change: dict[str, Any]) -> None:
        if self.seed not in self.offers[str(self.d)]:
            self.seed = self._first_seed()
        if max(self.pair) > self.d:
            self.pair = (1, 2)

    @property
    def training(self) -> slices.Training:
        """The training shown, with its measures and codes."""
        return slices.trainings()[self.d, self.seed]

    @property
    def measures(self) -> dict[str, Estimate]:
        """The measures shown, by their names in the study: nats, and shares."""
        return self.training.measures

    def still(self) -> bytes:
        """Return the still picture, a PNG."""
        latents = [*map(int, self.offers)]
        some = [latents[i] for i in sorted({0, len(latents) // 2, len(latents) - 1})]
        shown = {latent: slices.trainings()[latent, self.offers[str(latent)][0]] for latent in some}
        return stills.dimensions(
            {latent: training.codes for latent, training in shown.items()},
            slices.labels().long(),
            {latent: training.measures["density_bound"] for latent, training in shown.items()},
        )

    def initial_state(self) -> dict[str, object]:
        """Return the measures of the chosen training, and its codes in the chosen plane."""
        small = slices.pack({self.seed: self.training}, self.pair, slices.labels())
        snapshot = base64.b64encode(assets.zipped(small)).decode()
        return {"snapshot": f"data:application/gzip;base64,{snapshot}"}
