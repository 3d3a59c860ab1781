"""Which samples prior preservation looks at: a fifth, drawn from seed, step and item alone."""

import pytest

from tests.unit.sdxl import test_trainer
from tests.unit.sdxl.test_trainer import train
from trainers.sdxl import prepared_model
from trainers.training.prior_preservation import choose_rows

dataset, weights = test_trainer.dataset, test_trainer.weights


class Item:
    def __init__(self, index: int) -> None:
        self.index = index


@pytest.fixture(autouse=True)
def usual_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainers.training.prior_preservation.PRIOR_SHARE", 0.2)


def choose(items, *, seed: int = 0, step: int) -> list[int]:
    return choose_rows(items, seed=seed, step=step)


def test_a_fifth_of_the_samples_is_chosen_and_each_image_sometimes():
    items = [Item(index) for index in range(10)]
    chosen = [row for step in range(1000) for row in choose(items, step=step)]
    assert 0.19 < len(chosen) / 10_000 < 0.21
    assert min(chosen.count(row) for row in range(10)) > 150


def test_the_choice_depends_on_seed_step_and_item_and_not_on_the_batch():
    items = [Item(index) for index in range(40)]
    together = {items[row].index for row in choose(items, step=7)}
    alone = {item.index for item in items if choose([item], step=7)}
    assert together == alone
    assert together != {items[row].index for row in choose(items, step=8)}
    assert together != {items[row].index for row in choose(items, step=7, seed=1)}


def test_only_the_chosen_samples_are_predicted_for_class_prompts(weights, dataset, tmp_path, monkeypatch):
    seen: list[tuple[int, int]] = []
    real_prior, real_losses = prepared_model.distillation_losses, prepared_model.weighted_losses

    def count_prior(unet, batch, base_pred, objective):
        seen.append((len(batch.latents), len(base_pred)))
        return real_prior(unet, batch, base_pred, objective)

    batches: list[int] = []

    def count_all(unet, batch, objective):
        batches.append(len(batch.latents))
        return real_losses(unet, batch, objective)

    monkeypatch.setattr(prepared_model, "distillation_losses", count_prior)
    monkeypatch.setattr(prepared_model, "weighted_losses", count_all)
    train(
        weights,
        dataset,
        tmp_path,
        prior_loss_weight=1.0,
        class_prompt="a thing",
        max_train_steps=10,
        train_batch_size=4,
        validate_every_n_steps=-1,
    )
    expected = [len(choose([Item(index) for index in range(4)], step=step)) for step in range(1, 11)]
    assert [number for number, _ in seen] == [number for number in expected if number]
    assert all(number == of_base for number, of_base in seen)
    assert batches == [4] * 10 and sum(expected) < 20
