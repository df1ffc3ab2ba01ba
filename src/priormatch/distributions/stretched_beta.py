"""The Beta distribution stretched over the interval of the thought experiment, (0, 10)."""

import math

import torch
from jaxtyping import Float
from scipy.special import betainc
from torch import Tensor
from torch.distributions import Beta, Distribution, Uniform, constraints
from torch.distributions.kl import register_kl
from torch.distributions.utils import broadcast_all

from priormatch.checks import as_tensor, check_positive
from priormatch.divergences import kl_of_beta_from_uniform

INTERVAL = 10.0
"""Length of the interval of the thought experiment, (0, 10)."""


class StretchedBeta(Distribution):
    r"""Beta distribution stretched over the interval (0, 10).

    .. math:: \ln q(z) = (\alpha - 1) \ln u + (\beta - 1) \ln(1 - u)
              - \ln B(\alpha, \beta) - \ln 10, \quad u = z / 10

    Draws are torch's own reparameterised ones. The KL from the uniform distribution on the interval
    has a closed form. Log densities are computed in double precision: where the distribution is
    narrow, the terms are some hundred thousand times as large as their sum.

    Args:
        concentration1: First parameter of the Beta distribution, alpha.
        concentration0: Second parameter, beta.
        validate_args: False leaves out the checks of parameters and values.

    Raises:
        NonFiniteError: A parameter is infinite or not a number.
        ScaleError: A parameter is not positive.
        ValueError: A value lies outside of the interval.

    Introduced in "The uniform interval".

    >>> StretchedBeta(torch.tensor(1.0), torch.tensor(3.0)).mean
    tensor(2.5000)
    """

    arg_constraints = {  # noqa: RUF012 - the name and form that torch.distributions reads
        "concentration1": constraints.positive,
        "concentration0": constraints.positive,
    }
    support = constraints.interval(0.0, INTERVAL)
    has_rsample = True

    def __init__(
        self,
        concentration1: Float[Tensor, "*batch"],
        concentration0: Float[Tensor, "*batch"],
        validate_args: bool | None = None,
    ) -> None:
        alpha = as_tensor(concentration1, "concentration1")
        beta = as_tensor(concentration0, "concentration0")
        if validate_args is not False:
            check_positive(alpha.detach(), "concentration1")
            check_positive(beta.detach(), "concentration0")
        self.concentration1, self.concentration0 = broadcast_all(alpha, beta)
        # Not torch's default, which some libraries change for the whole process.
        super().__init__(self.concentration1.shape, validate_args=validate_args is not False)

    def expand(
        self, batch_shape: torch.Size | list[int] | tuple[int, ...], _instance: object = None
    ) -> "StretchedBeta":
        """Return the same distributions in a larger batch."""
        return StretchedBeta(
            self.concentration1.expand(batch_shape),
            self.concentration0.expand(batch_shape),
            validate_args=False,
        )

    @property
    def _shares(self) -> Beta:
        """The distribution of u = z / 10."""
        return Beta(self.concentration1, self.concentration0, validate_args=False)

    @property
    def mean(self) -> Float[Tensor, "*batch"]:
        """Exact mean."""
        return INTERVAL * self._shares.mean

    @property
    def variance(self) -> Float[Tensor, "*batch"]:
        """Exact variance."""
        return INTERVAL**2 * self._shares.variance

    def rsample(
        self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()
    ) -> Float[Tensor, "*sample"]:
        """Draw inside the open interval; gradients reach the parameters."""
        shares = self._shares.rsample(torch.Size(sample_shape))
        # A draw that rounds to an end of the interval has no finite log density.
        margin = torch.finfo(shares.dtype).eps
        return INTERVAL * shares.clamp(margin, 1 - margin)

    def log_prob(self, value: Float[Tensor, "*sample"]) -> Float[Tensor, "*broadcast"]:
        """Return the log density in nats; values broadcast against the batch."""
        if self._validate_args:
            self._validate_sample(value)
        alpha, beta = self.concentration1.double(), self.concentration0.double()
        constant = (alpha + beta).lgamma() - alpha.lgamma() - beta.lgamma() - math.log(INTERVAL)
        shares = value.double() / INTERVAL
        # Logarithms are taken before values broadcast against the batch: mixtures have many pairs.
        log_density = (alpha - 1) * shares.log() + ((beta - 1) * (-shares).log1p() + constant)
        return log_density.to(torch.promote_types(value.dtype, self.concentration1.dtype))

    @torch.no_grad()
    def cdf(self, value: Float[Tensor, "*sample"]) -> Float[Tensor, "*broadcast"]:
        """Return the distribution function; no gradient flows through it."""
        if self._validate_args:
            self._validate_sample(value)
        parts = (self.concentration1, self.concentration0, value / INTERVAL)
        arguments = [one.detach().double().cpu().numpy() for one in parts]
        shares = torch.from_numpy(betainc(*arguments))
        return shares.to(torch.promote_types(value.dtype, self.concentration1.dtype))


@register_kl(StretchedBeta, Uniform)
def _kl_stretched_beta_uniform(posterior: StretchedBeta, prior: Uniform) -> Float[Tensor, "*batch"]:
    # From a uniform distribution on another interval the KL differs, or is infinite.
    if not ((prior.low == 0) & (prior.high == INTERVAL)).all():
        raise NotImplementedError(f"the KL is known from U(0, {INTERVAL:g}) only, not {prior}")
    kl = kl_of_beta_from_uniform(posterior.concentration1, posterior.concentration0)
    return kl.expand(torch.broadcast_shapes(kl.shape, prior.batch_shape))
