"""Schedules of a training: learning rate, weight of the rate, averages, early stopping."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.optim.lr_scheduler import ConstantLR, LambdaLR, LRScheduler, OneCycleLR

Schedule = Literal["one cycle", "inverse sqrt", "constant"]
"""Names of the learning-rate schedules; `priormatch.recipe.Recipe` describes them."""

# Epochs whose losses are compared with all before them.
_WINDOW = 10


def learning_rates(
    kind: Schedule, optimiser: torch.optim.Optimizer, peak: float, epochs: int, batches: int
) -> LRScheduler:
    """Return the schedule of an optimiser's learning rate, to be stepped after each batch.

    Args:
        kind: Name of the schedule.
        optimiser: Optimiser with the peak as its learning rate.
        peak: The highest learning rate.
        epochs: Length of the training, if the schedule depends on it.
        batches: Steps per epoch.
    """
    if kind == "constant":
        return ConstantLR(optimiser, factor=1.0)
    if kind == "inverse sqrt":

        def share_of_peak(steps: int) -> float:
            epochs_begun = (steps + 1) / batches
            return min(epochs_begun, 1.0) * min(1.0, math.sqrt(5 / epochs_begun))

        return LambdaLR(optimiser, share_of_peak)
    # With fewer than two steps, or a rise of fewer, OneCycleLR would divide by zero.
    steps = max(2, epochs * batches)
    rise = max(0.1, 2 / steps)
    return OneCycleLR(optimiser, peak, total_steps=steps, pct_start=rise, cycle_momentum=False)


def rate_weight(beta: float, warm_up: int, epochs: float) -> float:
    """Return the weight of the rate after so many epochs: it rises linearly, then stays.

    >>> [rate_weight(2.0, 4, epochs) for epochs in (1.0, 3.5, 9.0)]
    [0.5, 1.75, 2.0]
    """
    return beta * min(1.0, epochs / warm_up) if warm_up else beta


def move_averages(
    decay: float, averages: list[Tensor], weights: list[Tensor], steps: Tensor | int
) -> None:
    """Move the averages towards the weights, faster at first so that early weights fade."""
    torch._foreach_lerp_(averages, weights, 1 - min(decay, (1 + int(steps)) / (10 + int(steps))))


def is_flat(losses: Sequence[float], min_improvement: float, warm_up: int = 0) -> bool:
    """Return whether the last 10 losses improve too little on all before them.

    Args:
        losses: One loss per epoch.
        min_improvement: Least difference by which the best of the last 10 must lie below the best
            before them.
        warm_up: Epochs of warm-up; the answer is False until 20 epochs after them.

    >>> is_flat([5.0] * 19, 1.0), is_flat([5.0] * 20, 1.0), is_flat([5.0] * 19 + [3.0], 1.0)
    (False, True, False)
    """
    if len(losses) < warm_up + 2 * _WINDOW:
        return False
    return min(losses[:-_WINDOW]) - min(losses[-_WINDOW:]) < min_improvement
