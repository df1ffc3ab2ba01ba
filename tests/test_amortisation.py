import functools
import math

import pytest
import torch
from test_evidence import NOISE, Linear, LinearPosterior, sample, seeded
from test_study import only_a_gaussian, small_images
from torch import nn
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from priormatch.evidence import Grid, exact_elbo, likeliest_nodes
from priormatch.experiments import inference_gaps, study, table
from priormatch.experiments.study import measure
from priormatch.inference_gap import gaps, read, refine, run
from priormatch.models import VAE, GaussianPosterior, standard_normal
from priormatch.training import Recipe, build

WIDE = Grid((-8.0, -8.0), (8.0, 8.0), 0.05)

# Columns that are not orthogonal: the exact posterior is a Gaussian whose dimensions correlate.
WEIGHT = torch.tensor([[1.0, 0.6], [0.2, 1.0], [0.5, 0.5]], dtype=torch.float64)
PRECISION = torch.eye(2, dtype=torch.float64) + WEIGHT.T @ WEIGHT / NOISE**2


def correlated(shift=0.3):
    """Return a linear-Gaussian VAE with a wrong encoder, and some images of its own."""
    encoder = GaussianPosterior(LinearPosterior(WEIGHT, 1.5, shift))
    vae = VAE(encoder, Linear(WEIGHT), standard_normal(2))
    covariance = WEIGHT @ WEIGHT.T + NOISE**2 * torch.eye(3, dtype=torch.float64)
    return vae, sample(MultivariateNormal(torch.ones(3).double(), covariance), 20, seeded(0))


def exact_posterior(images):
    covariance = torch.linalg.inv(PRECISION)
    mean = (images - 1) @ WEIGHT @ covariance / NOISE**2
    return MultivariateNormal(mean, covariance.expand(len(images), 2, 2))


class ExactPosterior(nn.Module):
    def forward(self, images):
        return exact_posterior(images)


def gap_of_the_best_diagonal():
    """Return the KL of the diagonal Gaussian with the variances 1 / P_jj: the least there is."""
    return 0.5 * (PRECISION.diagonal().log().sum() - PRECISION.logdet()).item()


def test_a_refined_posterior_is_the_best_of_its_family():
    vae, images = correlated()
    with torch.no_grad():
        start = vae.posterior(images)
    diagonal = refine(vae, images, start, seeded(1), steps=400)
    assert torch.equal(diagonal.scale_tril[:, 1, 0], torch.zeros(20).double())
    torch.testing.assert_close(
        diagonal.variance, (1 / PRECISION.diagonal()).expand(20, 2), rtol=1e-6, atol=0
    )
    torch.testing.assert_close(diagonal.mean, exact_posterior(images).mean, rtol=0, atol=1e-6)
    divergence = kl_divergence(diagonal, exact_posterior(images))
    least = torch.full_like(divergence, gap_of_the_best_diagonal())
    torch.testing.assert_close(divergence, least, rtol=0, atol=1e-9)
    full = refine(vae, images, diagonal, seeded(2), steps=400)
    divergence = kl_divergence(full, exact_posterior(images))
    torch.testing.assert_close(divergence, torch.zeros_like(least), rtol=0, atol=1e-9)


def test_the_gaps_are_known_where_the_exact_posterior_is_gaussian():
    vae, images = correlated()
    found = gaps(vae, images, seeded(3))
    with torch.no_grad():
        truth = kl_divergence(
            MultivariateNormal(
                vae.posterior(images).mean, torch.diag_embed(vae.posterior(images).variance)
            ),
            exact_posterior(images),
        )
    torch.testing.assert_close(found["gap"], truth, rtol=0, atol=1e-5)
    covariance = WEIGHT @ WEIGHT.T + NOISE**2 * torch.eye(3, dtype=torch.float64)
    log_evidence = MultivariateNormal(torch.ones(3).double(), covariance).log_prob(images)
    torch.testing.assert_close(found["log_evidence"], log_evidence, rtol=0, atol=1e-5)
    least = gap_of_the_best_diagonal()
    for name in ("refined_gap", "diagonal_gap"):
        assert least - 1e-5 < found[name].min()
        assert found[name].mean() < least + 0.02
    assert found["full_gap"].min() > -1e-5
    assert found["full_gap"].mean() < 0.02 < least
    assert found["gap"].mean() > 2 * least


def test_a_full_covariance_s_own_gaps_start_from_it():
    """An encoder that knows the exact posterior leaves nothing to refine."""
    vae, images = correlated()
    exact = VAE(ExactPosterior(), vae.decoder, vae.prior)
    found = gaps(exact, images, seeded(4))
    for name in ("gap", "refined_gap", "full_gap"):
        torch.testing.assert_close(found[name], torch.zeros(20).double(), rtol=0, atol=1e-5)
    assert found["diagonal_gap"].min() > gap_of_the_best_diagonal() - 1e-5


