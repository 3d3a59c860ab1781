"""The SDXL trainer on the card: every optimizer, precision and kind of loss. What a step costs, and
what is on the card when.
"""

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.pretend_gpu import card
from tests.pretend_gpu.on_card.bitsandbytes_kernels import replaced_kernels
from tests.pretend_gpu.on_card.watching import CARD, WatchingHost, count_bytes, free, list_state_tensors, watching
from tests.unit.sdxl import test_trainer
from tests.unit.sdxl.test_trainer import FAST
from trainers.dataset.bucket_config import BucketConfig
from trainers.dataset.config import DatasetConfig
from trainers.dataset.dataset import Dataset
from trainers.dataset.scan import scan_folder
from trainers.files.tensor_cache import TensorCache
from trainers.sdxl import prepare
from trainers.sdxl.config import SDXLConfig
from trainers.sdxl.family import SDXLFamily
from trainers.sdxl.model.sdxl_model import SDXLModel, build_model
from trainers.sdxl.streaming import list_blocks
from trainers.training import validation_plan
from trainers.training.block_streaming import count_streamed_bytes
from trainers.training.device import count_free_bytes, move_module
from trainers.training.events import Interrupted, Notice, SamplesDrawn, Validated
from trainers.training.float8_layers import keep_float8
from trainers.training.loop import train_lora
from trainers.training.optimizer_step import OptimizerStep
from trainers.training.plan import plan_training
from trainers.training.run_folder import RunFolder
from trainers.training.run_settings import RunSettings
from trainers.training.trained_lora import TrainedLora

Weights = dict[str, dict[str, Tensor]]
SMALL_BYTES = 16 * 1024  # of noise schedules, time steps and the like


float32_weights = test_trainer.weights


