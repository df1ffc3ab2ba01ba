"""The evidence log P(X) of a model: bounded from draws in any dimension, exact in one and two.

The evidence exceeds the ELBO by the inference gap KL(Q(z|X) || P(z|X)). Importance weights bound
the evidence from below, with the same draws that estimate the ELBO. They miss modes of the exact
posterior P(z|X) at which the encoder draws no codes. Quadrature sees these modes, and gives the
exact posterior as well.
The prior may be any distribution: to replace p by a density r, make a new model with
``VAE(vae.encoder, vae.decoder, r)``.
"""

from priormatch.evidence.grid import Grid, GridError
from priormatch.evidence.importance import (
    ImportanceBounds,
    average_bounds,
    bounds_of_weights,
    importance_bounds,
    importance_bounds_by_prior,
)
from priormatch.evidence.posteriors import aggregated_exact_posterior, exact_posteriors
from priormatch.evidence.quadrature import (
    ExactInference,
    exact_elbo,
    exact_inference,
    exact_inference_in_the_plane,
    kl_on_grid,
    likeliest_nodes,
)

__all__ = [
    "ExactInference",
    "Grid",
    "GridError",
    "ImportanceBounds",
    "aggregated_exact_posterior",
    "average_bounds",
    "bounds_of_weights",
    "exact_elbo",
    "exact_inference",
    "exact_inference_in_the_plane",
    "exact_posteriors",
    "importance_bounds",
    "importance_bounds_by_prior",
    "kl_on_grid",
    "likeliest_nodes",
]
