import pytest
import torch

from priormatch.schedules import is_flat, learning_rates, move_averages


def test_the_decay_of_the_average_warms_up():
    averages, weights = [torch.zeros(1)], [torch.ones(1)]
    move_averages(0.999, averages, weights, 8)
    assert averages[0].item() == pytest.approx(0.5)  # 1 - 9 / 18
    move_averages(0.999, averages, weights, 1_000_000)
    assert averages[0].item() == pytest.approx(0.5005)


def test_a_learning_rate_rises_and_falls_to_zero_or_stays():
    def rates(kind, steps=30):
        optimiser = torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=1e-2)
        schedule = learning_rates(kind, optimiser, 1e-2, epochs=3, batches=10)
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


@pytest.mark.parametrize("kind", ["one cycle", "inverse sqrt", "constant"])
def test_a_training_of_one_step_has_a_learning_rate(kind):
    optimiser = torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=1e-2)
    learning_rates(kind, optimiser, 1e-2, epochs=1, batches=1)
    assert 0 < optimiser.param_groups[0]["lr"] <= 1e-2


def test_the_best_of_the_last_ten_losses_is_held_against_the_best_before_them():
    # A bad epoch is no end: the best one counts, wherever among the ten it is.
    losses = [9.0] * 5 + [6.0] + [9.0] * 4 + [8.0, 4.5] + [9.0] * 8
    assert is_flat(losses, 2.0)
    assert not is_flat(losses, 1.0)
    assert not is_flat(losses, 2.0, warm_up=1)
    assert is_flat([*losses, 9.0], 2.0, warm_up=1)