@pytest.fixture(scope="module")
def weights(float32_weights: Weights) -> Weights:
    """In half precision, as most files are."""
    return {part: {name: each.half() for name, each in of.items()} for part, of in float32_weights.items()}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    """Four images of 64 x 64: one with a mask, one that counts double, one with a long caption."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(4):
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"thing {number}" + " word" * 100 * (number == 3))
    mask = (rng.random((64, 64)) > 0.5).astype(np.uint8) * 255
    Image.fromarray(mask).save(folder / "0-masklabel.png")
    found = scan_folder(DatasetConfig(images=str(folder), trigger_word="zwx"))
    return replace(found, images=[replace(image, loss_weight=1.0 + (n == 1)) for n, image in enumerate(found.images)])


@pytest.fixture(scope="module", autouse=True)
def kernels_of_bitsandbytes() -> Iterator[None]:
    with replaced_kernels():
        yield


@pytest.fixture(scope="module")
def cache() -> TensorCache:
    """Latents and embeddings of all runs: they are computed once."""
    return TensorCache(None)


@pytest.fixture
def train(
    weights: Weights, dataset: Dataset, cache: TensorCache, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Callable[..., TrainedLora]]:
    """Train on the very tensors of `weights`, as the node does on the graph's. Afterwards they must
    be as they were, and the card empty.
    """
    hosts: list[WatchingHost] = []

    def run(
        host: WatchingHost,
        *,
        run_name: str = "run",
        cache: TensorCache = cache,
        base_dtype: str = "",
        in_float8: bool = False,
        **settings: Any,
    ) -> TrainedLora:
        hosts.append(host)
        folder = tmp_path / run_name
        folder.mkdir(exist_ok=True)
        config = SDXLConfig(**{**FAST, "max_train_steps": 3, **settings})
        plan = plan_training(dataset, RunSettings(config, BucketConfig(resolution=64, random_flip=True)))
        family = SDXLFamily(lambda _: build(weights, in_float8=in_float8), base_dtype=base_dtype)
        with watching(host):
            run_folder = RunFolder(folder, "x")
            return train_lora(family, plan, host, run_folder=run_folder, cache=cache, resume="auto")

    before = hash_weights(weights)
    yield run
    assert hash_weights(weights) == before
    for host in hosts:
        host.forget()
    assert free() == 0


def build(weights: Weights, *, in_float8: bool) -> SDXLModel:
    """The model on these very weights, or with its UNet in fp8, as ComfyUI may hold it."""
    unet = weights["unet"]
    if in_float8:
        unet = {name: weight.to(torch.float8_e4m3fn) for name, weight in unet.items()}
    model = build_model({**weights, "unet": dict(unet)}, name="tiny")
    keep_float8(model.unet)
    return model


def hash_weights(weights: Weights) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted((f"{part} {name}", each) for part, of in weights.items() for name, each in of.items()):
        assert tensor.device.type == "cpu"
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


CONVOLUTIONS = r".*(conv1|conv2|conv_shortcut|conv_in|conv_out|samplers\.0\.conv|to_q|proj_in|time_emb_proj)"
CASES: dict[str, dict[str, Any]] = {
    "AdamW in bf16": {"mixed_precision": "bf16"},
    "AdamW8bit": {"optimizer": "AdamW8bit", "optimizer_args": "min_8bit_size=1", "mixed_precision": "bf16"},
    "Lion": {"optimizer": "Lion", "lora_dropout": 0.1},
    "Adafactor": {"optimizer": "Adafactor"},
    "Prodigy": {"optimizer": "Prodigy", "learning_rate": 1.0},
    "float32": {"mixed_precision": "no", "target_modules": "attention"},
    "fp16": {"mixed_precision": "fp16", "train_batch_size": 1, "gradient_accumulation_steps": 4},
    "convolutions": {"target_modules": CONVOLUTIONS, "gradient_checkpointing": True},
    "prior": {"prior_loss_weight": 1.0, "noise_offset": 0.05, "min_snr_gamma": 5.0},
    "text encoders": {"train_text_encoders": True, "gradient_checkpointing": True},
    "EMA": {"ema_decay": 0.9},
    "streamed": {"blocks_to_swap": 1000},
    "half streamed": {"blocks_to_swap": 10, "train_text_encoders": True, "prior_loss_weight": 1.0},
}
WAITS_OF_OPTIMIZERS = {"Prodigy": 2}  # it finds its learning rate by the gradients


@pytest.mark.parametrize("name", CASES)
def test_a_step_waits_once_copies_little_and_leaves_nothing(name: str, weights: Weights, train):
    host = WatchingHost()
    train(host, **CASES[name])
    last = host.steps[-1]
    assert last.syncs <= WAITS_OF_OPTIMIZERS.get(name, 1), last.places
    assert last.copies <= count_expected_copies(host) and last.waiting_copies == 0, last.places
    assert host.steps[-2].live_bytes == last.live_bytes
    on_card = [*list_frozen(host), *list_trained(host), *list_state_tensors(host.optimizer)]
    on_card += host.loop._ema.averages if host.loop._ema else []
    assert all(tensor.device == CARD for tensor in on_card) == (host.model.streamer.num_blocks == 0)
    assert 0 <= last.live_bytes - count_bytes(on_card) - host.model.streamer.buffer_bytes < SMALL_BYTES
    require_unchanged(host, weights)


def count_expected_copies(host: WatchingHost) -> int:
    """At most two for each streamed block, and again with prior preservation; both ends of the
    order need none.
    """
    streamer, has_prior = host.model.streamer, bool(host.model.config.prior_loss_weight)
    return 8 + (2 + 3 * has_prior) * sum(len(block._pieces) for block in streamer._order)


def list_frozen(host: WatchingHost) -> list[Tensor]:
    """List the base model's weights that the steps use."""
    model = host.model.model
    assert model.vae is None
    parts = [part for part in (model.unet, model.text_encoder, model.text_encoder_2) if part is not None]
    assert len(parts) == (3 if host.model.config.train_text_encoders else 1)
    return [weight for part in parts for name, weight in part.state_dict().items() if "lora_" not in name]


def list_trained(host: WatchingHost) -> list[Tensor]:
    """List the adapters' weights in float32, and in half precision the copies in the layers."""
    groups = [group.weights for group in host.model.adapted.groups]
    in_half = [p for each in groups for p in each.parameters if p.dtype != torch.float32]
    return [*host.model.adapted.flat_weights, *in_half]


def require_unchanged(host: WatchingHost, weights: Weights) -> None:
    """The UNet's own weights on the card are those of the graph, in the dtype of computation."""
    for name, weight in host.model.model.unet.state_dict().items():
        if "lora_" not in name:
            assert torch.equal(weight.cpu(), weights["unet"][name.replace(".base_layer", "")].to(weight.dtype)), name


