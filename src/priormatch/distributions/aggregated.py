"""The aggregated posterior q(z) = (1/N) sum_n Q(z|x_n): the mixture that the question is about."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal, constraints

from priormatch.checks import (
    FamilyError,
    ScaleError,
    ShapeError,
    as_tensor,
    check_finite,
    check_resolved,
    check_scales,
    same_shape,
)

# Draws and components of one block: 1 MB in double precision stays in a processor's cache.
_DRAWS, _COMPONENTS = 128, 1_024

# A scale this much smaller than its mean has too few digits for single precision: the rounding of
# a draw would move log q by more than 1e-5 nats.
_NARROW = 2.0**-15

# Beyond this ratio of a mean to its scale, products of squares lose the digits of a distance.
_OBLIQUE = 1e5


class AggregatedPosterior(Distribution):
    r"""Mixture of N Gaussians with equal weights, one for each example.

    .. math:: q(z) = \frac1N \sum_{n=1}^N \mathcal N(z; \mu_n, \operatorname{diag} \sigma_n^2)

    `log_prob` goes through draws and components in blocks, so that memory beyond the parameters
    grows with the number of neither. Quadratic forms and their maximum are computed in double
    precision, in which components with a scale of 0.001 lose no digits. The parameters themselves
    are kept in double precision if a scale is below 1/32,768 of its mean, because draws of it in
    single precision would be rounded.

    Args:
        means: Means of the posteriors, of shape ``(examples, latent)``: a tensor, on any device, or
            a NumPy array. Formats shorter than single precision become single precision.
        scales: Their standard deviations (not variances), of the same shape, positive. None if
            `scale_tril` is given.
        validate_args: False leaves out the checks of values, though not those of shapes.
        scale_tril: Lower triangular factors of full covariances, of shape ``(examples, latent,
            latent)``, in place of `scales`; see `from_posteriors` and ``torch.linalg.cholesky``.

    Raises:
        ShapeError: The shapes differ, or are not these.
        NonFiniteError: A mean or a scale is infinite or not a number.
        ScaleError: A scale is not positive.
        PrecisionError: A mean or a scale is out of range, or too narrow for double precision.

    Source: :cite:t:`hoffman2016`, :cite:t:`makhzani2015`.

    Introduced in "Seams, sizes, and ten Gaussians".

    >>> single = AggregatedPosterior(torch.zeros(1, 2), torch.ones(1, 2))
    >>> single.log_prob(torch.zeros(2))  # -ln(2 pi)
    tensor(-1.8379)
    """

    arg_constraints = {}  # noqa: RUF012 - the name and form that torch.distributions reads
    support = constraints.real_vector
    has_rsample = False

    def __init__(
        self,
        means: Float[Tensor, "examples latent"],
        scales: Float[Tensor, "examples latent"] | None = None,
        validate_args: bool | None = None,
        *,
        scale_tril: Float[Tensor, "examples latent latent"] | None = None,
    ) -> None:
        if (scales is None) == (scale_tril is None):
            raise ShapeError("posteriors have either scales or scale_tril, and not both")
        means = as_tensor(means, "means")
        if means.ndim != 2 or not means.numel():
            raise ShapeError(
                f"means and scales need one shape (examples, latent), and means has "
                f"{tuple(means.shape)}: positions_as_rows(means) makes a code of each position of "
                "latent maps, and means[:, None] takes one latent dimension"
            )
        if scale_tril is None:
            widths = as_tensor(scales, "scales")
            same_shape(means, widths, "means and scales")
        else:
            widths = as_tensor(scale_tril, "scale_tril")
            if widths.shape != (*means.shape, means.shape[1]):
                raise ShapeError(
                    f"scale_tril has shape {tuple(widths.shape)}, where "
                    f"{(*means.shape, means.shape[1])} is needed"
                )
        self._checked = validate_args is not False
        if self._checked:
            _check_values(means.detach(), widths.detach(), scale_tril is not None)
        precise = torch.promote_types(means.dtype, widths.dtype)
        narrow = widths.detach() if scale_tril is None else _deviations(widths.detach())
        if self._checked and (narrow < _NARROW * means.detach().abs()).any():
            precise = torch.float64
        self.means = means.to(precise)
        widths = widths.to(self.means)
        self.scale_tril = None if scale_tril is None else widths
        self.scales = widths if scale_tril is None else _deviations(widths)
        super().__init__(event_shape=means.shape[1:], validate_args=False)

    @classmethod
    def from_posteriors(
        cls, posteriors: Distribution, validate_args: bool | None = None
    ) -> "AggregatedPosterior":
        """Return the mixture of a batch of Gaussian posteriors, diagonal or with full covariances.

        Args:
            posteriors: ``Independent(Normal(…), 1)`` or ``MultivariateNormal``, with batch shape
                ``(examples,)`` and event shape ``(latent,)``, as an encoder returns them.
            validate_args: As for the class.

        Raises:
            FamilyError: The posteriors are not Gaussian.
            ShapeError: They have other shapes.

        >>> normal = MultivariateNormal(torch.zeros(3, 2), torch.eye(2))
        >>> AggregatedPosterior.from_posteriors(normal).components
        3
        """
        if isinstance(posteriors, MultivariateNormal):
            return cls(posteriors.mean, None, validate_args, scale_tril=posteriors.scale_tril)
        base = posteriors.base_dist if isinstance(posteriors, Independent) else posteriors
        if not isinstance(base, Normal):
            raise FamilyError(f"a mixture of Gaussians has no component of the kind {base}")
        return cls(posteriors.mean, posteriors.stddev, validate_args)

    @property
    def components(self) -> int:
        """Number of posteriors in the mixture, N."""
        return len(self.means)

    @property
    def posteriors(self) -> Independent | MultivariateNormal:
        """The posteriors Q(z|x_n): batch shape ``(examples,)``, event shape ``(latent,)``."""
        if self.scale_tril is not None:
            return MultivariateNormal(self.means, scale_tril=self.scale_tril, validate_args=False)
        normal = Normal(self.means, self.scales, validate_args=False)
        return Independent(normal, 1, validate_args=False)

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
        if self.scale_tril is None:
            within = torch.diag(self.scales.double().square().mean(0))
        else:
            # The mean of L L^T, as one product of all columns of all factors.
            columns = self.scale_tril.double().permute(1, 0, 2).flatten(1)
            within = columns @ columns.T / self.components
        return (within + between).to(self.means.dtype)

    def double(self) -> "AggregatedPosterior":
        """Return the mixture in double precision, without gradients, in the processor's memory."""
        return self._with(lambda part: part.detach().double().cpu())

    def on_cpu(self) -> "AggregatedPosterior":
        """Return the mixture without gradients, in the processor's memory."""
        return self._with(lambda part: part.detach().cpu())

    def examples(self, which: Int[Tensor, " some"]) -> "AggregatedPosterior":
        """Return the mixture over some of the examples, named by their places."""
        return self._with(lambda part: part[which])

    def _with(self, change: Callable[[Tensor], Tensor]) -> "AggregatedPosterior":
        """Return the mixture with other means and scales, which are not checked again."""
        factors = None if self.scale_tril is None else change(self.scale_tril)
        scales = change(self.scales) if factors is None else None
        changed = AggregatedPosterior(change(self.means), scales, False, scale_tril=factors)
        changed._checked = self._checked
        return changed

    def marginal(self, *dimensions: int) -> "AggregatedPosterior":
        """Return the exact marginal distribution of the named latent dimensions.

        Raises:
            ShapeError: None is named, or one that there is not.

        >>> mixture = AggregatedPosterior(torch.zeros(3, 5), torch.ones(3, 5))
        >>> mixture.marginal(4).event_shape
        torch.Size([1])
        """
        chosen, latent = list(dimensions), self.means.shape[1]
        if not chosen or not all(-latent <= one < latent for one in chosen):
            raise ShapeError(f"{chosen} does not name some of {latent} latent dimensions")
        validate = None if self._checked else False
        means = self.means[:, chosen]
        if self.scale_tril is None or len(chosen) == 1:
            return AggregatedPosterior(means, self.scales[:, chosen], validate)
        some = self.scale_tril[:, chosen].double()
        factors = torch.linalg.cholesky(some @ some.mT).to(means.dtype)
        return AggregatedPosterior(means, None, validate, scale_tril=factors)

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
            Codes of shape ``(*sample_shape, latent)``, on the device of the means.
        """
        shape, home = torch.Size(sample_shape), self.means.device
        source: Any = {"generator": generator, "device": generator.device if generator else "cpu"}
        examples = torch.randint(self.components, shape, **source).to(home)
        noise = torch.randn(shape + self.event_shape, dtype=self.means.dtype, **source).to(home)
        if self.scale_tril is None:
            return self.means[examples] + self.scales[examples] * noise
        turned = self.scale_tril[examples] @ noise.unsqueeze(-1)
        return self.means[examples] + turned.squeeze(-1)

    def log_prob(self, value: Float[Tensor, "*sample latent"]) -> Float[Tensor, " *sample"]:
        """Return log q(z) in nats, within 1e-4 of double precision.

        Args:
            value: Codes, of shape ``(..., latent)``.

        Returns:
            Log density, of shape ``(...)``.

        Raises:
            ShapeError: The codes have another number of dimensions.
            NonFiniteError: A code is infinite or not a number.
        """
        value, codes = self._codes(value)
        total = codes.new_full((len(codes),), -math.inf)
        for exponents_of in self._exponents():
            parts = []
            for some in codes.split(_DRAWS):
                exponents = exponents_of(some)
                top = exponents.detach().amax(1, keepdim=True)
                # Single precision is enough for the terms once their maximum is taken out. Terms
                # below exp(-80) are clamped: they are lost in the sum, and numbers too small for a
                # normal float are slow.
                terms = exponents.sub_(top).float().clamp_(min=-80.0).exp_().sum(1)
                parts.append(top.squeeze(1) + terms.double().log())
            total = torch.logaddexp(total, torch.cat(parts))
        normaliser = math.log(self.components) + 0.5 * codes.shape[1] * math.log(2 * math.pi)
        log_density = (total - normaliser).reshape(value.shape[:-1])
        return log_density.to(torch.promote_types(self.means.dtype, value.dtype))

    @torch.no_grad()
    def distance_to_nearest(self, value: Float[Tensor, "draws latent"]) -> Float[Tensor, " draws"]:
        r"""Return the distance of each code to the nearest posterior, in scales of that posterior.

        .. math:: \min_n \sqrt{\sum_j (z_j - \mu_{nj})^2 / \sigma_{nj}^2}

        Args:
            value: Codes, of shape ``(draws, latent)``.

        Returns:
            Mahalanobis distances, of shape ``(draws,)``.

        Raises:
            ShapeError: The codes have another number of dimensions.
            NonFiniteError: A code is infinite or not a number.

        >>> pair = AggregatedPosterior(torch.tensor([[0.0], [9.0]]), torch.tensor([[1.0], [2.0]]))
        >>> pair.distance_to_nearest(torch.tensor([[2.0], [6.0]]))
        tensor([2.0000, 1.5000])
        """
        _, codes = self._codes(value)
        nearest = codes.new_full((len(codes),), math.inf)
        for exponents_of in self._exponents(with_widths=False):
            squares = [-2 * exponents_of(some).amax(1) for some in codes.split(_DRAWS)]
            nearest = torch.minimum(nearest, torch.cat(squares))
        return nearest.clamp(min=0).sqrt().to(self.means.dtype)

    def _codes(self, value: Any) -> tuple[Tensor, Tensor]:
        """Return the codes as they came, and as a matrix in double precision."""
        value = as_tensor(value, "codes").to(self.means.device)
        latent = self.means.shape[1]
        if value.ndim < 1 or value.shape[-1] != latent:
            raise ShapeError(
                f"codes has shape {tuple(value.shape)}, where (…, {latent}) is needed, because "
                f"the mixture has {latent} latent dimensions"
            )
        if self._checked:
            check_finite(value.detach(), "codes")
        return value, value.reshape(math.prod(value.shape[:-1]), latent).double()

    def _exponents(self, with_widths: bool = True) -> Iterator[Callable[[Tensor], Tensor]]:
        """Yield functions from codes to the exponents of some components at a time.

        The exponents are log densities without the factor of 2 pi or, without widths, minus half
        the squared Mahalanobis distances.
        """
        if self.scale_tril is not None:
            few = max(1, 2**21 // (_DRAWS * self.means.shape[1]))
            for means, factors in zip(
                self.means.split(few), self.scale_tril.split(few), strict=True
            ):
                log_widths = factors.double().diagonal(dim1=1, dim2=2).log().sum(1)
                turn = _inverse(factors.double())
                moved = (turn @ means.double().unsqueeze(2)).squeeze(2)
                yield partial(_turned, turn, moved, log_widths * with_widths)
            return
        ratio = (self.means.detach() / self.scales.detach()).abs().amax()
        for some, scales in zip(
            self.means.split(_COMPONENTS), self.scales.split(_COMPONENTS), strict=True
        ):
            means, precision = some.double(), scales.double().square().reciprocal()
            log_widths = scales.double().log().sum(1) * with_widths
            if ratio > _OBLIQUE:
                yield partial(_subtracted, means, scales.double(), log_widths)
                continue
            # (z - mu)^2 / sigma^2 = z^2 / sigma^2 - 2 z mu / sigma^2 + mu^2 / sigma^2, so that the
            # log density of all components is one matrix product with the features (z^2, z, 1).
            constant = -0.5 * (means.square() * precision).sum(1) - log_widths
            weights = torch.cat([-0.5 * precision, means * precision, constant[:, None]], 1)
            yield partial(_multiplied, weights.T)


def _multiplied(weights: Tensor, codes: Tensor) -> Tensor:
    return torch.cat([codes.square(), codes, torch.ones_like(codes[:, :1])], 1) @ weights


def _subtracted(means: Tensor, scales: Tensor, log_widths: Tensor, codes: Tensor) -> Tensor:
    exponents = -log_widths.expand(len(codes), -1)
    for place, mean, scale in zip(codes.T, means.T, scales.T, strict=True):
        exponents = exponents - 0.5 * ((place[:, None] - mean) / scale).square()
    return exponents


def _turned(turn: Tensor, moved: Tensor, log_widths: Tensor, codes: Tensor) -> Tensor:
    components, latent = moved.shape
    noise = (codes @ turn.reshape(-1, latent).T).reshape(len(codes), components, latent) - moved
    return -0.5 * noise.square().sum(2) - log_widths


def _inverse(factors: Tensor) -> Tensor:
    identity = torch.eye(factors.shape[-1], dtype=factors.dtype, device=factors.device)
    return torch.linalg.solve_triangular(factors, identity.expand_as(factors), upper=False)


def _deviations(factors: Tensor) -> Tensor:
    """Return the standard deviation of each dimension of Gaussians with these factors."""
    return factors.double().square().sum(2).sqrt().to(factors.dtype)


def _check_values(means: Tensor, widths: Tensor, full: bool) -> None:
    check_finite(means, "means")
    if not full:
        check_scales(widths)
        check_resolved(means, widths)
        return
    check_finite(widths, "scale_tril")
    if widths.triu(1).any():
        raise ScaleError(
            "scale_tril has entries above its diagonal: of covariances it is "
            "torch.linalg.cholesky(covariances)"
        )
    diagonal = widths.diagonal(dim1=1, dim2=2)
    check_scales(diagonal, "the diagonal of scale_tril")
    check_resolved(means, diagonal, "the diagonal of scale_tril")
