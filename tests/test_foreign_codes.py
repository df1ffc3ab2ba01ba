"""Codes of other people's models: a right number, or an error that names what is wrong."""

import copy
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from agreement import assert_agrees, assert_at_most
from small_world import quick_fits
from torch import nn
from torch.distributions import (
    Categorical,
    Distribution,
    Independent,
    Laplace,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    Uniform,
)
from torch.distributions.kl import kl_divergence

import priormatch
from priormatch import densities
from priormatch.checks import (
    FamilyError,
    NonFiniteError,
    NumberFormatError,
    PrecisionError,
    ScaleError,
    ShapeError,
    log_density,
    positions_as_rows,
)
from priormatch.degeneracy import DegenerateCodesError, atoms
from priormatch.densities import (
    Fitted,
    NoDensityError,
    choose,
    fit_best,
    fit_flow,
    fit_gaussian,
    fit_mixture,
    fit_mixture_by_class,
)
from priormatch.distributions import AggregatedPosterior, PaddedDensity, StretchedBeta, VampPrior
from priormatch.divergences import (
    kl_between_gaussians,
    kl_from_prior_per_dimension,
    kl_of_beta_from_uniform,
    kl_to_prior_per_dimension,
)
from priormatch.estimate import Estimate, TooFewCodesError, average
from priormatch.evidence import Grid, exact_inference, importance_bounds, kl_on_grid
from priormatch.line import density_by_digit
from priormatch.mismatch import (
    dimension_wise_kl,
    held_out_kl,
    hole_share,
    in_sample_kl,
    mean_rate,
    mean_square_per_dimension,
    moment_bound,
    nearest_patch,
    rate_per_dimension,
    rates,
    reverse_kl,
    thin_share,
    total_correlation,
)
from priormatch.models import VAE, standard_normal
from priormatch.sample_quality import (
    frechet_distance,
    nearest_distances,
    precision_and_recall,
)
from priormatch.samplers import fit_samplers, inverse_rosenblatt
from priormatch.two_sample import classifier_test, radius, sliced_wasserstein, squared_mmd

pytestmark = pytest.mark.usefixtures("without_shape_checks")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(draws, latent, seed=0):
    return torch.randn(draws, latent, generator=seeded(seed))


def quilt(examples=60, latent=2, seed=0):
    generator = seeded(seed)
    means = 0.8 * torch.randn(examples, latent, generator=generator)
    return AggregatedPosterior(means, 0.3 + 0.3 * torch.rand(means.shape, generator=generator))


def full_quilt(examples=40, latent=3, seed=0):
    """Return a mixture of Gaussians whose dimensions correlate, in double precision."""
    generator = seeded(seed)
    noise = torch.randn(examples, latent, latent, generator=generator, dtype=torch.float64)
    factors = 0.3 * noise.tril(-1) + torch.diag_embed(0.3 + noise.diagonal(dim1=1, dim2=2).abs())
    means = torch.randn(examples, latent, generator=generator, dtype=torch.float64)
    return AggregatedPosterior(means, scale_tril=factors)


def by_torch(aggregated):
    weights = Categorical(logits=torch.zeros(aggregated.components, dtype=torch.float64))
    return MixtureSameFamily(weights, aggregated.double().posteriors)


