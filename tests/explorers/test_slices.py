import math
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_world import in_place_of_mnist, seeded

from priormatch.data import Digits, Source, binarize_once
from priormatch.distributions import AggregatedPosterior
from priormatch.divergences import kl_from_prior_per_dimension
from priormatch.estimate import Estimate
from priormatch.experiments import store, study
from priormatch.experiments.store import FallbackModelError, StaleModelError
from priormatch.experiments.study import Trainings
from priormatch.experiments.table import Table
from priormatch.explorers import slices
from priormatch.models import encode
from priormatch.recipe import Recipe, build


@pytest.fixture
def small_study(tmp_path) -> tuple[Table, Path]:
    """A table with rows of a study, and codes of two of its models with three dimensions."""
    shown = {**asdict(study.BASE), "stage": "converged"}
    rows, tensors = [], {"labels": torch.arange(4, dtype=torch.uint8)}
    others = [{"stage": "equal epochs"}, {"encoder_depth": 3}, {"encoder_width": 100}, {"beta": 3}]
    others += [{"kl_warm_up": 15}]
    for seed, change in enumerate([{}, {}, {}, *others]):
        row = {**shown, **change, "latent_dimension": 3, "seed": seed}
        for place, name in enumerate(slices.MEASURES):
            row |= {name: place + seed / 8, f"{name}_error": (place + 1) / 64}
        row |= {"in_sample_kl_floor": 0.25, "active_units": 2, "python": "3.11"}
        row |= {"rate_of_dimensions": "0.5 3.25 1.125", "kl_of_dimensions": "0.1 0.3 -0.2"}
        rows.append(row)
        if seed != 1:  # the model of one row has not been looked at
            tensors |= {
                f"3-{seed}.codes": seed + torch.arange(12).reshape(4, 3).half(),
                f"3-{seed}.rate": torch.tensor([0.5, 3.25, 1.125]),
                f"3-{seed}.rate_error": torch.tensor([0.015, 0.03, 0.02]),
                f"3-{seed}.marginal_kl_error": torch.tensor([0.15, 0.35, 0.25]),
            }
    file = tmp_path / "codes.safetensors"
    table = replace(study.TABLE, file=tmp_path / "study.csv")
    table.write(pd.DataFrame(rows))
    save_file(tensors, file)
    return table, file


def test_trainings_are_rows_of_the_table_with_their_codes_sorted_by_rate(small_study):
    trainings = slices.trainings(*small_study)
    assert list(trainings) == [(3, 0), (3, 2)]
    one = trainings[3, 2]
    for place, (name, bound) in enumerate(slices.MEASURES.items()):
        floor = 0.25 if name == "in_sample_kl" else None
        assert one.measures[name] == Estimate(place + 0.25, (place + 1) / 64, bound, floor)
    assert one.active_units == 2
    assert list(map(str, one.rates)) == ["3.250 ± 0.030", "1.125 ± 0.020", "0.500 ± 0.015"]
    assert list(map(str, one.marginal_kls)) == ["0.30 ± 0.35", "-0.20 ± 0.25", "0.10 ± 0.15"]
    assert {kl.bound for kl in one.marginal_kls} == {"lower"}
    assert one.codes[1].tolist() == [6, 7, 5]


def test_a_page_reads_the_trainings_of_one_number_of_dimensions(small_study):
    tensors = slices.packed(3, *small_study)
    assert tensors["seeds"].tolist() == [0, 2]
    assert tensors["dimensions"].tolist() == [1, 2, 3]
    assert tensors["labels"].tolist() == [0, 1, 2, 3]
    assert tensors["codes"].dtype == torch.float16
    assert tensors["codes"][1, :, 1].tolist() == [6, 7, 5]
    assert tensors["rates"][1, 0].tolist() == pytest.approx([3.25, 0.03])
    assert tensors["marginal_kls"][0, 1].tolist() == pytest.approx([-0.2, 0.25])
    assert tensors["total_correlation"].tolist() == [[4.0, 5 / 64], [4.25, 5 / 64]]
    assert tensors["floor"].tolist() == [0.25, 0.25]
    assert tensors["active_units"].tolist() == [2, 2]
    assert slices.packed(5, *small_study) == {}
    some = slices.pack({2: slices.trainings(*small_study)[3, 2]}, (3, 1), tensors["labels"])
    assert some["codes"][0, :, 1].tolist() == [5, 6]
    assert some["rates"][0].tolist() == [tensors["rates"][1, place].tolist() for place in (2, 0)]


def test_codes_of_other_models_than_the_tables_are_refused(small_study):
    table, file = small_study
    stored = load_file(file)
    stored["3-2.rate"] *= 1.01
    save_file(stored, file)
    with pytest.raises(StaleModelError, match=r"explorers\.slices"):
        slices.trainings(table, file)


