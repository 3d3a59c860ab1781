"""Weights of the UNet's blocks in main memory: the LoRA is the same bit for bit."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from benchmarks.memory_estimate import SDXL_UNET, measure_activations, meta_unet
from tests.unit.sdxl import test_trainer
from tests.unit.sdxl.test_trainer import FAST, RecordingHost, build_model
from trainers.check.memory_estimate import FRAGMENTATION, MemoryEstimate
from trainers.check.smaller_settings import smaller_settings
from trainers.dataset.bucket_config import BucketConfig
from trainers.dataset.dataset import Dataset
from trainers.embedded_base.sdxl.architecture import build_unet
from trainers.files.tensor_cache import TensorCache
from trainers.sdxl.config import SDXLConfig
from trainers.sdxl.family import SDXLFamily
from trainers.sdxl.memory import estimate_memory
from trainers.sdxl.streaming import choose_streamed, list_blocks, resolve_blocks_to_swap
from trainers.training.block_streaming import BlockStreamer, count_streamed_bytes
from trainers.training.config import AUTO_BLOCKS
from trainers.training.events import Notice, SamplesDrawn
from trainers.training.loop import TrainingLoop, train_lora
from trainers.training.plan import plan_training
from trainers.training.presets import GOALS, MEMORY_PRESETS, describe, resolve
from trainers.training.run_folder import RunFolder
from trainers.training.run_settings import RunSettings
from trainers.training.schedule import Step
from trainers.training.trained_lora import TrainedLora
from trainers.wording import GIBIBYTE

Weights = dict[str, dict[str, torch.Tensor]]

dataset = test_trainer.dataset
weights = test_trainer.weights


@pytest.fixture
def train(dataset: Dataset, weights: Weights, tmp_path) -> Callable[..., tuple[TrainedLora, RecordingHost]]:
    """Train on the very tensors of `weights`, which must be as they were afterwards."""

    def run(*, base_dtype: str = "", **settings: Any) -> tuple[TrainedLora, RecordingHost]:
        before = {part: {name: each.clone() for name, each in of.items()} for part, of in weights.items()}
        config = SDXLConfig(**{**FAST, "max_train_steps": 3, "save_dtype": "fp32", **settings})
        plan = plan_training(dataset, RunSettings(config, BucketConfig(resolution=64, random_flip=True)))
        host = RecordingHost()
        family = SDXLFamily(
            lambda _: build_model({part: dict(each) for part, each in weights.items()}, name="tiny"),
            base_dtype=base_dtype,
        )
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        result = train_lora(family, plan, host, run_folder=RunFolder(folder, "x"), cache=TensorCache(None))
        assert all(torch.equal(each, before[part][name]) for part, of in weights.items() for name, each in of.items())
        return result, host

    return run


CASES: dict[str, dict[str, Any]] = {
    "checkpointing": {"gradient_checkpointing": True, "lora_dropout": 0.1},
    "text encoders": {"train_text_encoders": True},
    "prior": {"prior_loss_weight": 1.0, "gradient_accumulation_steps": 2, "train_batch_size": 1},
    "samples": {"sample_every_n_steps": 1, "sample_steps": 2, "validate_every_n_steps": 1, "ema_decay": 0.9},
    "bf16": {"mixed_precision": "bf16", "train_text_encoders": True, "prior_loss_weight": 0.5},
    "fp8": {"base_dtype": "fp8", "mixed_precision": "bf16"},
    "nf4": {"base_dtype": "nf4"},
    "convolutions": {"target_modules": r".*(conv1|conv2|conv_shortcut|to_q|time_emb_proj)"},
}


@pytest.mark.parametrize("name", CASES)
def test_the_lora_is_the_same_bit_for_bit(train, name: str):
    resident, _ = train(blocks_to_swap=0, **CASES[name])
    for number in (3, 1000):
        streamed, host = train(blocks_to_swap=number, **CASES[name])
        assert streamed.losses == resident.losses
        assert streamed.state_dict.keys() == resident.state_dict.keys()
        assert all(torch.equal(streamed.state_dict[key], each) for key, each in resident.state_dict.items())
        assert any("blocks stay in main memory" in event.message for event in host.select(Notice))
        assert bool(host.select(SamplesDrawn)) == (name == "samples")


def test_more_weights_go_to_main_memory_when_memory_runs_out(train, monkeypatch: pytest.MonkeyPatch):
    """As the last step: half of them, then half of the rest, until none is left."""
    settings = {"gradient_checkpointing": True, "train_batch_size": 1, "step_down_on_oom": True}
    expected, _ = train(**settings, blocks_to_swap=0)
    accumulate, num_errors = TrainingLoop._accumulate, []

    def fail(loop: TrainingLoop, step: Step) -> torch.Tensor:
        loss = accumulate(loop, step)
        if step.number == 2 and len(num_errors) < 7:
            num_errors.append(1)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loss

    monkeypatch.setattr(TrainingLoop, "_accumulate", fail)
    with pytest.raises(torch.OutOfMemoryError):
        train(**settings)
    assert len(num_errors) == 7
    num_errors[:] = [1] * 5
    result, host = train(**settings)
    messages = [event.message for event in host.select(Notice) if event.message.startswith("memory ran out")]
    assert messages == [
        f"memory ran out: the weights of {number} blocks stay in main memory from now on (slower). The result is the "
        "same"
        for number in (16, 24)
    ]
    assert result.losses == expected.losses
    assert all(torch.equal(result.state_dict[key], each) for key, each in expected.state_dict.items())


def test_the_blocks_are_what_diffusers_computes_again_and_have_nearly_all_weights():
    unet = build_unet().requires_grad_(False)
    blocks = list_blocks(unet)
    assert len(blocks) == 32
    assert choose_streamed(unet, 1000) == blocks and choose_streamed(unet, 0) == []
    assert sum(map(count_streamed_bytes, blocks)) > 0.75 * sum(4 * weight.numel() for weight in unet.parameters())


@pytest.mark.parametrize(
    ("free_bytes", "number"), [(None, 0), (1050, 0), (1049, 1), (1000, 5), (950, 10), (0, 32)], ids=str
)
def test_as_few_blocks_as_fit_are_streamed(free_bytes: int | None, number: int):
    unet = build_unet()

    def estimate(config: SDXLConfig) -> MemoryEstimate:
        return MemoryEstimate(round(1000 - 10 * config.blocks_to_swap), 0, 0, 0)

    found = resolve_blocks_to_swap(SDXLConfig(), unet, estimate, free_bytes=free_bytes)
    assert found.blocks_to_swap == number
    given = resolve_blocks_to_swap(SDXLConfig(blocks_to_swap=3), unet, estimate, free_bytes=1)
    assert given.blocks_to_swap == 3 and FRAGMENTATION == 0.05


@pytest.fixture(scope="module")
def sdxl() -> UNet2DConditionModel:
    with torch.device("meta"):
        return UNet2DConditionModel(**SDXL_UNET)


def estimate_sdxl(unet: UNet2DConditionModel, config: SDXLConfig) -> MemoryEstimate:
    return estimate_memory(unet, config, size_hw=(1024, 1024), precision="bf16")


@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize("memory", ["4 GB", "6 GB"])
def test_the_small_presets_fit_with_a_tenth_to_spare(sdxl: UNet2DConditionModel, goal: str, memory: str):
    config = resolve(SDXLConfig, {"blocks_to_swap": AUTO_BLOCKS}, goal=goal, memory=memory, num_images=20).training
    assert (config.train_batch_size, config.gradient_accumulation_steps, config.optimizer) == (1, 2, "AdamW8bit")
    assert 0 < config.blocks_to_swap == MEMORY_PRESETS[memory].blocks_to_swap <= len(list_blocks(sdxl)) == 86
    assert estimate_sdxl(sdxl, config).total_bytes <= 0.9 * int(memory.split()[0]) * GIBIBYTE
    assert f"{config.blocks_to_swap} blocks in main memory" in MEMORY_PRESETS[memory].text()


def test_a_given_number_stays_and_larger_presets_leave_it_to_the_free_memory():
    given = resolve(SDXLConfig, {"blocks_to_swap": 5}, goal="object", memory="4 GB", num_images=20)
    assert given.training.blocks_to_swap == 5 and "5 blocks in main memory" in describe(given)
    assert resolve(SDXLConfig, {}, goal="object", memory="8 GB", num_images=20).training.blocks_to_swap == AUTO_BLOCKS


def test_the_estimate_counts_the_resident_weights_and_two_buffers(sdxl: UNet2DConditionModel):
    whole, swapped = (estimate_sdxl(sdxl, SDXLConfig(blocks_to_swap=number)) for number in (0, 1000))
    sizes = [2 * sum(weight.numel() for weight in block.parameters()) for block in list_blocks(sdxl)]
    assert whole.weights_bytes - swapped.weights_bytes == sum(sizes) - 2 * max(sizes)
    assert swapped.weights_bytes < 0.4 * GIBIBYTE < 4.7 * GIBIBYTE < whole.weights_bytes
    assert swapped.activations_bytes == whole.activations_bytes
    plain = estimate_sdxl(sdxl, SDXLConfig(blocks_to_swap=1000, gradient_checkpointing=False))
    assert plain == swapped  # it computes activations again in any case


def test_all_blocks_are_the_remedy_for_a_number_that_is_too_small(sdxl: UNet2DConditionModel):
    def estimate(config: SDXLConfig, size_hw: tuple[int, int]) -> MemoryEstimate:
        return estimate_memory(sdxl, config, size_hw=size_hw, precision="bf16")

    config = SDXLConfig(blocks_to_swap=36, optimizer="AdamW8bit")
    steps = smaller_settings(config, (1024, 1024), estimate, works=lambda _: True)
    assert steps[0][0] == "blocks_to_swap 1000, which is all"
    assert steps[0][1].training_bytes < estimate(config, (1024, 1024)).training_bytes
    free_bytes = 4 * GIBIBYTE
    chosen = resolve_blocks_to_swap(
        SDXLConfig(), sdxl, lambda changed: estimate(changed, (1024, 1024)), free_bytes=free_bytes
    )
    assert 20 < chosen.blocks_to_swap < 70
    assert 1.05 * estimate(chosen, (1024, 1024)).training_bytes <= free_bytes
    one_less = replace(chosen, blocks_to_swap=chosen.blocks_to_swap - 1)
    assert 1.05 * estimate(one_less, (1024, 1024)).training_bytes > free_bytes


def test_the_estimate_of_streamed_weights_is_within_a_twentieth_of_what_the_real_unet_holds():
    """At full size: activations and both buffers."""
    config = SDXLConfig(blocks_to_swap=1000)
    unet = meta_unet(SDXL_UNET, config, precision="bf16")
    estimate = estimate_sdxl(unet, config)
    resident = sum(weight.numel() for name, weight in unet.named_parameters() if "lora_" not in name)
    streamer = BlockStreamer(torch.device("meta"))
    for block in list_blocks(unet):
        resident -= sum(weight.numel() for name, weight in block.named_parameters() if "lora_" not in name)
        streamer.stream(block)
    measured = measure_activations(unet, size_hw=(1024, 1024), batch_size=1, precision="bf16")
    assert streamer.buffer_bytes < 0.2 * GIBIBYTE
    assert estimate.weights_bytes + estimate.activations_bytes == pytest.approx(2 * resident + measured, rel=0.05)