# Every measure and fit of codes, as a function of the codes alone.
PRIOR, QUILT, GAUSSIAN = (
    standard_normal(2),
    quilt(),
    MultivariateNormal(torch.zeros(2), torch.eye(2)),
)
OF_CODES = {
    "held_out_kl": lambda z: held_out_kl(GAUSSIAN, z, PRIOR),
    "held_out_kl of a quilt": lambda z: held_out_kl(QUILT, z, PRIOR),
    "moment_bound": moment_bound,
    "dimension_wise_kl": lambda z: dimension_wise_kl(QUILT, z),
    "total_correlation": lambda z: total_correlation(GAUSSIAN, QUILT, z),
    "reverse_kl": lambda z: reverse_kl(GAUSSIAN, z, PRIOR),
    "thin_share": lambda z: thin_share(GAUSSIAN, z, PRIOR),
    "hole_share": lambda z: hole_share(GAUSSIAN, z, normal(50, 2)),
    "hole_share of the prior": lambda z: hole_share(GAUSSIAN, normal(50, 2), z),
    "nearest_patch": lambda z: nearest_patch(QUILT, z),
    "classifier_test": lambda z: classifier_test(z, normal(len(z), 2, 9)),
    "sliced_wasserstein": lambda z: sliced_wasserstein(z, seeded(), 3),
    "radius": radius,
    "log_prob": QUILT.log_prob,
    "padded log_prob": PaddedDensity(QUILT.marginal(0), [0], 2).log_prob,
    "distance_to_nearest": QUILT.distance_to_nearest,
    "fit_gaussian": fit_gaussian,
    "fit_mixture": lambda z: fit_mixture(z, 2),
    "fit_mixture_by_class": lambda z: fit_mixture_by_class(z, torch.arange(len(z)) % 2),
    "fit_flow": lambda z: fit_flow(z, normal(30, 2), steps=15),
    "fit_flow, validation": lambda z: fit_flow(normal(60, 2), z, steps=15),
    "fit_best": lambda z: fit_best(z, normal(30, 2)),
    "choose": lambda z: choose({"N(0, I)": PRIOR}, z),
    "fit_samplers": lambda z: fit_samplers(PRIOR, QUILT, z, normal(30, 2)),
    "inverse_rosenblatt": lambda z: inverse_rosenblatt(GAUSSIAN, z),
    "frechet_distance": lambda z: frechet_distance(z, normal(60, 2), 5),
    "precision_and_recall": lambda z: precision_and_recall(z, normal(60, 2)),
    "nearest_distances": lambda z: nearest_distances(z, normal(60, 2)),
}
FITS_A_FLOW = {"fit_best", "fit_samplers"}

numbers = {name: function for name, function in OF_CODES.items() if name not in FITS_A_FLOW}


@pytest.fixture(scope="module", autouse=True)
def small_fits():
    with quick_fits(2, 15):
        yield


def flatten(found):
    """Return the numbers of any result, as one vector."""
    if isinstance(found, Estimate):
        return torch.tensor([found.value, found.standard_error], dtype=torch.float64)
    if isinstance(found, Distribution):
        return found.log_prob(normal(5, 2)).double()
    if isinstance(found, torch.Tensor):
        return found.detach().double().flatten()
    if isinstance(found, Fitted):
        return flatten(torch.tensor([*found.validation_log_density.values()]))
    if isinstance(found, tuple):
        return torch.cat([flatten(part) for part in found])
    return torch.tensor([found], dtype=torch.float64)


# Finite-sample bias


def heavy(kind, repetitions, draws, latent):
    """Return codes with heavy or light tails and unit variance, and their KL from N(0, I)."""
    generator = seeded(draws + latent)
    shape = (repetitions, draws, latent)
    if kind == "laplace":
        share = torch.rand(shape, generator=generator, dtype=torch.float64) - 0.5
        codes = -share.sign() * torch.log1p(-2 * share.abs()) * math.sqrt(0.5)
        entropy = 1 + math.log(2 * math.sqrt(0.5))
    else:
        codes = math.sqrt(12) * (torch.rand(shape, generator=generator, dtype=torch.float64) - 0.5)
        entropy = math.log(math.sqrt(12))
    return codes, latent * (0.5 * math.log(2 * math.pi) + 0.5 - entropy)


@pytest.mark.parametrize(("draws", "latent"), [(10, 1), (10, 4), (16, 8), (60, 8)])
def test_the_moment_bound_of_gaussian_codes_has_no_bias_at_any_number_of_codes(draws, latent):
    generator = seeded(latent)
    factor = (0.5 * torch.randn(latent, latent, generator=generator)).tril(-1)
    law = MultivariateNormal(
        torch.full((latent,), 0.2), scale_tril=factor + torch.linspace(0.7, 1.3, latent).diag()
    )
    truth = kl_divergence(law, MultivariateNormal(torch.zeros(latent), torch.eye(latent))).item()
    noise = torch.randn(400, draws, latent, generator=generator)
    values = [moment_bound(law.loc + some @ law.scale_tril.T).value for some in noise]
    found = average(torch.tensor(values))
    assert_agrees(found.value, found.standard_error, truth)


@pytest.mark.parametrize("kind", ["laplace", "uniform"])
@pytest.mark.parametrize(("draws", "latent"), [(10, 1), (10, 4), (40, 4)])
def test_the_moment_bound_of_any_codes_is_none_too_large_in_expectation(kind, draws, latent):
    codes, truth = heavy(kind, 400, draws, latent)
    found = average(torch.tensor([moment_bound(some).value for some in codes]))
    assert_at_most(found.value, found.standard_error, truth)
    # With a correction for Gaussian tails alone, ten Laplace codes in four dimensions give 0.28.
    assert found.value < 0.25


