"""Densities fitted to codes: samplers in place of N(0, I), and bounds on the mismatch from it.

A density r made from training codes gives a lower bound on the mismatch, evaluated at codes that it
has not seen: see `priormatch.mismatch.held_out_kl`. The better r fits, the tighter the bound. So
there are several candidates, and `fit_best` chooses one of them on validation codes.
"""

import copy
import functools
import warnings
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
import zuko
from jaxtyping import Float, Int
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor
from torch.distributions import (
    AffineTransform,
    Categorical,
    Distribution,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
)

from priormatch.checks import (
    NonFiniteError,
    as_tensor,
    check_event,
    log_density,
    rows,
    vector,
)
from priormatch.degeneracy import DegenerateCodesError, codes_with_density
from priormatch.distributions import AggregatedPosterior, PaddedDensity
from priormatch.expectation_maximisation import Components, maximise_expectation
from priormatch.mismatch import active_dimensions
from priormatch.models import globally_seeded, standard_normal

# Importing zuko switches the checks of every distribution off; this is torch's default again.
Distribution.set_default_validate_args(__debug__)

# Expectation maximisation places the components on a subset of the codes; a few steps on all of
# them then settle the covariances. Stopping early loosens the bound, which stays valid.
_FEW, _STEPS_ON_FEW, _STEPS_ON_ALL = 10_000, 20, 10

_BATCH, _LEARNING_RATE, _CHECKS = 500, 5e-3, 15

# Latent dimensions beyond which mixtures are left out, and independent dimensions compete instead.
_MOST_FOR_MIXTURES = 128

# Draws of an aggregated posterior, from which the location and scale of a flow are estimated.
_CODES = 10_000


class FittedMixture(MixtureSameFamily):
    """A mixture of Gaussians as expectation maximisation has left it.

    Attributes:
        gain: Nats a code that the last step gained. It is zero where the search converged; else a
            longer one would fit better, and the bound, which is valid, would be tighter.
    """

    gain: float = 0.0


class NoDensityError(ValueError):
    """None of the candidates could be fitted to the codes; the message has the reasons."""


class Fitted(NamedTuple):
    """The best of several densities, and how it was chosen.

    Attributes:
        name: Its name, such as ``"mixture of 50"``.
        density: The density, with event shape ``(latent,)``.
        validation_log_density: Mean log density of the validation codes under each candidate, in
            nats. The choice makes the largest a little too high, so take bounds on other codes.
        failed: Candidates that could not be fitted, with the reason.
        notes: What is to say about candidates, such as a search that had not converged.
    """

    name: str
    density: Distribution
    validation_log_density: dict[str, float]
    failed: dict[str, str]
    notes: Mapping[str, str] = MappingProxyType({})


def fit_gaussian(codes: Float[Tensor, "draws latent"]) -> MultivariateNormal:
    r"""Return the Gaussian with the mean and the covariance of the codes.

    .. math:: \mathcal N(m, S), \quad m = \tfrac1n \sum_i z_i, \quad
              S = \tfrac1{n-1} \sum_i (z_i - m)(z_i - m)^\top

    Args:
        codes: Draws of the training posteriors, of shape ``(draws, latent)``.

    Raises:
        TooFewCodesError: There are no more codes than latent dimensions.
        DegenerateCodesError: The codes lie in fewer dimensions, or have atoms.

    Introduced in "The estimators on trial".

    >>> fit_gaussian(torch.tensor([[-1.0], [0.0], [1.0]])).variance
    tensor([1.])
    """
    known = codes_with_density(codes)
    factor = known.scales[:, None] * known.correlations
    return MultivariateNormal(known.location.to(known.codes), scale_tril=factor.to(known.codes))


def _fit_independent(codes: Float[Tensor, "draws latent"]) -> Independent:
    """Return the Gaussian with the mean and variance of the codes in each dimension."""
    known = codes_with_density(codes)
    normal = Normal(known.location.to(known.codes), known.scales.to(known.codes))
    return Independent(normal, 1)


