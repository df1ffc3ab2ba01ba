import dataclasses
import signal
import subprocess
import sys
import time

import pytest
import torch
from small_world import OTHER_VALUES, pictures, same_weights, seeded
from torch import nn

from priormatch import objectives, training
from priormatch.data import binarize, binarize_once
from priormatch.experiments import study
from priormatch.experiments.store import CheckpointFile
from priormatch.models import encode
from priormatch.objectives import bound_parts_in_chunks, squared_mmd_of_batch
from priormatch.recipe import Recipe, build
from priormatch.training import CheckpointMismatchError, DivergedError, fastest_format, fit

SMALL = Recipe(encoder_width=16, decoder_width=16, epochs=3, batch_size=20, learning_rate=1e-2)


def timeless(history):
    return [row._replace(seconds=0.0) for row in history]


def small_fit(recipe=SMALL, **options):
    return fit(recipe, pictures(), pictures(40, seed=1), progress=False, **options)


def stopped_and_resumed(recipe, checkpoint, **then):
    """Train until the second epoch is over but not saved, and then to the end with options."""

    def stop(epoch, model):
        if epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        small_fit(recipe, checkpoint=checkpoint, after_epoch=stop)
    assert checkpoint.file.exists()
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


@pytest.mark.slow
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
        SMALL, CheckpointFile(tmp_path / "training"), number_format=torch.bfloat16
    ).history
    assert [epoch.number_format for epoch in history] == ["float32", "bfloat16", "bfloat16"]


def test_mixed_precision_is_validated_in_single_precision():
    images = pictures(40, seed=1)
    mixed = small_fit(number_format=torch.bfloat16)
    validation = binarize(images, seeded(0))
    parts = bound_parts_in_chunks(mixed.model, validation, torch.Generator().manual_seed(0))
    assert mixed.history[-1].validation_distortion == parts.distortion.mean().item()


def test_narrow_posteriors_are_trained_in_single_precision(monkeypatch):
    native = {"avx512_bf16": True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: native, raising=False)
    formats = {recipe.beta: fastest_format(recipe) for recipe in study.grid()}
    assert {beta for beta, chosen in formats.items() if chosen is torch.float32} == {0.01, 0.1}
    line = dataclasses.replace(SMALL, latent_dimension=1)
    assert fastest_format(line) is torch.float32


def test_training_raises_the_bound_of_unseen_images():
    history = small_fit(dataclasses.replace(SMALL, epochs=60)).history
    assert [row.epoch for row in history] == list(range(1, 61))
    # Binary noise of 784 pixels at 0.05 or 0.95 leaves an entropy of 0.1985 nats a pixel.
    entropy = 784 * 0.1985
    assert history[0].validation_elbo < history[-1].validation_elbo - 50
    assert -entropy - 15 < history[-1].validation_elbo < -entropy + 5


def test_stopped_and_resumed_is_never_stopped(tmp_path):
    whole = small_fit()
    checkpoint = CheckpointFile(tmp_path / "deep" / "state.checkpoint")

    def stop(epoch, model):
        if epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        small_fit(checkpoint=checkpoint, after_epoch=stop)
    assert checkpoint.file.exists()
    epochs = []
    resumed = small_fit(checkpoint=checkpoint, after_epoch=lambda epoch, _: epochs.append(epoch))
    assert epochs == [2, 3], "the epoch that was not saved is done again, the saved one is not"
    assert timeless(resumed.history) == timeless(whole.history)
    assert same_weights(resumed.model, whole.model)
    assert not checkpoint.file.exists()


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


def test_an_averaged_training_that_stops_and_resumes_is_never_stopped(tmp_path):
    recipe = dataclasses.replace(SMALL, ema_decay=0.9)
    whole = small_fit(recipe)
    resumed = stopped_and_resumed(recipe, CheckpointFile(tmp_path / "state.checkpoint"))
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


@pytest.mark.parametrize("warm_up", [0, 7])
def test_training_never_ends_before_20_epochs_after_the_warm_up(warm_up):
    recipe = dataclasses.replace(SMALL, epochs=40, min_improvement=1e9, kl_warm_up=warm_up)
    assert len(small_fit(recipe).history) == warm_up + 20


@pytest.mark.parametrize(("warm_up", "rise"), [(0, []), (2, [0.3 * step for step in range(1, 11)])])
def test_the_weight_of_the_rate_rises_step_by_step_to_beta(warm_up, rise, monkeypatch):
    weights = []

    def noted(*given):
        parts = objectives.bound_parts(*given)
        # The gradient of the loss by the mean rate.
        parts.rate.register_hook(lambda gradient: weights.append(gradient.sum().item()))
        return parts

    monkeypatch.setattr(training, "bound_parts", noted)
    small_fit(dataclasses.replace(SMALL, beta=3.0, kl_warm_up=warm_up))
    assert weights == pytest.approx(rise + [3.0] * (15 - len(rise)))