@pytest.mark.slow
def test_lower_bounds_hold_in_expectation_with_fewer_codes_than_dimensions():
    # The truth is zero, and a density that was not fitted to these codes cannot exceed it.
    latent, prior = 40, standard_normal(40)
    train = AggregatedPosterior(0.9 * normal(200, latent), torch.full((200, latent), 0.4))
    wide = Independent(Normal(torch.zeros(latent), torch.full((latent,), 1.1)), 1)
    for measure in (
        lambda z: held_out_kl(wide, z, prior),
        lambda z: held_out_kl(train, z, prior),
        lambda z: dimension_wise_kl(train, z).total,
    ):
        found = average(
            torch.tensor([measure(normal(5, latent, seed)).value for seed in range(60)])
        )
        assert_at_most(found.value, found.standard_error, 0.0)


def test_codes_too_few_for_a_measure_are_refused_with_the_number_that_it_needs():
    for needs, found in (
        ("needs 20 codes or more, and there are 19", lambda: moment_bound(normal(19, 10))),
        ("needs 10 codes or more, and there are 3", lambda: moment_bound(normal(3, 1))),
        ("needs 2 rows or more", lambda: held_out_kl(PRIOR, normal(1, 2), PRIOR)),
        ("needs 20 rows or more", lambda: classifier_test(normal(19, 2), normal(19, 2))),
        ("10 draws or more", lambda: squared_mmd(quilt(9), seeded())),
        ("two values or more", lambda: average(torch.ones(1))),
        ("20 training examples", lambda: priormatch.summary(*[normal(9, 2).exp()] * 4)),
    ):
        with pytest.raises(TooFewCodesError, match=needs):
            found()


# Non-finite values


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("name", OF_CODES)
def test_one_entry_that_is_not_finite_is_named(name, bad):
    codes = normal(60, 2)
    codes[7, 1] = bad
    with pytest.raises(NonFiniteError, match=rf"\[7, 1\] is {bad}"):
        OF_CODES[name](codes)


@pytest.mark.parametrize("place", range(4))
def test_one_scale_or_mean_that_is_not_finite_is_named(place):
    parts = [normal(40, 2), torch.full((40, 2), 0.3), normal(40, 2), torch.full((40, 2), 0.3)]
    for bad in (math.inf, math.nan):
        damaged = [part.clone() for part in parts]
        damaged[place][3, 1] = bad
        with pytest.raises(NonFiniteError, match=r"(means|scales).3, 1. is"):
            priormatch.summary(*damaged)


def test_log_densities_that_are_no_numbers_are_named():
    class Broken(Normal):
        def log_prob(self, value):
            return super().log_prob(value) * torch.where(value > 2, torch.nan, 1.0)

    broken = Independent(Broken(torch.zeros(2), torch.ones(2), validate_args=False), 1)
    codes = torch.tensor([[0.0, 0.0], [0.0, 3.0]])
    with pytest.raises(NonFiniteError, match=r"log_prob of the prior at code.1. is nan"):
        held_out_kl(PRIOR, codes, broken)


def test_codes_outside_of_a_prior_are_infinitely_far_whatever_the_checks():
    codes = torch.tensor([[0.5], [2.0]])
    for validate in (True, False):
        prior = Independent(Uniform(torch.zeros(1), 1.0, validate_args=validate), 1)
        assert log_density(prior, codes).tolist() == [0.0, -math.inf]
        assert held_out_kl(standard_normal(1), codes, prior).value == math.inf


# Checks that do not depend on what others switch off

ZEROS, ONES, ONE = torch.zeros(3, 2), torch.ones(3, 2), torch.tensor(1.0)
WRONG = {
    "other shapes": (ShapeError, lambda: AggregatedPosterior(ZEROS, ONES[:, :1])),
    "a negative scale": (ScaleError, lambda: AggregatedPosterior(ZEROS, -ONES)),
    "a zero scale": (ScaleError, lambda: AggregatedPosterior(ZEROS, ZEROS)),
    "an infinite scale": (NonFiniteError, lambda: AggregatedPosterior(ZEROS, ONES * torch.inf)),
    "codes of other dimensions": (ShapeError, lambda: QUILT.log_prob(torch.zeros(4, 3))),
    "codes that are NaN": (NonFiniteError, lambda: QUILT.log_prob(ZEROS * torch.nan)),
    "a negative concentration": (ScaleError, lambda: StretchedBeta(-ONE, ONE)),
    "a value outside": (ValueError, lambda: StretchedBeta(ONE, ONE).log_prob(11 * ONE)),
    "no covariance": (
        ScaleError,
        lambda: kl_between_gaussians(torch.zeros(2), -torch.eye(2), torch.zeros(2), torch.eye(2)),
    ),
    "a prior of numbers": (ShapeError, lambda: held_out_kl(PRIOR, normal(5, 2), Normal(0.0, 1.0))),
}


