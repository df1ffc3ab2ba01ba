"""Distributions of the book, with the interface of `torch.distributions`."""

from priormatch.distributions.aggregated import AggregatedPosterior
from priormatch.distributions.padded import PaddedDensity
from priormatch.distributions.stretched_beta import INTERVAL, StretchedBeta
from priormatch.distributions.vamp import VampPrior

__all__ = ["INTERVAL", "AggregatedPosterior", "PaddedDensity", "StretchedBeta", "VampPrior"]
