import dataclasses
import signal
import subprocess
import sys
import time

import pytest
import torch

from priormatch.data import binarize
from priormatch.objectives import bound_parts_in_chunks
from priormatch.training import CheckpointMismatchError, DivergedError, Recipe, _average, build, fit

SMALL = Recipe(encoder_width=16, decoder_width=16, epochs=3, batch_size=20, learning_rate=1e-2)


def pictures(examples=100, seed=0):
    """Return grey images of two kinds, which a small VAE tells apart in a moment."""
    generator = torch.Generator().manual_seed(seed)
    left = (torch.arange(784) % 28 < 14).float()
    kind = torch.randint(2, (examples, 1), generator=generator).float()
    return 0.05 + 0.9 * (kind * left + (1 - kind) * (1 - left))


def timeless(history):
    return [row._replace(seconds=0.0) for row in history]


def same_weights(one, other):
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(first, second) for first, second in pairs)


def small_fit(recipe=SMALL, **options):
    return fit(recipe, pictures(), pictures(40, seed=1), progress=False, **options)


def stopped_and_resumed(recipe, checkpoint, **then):
    """Train until the second epoch is over but not saved, and then to the end with options."""

    def stop(epoch, model):
        if epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        small_fit(recipe, checkpoint=checkpoint, after_epoch=stop)
    assert checkpoint.exists()
    return small_fit(recipe, checkpoint=checkpoint, **then)


def test_same_seed_same_history_and_weights():
    first, second = small_fit(), small_fit()
    assert timeless(first.history) == timeless(second.history)
    assert same_weights(first.model, second.model)


def test_another_seed_is_another_training():
    other = small_fit(dataclasses.replace(SMALL, seed=1))
    assert timeless(other.history) != timeless(small_fit().history)
    assert not same_weights(build(SMALL), build(dataclasses.replace(SMALL, seed=1)))


def test_nothing_depends_on_the_global_generator():
    torch.manual_seed(1)
    first = small_fit()
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert same_weights(first.model, small_fit().model)
    assert torch.equal(before, torch.get_rng_state())


def test_mixed_precision_trains_as_well_and_repeats_itself():
    recipe = dataclasses.replace(SMALL, epochs=20)
    single = small_fit(recipe)
    mixed = small_fit(recipe, number_format=torch.bfloat16)
    assert same_weights(mixed.model, small_fit(recipe, number_format=torch.bfloat16).model)
    assert not same_weights(mixed.model, single.model)
    assert {weights.dtype for weights in mixed.model.parameters()} == {torch.float32}
    first, last = single.history[0].validation_elbo, single.history[-1].validation_elbo
    assert abs(mixed.history[-1].validation_elbo - last) < 0.02 * (last - first)
    assert {epoch.number_format for epoch in mixed.history} == {"bfloat16"}
    assert {epoch.number_format for epoch in single.history} == {"float32"}


def test_a_training_that_goes_on_elsewhere_tells_both_number_formats(tmp_path):
    history = stopped_and_resumed(
        SMALL, tmp_path / "training", number_format=torch.bfloat16
    ).history
    assert [epoch.number_format for epoch in history] == ["float32", "bfloat16", "bfloat16"]


def test_mixed_precision_is_validated_in_single_precision():
    images = pictures(40, seed=1)
    mixed = small_fit(number_format=torch.bfloat16)
    validation = binarize(images, torch.Generator().manual_seed(0))
    parts = bound_parts_in_chunks(mixed.model, validation, torch.Generator().manual_seed(0))
    assert mixed.history[-1].validation_distortion == parts.distortion.mean().item()


def test_training_raises_the_bound_of_unseen_images():
    history = small_fit(dataclasses.replace(SMALL, epochs=60)).history
    assert [row.epoch for row in history] == list(range(1, 61))
    # Binary noise of 784 pixels at 0.05 or 0.95 leaves an entropy of 0.1985 nats a pixel.
    entropy = 784 * 0.1985
    assert history[0].validation_elbo < history[-1].validation_elbo - 50
    assert -entropy - 15 < history[-1].validation_elbo < -entropy + 5


