import pytest
import torch
from torch.distributions import Normal

from priormatch.divergences import kl_from_prior_per_dimension
from priormatch.explorers import patches
from priormatch.explorers.patches import bend, best_stretch, costs, stretch

MEANS, SCALES = (
    torch.tensor(some, dtype=torch.float64) for some in (patches.MEANS, patches.SCALES)
)


def rate() -> float:
    return kl_from_prior_per_dimension(MEANS, 2 * SCALES.log()).mean().item()


def test_information_and_mismatch_add_up_to_the_rate():
    now = costs(stretch(0.0, 1.0))
    assert now.information + now.mismatch == pytest.approx(rate(), abs=1e-5)
    assert costs(bend(0.0)) == pytest.approx(now, abs=1e-12)


def test_the_whole_bend_carries_the_average_to_the_prior():
    carried, slope = bend(1.0)
    places, z = carried.double(), patches.nodes()
    torch.testing.assert_close(Normal(0.0, 1.0).cdf(places), patches.quilt().cdf(z))
    torch.testing.assert_close(
        slope[1:-1], (places[2:] - places[:-2]) / (z[2:] - z[:-2]), rtol=3e-3, atol=0
    )
    assert costs(bend(1.0)).mismatch == pytest.approx(0.0, abs=1e-12)


def test_a_bend_lowers_the_mismatch_alone_unless_the_decoder_does_not_undo_it():
    before, half, after = (costs(bend(amount)) for amount in (0.0, 0.5, 1.0))
    assert before.mismatch > half.mismatch + 0.3 > after.mismatch + 0.4
    assert before[:2] == half[:2] == after[:2]
    assert costs(bend(0.5), lens=False).reconstruction > before.reconstruction + 0.1


def test_the_best_stretch_leads_to_mean_zero_and_mean_square_one():
    # At mean 0 and variance 1 the entropies alone are left of the KL.
    best = costs(best_stretch())
    spread = (SCALES.square() + MEANS.square()).mean() - MEANS.mean().square()
    factor = spread.rsqrt().item()
    saved = 0.5 * (spread + MEANS.mean().square() - 1 - spread.log()).item()
    assert best.mismatch == pytest.approx(costs(stretch(0.0, 1.0)).mismatch - saved, abs=1e-5)
    centre = -factor * MEANS.mean().item()
    for near in (stretch(centre + 0.05, factor), stretch(centre, factor + 0.05)):
        assert costs(near).mismatch > best.mismatch + 1e-4
