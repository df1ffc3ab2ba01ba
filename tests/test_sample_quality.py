import pytest
import scipy
import torch
from agreement import assert_agrees
from scipy.stats import binom
from small_world import pictures
from torch import nn

from priormatch import sample_quality
from priormatch.data import Digits
from priormatch.experiments.digit_classifier import DigitClassifier


def test_probabilities_add_up_and_chunks_change_nothing():
    classifier = DigitClassifier().eval()
    images = pictures(25)
    whole = sample_quality.predict_proba(classifier, images)
    assert whole.shape == (25, 10)
    torch.testing.assert_close(whole.sum(1), torch.ones(25))
    torch.testing.assert_close(sample_quality.predict_proba(classifier, images, chunk=7), whole)


def test_right_answers_are_counted_against_the_labels():
    class Constant(nn.Module):
        def forward(self, images):
            return torch.eye(10)[torch.full((len(images),), 3)]

    digits = Digits(torch.zeros(4, 784), torch.tensor([3, 1, 3, 3]))
    assert sample_quality.is_correct(Constant(), digits).tolist() == [1, 0, 1, 1]


def normal(draws, mean, factor, seed=0):
    noise = torch.randn((draws, len(mean)), generator=torch.Generator().manual_seed(seed))
    return mean + noise.double() @ factor.T


MEAN = torch.tensor([0.5, -1.0, 0.0], dtype=torch.float64)
FACTOR = torch.tensor([[1.0, 0.0, 0.0], [0.7, 0.5, 0.0], [-0.3, 0.2, 2.0]], dtype=torch.float64)


def test_features_are_what_the_last_layer_reads():
    classifier = DigitClassifier().eval()
    images = pictures(25)
    features = sample_quality.features(classifier, images, chunk=7)
    assert features.shape == (25, 64)
    assert features.min() >= 0
    torch.testing.assert_close(
        classifier[-1](features).softmax(1), sample_quality.predict_proba(classifier, images)
    )


def test_the_frechet_distance_of_gaussians_is_the_formula_with_matrix_roots():
    covariance, other = FACTOR @ FACTOR.T, torch.diag(torch.tensor([2.0, 0.5, 1.0])).double()
    root = torch.from_numpy(scipy.linalg.sqrtm((covariance @ other).numpy()).real)
    expected = MEAN.square().sum() + (covariance + other - 2 * root).trace()
    zero = torch.zeros_like(MEAN)
    found = sample_quality.frechet_between_gaussians(MEAN, covariance, zero, other)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        sample_quality.frechet_between_gaussians(zero, other, MEAN, covariance), expected
    )


def test_the_frechet_distance_of_scales_is_the_squared_difference_of_the_scales():
    scales = torch.tensor([1.0, 0.0, 3.0])
    zero = torch.zeros(3)
    found = sample_quality.frechet_between_gaussians(
        zero, scales.square().diag(), zero, torch.eye(3)
    )
    torch.testing.assert_close(found, (scales - 1).square().sum())


def test_the_frechet_distance_of_draws_is_that_of_their_laws():
    # In the shift, the error of few draws is linear and hides their bias, which is quadratic.
    drawn, real = normal(20_000, MEAN, FACTOR), normal(20_000, 0 * MEAN, torch.eye(3).double(), 1)
    estimate = sample_quality.frechet_distance(drawn, real)
    truth = sample_quality.frechet_between_gaussians(
        MEAN, FACTOR @ FACTOR.T, 0 * MEAN, torch.eye(3).double()
    )
    assert_agrees(estimate.value, estimate.standard_error, truth.item())
    assert estimate.standard_error < 0.05 * truth
    assert estimate.bound == "upper"


@pytest.mark.slow
def test_the_jackknife_tells_the_spread_of_the_frechet_distance():
    estimates = [
        sample_quality.frechet_distance(
            normal(400, MEAN, FACTOR, seed),
            normal(400, 0 * MEAN, torch.eye(3).double(), 999 + seed),
        )
        for seed in range(200)
    ]
    spread = torch.tensor([estimate.value for estimate in estimates]).std().item()
    claimed = sum(estimate.standard_error for estimate in estimates) / len(estimates)
    # The spread over 200 repetitions is known to 5 %, and 20 blocks know theirs to 16 %.
    assert 0.75 * spread < claimed < 1.25 * spread


@pytest.mark.slow
def test_the_frechet_distance_of_equal_laws_falls_with_the_number_of_pictures():
    def floor(size):
        pairs = [
            (normal(size, MEAN, FACTOR, seed), normal(size, MEAN, FACTOR, 50 + seed))
            for seed in range(20)
        ]
        return sum(sample_quality.frechet_distance(*pair).value for pair in pairs) / 20

    floors = [floor(size) for size in (100, 1_000, 10_000)]
    assert floors[0] > 4 * floors[1] > 16 * floors[2] > 0


def test_precision_and_recall_are_shares_of_the_common_support():
    def uniform(low, high, seed):
        draws = torch.rand((4_000, 1), generator=torch.Generator().manual_seed(seed))
        return low + (high - low) * draws

    wide, narrow = uniform(0.0, 2.0, 0), uniform(1.0, 1.5, 1)
    shares = sample_quality.precision_and_recall(wide, narrow)
    assert_agrees(shares.precision.value, shares.precision.standard_error, 0.25)
    assert shares.recall.value > 0.98
    other = sample_quality.precision_and_recall(narrow, wide)
    assert_agrees(other.recall.value, other.recall.standard_error, 0.25)
    assert other.precision.value > 0.98
    # No picture is its own neighbour: with it, three neighbours would be two.
    row = torch.arange(4.0)[:, None]
    assert sample_quality._is_covered(torch.tensor([[5.5], [6.5]]), row, 3).tolist() == [1, 0]


def test_class_imbalance_is_the_total_variation_with_its_null_band():
    def labelled(*counts):
        return torch.eye(3)[torch.arange(3).repeat_interleave(torch.tensor(counts))]

    balanced = labelled(400, 300, 300)
    same = sample_quality.class_imbalance(balanced, balanced)
    assert same.estimate.value == 0.0
    assert 0 < same.low < same.high < 0.06
    off = sample_quality.class_imbalance(labelled(600, 300, 100), balanced)
    assert off.estimate.value == pytest.approx(0.2)
    assert off.estimate.value > off.high
    # Counts of 0.6, 0.4 and so on of a thousand, added up over classes and both sets.
    variance = 0.25 * (4 * 0.6 * 0.4 - 0 + 0) / 1_000
    assert off.estimate.standard_error == pytest.approx(variance**0.5, rel=0.35)


@pytest.mark.slow
def test_a_band_of_equal_classes_holds_95_of_100_sets():
    random = torch.Generator().manual_seed(0)
    inside = 0
    for _ in range(400):
        one, other = (torch.randint(10, (500,), generator=random) for _ in range(2))
        found = sample_quality.class_imbalance(
            torch.eye(10)[one], torch.eye(10)[other], repetitions=400
        )
        inside += found.low <= found.estimate.value <= found.high
    assert binom.cdf(inside, 400, 0.95) > 1e-6
    assert inside > 340


def test_the_nearest_picture_is_found_among_all():
    images = torch.bernoulli(pictures(30), generator=torch.Generator().manual_seed(0))
    others = torch.bernoulli(pictures(50, seed=1), generator=torch.Generator().manual_seed(1))
    expected = (images[:, None] != others).sum(2).amin(1).float()
    torch.testing.assert_close(sample_quality.nearest_distances(images, others), expected)
    assert sample_quality.nearest_distances(others, others).sum() == 0
