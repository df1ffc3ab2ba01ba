"""Quality of drawn pictures, measured by the classes and the features of a classifier."""

from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn

from priormatch.checks import ShapeError, check_draws, rows, same_shape, vector
from priormatch.data import Digits
from priormatch.estimate import Estimate, Statistic, average


@torch.no_grad()
def predict_proba(
    classifier: nn.Module, images: Float[Tensor, "images 784"], chunk: int = 1_000
) -> Float[Tensor, "images 10"]:
    """Return the probabilities that a classifier gives to the ten digits.

    Args:
        classifier: Maps ``(images, 784)`` to ``(images, 10)`` logits.
        images: Grey or binary pictures, values in [0, 1].
        chunk: Images classified at a time.

    Returns:
        Probabilities, of shape ``(images, 10)``; they are not calibrated for decoded pictures.

    Raises:
        ShapeError: The images are no matrix.
        NonFiniteError: A pixel is infinite or not a number.

    Introduced in "The uniform interval".
    """
    images = rows(images, "images", keep_device=True)
    return torch.cat([classifier(some).softmax(1) for some in images.split(chunk)])


def is_correct(classifier: nn.Module, digits: Digits) -> Float[Tensor, " examples"]:
    """Return 1 for each image that the classifier gets right, else 0.

    Args:
        classifier: Maps ``(images, 784)`` to ``(images, 10)`` logits.
        digits: Images, grey or binary, and labels.

    Raises:
        ShapeError: The images are no matrix, or there is not a label for each.
        NonFiniteError: A pixel is infinite or not a number.

    Introduced in "The uniform interval".
    """
    found = predict_proba(classifier, digits.images).argmax(1)
    same_shape(found, digits.labels, "images and labels")
    return (found == digits.labels).double()


@torch.no_grad()
def features(
    classifier: nn.Sequential, images: Float[Tensor, "images 784"], chunk: int = 1_000
) -> Float[Tensor, "images features"]:
    """Return the inputs of the classifier's last layer: 64 numbers a picture, none negative.

    Args:
        classifier: A `DigitClassifier`.
        images: Grey or binary pictures, values in [0, 1]; compare only pictures of one kind.
        chunk: Images read at a time.

    Raises:
        ShapeError: The images are no matrix.
        NonFiniteError: A pixel is infinite or not a number.

    Introduced in "Sampling the quilt".
    """
    images = rows(images, "images", keep_device=True)
    body = list(classifier)[:-1]
    return torch.cat([nn.Sequential(*body)(some) for some in images.split(chunk)])


def frechet_between_gaussians(
    first_mean: Float[Tensor, " features"],
    first_covariance: Float[Tensor, "features features"],
    second_mean: Float[Tensor, " features"],
    second_covariance: Float[Tensor, "features features"],
) -> Float[Tensor, ""]:
    r"""Return the Fréchet distance of two Gaussians: their squared 2-Wasserstein distance.

    .. math:: |m_1 - m_2|^2 + \operatorname{tr}\left(S_1 + S_2
              - 2 \left(S_1^{1/2} S_2 S_1^{1/2}\right)^{1/2}\right)

    Args:
        first_mean: Mean of one of them.
        first_covariance: Its covariance, which may be singular.
        second_mean: Mean of the other.
        second_covariance: Its covariance.

    Raises:
        ShapeError: Means and covariances do not belong together.
        NonFiniteError: An entry is infinite or not a number.

    Source: :cite:t:`dowson1982`.

    Introduced in "Sampling the quilt".

    >>> zero, one = torch.zeros(1), torch.eye(1)
    >>> frechet_between_gaussians(zero, one, zero + 3, 4 * one)  # 3^2 + (2 - 1)^2
    tensor(10.)
    """
    first_mean, second_mean = vector(first_mean, "first_mean"), vector(second_mean, "second_mean")
    same_shape(first_mean, second_mean, "the means")
    first_covariance = rows(first_covariance, "first_covariance", len(first_mean))
    second_covariance = rows(second_covariance, "second_covariance", len(first_mean))
    if not len(first_covariance) == len(second_covariance) == len(first_mean):
        raise ShapeError("a covariance has as many rows as columns")
    values, vectors = torch.linalg.eigh(first_covariance)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ second_covariance @ root).clamp(min=0).sqrt().sum()
    traces = first_covariance.trace() + second_covariance.trace()
    return (first_mean - second_mean).square().sum() + traces - 2 * cross


def frechet_distance(
    drawn: Float[Tensor, "draws features"],
    real: Float[Tensor, "examples features"],
    blocks: int = 20,
) -> Estimate:
    """Estimate the Fréchet distance between Gaussians with the moments of two sets of features.

    Errors in the moments make it larger, so its expectation is too large, and the more so the fewer
    pictures there are. Compare distances only between sets of equally many pictures, and take the
    distance of two sets of real ones for reference. Other features give other distances, so this is
    not the FID.

    Args:
        drawn: Features of drawn pictures.
        real: Features of real pictures, in an order that is random.
        blocks: Parts left out one at a time for the jackknife's standard error.

    Returns:
        The squared distance, in the squared unit of the features, an upper estimate.

    Raises:
        ShapeError: The two have other features.
        NonFiniteError: A feature is infinite or not a number.
        TooFewCodesError: There are fewer pictures than blocks, or fewer than three blocks.

    Source: :cite:t:`heusel2017`, with other features.

    Introduced in "Sampling the quilt".
    """
    check_draws(blocks, 3)
    first = rows(drawn, "drawn", fewest=blocks).double()
    second = rows(real, "real", first.shape[1], blocks).double()
    whole = frechet_between_gaussians(*_moments(first), *_moments(second))
    left_out = [
        frechet_between_gaussians(
            *_moments(first[torch.arange(len(first)) % blocks != block]),
            *_moments(second[torch.arange(len(second)) % blocks != block]),
        )
        for block in range(blocks)
    ]
    variance = (blocks - 1) * torch.stack(left_out).var(correction=0)
    return Estimate(whole.item(), variance.sqrt().item(), "upper")


