"""The explorers in a real browser: their pages, and every control of theirs."""

import functools
import math
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from matplotlib.colors import to_rgb
from playwright.sync_api import Browser, Locator, Page, Route

from priormatch import explorers
from priormatch.distributions import StretchedBeta
from priormatch.estimate import decimals
from priormatch.explorers import assets, history, patches, slices
from priormatch.explorers.base import Explorer
from priormatch.explorers.draw_explorer import as_text
from priormatch.plotting import DIGITS

pytestmark = pytest.mark.book

MAKERS: dict[str, Callable[..., Explorer]] = {
    "twenty": explorers.twenty,
    "kl": explorers.kl,
    "squeeze": explorers.squeeze,
    "latent": explorers.latent,
    "draw": explorers.draw,
    "drag": explorers.drag,
    "interval": explorers.interval,
    "bend": explorers.bend,
    "stretch": explorers.stretch,
    "training": explorers.training,
    "dimensions": explorers.dimensions,
}
PACKAGE = Path(explorers.__file__).parent

each_explorer = pytest.mark.parametrize("name", MAKERS)


THEMES = {
    "light": ("#222832", "#ffffff", "#d1d5da", "#0a7d91"),
    "dark": ("#ced6dd", "#14181e", "#48566b", "#3fb1c5"),
}


def page_of(figure: str, theme: str) -> str:
    names = ("text-base", "background", "border", "link")
    colours = zip(names, THEMES[theme], strict=True)
    style = ";".join(f"--pst-color-{name}:{colour}" for name, colour in colours)
    return (
        f'<!doctype html><html lang="en" data-theme="{theme}" style="{style}">'
        '<meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"><title>An explorer</title>'
        '<link rel="icon" href="data:,"><link rel="stylesheet" href="explorers.css">'
        "<style>body{margin:1rem auto;max-width:42rem;padding:0 1rem;font-family:sans-serif;"
        "color:var(--pst-color-text-base);background:var(--pst-color-background)}</style>"
        f'<main><h1>An explorer</h1>{figure}<p style="height:60rem">Below.</p></main>'
        '<script type="module" src="start.js"></script></html>'
    )


@pytest.fixture(scope="module")
def page_url(serve, tmp_path_factory) -> Callable[[str, str], str]:
    """Lay out a page of an explorer as it begins, once, and return its address."""
    folder = tmp_path_factory.mktemp("explorers")
    address = serve(folder)
    for file in [*PACKAGE.glob("*.js"), *PACKAGE.glob("*.css")]:
        shutil.copy(file, folder)

    @functools.cache
    def lay_out(name: str) -> None:
        explorer = MAKERS[name]()
        for theme in THEMES:
            (folder / f"{name}-{theme}.html").write_text(page_of(explorer.html(), theme))
        for file in explorer.carried.values():
            (folder / (file + assets.SUFFIX)).write_bytes(assets.packed(file))

    def url(name: str, theme: str) -> str:
        lay_out(name)
        return f"{address}{name}-{theme}.html"

    return url


@dataclass
class Desk:
    """An explorer in a browser, and what went wrong there."""

    tab: Page
    faults: list[str] = field(default_factory=list)

    @property
    def explorer(self) -> Locator:
        return self.tab.locator(".explorer-live")

    def value(self, name: str) -> list[float]:
        return numbers(self.explorer.locator(f"[data-value={name}]").inner_text())

    def ink(self, label: str) -> np.ndarray:
        """Read the pixels of a digit, as shares of ink."""
        canvas = self.explorer.get_by_role("img", name=label)
        return np.array(
            canvas.evaluate(
                "c => [...c.getContext('2d').getImageData(0, 0, 28, 28).data]"
                ".filter((_, i) => i % 4 == 3).map(a => a / 255)"
            )
        )

    def finger(self, *places: tuple[float, float]) -> None:
        """Put a finger down, drag it from place to place, and lift it."""
        session = self.tab.context.new_cdp_session(self.tab)
        kinds = ["touchStart", *["touchMove"] * (len(places) - 1)]
        for kind, (x, y) in zip(kinds, places, strict=True):
            points = [{"x": x, "y": y}]
            session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})


@pytest.fixture
def visit(page_url, browser: Browser) -> Iterator[Callable[..., Desk]]:
    opened: list[Desk] = []

    def visit(name: str, width: int = 1280, theme: str = "light", **options: object) -> Desk:
        context = browser.new_context(viewport={"width": width, "height": 1000}, **options)
        one = Desk(context.new_page())
        opened.append(one)
        one.tab.on("pageerror", lambda error: one.faults.append(f"script: {error}"))
        one.tab.on(
            "console",
            lambda m: one.faults.append(m.text) if m.type in ("error", "warning") else None,
        )
        one.tab.goto(page_url(name, theme))
        if options.get("java_script_enabled", True):
            one.tab.wait_for_selector("figure[data-alive]")
        return one

    yield visit
    for one in opened:
        one.tab.context.close()
    assert [fault for one in opened for fault in one.faults] == []


