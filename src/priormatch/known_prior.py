"""The prior of codes: N(0, I), a Gaussian that becomes it in other units, or any other law."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
)

from priormatch.checks import FamilyError, check_event
from priormatch.models import globally_seeded, standard_normal


class KnownPrior(NamedTuple):
    """A prior as one law of codes.

    Attributes:
        law: The distribution, with event shape ``(latent,)``.
        name: What a report calls it, such as ``"N(0, I)"``.
        location: Its mean, if it is Gaussian; else None.
        turn: Lower triangular factor of its covariance, if it is Gaussian; else None.
        is_standard: Whether it is N(0, I).
    """

    law: Distribution
    name: str
    location: Float[Tensor, " latent"] | None
    turn: Float[Tensor, "latent latent"] | None
    is_standard: bool

    @property
    def mixes_dimensions(self) -> bool:
        """Whether its covariance ties latent dimensions together."""
        return self.turn is not None and bool(self.turn.tril(-1).any())

    def sample(self, draws: int, seed: int) -> Float[Tensor, "draws latent"]:
        """Draw codes with a seed, and leave torch's global generator as it was."""
        with globally_seeded(seed), torch.no_grad():
            return self.law.sample(torch.Size((draws,))).cpu()


def known_prior(prior: Distribution | None, latent: int) -> KnownPrior:
    """Return a prior as one law of so many latent dimensions.

    Args:
        prior: A distribution with event shape ``(latent,)``. Of one-dimensional laws, one is taken
            for all dimensions, and a batch of ``latent`` as one law for each. None is N(0, I).
        latent: Number of latent dimensions.

    Raises:
        FamilyError: It is no distribution of torch.
        ShapeError: It has other dimensions.

    Introduced in "Audit your own VAE".

    >>> known_prior(Normal(0.0, 2.0), 3).name
    'N(0, 4 I)'
    """
    if prior is None:
        prior = standard_normal(latent)
    if not isinstance(prior, Distribution):
        raise FamilyError(f"a prior is an object of torch.distributions, not {type(prior)}")
    if not prior.event_shape:
        if not prior.batch_shape:
            prior = prior.expand(torch.Size((latent,)))
        prior = Independent(prior, 1)
    check_event(prior, latent, "the prior")
    base: Any = prior.base_dist if isinstance(prior, Independent) else prior
    if isinstance(base, Normal):
        location, scales = base.loc.detach().double().cpu(), base.scale.detach().double().cpu()
        turn = torch.diag(scales)
    elif isinstance(base, MultivariateNormal | LowRankMultivariateNormal):
        location = base.mean.detach().double().cpu()
        turn = torch.linalg.cholesky(base.covariance_matrix.detach().double().cpu())
    else:
        return KnownPrior(prior, f"the {type(base).__name__} prior", None, None, False)
    standard = not bool(location.any()) and torch.equal(turn, torch.eye(latent).double())
    return KnownPrior(prior, _name_of_gaussian(location, turn), location, turn, standard)


def _name_of_gaussian(location: Tensor, turn: Tensor) -> str:
    width = turn.diagonal()
    alike = (location == location[0]).all() and (width == width[0]).all()
    if not alike or turn.tril(-1).any():
        return "the Gaussian prior"
    variance = width[0].item() ** 2
    return f"N({location[0].item():g}, {'' if variance == 1 else f'{variance:g} '}I)"
