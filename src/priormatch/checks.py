"""Checks of what comes from other models: tensors of any number format, on any device.

Every public function of the package checks its own inputs here. So the checks do not depend on
``python -O`` nor on ``torch.distributions.Distribution.set_default_validate_args``, which some
libraries switch off for the whole process. Tensors with gradients, NumPy arrays and nested lists
are taken. Formats shorter than single precision are computed in single precision, and codes that
lie on another device are copied to the processor's memory.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution

from priormatch.estimate import TooFewCodesError

LARGEST, SMALLEST = 1e30, 1e-30
"""Sizes between which the package computes: their squares fit in double precision."""


class ShapeError(ValueError):
    """An input has another shape than the function needs; the message says how to mend it."""


class NonFiniteError(ValueError):
    """An input has an entry that is infinite or not a number; the message says which."""


class ScaleError(ValueError):
    """A standard deviation is not positive, or a covariance not positive definite."""


class PrecisionError(ValueError):
    """A number is too large, too small or too narrow for its number format."""


class NumberFormatError(TypeError):
    """An input does not consist of real numbers."""


class FamilyError(TypeError):
    """A distribution is of another kind than the function needs."""


def as_tensor(values: Any, name: str = "values") -> Tensor:
    """Return real numbers of any origin as a tensor in single or double precision.

    Gradients and the device of a tensor are kept. Whole numbers become double precision.

    Args:
        values: A tensor, a NumPy array, or nested lists.
        name: What the error calls it.

    Raises:
        NumberFormatError: It does not consist of real numbers, or has no values at all.

    Introduced in "The estimators on trial".

    >>> as_tensor(torch.ones(2, dtype=torch.float16)).dtype
    torch.float32
    """
    if not isinstance(values, Tensor):
        try:
            array = np.asarray(values)
            if array.dtype.kind not in "fiub":
                raise TypeError(f"its entries are {array.dtype}")
            kept = np.float32 if array.dtype.kind == "f" and array.dtype.itemsize <= 4 else float
            # A copy, because torch can neither read all memory layouts nor protect a source.
            values = torch.from_numpy(np.array(array, dtype=kept, order="C"))
        except (TypeError, ValueError) as error:
            raise NumberFormatError(f"{name} must be an array of real numbers: {error}") from None
    if values.is_complex():
        raise NumberFormatError(f"{name} has complex entries: pass real and imaginary parts apart")
    if values.device.type == "meta":
        raise NumberFormatError(f"{name} is on the device 'meta', where tensors have no values")
    if values.layout is not torch.strided:
        values = values.to_dense()
    if not values.is_floating_point():
        return values.double()
    return values.float() if values.dtype.itemsize < 4 else values


def rows(
    values: Any,
    name: str = "codes",
    columns: int | None = None,
    fewest: int = 1,
    keep_device: bool = False,
) -> Tensor:
    """Return a finite matrix without gradients, one row for each code or example.

    Args:
        values: A tensor, a NumPy array or nested lists of shape ``(rows, columns)``.
        name: What an error calls it.
        columns: Number of columns that it must have; None for any.
        fewest: Least number of rows.
        keep_device: Whether to leave the tensor on its device.

    Raises:
        NumberFormatError: The entries are not real numbers.
        ShapeError: It is no matrix, is empty, or has another number of columns.
        NonFiniteError: An entry is infinite or not a number.
        PrecisionError: An entry is larger than 1e30.
        TooFewCodesError: There are fewer rows than that.

    Introduced in "The estimators on trial".
    """
    values = as_tensor(values, name).detach()
    if not keep_device:
        values = values.cpu()
    _check_matrix(values, name)
    if columns is not None and values.shape[1] != columns:
        raise ShapeError(f"{name} has {values.shape[1]} columns, where {columns} are needed")
    if len(values) < fewest:
        raise TooFewCodesError(f"{name} needs {fewest} rows or more, and there are {len(values)}")
    check_finite(values, name)
    return values


def vector(values: Any, name: str, length: int | None = None, keep_device: bool = False) -> Tensor:
    """Return one finite number for each example, without gradients.

    Raises:
        NumberFormatError: The entries are not real numbers.
        ShapeError: It is no vector, or has another length.
        NonFiniteError: An entry is infinite or not a number.
        PrecisionError: An entry is larger than 1e30.

    Introduced in "The estimators on trial".
    """
    values = as_tensor(values, name).detach()
    if not keep_device:
        values = values.cpu()
    if values.ndim != 1 or (length is not None and len(values) != length):
        wanted = "(examples,)" if length is None else f"({length},)"
        raise ShapeError(f"{name} has shape {tuple(values.shape)}, where {wanted} is needed")
    check_finite(values, name)
    return values


def same_shape(one: Tensor, other: Tensor, names: str) -> None:
    """Raise unless two tensors have one shape: broadcasting would hide a mistake.

    Raises:
        ShapeError: Their shapes differ.
    """
    if one.shape != other.shape:
        raise ShapeError(
            f"{names} need one shape, and theirs are {tuple(one.shape)} and "
            f"{tuple(other.shape)}: expand the smaller one if you mean all rows to share it"
        )


def check_finite(values: Tensor, name: str) -> None:
    """Raise unless all entries are finite numbers of at most 1e30.

    Raises:
        NonFiniteError: An entry is infinite or not a number.
        PrecisionError: An entry is larger than that.
    """
    _refuse(NonFiniteError, values, ~values.isfinite(), name, "every entry must be finite")
    _refuse(
        PrecisionError, values, values.abs() > LARGEST, name, f"entries are at most {LARGEST:g}"
    )


def check_positive(values: Tensor, name: str) -> None:
    """Raise unless all entries are finite and positive.

    Raises:
        NonFiniteError: An entry is infinite or not a number.
        ScaleError: An entry is zero or negative.
    """
    check_finite(values, name)
    _refuse(ScaleError, values, values <= 0, name, "every entry must be positive")


def check_scales(scales: Tensor, name: str = "scales") -> None:
    """Raise unless all standard deviations are finite, positive and at least 1e-30.

    Raises:
        NonFiniteError: One is infinite or not a number.
        ScaleError: One is zero or negative.
        PrecisionError: One is out of range.
    """
    check_finite(scales, name)
    _refuse(
        ScaleError,
        scales,
        scales < 0,
        name,
        "standard deviations are positive; of log variances l they are torch.exp(0.5 * l)",
    )
    _refuse(
        ScaleError,
        scales,
        scales == 0,
        name,
        "a posterior without width is a point and has no density",
    )
    _refuse(PrecisionError, scales, scales < SMALLEST, name, f"scales are at least {SMALLEST:g}")


def check_resolved(means: Tensor, scales: Tensor, name: str = "scales") -> None:
    """Raise if a posterior is narrower than double precision resolves at its mean.

    Raises:
        PrecisionError: A scale is below 1e-12 of the size of its mean.
    """
    _refuse(
        PrecisionError,
        scales,
        scales < 1e-12 * means.abs(),
        name,
        "it is below the precision of numbers of the size of its mean, so that the posterior is "
        "a point",
    )


def factor(covariances: Any, name: str = "covariance") -> Tensor:
    """Return the lower triangular Cholesky factors of covariances, in double precision.

    Args:
        covariances: Symmetric positive definite matrices, of shape ``(..., latent, latent)``.
        name: What an error calls it.

    Raises:
        ShapeError: They are not square.
        NonFiniteError: An entry is infinite or not a number.
        ScaleError: One is not symmetric, or not positive definite.
    """
    covariances = as_tensor(covariances, name).double()
    if covariances.ndim < 2 or covariances.shape[-1] != covariances.shape[-2]:
        raise ShapeError(
            f"{name} has shape {tuple(covariances.shape)}, where (latent, latent) is needed"
        )
    check_finite(covariances, name)
    size = covariances.abs().amax((-2, -1), keepdim=True)
    if not ((covariances - covariances.mT).abs() <= 1e-4 * size).all():
        raise ScaleError(f"{name} is not symmetric")
    factors, faults = torch.linalg.cholesky_ex(covariances)
    if faults.any():
        which = "" if covariances.ndim == 2 else f"[{int(faults.flatten().nonzero()[0])}]"
        raise ScaleError(f"{name}{which} is not positive definite")
    return factors


def check_draws(draws: int, fewest: int = 2) -> None:
    """Raise unless there are enough draws for a standard error.

    Raises:
        TooFewCodesError: There are fewer.
    """
    if draws < fewest:
        raise TooFewCodesError(f"{fewest} draws or more are needed, not {draws}")


def check_event(distribution: Distribution, latent: int, name: str = "the distribution") -> None:
    """Raise unless a distribution is one law of codes with so many latent dimensions.

    Raises:
        ShapeError: It has another event shape, or is a batch of laws.
    """
    batch, event = tuple(distribution.batch_shape), tuple(distribution.event_shape)
    if batch or event != (latent,):
        mend = ""
        if not event and batch in ((), (latent,)):
            mend = f": Independent(… .expand(({latent},)), 1) makes one law of the dimensions"
        raise ShapeError(
            f"{name} has batch shape {batch} and event shape {event}, where codes of {latent} "
            f"latent dimensions need () and ({latent},){mend}"
        )


def check_posteriors(
    posteriors: Distribution, number: int, examples: str = "images", latents: tuple[int, ...] = ()
) -> None:
    """Raise unless there is a posterior for each example.

    Args:
        posteriors: A batch of laws of codes.
        number: Number of examples.
        examples: What an error calls them.
        latents: Numbers of latent dimensions that are allowed; any, if none is named.

    Raises:
        ShapeError: There are others, or their codes have other dimensions.
    """
    batch, event = tuple(posteriors.batch_shape), tuple(posteriors.event_shape)
    if batch != (number,) or len(event) != 1 or (latents and event[0] not in latents):
        wanted = f" of latent dimension {' or '.join(map(str, latents))}" if latents else ""
        raise ShapeError(
            f"{number} {examples} need as many posteriors{wanted}, not batch {batch} and event "
            f"{event}"
        )


@torch.no_grad()
def log_density(
    distribution: Distribution, codes: Float[Tensor, "draws latent"], name: str = "the density"
) -> Float[Tensor, " draws"]:
    """Return the log density of codes under any distribution, in double precision.

    Codes outside of the support have a log density of minus infinity, whether or not the
    distribution checks its arguments. Codes are carried to the distribution's number format and
    device where it takes no others.

    Args:
        distribution: A distribution with event shape ``(latent,)``, of any library.
        codes: Codes that `rows` has checked.
        name: What an error calls the distribution.

    Returns:
        Nats, of shape ``(draws,)``, on the processor.

    Raises:
        ShapeError: The distribution has another event shape, or is a batch.
        NonFiniteError: A log density is not a number, or is plus infinity.

    Introduced in "The estimators on trial".

    >>> uniform = torch.distributions.Uniform(torch.zeros(1), torch.ones(1))
    >>> law = torch.distributions.Independent(uniform, 1)
    >>> log_density(law, torch.tensor([[0.5], [2.0]]))
    tensor([0., -inf], dtype=torch.float64)
    """
    check_event(distribution, codes.shape[1], name)
    try:
        found = _inside(distribution, codes)
    except (RuntimeError, TypeError):
        home = _home(distribution)
        if home is None or (home.dtype, home.device) == (codes.dtype, codes.device):
            raise
        found = _inside(distribution, codes.to(home))
    found = found.detach().double().cpu()
    if found.shape != codes.shape[:1]:
        raise ShapeError(
            f"log_prob of {name} has shape {tuple(found.shape)} for {len(codes)} codes"
        )
    wrong = found.isnan() | (found == torch.inf)
    _refuse(NonFiniteError, found, wrong, f"log_prob of {name} at code", "the law has no density")
    return found


def _inside(distribution: Distribution, codes: Tensor) -> Tensor:
    """Return the log density, minus infinity where checks refuse codes outside of the support."""
    try:
        return distribution.log_prob(codes)
    except ValueError:
        support: Any = distribution.support
        inside = support.check(codes)
        if inside.shape != codes.shape[:1] or inside.all():
            raise
    found = torch.full(codes.shape[:1], -torch.inf, dtype=codes.dtype, device=codes.device)
    if inside.any():
        found[inside] = distribution.log_prob(codes[inside]).to(found)
    return found


def _home(distribution: Any) -> Tensor | None:
    """Return a tensor of a distribution, whose number format and device its codes need."""
    parts = [*vars(distribution).values()]
    if isinstance(distribution, nn.Module):
        parts += distribution.parameters()
    for part in parts:
        if isinstance(part, Tensor) and part.is_floating_point():
            return part
    for part in parts:
        inner = part if isinstance(part, list | tuple) else [part]
        for one in inner:
            if isinstance(one, Distribution | torch.distributions.Transform | nn.Module):
                found = _home(one)
                if found is not None:
                    return found
    return None


def positions_as_rows(
    maps: Float[Tensor, "examples channels *positions"],
) -> Float[Tensor, "rows channels"]:
    """Return each position of latent maps as a code of its own, with the channels as dimensions.

    Image, audio and video autoencoders encode to maps with channels at many positions, and their
    prior is N(0, I) at each position. So a position is an example, and a channel a latent
    dimension. Codes of neighbouring positions depend on each other: standard errors over positions
    are too small, and those of one position from each map are right.

    Args:
        maps: Means, scales or codes, of shape ``(examples, channels, length)``, ``(examples,
            channels, height, width)`` or ``(examples, channels, frames, height, width)``.

    Returns:
        Codes of shape ``(examples * positions, channels)``.

    Raises:
        ShapeError: There is no position: the maps have two axes or fewer.

    Introduced in "The estimators on trial".

    >>> positions_as_rows(torch.zeros(5, 4, 8, 8)).shape
    torch.Size([320, 4])
    """
    maps = as_tensor(maps, "maps")
    if maps.ndim < 3:
        raise ShapeError(
            f"maps has shape {tuple(maps.shape)}, where (examples, channels, …) is needed: a "
            "single map needs maps[None], and rows of codes need nothing"
        )
    return maps.movedim(1, -1).reshape(-1, maps.shape[1])


def _check_matrix(values: Tensor, name: str) -> None:
    if values.ndim == 2 and values.numel():
        return
    mend = "it has no entries"
    if values.ndim < 2:
        mend = f"one latent dimension needs {name}[:, None], and one code {name}[None]"
    elif values.ndim > 2:
        mend = (
            f"positions_as_rows({name}) makes a code of each position of latent maps, and "
            f"{name}.flatten(1) one code of each map"
        )
    raise ShapeError(
        f"{name} has shape {tuple(values.shape)}, where (examples, latent) is needed: {mend}"
    )


def _refuse(kind: type[ValueError], values: Tensor, wrong: Tensor, name: str, why: str) -> None:
    """Raise an error that names the first wrong entry, if there is one."""
    if not wrong.any():
        return
    found = wrong.nonzero()
    where = ", ".join(map(str, found[0].tolist()))
    others = f", the first of {len(found)} such entries" if len(found) > 1 else ""
    entry = values[tuple(found[0])].item() if values.ndim else values.item()
    raise kind(f"{name}[{where}] is {entry:g}{others}: {why}")