def test_an_overflow_in_fp16_changes_no_weight_and_halves_the_scale(train, monkeypatch):
    host, moved = WatchingHost(), []

    def overflow(step: OptimizerStep, loss: Tensor) -> None:
        backward(step, loss)
        if len(host.steps) == 1:
            step._groups[0].weights.flat.grad[0] = math.inf

    def update(step: OptimizerStep, number: int, loss: Tensor) -> float:
        before = [group.weights.flat.detach().clone() for group in step._groups]
        loss_value = original(step, number, loss)
        pairs = zip(before, [group.weights.flat for group in step._groups], strict=True)
        moved.append((not all(torch.equal(old, new) for old, new in pairs), step.state_dict()[1]["scale"]))
        return loss_value

    backward, original = OptimizerStep.backward, OptimizerStep.update
    monkeypatch.setattr(OptimizerStep, "backward", overflow)
    monkeypatch.setattr(OptimizerStep, "update", update)
    train(host, mixed_precision="fp16")
    assert moved == [(True, 2.0**16), (False, 2.0**15), (True, 2.0**15)]


def test_samples_validation_and_ema_leave_the_card_as_it_was(train, monkeypatch):
    monkeypatch.setattr(validation_plan, "MAX_SHARE", 100.0)  # the run is too short for any
    host = WatchingHost()
    settings = {"sample_every_n_steps": 1, "validate_every_n_steps": 1, "ema_decay": 0.9}
    train(host, **settings, sample_steps=2, sample_prompt="a thing", mixed_precision="bf16", train_batch_size=1)
    assert len(host.select(SamplesDrawn)) >= 3 and len(host.select(Validated)) == 4
    assert len({step.live_bytes for step in host.steps[1:]}) == 1
    assert host.model.model.vae.device.type == "cpu"


def test_encoders_leave_the_card_before_the_training(train):
    host = WatchingHost()
    train(host, cache=TensorCache(None), mixed_precision="bf16", max_train_steps=1)
    adapters = count_bytes(list_trained(host))
    unet = count_bytes(list_frozen(host))
    assert 0 <= host.live_bytes_at["training"] - unet - adapters < SMALL_BYTES


def test_an_encoder_with_nothing_to_do_stays_in_main_memory(train, monkeypatch):
    moved: list[tuple[str, torch.device]] = []

    def move(module: torch.nn.Module, device: torch.device, dtype: torch.dtype | None = None) -> torch.nn.Module:
        moved.append((type(module).__name__, device))
        return move_module(module, device, dtype)

    monkeypatch.setattr(prepare, "move_module", move)
    cache, settings = TensorCache(None), {"mixed_precision": "bf16", "max_train_steps": 1}
    train(WatchingHost(), cache=cache, run_name="first", **settings)
    encoders = {"AutoencoderKL", "CLIPTextModel", "CLIPTextModelWithProjection"}
    assert {name for name, device in moved if device == CARD} >= encoders
    moved.clear()
    train(WatchingHost(), cache=cache, run_name="second", **settings)
    assert encoders.isdisjoint(name for name, device in moved if device == CARD)


@pytest.mark.parametrize(
    "settings",
    [
        {"mixed_precision": "fp16", "ema_decay": 0.9, "lora_dropout": 0.1},
        {"optimizer": "Prodigy", "learning_rate": 1.0, "mixed_precision": "bf16"},
        CASES["AdamW8bit"],
    ],
    ids=["AdamW", "Prodigy", "AdamW8bit"],
)
def test_a_run_that_was_stopped_goes_on_to_the_same_lora(train, settings):
    whole = train(WatchingHost(), run_name="whole", **settings, save_dtype="fp32")
    stopped, again = WatchingHost(cancel_at_step=2), WatchingHost()
    with pytest.raises(Interrupted):
        train(stopped, run_name="parts", **settings, save_dtype="fp32")
    result = train(again, run_name="parts", **settings, save_dtype="fp32")
    assert [step.number for step in again.steps] == [3]
    assert all(tensor.device == CARD for tensor in list_state_tensors(again.optimizer))
    assert all(torch.equal(whole.state_dict[name], tensor) for name, tensor in result.state_dict.items())