@pytest.mark.parametrize("name", WRONG)
def test_inputs_are_checked_with_the_checks_of_torch_switched_off(name):
    kind, call = WRONG[name]
    before = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    try:
        with pytest.raises(kind):
            call()
    finally:
        Distribution.set_default_validate_args(before)


@pytest.mark.slow
def test_inputs_are_checked_by_an_optimising_interpreter_after_zuko():
    program = """
import zuko
import torch
from priormatch.distributions import AggregatedPosterior
for means, scales in ((torch.zeros(3, 2), -torch.ones(3, 2)), (torch.zeros(3, 2), torch.ones(2))):
    try:
        AggregatedPosterior(means, scales)
    except ValueError as error:
        print(type(error).__name__)
"""
    run = subprocess.run(
        [sys.executable, "-O", "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == ["ScaleError", "ShapeError"]


# Full covariances


def test_the_density_of_full_covariances_is_that_of_torch():
    aggregated = full_quilt()
    codes = torch.cat([normal(200, 3), 20 * normal(10, 3)]).double()
    torch.testing.assert_close(
        aggregated.log_prob(codes), by_torch(aggregated).log_prob(codes), atol=1e-6, rtol=1e-8
    )
    noise = torch.linalg.solve_triangular(
        aggregated.scale_tril, (codes[:, None] - aggregated.means)[..., None], upper=False
    )
    torch.testing.assert_close(
        aggregated.distance_to_nearest(codes), noise.squeeze(-1).norm(dim=2).amin(1)
    )


def test_moments_draws_and_marginals_of_full_covariances_are_exact():
    aggregated = full_quilt()
    reference = by_torch(aggregated)
    torch.testing.assert_close(aggregated.mean, reference.mean)
    torch.testing.assert_close(aggregated.variance, reference.variance)
    draws = aggregated.sample((100_000,), generator=seeded())
    centred = draws - aggregated.mean
    for row in range(3):
        for column in range(row + 1):
            found = average(centred[:, row] * centred[:, column])
            truth = aggregated.covariance[row, column].item()
            assert_agrees(found.value, found.standard_error, truth)
    pair = aggregated.marginal(2, 0)
    torch.testing.assert_close(pair.covariance, aggregated.covariance[[2, 0]][:, [2, 0]])
    torch.testing.assert_close(aggregated.marginal(1).variance, aggregated.variance[[1]])


def test_measures_of_full_covariances_are_those_of_the_mixture():
    aggregated, prior = full_quilt(), standard_normal(3)
    whole = MultivariateNormal(torch.zeros(3).double(), torch.eye(3).double())
    exact = kl_divergence(aggregated.posteriors, whole)
    torch.testing.assert_close(rates(aggregated), exact)
    assert mean_rate(aggregated).item() == pytest.approx(exact.mean().item())
    assert rate_per_dimension(aggregated).sum().item() < exact.mean().item()
    squares = aggregated.variance + aggregated.mean.square()
    torch.testing.assert_close(mean_square_per_dimension(aggregated), squares)
    codes = aggregated.sample((4_000,), generator=seeded(1))
    inside, outside = (
        in_sample_kl(aggregated, prior, 4_000, seeded(2)),
        held_out_kl(aggregated, codes, prior),
    )
    assert inside.floor == pytest.approx(max(0, exact.mean().item() - math.log(40)))
    both = math.hypot(inside.standard_error, outside.standard_error)
    assert_agrees(inside.value, both, outside.value)
    total = dimension_wise_kl(aggregated, codes).total.value
    assert total + total_correlation(aggregated, aggregated, codes).value == pytest.approx(
        outside.value, abs=1e-4
    )
    shares = nearest_patch(aggregated, codes)
    assert shares.share.value >= 0.98


def test_the_discrepancy_of_full_covariances_is_unbiased():
    # Posteriors with correlated dimensions whose aggregate is N(0, I) in the population.
    within = torch.tensor([[0.5, 0.3], [0.3, 0.5]])
    factor = torch.linalg.cholesky(within)
    between = torch.linalg.cholesky(torch.eye(2) - within)
    found = []
    for seed in range(100):
        means = normal(100, 2, seed) @ between.T
        mixture = AggregatedPosterior(means, scale_tril=factor.expand(100, 2, 2))
        found.append(squared_mmd(mixture, seeded(seed)).value)
    estimate = average(torch.tensor(found))
    assert_agrees(estimate.value, estimate.standard_error, 0.0)


class Turned(nn.Module):
    """An encoder whose posteriors are Gaussians with full covariances."""

    def forward(self, images):
        factor = torch.tensor([[0.5, 0.0], [0.45, 0.2]]).expand(*images.shape[:-1], 2, 2)
        return MultivariateNormal(4 * images[..., :2] - 2, scale_tril=factor)


def test_a_vamp_prior_of_full_covariances_is_their_mixture():
    prior = VampPrior(Turned(), torch.rand(6, 4, generator=seeded()))
    posteriors = Turned()(prior.pseudo_inputs)
    reference = MixtureSameFamily(Categorical(torch.ones(6)), posteriors)
    codes = normal(50, 2)
    torch.testing.assert_close(prior.log_prob(codes), reference.log_prob(codes), atol=1e-4, rtol=0)
    # A diagonal of standard deviations in place of the covariances would be far off.
    wrong = AggregatedPosterior(posteriors.mean, posteriors.stddev).log_prob(codes)
    assert (wrong - reference.log_prob(codes)).abs().max() > 0.5
    gradient = torch.autograd.grad(prior.log_prob(codes).sum(), prior.logits)[0]
    assert gradient[:, :2].abs().min() > 0


def test_what_is_no_gaussian_posterior_is_refused():
    with pytest.raises(FamilyError, match="Laplace"):
        AggregatedPosterior.from_posteriors(Independent(Laplace(torch.zeros(3, 2), 1.0), 1))
    with pytest.raises(ScaleError, match="cholesky"):
        AggregatedPosterior(torch.zeros(3, 2), scale_tril=torch.ones(3, 2, 2))
    with pytest.raises(ShapeError, match="either scales or scale_tril"):
        AggregatedPosterior(torch.zeros(3, 2))


# One candidate fails


@pytest.mark.parametrize(("draws", "latent"), [(500, 56), (60, 56), (30, 56)])
def test_few_codes_in_many_dimensions_leave_a_candidate(monkeypatch, draws, latent):
    monkeypatch.setattr(densities, "mixture_sizes", lambda latent: (10, 50))
    best = fit_best(normal(draws, latent), normal(100, latent, 1), 0, quilt(draws, latent))
    assert {*best.validation_log_density} | {*best.failed} == {
        *("Gaussian", "mixture of 10", "mixture of 50", "flow")
    }
    assert math.isfinite(best.validation_log_density[best.name])
    if draws < latent:
        assert "57 codes or more are needed, there are 30" in best.failed["Gaussian"]


def test_a_candidate_whose_density_is_no_number_or_whose_algebra_fails_is_reported(monkeypatch):
    def fails(*_):
        raise torch.linalg.LinAlgError("not positive definite")

    def no_number(*_):
        law = standard_normal(2)
        law.log_prob = lambda value: torch.full(value.shape[:1], torch.nan)
        return law

    monkeypatch.setattr(densities, "fit_mixture", fails)
    monkeypatch.setattr(densities, "fit_flow", no_number)
    best = fit_best(normal(60, 2), normal(30, 2, 1))
    assert (best.name, {*best.failed}) == ("Gaussian", {"mixture of 2", "flow"})
    assert "not positive definite" in best.failed["mixture of 2"]
    assert "nan" in best.failed["flow"]


# Number formats, and tensors as models give them


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_codes_and_parameters_in_half_precision_are_computed_in_single_precision(kind):
    generator = seeded()
    means = (2 * torch.randn(50, 4, generator=generator)).to(kind)
    scales = (0.05 + 0.3 * torch.rand(50, 4, generator=generator)).to(kind)
    codes = normal(40, 4).to(kind)
    mixture = AggregatedPosterior(means, scales)
    exact = by_torch(AggregatedPosterior(means.double(), scales.double())).log_prob(codes.double())
    found = mixture.log_prob(codes)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, atol=1e-4, rtol=1e-7)
    assert mixture.sample((3,), generator=generator).dtype == torch.float32


FOREIGN = {
    "requires_grad": lambda z: z.clone().requires_grad_(),
    "NumPy": lambda z: z.numpy(),
    "NumPy, read-only and reversed": lambda z: np.flip(np.flip(z.numpy(), 0).copy(), 0),
    "NumPy, big-endian": lambda z: z.numpy().astype(">f4"),
    "lists": lambda z: z.tolist(),
    "float64": lambda z: z.double(),
    "a transposed view": lambda z: z.T.contiguous().T,
}


@pytest.mark.parametrize("form", FOREIGN)
@pytest.mark.parametrize("name", numbers)
def test_every_form_of_codes_gives_the_same_numbers(name, form):
    codes = normal(60, 2, 3)
    ours, theirs = flatten(numbers[name](codes)), flatten(numbers[name](FOREIGN[form](codes)))
    room = 1e-2 if name.startswith("fit") else 1e-4
    torch.testing.assert_close(theirs, ours, atol=room, rtol=room)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["requires_grad", "NumPy", "float64"])