def test_stopped_and_resumed_is_never_stopped(tmp_path):
    whole = small_fit()
    checkpoint = tmp_path / "deep" / "state.checkpoint"

    def stop(epoch, model):
        if epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        small_fit(checkpoint=checkpoint, after_epoch=stop)
    assert checkpoint.exists()
    epochs = []
    resumed = small_fit(checkpoint=checkpoint, after_epoch=lambda epoch, _: epochs.append(epoch))
    assert epochs == [2, 3], "the epoch that was not saved is done again, the saved one is not"
    assert timeless(resumed.history) == timeless(whole.history)
    assert same_weights(resumed.model, whole.model)
    assert not checkpoint.exists()


def test_the_average_of_the_weights_is_what_is_returned():
    # One step an epoch, so that the weights after each step are those of shorter trainings.
    steps = dataclasses.replace(SMALL, batch_size=100, schedule="constant")
    first, second, third = (
        small_fit(dataclasses.replace(steps, epochs=epochs)).model.state_dict()
        for epochs in (1, 2, 3)
    )
    averaged = small_fit(dataclasses.replace(steps, ema_decay=0.15)).model.state_dict()
    for key in averaged:
        expected = 0.15 * (0.15 * first[key] + 0.85 * second[key]) + 0.85 * third[key]
        torch.testing.assert_close(averaged[key], expected)


def test_the_decay_of_the_average_warms_up():
    averages, weights = [torch.zeros(1)], [torch.ones(1)]
    _average(0.999, averages, weights, 8)
    assert averages[0].item() == pytest.approx(0.5)  # 1 - 9 / 18
    _average(0.999, averages, weights, 1_000_000)
    assert averages[0].item() == pytest.approx(0.5005)


def test_an_averaged_training_that_stops_and_resumes_is_never_stopped(tmp_path):
    recipe = dataclasses.replace(SMALL, ema_decay=0.9)
    whole = small_fit(recipe)
    resumed = stopped_and_resumed(recipe, tmp_path / "state.checkpoint")
    assert same_weights(resumed.model, whole.model)
    assert timeless(resumed.history) == timeless(whole.history)


@pytest.mark.parametrize("beta", [1.0, 3.0])
def test_training_ends_once_the_objective_is_flat(beta, tmp_path):
    recipe = dataclasses.replace(SMALL, epochs=200, beta=beta, min_improvement=2.0)
    history = small_fit(recipe).history
    loss = [row.validation_distortion + beta * row.validation_rate for row in history]
    assert 20 < len(history) < 200

    def gain(epochs):
        return min(loss[: epochs - 10]) - min(loss[epochs - 10 : epochs])

    assert gain(len(loss)) < 2.0
    assert all(gain(epochs) >= 2.0 for epochs in range(20, len(loss)))


def test_a_training_killed_after_its_last_epoch_does_not_go_on(tmp_path, monkeypatch):
    recipe = dataclasses.replace(SMALL, epochs=30, min_improvement=1e9)
    checkpoint = tmp_path / "state.checkpoint"
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.unlink", lambda *_, **__: None)
        whole = small_fit(recipe, checkpoint=checkpoint)
    assert checkpoint.exists()
    again = small_fit(recipe, checkpoint=checkpoint)
    assert timeless(again.history) == timeless(whole.history)
    assert len(again.history) == 20


def test_a_killed_process_resumes_bit_for_bit(tmp_path):
    checkpoint, weights = tmp_path / "state.checkpoint", tmp_path / "weights.pt"
    program = f"""
import sys
import torch
sys.path.insert(0, {str(__file__).rsplit("/", 1)[0]!r})
from test_training import SMALL, pictures, fit
import dataclasses, pathlib
torch.set_num_threads(1)
recipe = dataclasses.replace(SMALL, epochs=400)
trained = fit(recipe, pictures(), pictures(40, seed=1), progress=False,
              checkpoint=pathlib.Path({str(checkpoint)!r}))
torch.save(trained.model.state_dict(), {str(weights)!r})
"""

    def start():
        return subprocess.Popen([sys.executable, "-c", program])

    process = start()
    deadline = time.monotonic() + 120
    while not checkpoint.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = len(torch.load(checkpoint, weights_only=True)["history"])
    assert 1 <= done < 400
    assert start().wait(timeout=300) == 0
    interrupted = torch.load(weights, weights_only=True)
    weights.unlink()
    assert start().wait(timeout=300) == 0
    whole = torch.load(weights, weights_only=True)
    assert all(torch.equal(interrupted[key], whole[key]) for key in whole)


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path):
    checkpoint = tmp_path / "state.checkpoint"

    def stop(epoch, model):
        if epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        small_fit(checkpoint=checkpoint, after_epoch=stop)
    with pytest.raises(CheckpointMismatchError, match="delete it"):
        small_fit(dataclasses.replace(SMALL, beta=2.0), checkpoint=checkpoint)