def numbers(text: str) -> list[float]:
    plain = text.replace("\u2212", "-")
    return [float(n) for n in re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?", plain)]


def agrees(shown: float, computed: float, decimals: int) -> bool:
    """Whether a number was shown as Python computes it, to its digits."""
    return abs(shown - computed) < 0.5 * 10**-decimals + 1e-5


def places(surface: Locator, *shares: tuple[float, float]) -> list[tuple[float, float]]:
    box = surface.bounding_box()
    return [
        (box["x"] + right * box["width"], box["y"] + down * box["height"]) for right, down in shares
    ]


@each_explorer
def test_without_javascript_the_still_picture_stays(name, visit):
    tab = visit(name, java_script_enabled=False).tab
    assert tab.locator("figure img").is_visible()
    assert tab.locator("figcaption").is_visible()
    assert tab.locator("button, input").count() == 0


SMALL_TARGETS = """el => [...el.querySelectorAll("input, button")]
  .map(control => control.closest("label") ?? control)
  .filter(e => e.checkVisibility())
  .filter(e => Math.min(e.getBoundingClientRect().width, e.getBoundingClientRect().height) < 24)
  .map(e => e.outerHTML)"""

FREE_SPACE = """stage => stage.getBoundingClientRect().height -
  stage.firstElementChild.getBoundingClientRect().height"""

FORWARD = """async ([file, inputs]) => {
  const { networkOf } = await import("./network.js");
  const network = await networkOf(file);
  return inputs.map(x => [...network.forward(x)]);
}"""


@each_explorer
@pytest.mark.parametrize("theme", THEMES)
def test_everybody_can_use_it_on_a_phone(name, theme, visit):
    desk = visit(name, width=390, theme=theme, has_touch=True)
    assert desk.tab.evaluate("document.documentElement.scrollWidth") <= 390
    small = desk.explorer.evaluate(SMALL_TARGETS)
    assert small == []
    rules = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}
    found = Axe().run(desk.tab, options=rules).response["violations"]
    assert [(fault["id"], fault["nodes"][0]["html"]) for fault in found] == []


@each_explorer
def test_the_page_does_not_jump_when_it_starts(name, visit):
    for width in (1280, 390):
        desk = visit(name, width)
        free = desk.tab.locator(".explorer-stage").evaluate(FREE_SPACE)
        assert 0 <= free < 80, f"at {width}: {free}"


LOOK = """el => el.innerHTML + [...el.querySelectorAll("canvas")].map(c => c.toDataURL()).join() +
  [...el.querySelectorAll("input")].map(i => i.value + i.checked).join()"""


@each_explorer
def test_every_control_does_something_by_keyboard(name, visit):
    desk = visit(name, reduced_motion="reduce")
    selector = "input, button, [tabindex='0']"
    for index in range(desk.explorer.locator(selector).count()):
        control = desk.explorer.locator(selector).nth(index)
        if not control.is_visible():
            continue
        kind = control.evaluate("e => e.type ?? e.tagName")
        assert control.evaluate("e => e.labels?.[0]?.innerText || e.ariaLabel || e.innerText"), kind
        before = desk.explorer.evaluate(LOOK)
        control.focus()
        checked = kind == "radio" and control.is_checked()
        desk.tab.keyboard.press(
            "ArrowRight" if checked or kind not in ("radio", "checkbox", "button") else "Space"
        )
        desk.tab.wait_for_timeout(60)
        assert desk.explorer.evaluate(LOOK) != before, control.evaluate("e => e.outerHTML")


def test_the_networks_are_those_of_torch(visit):
    tab = visit("draw").tab
    z = torch.randn((20, 2), generator=torch.Generator().manual_seed(0))
    images = assets.some_digits().images
    with torch.no_grad():
        wanted = {
            "decoder": (z, assets.vae().decoder.network(z)),
            "encoder": (images, assets.vae().encoder.network(images)),
        }
    for name, (inputs, outputs) in wanted.items():
        found = tab.evaluate(FORWARD, [f"question-{name}{assets.SUFFIX}", inputs.tolist()])
        assert np.abs(np.array(found) - outputs.numpy()).max() < 1e-2


# The KL explorer


def test_kl_by_slider_and_pointer_and_finger(visit):
    desk = visit("kl", has_touch=True)
    truth = explorers.kl()

    def agree() -> None:
        truth.mu, truth.sigma = (
            numbers(desk.explorer.locator("output").nth(i).inner_text())[0] for i in (0, 1)
        )
        assert agrees(desk.value("there")[0], truth.kl, 4)
        assert agrees(desk.value("back")[0], truth.reverse_kl, 4)
        assert agrees(desk.value("mean")[0], -truth.mu, 2)
        assert agrees(desk.value("scale")[-1], 1 - truth.sigma**2, 2)

    agree()
    desk.explorer.get_by_label("mean µ").focus()
    for _ in range(20):
        desk.tab.keyboard.press("ArrowLeft")
    agree()
    assert truth.mu == 0.8
    plane = desk.explorer.get_by_role("application")
    (x, y), end = places(plane, (0.4, 0.7), (0.8, 0.2))
    desk.tab.mouse.move(x, y)
    agree()
    assert truth.mu == 0.8, "the mouse moves the point only while it drags"
    desk.tab.mouse.down()
    agree()
    assert truth.mu < -0.5
    assert truth.sigma < 0.3
    desk.tab.mouse.up()
    scroll = desk.tab.evaluate("scrollY")
    desk.finger((x, y), end)
    agree()
    assert truth.mu > 1
    assert truth.sigma > 1
    assert desk.tab.evaluate("scrollY") == scroll