def test_every_form_of_means_and_scales_gives_the_same_summary(form):
    convert = FOREIGN[form]
    parts = [normal(200, 2), torch.full((200, 2), 0.4), normal(80, 2, 1), torch.full((80, 2), 0.4)]
    ours = priormatch.summary(*parts, draws=100)
    theirs = priormatch.summary(*map(convert, parts), draws=100)
    for name in ("rate", "held_out_kl", "moment_bound", "dimension_wise_kl", "mean_square_radius"):
        # Draws in double precision are other draws.
        room = 5 * ours[name].standard_error if form == "float64" else 1e-6
        assert theirs[name].value == pytest.approx(ours[name].value, abs=room)


def test_gradients_reach_means_scales_and_codes_after_a_measure():
    means = normal(5, 2).requires_grad_()
    mixture = AggregatedPosterior(means, torch.ones(5, 2))
    nearest_patch(mixture, normal(20, 2))
    codes = normal(3, 2, 1).requires_grad_()
    mixture.log_prob(codes).sum().backward()
    assert means.grad.abs().max() > 0
    assert codes.grad.abs().max() > 0


def test_codes_of_no_numbers_are_refused():
    for codes in (
        torch.zeros(5, 2, dtype=torch.complex64),
        np.array([["a", "b"]]),
        [[1.0], [1.0, 2.0]],
    ):
        with pytest.raises(NumberFormatError):
            moment_bound(codes)
    with pytest.raises(NumberFormatError, match="meta"):
        moment_bound(torch.zeros(50, 2, device="meta"))


