import math

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
import torch

from priormatch import plotting


@pytest.fixture(autouse=True)
def style():
    with plt.rc_context():
        mpl.use("agg")
        plotting.use_style()
        yield
    plt.close("all")


def test_the_style_is_the_books():
    assert plt.rcParams["axes.spines.top"] is False
    assert plt.rcParams["figure.constrained_layout.use"] is True


def test_circles_hold_the_stated_mass_of_the_prior():
    ax = plotting.prior_circles(plt.figure().add_subplot())
    draws = torch.randn(200_000, 2, generator=torch.Generator().manual_seed(0))
    radii = [circle.radius for circle in ax.patches]
    assert len(radii) == len(plotting.MASSES)
    for radius, mass in zip(radii, plotting.MASSES, strict=True):
        inside = (draws.norm(dim=1) < radius).double().mean().item()
        assert inside == pytest.approx(mass, abs=5 * math.sqrt(mass * (1 - mass) / 200_000))
    assert [text.get_text() for text in ax.texts] == ["50%", "90%", "99%"]


def test_the_latent_plane_has_one_scale():
    ax = plotting.latent_plane(plt.figure().add_subplot(), limit=3.0)
    assert ax.get_aspect() == 1
    assert ax.get_xlim() == ax.get_ylim() == (-3, 3)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("$z_1$", "$z_2$")


def test_codes_are_drawn_in_the_colours_of_their_digits():
    codes = torch.arange(20.0).reshape(10, 2)
    ax = plotting.codes_by_digit(plt.figure().add_subplot(), codes, torch.arange(10))
    points = ax.collections[0]
    points.update_scalarmappable()
    for position, colour in zip(points.get_offsets(), points.get_facecolors(), strict=True):
        digit = int(position[0]) // 2
        assert mpl.colors.to_hex(colour) == plotting.DIGITS.colors[digit]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == list("0123456789")
    assert len(set(plotting.DIGITS.colors)) == 10


def test_images_stand_row_by_row():
    images = torch.zeros(5, 784)
    images[3] = 1.0
    ax = plotting.images_in_grid(plt.figure().add_subplot(), images, columns=2)
    canvas = ax.images[0].get_array()
    assert canvas.shape == (3 * 28, 2 * 28)
    assert (canvas[28:56, 28:] == 1).all()
    assert canvas.sum() == 784
