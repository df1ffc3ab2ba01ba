"""Live figures: widgets in Jupyter, and the same JavaScript on a page without a kernel.

In a notebook an explorer is an ipywidget, whose traits can be read and set: ``explorer.z``. On a
static page it is a captioned still picture, which `start.js` brings to life in a browser.
"""

import base64
import json
import re
from html import escape
from importlib.resources import files
from typing import Any, ClassVar

import anywidget
import torch
import traitlets
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution, kl_divergence

from priormatch.divergences import kl_from_prior_per_dimension, kl_to_prior_per_dimension
from priormatch.explorers import assets, history, slices, stills
from priormatch.mismatch import Estimate
from priormatch.models import INTERVAL

_IMPORT = re.compile(r'^import \{[^}]*\} from "\./(?P<module>[\w-]+)\.js";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?!default)", re.MULTILINE)


def source(file: str) -> str:
    """Return the text of a file of this package."""
    return (files(__name__) / file).read_text(encoding="utf-8")


def bundle(module: str) -> str:
    """Return a JavaScript module and those it imports as the one text that anywidget takes."""
    texts: dict[str, str] = {}

    def add(name: str) -> None:
        text = source(f"{name}.js")
        for imported in _IMPORT.finditer(text):
            if imported["module"] not in texts:
                add(imported["module"])
        texts[name] = _EXPORT.sub("", _IMPORT.sub("", text))

    add(module)
    return "\n".join(texts.values())


class Explorer(anywidget.AnyWidget):
    """A live figure.

    Attributes:
        module: Name of its JavaScript module.
        caption: What a reader sees and can do; a sentence or two of HTML.
        alt: What the still picture shows.
        heights: Height on a wide and on a narrow page, reserved so that nothing jumps.
        state: Traits that a page starts from.
        carried: Traits that hold a file of `assets`, by the file's name.
    """

    module: ClassVar[str]
    caption: ClassVar[str]
    alt: ClassVar[str]
    heights: ClassVar[tuple[str, str]]
    state: ClassVar[tuple[str, ...]] = ()
    carried: ClassVar[dict[str, str]] = {}

    def __init_subclass__(cls, **options: Any) -> None:
        """Give the widget its JavaScript and its style."""
        if "module" in cls.__dict__:  # anywidget makes a further subclass for each widget
            cls._esm = bundle(cls.module)
            cls._css = source("explorers.css")
        super().__init_subclass__(**options)

    def __init__(self, **state: Any) -> None:
        carried = {trait: assets.packed(name) for trait, name in self.carried.items()}
        super().__init__(**state, **carried)

    def still(self) -> bytes:
        """Return the still picture, a PNG."""
        raise NotImplementedError

    def first_look(self) -> dict[str, object]:
        """Return what a page shows before it has loaded any weights."""
        return {}

    def html(self) -> str:
        """Return the still picture with its caption, and all that a page needs to start from."""
        names = {trait: name + assets.SUFFIX for trait, name in self.carried.items()}
        traits = {trait: getattr(self, trait) for trait in self.state}
        state = escape(json.dumps({**traits, **self.first_look(), **names}))
        wide, narrow = self.heights
        picture = self.still()
        width, height = (int.from_bytes(picture[i : i + 4], "big") for i in (16, 20))
        return (
            f'<figure class="explorer" data-explorer="{self.module}" data-state="{state}"'
            f' data-files="{escape(json.dumps(list(names)))}"'
            f' style="--explorer-height-wide:{wide};--explorer-height-narrow:{narrow}">'
            f'<div class="explorer-stage"><img alt="{escape(self.alt)}"'
            f' width="{width}" height="{height}"'
            f' src="data:image/png;base64,{base64.b64encode(picture).decode()}"></div>'
            f"<figcaption>{self.caption}</figcaption></figure>"
        )

    def _repr_mimebundle_(self, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        bundle, metadata = super()._repr_mimebundle_(**options) or ({}, {})
        return {**bundle, "text/plain": self.alt, "text/html": self.html()}, metadata


class KLExplorer(Explorer):
    """Move the mean and the scale of a posterior; see what the KL term costs and where it pulls.

    Attributes:
        mu: Mean of the posterior, between -3 and 3.
        sigma: Its scale, between 0.05 and 3.

    Introduced in "The KL term".
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


def _coordinate(initial: float) -> traitlets.Float:
    return traitlets.Float(initial, min=-assets.LIMIT, max=assets.LIMIT)


class LatentExplorer(Explorer):
    """Point at a code z; the decoder draws its digit, and the figure says how dense the codes are.

    z moves on a grid with steps of 0.02, so that every shown log ratio is one that was computed
    here and none is interpolated.

    Attributes:
        z: The code, a pair of coordinates between -4 and 4, rounded to the grid.
        view: ``"density"``, ``"ratio"`` or ``"digits"``.
        points: What the digits are shown by: ``"draws"`` or ``"means"`` of their posteriors.
        ellipses: Whether posteriors are drawn as ellipses of two standard deviations.

    Introduced in "The latent picture".
    """

    module = "latent"
    caption = (
        "Point at a code with the mouse or a finger, or use the arrow keys: the question’s own "
        "decoder draws the digit in your browser. The colours are ln q(z) or, if chosen, how q(z) "
        "compares with the prior; the circles hold 50, 90 and 99 % of the mass of N(0, I)."
    )
    alt = (
        "A quilt of bright patches with dark seams between them and a ragged edge, the aggregated "
        "posterior over the latent plane, with three circles of N(0, I) around the middle. "
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
        """Whether q is lower at z than at 99 % of the held-out codes, as `hole_share` has it."""
        return bool(assets.field().place[self._node] & 4)

    @property
    def picture(self) -> Float[Tensor, " pixels"]:
        """The decoder's mean at z."""
        with torch.no_grad():
            return assets.vae().likelihood(torch.tensor(self.z)).mean

    def still(self) -> bytes:
        """Return the still picture, a PNG."""
        pictures = {f"z = ({self.z[0]:.2f}, {self.z[1]:.2f})": self.picture}
        return stills.quilt(assets.field().log_ratio, assets.axis(), self.z, pictures)

    def first_look(self) -> dict[str, object]:
        """Return the decoder's picture at z."""
        return {"picture": in_bytes(self.picture)}


class DrawExplorer(Explorer):
    """Draw an X or pick one; the encoder answers with Q(z|X), and the decoder reconstructs X.

    Ink is prepared as MNIST was: scaled into a box of 20 by 20 pixels, anti-aliased, and centred by
    its mass in 28 by 28. Its pixels are 1 from a grey value of 0.5 on, because the encoder was
    trained on binary pixels.

    Attributes:
        digit: Which of the stored test images X is, or -1 if it was drawn.
        pixels: X, a ``"0"`` or ``"1"`` a pixel.

    Source: :cite:t:`lecun2010`, for the preparation.

    Introduced in "The latent picture".
    """

    module = "draw"
    caption = (
        "Draw a digit with the mouse or a finger, or pick a test image: the question’s own encoder "
        "answers in your browser. Its posterior Q(z|X) is the mark on the quilt, magnified in the "
        "corner with ellipses at one and two standard deviations; the decoder draws its mean."
    )
    alt = (
        "The quilt of the aggregated posterior over the latent plane with a mark where the "
        "posterior of a test image lies, a small patch. Beside it the image and its "
        "reconstruction."
    )
    heights = ("28rem", "53rem")
    state = ("digit", "pixels")
    carried: ClassVar[dict[str, str]] = {
        "encoder": "question-encoder",
        "decoder": "question-decoder",
        "field": "question-field",
        "digits": "test-digits",
    }

    digit = traitlets.Int(2, min=-1, max=19).tag(sync=True)
    pixels = traitlets.Unicode().tag(sync=True)
    encoder = traitlets.Bytes().tag(sync=True)
    decoder = traitlets.Bytes().tag(sync=True)
    field = traitlets.Bytes().tag(sync=True)
    digits = traitlets.Bytes().tag(sync=True)

    @traitlets.default("pixels")
    def _first_pixels(self) -> str:
        return as_text(assets.some_digits().images[self.digit])

    @traitlets.observe("digit")
    def _pick(self, change: dict[str, Any]) -> None:
        if change["new"] >= 0:
            self.pixels = as_text(assets.some_digits().images[change["new"]])

    @traitlets.validate("pixels")
    def _binary(self, proposal: dict[str, Any]) -> str:
        if not re.fullmatch("[01]{784}", proposal["value"]):
            raise traitlets.TraitError("pixels are 784 characters, each 0 or 1")
        return proposal["value"]

    @property
    def image(self) -> Float[Tensor, " pixels"]:
        """X as a tensor."""
        return torch.tensor([float(pixel) for pixel in self.pixels])

    @property
    def posterior(self) -> Distribution:
        """Q(z|X)."""
        with torch.no_grad():
            return assets.vae().posterior(self.image)

    @property
    def kl(self) -> float:
        """KL(Q(z|X) || p) in nats."""
        return kl_divergence(self.posterior, assets.vae().prior).item()

    @property
    def picture(self) -> Float[Tensor, " pixels"]:
        """The decoder's mean at the mean of Q(z|X)."""
        with torch.no_grad():
            return assets.vae().likelihood(self.posterior.mean).mean

    def still(self) -> bytes:
        """Return the still picture, a PNG."""
        mean = tuple(self.posterior.mean.tolist())
        pictures = {"X": self.image, "reconstruction": self.picture}
        return stills.quilt(assets.field().log_ratio, assets.axis(), mean, pictures)

    def first_look(self) -> dict[str, object]:
        """Return the posterior of X and the reconstruction."""
        mean, scale = self.posterior.mean.tolist(), self.posterior.stddev.tolist()
        return {"answer": {"mean": mean, "scale": scale, "picture": in_bytes(self.picture)}}


class IntervalExplorer(Explorer):
    """Slide z along (0, 10): the decoded digit, and whose posterior lies there.

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

    def first_look(self) -> dict[str, object]:
        """Return the decoder's picture at z."""
        return {"picture": in_bytes(self.picture)}


class TrainingExplorer(Explorer):
    """Go through the training of the question's VAE: its codes, its rate and its mismatch.

    Attributes:
        step: Which of the stored epochs is shown, counted from 0.
        points: ``"codes"``, one draw of each posterior, ``"means"`` or ``"posteriors"``.

    Introduced in "The latent picture".
    """

    module = "training"
    caption = (
        "The codes of 500 test images while the question’s VAE was trained. Before the first epoch "
        "every posterior is nearly N(0, I) and every mean the same point; then the rate grows and "
        "the patches part. The circles hold 50, 90 and 99 % of the mass of N(0, I)."
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
    points = traitlets.Enum(["codes", "means", "posteriors"], "codes").tag(sync=True)
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


class DimensionsExplorer(Explorer):
    """Choose how many latent dimensions, one training, and any two dimensions of its codes.

    The latent dimensions of a training are sorted by their rate: the first is the most used.

    Attributes:
        d: Number of latent dimensions, one of `offers`.
        seed: Which of its trainings.
        pair: Two different latent dimensions, counted from 1.
        offers: The seeds that the study has, by the number of latent dimensions.

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
        for latent, seed in slices.cells():
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
    def cell(self) -> slices.Cell:
        """The training shown, with its measures and codes."""
        return slices.cells()[self.d, self.seed]

    @property
    def measures(self) -> dict[str, Estimate]:
        """The measures shown, by their names in the study: nats, and shares."""
        return self.cell.measures

    def still(self) -> bytes:
        """Return the still picture, a PNG."""
        latents = [*map(int, self.offers)]
        some = [latents[i] for i in sorted({0, len(latents) // 2, len(latents) - 1})]
        shown = {latent: slices.cells()[latent, self.offers[str(latent)][0]] for latent in some}
        return stills.dimensions(
            {latent: cell.codes for latent, cell in shown.items()},
            slices.labels().long(),
            {latent: cell.measures["density_bound"] for latent, cell in shown.items()},
        )

    def first_look(self) -> dict[str, object]:
        """Return what the chosen training shows in the chosen plane."""
        small = slices.pack({self.seed: self.cell}, self.pair, slices.labels())
        look = base64.b64encode(assets.zipped(small)).decode()
        return {"look": f"data:application/gzip;base64,{look}"}


def as_text(image: Float[Tensor, " pixels"]) -> str:
    """Return binary pixels as characters."""
    return "".join("1" if pixel else "0" for pixel in image.tolist())


def in_bytes(picture: Float[Tensor, " pixels"]) -> str:
    """Return grey values in [0, 1] as a byte a pixel, in base 64."""
    return base64.b64encode((255 * picture).round().to(torch.uint8).numpy().tobytes()).decode()


def kl(**state: Any) -> KLExplorer:
    """Return the explorer of the KL term; its traits can be given by name."""
    return KLExplorer(**state)


def latent(**state: Any) -> LatentExplorer:
    """Return the explorer of the latent plane; its traits can be given by name."""
    return LatentExplorer(**state)


def draw(**state: Any) -> DrawExplorer:
    """Return the explorer of the encoder; its traits can be given by name."""
    return DrawExplorer(**state)


def interval(**state: Any) -> IntervalExplorer:
    """Return the explorer of the interval; its trait can be given by name."""
    return IntervalExplorer(**state)


def training(**state: Any) -> TrainingExplorer:
    """Return the explorer of the training; its traits can be given by name."""
    return TrainingExplorer(**state)


def dimensions(**state: Any) -> DimensionsExplorer:
    """Return the explorer of latent dimensions; its traits can be given by name."""
    return DimensionsExplorer(**state)