def test_a_density_in_another_number_format_takes_the_codes():
    flow = fit_flow(normal(100, 2), normal(50, 2, 1), steps=15)
    codes = normal(20, 2, 2)
    assert held_out_kl(flow, codes.double(), PRIOR).value == pytest.approx(
        held_out_kl(flow, codes, PRIOR).value, abs=1e-5
    )
    single = MultivariateNormal(torch.zeros(2), torch.eye(2))
    assert held_out_kl(single, codes.double(), PRIOR).value == pytest.approx(0, abs=1e-6)


# Shapes

ANY_DIMENSION = {
    *("moment_bound", "radius", "sliced_wasserstein"),
    *("fit_gaussian", "fit_mixture", "fit_mixture_by_class"),
}


@pytest.mark.parametrize("name", OF_CODES)
def test_codes_of_another_shape_are_refused_with_the_mend(name):
    if "log_prob" not in name and name != "distance_to_nearest":  # these take any batch
        with pytest.raises(ShapeError, match=r"\[:, None\]"):
            OF_CODES[name](torch.zeros(60))
        with pytest.raises(ShapeError, match=r"positions_as_rows\(\w+\)"):
            OF_CODES[name](torch.zeros(60, 2, 8, 8))
        with pytest.raises(ShapeError, match="no entries"):
            OF_CODES[name](torch.zeros(0, 2))
    if name not in ANY_DIMENSION:
        with pytest.raises(ShapeError):
            OF_CODES[name](normal(60, 3))


def test_positions_of_latent_maps_are_rows():
    maps = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    rows = positions_as_rows(maps)
    assert rows.shape == (40, 3)
    assert torch.equal(rows[0], maps[0, :, 0, 0])
    assert torch.equal(rows[27], maps[1, :, 1, 2])
    assert positions_as_rows(torch.zeros(2, 3, 7)).shape == (14, 3)
    assert positions_as_rows(torch.zeros(2, 3, 2, 4, 5)).shape == (80, 3)
    with pytest.raises(ShapeError, match=r"maps\[None"):
        positions_as_rows(torch.zeros(3, 4))
    mixture = AggregatedPosterior(rows, torch.ones_like(rows))
    assert mixture.components == 40
    with pytest.raises(ShapeError, match="positions_as_rows"):
        AggregatedPosterior(torch.zeros(2, 3, 4, 5), torch.ones(2, 3, 4, 5))