def test_kl_follows_the_pull_to_the_prior(visit):
    desk = visit("kl", reduced_motion="reduce")
    desk.explorer.get_by_role("button").click()
    assert desk.value("there") == [0.0], "at once, where motion is to be reduced"
    desk = visit("kl")
    desk.explorer.get_by_role("button").click()
    desk.tab.wait_for_function(
        "document.querySelector('[data-value=there]').textContent == '0.0000 nats'"
    )


# Squeeze the posterior of a digit


def prices(digit: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the distortion and the KL at each scale of the grid."""
    squeezed, scales = assets.squeezed(), assets.squeezed_scales()
    square = squeezed.means[digit].double().square().sum()
    return squeezed.distortion[digit].double(), 0.5 * square + scales**2 - 1 - 2 * scales.log()


@pytest.fixture
def squeeze_desk(visit) -> tuple[Desk, Callable[..., float]]:
    desk = visit("squeeze", has_touch=True)

    def agree(digit: int = 7) -> float:
        step = int(desk.explorer.get_by_label("squeeze σ").input_value())
        distortion, kl = prices(digit)
        total = (distortion + kl)[:41]
        wanted = {
            "reconstruction": distortion[step],
            "kl": kl[step],
            "sum": total[step],
            "above": total[step] - total.min(),
        }
        for name, value in wanted.items():
            assert agrees(desk.value(name)[0], value.item(), 1), name
        advice = desk.explorer.locator(".explorer-advice").inner_text()
        saved, cost = distortion[step] - distortion[step + 6], kl[step + 6] - kl[step]
        assert agrees(numbers(advice)[0], abs(saved.item()), 1)
        assert agrees(numbers(advice)[1], cost.item(), 1)
        assert ("not worth it" in advice) == (saved.item() < cost.item())
        truth = explorers.squeeze(digit=digit, sigma=assets.squeezed_scales()[step].item())
        for i, picture in enumerate(truth.pictures):
            shown = desk.ink(f"What the decoder makes of draw {i + 1}")
            assert np.abs(shown - picture.numpy()).max() < 0.003
        return truth.sigma

    desk.explorer.hover()
    desk.tab.wait_for_function("!document.querySelector('.explorer-status').textContent")
    return desk, agree


def test_squeeze_by_slider_pointer_and_finger(squeeze_desk):
    desk, agree = squeeze_desk
    assert agree() == 1
    squeeze = desk.explorer.get_by_label("squeeze σ")
    squeeze.focus()
    for _ in range(20):
        desk.tab.keyboard.press("ArrowRight")
    assert agree() == pytest.approx(0.1)
    assert squeeze.get_attribute("aria-valuetext") == "0.100"
    chart = desk.explorer.get_by_role("img", name="Both prices")
    desk.tab.mouse.move(*places(chart, (0.9, 0.5))[0])
    assert agree() == pytest.approx(0.1), "the mouse moves it only while it drags"
    desk.tab.mouse.down()
    assert agree() < 0.03
    desk.tab.mouse.up()
    desk.finger(*places(chart, (0.9, 0.5), (0.5, 0.5), (0.3, 0.5)))
    assert 0.2 < agree() < 0.6


def test_squeeze_another_digit_to_its_least_sum(squeeze_desk):
    desk, agree = squeeze_desk
    desk.explorer.get_by_role("radio", name="a 3").click()
    assert agree(digit=3) == 1
    desk.explorer.get_by_role("button", name="least sum").click()
    agree(digit=3)
    assert desk.value("above") == [0.0]
    desk.tab.wait_for_function(
        "/X is a 3. At σ = 0.0.*Half this σ/"
        ".test(document.querySelector('[aria-live=polite]').textContent)"
    )


# The latent explorer


@pytest.fixture
def latent_desk(visit) -> tuple[Desk, Callable[[], tuple[float, ...]]]:
    desk = visit("latent", has_touch=True)
    truth = explorers.latent()

    def agree() -> tuple[float, ...]:
        outputs = desk.explorer.locator("output").all_inner_texts()
        truth.z = tuple(numbers(text)[0] for text in outputs)
        shown = numbers(desk.explorer.locator(".explorer-line").inner_text())[-1]
        assert agrees(shown, truth.log_ratio, 2)
        words = desk.explorer.locator(".explorer-kind").inner_text()
        assert words.startswith("A hole") == truth.in_hole
        assert ("ten times" in words) == (truth.log_ratio < -math.log(10))
        assert np.abs(desk.ink("The picture") - truth.picture.numpy()).max() < 0.003
        return truth.z

    desk.explorer.hover()
    desk.tab.wait_for_function("!document.querySelector('.explorer-status').textContent")
    return desk, agree


def test_latent_by_pointer_finger_and_keys(latent_desk):
    desk, agree = latent_desk
    plane = desk.explorer.get_by_role("application")
    for share in [(0.5, 0.5), (0.72, 0.58), (0.03, 0.05), (0.46, 0.9), (0.3, 0.35)]:
        desk.tab.mouse.move(*places(plane, share)[0])
        z = agree()
        assert z == pytest.approx((8 * share[0] - 4, 4 - 8 * share[1]), abs=0.03)
    scroll = desk.tab.evaluate("scrollY")
    desk.finger(*places(plane, (0.5, 0.5), (0.55, 0.4), (0.6, 0.3)))
    assert agree() == pytest.approx((0.8, 1.6), abs=0.05)
    assert desk.tab.evaluate("scrollY") == scroll
    plane.focus()
    desk.tab.keyboard.press("Home")
    for key in ("ArrowLeft", "ArrowUp", "ArrowUp", "Shift+ArrowDown"):
        desk.tab.keyboard.press(key)
    assert agree() == (-0.1, 0.18)
    desk.explorer.get_by_label("z₂").focus()
    desk.tab.keyboard.press("ArrowUp")
    assert agree() == (-0.1, 0.2)
    assert desk.explorer.get_by_label("z₂").get_attribute("aria-valuetext") == "0.20"
    desk.tab.wait_for_function(
        "/z is −0.10, 0.20; the log ratio/"
        ".test(document.querySelector('[aria-live=polite]').textContent)"
    )


def test_latent_draws_within_a_frame(latent_desk, record_property, say):
    desk, _ = latent_desk
    desk.tab.evaluate(
        """() => { window.times = []; let start;
          addEventListener("pointermove", () => { start = performance.now() }, true);
          addEventListener("pointermove", () => times.push(performance.now() - start)); }"""
    )
    plane = desk.explorer.get_by_role("application")
    for i in range(120):
        desk.tab.mouse.move(*places(plane, (0.2 + i / 200, 0.3 + (i % 17) / 50))[0])
    times = np.array(desk.tab.evaluate("times"))
    median, late = np.quantile(times, [0.5, 0.95])
    say(f"pointer to digit: median {median:.1f} ms, 95th percentile {late:.1f} ms")
    assert len(times) > 60
    assert median < 16


# Twenty codes


def test_twenty_by_button_and_choice(visit):
    desk, truth = visit("twenty"), explorers.twenty()
    desk.explorer.hover()
    desk.tab.wait_for_function("!document.querySelector('.explorer-status').textContent")

    def agree() -> None:
        for side, source in (("prior", "prior"), ("other", truth.source)):
            told = truth.told(source)
            assert desk.value(f"{side}-thin")[0] == told.in_seams
            assert agrees(desk.value(f"{side}-near")[0], told.nearest_patch, 2)
            frames = desk.explorer.locator(f".explorer-sheet:has([data-value={side}-thin]) canvas")
            labels = frames.evaluate_all("all => all.map(c => c.getAttribute('aria-label'))")
            assert [label.endswith("in a seam") for label in labels] == (
                truth.draws(source).log_ratio < -math.log(10)
            ).tolist()
            shown = np.array(frames.evaluate_all(TRIO))
            assert np.abs(shown - truth.pictures(source).numpy()).max() < 0.003

    agree()
    for _ in range(3):
        desk.explorer.get_by_role("button").click()
        truth.turn += 1
    assert truth.told("prior").in_seams > 0
    agree()
    desk.explorer.get_by_role("radio", name="a fitted mixture").check()
    truth.source = "mixture"
    agree()
    desk.tab.wait_for_function(
        "/draws of the fitted mixture lie in seams/"
        ".test(document.querySelector('[aria-live=polite]').textContent)"
    )


# Draw an X


@pytest.fixture
def draw_desk(visit) -> tuple[Desk, Callable[[], Explorer]]:
    desk = visit("draw", has_touch=True)
    truth = explorers.draw()

    def agree() -> Explorer:
        seen = desk.ink("X, as the encoder sees it")
        truth.pixels = "".join(map(str, seen.astype(int)))
        for shown, computed in zip(desk.value("mean"), truth.posterior.mean.tolist(), strict=True):
            assert agrees(shown, computed, 2)
        for shown, computed in zip(
            desk.value("scale"), truth.posterior.stddev.tolist(), strict=True
        ):
            assert agrees(shown, computed, 3)
        assert agrees(desk.value("kl")[0], truth.kl, 2)
        assert np.abs(desk.ink("The reconstruction") - truth.picture.numpy()).max() < 0.003
        return truth

    agree()
    desk.explorer.hover()
    desk.tab.wait_for_function("!document.querySelector('.explorer-status').textContent")
    return desk, agree


def test_draw_by_keyboard_picks_test_images(draw_desk):
    desk, agree = draw_desk
    desk.explorer.get_by_role("radio", checked=True).focus()
    for index in (3, 4, 5):
        desk.tab.keyboard.press("ArrowRight")
        assert agree().pixels == as_text(assets.some_digits().images[index])


def test_draw_by_pointer_and_finger(draw_desk):
    desk, agree = draw_desk
    pad = desk.explorer.locator(".explorer-pad")
    # A one in the corner of the pad comes out centred and 20 pixels high.
    top, bottom = places(pad, (0.2, 0.1), (0.2, 0.5))
    desk.tab.mouse.move(*top)
    desk.tab.mouse.down()
    desk.tab.mouse.move(*bottom, steps=8)
    desk.tab.mouse.up()
    desk.tab.wait_for_timeout(50)
    image = agree().image.reshape(28, 28)
    rows, columns = (torch.nonzero(image.sum(axis)).squeeze(1) for axis in (1, 0))
    assert 19 <= rows[-1] - rows[0] + 1 <= 21
    assert (rows.float().mean() - 13.5).abs() <= 1
    assert (columns.float().mean() - 13.5).abs() <= 1
    scroll = desk.tab.evaluate("scrollY")
    desk.finger(*places(pad, (0.5, 0.5), (0.7, 0.3), (0.9, 0.6)))
    desk.tab.wait_for_timeout(50)
    assert not torch.equal(agree().image.reshape(28, 28), image)
    assert desk.tab.evaluate("scrollY") == scroll
    desk.explorer.get_by_role("button", name="Clear").click()
    assert agree().image.sum() == 0


# The interval explorer


def test_interval_by_pointer_finger_and_keys(visit):
    desk = visit("interval", has_touch=True)
    truth = explorers.interval()
    desk.explorer.hover()
    desk.tab.wait_for_function("!document.querySelector('.explorer-status').textContent")
    plane = desk.explorer.get_by_role("application")

    def agree() -> float:
        truth.z = numbers(desk.explorer.locator("output").inner_text())[0]
        density = truth.density.sum().item()
        assert agrees(desk.value("density")[0], density, 3)
        shown = numbers(desk.explorer.locator("[data-value=shares]").inner_text())
        for digit, share in zip(shown[::2], shown[1::2], strict=True):
            assert agrees(share, 100 * truth.density[int(digit)].item() / density, 0)
        assert shown[0] == truth.density.argmax()
        assert np.abs(desk.ink("The picture") - truth.picture.numpy()).max() < 0.003
        return truth.z

    for share in (0.001, 0.33, 0.77, 0.999):
        desk.tab.mouse.move(*places(plane, (share, 0.5))[0])
        assert agree() == pytest.approx(10 * share, abs=0.02)
    desk.finger(*places(plane, (0.2, 0.5), (0.5, 0.5)))
    assert agree() == pytest.approx(5, abs=0.02)
    plane.focus()
    for key in ("Home", "ArrowRight", "ArrowRight", "Shift+ArrowLeft"):
        desk.tab.keyboard.press(key)
    assert agree() == 5.19


def test_the_test_image_on_the_interval_is_the_one_whose_posterior_is_highest(visit):
    desk = visit("interval")
    codes = assets.packed_interval()
    posterior = StretchedBeta(codes["alpha"], codes["beta"])
    best = posterior.log_prob(torch.tensor(explorers.interval().z)).argmax()
    shown = desk.ink("A test image")
    np.testing.assert_array_equal(shown, codes["images"][best].numpy())
    assert agrees(desk.value("kl")[0], codes["kl"][best].item(), 2)


# Through training


def test_training_by_slider_and_play(visit):
    desk = visit("training", reduced_motion="reduce")
    truth = explorers.training()

    def agree() -> None:
        for name, measure in truth.measures.items():
            value, error = desk.value(name)
            assert agrees(value, measure.value, 3)
            assert 0 <= error - measure.standard_error < 1e-3, "errors are rounded up"

    agree()
    epoch = desk.explorer.get_by_label("epoch", exact=True)
    epoch.focus()
    for step in (1, 2, 3):
        desk.tab.keyboard.press("ArrowRight")
        truth.step = step
        assert epoch.get_attribute("aria-valuetext") == str(truth.epoch)
        agree()
    desk.tab.keyboard.press("End")
    truth.step = len(history.EPOCHS) - 1
    agree()
    desk.explorer.get_by_role("button").click()
    desk.tab.wait_for_function("document.querySelector('input[type=range]').ariaValueText == '0'")
    desk.explorer.get_by_role("button", name="Stop").click()


# More latent dimensions


@pytest.fixture
def dimensions_desk(visit) -> tuple[Desk, Callable[..., None]]:
    desk = visit("dimensions", has_touch=True)
    truth = explorers.dimensions()

    def agree(**state: object) -> None:
        for name, value in state.items():
            setattr(truth, name, value)
        desk.tab.wait_for_function(
            f"document.querySelector('.explorer-heading').textContent == "
            f"'The training with d = {truth.d} and seed {truth.seed}:'"
        )
        shown = {
            cell.get_attribute("data-value"): cell.inner_text().replace("\u2212", "-")
            for cell in desk.explorer.locator("[data-value]").all()
        }
        shares = ("hole_share", "classifier_accuracy")
        expected = {
            name: str(estimate) + (" nats" if name not in shares else "")
            for name, estimate in truth.measures.items()
        }
        in_sample = truth.measures["in_sample_kl"]
        digits = decimals(in_sample.standard_error, 2)
        expected |= {
            "floor": f"{in_sample.floor:.{digits}f} nats",
            "active_units": f"{truth.training.active_units} of {truth.d}",
        }
        plane = truth.training.codes[:, [dimension - 1 for dimension in truth.pair]]
        outside = int((plane.abs() > assets.LIMIT).any(1).sum())
        expected["outside"] = f"{outside} of 500 codes lie outside the frame"
        for axis, dimension in enumerate(truth.pair):
            expected |= {
                f"rate_{axis}": f"{truth.training.rates[dimension - 1]} nats",
                f"marginal_kl_{axis}": f"{truth.training.marginal_kls[dimension - 1]} nats",
            }
        assert shown == expected
        words = f"dimensions {truth.pair[0]} and {truth.pair[1]} of {truth.d}, seed {truth.seed}"
        picture = desk.explorer.get_by_role("img", name="Codes of")
        assert picture.get_attribute("aria-label") == f"Codes of 500 test images in latent {words}"
        for way, dimension in zip(("across", "up"), truth.pair, strict=True):
            axis = desk.explorer.get_by_label(f"dimension {way}")
            assert axis.get_attribute("aria-valuetext") == f"{dimension} of {truth.d}"

    agree()
    return desk, agree


def option(desk: Desk, legend: str, value: object) -> Locator:
    """Return an option of a group; what does nothing, where there is nothing to choose."""
    group = desk.explorer.get_by_role("radiogroup", name=legend, exact=True)
    chosen = group.get_by_role("radio", name=str(value), exact=True)
    return chosen if group.count() else desk.explorer.locator(".explorer-heading")


def test_dimensions_by_pointer_and_keys(dimensions_desk):
    desk, agree = dimensions_desk
    for d, seeds in explorers.dimensions().offers.items():
        option(desk, "d", d).click()
        for seed in seeds:
            option(desk, "seed", seed).click()
            agree(d=int(d), seed=seed)
    across = desk.explorer.get_by_label("dimension across")
    across.focus()
    desk.tab.keyboard.press("ArrowRight")
    agree(pair=(2, 1))  # a dimension that is taken changes places
    desk.tab.keyboard.press("End")
    agree(pair=(int(d), 1))


def test_the_first_dimensions_of_the_widest_model_by_finger(dimensions_desk):
    desk, agree = dimensions_desk
    d = max(map(int, explorers.dimensions().offers))
    desk.finger(*places(option(desk, "d", d), (0.5, 0.5)))
    agree(d=d)
    up = desk.explorer.get_by_label("dimension up")
    desk.finger(*places(up, (0.5, 0.5), (0.8, 0.5), (0.999, 0.5)))
    agree(pair=(1, d))
    desk.tab.wait_for_function(
        f"/Latent dimensions 1 and {d} of {d}, seed 0: rates/"
        ".test(document.querySelector('[aria-live=polite]').textContent)"
    )


# The colours of the uppermost canvas at shares of its width and height.
COLOURS = """(canvas, places) => {
  const { width, height } = canvas;
  const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
  return places.map(([x, y]) => {
    const pixel = Math.floor(y * height) * width + Math.floor(x * width);
    return [...data.subarray(4 * pixel, 4 * pixel + 4)];
  });
}"""


def test_the_codes_lie_where_they_are_in_the_chosen_plane(dimensions_desk):
    desk, agree = dimensions_desk
    desk.explorer.get_by_label("dimension across").press("ArrowRight")
    agree(pair=(2, 1))
    codes = explorers.dimensions().training.codes.float()[:, [1, 0]]
    alone = torch.cdist(codes, codes).fill_diagonal_(9).amin(1) > 0.2
    inside = codes.abs().amax(1) < 3.9
    chosen = (alone & inside).nonzero()[:, 0]
    assert len(chosen) > 20
    shares = [[(4 + x) / 8, (4 - y) / 8] for x, y in codes[chosen].tolist()]
    found = desk.explorer.get_by_role("img", name="Codes of").evaluate(COLOURS, shares)
    colours = [to_rgb(DIGITS.colors[label]) for label in slices.labels()[chosen]]
    wanted = [[round(255 * channel) for channel in colour] + [255] for colour in colours]
    assert np.abs(np.array(found) - np.array(wanted)).max() <= 1


def test_dimensions_load_nothing_before_they_are_touched_and_then_what_is_chosen(visit):
    desk = visit("dimensions")
    asked: list[str] = []
    desk.tab.on("request", lambda request: asked.append(request.url.rsplit("/", 1)[1]))
    desk.tab.reload()
    desk.tab.wait_for_selector("figure[data-alive]")
    desk.tab.wait_for_timeout(200)
    assert [name for name in asked if name.endswith(assets.SUFFIX)] == []
    assert "dimensions.js" in asked, "requests are seen"
    desk.explorer.hover()
    wanted = [explorers.dimensions().d]
    for d in map(int, explorers.dimensions().offers):
        option(desk, "d", d).click()
        wanted += [d] if d not in wanted else []
        desk.tab.wait_for_function(
            f"document.querySelector('.explorer-heading').textContent.includes('d = {d} and')"
        )
    files = [f"dimension-codes-{d}{assets.SUFFIX}" for d in wanted]
    assert [name for name in asked if name.endswith(assets.SUFFIX)] == files


def test_a_file_that_does_not_come_leaves_no_wrong_numbers_unsaid(visit):
    desk = visit("dimensions")
    waiting: list[Route] = []
    desk.tab.route("**/dimension-codes-*", lambda route: waiting.append(route))
    desk.explorer.hover()
    heading = desk.explorer.locator(".explorer-heading")
    desk.tab.wait_for_function(
        "document.querySelector('.explorer-heading').textContent.startsWith('Loading d = ')"
    )
    for route in waiting:
        route.continue_()
    desk.tab.wait_for_function(
        "document.querySelector('.explorer-heading').textContent.startsWith('The training')"
    )
    assert heading.inner_text().endswith("seed 0:")


# Stands in for a notebook, where codes come with the widget and nothing is brought by the page.
IN_A_NOTEBOOK = """async ([traits, trait, file]) => {
  traits[trait] = new DataView(await (await fetch(file)).arrayBuffer());
  const model = { get: (name) => traits[name], on() {} };
  const { default: explorer } = await import("./dimensions.js");
  const el = document.createElement("div");
  document.querySelector("main").append(el);
  await explorer.render({ model, el });
}"""


def test_dimensions_in_a_notebook_start_from_what_came_with_the_widget(visit):
    truth = explorers.dimensions()
    traits = {name: getattr(truth, name) for name in truth.state} | {"pair": (2, 1)}
    codes = f"codes_{truth.d}"
    tab = visit("dimensions").tab
    tab.evaluate(IN_A_NOTEBOOK, [traits, codes, truth.carried[codes] + assets.SUFFIX])
    shown = tab.locator(".explorer-live").last.locator("[data-value=rate_0]")
    tab.wait_for_timeout(300)
    assert shown.inner_text() == f"{truth.training.rates[1]} nats"


# Three patches on a line

TRIO = """canvases => canvases.map(c => [...c.getContext("2d").getImageData(0, 0, 28, 28).data]
  .filter((_, i) => i % 4 == 3).map(a => a / 255))"""


@pytest.mark.parametrize(
    ("name", "keys"),
    [("bend", ("bend", {"amount": 0.3})), ("stretch", ("stretch", {"factor": 1.3}))],
)
def test_patches_by_slider(name, keys, visit):
    desk, truth = visit(name, has_touch=True), MAKERS[name]()
    label, moved = keys
    images = patches.images().numpy()

    def agree() -> np.ndarray:
        for cost, value in truth.costs._asdict().items():
            assert agrees(desk.value(cost)[0], value, 2), cost
        return np.array(desk.explorer.locator("canvas").evaluate_all(TRIO)) - images

    assert np.abs(agree()).max() < 0.1, "each code is in the middle of its patch"
    desk.explorer.get_by_label(label, exact=True).focus()
    for _ in range(30):
        desk.tab.keyboard.press("ArrowRight")
    for trait, value in moved.items():
        setattr(truth, trait, value)
    assert np.abs(agree()).max() < 0.1, "and its picture stands still"
    if name == "bend":
        scroll = desk.tab.evaluate("scrollY")
        slider = desk.explorer.get_by_label(label, exact=True)
        desk.finger(*places(slider, (0.3, 0.5), (0.6, 0.5), (0.999, 0.5)))
        assert desk.tab.evaluate("scrollY") == scroll
        truth.amount = 1.0
        assert np.abs(agree()).max() < 0.1
        assert desk.value("mismatch") == [0.0]
        desk.explorer.get_by_role("checkbox").click()
        truth.lens = False
        assert np.abs(agree()).max() > 0.3, "without the lens pictures change"
        desk.tab.wait_for_function(
            "/Bent by 100 %.* The pictures have changed/"
            ".test(document.querySelector('[aria-live=polite]').textContent)"
        )
    else:
        best = patches.quilt().stddev.reciprocal().item()
        truth.factor, truth.shift = round(best, 2), round(-best * patches.quilt().mean.item(), 2)
        for each in ("factor", "shift"):
            slider = desk.explorer.get_by_label({"factor": "stretch"}.get(each, each), exact=True)
            slider.fill(str(getattr(truth, each)))
        agree()
        assert abs(desk.value("mean")[0]) < 0.02
        assert abs(desk.value("square")[0] - 1) < 0.02


# Ten intervals


@pytest.fixture
def drag_desk(visit) -> tuple[Desk, Callable[[], list[float]]]:
    desk = visit("drag", has_touch=True)
    truth = explorers.drag()

    def agree() -> list[float]:
        """Read the chosen digit and all bars; return its interval."""
        truth.digit = int(desk.explorer.get_by_role("radio", checked=True).get_attribute("value"))
        surface = desk.explorer.get_by_role("application").bounding_box()
        pairs = {}
        for row in desk.explorer.locator(".explorer-handles").all():
            box = row.bounding_box()
            starts = 10 * (box["x"] - surface["x"]) / surface["width"]
            pairs[box["y"]] = [starts, starts + 10 * box["width"] / surface["width"]]
        # From the top the digits are 0, 9, 8 and so on.
        from_top = [pairs[y] for y in sorted(pairs)]
        truth.intervals = [from_top[-digit % 10] for digit in range(10)]
        own = [numbers(text)[0] for text in desk.explorer.locator("output").all_inner_texts()]
        assert own == truth.intervals[truth.digit]
        for name in ("rate", "information", "mismatch"):
            assert agrees(desk.value(name)[0], getattr(truth.costs, name), 2), name
        assert agrees(desk.value("missed")[0], 100 * truth.costs.missed, 0)
        reverse = desk.explorer.locator("[data-value=reverse]").inner_text()
        if math.isinf(truth.costs.reverse):
            assert reverse == "infinite"
        else:
            assert agrees(numbers(reverse)[0], truth.costs.reverse, 2)
        return own

    return desk, agree


def test_drag_an_interval_and_its_ends(drag_desk):
    desk, agree = drag_desk
    surface = desk.explorer.get_by_role("application")
    assert agree() == [2, 3]

    def drag(digit: int, start: float, end: float) -> list[float]:
        height = (0.5 + -digit % 10) / 10
        first, second = places(surface, (start / 10, height), (end / 10, height))
        desk.tab.mouse.move(*first)
        desk.tab.mouse.down()
        desk.tab.mouse.move(*second)
        desk.tab.mouse.up()
        return agree()

    assert drag(3, 2.5, 4.5) == [4, 5], "the middle moves it"
    assert drag(3, 5, 7.2) == [4, 7.2], "an end stretches it"
    assert drag(7, 6.05, 2.05) == [2, 7]
    assert drag(7, 2, 9) == [6.6, 7], "no end passes the other"
    assert drag(0, 9.5, 20) == [9, 10], "nothing leaves the interval"
    assert drag(1, 4, 4) == [3.5, 4.5], "a click moves it there"
    scroll = desk.tab.evaluate("scrollY")
    desk.finger(*places(surface, (0.15, 0.85), (0.3, 0.85), (0.45, 0.85)))
    assert agree() == [4, 5]
    assert desk.tab.evaluate("scrollY") == scroll


def test_drag_by_keys_sliders_and_buttons(drag_desk):
    desk, agree = drag_desk
    desk.explorer.get_by_role("radio", name="5", exact=True).focus()
    desk.tab.keyboard.press("Space")
    surface = desk.explorer.get_by_role("application")
    surface.focus()
    for keys, wanted in [
        ("ArrowRight", [4.5, 5.5]),
        ("Shift+ArrowLeft", [4.4, 5.4]),
        ("ArrowUp ArrowUp", [3.8, 6]),
        ("ArrowDown " * 9, [4.7, 5.1]),
        ("ArrowLeft " * 12, [0, 0.4]),
        ("Home", [4, 5]),
    ]:
        for key in keys.split():
            desk.tab.keyboard.press(key)
        assert agree() == wanted, keys
    for label, value, wanted in [
        ("from", 1.3, [1.3, 5]),
        ("to", 9, [1.3, 9]),
        ("from", 9, [8.6, 9]),
    ]:
        desk.explorer.get_by_label(label, exact=True).fill(str(value))
        assert agree() == wanted
    for name, words in [
        ("All on everything", "Rate 0.00, information 0.00, mismatch 0.00 nats. The mixture is"),
        ("Pile up", "mismatch 2.30 nats. No code reaches 90 % of the prior"),
        ("Side by side", "information 2.30, mismatch 0.00 nats. The mixture is the prior"),
    ]:
        desk.explorer.get_by_role("button", name=name).click()
        agree()
        desk.tab.wait_for_function(
            "words => document.querySelector('[aria-live=polite]').textContent.includes(words)",
            arg=words,
        )
