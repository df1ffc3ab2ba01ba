"""The VampPrior: a mixture of the posteriors of learned pseudo-inputs."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from priormatch.checks import rows, same_shape
from priormatch.distributions.aggregated import AggregatedPosterior


class VampPrior(nn.Module, Distribution):
    r"""Mixture of the posteriors of learned pseudo-inputs: a prior that is trained with its VAE.

    .. math:: r(z) = \frac1K \sum_{k=1}^K Q(z|u_k), \quad u_k = \operatorname{sigmoid}(l_k)

    The pseudo-inputs u are pictures with pixels between 0 and 1, made of free parameters l. The
    encoder belongs to the VAE: the prior neither stores it nor trains it a second time. Gradients
    of `log_prob` reach it all the same.

    Args:
        encoder: Module that maps images to Gaussian posteriors, diagonal or with full covariances.
        images: Pictures to start from, with values in [0, 1], of shape ``(components, pixels)``.

    Raises:
        FamilyError: The encoder's posteriors are not Gaussian.
        ShapeError: The images are no matrix.
        NonFiniteError: A pixel is infinite or not a number.

    Source: :cite:t:`tomczak2018`, with the logistic function in place of a hard bound, at which a
    pixel would stop learning.

    Introduced in "Sampling the quilt".
    """

    arg_constraints = {}  # noqa: RUF012 - the name and form that torch.distributions reads
    support = constraints.real_vector
    has_rsample = False

    def __init__(self, encoder: nn.Module, images: Float[Tensor, "components pixels"]) -> None:
        nn.Module.__init__(self)
        images = rows(images, "images", keep_device=True)
        # The tuple hides the encoder from nn.Module, because its weights are the VAE's.
        self._encoder = (encoder,)
        self.logits = nn.Parameter(torch.empty_like(images))
        self.start_from(images)
        Distribution.__init__(
            self, event_shape=encoder(images[:1]).event_shape, validate_args=False
        )
        _ = self.mixture  # posteriors of another family are refused here, and not in training

    @torch.no_grad()
    def start_from(self, images: Float[Tensor, "components pixels"]) -> None:
        """Set the pseudo-inputs to the given pictures, with values clamped to [0.01, 0.99].

        Training images are a good start, because their posteriors lie all over the quilt. If all
        pseudo-inputs were one average image plus noise, their posteriors would first have to part.
        """
        images = rows(images, "images", keep_device=True)
        same_shape(self.logits, images, "the pseudo-inputs and the pictures")
        self.logits.copy_(images.clamp(0.01, 0.99).logit())

    @property
    def pseudo_inputs(self) -> Float[Tensor, "components pixels"]:
        """The learned pictures, with pixels between 0 and 1."""
        return self.logits.sigmoid()

    @property
    def mixture(self) -> AggregatedPosterior:
        """The mixture under the current weights; gradients reach encoder and pseudo-inputs."""
        posteriors = self._encoder[0](self.pseudo_inputs)
        # Not validated, so that a training that diverges is recognised by its loss.
        return AggregatedPosterior.from_posteriors(posteriors, validate_args=False)

    @property
    @torch.no_grad()
    def mean(self) -> Float[Tensor, " latent"]:
        """Exact mean."""
        return self.mixture.mean

    @property
    @torch.no_grad()
    def variance(self) -> Float[Tensor, " latent"]:
        """Exact variance of each latent dimension."""
        return self.mixture.variance

    def log_prob(self, value: Float[Tensor, "*sample latent"]) -> Float[Tensor, " *sample"]:
        """Return log r(z) in nats; gradients reach codes, encoder and pseudo-inputs."""
        return self.mixture.log_prob(value)

    def sample(
        self,
        sample_shape: torch.Size | tuple[int, ...] | list[int] = (),
        *,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "*sample latent"]:
        """Draw codes: a pseudo-input at random, then a draw of its posterior.

        Args:
            sample_shape: Shape of the block of draws.
            generator: Source of the randomness; torch's global one if it is None.

        Returns:
            Codes of shape ``(*sample_shape, latent)``.
        """
        return self.mixture.sample(sample_shape, generator=generator)