class Masks:
    """Notes which hidden units of the encoder dropout leaves out."""

    def __init__(self, model):
        self.of = []
        for layer in model.encoder.network:
            if isinstance(layer, nn.Dropout):
                layer.register_forward_hook(self.note)

    def note(self, layer, inputs, outputs):
        if not layer.training:
            return
        alive = inputs[0] > 0
        torch.testing.assert_close(outputs[outputs > 0] * 0.75, inputs[0][outputs > 0])
        self.of.append((outputs == 0)[alive].double().mean().item())


def test_dropout_leaves_out_the_stated_share_of_the_encoders_units_anew_for_each_image():
    recipe = dataclasses.replace(SMALL, encoder_width=400, encoder_dropout=0.25)
    model = build(recipe)
    image = pictures(1).expand(500, 784)
    masks = Masks(model)
    first, second = (model.posterior(image).mean.detach() for _ in range(2))
    assert len(masks.of) == 2 * recipe.encoder_depth
    assert masks.of == pytest.approx([0.25] * 4, abs=0.01)
    assert len(first.unique(dim=0)) == 500
    assert not torch.equal(first, second)
    codes = torch.zeros(2, 2)
    assert torch.equal(model.likelihood(codes).mean[0], model.likelihood(codes).mean[1])
    alone = model.eval().posterior(image).mean
    assert len(alone.unique(dim=0)) == 1
    assert same_weights(model, build(dataclasses.replace(recipe, encoder_dropout=0.0)))


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_validation_knows_no_dropout(decay):
    """Neither does what is returned, and each epoch leaves out other units."""
    recipe = dataclasses.replace(SMALL, encoder_dropout=0.5, ema_decay=decay)
    trained = small_fit(recipe)
    pixels = binarize_once(pictures(40, seed=1))
    parts = bound_parts_in_chunks(trained.model, pixels, seeded(0))
    assert trained.history[-1].validation_distortion == parts.distortion.mean().item()
    assert not any(layer.training for layer in trained.model.modules())


def test_each_epoch_leaves_out_other_units():
    # One step an epoch without learning, on the same images in grey: only the units differ.
    still = dataclasses.replace(
        SMALL, batch_size=100, learning_rate=0.0, pixels="grayscale", schedule="constant"
    )
    plain, thinned = (
        [row.train_rate for row in small_fit(dataclasses.replace(still, encoder_dropout=p)).history]
        for p in (0.0, 0.3)
    )
    assert plain == pytest.approx(plain[:1] * 3)
    assert len(set(thinned)) == 3


def test_posteriors_start_from_the_stated_log_variance():
    start = dataclasses.replace(SMALL, latent_dimension=3, initial_log_variance=-4.0)
    images = pictures()
    with torch.no_grad():
        ours = build(start).posterior(images)
        plain = build(dataclasses.replace(start, initial_log_variance=0.0)).posterior(images)
    assert torch.equal(ours.mean, plain.mean)
    torch.testing.assert_close(2 * (ours.stddev.log() - plain.stddev.log()), 0 * plain.mean - 4)
    assert (2 * ours.stddev.log() + 4).abs().mean() < 0.3


@pytest.mark.parametrize("posterior", ["interval", "full covariance"])
def test_a_log_variance_to_start_from_is_one_of_diagonal_posteriors(posterior):
    recipe = dataclasses.replace(SMALL, posterior=posterior, initial_log_variance=-4.0)
    with pytest.raises(ValueError, match="initial_log_variance"):
        build(recipe)


def test_a_training_killed_after_its_last_epoch_does_not_go_on(tmp_path, monkeypatch):
    recipe = dataclasses.replace(SMALL, epochs=30, min_improvement=1e9)
    checkpoint = CheckpointFile(tmp_path / "state.checkpoint")
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.unlink", lambda *_, **__: None)
        whole = small_fit(recipe, checkpoint=checkpoint)
    assert checkpoint.file.exists()
    again = small_fit(recipe, checkpoint=checkpoint)
    assert timeless(again.history) == timeless(whole.history)
    assert len(again.history) == 20


@pytest.mark.slow
def test_a_killed_process_resumes_bit_for_bit(tmp_path):
    checkpoint = CheckpointFile(tmp_path / "state.checkpoint")
    weights = tmp_path / "weights.pt"
    program = f"""
import sys
import torch
sys.path.insert(0, {str(__file__).rsplit("/", 1)[0]!r})
from small_world import pictures
from test_training import SMALL, fit
import dataclasses, pathlib
from priormatch.experiments.store import CheckpointFile
torch.set_num_threads(1)
recipe = dataclasses.replace(SMALL, epochs=100)
trained = fit(recipe, pictures(), pictures(40, seed=1), progress=False,
              checkpoint=CheckpointFile(pathlib.Path({str(checkpoint)!r})))
torch.save(trained.model.state_dict(), {str(weights)!r})
"""

    def start():
        return subprocess.Popen([sys.executable, "-c", program])

    process = start()
    deadline = time.monotonic() + 120
    while not checkpoint.file.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = len(checkpoint.load()["history"])
    assert 1 <= done < 100
    assert start().wait(timeout=300) == 0
    interrupted = torch.load(weights, weights_only=True)
    weights.unlink()
    assert start().wait(timeout=300) == 0
    whole = torch.load(weights, weights_only=True)
    assert all(torch.equal(interrupted[key], whole[key]) for key in whole)


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path):
    checkpoint = CheckpointFile(tmp_path / "state.checkpoint")

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