def test_a_diverging_loss_is_a_named_error():
    with pytest.raises(DivergedError, match="lower the learning rate"):
        small_fit(dataclasses.replace(SMALL, learning_rate=1e6, epochs=20))


def test_beta_weighs_the_rate():
    rates = [
        small_fit(dataclasses.replace(SMALL, beta=beta, epochs=8)).history[-1].validation_rate
        for beta in (0.1, 1.0, 1_000.0)
    ]
    assert rates[0] > rates[1] > rates[2]
    assert rates[2] < 0.01


def test_grey_pixels_are_trained_on_as_they_are():
    history = small_fit(dataclasses.replace(SMALL, pixels="grayscale", schedule="constant")).history
    binarised = small_fit(dataclasses.replace(SMALL, schedule="constant")).history
    assert history[-1].validation_elbo != binarised[-1].validation_elbo


def test_a_learning_rate_rises_and_falls_to_zero_or_stays():
    from priormatch.training import _schedule

    def rates(kind, steps=30):
        recipe = dataclasses.replace(SMALL, schedule=kind)
        optimiser = torch.optim.Adam(build(recipe).parameters(), lr=recipe.learning_rate)
        schedule = _schedule(recipe, optimiser, batches=10)
        seen = []
        for _ in range(steps):
            seen.append(optimiser.param_groups[0]["lr"])
            optimiser.step()
            schedule.step()
        return seen

    assert rates("constant") == [1e-2] * 30
    falling = rates("inverse sqrt", steps=201)
    assert falling[0] == pytest.approx(1e-3)
    assert falling[4] == pytest.approx(5e-3)
    assert falling[9:50] == pytest.approx([1e-2] * 41)
    assert falling[199] == pytest.approx(5e-3)  # 20 epochs are four times 5
    cycle = rates("one cycle")
    assert max(cycle) == pytest.approx(1e-2)
    assert cycle[0] < 1e-3
    assert cycle[-1] < 1e-5


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Recipe)])
def test_no_field_of_a_recipe_is_idle(field):
    """Each field changes the training: a field that does nothing is a lie in every table."""
    changed = {
        "latent_dimension": 3,
        "encoder_depth": 3,
        "encoder_width": 17,
        "decoder_depth": 1,
        "decoder_width": 17,
        "activation": "softplus",
        "pixels": "grayscale",
        "beta": 2.0,
        "epochs": 2,
        "batch_size": 25,
        "learning_rate": 1e-3,
        "schedule": "constant",
        "clip_grad_norm": 1.0,
        "ema_decay": 0.9,
        "flat": 1e9,
        "seed": 1,
        "posterior": "interval",
        "prior": "vamp",
    }
    base = dataclasses.replace(SMALL, epochs=21) if field == "flat" else SMALL
    recipe = dataclasses.replace(base, **{field: changed[field]})
    assert timeless(small_fit(recipe).history) != timeless(small_fit(base).history)


ON_THE_INTERVAL = dataclasses.replace(SMALL, latent_dimension=1, posterior="interval")


def test_a_model_on_the_interval_learns_and_its_codes_stay_there():
    trained = small_fit(dataclasses.replace(ON_THE_INTERVAL, epochs=60))
    # Two kinds of pictures cost ln 2 to tell apart, and binary noise of 784 pixels the rest.
    entropy = 784 * 0.1985
    assert -entropy - 20 < trained.history[-1].validation_elbo < -entropy + 5
    assert trained.history[-1].validation_rate > 0.5
    codes = trained.model.posterior(pictures()).mean
    assert 0 < codes.min() < codes.max() < 10


