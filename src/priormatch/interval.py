"""Codes on a line: where the codes of each digit lie in the interval of the thought experiment.

A model with the prior N(0, 1) is put on (0, 10) by the prior's distribution function F, with the
position 10 F(z), which changes no divergence.

``python -m priormatch.interval`` trains and measures what ``results/interval.jsonl`` lacks. It can
be killed at any moment: finished rows stay, and an unfinished training goes on from its last epoch.
"""

import argparse
import json
import platform
import sys
from collections.abc import Iterable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import cast

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributions import Independent, kl_divergence

from priormatch import quality, study, zoo
from priormatch.data import Digits, Part, binarize, load_mnist
from priormatch.mismatch import Estimate, average
from priormatch.models import VAE, draw
from priormatch.objectives import bound_parts_in_chunks
from priormatch.stored import RESULTS
from priormatch.training import Epoch, Recipe

TABLE = RESULTS / "interval.jsonl"
"""The stored table: a line of JSON for each model."""

SEEDS = range(5)
BINS = 100
"""Equal shares of the prior's mass in which the table has the mass of each digit."""

PLACES = 1_000
"""Positions, evenly spaced, whose decoded pictures the table has the classes of."""

DIGITS = 10

# The fields in which the recipes of the table differ.
_KEY = ("posterior", "seed", "flat")

# Nodes of a block: a few megabytes in double precision for the posteriors of MNIST.
_BLOCK = 8


@torch.no_grad()
def density_by_digit(
    posterior: Independent, labels: Int[Tensor, " examples"], nodes: Float[Tensor, " nodes"]
) -> Float[Tensor, "digits nodes"]:
    r"""Return the joint density of digit and code under the aggregated posterior, in one dimension.

    .. math:: q(k, z) = \frac1N \sum_{n : k_n = k} Q(z|x_n)

    Args:
        posterior: Posteriors of N examples: batch shape ``(examples,)``, event shape ``(1,)``.
        labels: Their digits.
        nodes: Codes, of shape ``(nodes,)``.

    Returns:
        Densities in double precision, of shape ``(10, nodes)``; their sum over digits is q(z).

    Introduced in "The uniform interval".
    """
    shares = nn.functional.one_hot(labels, DIGITS).double() / len(labels)
    blocks = [
        # Below exp(-700) a processor takes many times as long for what is lost in the sum.
        posterior.log_prob(some[:, None, None]).clamp(min=-700.0).exp() @ shares
        for some in nodes.double().split(_BLOCK)
    ]
    return torch.cat(blocks).T


def mass_by_digit(
    posterior: Independent,
    labels: Int[Tensor, " examples"],
    prior: Independent,
    bins: int = BINS,
) -> Float[Tensor, "digits bins"]:
    r"""Return the joint mass of digit and position, in bins of equal shares of the prior's mass.

    .. math:: \frac1N \sum_{n : k_n = k} \left[F_n(b_{i + 1}) - F_n(b_i)\right],
              \quad F(b_i) = i / \text{bins}

    Exact: F_n is the distribution function of Q(z|x_n), F that of the prior.

    Args:
        posterior: Posteriors of N examples: batch shape ``(examples,)``, event shape ``(1,)``.
        labels: Their digits.
        prior: The prior, with event shape ``(1,)``.
        bins: Number of bins.

    Returns:
        Masses in double precision, of shape ``(10, bins)``; they add up to 1.

    Introduced in "The uniform interval".
    """
    inner = prior.base_dist.icdf(torch.arange(1, bins, dtype=torch.float64)[:, None] / bins)
    below = [posterior.base_dist.cdf(edge[:, None])[:, 0].double() for edge in inner]
    edges = torch.stack([torch.zeros_like(below[0]), *below, torch.ones_like(below[0])])
    shares = nn.functional.one_hot(labels, DIGITS).double() / len(labels)
    return (edges.diff(dim=0) @ shares).T


def nodes_of(prior: Independent, number: int) -> Float[Tensor, " nodes"]:
    """Return evenly spaced codes between the prior's quantiles of 1e-15 and 1 - 1e-15.

    They are the midpoints of cells, so that sums over them approximate integrals.

    Args:
        prior: The prior, with event shape ``(1,)``.
        number: Number of nodes.

    Introduced in "The uniform interval".

    >>> from priormatch.models import uniform_interval
    >>> nodes_of(uniform_interval(1), 4)
    tensor([1.2500, 3.7500, 6.2500, 8.7500], dtype=torch.float64)
    """
    low, high = prior.base_dist.icdf(torch.tensor([1e-15, 1 - 1e-15], dtype=torch.float64))
    return low + (high - low) * ((torch.arange(number, dtype=torch.float64) + 0.5) / number)