BASES = {
    "min_improvement": dataclasses.replace(SMALL, epochs=21),
    "likelihood": dataclasses.replace(SMALL, pixels="grayscale"),
}


@pytest.mark.parametrize(
    "field",
    # The data set is the table's business: `fit` is given the images.
    [field.name for field in dataclasses.fields(Recipe) if field.name != "data_set"],
)
def test_no_field_of_a_recipe_is_idle(field):
    """Each field changes the training: a field that does nothing is a lie in every table."""
    base = BASES.get(field, SMALL)
    recipe = dataclasses.replace(base, **{field: OTHER_VALUES[field]})
    assert timeless(small_fit(recipe).history) != timeless(small_fit(base).history)


ON_THE_INTERVAL = dataclasses.replace(SMALL, latent_dimension=1, posterior="interval")


@pytest.mark.slow
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
OTHERS = {
    "interval": ON_THE_INTERVAL,
    "vamp": WITH_VAMP,
    "full covariance": CORRELATED,
    "dropout": dataclasses.replace(SMALL, encoder_dropout=0.2),
    "warm-up": dataclasses.replace(SMALL, kl_warm_up=3),
    "penalty": dataclasses.replace(SMALL, mmd_weight=10.0),
    "convolutional": dataclasses.replace(
        SMALL, network="convolutional", likelihood="gaussian", pixels="grayscale"
    ),
}


@pytest.mark.parametrize("recipe", OTHERS.values(), ids=OTHERS)
def test_every_kind_of_training_is_reproducible_and_resumes(recipe, tmp_path):
    torch.manual_seed(1)
    whole = small_fit(recipe)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    resumed = stopped_and_resumed(recipe, CheckpointFile(tmp_path / "state.checkpoint"))
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


@pytest.mark.slow
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
    with pytest.raises(ValueError, match="prior goes with diagonal"):
        build(dataclasses.replace(recipe, prior="vamp"))


def test_a_training_with_full_covariances_learns_them():
    trained = small_fit(dataclasses.replace(CORRELATED, epochs=30))
    entropy = 784 * 0.1985
    assert -entropy - 20 < trained.history[-1].validation_elbo < -entropy + 5
    assert trained.model.posterior(pictures()).scale_tril[:, 1, 0].abs().mean() > 0.01


@pytest.mark.slow
def test_a_penalty_brings_the_average_posterior_closer_to_the_prior():
    plain = dataclasses.replace(SMALL, epochs=30)
    penalised = dataclasses.replace(plain, mmd_weight=1_000.0)
    found = [
        squared_mmd_of_batch(*encode(small_fit(recipe).model, binarize_once(pictures()))).item()
        for recipe in (plain, penalised)
    ]
    assert found[0] > 0.02
    assert found[1] < found[0] / 3


@pytest.mark.slow
def test_a_gaussian_likelihood_learns_the_scale_of_the_noise():
    recipe = dataclasses.replace(
        SMALL, likelihood="gaussian", pixels="grayscale", epochs=40, learning_rate=0.01
    )
    noisy = (0.5 * pictures(300) + 0.25 + 0.1 * torch.randn(300, 784, generator=seeded(1))).clamp(
        0, 1
    )
    model = fit(recipe, noisy, noisy, progress=False).model
    assert model.decoder.log_scale.exp().item() == pytest.approx(0.1, rel=0.05)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"posterior": "full covariance", "mmd_weight": 1.0}, "mmd_weight"),
        ({"posterior": "interval", "network": "convolutional"}, "interval"),
        ({"likelihood": "gaussian"}, "grey"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(fields, said):
    with pytest.raises(ValueError, match=said):
        build(dataclasses.replace(SMALL, **fields))


def test_both_families_start_from_the_same_weights():
    line = build(dataclasses.replace(SMALL, latent_dimension=1)).state_dict().values()
    assert all(
        torch.equal(one, other)
        for one, other in zip(line, build(ON_THE_INTERVAL).state_dict().values(), strict=True)
    )


def test_a_checkpoint_without_a_later_field_is_read_with_its_default(tmp_path):
    checkpoint = CheckpointFile(tmp_path / "state.checkpoint")

    def stop(epoch, model):
        if epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        small_fit(checkpoint=checkpoint, after_epoch=stop)
    state = checkpoint.load()
    del state["recipe"]["posterior"], state["recipe"]["prior"]
    checkpoint.save(state)
    assert len(small_fit(checkpoint=checkpoint).history) == 3


def test_progress_says_how_far_it_is(capsys):
    fit(SMALL, pictures(), pictures(40, seed=1))
    shown = capsys.readouterr().err
    assert "3/3" in shown
    assert "validation ELBO" in shown
