"""Distributions of the book, as `torch.distributions` has them."""

from priormatch.distributions.aggregated import AggregatedPosterior
from priormatch.distributions.padded import PaddedDensity
from priormatch.distributions.stretched_beta import INTERVAL, StretchedBeta
from priormatch.distributions.vamp import VampPrior

__all__ = ["INTERVAL", "AggregatedPosterior", "PaddedDensity", "StretchedBeta", "VampPrior"]