def kl_on_a_line(
    density: Float[Tensor, " nodes"], prior: Independent, nodes: Float[Tensor, " nodes"]
) -> float:
    r"""Return KL(q || p) in one dimension, by the midpoint rule.

    .. math:: \Delta \sum_i q(z_i) \left[\ln q(z_i) - \ln p(z_i)\right]

    Args:
        density: q at the nodes.
        prior: The prior p, with event shape ``(1,)``.
        nodes: Evenly spaced codes, the midpoints of cells of width Delta.

    Returns:
        Nats. Fewer nodes show the error.

    Introduced in "The uniform interval".

    >>> from priormatch.models import uniform_interval
    >>> prior = uniform_interval(1)
    >>> nodes = nodes_of(prior, 1_000)
    >>> round(kl_on_a_line(0.2 * (nodes < 5), prior, nodes), 4)  # half the interval: ln 2
    0.6931
    """
    cross = density * prior.log_prob(nodes[:, None]).double()
    width = (nodes[-1] - nodes[0]) / (len(nodes) - 1)
    return (-(torch.special.entr(density) + cross).sum() * width).item()


def information_on_the_digit(
    density: Float[Tensor, "digits nodes"], nodes: Float[Tensor, " nodes"]
) -> float:
    r"""Return I[k; z], what a code tells about the digit, by the midpoint rule.

    .. math:: \Delta \sum_k \sum_i q(k, z_i) \ln \frac{q(k, z_i)}{q(k)\, q(z_i)}

    Args:
        density: Joint density of digit and code at the nodes, of shape ``(10, nodes)``.
        nodes: Evenly spaced codes, the midpoints of cells of width Delta.

    Returns:
        Nats, at most the entropy of the shares of the digits.

    Introduced in "The uniform interval".

    >>> apart = torch.eye(10, dtype=torch.float64)  # ten intervals of length 1, density 0.1
    >>> round(information_on_the_digit(0.1 * apart, torch.arange(10.0)), 4)
    2.3026
    """
    width = (nodes[-1] - nodes[0]) / (len(nodes) - 1)
    entropy_of_codes = torch.special.entr(density.sum(0)).sum() * width
    entropy_of_digits = torch.special.entr(density.sum(1) * width).sum()
    joint_entropy = torch.special.entr(density).sum() * width
    return (entropy_of_codes + entropy_of_digits - joint_entropy).item()


@torch.no_grad()
def decoded_digits(
    vae: VAE, classifier: nn.Module, positions: Float[Tensor, " positions"]
) -> Int[Tensor, " positions"]:
    """Return the digits that a classifier sees in the decoder's means at positions in (0, 1).

    Args:
        vae: A model with one latent dimension.
        classifier: Maps ``(images, 784)`` to ``(images, 10)`` logits.
        positions: Values of the prior's distribution function.

    Introduced in "The uniform interval".
    """
    codes = cast("Independent", vae.prior).base_dist.icdf(positions[:, None])
    pictures = vae.likelihood(codes.float()).mean
    return quality.class_probabilities(classifier, pictures).argmax(1)


@torch.no_grad()
def measure(vae: VAE, nodes: int = 3_000) -> dict[str, object]:
    """Measure a model with one latent dimension on MNIST binarised once.

    Args:
        vae: The model.
        nodes: Nodes of the quadrature.

    Returns:
        Rates, ELBO and divergences in nats; ``mass``, digits by bins; and ``decoded``, the digit
        that each of evenly spaced positions decodes into.
    """
    generator = torch.Generator().manual_seed(0)
    train, validation, test = _binary("train"), _binary("validation"), _binary("test")
    prior = cast("Independent", vae.prior)
    posterior = cast("Independent", vae.posterior(train.images))
    rates = kl_divergence(posterior, prior)
    bound = bound_parts_in_chunks(vae, test.images, generator)
    codes = draw(vae.posterior(validation.images), generator)

    fine = nodes_of(prior, nodes)
    density = density_by_digit(posterior, train.labels, fine)
    density_at_codes = density_by_digit(posterior, train.labels, codes[:, 0]).sum(0)
    positions = (torch.arange(PLACES, dtype=torch.float64) + 0.5) / PLACES
    return {
        "rate": average(rates),
        "smallest_rate": rates.min().item(),
        "test_rate": average(bound.rate),
        "test_elbo": average(bound.elbo),
        "mismatch": kl_on_a_line(density.sum(0), prior, fine),
        "mismatch_every_third_node": kl_on_a_line(density.sum(0)[1::3], prior, fine[1::3]),
        "held_out_kl": average(density_at_codes.log() - prior.log_prob(codes), "lower"),
        "information_on_the_digit": information_on_the_digit(density, fine),
        "mass": _rounded(mass_by_digit(posterior, train.labels, prior)),
        "decoded": decoded_digits(vae, quality.load(), positions).tolist(),
    }