def test_means_and_scales_that_merely_broadcast_are_refused():
    for scales in (torch.ones(1, 2), torch.ones(2), torch.tensor(1.0), torch.ones(60, 1)):
        with pytest.raises(ShapeError):
            AggregatedPosterior(torch.zeros(60, 2), scales)
        with pytest.raises(ShapeError):
            kl_from_prior_per_dimension(torch.zeros(60, 2), scales.log())
        with pytest.raises(ShapeError):
            kl_to_prior_per_dimension(torch.zeros(60, 2), scales.log())
    with pytest.raises(ShapeError):
        kl_of_beta_from_uniform(torch.ones(3), torch.ones(1))


def test_models_and_grids_of_other_shapes_are_refused():
    class Pair(nn.Module):
        def forward(self, inputs):
            return Independent(Normal(inputs[..., :2], 1.0), 1)

    vae = VAE(Pair(), Pair(), standard_normal(2))
    images = normal(5, 2)
    damaged = images.clone()
    damaged[1, 0] = math.nan
    grid = Grid((-3.0, -3.0), (3.0, 3.0), 0.5)
    for call in (
        lambda x: importance_bounds(vae, x, 10, seeded()),
        lambda x: exact_inference(vae, x, grid),
    ):
        with pytest.raises(NonFiniteError, match=r"images.1, 0. is nan"):
            call(damaged)
        with pytest.raises(ShapeError, match="images has shape"):
            call(images[0])
    with pytest.raises(ShapeError, match="the prior"):
        importance_bounds(VAE(Pair(), Pair(), standard_normal(3)), images, 10, seeded())
    with pytest.raises(ShapeError, match="the prior"):
        kl_on_grid(torch.ones(169), standard_normal(1), grid)
    posterior = Independent(Normal(torch.zeros(4, 1), 1.0), 1)
    with pytest.raises(ShapeError, match="3 labels"):
        density_by_digit(posterior, torch.arange(3), torch.zeros(2))


# Narrow scales


@pytest.mark.parametrize("log_variance", [-30.0, -40.0])
def test_narrow_posteriors_lose_no_digits(log_variance):
    means = normal(200, 4) + 1
    scales = torch.full_like(means, math.exp(0.5 * log_variance))
    mixture, prior = AggregatedPosterior(means, scales), standard_normal(4)
    codes = mixture.sample((500,), generator=seeded(1))
    assert codes.dtype == torch.float64
    exact = by_torch(mixture).log_prob(codes)
    torch.testing.assert_close(mixture.log_prob(codes), exact, atol=1e-4, rtol=1e-9)
    # The posteriors do not overlap, so the mixture's KL is the rate less ln N.
    found = in_sample_kl(mixture, prior, 20_000, seeded(2))
    assert_agrees(found.value, found.standard_error, mean_rate(mixture).item() - math.log(200))
    assert "floor" in found.note


def test_codes_too_coarse_for_narrow_posteriors_are_said_to_be():
    means = normal(50, 3) + 1
    mixture = AggregatedPosterior(means, torch.full_like(means, math.exp(-15)))
    codes = mixture.sample((50,), generator=seeded())
    assert "precision" not in held_out_kl(mixture, codes, standard_normal(3)).note
    assert "precision" in held_out_kl(mixture, codes.float(), standard_normal(3)).note


def test_scales_below_the_precision_of_their_means_are_refused():
    with pytest.raises(PrecisionError, match=r"scales.0, 0. is 1e-13.*below the precision"):
        AggregatedPosterior(torch.ones(1, 1), torch.full((1, 1), 1e-13))
    with pytest.raises(PrecisionError, match="at most 1e\\+30"):
        moment_bound(torch.full((50, 2), 1e31))
    with pytest.raises(PrecisionError, match="at least 1e-30"):
        AggregatedPosterior(torch.zeros(1, 1), torch.full((1, 1), 1e-35))


# What cannot match


def vector_quantised(draws=2_000, latent=4, size=64):
    return normal(size, latent)[torch.randint(size, (draws,), generator=seeded(1))]