@pytest.fixture
def small_digits(monkeypatch):
    """Random images in place of MNIST's."""
    generator = seeded(0)
    parts = {
        part: Digits(torch.rand((size, 784), generator=generator), torch.arange(size) % 10)
        for part, size in {"train": 400, "test": 100}.items()
    }
    with in_place_of_mnist(monkeypatch, parts.get, slices):
        yield parts


def test_a_snapshot_of_a_model(small_digits):
    vae = build(Recipe(latent_dimension=3, encoder_width=20, decoder_width=8)).eval()
    snapshot = slices.snapshot(vae)
    train, test = (
        encode(vae, binarize_once(small_digits[part].images)) for part in ("train", "test")
    )
    noise = torch.randn(test[0].shape, generator=seeded(0))
    codes = test[0] + test[1] * noise
    torch.testing.assert_close(snapshot["codes"], codes[::20].half(), atol=2e-3, rtol=1e-3)
    kl = kl_from_prior_per_dimension(train[0], 2 * train[1].log())
    torch.testing.assert_close(snapshot["rate"], kl.mean(0))
    torch.testing.assert_close(snapshot["rate_error"], kl.std(0) / math.sqrt(400))
    mixture = AggregatedPosterior(*train)
    for j, error in enumerate(snapshot["marginal_kl_error"].tolist()):
        gain = mixture.marginal(j).log_prob(codes[:, [j]]) + 0.5 * codes[:, j] ** 2
        assert error == pytest.approx((gain.std() / 10).item(), rel=1e-3)


def test_snapshots_are_stored_of_the_models_of_the_table_alone(
    small_digits, small_study, tmp_path, monkeypatch
):
    shown = [Recipe(latent_dimension=3, encoder_width=8, seed=seed) for seed in (0, 3)]
    models = {recipe.seed: build(recipe) for recipe in shown}
    monkeypatch.setattr(store, "source", lambda: Source.FULL)
    monkeypatch.setattr(
        study,
        "train_or_load",
        lambda recipe, _: Trainings(models[recipe.seed], models[recipe.seed], []),
    )
    file = tmp_path / "snapshots.safetensors"
    slices.save(shown, small_study[0], tmp_path, file)
    stored = load_file(file)
    assert stored["labels"].tolist() == [0] * 5
    snapshot = slices.snapshot(models[0])
    assert {f"3-0.{name}" for name in snapshot} | {"labels"} == set(stored)
    for name, values in snapshot.items():
        torch.testing.assert_close(stored[f"3-0.{name}"], values)
    monkeypatch.setattr(store, "source", lambda: Source.FALLBACK)
    with pytest.raises(FallbackModelError):
        slices.save(shown, small_study[0], tmp_path, file)


def test_snapshots_of_the_models_of_the_table_are_kept_and_others_made_again(
    small_digits, small_study, tmp_path, monkeypatch
):
    table, file = small_study
    before = load_file(file)
    stale = {"3-2.rate": 1.01 * before["3-2.rate"]}
    save_file(before | stale, file)
    shown = [Recipe(latent_dimension=3, encoder_width=8, seed=seed) for seed in range(3)]
    looked_at = []

    def train_or_load(recipe, folder):
        looked_at.append(recipe.seed)
        model = build(recipe).eval()
        return Trainings(model, model, [])

    monkeypatch.setattr(store, "source", lambda: Source.FULL)
    monkeypatch.setattr(study, "train_or_load", train_or_load)
    slices.save(shown, table, tmp_path, file)
    assert looked_at == [1, 2]
    after = load_file(file)
    for name, values in after.items():
        if name.startswith("3-0."):
            torch.testing.assert_close(values, before[name], rtol=0, atol=0)
    assert not torch.equal(after["3-2.codes"], before["3-2.codes"])


def test_the_recipes_that_are_shown_differ_in_dimensions_and_seed_alone():
    found = slices.recipes()
    assert {recipe.seed for recipe in found} == set(range(5))
    assert {recipe.latent_dimension for recipe in found} <= set(slices.DIMENSIONS)
    base = replace(found[0], latent_dimension=2, seed=0)
    assert {replace(recipe, latent_dimension=2, seed=0) for recipe in found} == {base}
    assert (base.encoder_depth, base.encoder_width, base.beta) == (2, 500, 1.0)


def test_the_stored_codes_are_of_the_tables_models():
    for (latent, _), one in slices.trainings().items():
        assert one.codes.shape == (len(slices.labels()), latent)
        rates = [rate.value for rate in one.rates]
        assert rates == sorted(rates, reverse=True)
        assert sum(rates) == pytest.approx(one.measures["train_rate"].value, rel=1e-3)
        sum_of_kls = sum(kl.value for kl in one.marginal_kls)
        assert sum_of_kls == pytest.approx(one.measures["dimension_wise_kl"].value, abs=1e-3)