WITH_VAMP = dataclasses.replace(SMALL, prior="vamp", ema_decay=0.9)
CORRELATED = dataclasses.replace(SMALL, posterior="full covariance")
OTHERS = {"interval": ON_THE_INTERVAL, "vamp": WITH_VAMP, "full covariance": CORRELATED}


@pytest.mark.parametrize("recipe", OTHERS.values(), ids=OTHERS)
def test_a_training_with_other_draws_is_reproducible_and_resumes(recipe, tmp_path):
    torch.manual_seed(1)
    whole = small_fit(recipe)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    resumed = stopped_and_resumed(recipe, tmp_path / "state.checkpoint")
    assert same_weights(resumed.model, whole.model)
    assert timeless(resumed.history) == timeless(whole.history)
    assert torch.equal(before, torch.get_rng_state())


def test_pseudo_inputs_start_at_training_images_and_are_trained():
    seen = {}

    def keep(epoch, model):
        seen[epoch] = model.prior.pseudo_inputs.detach().clone()

    trained = small_fit(WITH_VAMP, after_epoch=keep)
    # The pictures, all of them twice, in an order of their own.
    torch.testing.assert_close(seen[0].sum(1).sort().values[::2], pictures().sum(1).sort().values)
    torch.testing.assert_close(seen[0].amin(), pictures().amin())
    assert (seen[3] - seen[0]).abs().mean() > 1e-3
    # The prior reads its pseudo-inputs with the averaged encoder, not with that of the last step.
    model = trained.model
    means = model.posterior(model.prior.pseudo_inputs).mean
    torch.testing.assert_close(model.prior.mixture.means, means)


def test_a_vamp_prior_learns_two_clusters_and_gains_the_nats_between_them():
    """Two kinds of pictures are one bit: N(0, I) cannot have two clusters, a VampPrior can."""
    plain = dataclasses.replace(SMALL, latent_dimension=1, epochs=60)
    gained = [
        small_fit(dataclasses.replace(plain, prior=prior)).history[-1].validation_elbo
        for prior in ("standard normal", "vamp")
    ]
    entropy = 784 * 0.1985
    assert gained[1] > gained[0] + 0.1
    assert gained[1] < -entropy - 0.69 + 5


@pytest.mark.parametrize("recipe", [ON_THE_INTERVAL, CORRELATED])
def test_a_vamp_prior_goes_with_diagonal_posteriors_only(recipe):
    with pytest.raises(ValueError, match="VampPrior"):
        build(dataclasses.replace(recipe, prior="vamp"))


def test_a_training_with_full_covariances_learns_them():
    trained = small_fit(dataclasses.replace(CORRELATED, epochs=30))
    entropy = 784 * 0.1985
    assert -entropy - 20 < trained.history[-1].validation_elbo < -entropy + 5
    assert trained.model.posterior(pictures()).scale_tril[:, 1, 0].abs().mean() > 0.01


def test_both_families_start_from_the_same_weights():
    line = build(dataclasses.replace(SMALL, latent_dimension=1)).state_dict().values()
    assert all(
        torch.equal(one, other)
        for one, other in zip(line, build(ON_THE_INTERVAL).state_dict().values(), strict=True)
    )


def test_a_checkpoint_without_a_later_field_is_read_with_its_default(tmp_path):
    checkpoint = tmp_path / "state.checkpoint"

    def stop(epoch, model):
        if epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        small_fit(checkpoint=checkpoint, after_epoch=stop)
    state = torch.load(checkpoint, weights_only=True)
    del state["recipe"]["posterior"], state["recipe"]["prior"]
    torch.save(state, checkpoint)
    assert len(small_fit(checkpoint=checkpoint).history) == 3


def test_progress_says_how_far_it_is(capsys):
    fit(SMALL, pictures(), pictures(40, seed=1))
    shown = capsys.readouterr().err
    assert "3/3" in shown
    assert "validation ELBO" in shown