def one_hot(draws=2_000, size=6):
    return torch.eye(size)[torch.randint(size, (draws,), generator=seeded(1))]


ATOMS = {
    "vector quantised": (vector_quantised(), "take only 64 values"),
    "vector quantised, in bfloat16": (vector_quantised().bfloat16(), "take only 64 values"),
    "one-hot": (one_hot(), "values in latent dimension 0|take only 6 values"),
    "rectified": (normal(2_000, 3).clamp(min=0), "values in latent dimension 0"),
    "levels": (normal(2_000, 3).mul(2).round(), "take only"),
}


@pytest.mark.parametrize("name", ATOMS)
def test_codes_with_atoms_are_recognised(name):
    codes, said = ATOMS[name]
    assert said.split("|")[0] in atoms(codes.float()) or said.split("|")[-1] in atoms(codes.float())
    with pytest.raises(NoDensityError, match="KL from N\\(0, I\\) is infinite"):
        fit_best(codes, codes)
    for fit in (fit_gaussian, lambda z: fit_mixture(z, 3), lambda z: fit_flow(z, z, steps=15)):
        with pytest.raises(DegenerateCodesError, match=r"infinite"):
            fit(codes)
    prior = standard_normal(codes.shape[1])
    assert "infinite" in held_out_kl(prior, codes, prior).note


@pytest.mark.parametrize("latent", [1, 2, 20])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16])
def test_rounding_makes_no_atoms(latent, kind):
    codes = normal(5_000, latent).to(kind)
    assert atoms(codes.float()) == ""
    assert atoms((codes + 3).float()) == ""
    assert atoms(torch.cat([codes, codes[:20]]).float()) == ""
    quarter = AggregatedPosterior(normal(10, latent), torch.full((10, latent), 0.05))
    assert atoms(quarter.sample((5_000,), generator=seeded()).to(kind).float()) == ""


def test_codes_in_fewer_dimensions_than_they_have_are_infinitely_far():
    flat = torch.cat([normal(100, 2), normal(100, 2).sum(1, keepdim=True)], 1)
    with pytest.raises(DegenerateCodesError, match=r"lie in 2 of them"):
        moment_bound(flat)
    # A direction a ten-thousandth as wide as the others is narrow, and no more.
    narrow = flat + torch.tensor([0.0, 0.0, 1e-4]) * normal(100, 1, 5)
    assert moment_bound(narrow).value > 8
    with pytest.raises(DegenerateCodesError, match="dimension 1 is constant"):
        moment_bound(torch.cat([normal(100, 1), torch.full((100, 1), 3.3)], 1))


# Vacuous numbers


@pytest.mark.slow
def test_a_summary_of_few_codes_in_many_dimensions_says_what_is_vacuous_and_why():
    latent, examples = 128, 90
    scales = torch.full((examples, latent), 0.05)
    found = priormatch.summary(
        normal(examples, latent), scales, normal(examples, latent, 1), scales, draws=50
    )
    text = str(found)
    assert "vacuous" in found["in_sample_kl"].note
    assert "needs 256 codes or more, and there are 90" in found["moment_bound"].note
    assert math.isnan(found["moment_bound"].value)
    assert "vacuous" in found["held_out_kl"].note
    bound = found["density_bound"]
    assert_at_most(bound.value, bound.standard_error, 0.0)
    assert "* moment_bound: " in text
    assert "not measured*" in text
    assert "needs 256 codes" in found._repr_html_()


def test_a_bound_below_zero_is_said_to_be_vacuous_and_a_match_is_not():
    latent, prior = 512, standard_normal(512)
    train = AggregatedPosterior(normal(300, latent), torch.full((300, latent), 0.05))
    found = held_out_kl(train, normal(300, latent, 1), prior)
    assert found.value < -100_000
    assert "vacuous" in found.note
    assert "vacuous" in str(found)
    assert held_out_kl(prior, normal(300, latent), prior).note == ""
    exact = AggregatedPosterior(0.9 * normal(5_000, 1), torch.full((5_000, 1), math.sqrt(0.19)))
    assert held_out_kl(exact, normal(500, 1, 1), standard_normal(1)).note == ""
    assert in_sample_kl(exact, standard_normal(1), 500, seeded()).note == ""


def test_checks_leave_what_they_are_given_as_it_was():
    codes = normal(60, 2).requires_grad_()
    before = copy.deepcopy(codes.detach())
    for call in numbers.values():
        call(codes)
    assert torch.equal(codes.detach(), before)
    assert codes.requires_grad
