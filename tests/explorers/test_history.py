import torch

from priormatch.data import Source, binarized, source
from priormatch.explorers import assets, history
from priormatch.models import encode


def test_the_stored_history_starts_from_a_match_and_ends_at_the_stored_model():
    stored = history.load()
    rate, kl = stored["rate"][:, 0], stored["in_sample_kl"][:, 0]
    assert rate[0] < 0.01 < 5 < rate[-1]
    assert kl[0] < rate[0] + 0.01
    assert 0.2 < kl[-1] < 0.35
    if source() is Source.FALLBACK:
        return  # the stored codes are of MNIST's test images
    means, scales = encode(assets.vae(), binarized("test").images[:: history.EVERY])
    torch.testing.assert_close(stored["means"][-1].float(), means, atol=3e-3, rtol=1e-3)
    torch.testing.assert_close(stored["scales"][-1].float(), scales, atol=1e-3, rtol=1e-3)
