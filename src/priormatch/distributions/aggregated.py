"""The aggregated posterior q(z) = (1/N) sum_n Q(z|x_n): the mixture that the question is about."""

import math
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal, constraints

# Draws and components of one block: 1 MB in double precision stays in a processor's cache.
_DRAWS, _COMPONENTS = 128, 1_024


class AggregatedPosterior(Distribution):
    r"""Mixture of N diagonal Gaussians with equal weights, one for each example.

    .. math:: q(z) = \frac1N \sum_{n=1}^N \mathcal N(z; \mu_n, \operatorname{diag} \sigma_n^2)

    `log_prob` goes through draws and components in blocks, so that memory beyond the parameters
    grows with the number of neither. Quadratic forms and their maximum are computed in double
    precision, in which components with a scale of 0.001 lose no digits.

    Args:
        means: Means of the posteriors, of shape ``(examples, latent)``.
        scales: Their standard deviations (not variances), of the same shape, positive.
        validate_args: Whether to check parameters and values.

    Raises:
        ValueError: The shapes differ, or a scale is not positive and finite.

    Source: :cite:t:`hoffman2016`, :cite:t:`makhzani2015`.

    Introduced in "The latent picture".

    >>> single = AggregatedPosterior(torch.zeros(1, 2), torch.ones(1, 2))
    >>> single.log_prob(torch.zeros(2))  # -ln(2 pi)
    tensor(-1.8379)
    """

    arg_constraints = {  # noqa: RUF012 - the name and form that torch.distributions reads
        "means": constraints.independent(constraints.real, 2),
        "scales": constraints.independent(constraints.positive, 2),
    }
    support = constraints.real_vector
    has_rsample = False

    def __init__(
        self,
        means: Float[Tensor, "examples latent"],
        scales: Float[Tensor, "examples latent"],
        validate_args: bool | None = None,
    ) -> None:
        if means.ndim != 2 or means.shape != scales.shape or not means.numel():
            raise ValueError(
                "means and scales need one shape (examples, latent), got "
                f"{tuple(means.shape)} and {tuple(scales.shape)}"
            )
        self.means = means
        self.scales = scales
        super().__init__(event_shape=means.shape[1:], validate_args=validate_args)

    @property
    def components(self) -> int:
        """Number of posteriors in the mixture, N."""
        return len(self.means)

    @property
    def posteriors(self) -> Independent:
        """The posteriors Q(z|x_n): batch shape ``(examples,)``, event shape ``(latent,)``."""
        return Independent(Normal(self.means, self.scales), 1)

    @property
    def mean(self) -> Float[Tensor, " latent"]:
        """Exact mean: the mean of the means."""
        return self.means.double().mean(0).to(self.means.dtype)

    @property
    def variance(self) -> Float[Tensor, " latent"]:
        """Exact variance of each latent dimension."""
        return self.covariance.diagonal()

    @property
    def covariance(self) -> Float[Tensor, "latent latent"]:
        r"""Exact covariance, by the law of total variance.

        .. math:: \frac1N \sum_n \operatorname{diag} \sigma_n^2 + \operatorname{Cov}_n \mu_n
        """
        centred = self.means.double() - self.means.double().mean(0)
        between = centred.T @ centred / self.components
        within = torch.diag(self.scales.double().square().mean(0))
        return (within + between).to(self.means.dtype)

    def marginal(self, *dimensions: int) -> "AggregatedPosterior":
        """Return the exact marginal distribution of the named latent dimensions.

        >>> mixture = AggregatedPosterior(torch.zeros(3, 5), torch.ones(3, 5))
        >>> mixture.marginal(4).event_shape
        torch.Size([1])
        """
        chosen = list(dimensions)
        return AggregatedPosterior(self.means[:, chosen], self.scales[:, chosen])

    def expand(
        self, batch_shape: torch.Size | list[int] | tuple[int, ...], _instance: object = None
    ) -> "AggregatedPosterior":
        """Raise: a data set has one aggregated posterior, not a batch of them."""
        raise NotImplementedError("the aggregated posterior has no batch to expand")

    @torch.no_grad()
    def sample(
        self,
        sample_shape: torch.Size | tuple[int, ...] | list[int] = (),
        *,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "*sample latent"]:
        """Draw codes: an example at random, then a draw of its posterior.

        Args:
            sample_shape: Shape of the block of draws.
            generator: Source of the randomness; torch's global one if it is None.

        Returns:
            Codes of shape ``(*sample_shape, latent)``.
        """
        shape = torch.Size(sample_shape)
        examples = torch.randint(self.components, shape, generator=generator)
        noise = torch.randn(shape + self.event_shape, generator=generator, dtype=self.means.dtype)
        return self.means[examples] + self.scales[examples] * noise

    def log_prob(self, value: Float[Tensor, "*sample latent"]) -> Float[Tensor, " *sample"]:
        """Return log q(z) in nats, within 1e-4 of double precision.

        Args:
            value: Codes, of shape ``(..., latent)``.

        Returns:
            Log density, of shape ``(...)``.

        Raises:
            ValueError: The codes have another number of dimensions, or are not real.
        """
        if self._validate_args:
            self._validate_sample(value)
        codes = value.reshape(math.prod(value.shape[:-1]), *self.event_shape)
        blocks = [self._log_prob_of_block(some) for some in codes.split(_DRAWS)]
        log_density = torch.cat(blocks)
        return log_density.reshape(value.shape[:-1]).to(self.means.dtype)

    def distance_to_nearest(self, value: Float[Tensor, "draws latent"]) -> Float[Tensor, " draws"]:
        r"""Return the distance of each code to the nearest posterior, in scales of that posterior.

        .. math:: \min_n \sqrt{\sum_j (z_j - \mu_{nj})^2 / \sigma_{nj}^2}

        Args:
            value: Codes, of shape ``(draws, latent)``.

        Returns:
            Mahalanobis distances, of shape ``(draws,)``.

        >>> pair = AggregatedPosterior(torch.tensor([[0.0], [9.0]]), torch.tensor([[1.0], [2.0]]))
        >>> pair.distance_to_nearest(torch.tensor([[2.0], [6.0]]))
        tensor([2.0000, 1.5000])
        """
        means, precision = self.means.double(), self.scales.double().square().reciprocal()
        constant = (means.square() * precision).sum(1)
        weights = torch.cat([precision, -2 * means * precision, constant[:, None]], 1).T
        nearest = []
        for some in value.double().split(_DRAWS):
            features = _features(some)
            squares = [(features @ block).amin(1) for block in weights.split(_COMPONENTS, dim=1)]
            nearest.append(torch.stack(squares).amin(0).clamp(min=0).sqrt())
        return torch.cat(nearest).to(self.means.dtype)

    @cached_property
    def _weights(self) -> Float[Tensor, "features examples"]:
        # (z - mu)^2 / sigma^2 = z^2 / sigma^2 - 2 z mu / sigma^2 + mu^2 / sigma^2, so that the
        # log density of all components is one matrix product with the features (z^2, z, 1).
        means = self.means.double()
        precision = self.scales.double().square().reciprocal()
        constant = -0.5 * (means.square() * precision).sum(1) - self.scales.double().log().sum(1)
        return torch.cat([-0.5 * precision, means * precision, constant[:, None]], 1).T

    def _log_prob_of_block(self, codes: Float[Tensor, "draws latent"]) -> Float[Tensor, " draws"]:
        features = _features(codes.double())
        total = torch.full((len(codes),), -math.inf, dtype=torch.float64)
        for weights in self._weights.split(_COMPONENTS, dim=1):
            exponents = features @ weights
            top = exponents.detach().amax(1, keepdim=True)
            # Single precision is enough for the terms once their maximum is taken out. Terms below
            # exp(-80) are clamped: they are lost in the sum, and numbers too small for a normal
            # float are slow.
            terms = exponents.sub_(top).float().clamp_(min=-80.0).exp_().sum(1)
            total = torch.logaddexp(total, top.squeeze(1) + terms.double().log())
        normaliser = math.log(self.components) + 0.5 * codes.shape[1] * math.log(2 * math.pi)
        return total - normaliser


def _features(codes: Float[Tensor, "draws latent"]) -> Float[Tensor, "draws features"]:
    return torch.cat([codes.square(), codes, torch.ones_like(codes[:, :1])], 1)