def _moments(values: Tensor) -> tuple[Tensor, Tensor]:
    return values.mean(0), torch.cov(values.T).reshape(values.shape[1], values.shape[1])


class PrecisionRecall(NamedTuple):
    """Shares of pictures that look like some picture of the other set.

    Attributes:
        precision: Share of the drawn pictures that lie where real ones do.
        recall: Share of the real pictures that lie where drawn ones do.
    """

    precision: Estimate
    recall: Estimate


def precision_and_recall(
    drawn: Float[Tensor, "draws features"],
    real: Float[Tensor, "examples features"],
    neighbours: int = 3,
) -> PrecisionRecall:
    """Estimate the share of drawn pictures that look real, and of real ones that can be drawn.

    Around each picture of a set lies a ball that reaches its third nearest neighbour in the set. A
    picture lies where those of the set do if it is in one of these balls. Two sets of real pictures
    do not reach 1.

    Args:
        drawn: Features of drawn pictures.
        real: Features of real pictures; both shares depend on how many there are of each.
        neighbours: Rank of the neighbour that sets the radius of a ball.

    Returns:
        Shares; the standard errors are those of counts, with the other set given.

    Raises:
        ShapeError: The two have other features.
        NonFiniteError: A feature is infinite or not a number.
        TooFewCodesError: There are no more pictures in a set than neighbours.

    Source: :cite:t:`kynkaanniemi2019`.

    Introduced in "Sampling the quilt".
    """
    drawn = rows(drawn, "drawn", fewest=neighbours + 1)
    real = rows(real, "real", drawn.shape[1], neighbours + 1).to(drawn)
    return PrecisionRecall(
        average(_is_covered(drawn, real, neighbours)), average(_is_covered(real, drawn, neighbours))
    )


def _is_covered(points: Tensor, others: Tensor, neighbours: int) -> Tensor:
    # Each point is its own nearest neighbour, hence one more.
    index = NearestNeighbors(n_neighbors=neighbours + 1, algorithm="brute").fit(others.numpy())
    radii = torch.from_numpy(index.kneighbors(others.numpy())[0][:, -1]).to(others)
    return torch.cat(
        [(torch.cdist(some, others) <= radii).any(1).double() for some in points.split(1_000)]
    )


def class_imbalance(
    drawn: Float[Tensor, "draws classes"],
    real: Float[Tensor, "examples classes"],
    seed: int = 0,
    repetitions: int = 2_000,
) -> Statistic:
    r"""Estimate the total variation between the classes of drawn and of real pictures.

    .. math:: \tfrac12 \sum_c |\hat p_c - \hat q_c|

    Args:
        drawn: Class probabilities of drawn pictures; the likeliest class counts.
        real: Those of real pictures, by the same classifier, so that its errors cancel.
        seed: Decides the repetitions.
        repetitions: Sets of labels drawn for the standard error and the null band.

    Returns:
        The total variation distance, in [0, 1], with the band of two sets of real pictures.

    Raises:
        ShapeError: The two have other classes.
        NonFiniteError: A probability is infinite or not a number.

    Introduced in "Sampling the quilt".
    """
    drawn = rows(drawn, "drawn")
    real = rows(real, "real", drawn.shape[1])
    counts = [
        np.bincount(probabilities.argmax(1).numpy(), minlength=probabilities.shape[1])
        for probabilities in (drawn, real)
    ]

    def distance(one: Any, other: Any) -> Any:
        return 0.5 * np.abs(one / len(drawn) - other / len(real)).sum(-1)

    random = np.random.default_rng(seed)

    def again(shares_of_drawn: Any, shares_of_real: Any) -> Any:
        return distance(
            random.multinomial(len(drawn), shares_of_drawn, repetitions),
            random.multinomial(len(real), shares_of_real, repetitions),
        )

    shares = [one / one.sum() for one in counts]
    null = again(shares[1], shares[1])
    low, high = np.quantile(null, [0.025, 0.975])
    value, error = distance(*counts), again(*shares).std()
    return Statistic(Estimate(float(value), float(error)), float(low), float(high))


def nearest_distances(
    images: Float[Tensor, "images pixels"], others: Float[Tensor, "others pixels"]
) -> Float[Tensor, " images"]:
    """Return the squared distance of each picture to the nearest one of a set.

    Args:
        images: Pictures, for instance drawn ones.
        others: Pictures of the same kind, for instance the training images. A decoder's means are
            nearer to any picture than binary pictures are, so compare binary with binary.

    Returns:
        For binary pictures the number of pixels that differ, of shape ``(images,)``.

    Raises:
        ShapeError: The two have other numbers of pixels.
        NonFiniteError: A pixel is infinite or not a number.

    Introduced in "Sampling the quilt".

    >>> nearest_distances(torch.ones(1, 3), torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 1.0]]))
    tensor([1.])
    """
    images = rows(images, "images")
    others = rows(others, "others", images.shape[1])
    index = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(others.numpy())
    distances, _ = index.kneighbors(images.numpy())
    return torch.from_numpy(distances[:, 0]).to(images).square()
