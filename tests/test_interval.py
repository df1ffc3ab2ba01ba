import json
import math

import pytest
import torch
from agreement import assert_agrees
from test_training import pictures
from torch import nn
from torch.distributions import Independent, Normal, kl_divergence

from priormatch import line
from priormatch.data import Digits, Source
from priormatch.distributions import AggregatedPosterior, StretchedBeta
from priormatch.estimate import average
from priormatch.experiments import digit_classifier, pretrained, uniform_interval
from priormatch.models import VAE, BernoulliLikelihood, draw, standard_normal, uniform_interval
from priormatch.training import Epoch, Recipe, Trained, build

HISTORY = Epoch(1, 0.0, 0.0, 0.0, 0.0, 0.0)
TINY = Recipe(
    latent_dimension=1,
    encoder_width=8,
    decoder_width=8,
    epochs=25,
    batch_size=50,
    min_improvement=1e9,
)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def on_the_interval(examples=500):
    """Return posteriors of made-up examples, their digits, and the prior."""
    modes = torch.rand(examples, 1, generator=seeded(0))
    sharpness = 1_000 * torch.rand(examples, 1, generator=seeded(1))
    posterior = StretchedBeta(1 + sharpness * modes, 1 + sharpness * (1 - modes))
    labels = torch.randint(10, (examples,), generator=seeded(2))
    return Independent(posterior, 1), labels, uniform_interval(1)


def on_the_line(examples=500):
    means = torch.randn(examples, 1, generator=seeded(0))
    scales = 0.02 + 0.1 * torch.rand(examples, 1, generator=seeded(1))
    labels = torch.randint(10, (examples,), generator=seeded(2))
    return Independent(Normal(means, scales), 1), labels, standard_normal(1)


both = pytest.mark.parametrize("family", [on_the_interval, on_the_line])


def test_the_density_of_the_mixture_is_the_aggregated_posteriors():
    posterior, labels, _ = on_the_line()
    nodes = torch.linspace(-3, 3, 50, dtype=torch.float64)
    mixture = AggregatedPosterior(posterior.base_dist.loc, posterior.base_dist.scale)
    density = line.density_by_digit(posterior, labels, nodes)
    torch.testing.assert_close(
        density.sum(0).log().float(), mixture.log_prob(nodes[:, None]), atol=1e-4, rtol=0
    )
    threes = labels == 3
    of_threes = AggregatedPosterior(
        posterior.base_dist.loc[threes], posterior.base_dist.scale[threes]
    )
    torch.testing.assert_close(
        density[3].float(),
        threes.double().mean().float() * of_threes.log_prob(nodes[:, None]).exp(),
        atol=1e-5,
        rtol=1e-3,
    )


