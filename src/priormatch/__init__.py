"""How well does the aggregated posterior of a variational autoencoder match N(0, I)?"""

from priormatch.auditing import audit
from priormatch.checks import positions_as_rows
from priormatch.codes import Codes
from priormatch.densities import fit_best
from priormatch.distributions import AggregatedPosterior, StretchedBeta, VampPrior
from priormatch.estimate import Estimate
from priormatch.evidence import importance_bounds
from priormatch.measurement import summary
from priormatch.mismatch import held_out_kl, in_sample_kl, moment_bound, nearest_patch
from priormatch.models import VAE, draw, standard_normal
from priormatch.report import Report
from priormatch.summaries import Summary
from priormatch.two_sample import classifier_test

__all__ = [
    "VAE",
    "AggregatedPosterior",
    "Codes",
    "Estimate",
    "Report",
    "StretchedBeta",
    "Summary",
    "VampPrior",
    "audit",
    "classifier_test",
    "draw",
    "fit_best",
    "held_out_kl",
    "importance_bounds",
    "in_sample_kl",
    "moment_bound",
    "nearest_patch",
    "positions_as_rows",
    "standard_normal",
    "summary",
]
