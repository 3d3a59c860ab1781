"""Training on a UNet whose weights came in fp8: the LoRA is that of a copy in bf16, bit for bit, in
about half the memory.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.memory_estimate import SDXL_UNET, measure_activations, meta_unet
from tests.unit.sdxl import test_trainer
from tests.unit.sdxl.test_trainer import FAST, RecordingHost, copy_model
from trainers.dataset.bucket_config import BucketConfig
from trainers.dataset.dataset import Dataset
from trainers.embedded_base.sdxl.architecture import UNET
from trainers.files.tensor_cache import TensorCache
from trainers.sdxl.config import SDXLConfig
from trainers.sdxl.family import SDXLFamily
from trainers.sdxl.memory import estimate_memory
from trainers.sdxl.model.sdxl_model import SDXLModel, build_model
from trainers.sdxl.streaming import list_blocks
from trainers.training.block_streaming import count_streamed_bytes
from trainers.training.events import SamplesDrawn
from trainers.training.float8_layers import keep_float8
from trainers.training.loop import train_lora
from trainers.training.plan import plan_training
from trainers.training.run_folder import RunFolder
from trainers.training.run_settings import RunSettings
from trainers.training.trained_lora import TrainedLora

dataset = test_trainer.dataset
weights = test_trainer.weights

Train = Callable[..., TrainedLora]


@pytest.fixture
def float8(weights: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    """The UNet's weights, all of them in fp8 as Load Diffusion Model leaves them."""
    return {name: weight.to(torch.float8_e4m3fn) for name, weight in weights["unet"].items()}


@pytest.fixture
def train(weights, float8: dict[str, Tensor], dataset: Dataset, tmp_path) -> Train:
    def run(*, as_it_is: bool, host: RecordingHost | None = None, **settings: Any) -> TrainedLora:
        config = SDXLConfig(**{**FAST, "max_train_steps": 3, "save_dtype": "fp32", **settings})
        plan = plan_training(dataset, RunSettings(config, BucketConfig(resolution=64, random_flip=True)))

        def load(_: object) -> SDXLModel:
            if not as_it_is:
                in_bf16 = {name: weight.to(torch.bfloat16) for name, weight in float8.items()}
                return copy_model({**weights, "unet": in_bf16})
            model = build_model({**weights, "unet": dict(float8)}, name="tiny")
            keep_float8(model.unet)
            return model

        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        given = host or RecordingHost()
        return train_lora(
            SDXLFamily(load), plan, given, run_folder=RunFolder(folder, "x"), cache=TensorCache(None), resume="new"
        )

    return run


CASES: dict[str, dict[str, Any]] = {
    "float32": {},
    "bf16": {"mixed_precision": "bf16", "gradient_checkpointing": True},
    "text encoders": {"train_text_encoders": True, "mixed_precision": "bf16"},
    "convolutions": {"target_modules": r".*(conv1|conv2|conv_shortcut|conv_in|conv_out|samplers\.0\.conv|to_q)"},
    "prior": {"prior_loss_weight": 1.0, "lora_dropout": 0.1},
    "streamed": {"blocks_to_swap": 1000, "mixed_precision": "bf16"},
    "half streamed": {"blocks_to_swap": 10, "train_text_encoders": True},
    "samples": {"sample_every_n_steps": 1, "sample_steps": 2, "sample_prompt": "a thing", "ema_decay": 0.9},
}


@pytest.mark.parametrize("name", CASES)
def test_the_lora_is_that_of_a_copy_in_bf16_and_no_weight_changes(train: Train, float8, name: str):
    before = {name: weight.clone() for name, weight in float8.items()}
    host = RecordingHost()
    own, usual = train(as_it_is=True, host=host, **CASES[name]), train(as_it_is=False, **CASES[name])
    assert own.losses == usual.losses and own.state_dict.keys() == usual.state_dict.keys()
    assert all(torch.equal(own.state_dict[name], weight) for name, weight in usual.state_dict.items())
    assert all(torch.equal(weight.view(torch.int8), before[key].view(torch.int8)) for key, weight in float8.items())
    assert bool(host.select(SamplesDrawn)) == (name == "samples")


def test_a_lora_can_be_gone_on_with(train: Train):
    start = train(as_it_is=False, target_modules=CASES["convolutions"]["target_modules"])
    settings = {"network_weights": str(start.path), "mixed_precision": "bf16"}
    own, usual = train(as_it_is=True, **settings), train(as_it_is=False, **settings)
    assert own.losses == usual.losses


def test_the_estimate_of_full_size_sdxl_counts_one_byte_per_weight():
    unet = meta_unet(SDXL_UNET, SDXLConfig(), precision="bf16", in_float8=True)
    found = estimate_memory(unet, SDXLConfig(), size_hw=(1024, 1024), precision="bf16")
    frozen = [weight for name, weight in unet.named_parameters() if "lora_" not in name]
    assert found.weights_bytes == sum(weight.nbytes for weight in frozen)
    assert found.weights_bytes == pytest.approx(2_567_463_684, rel=0.01)
    measured = measure_activations(unet, size_hw=(1024, 1024), batch_size=1, precision="bf16")
    assert found.activations_bytes == pytest.approx(measured, rel=0.05)


@pytest.mark.parametrize("settings", [{}, {"target_modules": CASES["convolutions"]["target_modules"]}], ids=str)
def test_without_checkpointing_the_estimate_knows_that_inputs_of_convolutions_are_not_kept(settings):
    config = SDXLConfig(train_batch_size=2, gradient_checkpointing=False, **settings)
    own, usual = (meta_unet(UNET, config, precision="bf16", in_float8=each) for each in (True, False))
    size_hw = (512, 384)
    measured = measure_activations(own, size_hw=size_hw, batch_size=2, precision="bf16")
    found = estimate_memory(own, config, size_hw=size_hw, precision="bf16").activations_bytes
    assert found == pytest.approx(measured, rel=0.1)
    in_bf16 = estimate_memory(usual, config, size_hw=size_hw, precision="bf16").activations_bytes
    assert (found < in_bf16) == (not settings)


def test_a_streamed_block_takes_a_byte_per_weight_of_the_buffers():
    config = SDXLConfig(blocks_to_swap=1000)
    own, usual = (meta_unet(SDXL_UNET, config, precision="bf16", in_float8=each) for each in (True, False))
    sizes = [max(map(count_streamed_bytes, list_blocks(unet))) for unet in (own, usual)]
    assert sizes[0] == pytest.approx(sizes[1] / 2, rel=0.01)
    found = [estimate_memory(unet, config, size_hw=(1024, 1024), precision="bf16") for unet in (own, usual)]
    assert found[0].weights_bytes < 0.6 * found[1].weights_bytes