def recipes() -> list[Recipe]:
    """Return the recipes of the table, one seed of both before the next, then a long training."""
    both = [zoo.RECIPES["interval"], zoo.RECIPES["line"]]
    long = replace(zoo.RECIPES["interval"], flat=0.0)
    return [*(replace(recipe, seed=seed) for seed in SEEDS for recipe in both), long]


def row(recipe: Recipe, models: Path) -> dict[str, object]:
    """Train a recipe, unless it has been trained, and return its row of the table.

    Args:
        recipe: What to train.
        models: Folder that keeps the models, and the states of unfinished trainings.

    Returns:
        What tells the recipes apart, how it was trained, and each measure, with its standard
        error (``<measure>_error``) where it has one. The mismatch after 20 epochs is missing for
        the models of the zoo, which are stored at their end alone.
    """
    kept, history = _trained(recipe, models)
    cells: dict[str, object] = {
        **{field: getattr(recipe, field) for field in _KEY},
        "epochs": len(history),
        "seconds": round(sum(epoch.seconds for epoch in history)),
        "python": platform.python_version(),
        **{package: version(package) for package in ("priormatch", "torch")},
    }
    for name, measured in measure(kept["converged"]).items():
        if isinstance(measured, Estimate):
            cells[name], cells[f"{name}_error"] = measured.value, measured.standard_error
        else:
            cells[name] = measured
    if "equal epochs" in kept:
        earlier = measure(kept["equal epochs"])
        cells[f"mismatch_after_{study.EQUAL_EPOCHS}_epochs"] = earlier["mismatch"]
    return cells


def run(missing: Iterable[Recipe], table: Path, models: Path) -> None:
    """Add the rows of the recipes that the table lacks, each as it is finished."""
    for recipe in missing:
        lines = table.read_text().splitlines() if table.exists() else []
        done = [[line[field] for field in _KEY] for line in map(json.loads, lines)]
        if [getattr(recipe, field) for field in _KEY] in done:
            continue
        lines.append(json.dumps(row(recipe, models)))
        unfinished = table.with_suffix(".unfinished")
        unfinished.write_text("\n".join(lines) + "\n")
        unfinished.replace(table)


def read(table: Path = TABLE) -> pd.DataFrame:
    """Return the rows of the table.

    Introduced in "The uniform interval".
    """
    return pd.read_json(table, lines=True)


def _trained(recipe: Recipe, models: Path) -> tuple[dict[str, VAE], list[Epoch]]:
    """Return a stored model, or the models of a study, and the history; train them if need be."""
    for name, stored in zoo.RECIPES.items():
        if recipe == stored:
            model, history = zoo.load(name)
            return {"converged": model}, history
    return study.trained(recipe, models)


def _binary(part: Part) -> Digits:
    digits = load_mnist(part)
    return Digits(binarize(digits.images, torch.Generator().manual_seed(0)), digits.labels)


def _rounded(masses: Float[Tensor, "digits bins"]) -> list[list[float]]:
    return [[round(mass, 7) for mass in row] for row in masses.tolist()]


def main(arguments: list[str] | None = None) -> int:
    """Complete the stored table."""
    parser = argparse.ArgumentParser(prog="python -m priormatch.interval", description=__doc__)
    parser.add_argument("--table", type=Path, default=TABLE, help="file (%(default)s)")
    parser.add_argument("--models", type=Path, default=study.MODELS, help="folder (%(default)s)")
    options = parser.parse_args(arguments)
    zoo.require_mnist("the table of the interval")
    torch.set_num_threads(1)
    run(recipes(), options.table, options.models)
    return 0


if __name__ == "__main__":
    sys.exit(main())
