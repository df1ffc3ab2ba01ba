import functools
import json
import math
import re

import pytest
import torch
from bs4 import BeautifulSoup
from torch.distributions import Independent, Normal, kl_divergence
from traitlets import TraitError

from priormatch import explorers
from priormatch.explorers import assets, slices
from priormatch.explorers.base import Explorer, bundle
from priormatch.models import encode

pytestmark = pytest.mark.slow

each_explorer = pytest.mark.parametrize("name", explorers.__all__)


@functools.cache
def explorer(name: str) -> Explorer:
    """Make each explorer once."""
    return getattr(explorers, name)()


@each_explorer
def test_an_explorer_is_a_widget_and_a_captioned_still_picture(name):
    shown, _ = explorer(name)._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in shown
    figure = BeautifulSoup(shown["text/html"], "html.parser").find("figure")
    assert len(figure.find("figcaption").get_text()) > 100
    assert len(figure.find("img")["alt"]) > 100
    assert len(figure.find("img")["src"]) < 60_000
    assert not figure.find_all(["script", "button", "input"]), "nothing dead without JavaScript"
    assert set(json.loads(figure["data-files"])) == set(explorer(name).carried)
    assert explorer(name).html() == explorer(name).html(), "a page changes from build to build"


def test_traits_can_be_set_and_refuse_nonsense():
    kl = explorers.kl(mu=0.0, sigma=math.sqrt(2))
    assert kl.kl == pytest.approx((1 - math.log(2)) / 2)
    assert kl.reverse_kl == pytest.approx(0.0966, abs=1e-4)
    with pytest.raises(TraitError):
        kl.sigma = 0.0


def test_z_moves_on_the_grid():
    latent = explorer("latent")
    latent.z = (0.111, -3.999)
    assert latent.z == (0.12, -4.0)
    with pytest.raises(TraitError):
        latent.z = (5.0, 0.0)


def test_sigma_moves_on_the_grid_and_gives_the_kl():
    squeeze = explorer("squeeze")
    squeeze.digit, squeeze.sigma = 3, 0.11
    assert squeeze.sigma == pytest.approx(10**-0.95)
    mean, _ = encode(assets.vae(), assets.some_digits().images[3:4])
    posterior = Independent(Normal(mean, squeeze.sigma * torch.ones(1, 2)), 1)
    assert squeeze.kl == pytest.approx(
        kl_divergence(posterior, assets.vae().prior).item(), abs=1e-4
    )
    assert squeeze.distortion == assets.squeezed().distortion[3, 19]
    with pytest.raises(TraitError):
        squeeze.sigma = 0.0


def test_pixels_follow_the_digit_and_give_its_posterior():
    draw = explorer("draw")
    draw.digit = 14
    image = assets.some_digits().images[14]
    assert assets.some_digits().labels[14] == 4
    torch.testing.assert_close(draw.image, image)
    torch.testing.assert_close(draw.posterior.mean, assets.vae().posterior(image).mean.detach())
    with pytest.raises(TraitError, match="784"):
        draw.pixels = "0120"


def test_modules_are_joined_into_one_without_a_name_twice():
    for name in explorers.__all__:
        module = bundle(name)
        assert "import {" not in module
        assert re.findall(r"^export .*", module, re.MULTILINE) == ["export default { render };"]
        names = re.findall(r"^(?:async )?(?:const|let|function|class) (\w+)", module, re.MULTILINE)
        assert len(names) == len(set(names))


def test_the_explorer_of_dimensions_refuses_what_the_study_has_not(monkeypatch):
    one = next(iter(slices.trainings().values()))
    some = {(2, 0): one, (2, 3): one, (5, 3): one, (20, 1): one}
    monkeypatch.setattr(slices, "trainings", lambda: some)
    monkeypatch.setattr(assets, "packed", lambda name: b"")
    explorer = explorers.dimensions()
    assert explorer.offers == {"2": [0, 3], "5": [3], "20": [1]}
    assert (explorer.d, explorer.seed, explorer.pair) == (5, 3, (1, 2))
    for trait, nonsense in (("d", 10), ("seed", 0), ("pair", (2, 2)), ("pair", (1, 6))):
        with pytest.raises(TraitError):
            setattr(explorer, trait, nonsense)
    explorer.d = 20
    assert explorer.seed == 1
    explorer.pair = (20, 7)
    explorer.d = 2
    assert (explorer.seed, explorer.pair) == (0, (1, 2))
    assert explorers.dimensions(d=20, seed=1, pair=(3, 20)).pair == (3, 20)
