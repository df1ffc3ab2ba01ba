import math

import pytest
import torch

from priormatch.explorers import assets
from priormatch.explorers.assets import Thinness
from priormatch.mismatch import hole_share

pytestmark = pytest.mark.slow


def test_the_grid_is_the_density_of_the_mixture():
    axis, quilt = assets.axis(), assets.quilt()
    places = torch.randint(len(axis), (40, 2), generator=torch.Generator().manual_seed(0))
    z = axis[places].float()
    log_q = quilt.aggregated.log_prob(z)
    log_ratio, thinness = (values[tuple(places.T)] for values in assets.field())
    expected = log_q - assets.vae().prior.log_prob(z)
    torch.testing.assert_close(log_ratio.float(), expected, atol=2e-3, rtol=1e-4)
    assert ((thinness & Thinness.THINNER) > 0).tolist() == (expected < 0).tolist()
    assert ((thinness & Thinness.TEN_TIMES_THINNER) > 0).tolist() == (
        expected < -math.log(10)
    ).tolist()
    assert ((thinness & Thinness.HOLE) > 0).tolist() == (log_q < quilt.threshold).tolist()


def test_holes_are_those_of_the_measure():
    quilt = assets.quilt()
    prior_draws = torch.randn((2_000, 2), generator=torch.Generator().manual_seed(7))
    share = (quilt.aggregated.log_prob(prior_draws) < quilt.threshold).double().mean().item()
    measured = hole_share(quilt.aggregated, quilt.codes, prior_draws)
    assert share == pytest.approx(measured.value, abs=1e-3)


def test_differences_add_up_again():
    values = assets.hundredths(assets.field().log_ratio)
    sums = assets.differences(values).cumsum(0).cumsum(1)
    torch.testing.assert_close(sums.to(torch.int16), values)


@torch.no_grad()
def test_the_price_of_a_squeezed_posterior_is_its_mean_distortion():
    images = assets.some_digits().images[:10]
    squeezed, scales = assets.squeezed(), assets.squeezed_scales()
    noise = torch.randn((400, 1, 2), generator=torch.Generator().manual_seed(8))
    for step in (0, 20, 40):
        codes = squeezed.means + scales[step].float() * noise
        distortion = -assets.vae().likelihood(codes).log_prob(images)
        error = distortion.std(0) / math.sqrt(len(distortion))
        shown = squeezed.distortion[:, step]
        # Those that are shown are evenly spread, and closer to the truth than these draws.
        assert ((shown - distortion.mean(0)).abs() < 4 * error + 0.01).all()
    assert scales[[0, 20, 40]].tolist() == pytest.approx([1, 0.1, 0.01])
    assert scales[46].item() == pytest.approx(scales[40].item() / 2, rel=0.003)
