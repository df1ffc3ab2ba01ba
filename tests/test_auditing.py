"""The audit on codes whose truth is known, and on those that break measures."""

import functools
import json
import math
import re
import warnings

import pytest
import torch
from agreement import assert_agrees, assert_at_least, assert_at_most
from bs4 import BeautifulSoup
from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis
from small_world import linear_gaussian, only_a_gaussian, sample, seeded
from torch.distributions import Laplace, MultivariateNormal, Normal, Uniform

from priormatch import Codes, Report, auditing, densities, goodness_of_fit, measurement, two_sample
from priormatch.auditing import audit
from priormatch.checks import FamilyError, NonFiniteError, ScaleError, ShapeError
from priormatch.densities import fit_best, fit_mixture
from priormatch.estimate import Estimate, TooFewCodesError
from priormatch.known_prior import known_prior
from priormatch.models import encode

SCALE = 0.3

VERDICTS = {"matched", "mismatch", "small mismatch", "infinite", "unclear"}


@pytest.fixture(scope="module", autouse=True)
def only_gaussians():
    """Gaussians are the truth here, and quick; other densities are tested with the densities."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measurement, "fit_best", only_a_gaussian)
        patch.setattr(two_sample, "_classifier", lambda seed: QuadraticDiscriminantAnalysis())
        patch.setattr(goodness_of_fit, "_MATCHES", 2_000)
        yield


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def gaussian_codes(examples, location, spread, seed):
    """Return codes whose aggregated posterior is N(location, spread I) in the population."""
    location = torch.as_tensor(location, dtype=torch.float64)
    means = location + math.sqrt(spread - SCALE**2) * normal(examples, len(location), seed=seed)
    return Codes(means, torch.full_like(means, SCALE))


def advice(report: Report, kind: str):
    (found,) = (one for one in report.advice if one.kind == kind)
    return found


def kinds(report: Report) -> set[str]:
    return {one.kind for one in report.advice}


def is_nan(measure) -> bool:
    return math.isnan(measure.value if isinstance(measure, Estimate) else measure)


# Truths


@pytest.fixture(scope="module")
def matched():
    location = [0.0, 0.0, 0.0]
    return audit(
        gaussian_codes(2_000, location, 1.0, 0),
        gaussian_codes(1_000, location, 1.0, 1),
        draws=1_000,
    )


@pytest.fixture(scope="module")
def shifted():
    location = [0.6, 0.0]
    return audit(
        gaussian_codes(2_000, location, 1.0, 0),
        gaussian_codes(1_000, location, 1.0, 1),
        draws=1_000,
    )


def test_codes_of_the_prior_are_said_to_match_it(matched):
    assert matched.advice[0].kind == "matched"
    assert "Sample from N(0, I)" in advice(matched, "sampler").text
    assert advice(matched, "scale factor").value == pytest.approx(1, rel=0.05)
    assert not kinds(matched) & {"silent", "few codes", "rescale", "held out", "subsampled"}
    assert matched.missing == {}


def test_bounds_of_shifted_codes_enclose_their_divergence(shifted):
    truth = 0.5 * 0.6**2
    for name in ("density_bound", "moment_bound", "held_out_kl", "dimension_wise_kl"):
        found = shifted[name]
        assert found.bound == "lower"
        assert_at_most(found.value, found.standard_error, truth)
        assert found.value > 0.6 * truth
    upper = shifted["in_sample_kl"]
    assert_at_least(upper.value, upper.standard_error, truth)
    assert shifted.advice[0].kind == "mismatch"
    assert "in place of N(0, I)" in advice(shifted, "sampler").text
    assert advice(shifted, "sampler").nats == shifted["density_bound"]


def test_a_linear_vae_is_measured_at_its_truth():
    vae, evidence = linear_gaussian(3)
    train, test = (sample(evidence, number, seeded(number)) for number in (2_000, 1_000))
    exact = evidence.log_prob(test)
    report = audit(
        Codes(*encode(vae, train)),
        Codes(*encode(vae, test)),
        draws=1_000,
        log_likelihood=lambda z: vae.likelihood(z).log_prob(test),
    )
    rate = 0.5 * vae.encoder.network.precision.log().sum().item()
    assert_agrees(report["rate"].value, report["rate"].standard_error, rate)
    assert report.advice[0].kind == "matched"
    assert report["active_units"] == 3
    # Q is the exact posterior, so that ELBO and evidence are the evidence of every image.
    for name in ("elbo", "log_evidence"):
        assert report[name].value == pytest.approx(exact.mean().item(), abs=1e-4)
    assert report["reliable_share"].value == 1


def test_the_evidence_closes_the_gap_of_a_posterior_that_is_too_wide():
    vae, evidence = linear_gaussian(2, widen=1.3)
    test = sample(evidence, 400, seeded(1))
    codes = Codes(*encode(vae, test))
    report = audit(
        codes, codes, draws=400, log_likelihood=lambda z: vae.likelihood(z).log_prob(test)
    )
    exact = evidence.log_prob(test).mean().item()
    gap = 2 * (0.5 * (1.3**2 - 1) - math.log(1.3))
    assert report["elbo"].value == pytest.approx(exact - gap, abs=0.02)
    assert exact - 0.1 * gap < report["log_evidence"].value < exact + 0.005


def test_silent_dimensions_are_named():
    def with_silent(examples, seed):
        means, rest = normal(examples, 1, seed=seed), torch.zeros(examples, 2)
        scales = torch.cat([torch.full((examples, 1), SCALE), rest + 1], 1)
        return Codes(torch.cat([math.sqrt(1 - SCALE**2) * means, rest], 1), scales)

    report = audit(with_silent(1_000, 0), with_silent(500, 1), draws=500)
    assert advice(report, "silent").dimensions == (1, 2)
    assert "latent dimensions 1, 2 of 3" in advice(report, "silent").text
    assert report.advice[0].kind == "matched"


def test_the_scale_factor_is_that_of_latent_diffusion():
    codes = gaussian_codes(2_000, [2.0, 2.0], 25.0, 0)
    found = advice(audit(codes, draws=200), "scale factor")
    assert found.value == pytest.approx(1 / 5, rel=0.05)
    assert "Their mean is 1.9" in found.text


def test_codes_too_few_for_their_rate_are_said_to_be():
    codes = [Codes(normal(100, 6, seed=one), torch.full((100, 6), 0.01)) for one in range(2)]
    report = audit(*codes, draws=100)
    floor = report["rate"].value - math.log(100)
    assert advice(report, "few codes").value == pytest.approx(floor)
    assert floor > 10


# What breaks measures


@pytest.mark.parametrize(
    "codes",
    [
        torch.randint(3, (300, 2), generator=seeded(0)),
        torch.cat([normal(300, 1), torch.full((300, 1), 3.3)], 1),
        normal(300, 1).expand(-1, 3) * torch.tensor([1.0, 2.0, 3.0]),
    ],
    ids=["three values", "a constant dimension", "a line in space"],
)
def test_codes_without_a_density_are_infinitely_far(codes):
    report = audit(Codes(draws=codes), draws=100)
    assert report.advice[0].kind == "infinite"
    assert "infinite" in report.verdict
    assert "priormatch" in report.html()


def test_few_codes_in_many_dimensions_are_too_few_to_say():
    report = audit(*(Codes(draws=normal(40, 60, seed=one)) for one in range(2)), draws=100)
    assert "needs 120 codes or more, and there are 40" in report.missing["moment_bound"]
    assert "needs 120 codes" in str(report)
    assert "needs 120 codes" in report.html()
    assert report.advice[0].kind in ("matched", "unclear")


def test_a_failing_measure_is_missing_and_the_others_are_there(monkeypatch):
    def fails(*arguments, **options):
        raise RuntimeError("no memory")

    monkeypatch.setattr("priormatch.measurement.squared_mmd", fails)
    report = audit(gaussian_codes(300, [0.0], 1.0, 0), draws=100)
    assert report.missing == {"squared_mmd": "no memory"}
    assert is_nan(report["squared_mmd"])
    assert report["rate"].value > 0


def test_draws_alone_give_what_needs_no_posterior():
    report = audit(*(Codes(draws=0.6 + normal(800, 2, seed=one)) for one in range(2)), draws=800)
    truth = 2 * 0.5 * 0.6**2
    for name in ("density_bound", "moment_bound", "dimension_wise_kl"):
        assert_at_most(report[name].value, report[name].standard_error, truth)
        assert report[name].value > 0.8 * truth
    assert "draws alone" in report.missing["rate"]
    assert {*report.missing} == {
        *("rate", "log_examples", "active_units", "in_sample_kl", "held_out_kl"),
        *("prior_patch_share", "prior_patch_distance", "codes_patch_share", "codes_patch_distance"),
    }
    assert "silent" not in kinds(report)


# Priors


def test_a_gaussian_prior_is_that_of_its_units():
    prior = MultivariateNormal(torch.tensor([1.0, -2.0]), torch.tensor([[4.0, 1.0], [1.0, 2.0]]))
    turn = prior.scale_tril.double()
    plain = [gaussian_codes(600, [0.5, 0.0], 1.0, one) for one in range(2)]
    moved = [
        Codes(
            prior.mean + one.mixture.means @ turn.T,
            covariances=SCALE**2 * (turn @ turn.T).expand(600, 2, 2),
        )
        for one in plain
    ]
    one, other = audit(*plain, draws=300), audit(*moved, prior=prior, draws=300)
    for name in ("rate", "moment_bound", "density_bound", "in_sample_kl", "squared_mmd"):
        both = math.hypot(one[name].standard_error, other[name].standard_error)
        assert abs(one[name].value - other[name].value) < 3 * both, name
    assert "tie" in advice(other, "units").text
    assert other.missing == {}


@pytest.mark.parametrize("prior", [Normal(5.0, 2.0), Normal(torch.full((2,), 5.0), 2.0)])
def test_codes_of_a_gaussian_prior_match_it(prior):
    codes = [gaussian_codes(500, [5.0, 5.0], 4.0, one) for one in range(2)]
    report = audit(*codes, prior=prior, draws=500)
    assert report.advice[0].kind == "matched"
    assert "from N(5, 4 I)" in report.verdict
    assert "KL of a training posterior from N(5, 4 I)" in str(report)
    # The factor is that of the codes as they were given.
    assert advice(report, "scale factor").value == pytest.approx(0.5, rel=0.1)
    assert audit(*codes, draws=500).advice[0].kind == "mismatch"


def test_measures_of_gaussian_priors_are_missing_for_others():
    draws = [Laplace(0.0, 1.0).icdf(torch.rand(800, 2, generator=seeded(one))) for one in (0, 1)]
    report = audit(*(Codes(draws=one) for one in draws), prior=Laplace(0.0, 1.0), draws=800)
    for name in ("moment_bound", "squared_mmd", "radius_distance", "slices_p_value"):
        assert "not for the Laplace prior" in report.missing[name]
        assert is_nan(report[name])
    assert report.advice[0].kind in ("matched", "unclear")
    # A Laplace law is 0.07 nats a dimension from N(0, I) of its scale, and more from others.
    assert audit(*(Codes(draws=one) for one in draws), draws=800)["density_bound"].value > 0.1


def test_the_rate_from_other_priors_is_right():
    means, scales = torch.zeros(100, 1), torch.full((100, 1), 0.5)
    report = audit(Codes(means, scales), prior=Laplace(0.0, 1.0), draws=100)
    # E|z| of N(0, s^2) is s sqrt(2 / pi); minus the entropy of N(0, s^2).
    truth = math.log(2) + 0.5 * math.sqrt(2 / math.pi) - 0.5 * math.log(2 * math.pi * math.e * 0.25)
    assert report["rate"].value == pytest.approx(truth, abs=1e-5)


def test_codes_outside_of_a_prior_are_infinitely_far():
    report = audit(gaussian_codes(200, [0.0], 1.0, 0), prior=Uniform(-1.0, 1.0), draws=100)
    assert report.advice[0].kind == "infinite"
    assert report["density_bound"].value == math.inf
    assert "infinite" in str(report)
    assert report.as_dict()["measures"]["density_bound"]["value"] is None


@pytest.mark.usefixtures("without_shape_checks")
def test_names_of_priors():
    assert known_prior(None, 2).name == "N(0, I)"
    assert (
        known_prior(Normal(torch.zeros(2), torch.tensor([1.0, 2.0])), 2).name
        == "the Gaussian prior"
    )
    with pytest.raises(FamilyError):
        known_prior("normal", 2)
    with pytest.raises(ShapeError):
        known_prior(Normal(torch.zeros(3), torch.ones(3)), 2)


# What is given


def test_without_held_out_codes_some_are_set_apart_and_the_cost_is_said():
    report = audit(gaussian_codes(500, [0.0], 1.0, 0), draws=200)
    assert "100 of the training codes were set apart" in advice(report, "held out").text
    assert report["log_examples"] == pytest.approx(math.log(360))
    report = audit(
        gaussian_codes(500, [0.0], 1.0, 0), draws=200, log_likelihood=lambda z: z.squeeze(1)
    )
    assert "no held-out codes were given" in report.missing["elbo"]


def test_what_is_not_measured_is_said(monkeypatch):
    monkeypatch.setattr(auditing, "_CODES", 300)
    monkeypatch.setattr(auditing, "_POSTERIORS", 100)
    report = audit(
        gaussian_codes(1_000, [0.0], 1.0, 0), gaussian_codes(500, [0.0], 1.0, 1), draws=200
    )
    said = advice(report, "subsampled").text
    assert "300 of 1,000 training codes" in said
    assert "200 of 500 held-out codes" in said
    assert "100 posteriors" in said
    assert report["log_examples"] == pytest.approx(math.log(100))


def test_codes_in_every_form_are_the_same():
    means, scales = normal(50, 2), torch.full((50, 2), 0.5).double()
    forms = [
        Codes(means, scales),
        Codes(means.numpy(), log_variances=2 * scales.log()),
        Codes(means, covariances=torch.diag_embed(scales.square())),
        Codes(means.tolist(), scales.tolist()),
    ]
    for one in forms:
        spread = one.mixture.covariance
        torch.testing.assert_close(spread, forms[0].mixture.covariance, rtol=1e-5, atol=1e-6)
    assert [len(one) for one in forms] == [50] * 4


@pytest.mark.parametrize(
    ("error", "given"),
    [
        (ShapeError, {}),
        (ShapeError, {"means": [[0.0]]}),
        (ShapeError, {"means": [[0.0]], "scales": [[1.0]], "log_variances": [[0.0]]}),
        (ShapeError, {"means": [[0.0]], "scales": [[1.0]], "draws": [[0.0]]}),
        (ShapeError, {"means": [[0.0, 1.0]], "log_variances": [[0.0]]}),
        (ShapeError, {"draws": [[[0.0]]]}),
        (NonFiniteError, {"means": [[0.0]], "log_variances": [[math.inf]]}),
        (NonFiniteError, {"draws": [[math.nan]]}),
        (ScaleError, {"means": [[0.0]], "scales": [[-1.0]]}),
        (ScaleError, {"means": [[0.0, 0.0]], "covariances": [[[1.0, 2.0], [2.0, 1.0]]]}),
    ],
)
def test_codes_that_are_none_are_refused_by_name(error, given):
    with pytest.raises(error):
        Codes(**given)


@pytest.mark.usefixtures("without_shape_checks")
def test_an_audit_refuses_what_it_cannot_take():
    codes = gaussian_codes(100, [0.0], 1.0, 0)
    with pytest.raises(FamilyError, match=re.escape("made by Codes(means, scales)")):
        audit(torch.zeros(100, 1))
    with pytest.raises(ShapeError, match="held-out codes have 2 latent dimensions"):
        audit(codes, gaussian_codes(100, [0.0, 0.0], 1.0, 0))
    with pytest.raises(TooFewCodesError):
        audit(gaussian_codes(10, [0.0], 1.0, 0))


# The report


def test_a_page_asks_no_host_and_escapes_its_title(shifted):
    page = BeautifulSoup(shifted.html("<script>alert(1)</script>"), "html.parser")
    assert page.title.string == "<script>alert(1)</script>"
    assert not page.find_all("script")
    for element in page.find_all(True):
        for name, value in element.attrs.items():
            if name in ("src", "href", "xlink:href"):
                assert value.startswith(("#", "data:")), (element.name, value)
    assert not re.search(r"@import|url\((?!#)", str(page))
    ids = [element["id"] for element in page.find_all(id=True)]
    assert len(ids) == len({*ids})
    pictures = page.find_all("svg")
    assert len(pictures) == 4
    assert all(len(one["aria-label"]) > 40 for one in pictures)


def test_a_report_says_all_in_each_form(shifted, matched):
    for report in (shifted, matched):
        page = BeautifulSoup(report.html(), "html.parser").get_text()
        shown = BeautifulSoup(report._repr_html_(), "html.parser").get_text()
        flat = " ".join(str(report).split())
        for one in report.advice:
            assert one.text in page
            assert one.text in shown
            assert one.text in flat
        for name in report.summary:
            if not name.endswith(("_validation", "_of_dimensions")):
                assert name in page
                assert name in flat
        assert report.advice[0].kind in VERDICTS


def test_a_report_is_plain_json(shifted):
    told = shifted.as_dict()
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert told["measures"]["density_bound"]["value"] == shifted["density_bound"].value
    assert told["verdict"]["kind"] == "mismatch"
    assert told["settings"]["train"] == 2_000
    assert len(told["measures"]["kl_of_dimensions"]) == 2


def test_the_same_seed_gives_the_same_report():
    codes = gaussian_codes(200, [0.0, 0.3], 1.0, 0)
    one, other = (str(audit(codes, draws=100, seed=3)) for _ in range(2))
    assert one == other


def test_progress_goes_to_the_standard_error(capsys):
    audit(gaussian_codes(100, [0.0], 1.0, 0), draws=100, progress=True)
    found = capsys.readouterr()
    assert "densities" in found.err
    assert found.out == ""


# Fits that had not converged


def test_a_search_that_did_not_converge_is_reported(monkeypatch):
    def fails(*arguments, **options):
        raise ValueError("left out")

    codes = torch.cat([normal(300, 1), 4 + normal(300, 1, seed=1)])
    assert fit_mixture(codes, 2).gain == 0
    monkeypatch.setattr(densities, "_STEPS_ON_FEW", 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fit_mixture(codes, 20).gain > 0
        monkeypatch.setattr(densities, "mixture_sizes", lambda latent: (20,))
        monkeypatch.setattr(densities, "fit_flow", fails)
        assert "still gained" in fit_best(codes, normal(50, 1)).notes["mixture of 20"]


def test_many_dimensions_have_independent_ones_in_place_of_mixtures(monkeypatch):
    monkeypatch.setattr(densities, "fit_flow", functools.partial(densities.fit_flow, steps=2))
    fitted = fit_best(normal(400, 130), normal(200, 130, seed=1))
    assert "Gaussian of independent dimensions" in fitted.validation_log_density
    assert fitted.name != "Gaussian"
    assert not any("mixture" in name for name in fitted.validation_log_density)
