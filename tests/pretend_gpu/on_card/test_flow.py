"""The flow trainer on the card, with the toy model."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tests.pretend_gpu import card
from tests.pretend_gpu.on_card.watching import CARD, WatchingHost, count_bytes, free, list_state_tensors, watching
from tests.unit.flow.test_training import USUAL
from tests.unit.flow.toy_base import ToyBase
from trainers.dataset.bucket_config import BucketConfig
from trainers.dataset.config import DatasetConfig
from trainers.dataset.dataset import Dataset
from trainers.dataset.scan import scan_folder
from trainers.files.tensor_cache import TensorCache
from trainers.flow.config import FlowConfig
from trainers.flow.family import FlowFamily
from trainers.flow.targets import list_blocks
from trainers.training import validation_plan
from trainers.training.block_streaming import count_streamed_bytes
from trainers.training.events import Interrupted, Notice, Validated
from trainers.training.loop import train_lora
from trainers.training.plan import plan_training
from trainers.training.run_folder import RunFolder
from trainers.training.run_settings import RunSettings
from trainers.training.trained_lora import TrainedLora

SMALL_BYTES = TOO_LITTLE = 1024
MAX_STREAMED_COPIES = 64  # two blocks for each of four texts, three times with prior preservation


class BaseOnCard(ToyBase):
    """The toy model as the graph's: its weights come to the card, those of blocks when used."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = {name: weight.clone() for name, weight in self.network.state_dict().items()}

    def load_network(self, *, without: Sequence[nn.Module]) -> None:
        left_out = {module for block in without for module in block.modules()}
        for module in self.network.modules():
            for name, weight in module._parameters.items():
                if module not in left_out and weight is not None and not weight.requires_grad:
                    module._parameters[name] = nn.Parameter(weight.to(CARD), requires_grad=False)

    def require_unchanged(self) -> None:
        own = {name.replace(".base_layer", ""): weight for name, weight in self.network.state_dict().items()}
        assert all(torch.equal(own[name].cpu(), weight) for name, weight in self.weights.items())


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Texts of different lengths; one image with a mask; all count double."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for number, caption in enumerate(["zwx one", "zwx two of them", "zwx", "zwx four"]):
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(caption)
    Image.fromarray((rng.random((64, 64)) > 0.5).astype(np.uint8) * 255).save(folder / "0-masklabel.png")
    return scan_folder(DatasetConfig(images=str(folder), trigger_word="zwx", loss_weight=2.0))


@pytest.fixture
def train(dataset: Dataset, tmp_path: Path) -> Iterator[Callable[..., TrainedLora]]:
    """Afterwards the base model must be as it was, and the card empty."""
    hosts, bases = [], []

    def run(host: WatchingHost, *, run_name: str = "run", **settings: Any) -> TrainedLora:
        base = BaseOnCard()
        hosts.append(host)
        bases.append(base)
        config = FlowConfig(**{**USUAL, "max_train_steps": 4, "train_batch_size": 4, **settings})
        plan = plan_training(dataset, RunSettings(config, BucketConfig(resolution=64, bucket_reso_steps=32)))
        (tmp_path / run_name).mkdir(exist_ok=True)
        with watching(host):
            run_folder = RunFolder(tmp_path / run_name, "toy")
            return train_lora(FlowFamily(lambda _: base), plan, host, run_folder=run_folder, cache=TensorCache(None))

    yield run
    for base in bases:
        base.require_unchanged()
    for host in hosts:
        host.forget()
    base = None
    bases.clear()
    assert free() == 0


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "checkpointing": {"gradient_checkpointing": True},
    "prior": {"prior_loss_weight": 1.0, "lora_dropout": 0.1, "noise_offset": 0.1},
    "accumulation": {"train_batch_size": 1, "gradient_accumulation_steps": 4},
    "EMA": {"ema_decay": 0.9, "timestep_sampling": "logit_normal", "loss_weighting": "min_snr"},
    "Prodigy": {"optimizer": "Prodigy", "learning_rate": 1.0},
    "one streamed": {"blocks_to_swap": 1},
    "streamed": {"blocks_to_swap": 2, "prior_loss_weight": 1.0},
}