def fit_mixture(
    codes: Float[Tensor, "draws latent"], components: int, seed: int = 0
) -> FittedMixture:
    r"""Fit a mixture of Gaussians with full covariances by expectation maximisation.

    .. math:: r(z) = \sum_k w_k\, \mathcal N(z; m_k, S_k)

    Codes are measured in units of their average scale, because the start of the search and the
    smallest variance depend on the unit. The search makes at most 20 iterations on 10,000 of the
    codes and, if there are more codes, 10 on all of them. Stopping early loosens the bound, which
    stays valid.

    Args:
        codes: Draws of the training posteriors, of shape ``(draws, latent)``.
        components: Number of Gaussians.
        seed: Decides where the search starts, and on which codes.

    Returns:
        The mixture. Its attribute ``gain`` is zero where the search converged.

    Raises:
        TooFewCodesError: There are fewer codes than components, or no more than dimensions.
        DegenerateCodesError: The codes lie in fewer dimensions, or have atoms.

    Source: scikit-learn's ``GaussianMixture``, which starts the search by k-means.

    Introduced in "The estimators on trial".
    """
    known = codes_with_density(codes, components)
    codes = known.codes
    # One unit for all dimensions, so that k-means, which starts the search, sees their proportions.
    unit = known.scales.square().mean().sqrt()
    standard = (codes.double() - known.location) / unit
    few = np.random.default_rng(seed).choice(len(codes), min(len(codes), _FEW), replace=False)
    some = standard[torch.from_numpy(np.sort(few))]
    # No more threads than torch uses, because a study runs a process on every core.
    with warnings.catch_warnings(), threadpool_limits(torch.get_num_threads()):
        warnings.simplefilter("ignore", ConvergenceWarning)
        try:
            start = GaussianMixture(components, max_iter=1, random_state=seed).fit(some.numpy())
            weights, means, covariances = map(
                torch.as_tensor, (start.weights_, start.means_, start.covariances_)
            )
            found = Components(weights, means, covariances)
            found = maximise_expectation(some, found, _STEPS_ON_FEW)
            if len(codes) > _FEW:
                found = maximise_expectation(standard, found, _STEPS_ON_ALL)
            factors = unit * torch.linalg.cholesky(found.covariances)
        except (ValueError, torch.linalg.LinAlgError) as error:
            raise DegenerateCodesError(
                f"{len(codes)} codes of {codes.shape[1]} dimensions leave a component of a mixture "
                f"of {components} without a covariance: {error}"
            ) from None
    mixture = FittedMixture(
        Categorical(found.weights.to(codes)),
        MultivariateNormal(
            (known.location + unit * found.means).to(codes), scale_tril=factors.to(codes)
        ),
    )
    mixture.gain = found.gain
    return mixture


def fit_mixture_by_class(
    codes: Float[Tensor, "draws latent"], labels: Int[Tensor, " draws"]
) -> MixtureSameFamily:
    """Return the mixture of one Gaussian per class, each with the moments of the class's codes.

    Args:
        codes: Draws of the training posteriors, of shape ``(draws, latent)``.
        labels: Their classes.

    Raises:
        TooFewCodesError: A class has no more codes than latent dimensions.
        DegenerateCodesError: The codes of a class lie in fewer dimensions, or have atoms.

    Introduced in "Seams, sizes, and ten Gaussians".

    >>> pair = torch.tensor([[0.0], [2.0], [8.0], [10.0]])
    >>> fit_mixture_by_class(pair, torch.tensor([0, 0, 1, 1])).mean
    tensor([5.])
    """
    codes = rows(codes)
    labels = vector(labels, "labels", len(codes))
    classes, counts = labels.unique(return_counts=True)
    gaussians = [fit_gaussian(codes[labels == one]) for one in classes]
    means = torch.stack([gaussian.loc for gaussian in gaussians])
    factors = torch.stack([gaussian.scale_tril for gaussian in gaussians])
    return MixtureSameFamily(
        Categorical((counts / len(labels)).to(codes)), MultivariateNormal(means, scale_tril=factors)
    )


