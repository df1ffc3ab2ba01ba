"""Codes of any model, as its user has them: posteriors of examples, or draws alone."""

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from priormatch.checks import ShapeError, as_tensor, check_finite, factor, rows, same_shape
from priormatch.distributions import AggregatedPosterior
from priormatch.models import draw

# A draw taken as a posterior of its own: so narrow that no kernel sees its width.
_POINT = 1e-9


class Codes:
    """Codes of examples: the Gaussian posterior of each example, or one draw for each.

    Tensors, NumPy arrays and nested lists are taken, in any number format. Latent maps first need
    `priormatch.positions_as_rows`.

    Args:
        means: Means of the posteriors, of shape ``(examples, latent)``.
        scales: Their standard deviations, of the same shape; in place of them, one of the next two.
        log_variances: Natural logarithms of their variances, of the same shape.
        covariances: Their covariances, of shape ``(examples, latent, latent)``.
        draws: One code for each example, of shape ``(examples, latent)``, if posteriors are not
            known. Measures that need a posterior are then left out.

    Raises:
        ShapeError: The shapes differ, or it is not clear what the codes are.
        NonFiniteError: A number is infinite or not a number.
        ScaleError: A scale is not positive, or a covariance not positive definite.
        PrecisionError: A mean or a scale is out of range, or too narrow for double precision.

    Introduced in "Audit your own VAE".

    >>> Codes([[0.0, 1.0]], log_variances=[[0.0, 0.0]])
    Codes of 1 examples with 2 latent dimensions
    >>> Codes(draws=[[0.0, 1.0], [2.0, 3.0]]).mixture is None
    True
    """

    mixture: AggregatedPosterior | None
    """The mixture of the posteriors; None of draws alone."""

    def __init__(
        self,
        means: Any = None,
        scales: Any = None,
        *,
        log_variances: Any = None,
        covariances: Any = None,
        draws: Any = None,
    ) -> None:
        widths = (scales, log_variances, covariances)
        given = sum(one is not None for one in widths)
        self._draws: Tensor | None = None
        self.mixture = None
        if draws is not None:
            if means is not None or given:
                raise ShapeError("codes are either posteriors or draws alone, and not both")
            self._draws = rows(draws, "draws")
            return
        if means is None or given != 1:
            raise ShapeError(
                "codes need means, with one of scales, log_variances and covariances; or draws "
                "alone"
            )
        means = as_tensor(means, "means")
        if covariances is not None:
            factors = factor(covariances, "covariances").to(means)
            self.mixture = AggregatedPosterior(means, scale_tril=factors).on_cpu()
            return
        if log_variances is not None:
            scales = _from_log_variances(means, log_variances)
        self.mixture = AggregatedPosterior(means, as_tensor(scales, "scales")).on_cpu()

    @classmethod
    def of(cls, mixture: AggregatedPosterior) -> "Codes":
        """Return the codes whose posteriors are the components of a mixture."""
        codes = cls.__new__(cls)
        codes.mixture, codes._draws = mixture.on_cpu(), None
        return codes

    def __repr__(self) -> str:
        kind = "draws" if self.mixture is None else "examples"
        return f"Codes of {len(self)} {kind} with {self.latent} latent dimensions"

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self._centres)

    @property
    def latent(self) -> int:
        """Number of latent dimensions."""
        return self._centres.shape[1]

    @property
    def _centres(self) -> Tensor:
        if self._draws is not None:
            return self._draws
        assert self.mixture is not None
        return self.mixture.means

    def examples(self, which: Int[Tensor, " some"]) -> "Codes":
        """Return the codes of some of the examples, named by their places."""
        if self.mixture is None:
            return Codes(draws=self._centres[which])
        return Codes.of(self.mixture.examples(which))

    def at_most(self, most: int, generator: torch.Generator) -> "Codes":
        """Return the codes or, if there are more, so many of them at random."""
        if len(self) <= most:
            return self
        return self.examples(torch.randperm(len(self), generator=generator)[:most])

    def set_apart(self, some: int, generator: torch.Generator) -> tuple["Codes", "Codes"]:
        """Return so many of the codes, chosen at random, and the others."""
        order = torch.randperm(len(self), generator=generator)
        return self.examples(order[:some]), self.examples(order[some:])

    def draw(self, generator: torch.Generator) -> Float[Tensor, "examples latent"]:
        """Return one draw of each posterior, or the draws themselves."""
        if self.mixture is None:
            return self._centres
        return draw(self.mixture.posteriors, generator)

    def variance(self) -> tuple[Float[Tensor, " latent"], Float[Tensor, " latent"]]:
        """Return mean and variance of the codes in each latent dimension, in double precision."""
        if self.mixture is None:
            double = self._centres.double()
            return double.mean(0), double.var(0, correction=0)
        means, scales = self.mixture.means.double(), self.mixture.scales.double()
        return means.mean(0), means.var(0, correction=0) + scales.square().mean(0)

    def kernel(self, dimensions: int = 1) -> AggregatedPosterior:
        """Return the mixture or, of draws alone, an estimate of their density by a Gaussian kernel.

        Its width in each latent dimension is Silverman's, for densities of so many dimensions.

        Args:
            dimensions: Number of dimensions that marginals of the estimate are to have.
        """
        if self.mixture is not None:
            return self.mixture
        shrink = (4 / ((dimensions + 2) * len(self))) ** (1 / (dimensions + 4))
        widths = shrink * self._centres.double().std(0).clamp(min=1e-12)
        return AggregatedPosterior(self._centres, widths.expand(len(self), -1), False)

    def points(self) -> AggregatedPosterior:
        """Return the mixture or, of draws alone, that of Gaussians too narrow to matter."""
        if self.mixture is not None:
            return self.mixture
        width = _POINT * (1 + self._centres.double().abs().amax())
        return AggregatedPosterior(self._centres, width.expand_as(self._centres), False)

    def in_units_of(
        self, location: Float[Tensor, " latent"], turn: Float[Tensor, "latent latent"]
    ) -> "Codes":
        """Return the codes moved and turned so that N(location, turn turn^T) becomes N(0, I).

        Args:
            location: Mean of a Gaussian.
            turn: Lower triangular factor of its covariance.
        """
        location, turn = location.double().cpu(), turn.double().cpu()
        width = turn.diagonal()
        straight = not bool(turn.tril(-1).any())
        centres = self._centres.double() - location
        if straight:
            moved = centres / width
        else:
            moved = torch.linalg.solve_triangular(turn, centres.T, upper=False).T
        moved = moved.to(self._centres.dtype)
        if self.mixture is None:
            return Codes(draws=moved)
        if straight and self.mixture.scale_tril is None:
            scales = (self.mixture.scales.double() / width).to(moved)
            return Codes.of(AggregatedPosterior(moved, scales))
        factors = self.mixture.scale_tril
        if factors is None:
            factors = torch.diag_embed(self.mixture.scales)
        turned = torch.linalg.solve_triangular(turn, factors.double(), upper=False)
        return Codes.of(AggregatedPosterior(moved, scale_tril=turned.to(moved)))


def _from_log_variances(means: Tensor, log_variances: Any) -> Tensor:
    """Return standard deviations, in the number format of the log variances."""
    values = as_tensor(log_variances, "log_variances").detach()
    check_finite(values, "log_variances")
    same_shape(means, values, "means and log_variances")
    scales = torch.exp(0.5 * values.double())
    return scales.to(values.dtype) if scales.amin() > 1e-37 else scales


def scale_factor(codes: Codes) -> tuple[float, float]:
    """Return the mean of all numbers in the codes, and the reciprocal of their standard deviation.

    Latent diffusion multiplies codes by this factor, its ``scaling_factor``, so that they have unit
    variance; some models subtract the mean first, their ``shift_factor``.

    >>> shift, factor = scale_factor(Codes([[0.0], [2.0]], scales=[[1e-6], [1e-6]]))
    >>> round(shift, 6), round(factor, 6)
    (1.0, 1.0)
    """
    means, variances = codes.variance()
    shift = means.mean().item()
    spread = (variances + (means - shift).square()).mean().item()
    return shift, 1 / math.sqrt(spread) if spread > 0 else math.inf
