import math

import pytest
import torch
from agreement import assert_agrees, assert_at_least, assert_at_most
from small_world import quick_fits

import priormatch
from priormatch.estimate import Estimate

SCALE = 0.3


def encoded(examples, latent, spread, seed):
    """Return means and scales whose aggregated posterior is N(0, spread I) in the population."""
    generator = torch.Generator().manual_seed(seed)
    means = math.sqrt(spread - SCALE**2) * torch.randn(examples, latent, generator=generator)
    return means, torch.full_like(means, SCALE)


def with_silent(means, scales, silent):
    """Append latent dimensions whose posteriors are all N(0, 1)."""
    zeros = torch.zeros(len(means), silent)
    return torch.cat([means, zeros], 1), torch.cat([scales, zeros + 1], 1)


@pytest.fixture(scope="module", autouse=True)
def small_fits():
    with quick_fits(5, 30):
        yield


@pytest.fixture(scope="module")
def stretched():
    """The summary of codes of N(0, 1.5 I) in two dimensions."""
    return priormatch.summary(*encoded(8_000, 2, 1.5, 0), *encoded(4_000, 2, 1.5, 1), draws=4_000)


def test_bounds_of_a_stretched_prior_enclose_its_divergence(stretched):
    truth = 2 * 0.5 * (1.5 - 1 - math.log(1.5))
    for name in ("held_out_kl", "moment_bound", "density_bound", "dimension_wise_kl"):
        assert stretched[name].bound == "lower"
        assert_at_most(*vars_of(stretched[name]), truth)
    assert_at_least(
        stretched["in_sample_kl"].value, stretched["in_sample_kl"].standard_error, truth
    )
    assert stretched["density_bound"].value > 0.8 * truth
    assert_agrees(*vars_of(stretched["mean_square_radius"]), 3.0)
    assert stretched["mean_square_of_dimensions"] == pytest.approx((1.5, 1.5), rel=0.05)
    assert stretched["squared_mmd"].value > 5 * stretched["squared_mmd"].standard_error


def test_a_stretched_prior_is_rejected_but_for_its_shape(stretched):
    assert stretched["slices_p_value"] < 0.001
    assert stretched["ranks_p_value"] < 0.001
    assert stretched["shape_p_value"] > 0.001
    assert (stretched["active_units"], stretched["matched_units"]) == (2, 0)


def vars_of(estimate):
    return estimate.value, estimate.standard_error


def test_every_estimate_has_an_error_and_every_line_is_printed(stretched):
    lines = str(stretched).splitlines()
    estimates = {name: one for name, one in stretched.items() if isinstance(one, Estimate)}
    assert all(one.standard_error > 0 for one in estimates.values())
    shown = {name for name in stretched if not name.endswith(("_validation", "_of_dimensions"))}
    assert {line.split()[0] for line in lines} == shown
    assert all(f"<code>{name}</code>" in stretched._repr_html_() for name in shown)


@pytest.mark.slow
def test_silent_dimensions_change_nothing_that_is_fitted():
    train, test = encoded(6_000, 2, 1.5, 0), encoded(3_000, 2, 1.5, 1)
    alone = priormatch.summary(*train, *test, draws=3_000)
    padded = priormatch.summary(*with_silent(*train, 18), *with_silent(*test, 18), draws=3_000)
    assert alone["active_units"] == padded["active_units"] == 2
    for name in ("density_bound", "hole_share", "classifier_auc", "prior_patch_share"):
        both = math.hypot(alone[name].standard_error, padded[name].standard_error)
        assert abs(alone[name].value - padded[name].value) < 5 * both, name
    assert_agrees(*vars_of(padded["mean_square_radius"]), 2 * 1.5 + 18)


@pytest.mark.slow
def test_a_tenth_of_the_training_examples_chooses_where_no_others_are_given():
    train, test = encoded(600, 1, 1.0, 0), encoded(300, 1, 1.0, 1)
    assert priormatch.summary(*train, *test, draws=300)["log_examples"] == math.log(540)
    others = encoded(300, 1, 1.0, 2)
    given = priormatch.summary(
        *train, *test, validation_means=others[0], validation_scales=others[1], draws=300
    )
    assert given["log_examples"] == math.log(600)


def test_the_face_offers_what_it_lists():
    assert all(hasattr(priormatch, name) for name in priormatch.__all__)
    assert len(priormatch.__all__) <= 24


def test_posteriors_that_say_nothing_match():
    def silent(examples):
        return torch.zeros(examples, 2), torch.ones(examples, 2)

    found = priormatch.summary(*silent(500), *silent(500), draws=500)
    assert (found["active_units"], found["density"]) == (0, "N(0, I)")
    assert found["matched_units"] == 0
    assert min(found[f"{name}_p_value"] for name in ("slices", "ranks", "shape")) > 0.001
    assert found["density_bound"].value == 0
    assert abs(found["classifier_auc"].value - 0.5) < 5 * found["classifier_auc"].standard_error