def fit_flow(
    codes: Float[Tensor, "draws latent"] | AggregatedPosterior,
    validation_codes: Float[Tensor, "others latent"],
    seed: int = 0,
    steps: int | None = None,
) -> TransformedDistribution:
    r"""Train a normalising flow, and return its state of the highest validation log density.

    .. math:: \ln r(z) = \ln \mathcal N(f(u); 0, I) + \ln |\det f'(u)| - \sum_j \ln s_j,
              \quad u = (z - m) / s

    In up to five dimensions f is made of splines, which can follow the seams of the quilt. In more
    dimensions it is made of autoregressive affine maps, which gain more nats per second of fitting
    there. Weight decay grows with the dimension, because the codes get sparser.

    Args:
        codes: Draws of the training posteriors, of shape ``(draws, latent)``, in single precision.
            Or the aggregated posterior itself, from which every batch is drawn anew; the flow then
            overfits less.
        validation_codes: Codes on which one of 15 states of the training is chosen.
        seed: Decides the initial weights and the order of the codes.
        steps: Gradient steps; if None, 300 for splines and 600 for affine maps.

    Raises:
        TooFewCodesError: There are no more codes than latent dimensions.
        DegenerateCodesError: The codes lie in fewer dimensions, or have atoms.

    Source: :cite:t:`durkan2019` and :cite:t:`papamakarios2017`, as implemented by zuko.

    Introduced in "The estimators on trial".
    """
    validation_codes = rows(validation_codes, "validation_codes")
    latent = validation_codes.shape[1]
    fresh = codes if isinstance(codes, AggregatedPosterior) else None
    # Where each batch is drawn anew, location and scale come from a fixed set of draws.
    generator = torch.Generator().manual_seed(seed)
    drawn = fresh.sample((_CODES,), generator=generator) if fresh else codes
    known = codes_with_density(rows(drawn, columns=latent))
    location, scale = known.location.to(known.codes), known.scales.to(known.codes)
    unseen = (validation_codes.to(location) - location) / scale
    steps = steps or (300 if latent <= 5 else 600)
    # zuko draws initial weights from torch's global generator.
    with globally_seeded(seed), torch.enable_grad():
        flow = _untrained_flow(latent).to(location.dtype)
        optimiser = torch.optim.AdamW(
            flow.parameters(), lr=_LEARNING_RATE, weight_decay=latent / 50, fused=True
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, _LEARNING_RATE, total_steps=steps, pct_start=0.1, cycle_momentum=False
        )
        best, kept = -torch.inf, flow
        for step in range(1, steps + 1):
            if fresh:
                batch = fresh.sample((_BATCH,)).to(location)
            else:
                batch = known.codes[torch.randint(len(known.codes), (_BATCH,))]
            loss = -flow().log_prob((batch - location) / scale).mean()
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(flow.parameters(), 5.0)
            optimiser.step()
            schedule.step()
            if step % max(1, steps // _CHECKS) == 0:
                with torch.no_grad():
                    log_density = flow().log_prob(unseen).mean().item()
                if log_density > best:
                    best, kept = log_density, copy.deepcopy(flow)
    if not best > -torch.inf:
        raise DegenerateCodesError("the training of the flow diverged")
    kept.requires_grad_(False)
    # One code is one event: event_dim=1 sums the log-determinant over dimensions, once.
    return _Flow(kept(), AffineTransform(location, scale, event_dim=1))


class _Flow(TransformedDistribution):
    """A flow that takes codes of any number format."""

    def log_prob(self, value: Float[Tensor, "*sample latent"]) -> Float[Tensor, " *sample"]:
        standardise: Any = self.transforms[0]
        return super().log_prob(as_tensor(value, "codes").to(standardise.loc))


def mixture_sizes(latent: int) -> tuple[int, ...]:
    """Return the numbers of components of the candidate mixtures in so many latent dimensions.

    The more dimensions, the more numbers there are in a covariance. Larger mixtures than these take
    long or overfit 55,000 codes. In two trainings with ten dimensions, 100 components would raise
    the density bound by 0.017 ± 0.006 and 0.038 ± 0.006 nats.

    Beyond 128 dimensions a covariance has more numbers than codes settle, and its fit takes hours.

    >>> mixture_sizes(2), mixture_sizes(10), mixture_sizes(50), mixture_sizes(500)
    ((10, 200), (10, 50), (10, 20), ())
    """
    if latent > _MOST_FOR_MIXTURES:
        return ()
    if latent <= 3:
        return (10, 200)
    return (10, 50) if latent <= 20 else (10, 20)


def candidates(
    codes: Float[Tensor, "draws latent"],
    validation_codes: Float[Tensor, "others latent"],
    seed: int = 0,
) -> dict[str, Distribution]:
    """Fit a Gaussian, mixtures of the sizes in `mixture_sizes`, and a flow; return them by name.

    Args:
        codes: Draws of the training posteriors, of shape ``(draws, latent)``.
        validation_codes: Codes on which the state of the flow is chosen.
        seed: Decides the fits.

    Raises:
        TooFewCodesError: There are fewer codes than the largest mixture has components.
        DegenerateCodesError: The codes lie in fewer dimensions, or have atoms.

    Introduced in "The estimators on trial".
    """
    return {name: fit() for name, fit in _fits(codes, validation_codes, seed).items()}


def _fits(
    codes: Tensor,
    validation_codes: Tensor,
    seed: int,
    aggregated: AggregatedPosterior | None = None,
) -> dict[str, Callable[[], Distribution]]:
    """Return the functions that fit the candidates, by name."""
    fits: dict[str, Callable[[], Distribution]] = {"Gaussian": lambda: fit_gaussian(codes)}
    if codes.shape[1] > _MOST_FOR_MIXTURES:
        fits["Gaussian of independent dimensions"] = lambda: _fit_independent(codes)
    return {
        **fits,
        **{
            f"mixture of {size}": functools.partial(fit_mixture, codes, size, seed)
            for size in mixture_sizes(codes.shape[1])
        },
        "flow": lambda: fit_flow(aggregated or codes, validation_codes, seed),
    }


def choose(
    densities: dict[str, Distribution],
    validation_codes: Float[Tensor, "others latent"],
    failed: dict[str, str] | None = None,
) -> Fitted:
    r"""Choose the density with the highest mean log density of the validation codes.

    .. math:: \arg\max_r \tfrac1n \sum_i \ln r(z_i)

    Args:
        densities: Candidates by name, fitted without the codes of the bound.
        validation_codes: Codes on which the choice is made, of shape ``(others, latent)``.
        failed: Reasons why others could not be fitted, by name. A candidate whose log density of
            the validation codes is not a number joins them.

    Raises:
        NoDensityError: There is no candidate.

    Introduced in "The estimators on trial".
    """
    failed, found = dict(failed or {}), {}
    validation_codes = rows(validation_codes, "validation_codes")
    for name, density in densities.items():
        try:
            found[name] = log_density(density, validation_codes, name).mean().item()
        except NonFiniteError as error:
            failed[name] = str(error)
    if not found:
        reasons: dict[str, list[str]] = {}
        for name, reason in failed.items():
            reasons.setdefault(reason, []).append(name)
        listed = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in reasons.items())
        raise NoDensityError(f"no density could be fitted to the codes. {listed}")
    name = max(found, key=lambda one: found[one])
    return Fitted(name, densities[name], found, failed)