class Folded(nn.Module):
    """Decoder N(|z_1| - 1, 0.1^2): two modes two units apart, of equal height."""

    def forward(self, codes):
        return Independent(Normal(codes[..., :1].abs() - 1, 0.1), 1)


class Nowhere(nn.Module):
    """Encoder that puts every image at the origin, between the modes."""

    def forward(self, images):
        return torch.cat([torch.zeros(len(images), 2), torch.full((len(images), 2), -8.0)], 1)


def test_the_highest_peak_is_found_where_the_encoder_does_not_look():
    vae = VAE(GaussianPosterior(Nowhere()), Folded(), standard_normal(2))
    found = gaps(vae, torch.full((1, 1), 0.5), seeded(5))
    assert found["gap"] > 20
    # Two narrow modes, of which a Gaussian covers one: the other is ln 2.
    torch.testing.assert_close(
        found["diagonal_gap"], torch.tensor([math.log(2)]).double(), rtol=0, atol=0.03
    )
    assert found["refined_gap"] > found["diagonal_gap"] + 1


@pytest.mark.parametrize("full", [False, True])
def test_the_exact_elbo_is_the_evidence_less_the_divergence(full):
    vae, images = correlated()
    own = exact_posterior(images) if full else vae.posterior(images)
    wrong = MultivariateNormal(
        own.mean + 0.2,
        scale_tril=1.3
        * torch.linalg.cholesky(own.covariance_matrix if full else torch.diag_embed(own.variance)),
    )
    covariance = WEIGHT @ WEIGHT.T + NOISE**2 * torch.eye(3, dtype=torch.float64)
    log_evidence = MultivariateNormal(torch.ones(3).double(), covariance).log_prob(images)
    expected = log_evidence - kl_divergence(wrong, exact_posterior(images))
    torch.testing.assert_close(exact_elbo(vae, images, wrong), expected, rtol=0, atol=1e-9)


def test_the_likeliest_node_is_the_nearest_to_the_peak():
    vae, images = correlated()
    nodes = likeliest_nodes(vae, images, Grid((-6.0, -6.0), (6.0, 6.0), 0.02))
    away = (nodes - exact_posterior(images).mean).abs().amax()
    assert 0 < away < 0.03


TINY = Recipe(encoder_width=8, decoder_width=8, epochs=2, batch_size=50)


@pytest.fixture
def small_world(monkeypatch):
    monkeypatch.setattr(amortisation, "fit_best", only_a_gaussian)
    monkeypatch.setattr(amortisation, "refine", functools.partial(refine, steps=2))
    monkeypatch.setattr(amortisation, "_IMAGES", 10)
    with small_images(monkeypatch, 300):
        yield


@pytest.mark.parametrize("posterior", ["gaussian", "full covariance"])
def test_a_model_is_measured_as_the_study_measures_it(small_world, posterior, monkeypatch):
    model = build(Recipe(**{**vars(TINY), "posterior": posterior})).eval().requires_grad_(False)
    found = measure(model)
    assert found == measure(model)
    for part in ("train", "test"):
        names = [f"{part}_{name}" for name in ("gap", "refined_gap", "diagonal_gap", "full_gap")]
        of_part = [found[name].value for name in names]
        assert of_part[0] >= of_part[1]
        assert of_part[2] >= of_part[3] > -0.1
        assert all(found[name].standard_error > 0 for name in names)
    if posterior == "gaussian":
        monkeypatch.setattr(study, "fit_best", only_a_gaussian)
        by_study = study.measure(model, draws=300)
        for name in ("train_rate", "test_rate", "train_elbo", "test_elbo", "density_bound"):
            assert found[name].value == pytest.approx(by_study[name].value, rel=1e-6)


def test_a_table_is_completed_row_by_row(small_world, tmp_path):
    table, models = tmp_path / "table.csv", tmp_path / "models"
    run([TINY], table, models)
    first = read(table)
    both = [TINY, Recipe(**{**vars(TINY), "posterior": "full covariance"})]
    run(both, table, models)
    assert read(table).iloc[:1].equals(first)
    assert list(read(table).posterior) == ["gaussian", "full covariance"]
    assert {"test_gap", "test_gap_error", "density", "seed", "encoder_depth"} <= set(first)


def test_the_stored_table_has_every_encoder():
    stored = read()
    for recipe in inference_gaps.recipes():
        assert table.is_of(stored, recipe).sum() == 1, recipe