def test_streamed_weights_have_two_buffers_on_the_card_and_are_copied_from_pinned_memory(train):
    resident, streamed = WatchingHost(), WatchingHost()
    expected = train(resident, run_name="resident", mixed_precision="bf16", save_dtype="fp32", blocks_to_swap=0)
    everything = count_bytes(list_frozen(resident))
    result = train(streamed, run_name="streamed", mixed_precision="bf16", save_dtype="fp32", blocks_to_swap=1000)
    assert all(torch.equal(expected.state_dict[name], tensor) for name, tensor in result.state_dict.items())
    model = streamed.model
    sizes = [count_streamed_bytes(block, torch.bfloat16) for block in list_blocks(model.model.unet)]
    assert model.streamer.buffer_bytes == 2 * max(sizes)
    assert count_bytes(list_frozen(streamed)) + model.streamer.buffer_bytes < 0.6 * everything
    assert max(step.peak_bytes for step in streamed.steps) < max(step.peak_bytes for step in resident.steps)
    assert all(piece.is_pinned() for block in model.streamer._order for piece in block._pieces)
    assert len(model.streamer._order) == len(sizes)


@pytest.mark.parametrize("bits", [{"base_dtype": "fp8"}, {"base_dtype": "int8"}, {"in_float8": True}], ids=str)
def test_a_base_of_fewer_bits_keeps_them_on_the_card_and_streams_to_the_same_lora(train, bits: dict[str, Any]):
    resident, streamed, usual = WatchingHost(), WatchingHost(), WatchingHost()
    settings = {"mixed_precision": "bf16", "save_dtype": "fp32", "gradient_checkpointing": True}
    expected = train(resident, run_name="resident", blocks_to_swap=0, **bits, **settings)
    last, frozen = resident.steps[-1], list_frozen(resident)
    assert last.syncs <= 1 and last.copies <= 8 and last.waiting_copies == 0, last.places
    assert all(weight.device == CARD for weight in frozen) and resident.steps[-2].live_bytes == last.live_bytes
    result = train(streamed, run_name="streamed", blocks_to_swap=1000, **bits, **settings)
    assert result.losses == expected.losses
    assert all(torch.equal(expected.state_dict[name], tensor) for name, tensor in result.state_dict.items())
    last = streamed.steps[-1]
    assert last.copies <= count_expected_copies(streamed) and last.waiting_copies == 0, last.places
    train(usual, run_name="usual", blocks_to_swap=0, **settings)
    assert count_bytes(frozen) < 0.85 * count_bytes(list_frozen(usual))  # base_dtype leaves convolutions as they are


def test_blocks_are_streamed_by_what_is_free_on_the_card(train, monkeypatch):
    roomy, full = WatchingHost(), WatchingHost()
    train(roomy, run_name="roomy", mixed_precision="bf16", max_train_steps=1)
    assert roomy.model.streamer.num_blocks == 0
    assert count_free_bytes(CARD) == card.total_bytes() - card.live_bytes()
    monkeypatch.setattr(prepare, "count_free_bytes", lambda device: 8 * 2**20 if device == CARD else None)
    train(full, run_name="full", mixed_precision="bf16", max_train_steps=1)
    assert full.model.streamer.num_blocks > 0
    (notice,) = (event.message for event in full.select(Notice) if "blocks stay in main memory" in event.message)
    assert notice.startswith(f"the weights of {full.model.streamer.num_blocks} of 32 blocks")


BIG = {"mixed_precision": "bf16", "train_batch_size": 4, "save_dtype": "fp32"}


@pytest.fixture
def need_bytes(train) -> Iterator[int]:
    """What the big run needs at its peak. Afterwards the card has its size again."""
    host = WatchingHost()
    train(host, run_name="roomy", **BIG)
    host.forget()
    assert free() == 0
    yield max(step.peak_bytes for step in host.steps)
    card.set_total_bytes(card.DEFAULT_BYTES)


def test_a_card_that_is_too_small_is_free_again_and_a_larger_one_goes_on(train, need_bytes):
    tight, again = WatchingHost(), WatchingHost()
    card.set_total_bytes(need_bytes - 2**20)
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        train(tight, run_name="tight", **BIG)
    tight.forget()
    assert free() == 0
    card.set_total_bytes(card.DEFAULT_BYTES)
    train(again, run_name="tight", **BIG)
    assert len(tight.steps) + len(again.steps) == 3


def test_with_step_down_on_oom_the_run_ends_on_a_card_that_is_too_small(train, need_bytes):
    host = WatchingHost()
    card.set_total_bytes(need_bytes - 2**20)
    train(host, run_name="tight", **BIG, step_down_on_oom=True)
    notices = [event.message for event in host.select(Notice) if event.message.startswith("memory ran out")]
    assert notices == ["memory ran out: gradient_checkpointing is on from now on (slower). The result is the same"]
    assert host.steps[-1].peak_bytes < need_bytes