@both
def test_density_and_mass_are_of_the_same_distribution(family):
    posterior, labels, prior = family()
    nodes = uniform_interval.nodes_of(prior, 4_000)
    density = line.density_by_digit(posterior, labels, nodes)
    width = nodes[1] - nodes[0]
    torch.testing.assert_close(
        density.sum(1) * width,
        torch.bincount(labels, minlength=10).double() / 500,
        atol=1e-4,
        rtol=0,
    )
    mass = line.mass_by_digit(posterior, labels, prior, bins=8)
    bins = (prior.base_dist.cdf(nodes) * 8).long()
    expected = torch.stack([density[:, bins == i].sum(1) * width for i in range(8)], 1)
    torch.testing.assert_close(mass, expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(mass.sum().item(), 1.0)


@both
def test_the_rate_splits_into_information_and_mismatch(family):
    # I[n; z] by Monte Carlo from its definition, the mismatch by quadrature, the rate closed.
    posterior, labels, prior = family()
    nodes = uniform_interval.nodes_of(prior, 4_000)
    mismatch = uniform_interval.kl_on_a_line(
        line.density_by_digit(posterior, labels, nodes).sum(0), prior, nodes
    )
    many = posterior.expand(torch.Size((40, 500)))
    codes = draw(many, seeded(3))
    density = line.density_by_digit(posterior, labels, codes.flatten()).sum(0)
    log_ratios = many.log_prob(codes).double() - density.log().reshape(40, 500)
    # Each image has as many draws, so that only the spread within images makes an error.
    error = math.sqrt(log_ratios.var(0).mean() / log_ratios.numel())
    rate = kl_divergence(posterior, prior).mean().item()
    assert_agrees(log_ratios.mean().item(), error, rate - mismatch)


@both
def test_the_divergence_is_the_monte_carlo_mean_of_its_log_ratio(family):
    posterior, labels, prior = family()
    nodes = uniform_interval.nodes_of(prior, 4_000)
    density = line.density_by_digit(posterior, labels, nodes).sum(0)
    codes = draw(posterior.expand(torch.Size((40, 500))), seeded(4)).flatten(0, 1)
    log_ratio = line.density_by_digit(posterior, labels, codes[:, 0]).sum(0).log()
    estimate = average(log_ratio - prior.log_prob(codes).double())
    assert_agrees(
        estimate.value,
        estimate.standard_error,
        uniform_interval.kl_on_a_line(density, prior, nodes),
    )


def test_nodes_reach_as_far_as_double_precision_goes():
    axis = uniform_interval.nodes_of(standard_normal(1), 1_000)
    assert axis[0].item() == pytest.approx(-axis[-1].item(), abs=0.02)
    assert -8 < axis[0] < -7.9
    density = standard_normal(1).log_prob(axis[:, None]).double().exp()
    assert uniform_interval.kl_on_a_line(density, standard_normal(1), axis) == pytest.approx(
        0, abs=1e-6
    )


def test_a_gaussian_is_as_far_from_the_prior_as_the_closed_form_says():
    axis = uniform_interval.nodes_of(standard_normal(1), 1_000)
    shifted = Normal(1.0, 0.5).log_prob(axis).exp()
    expected = 0.5 * (1 + 0.25 - 1 - math.log(0.25))
    assert uniform_interval.kl_on_a_line(shifted, standard_normal(1), axis) == pytest.approx(
        expected, abs=1e-6
    )


def test_a_code_of_pure_digits_tells_their_entropy_and_an_empty_code_nothing():
    nodes = uniform_interval.nodes_of(uniform_interval(1), 1_000)
    shares = torch.arange(1, 11, dtype=torch.float64) / 55
    empty = shares[:, None].expand(10, 1_000) / 10
    assert line.information_on_the_digit(empty, nodes) == pytest.approx(0, abs=1e-12)
    owner = torch.searchsorted(shares.cumsum(0), nodes / 10).clamp(max=9)
    pure = 0.1 * nn.functional.one_hot(owner, 10).double().T
    entropy = -(shares * shares.log()).sum().item()
    assert line.information_on_the_digit(pure, nodes) == pytest.approx(entropy, abs=2e-3)


class Ramp(nn.Module):
    """A decoder that inks as many of the first ten pixels as the code says."""

    def forward(self, codes):
        return torch.cat([50 * (codes - torch.arange(1.0, 11.0)), torch.zeros(len(codes), 774)], 1)


class Count(nn.Module):
    """A classifier whose answer is the number of inked pixels among the first ten."""

    def forward(self, images):
        return -(images[:, :10].sum(1, keepdim=True) - torch.arange(10)).square()


def test_positions_are_decoded_at_the_priors_quantiles():
    on_interval = VAE(nn.Identity(), BernoulliLikelihood(Ramp()), uniform_interval(1))
    on_line = VAE(nn.Identity(), BernoulliLikelihood(Ramp()), standard_normal(1))
    positions = torch.tensor([0.05, 0.35, 0.95])
    assert line.decoded_digits(on_interval, Count(), positions).tolist() == [0, 3, 9]
    # The quantiles of N(0, 1) are -1.6, -0.4 and 1.6.
    assert line.decoded_digits(on_line, Count(), positions).tolist() == [0, 0, 1]


@pytest.fixture
def small_world(monkeypatch, tmp_path):
    """Small recipes, small images in place of MNIST, and an untrained classifier."""
    digits = Digits(pictures(), torch.arange(100) % 10)
    monkeypatch.setattr(
        zoo,
        "RECIPES",
        {"line": TINY, "interval": Recipe(**vars(TINY) | {"posterior": "interval"})},
    )
    models = {
        name: Trained(build(pretrained.RECIPES[name]).eval(), [HISTORY])
        for name in pretrained.RECIPES
    }
    monkeypatch.setattr(zoo, "load", models.get)
    for module in (interval, study):
        monkeypatch.setattr(module, "load_mnist", lambda part: digits)
    monkeypatch.setattr(interval, "SEEDS", range(2))
    monkeypatch.setattr(zoo, "source", lambda: Source.FULL)
    classifier = digit_classifier.DigitClassifier().eval()
    monkeypatch.setattr(quality, "load", lambda: classifier)
    return tmp_path


def test_the_command_fills_the_table_and_does_nothing_twice(small_world, monkeypatch):
    table, models = small_world / "interval.jsonl", small_world / "models"
    arguments = ["--table", str(table), "--models", str(models)]
    assert uniform_interval.main(arguments) == 0
    rows = uniform_interval.TABLE.read(table)
    assert list(zip(rows.posterior, rows.seed, strict=True)) == [
        ("interval", 0),
        ("gaussian", 0),
        ("interval", 1),
        ("gaussian", 1),
        ("interval", 0),  # the long training
    ]
    assert rows.epochs.tolist() == [1, 1, 20, 20, 25]  # the first two are the zoo's
    earlier = rows.mismatch_after_20_epochs
    assert earlier.isna().tolist() == [True, True, False, False, False]
    assert earlier[2:4].tolist() == pytest.approx(rows.mismatch[2:4].tolist())
    assert earlier[4] != pytest.approx(rows.mismatch[4], rel=1e-6)
    assert (rows.rate > 0).all()
    assert (rows.smallest_rate < rows.rate).all()
    assert (rows.rate_error > 0).all()
    for mass, decoded in zip(rows["mass"], rows.decoded, strict=True):
        assert sum(map(sum, mass)) == pytest.approx(1, abs=1e-4)
        assert (len(mass), len(mass[0]), len(decoded)) == (10, line.BINS, uniform_interval.PLACES)

    # A killed run leaves whole lines: what they have is not trained again.
    whole = table.read_text()
    table.write_text("".join(whole.splitlines(keepends=True)[:3]))
    monkeypatch.setattr(study, "fit", lambda *_, **__: pytest.fail("trained again"))
    assert uniform_interval.main(arguments) == 0
    assert table.read_text() == whole
    assert uniform_interval.main(arguments) == 0
    assert table.read_text() == whole


def test_measures_are_those_of_the_model(small_world):
    vae = build(pretrained.RECIPES["interval"]).eval()
    measures = uniform_interval.measure(vae, nodes=300)
    digits = uniform_interval._binary("train")
    with torch.no_grad():
        rates = kl_divergence(vae.posterior(digits.images), vae.prior)
    assert measures["rate"].value == pytest.approx(rates.mean().item(), rel=1e-5)
    assert measures["smallest_rate"] == pytest.approx(rates.min().item(), rel=1e-5)
    for name, number in (("mismatch", 300), ("mismatch_every_third_node", 100)):
        nodes = uniform_interval.nodes_of(vae.prior, number)
        with torch.no_grad():
            posterior = vae.posterior(digits.images)
        density = line.density_by_digit(posterior, digits.labels, nodes).sum(0)
        expected = uniform_interval.kl_on_a_line(density, vae.prior, nodes)
        assert measures[name] == pytest.approx(expected, abs=1e-6)
    assert -1e-3 < measures["information_on_the_digit"] < math.log(10)
    assert measures["held_out_kl"].bound == "lower"


def test_the_stored_table_is_the_books():
    rows = uniform_interval.TABLE.read()
    expected = [
        (recipe.posterior, recipe.seed, recipe.flat) for recipe in uniform_interval.recipes()
    ]
    assert list(zip(rows.posterior, rows.seed, rows.flat, strict=True)) == expected
    assert uniform_interval.TABLE.stat().st_size < 500_000
    for line in uniform_interval.TABLE.read_text().splitlines():
        assert {"python", "priormatch", "torch", "seconds", "epochs"} <= set(json.loads(line))