@pytest.mark.parametrize("name", CASES)
def test_a_step_waits_once_copies_little_and_leaves_nothing(name, train):
    host = WatchingHost()
    train(host, **CASES[name])
    last = host.steps[-1]
    assert last.syncs <= (2 if name == "Prodigy" else 1), last.places
    assert last.copies <= (8 if "blocks_to_swap" not in CASES[name] else MAX_STREAMED_COPIES), last.places
    assert last.waiting_copies == 0, last.places
    assert host.steps[-2].live_bytes == last.live_bytes
    on_card = [*host.model.base.network.state_dict().values(), *list_state_tensors(host.optimizer)]
    on_card += host.loop._ema.averages if host.loop._ema else []
    if "blocks_to_swap" not in CASES[name]:
        assert all(tensor.device == CARD for tensor in on_card)
    buffer_bytes = host.model.streamer.buffer_bytes
    assert 0 <= last.live_bytes - count_bytes(on_card) - buffer_bytes < SMALL_BYTES


def test_streamed_blocks_are_on_the_card_only_while_they_are_used(train):
    resident, streamed = WatchingHost(), WatchingHost()
    whole = train(resident, run_name="resident")
    resident.forget()
    first_base = free()  # which the fixture keeps to look at
    parts = train(streamed, run_name="streamed", blocks_to_swap=2)
    assert parts.losses == whole.losses
    model = streamed.model
    blocks = list(list_blocks(model.base.network).values())
    assert model.streamer.buffer_bytes == 2 * max(map(count_streamed_bytes, blocks))
    saved = resident.steps[-1].live_bytes - (streamed.steps[-1].live_bytes - first_base)
    assert saved == sum(map(count_frozen_bytes, blocks)) - model.streamer.buffer_bytes
    assert streamed.steps[-1].syncs == 1


def count_frozen_bytes(block: torch.nn.Module) -> int:
    return sum(weight.untyped_storage().nbytes() for weight in block.parameters() if not weight.requires_grad)


def test_samples_and_validation_leave_the_card_as_it_was(train, monkeypatch):
    monkeypatch.setattr(validation_plan, "MAX_SHARE", 100.0)  # the run is too short for any
    host = WatchingHost()
    settings = {"sample_every_n_steps": 1, "sample_steps": 2, "sample_prompt": "zwx", "validate_every_n_steps": 1}
    train(host, **settings)
    assert host.select(Validated)
    assert len({step.live_bytes for step in host.steps[1:]}) == 1


BIG = {"gradient_checkpointing": False}


@pytest.fixture
def need_bytes(train) -> Iterator[int]:
    """What the big run needs at its peak, and what the fixture keeps on the card. Afterwards the
    card has its size again.
    """
    host = WatchingHost()
    train(host, run_name="roomy", **BIG)
    host.forget()
    yield max(step.peak_bytes for step in host.steps) + free()
    card.set_total_bytes(card.DEFAULT_BYTES)


def test_a_card_that_is_too_small_is_free_again_and_a_larger_one_goes_on(train, need_bytes):
    tight, again, before = WatchingHost(), WatchingHost(), free()
    card.set_total_bytes(need_bytes - TOO_LITTLE)
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        train(tight, run_name="tight", **BIG)
    tight.forget()
    card.set_total_bytes(card.DEFAULT_BYTES)
    train(again, run_name="tight", **BIG)
    assert len(tight.steps) + len(again.steps) == 4
    again.forget()
    assert free() == 3 * before  # of three runs the fixture keeps the base model


def test_with_step_down_on_oom_the_run_ends_on_a_card_that_is_too_small(train, need_bytes):
    host = WatchingHost()
    card.set_total_bytes(need_bytes - TOO_LITTLE)
    train(host, run_name="tight", **BIG, step_down_on_oom=True)
    notices = [event.message for event in host.select(Notice) if event.message.startswith("memory ran out")]
    assert notices == ["memory ran out: gradient_checkpointing is on from now on (slower). The result is the same"]


def test_a_run_that_was_stopped_goes_on_to_the_same_lora(train):
    settings = {"ema_decay": 0.9, "lora_dropout": 0.1}
    whole = train(WatchingHost(), run_name="whole", **settings)
    with pytest.raises(Interrupted):
        train(WatchingHost(cancel_at_step=2), run_name="parts", **settings)
    again = WatchingHost()
    result = train(again, run_name="parts", **settings)
    assert [step.number for step in again.steps] == [3, 4]
    assert all(torch.equal(whole.state_dict[name], tensor) for name, tensor in result.state_dict.items())
