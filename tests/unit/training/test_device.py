"""Which device and precision a training gets, on machines that are pretended."""

from dataclasses import fields

import pytest
import torch
from torch import nn
from transformers.optimization import Adafactor

from trainers.training.config import TrainingConfig
from trainers.training.device import choose_device, usual_precision
from trainers.training.distributed import current_world
from trainers.training.flat_weights import FlatWeights, TrainedGroup
from trainers.training.optimizer_step import OptimizerStep
from trainers.training.optimizers import can_step, require_step


@pytest.fixture
def two_intel_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("xpu"))
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)


def test_without_a_gpu_the_cpu_computes() -> None:
    assert choose_device(None) == choose_device("cpu") == torch.device("cpu")


def test_a_gpu_of_any_maker_is_found(two_intel_gpus: None) -> None:
    assert choose_device(None) == torch.device("xpu", 0) and choose_device("xpu:1") == torch.device("xpu", 1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cuda", "device 'cuda' is not there. This machine has xpu:0, xpu:1, cpu"),
        ("xpu:2", "device 'xpu:2' is not there"),
        ("meta", "device 'meta' is not there"),
        ("gpu", "device 'gpu' is none that torch knows. This machine has xpu:0, xpu:1, cpu"),
        ("privateuseone:0", "DirectML cannot train"),
    ],
)
def test_a_device_that_cannot_train_is_refused(two_intel_gpus: None, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose_device(name)


@pytest.mark.parametrize(
    ("name", "computes_bf16", "precision"),
    [
        ("NVIDIA GeForce RTX 3060", True, "bf16"),
        ("NVIDIA GeForce RTX 2060", False, "fp16"),
        ("NVIDIA GeForce GTX 1660 Ti", False, "no"),
    ],
)
def test_the_precision_is_one_that_the_card_computes_right(
    monkeypatch: pytest.MonkeyPatch, name: str, computes_bf16: bool, precision: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: computes_bf16)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert usual_precision(torch.device("cuda", 0)) == precision


@pytest.mark.parametrize(("is_new", "precision"), [(True, "bf16"), (False, "no")])
def test_apples_devices_compute_in_bf16_where_macos_has_it(
    monkeypatch: pytest.MonkeyPatch, is_new: bool, precision: str
) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: is_new)
    assert usual_precision(torch.device("mps", 0)) == precision


def test_intels_devices_are_asked_for_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    for supported, precision in ((True, "bf16"), (False, "fp16")):
        monkeypatch.setattr(torch.xpu, "is_bf16_supported", lambda supported=supported: supported)
        assert usual_precision(torch.device("xpu", 0)) == precision


def test_one_device_for_all_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"device 'cuda:0' would be every process's.*--gpu_ids"):
        current_world("cuda:0")


def test_an_fp16_step_of_a_process_without_a_share_of_the_batch_works() -> None:
    weight = nn.Parameter(torch.ones(4))
    weights = FlatWeights([weight])
    step = OptimizerStep(
        [TrainedGroup("part", weights, 0.1)],
        TrainingConfig(lr_warmup_steps=0.0),
        total_steps=2,
        precision="fp16",
    )
    weights.flat.grad = torch.ones(4)  # the sum over all processes; this one called no backward
    step.update(1, torch.ones(()))
    assert (weight < 1).all()


def test_an_optimizer_is_tried_before_it_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.inference_mode():
        assert can_step("AdamW", torch.device("cpu"))
    assert not can_step("no_such_package.optim.Best", torch.device("cpu"))

    def fail(self: object, closure: object = None) -> None:
        raise RuntimeError("no kernel image is available for execution on the device")

    monkeypatch.setattr(torch.optim.AdamW, "step", fail)
    assert not can_step("AdamW", torch.device("cpu"))


def test_a_try_that_runs_out_of_memory_leaves_the_error_to_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: object, closure: object = None) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Adafactor, "step", fail)
    require_step("Adafactor", torch.device("cpu"), weight_decay=0.0)


def test_the_help_of_mixed_precision_names_the_devices_that_get_float32() -> None:
    (setting,) = (spec for spec in fields(TrainingConfig) if spec.name == "mixed_precision")
    assert all(device in setting.metadata["help"] for device in ("CPU", "GTX 16", "macOS 14"))