def fit_best(
    codes: Float[Tensor, "draws latent"],
    validation_codes: Float[Tensor, "others latent"],
    seed: int = 0,
    aggregated: AggregatedPosterior | None = None,
) -> Fitted:
    """Fit the `candidates`, and `choose` the best of them on the validation codes.

    Args:
        codes: Draws of the training posteriors, of shape ``(draws, latent)``.
        validation_codes: Draws of the posteriors of other examples. The bound needs a third set.
        seed: Decides the fits.
        aggregated: Aggregated posterior of the training examples, if it is known. Then densities
            are fitted to the active dimensions alone, with N(0, 1) in the silent ones.

    Raises:
        NoDensityError: No candidate could be fitted, for instance because the codes have atoms. A
            candidate that fails alone is reported in the result, and the others compete.
        ShapeError: Codes and mixture do not have one number of dimensions.
        NonFiniteError: A code is infinite or not a number.

    Introduced in "The estimators on trial".
    """
    codes = rows(codes)
    latent = codes.shape[1]
    validation_codes = rows(validation_codes, "validation_codes", latent)
    if aggregated is not None:
        check_event(aggregated, latent, "the aggregated posterior")
    active = active_dimensions(aggregated) if aggregated else [*range(latent)]
    if not active:
        return choose({"N(0, I)": standard_normal(latent)}, validation_codes)
    known = aggregated.marginal(*active) if aggregated else None
    densities: dict[str, Distribution] = {}
    failed: dict[str, str] = {}
    notes: dict[str, str] = {}
    fits = _fits(codes[:, active], validation_codes[:, active], seed, known)
    for name, fit in fits.items():
        try:
            density = fit()
        # The others still compete. Linear algebra and memory fail by a RuntimeError.
        except (ValueError, ArithmeticError, RuntimeError, MemoryError) as error:
            failed[name] = str(error)
        else:
            if isinstance(density, FittedMixture) and density.gain:
                notes[name] = f"the last step of its search still gained {density.gain:.2g} nats"
            whole = len(active) == latent
            densities[name] = density if whole else PaddedDensity(density, active, latent)
    return choose(densities, validation_codes, failed)._replace(notes=notes)


def _untrained_flow(latent: int) -> zuko.flows.Flow:
    if latent <= 5:
        flow = zuko.flows.NSF(latent, transforms=2, bins=16, hidden_features=(128, 128))
        if latent == 1:
            # With nothing to condition on, zuko would start at random; zeros are the identity.
            for parameter in flow.parameters():
                torch.nn.init.zeros_(parameter)
        return flow
    return zuko.flows.MAF(latent, transforms=3, hidden_features=(256, 256))
