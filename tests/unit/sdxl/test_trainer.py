"""The whole trainer, on a random model of the embedded base's shape: files, interruptions, NaN,
continuing from a LoRA, masks, prior preservation, captions.
"""

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from trainers.dataset.bucket_config import BucketConfig
from trainers.dataset.caption_variants import CaptionConfig
from trainers.dataset.config import DatasetConfig
from trainers.dataset.dataset import Dataset
from trainers.dataset.join import join_datasets
from trainers.dataset.scan import scan_folder
from trainers.embedded_base.sdxl.architecture import build_text_encoders, build_unet, build_vae
from trainers.files.tensor_cache import TensorCache
from trainers.lora.file import verify_lora
from trainers.lora.modules import list_weighted_modules
from trainers.lora.read import read_lora
from trainers.sdxl import prepared_model
from trainers.sdxl.config import BASE_DTYPES, SDXLConfig
from trainers.sdxl.family import SDXLFamily
from trainers.sdxl.model.sdxl_model import SDXLModel, build_model
from trainers.sdxl.names import kohya_names
from trainers.sdxl.objective import add_noise, min_snr_weights
from trainers.sdxl.prepared_model import PreparedSDXL
from trainers.sdxl.samples import SampleDrawer
from trainers.sdxl.step import Batch
from trainers.training import validation_plan
from trainers.training.adapters import AdaptedModel, find_adapter_layers
from trainers.training.device import DeviceMemory
from trainers.training.events import (
    CheckpointSaved,
    Event,
    Interrupted,
    Notice,
    SamplesDrawn,
    StageStarted,
    StepDone,
    Validated,
)
from trainers.training.generators import generator_for
from trainers.training.loop import TrainingLoop, train_lora
from trainers.training.optimizer_step import NonFiniteLoss
from trainers.training.plan import plan_training
from trainers.training.run_folder import RunFolder
from trainers.training.run_settings import RunSettings
from trainers.training.run_writer import RunWriter

FAST = {
    "rank": 2,
    "alpha": 1.0,
    "max_train_steps": 4,
    "train_batch_size": 2,
    "gradient_checkpointing": False,
    "learning_rate": 1e-3,
    "lr_warmup_steps": 0.0,
}


class RecordingHost(DeviceMemory):
    """A host that records events, and cancels at a given step."""

    def __init__(self, *, cancel_at_step: int | None = None) -> None:
        super().__init__(torch.device("cpu"))
        self.events: list[Event] = []
        self._cancel_at_step = cancel_at_step

    def report(self, event: Event) -> None:
        self.events.append(event)

    def take_request(self) -> None:
        return None

    def check_interrupted(self) -> None:
        if self._cancel_at_step is not None and len(self.select(StepDone)) >= self._cancel_at_step:
            raise Interrupted

    def select(self, kind: type) -> list:
        return [event for event in self.events if isinstance(event, kind)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i, size in enumerate([(64, 64), (64, 64), (70, 64), (64, 90)]):
        Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"thing {i}")
    return scan_folder(DatasetConfig(images=str(folder), trigger_word="zwx"))


@pytest.fixture(scope="module")
def weights() -> dict[str, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    encoder_1, encoder_2 = build_text_encoders()
    parts = {"unet": build_unet(), "text_encoder": encoder_1, "text_encoder_2": encoder_2, "vae": build_vae()}
    return {name: part.state_dict() for name, part in parts.items()}


def copy_model(weights) -> SDXLModel:
    copies = {part: {name: tensor.clone() for name, tensor in tensors.items()} for part, tensors in weights.items()}
    return build_model(copies, name="tiny")


def train(
    weights,
    dataset,
    folder: Path,
    *,
    host: RecordingHost | None = None,
    name: str = "x",
    cache: TensorCache | None = None,
    flip: bool = False,
    captions: CaptionConfig | None = None,
    buckets: BucketConfig | None = None,
    resume: str = "new",
    base_dtype: str = "",
    drawer: SampleDrawer | None = None,
    **settings,
):
    """By default a run of its own: what a test compares was trained twice, not loaded."""
    config = SDXLConfig(**{**FAST, **settings})
    run_settings = RunSettings(
        config, buckets or BucketConfig(resolution=64, random_flip=flip), captions or CaptionConfig()
    )
    return train_lora(
        SDXLFamily(lambda _: copy_model(weights), base_dtype=base_dtype, drawer=drawer),
        plan_training(dataset, run_settings),
        host or RecordingHost(),
        run_folder=RunFolder(folder, name),
        cache=cache or TensorCache(None),
        resume=resume,
    )


@pytest.fixture(scope="module")
def plain(weights, dataset, tmp_path_factory):
    """A run with the fast settings."""
    return train(weights, dataset, tmp_path_factory.mktemp("plain"))


def list_names(weights):
    model = copy_model(weights)
    return kohya_names(
        *(list_weighted_modules(part) for part in (model.unet, model.text_encoder, model.text_encoder_2))
    )


def test_a_run_writes_a_verified_lora_and_a_run_folder(weights, dataset, tmp_path):
    host = RecordingHost()
    result = train(weights, dataset, tmp_path, host=host, save_every_n_steps=2)
    assert result.path == tmp_path / "x.safetensors" and result.steps == len(result.losses) == 4
    assert [path.name for path in result.checkpoints] == ["x-step00000002.safetensors"]
    (run,) = (tmp_path / "runs").iterdir()
    assert {path.name for path in run.iterdir()} == {
        "manifest.json",
        "dataset.txt",
        "loss.csv",
        "loss.png",
        "run.log",
        "checkpoints",
        *("identity.json", "progress.json", "result.json", "lock", "state"),
    }
    manifest = json.loads((run / "manifest.json").read_text())
    assert (
        manifest["modules"] == {"unet": 192}
        and manifest["training"]["rank"] == 2
        and len(manifest["dataset"]["images"]) == 4
    )
    assert len((run / "loss.csv").read_text().splitlines()) == 5
    with safe_open(result.path, "pt") as file:
        metadata = file.metadata()
    assert (
        metadata["ss_network_dim"] == "2"
        and metadata["ss_steps"] == "4"
        and metadata["modelspec.trigger_phrase"] == "zwx"
    )
    assert [event.stage for event in host.select(StageStarted)] == [
        "loading",
        "caching",
        "caching",
        "training",
        "saving",
    ]
    assert [event.step for event in host.select(StepDone)] == [1, 2, 3, 4]
    assert "192/192 modules load" in host.select(Notice)[-1].message
    saved = load_file(result.path)
    assert saved.keys() == result.state_dict.keys() and all(
        torch.equal(saved[key], tensor) for key, tensor in result.state_dict.items()
    )


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(weights, dataset, plain, tmp_path):
    results = [
        plain,
        *(train(weights, dataset, tmp_path, name=f"run{seed}", seed=seed) for seed in (SDXLConfig().seed, 1)),
    ]
    assert results[0].losses == results[1].losses != results[2].losses
    assert all(torch.equal(tensor, results[1].state_dict[key]) for key, tensor in results[0].state_dict.items())


def test_training_leaves_the_global_generators_alone(weights, dataset, tmp_path):
    before = torch.random.get_rng_state()
    train(weights, dataset, tmp_path, lora_dropout=0.3, flip=True, noise_offset=0.05)
    assert torch.equal(before, torch.random.get_rng_state())


def test_dropout_flip_and_noise_offset_each_change_the_losses(weights, dataset, plain, tmp_path):
    for i, (setting, flip) in enumerate(
        [({"lora_dropout": 0.5}, False), ({}, True), ({"noise_offset": 0.1}, False), ({"caption_dropout": 1.0}, False)]
    ):
        assert train(weights, dataset, tmp_path, name=f"run{i}", flip=flip, **setting).losses != plain.losses


OBJECTIVES = {
    "soft_min_snr": {"snr_weighting": "soft_min_snr"},
    "debiased": {"snr_weighting": "debiased"},
    "l1": {"loss_type": "l1"},
    "huber": {"loss_type": "huber", "huber_schedule": "exponential", "huber_c": 0.2},
    "multires": {"multires_noise_iterations": 4},
    "perturbed": {"ip_noise_gamma": 0.1},
    "nearest": {"immiscible_noise": 4},
    "timesteps": {"min_timestep": 100, "max_timestep": 600},
    "sampling": {"timestep_sampling": "logit_normal"},
}


@pytest.mark.parametrize("settings", OBJECTIVES.values(), ids=OBJECTIVES)
def test_each_setting_of_the_objective_changes_the_losses(weights, dataset, plain, tmp_path, settings):
    assert train(weights, dataset, tmp_path, max_train_steps=1, **settings).losses[0] != plain.losses[0]


def test_the_header_names_the_objective_as_sd_scripts_does(weights, dataset, plain, tmp_path):
    options = {"snr_weighting": "debiased", "loss_type": "smooth_l1", "huber_c": 0.2, "huber_schedule": "constant"}
    noise = {"multires_noise_iterations": 6, "multires_noise_discount": 0.2, "ip_noise_gamma": 0.1}
    metadata = train(weights, dataset, tmp_path, max_train_steps=1, **options, **noise).metadata
    expected = {
        "ss_debiased_estimation": "True",
        "ss_loss_type": "smooth_l1",
        "ss_huber_c": "0.2",
        "ss_huber_schedule": "constant",
        "ss_multires_noise_iterations": "6",
        "ss_multires_noise_discount": "0.2",
        "ss_ip_noise_gamma": "0.1",
    }
    assert {name: metadata.get(name) for name in expected} == expected and "ss_min_snr_gamma" not in metadata
    assert plain.metadata["ss_loss_type"] == "l2" and plain.metadata["ss_min_snr_gamma"] == "5.0"
    assert not (expected.keys() - {"ss_loss_type"}) & plain.metadata.keys()


def test_debiased_weights_are_refused_where_they_are_infinite(weights, dataset, tmp_path):
    with pytest.raises(ValueError, match="snr_weighting debiased divides by the SNR, which is 0 at the last timestep"):
        train(weights, dataset, tmp_path, snr_weighting="debiased", zero_terminal_snr="on", prediction_type="epsilon")


def is_of_text_encoder(name: str) -> bool:
    return name.startswith("lora_te")


@pytest.mark.parametrize("optimizer", ["AdamW", "Prodigy", "CAME"])
@pytest.mark.parametrize("stop", [3.0, 0.5])
def test_text_encoders_stop_at_their_step_and_the_unet_goes_on(weights, dataset, tmp_path, optimizer, stop):
    rate = 1.0 if optimizer == "Prodigy" else 1e-3
    settings = {
        "train_text_encoders": True,
        "optimizer": optimizer,
        "max_train_steps": 6,
        "save_every_n_steps": 3,
        "save_dtype": "fp32",
        "lr_scheduler": "constant",
        "lora_dropout": 0.1,
        **dict.fromkeys(("learning_rate", "text_encoder_learning_rate", "text_encoder_2_learning_rate"), rate),
    }
    whole = train(weights, dataset, tmp_path / "whole", **settings)
    stopped = train(weights, dataset, tmp_path / "stopped", stop_text_encoder_training=stop, **settings)
    assert stopped.losses[:3] == whole.losses[:3] and stopped.losses[4:] != whole.losses[4:]
    at_stop = load_file(stopped.checkpoints[0])
    for name, tensor in stopped.state_dict.items():
        if name.endswith("lora_up.weight"):
            assert torch.equal(tensor, at_stop[name]) == is_of_text_encoder(name), name
    assert any(is_of_text_encoder(name) for name in at_stop)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "train_text_encoders is off: no text encoder would be trained after it"),
        ({"train_text_encoders": True, "learning_rate": 0.0}, "learning_rate is 0: nothing would be trained after it"),
    ],
)
def test_a_stop_of_text_encoders_needs_both_before_and_after(settings, message):
    with pytest.raises(ValueError, match=message):
        SDXLConfig(stop_text_encoder_training=0.5, **settings)


def test_only_the_adapters_are_trained(weights, dataset, tmp_path):
    model = copy_model(weights)
    plan = plan_training(dataset, RunSettings(SDXLConfig(**FAST), BucketConfig(resolution=64)))
    train_lora(
        SDXLFamily(lambda _: model), plan, RecordingHost(), run_folder=RunFolder(tmp_path, "x"), cache=TensorCache(None)
    )
    trained = {
        name.replace(".base_layer", ""): tensor
        for name, tensor in model.unet.state_dict().items()
        if "lora_" not in name
    }
    assert all(torch.equal(trained[name], tensor) for name, tensor in weights["unet"].items())


@pytest.fixture(scope="module")
def two_steps_of_four(weights, dataset, tmp_path_factory):
    return train(weights, dataset, tmp_path_factory.mktemp("reference"), train_batch_size=4, max_train_steps=2)


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
@pytest.mark.parametrize(
    "batching",
    [
        {"train_batch_size": 4},
        {"train_batch_size": 2, "gradient_accumulation_steps": 2},
        {"train_batch_size": 1, "gradient_accumulation_steps": 4},
    ],
)
def test_a_step_is_the_same_however_it_is_batched(
    weights, dataset, two_steps_of_four, tmp_path, batching, gradient_checkpointing
):
    other = train(
        weights,
        dataset,
        tmp_path,
        name="other",
        max_train_steps=2,
        gradient_checkpointing=gradient_checkpointing,
        **batching,
    )
    torch.testing.assert_close(torch.tensor(other.losses), torch.tensor(two_steps_of_four.losses), rtol=1e-5, atol=0)


def test_accumulation_divides_by_the_real_size_of_the_last_group(weights, dataset, tmp_path):
    """Four images in groups of three are three samples, then one. The loss stays a mean."""
    host = RecordingHost()
    result = train(
        weights,
        dataset,
        tmp_path,
        host=host,
        train_batch_size=1,
        gradient_accumulation_steps=3,
        num_train_epochs=2,
        learning_rate=1e-9,
        caption_dropout=0.0,
    )
    assert result.steps == 4 and [event.epoch for event in host.select(StepDone)] == [1, 1, 2, 2]
    assert max(result.losses) < 3 * min(result.losses)


def test_a_text_encoder_with_rate_0_is_not_trained(weights, dataset, tmp_path):
    result = train(
        weights,
        dataset,
        tmp_path,
        train_text_encoders=True,
        text_encoder_learning_rate=1e-4,
        text_encoder_2_learning_rate=0.0,
    )
    prefixes = {key.split("_")[1] for key in result.state_dict}
    assert prefixes == {"unet", "te1"}
    # its last layer never gets a gradient
    assert not any("layers_2_" in key for key in result.state_dict if key.startswith("lora_te1_"))
    both = train(weights, dataset, tmp_path, name="both", train_text_encoders=True)
    assert sum(key.endswith(".alpha") and key.startswith("lora_te2_") for key in both.state_dict) == 18
    moved = {key: tensor.abs().sum() for key, tensor in both.state_dict.items() if key.endswith("lora_up.weight")}
    assert all(norm > 0 for norm in moved.values())


def test_each_text_encoder_has_its_own_learning_rate(weights, dataset, tmp_path):
    """At a rate of 1e-9 an adapter does not move, at 1e-3 it does."""
    result = train(
        weights,
        dataset,
        tmp_path,
        train_text_encoders=True,
        text_encoder_learning_rate=1e-9,
        text_encoder_2_learning_rate=1e-3,
        save_dtype="fp32",
    )
    largest = {
        part: max(
            float(t.abs().max())
            for k, t in result.state_dict.items()
            if k.startswith(f"lora_{part}_") and "lora_up" in k
        )
        for part in ("te1", "te2")
    }
    assert largest["te1"] < 1e-7 and largest["te2"] > 1e-4


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_with_adapters_in_float32(weights, dataset, plain, tmp_path, precision):
    result = train(weights, dataset, tmp_path, name="half", mixed_precision=precision, save_dtype="fp32")
    np.testing.assert_allclose(result.losses, plain.losses, rtol=0.05)
    up = next(tensor for key, tensor in result.state_dict.items() if key.endswith("lora_up.weight"))
    assert up.dtype == torch.float32 and not torch.equal(up, up.to(torch.bfloat16).float())


def test_cancelling_keeps_a_checkpoint_of_the_last_step_and_no_final_file(weights, dataset, tmp_path):
    host = RecordingHost(cancel_at_step=3)
    with pytest.raises(Interrupted):
        train(weights, dataset, tmp_path, host=host, max_train_steps=100)
    (checkpoint,) = tmp_path.rglob("checkpoints/*.safetensors")
    assert checkpoint.name == "x-step00000003.safetensors"
    assert [event.step for event in host.select(CheckpointSaved)] == [3]
    verify_lora(checkpoint, list_names(weights), expected=list(read_lora(checkpoint, list_names(weights))))
    assert not list(tmp_path.rglob("x.safetensors")) and not list(tmp_path.rglob("*.tmp"))
    assert list(tmp_path.rglob("loss.png"))


def test_cancelling_before_the_first_step_leaves_no_lora_and_no_half_file(weights, dataset, tmp_path):
    with pytest.raises(Interrupted):
        train(weights, dataset, tmp_path, host=RecordingHost(cancel_at_step=0))
    assert not list(tmp_path.rglob("*.safetensors")) and not list(tmp_path.rglob("*.tmp"))


def test_a_nonfinite_loss_stops_the_run_and_names_step_dtype_and_remedy(weights, dataset, tmp_path):
    with pytest.raises(
        NonFiniteLoss, match=r"step \d+: loss .* in float32\. Lower the learning rate, and check the base model"
    ):
        train(
            weights,
            dataset,
            tmp_path,
            learning_rate=10.0,
            max_train_steps=200,
            optimizer_args="weight_decay=0.0 betas=(0.0,0.0)",
            max_grad_norm=0.0,
        )
    for checkpoint in tmp_path.rglob("*.safetensors"):
        assert all(torch.isfinite(tensor.float()).all() for tensor in load_file(checkpoint).values())


def test_nan_in_the_base_model_stops_at_the_first_step_with_nothing_saved(weights, dataset, tmp_path):
    broken = {**weights, "unet": {**weights["unet"], "conv_out.bias": torch.full((4,), math.nan)}}
    with pytest.raises(NonFiniteLoss, match="step 1: loss nan"):
        train(broken, dataset, tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_nan_in_the_vae_names_the_image_and_caches_nothing(weights, dataset, tmp_path):
    broken = {**weights, "vae": {**weights["vae"], "quant_conv.bias": torch.full((8,), math.nan)}}
    with pytest.raises(ValueError, match=r"0\.png: NaN or infinite latents.*base model's VAE may be damaged"):
        train(broken, dataset, tmp_path / "out", cache=TensorCache(tmp_path / "cache"))
    assert not list(tmp_path.rglob("*"))


def test_the_second_run_encodes_nothing(weights, dataset, tmp_path, monkeypatch):
    first = train(weights, dataset, tmp_path, name="first", cache=TensorCache(tmp_path / "cache"))
    from trainers.dataset import read_ahead
    from trainers.sdxl import encode

    monkeypatch.setattr(read_ahead, "read_crop", lambda item: pytest.fail("an image was read again"))
    monkeypatch.setattr(encode, "encode_captions", lambda *_: pytest.fail("a caption was encoded again"))
    assert (
        train(weights, dataset, tmp_path, name="second", cache=TensorCache(tmp_path / "cache")).losses == first.losses
    )


def test_another_vae_or_text_encoder_does_not_use_cached_tensors(weights, dataset, tmp_path):
    cache = TensorCache(tmp_path / "cache")
    first = train(weights, dataset, tmp_path, name="first", cache=cache)
    for part, name in (("vae", "encoder.conv_in.weight"), ("text_encoder_2", "text_projection.weight")):
        changed = {
            **weights,
            part: {key: tensor * 1.01 if key.endswith(name) else tensor for key, tensor in weights[part].items()},
        }
        assert train(changed, dataset, tmp_path, name=part, cache=cache).losses != first.losses


def test_training_continues_from_a_lora_at_its_strength(weights, dataset, tmp_path):
    first = train(weights, dataset, tmp_path, name="first", save_dtype="fp32", max_train_steps=8)
    names = list_names(weights)
    before = read_lora(first.path, names)
    continued = train(
        weights,
        dataset,
        tmp_path,
        name="next",
        save_dtype="fp32",
        network_weights=str(first.path),
        learning_rate=1e-9,
        max_train_steps=1,
        alpha=2.0,
    )
    for key, module in read_lora(continued.path, names).items():
        expected = before[key].alpha / before[key].rank * before[key].up @ before[key].down
        torch.testing.assert_close(module.alpha / module.rank * module.up @ module.down, expected, rtol=1e-4, atol=1e-6)


def write_start(weights, path: Path, *, ranks: tuple[int, ...] = (2,), parts: tuple[str, ...] = ("lora_unet",)):
    """A LoRA of other trainers: every layer of the parts, ranks in turn, alpha 1."""
    model = copy_model(weights)
    generator = torch.Generator().manual_seed(3)
    tensors = {}
    for key, name in list_names(weights).items():
        layer = dict(getattr(model, key[0]).named_modules()).get(key[1])
        layer = layer or dict(getattr(model, key[0]).named_modules()).get(f"text_model.{key[1]}")
        if name.startswith(parts) and isinstance(layer, (torch.nn.Linear, torch.nn.Conv2d)):
            rank, kernel = ranks[len(tensors) % len(ranks)], layer.weight.shape[2:]
            down = torch.randn(rank, *layer.weight.shape[1:], generator=generator) * 0.1
            up = torch.randn(len(layer.weight), rank, *(1 for _ in kernel), generator=generator) * 0.1
            tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.ones(())}
    save_file(tensors, path)
    return tensors


def assert_same_updates(path: Path, expected_path: Path, weights) -> None:
    expected = read_lora(expected_path, list_names(weights))
    found = read_lora(path, list_names(weights))
    for key, module in expected.items():
        torch.testing.assert_close(make_update(found[key]), make_update(module), rtol=1e-4, atol=1e-6)


def make_update(module):
    return module.alpha / module.rank * module.up.flatten(1) @ module.down.flatten(1)


def test_a_lora_of_several_ranks_and_with_convolutions_is_filled_up_and_continued(weights, dataset, tmp_path):
    start = tmp_path / "resized.safetensors"
    write_start(weights, start, ranks=(1, 3, 2))
    host = RecordingHost()
    settings = {"rank": 4, "alpha": 2.0, "save_dtype": "fp32", "learning_rate": 1e-9, "max_train_steps": 1}
    result = train(
        weights, dataset, tmp_path, host=host, network_weights=str(start), target_modules="attention", **settings
    )
    assert {module.rank for module in read_lora(result.path, list_names(weights)).values()} == {4}
    assert_same_updates(result.path, start, weights)
    assert any("of the file that the settings do not choose are trained too" in n.message for n in host.select(Notice))


def test_a_one_trainer_file_with_the_text_encoders_projection_and_extra_entries_is_continued(
    weights, dataset, tmp_path
):
    start = tmp_path / "onetrainer.safetensors"
    tensors = write_start(weights, start, parts=("lora_unet", "lora_te1", "lora_te2"))
    tensors |= {
        "lora_te1_text_projection.lora_down.weight": torch.ones(2, 64),
        "lora_te1_text_projection.lora_up.weight": torch.ones(64, 2),
        "bundle_emb.zwx.clip_l": torch.ones(3, 64),
    }
    save_file(tensors, start)
    host = RecordingHost()
    result = train(
        weights,
        dataset,
        tmp_path,
        host=host,
        network_weights=str(start),
        train_text_encoders=True,
        save_dtype="fp32",
        learning_rate=1e-9,
        text_encoder_learning_rate=1e-9,
        text_encoder_2_learning_rate=1e-9,
        max_train_steps=1,
    )
    assert ("text_encoder_2", "text_projection") in read_lora(result.path, list_names(weights))
    (notice,) = [notice.message for notice in host.select(Notice) if "SDXL does not use" in notice.message]
    assert "bundle_emb.zwx.clip_l" in notice or "lora_te1_text_projection" in notice


@pytest.mark.parametrize(
    ("ranks", "parts", "settings", "message"),
    [
        ((2, 8), ("lora_unet",), {"rank": 4}, "the file has ranks 2 to 8, this run has rank 4. Set rank to 8 or more"),
        ((8,), ("lora_unet",), {"rank": 4}, "the file has rank 8, this run has rank 4. Set rank to 8 or more"),
        ((2,), ("lora_te2",), {}, "Set train_text_encoders on and text_encoder_2_learning_rate above 0"),
        ((2,), ("lora_unet",), {"broken": float("nan")}, "hold values that are not finite"),
    ],
)
def test_a_lora_that_cannot_be_continued_is_refused_before_the_first_image_is_encoded(
    weights, dataset, tmp_path, ranks, parts, settings, message
):
    start = tmp_path / "start.safetensors"
    tensors = write_start(weights, start, ranks=ranks, parts=parts)
    if "broken" in settings:
        next(iter(tensors.values())).fill_(settings["broken"])
        save_file(tensors, start)
        settings = {}
    host = RecordingHost()
    with pytest.raises(ValueError, match=re.escape(message)):
        train(weights, dataset, tmp_path, host=host, network_weights=str(start), **settings)
    assert "caching" not in [event.stage for event in host.select(StageStarted)]


@pytest.mark.parametrize(
    ("target_modules", "message"),
    [
        ("attn[", "is neither attention, attention_mlp, b-lora, b-lora-content, b-lora-style nor a regular expression"),
        ("nothing", "matches no linear or convolution layer of the UNet"),
    ],
)
def test_targets_that_choose_nothing_are_an_error_and_nothing_is_written(
    weights, dataset, tmp_path, target_modules, message
):
    with pytest.raises(ValueError, match=re.escape(message)):
        train(weights, dataset, tmp_path, target_modules=target_modules)
    assert not list(tmp_path.rglob("*"))


def test_a_regular_expression_chooses_convolutions_too(weights, dataset, tmp_path):
    result = train(weights, dataset, tmp_path, target_modules=r".*resnets\.0\.conv1|.*attn2\.to_k")
    downs = [tensor for key, tensor in result.state_dict.items() if key.endswith("lora_down.weight")]
    assert {tensor.ndim for tensor in downs} == {2, 4}


def test_checkpoints_by_epoch_have_sd_scripts_names(weights, dataset, tmp_path):
    result = train(weights, dataset, tmp_path, num_train_epochs=3, save_every_n_epochs=1)
    assert [path.name for path in result.checkpoints] == ["x-000001.safetensors", "x-000002.safetensors"]


def test_a_name_that_is_taken_during_training_loses_nothing(weights, dataset, tmp_path):
    class Rival(RecordingHost):
        def report(self, event: Event) -> None:
            super().report(event)
            if isinstance(event, StepDone) and event.step == 1:
                (tmp_path / "x.safetensors").write_text("another run was faster")

    result = train(weights, dataset, tmp_path, host=Rival())
    assert result.path == tmp_path / "x-2.safetensors" and result.path.exists()
    assert (tmp_path / "x.safetensors").read_text() == "another run was faster"


def test_a_full_disk_while_saving_keeps_the_last_checkpoint_and_no_half_file(weights, dataset, tmp_path, monkeypatch):
    import errno

    from trainers.lora import file as lora_file

    real = lora_file.save_lora

    def full(path, *rest, **options):
        if path.name == "x.safetensors":
            raise OSError(errno.ENOSPC, f"{path}: the disk is full")
        return real(path, *rest, **options)

    monkeypatch.setattr("trainers.training.run_writer.save_lora", full)
    with pytest.raises(OSError, match="the disk is full"):
        train(weights, dataset, tmp_path, save_every_n_steps=2)
    found = sorted(path.name for path in tmp_path.rglob("*.safetensors") if path.parent.name != "state")
    assert found == ["x-step00000002.safetensors", "x-step00000004.safetensors"] and not list(tmp_path.rglob("*.tmp"))


def test_overfitting_one_image_brings_the_loss_down(weights, tmp_path):
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    dataset = scan_folder(DatasetConfig(images=str(tmp_path), trigger_word="zwx"))
    result = train(
        weights,
        dataset,
        tmp_path / "out",
        rank=8,
        alpha=8.0,
        max_train_steps=150,
        train_batch_size=1,
        learning_rate=5e-3,
        min_snr_gamma=0.0,
        caption_dropout=0.0,
    )
    assert np.mean(result.losses[:10]) > 0.9
    assert np.mean(result.losses[-30:]) < 0.5


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"lora_dropout": 0.5},
        {"lora_dropout": 0.5, "gradient_checkpointing": True},
        {"train_text_encoders": True},
    ],
)
def test_drawing_samples_does_not_change_the_training(weights, dataset, tmp_path, settings):
    plain = train(weights, dataset, tmp_path / "plain", **settings)
    host = RecordingHost()
    sampled = train(
        weights, dataset, tmp_path, name="sampled", host=host, sample_every_n_steps=2, sample_prompt="zwx", **settings
    )
    assert sampled.losses == plain.losses
    assert all(torch.equal(sampled.state_dict[name], tensor) for name, tensor in plain.state_dict.items())
    drawn = host.select(SamplesDrawn)
    assert [event.step for event in drawn] == [0, 2, 4]
    assert [event.path.name for event in drawn] == [f"sampled-step{step:08d}.png" for step in (0, 2, 4)]
    images = [np.asarray(Image.open(event.path)) for event in drawn]
    assert images[0].shape == (64, 128, 3) and not np.array_equal(images[0], images[2])


class RedDrawer:
    """A host's sampler."""

    def draw(self, unet, positive, negative, prompt, *, size_hw, host) -> list[Image.Image]:
        assert not any(module.training for module in unet.modules())
        assert positive.prompt_embeds.shape[0] == negative.prompt_embeds.shape[0] == 1
        return [Image.new("RGB", size_hw[::-1], "red") for _ in prompt.seeds]


@pytest.mark.parametrize(
    ("drawer", "given", "is_red", "said"),
    [
        (RedDrawer(), {"sample_sampler": "heun"}, True, ""),
        (RedDrawer(), {"prediction_type": "v_prediction"}, False, "MODEL samples otherwise than prediction_type"),
        (None, {}, False, ""),
        (None, {"sample_scheduler": "karras"}, False, "sample_sampler and sample_scheduler are for ComfyUI"),
    ],
)
def test_the_hosts_sampler_draws_what_it_can_draw_right(weights, dataset, tmp_path, drawer, given, is_red, said):
    settings = {"sample_every_n_steps": 4, "sample_prompt": "zwx", "sample_steps": 1, **given}
    host = RecordingHost()
    train(weights, dataset, tmp_path, host=host, drawer=drawer, **settings)
    for event in host.select(SamplesDrawn):
        assert (np.asarray(event.image) == (255, 0, 0)).all() == is_red
    notices = [notice.message for notice in host.select(Notice) if "DDIM" in notice.message]
    assert [said in notice for notice in notices] == ([True] if said else [])


def test_samples_have_a_row_for_each_prompt_and_a_sheet_that_grows(weights, dataset, tmp_path):
    train(
        weights,
        dataset,
        tmp_path,
        sample_every_n_steps=2,
        sample_prompt="a {trigger}|two --d 5 --w 96 --h 64",
        sample_steps=2,
        sample_seeds="3",
    )
    (grid,) = tmp_path.glob("runs/*/samples/x-step00000000.png")
    assert Image.open(grid).size == (96, 128)
    assert Image.open(grid.with_name("all.png")).size[0] == 3 * 96


@pytest.fixture
def generous(monkeypatch):
    """Validation in a run of a few steps."""
    monkeypatch.setattr(validation_plan, "MAX_SHARE", 10.0)
    monkeypatch.setattr(validation_plan, "MAX_DRAWS", 4)


@pytest.mark.parametrize(
    "settings", [{"lora_dropout": 0.5}, {"gradient_checkpointing": True}, {"train_text_encoders": True}]
)
def test_validation_does_not_change_the_training(weights, dataset, tmp_path, generous, settings):
    plain = train(weights, dataset, tmp_path / "plain", validate_every_n_steps=-1, **settings)
    host = RecordingHost()
    measured = train(weights, dataset, tmp_path, name="measured", host=host, validate_every_n_steps=2, **settings)
    assert measured.losses == plain.losses
    assert all(torch.equal(measured.state_dict[name], tensor) for name, tensor in plain.state_dict.items())
    assert [event.step for event in host.select(Validated)] == [0, 2, 4]
    assert len({event.loss for event in host.select(Validated)}) == 3


def test_what_is_measured_does_not_depend_on_the_objective(weights, dataset, tmp_path, generous):
    hosts = [RecordingHost(), RecordingHost()]
    objective = {"loss_type": "huber", "snr_weighting": "debiased", "multires_noise_iterations": 4}
    for number, (host, settings) in enumerate(zip(hosts, [{}, objective], strict=True)):
        train(weights, dataset, tmp_path, name=f"run{number}", host=host, max_train_steps=2, **settings)
    first, second = (host.select(Validated)[0].loss for host in hosts)
    assert first == second


def test_held_out_images_are_encoded_and_measured_without_flips_dropout_or_weights(
    weights, dataset, tmp_path, generous
):
    """The losses equal those of an independent formula."""
    captured: list[tuple[torch.Tensor, tuple]] = []
    real = PreparedSDXL.validation_losses

    def listen(run, draws):
        losses = real(run, draws)
        if not captured:
            captured.append((losses, tuple(draws)))
            expected.extend(measure_alone(run, draw) for draw in draws)
        return losses

    def measure_alone(run, draw):
        latents = run.latents.get(draw.item, flip=False)
        generator = generator_for(0, "validation noise", draw.index)
        noise = torch.randn(latents.shape, generator=generator)
        timestep = torch.tensor([int(draw.noise_level * 1000)])
        alphas = run.objective.alphas_cumprod[timestep]
        embeddings = run.embed([draw.item.image.caption])
        ids = torch.tensor([[*draw.item.crop.original_hw, *draw.item.crop.top_left_yx, *draw.item.crop.target_hw]])
        with torch.no_grad():
            predicted = run.model.unet(
                add_noise(latents[None], noise[None], alphas),
                timestep,
                embeddings.prompt_embeds.float(),
                added_cond_kwargs={"text_embeds": embeddings.pooled_prompt_embeds.float(), "time_ids": ids.float()},
            ).sample
        return float((predicted - noise).square().mean())

    expected: list[float] = []
    images = [replace(image, is_validation=number == 0, loss_weight=3.0) for number, image in enumerate(dataset.images)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PreparedSDXL, "validation_losses", listen)
        train(
            weights,
            replace(dataset, images=images),
            tmp_path,
            flip=True,
            caption_dropout=1.0,
            max_train_steps=1,
        )
    ((losses, draws),) = captured
    assert {draw.item.image.name for draw in draws} == {dataset.images[0].name}
    torch.testing.assert_close(losses, torch.tensor(expected), rtol=1e-4, atol=1e-6)


def test_running_out_of_memory_keeps_the_steps_before_it(weights, dataset, tmp_path, monkeypatch):
    steps = TrainingLoop._run_step

    def out_of_memory_at_three(self, step, clock):
        if step.number == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        steps(self, step, clock)

    monkeypatch.setattr(TrainingLoop, "_run_step", out_of_memory_at_three)
    with pytest.raises(torch.OutOfMemoryError):
        train(weights, dataset, tmp_path)
    assert [path.name for path in tmp_path.rglob("x*.safetensors")] == ["x-step00000002.safetensors"]


# ---- masks and weights of images ----


@pytest.fixture(scope="module")
def masked_folder(dataset, tmp_path_factory) -> Path:
    """The dataset's four images; the first has a mask whose left half is white."""
    folder = shutil.copytree(dataset.images[0].path.parent, tmp_path_factory.mktemp("masked") / "images")
    write_mask(folder, "0", slice(0, 32))
    return folder


def write_mask(folder: Path, name: str, white_columns: slice) -> None:
    mask = np.zeros((64, 64), dtype=np.uint8)
    mask[:, white_columns] = 255
    Image.fromarray(mask).save(folder / f"{name}-masklabel.png")


def scan(folder: Path) -> Dataset:
    return scan_folder(DatasetConfig(images=str(folder), trigger_word="zwx"))


def record_batches(monkeypatch) -> list[Batch]:
    batches: list[Batch] = []
    real = prepared_model.weighted_losses

    def listen(unet, batch, objective):
        batches.append(batch)
        return real(unet, batch, objective)

    monkeypatch.setattr(prepared_model, "weighted_losses", listen)
    return batches


def test_without_masks_weights_and_prior_the_losses_are_exactly_those_of_the_plain_formula(
    weights, dataset, tmp_path, monkeypatch
):
    """They are equal bit for bit, whatever the mask settings are."""
    ours = train(weights, dataset, tmp_path, name="ours", unmasked_weight=0.3, normalize_masked_loss=True)

    def plain_losses(unet, batch, objective):
        alphas = objective.alphas_cumprod[batch.timesteps]
        noisy = add_noise(batch.latents, batch.noise, alphas)
        conditions = {"text_embeds": batch.pooled_prompt_embeds, "time_ids": batch.add_time_ids}
        prediction = unet(noisy, batch.timesteps, batch.prompt_embeds, added_cond_kwargs=conditions, return_dict=False)[
            0
        ]
        return (prediction - batch.noise).square().mean(dim=(1, 2, 3)) * min_snr_weights(
            alphas, gamma=5.0, prediction_type="epsilon"
        )

    monkeypatch.setattr(prepared_model, "weighted_losses", plain_losses)
    plain = train(weights, dataset, tmp_path, name="plain")
    assert plain.losses == ours.losses
    assert all(torch.equal(plain.state_dict[name], tensor) for name, tensor in ours.state_dict.items())


def test_a_mask_is_flipped_with_its_image_and_an_image_without_one_counts_in_full(
    weights, masked_folder, tmp_path, monkeypatch
):
    batches = record_batches(monkeypatch)
    train(weights, scan(masked_folder), tmp_path, flip=True, train_batch_size=4, max_train_steps=8)
    masks = [mask for batch in batches if batch.loss_mask is not None for mask in batch.loss_mask]
    assert masks and all(mask.shape == (1, 8, 8) and mask.dtype == torch.float32 for mask in masks)
    left = torch.zeros(1, 8, 8)
    left[:, :, :4] = 1
    plain, mirrored, full = (
        sum(torch.equal(mask, expected) for mask in masks) for expected in (left, left.flip(-1), torch.ones(1, 8, 8))
    )
    assert plain and mirrored and full and plain + mirrored + full == len(masks)


@pytest.fixture(scope="module")
def self_masked_folder(tmp_path_factory) -> Path:
    """One asymmetric image that is also its mask: both must be cropped and flipped alike."""
    folder = tmp_path_factory.mktemp("self masked")
    ramp = np.add.outer(np.linspace(0, 90, 150), np.linspace(0, 165, 240)).astype(np.uint8)
    Image.fromarray(ramp).convert("RGB").save(folder / "a.png")
    Image.fromarray(ramp).save(folder / "a-masklabel.png")
    return folder


def replace_latents_by_brightness(monkeypatch) -> None:
    """Replace the VAE's latents by the mean grey of their 8 x 8 pixels, 0 to 1, in all channels."""
    from trainers.sdxl import prepare

    def grey(vae, crop, *, flip):
        pixels = torch.from_numpy(np.array(crop.convert("L")))[None].float() / 255
        pixels = pixels.flip(-1) if flip else pixels
        return torch.nn.functional.avg_pool2d(pixels, 8).expand(4, -1, -1).contiguous()

    monkeypatch.setattr(prepare, "encode_image", grey)


CROPS = {
    "bucket": {},
    "random crop": {"resize_mode": "random_crop"},
    "turned": {"rotation_aug": 20, "num_augmented_variants": 2},
    "subject": {"crop_to_subject": "zoom", "subject_margin": 0.0},
}


@pytest.mark.parametrize("crops", CROPS.values(), ids=CROPS)
def test_masks_match_their_latents_however_cropped_and_flipped(
    weights, self_masked_folder, tmp_path, monkeypatch, crops
):
    replace_latents_by_brightness(monkeypatch)
    batches = record_batches(monkeypatch)
    buckets = BucketConfig(resolution=128, extra_resolutions="64", random_flip=True, **crops)
    dataset = replace(scan(self_masked_folder), num_repeats=3)
    train(weights, dataset, tmp_path, buckets=buckets, train_batch_size=2, max_train_steps=8)
    sizes, are_flipped = set(), set()
    for batch in batches:
        assert batch.loss_mask is not None
        # images are resized with LANCZOS, masks with BILINEAR
        torch.testing.assert_close(batch.loss_mask, batch.latents[:, :1], rtol=0, atol=2 / 255)
        sizes.add(tuple(batch.latents.shape[2:]))
        are_flipped |= {bool(mask[0, 0, 0] > mask[0, 0, -1]) for mask in batch.loss_mask}
    assert len(sizes) == 2 and are_flipped == {False, True}


@pytest.mark.parametrize("copies", [{}, {"color_aug": 0.2, "rotation_aug": 9, "num_augmented_variants": 2}])
def test_masks_at_several_resolutions_are_cached_on_the_disk(
    weights, self_masked_folder, tmp_path, monkeypatch, copies
):
    from trainers.dataset import read_ahead
    from trainers.sdxl import encode
    from trainers.training import masks

    settings = {
        "buckets": BucketConfig(resolution=128, extra_resolutions="64", random_flip=True, **copies),
        "train_batch_size": 1,
    }
    first = train(
        weights, scan(self_masked_folder), tmp_path, name="first", cache=TensorCache(tmp_path / "cache"), **settings
    )
    for module, name in ((read_ahead, "read_crop"), (masks, "read_mask_crop"), (encode, "encode_captions")):
        monkeypatch.setattr(module, name, lambda *_: pytest.fail("something was read or encoded again"))
    assert (
        train(
            weights,
            scan(self_masked_folder),
            tmp_path,
            name="second",
            cache=TensorCache(tmp_path / "cache"),
            **settings,
        ).losses
        == first.losses
    )


def test_a_white_mask_changes_nothing_and_a_black_one_scales_the_loss(weights, dataset, tmp_path):
    folder = shutil.copytree(
        dataset.images[0].path.parent, tmp_path / "images", ignore=shutil.ignore_patterns("[123].*")
    )
    (tmp_path / "out").mkdir()
    settings = {"learning_rate": 1e-9, "max_train_steps": 1}
    plain = train(weights, scan(folder), tmp_path / "out", name="plain", **settings).losses
    write_mask(folder, "0", slice(None))
    assert train(weights, scan(folder), tmp_path / "out", name="white", **settings).losses == plain
    write_mask(folder, "0", slice(0))
    host = RecordingHost()
    black = train(
        weights, scan(folder), tmp_path / "out", name="black", host=host, unmasked_weight=0.25, **settings
    ).losses
    assert black == pytest.approx([0.25 * loss for loss in plain], rel=1e-6)
    assert any("0.png: its mask is all black" in event.message for event in host.select(Notice))


def test_masks_are_read_once_and_again_when_they_change(weights, masked_folder, tmp_path, monkeypatch):
    from trainers.training import masks

    folder, cache = shutil.copytree(masked_folder, tmp_path / "images"), TensorCache(tmp_path / "cache")
    first = train(weights, scan(folder), tmp_path, name="first", cache=cache)
    with monkeypatch.context() as patch:
        patch.setattr(masks, "read_mask_crop", lambda item: pytest.fail("a mask was read again"))
        assert (
            train(weights, scan(folder), tmp_path, name="second", cache=TensorCache(tmp_path / "cache")).losses
            == first.losses
        )
    write_mask(folder, "0", slice(40, 64))
    assert train(weights, scan(folder), tmp_path, name="third", cache=cache).losses != first.losses


def test_changed_copies_are_encoded_once_each_and_epochs_take_turns(weights, dataset, tmp_path, monkeypatch):
    """One image, one step per epoch: its latents repeat after as many epochs as it has copies."""
    from trainers.sdxl import prepare

    encoded, batches = [], record_batches(monkeypatch)
    encode = prepare.encode_image
    monkeypatch.setattr(prepare, "encode_image", lambda *args, **kw: encoded.append(1) or encode(*args, **kw))
    one = replace(dataset, images=dataset.images[3:])
    copies = {"color_aug": 0.2, "rotation_aug": 9, "num_augmented_variants": 2}
    settings = {"cache": TensorCache(tmp_path / "cache"), "train_batch_size": 1, "validate_every_n_steps": -1}
    buckets = BucketConfig(resolution=64, **copies)
    train(weights, one, tmp_path, buckets=buckets, max_train_steps=6, name="copies", **settings)
    assert len(encoded) == 3
    latents = [batch.latents for batch in batches]
    assert all(torch.equal(first, later) for first, later in zip(latents[:3], latents[3:], strict=True))
    assert not any(torch.equal(latents[i], latents[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    train(weights, one, tmp_path, buckets=BucketConfig(resolution=64), max_train_steps=1, name="plain", **settings)
    assert len(encoded) == 3 and torch.equal(batches[-1].latents, latents[0])
    sizes = {tuple(batch.add_time_ids[0, 2:4].int().tolist()) for batch in batches}
    assert len(sizes) > 1  # the model is told where each copy is cut


def test_images_are_cropped_to_their_subjects_and_others_are_named(weights, masked_folder, tmp_path):
    host = RecordingHost()
    buckets = BucketConfig(resolution=64, crop_to_subject="center")
    train(weights, scan(masked_folder), tmp_path, buckets=buckets, host=host, max_train_steps=1)
    said = [event.message for event in host.select(Notice) if "crop_to_subject" in event.message]
    assert said == ["crop_to_subject: no mask with white in it, cropped as usual: 1.png, 2.png, 3.png"]


def test_a_crop_to_subjects_that_do_not_exist_is_refused(weights, dataset, tmp_path):
    with pytest.raises(ValueError, match=r"crop_to_subject is zoom, but no image of .* has a mask .* set .* to off"):
        train(weights, dataset, tmp_path, buckets=BucketConfig(resolution=64, crop_to_subject="zoom"))


def test_the_weight_of_an_image_scales_its_loss(weights, dataset, tmp_path, monkeypatch):
    batches, losses = record_batches(monkeypatch), []
    for i, loss_weights in enumerate([(1.0, 1.0, 1.0, 1.0), (0.5, 0.5, 0.5, 0.5), (0.25, 1.0, 1.0, 1.0)]):
        images = [
            replace(image, loss_weight=loss_weight)
            for image, loss_weight in zip(dataset.images, loss_weights, strict=True)
        ]
        losses += train(
            weights,
            replace(dataset, images=images),
            tmp_path,
            name=f"x{i}",
            learning_rate=1e-9,
            train_batch_size=4,
            max_train_steps=1,
        ).losses
    assert losses[1] == pytest.approx(0.5 * losses[0], rel=1e-6) and losses[1] < losses[2] < losses[0]
    given = [batch.loss_weights for batch in batches]
    assert given[0] is None and given[1].tolist() == [0.5] * 4 and sorted(given[2].tolist()) == [0.25, 1.0, 1.0, 1.0]


# ---- prior preservation ----

PRIOR = {"prior_loss_weight": 1.0, "learning_rate": 5e-3, "caption_dropout": 0.0, "lr_scheduler": "constant"}
PRIOR_OF_FOUR = {**PRIOR, "max_train_steps": 3, "train_batch_size": 4}


@pytest.fixture(scope="module")
def prior_of_four(weights, dataset, tmp_path_factory):
    return train(weights, dataset, tmp_path_factory.mktemp("prior"), **PRIOR_OF_FOUR)


def test_the_prior_preserves_the_prediction_for_the_class_prompt(weights, dataset, tmp_path, monkeypatch):
    """It stays at least twice as close to the base model's as with a weight of almost zero."""
    moved: list[float] = []
    real = prepared_model.distillation_losses

    def listen(unet, batch, base_pred, objective):
        losses = real(unet, batch, base_pred, objective)
        moved.append(float(losses.mean().detach()))
        return losses

    monkeypatch.setattr(prepared_model, "distillation_losses", listen)
    for weight in (1e-9, 10.0):
        train(
            weights,
            dataset,
            tmp_path,
            name=f"prior{weight}",
            **{**PRIOR, "prior_loss_weight": weight, "max_train_steps": 12, "class_prompt": "a thing"},
        )
    free, held = moved[:12], moved[12:]
    assert free[0] < 1e-9 and held[0] < 1e-9  # the LoRA starts at zero
    assert 0 < np.mean(held[-6:]) < 0.5 * np.mean(free[-6:])


def test_the_first_step_has_no_prior_loss_yet_and_later_ones_have(weights, dataset, tmp_path):
    """The LoRA starts at zero, so its first prediction is the base model's."""
    plain = train(
        weights, dataset, tmp_path, name="plain", **{**PRIOR, "prior_loss_weight": 0.0, "max_train_steps": 3}
    ).losses
    prior = train(weights, dataset, tmp_path, name="prior", **{**PRIOR, "max_train_steps": 3}).losses
    assert prior[0] == plain[0] and prior[1] > plain[1]


@pytest.mark.parametrize(
    "changes",
    [
        {"gradient_checkpointing": True},
        {"train_batch_size": 1, "gradient_accumulation_steps": 4},
        {"train_batch_size": 2, "gradient_accumulation_steps": 2},
    ],
)
def test_prior_preservation_is_the_same_however_it_is_batched_and_recomputed(
    weights, dataset, prior_of_four, tmp_path, changes
):
    other = train(weights, dataset, tmp_path, name="other", **{**PRIOR_OF_FOUR, **changes})
    torch.testing.assert_close(torch.tensor(other.losses), torch.tensor(prior_of_four.losses), rtol=1e-4, atol=0)


def test_the_base_predicts_with_all_adapters_off_and_they_are_on_again_afterwards(
    weights, dataset, tmp_path, monkeypatch
):
    """This includes the text encoders: their adapters would change the embedding of the prompt."""
    predictions: list[tuple[bool, bool]] = []
    real = prepared_model.predict

    def listen(unet, batch, alphas):
        predictions.append((torch.is_grad_enabled(), batch.prompt_embeds.requires_grad))
        return real(unet, batch, alphas)

    monkeypatch.setattr(prepared_model, "predict", listen)
    adapted: list[AdaptedModel] = []
    real_save = RunWriter.save_final

    def save(writer, **how):
        adapted.append(writer._model.adapted)
        return real_save(writer, **how)

    monkeypatch.setattr(RunWriter, "save_final", save)
    train(
        weights,
        dataset,
        tmp_path,
        train_text_encoders=True,
        prior_loss_weight=1.0,
        max_train_steps=2,
        class_prompt="a thing",
    )
    assert set(predictions) == {(False, False)}
    (model,) = adapted
    parameters = [parameter for group in model.groups for parameter in group.weights.parameters]
    assert all(parameter.requires_grad for parameter in parameters) and model.count_modules().keys() == {
        "unet",
        "text_encoder",
        "text_encoder_2",
    }


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), Interrupted(), KeyError("a bug")])
def test_an_error_while_the_adapters_are_off_leaves_them_on(weights, dataset, tmp_path, monkeypatch, error):
    """The model may belong to the host, and the checkpoint is written after the error."""
    loops: list[TrainingLoop] = []
    real = prepared_model.predict

    def fail_in_the_third_step(unet, batch, alphas):
        if loops[0]._history.num_steps == 2:
            raise error
        return real(unet, batch, alphas)

    monkeypatch.setattr(prepared_model, "predict", fail_in_the_third_step)
    monkeypatch.setattr(TrainingLoop, "run", lambda loop, run=TrainingLoop.run: (loops.append(loop), run(loop))[1])
    with pytest.raises(type(error)):
        train(weights, dataset, tmp_path, train_text_encoders=True, prior_loss_weight=1.0, class_prompt="a thing")
    model = loops[0]._model.model
    layers = [
        layer
        for part in (model.unet, model.text_encoder, model.text_encoder_2)
        for layer in find_adapter_layers(part).values()
    ]
    assert len(layers) > 192 and not any(layer.disable_adapters for layer in layers)
    parameters = [p for group in loops[0]._model.adapted.groups for p in group.weights.parameters]
    assert all(parameter.requires_grad for parameter in parameters) and torch.is_grad_enabled()


def test_without_class_prompt_the_caption_loses_its_trigger_word(weights, dataset, tmp_path, monkeypatch):
    asked: list[str] = []
    real = PreparedSDXL.embed

    def listen(run, captions):
        asked.extend(captions)
        return real(run, captions)

    monkeypatch.setattr(PreparedSDXL, "embed", listen)
    host = RecordingHost()
    train(weights, dataset, tmp_path, host=host, prior_loss_weight=1.0, caption_dropout=0.0)
    message = (
        "prior_loss_weight keeps what the base model draws for 'thing 0' and 3 more. Set class_prompt if that "
        "does not name what should stay"
    )
    assert message in [event.message for event in host.select(Notice)]
    assert set(asked) == {f"{trigger}thing {i}" for trigger in ("zwx, ", "") for i in range(4)}


def test_each_sample_draws_one_of_several_class_prompts(weights, dataset, tmp_path, monkeypatch):
    asked: list[str] = []
    real = PreparedSDXL.embed

    def listen(run, captions):
        asked.extend(captions)
        return real(run, captions)

    monkeypatch.setattr(PreparedSDXL, "embed", listen)
    train(weights, dataset, tmp_path, prior_loss_weight=1.0, class_prompt="a red thing | a blue thing|")
    assert (
        {"a red thing", "a blue thing"}
        <= set(asked)
        <= {"a red thing", "a blue thing", "", *(f"zwx, thing {i}" for i in range(4))}
    )


def test_a_prior_without_any_prompt_is_an_error_before_the_model_is_loaded(dataset, tmp_path):
    for broken, message in (
        (replace(dataset, trigger_word=""), "the dataset has no trigger word"),
        (replace(dataset, trigger_word="qqq"), "0.png's caption does not have the trigger word 'qqq'"),
    ):
        with pytest.raises(ValueError, match=re.escape(message) + ".*Set class_prompt"):
            plan_training(broken, RunSettings(SDXLConfig(**FAST, prior_loss_weight=1.0), BucketConfig(resolution=64)))
    assert not list(tmp_path.rglob("*"))


def test_an_unused_class_prompt_is_reported(weights, dataset, tmp_path):
    host = RecordingHost()
    train(weights, dataset, tmp_path, host=host, class_prompt="a thing", max_train_steps=1)
    assert "class_prompt is not used: prior_loss_weight is 0" in [event.message for event in host.select(Notice)]


# ---- caption variants ----

SHUFFLED = CaptionConfig(shuffle_captions=True, keep_tokens=1, num_caption_variants=4)


@pytest.fixture(scope="module")
def tagged(tmp_path_factory) -> Dataset:
    folder = tmp_path_factory.mktemp("tagged")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(folder / "0.png")
    (folder / "0.txt").write_text("red, round, small, old, wooden")
    return scan_folder(DatasetConfig(images=str(folder), trigger_word="zwx"))


@pytest.mark.parametrize("train_text_encoders", [False, True])
def test_each_step_draws_a_caption_variant_and_the_next_run_draws_the_same(
    weights, tagged, tmp_path, monkeypatch, train_text_encoders
):
    asked: list[list[str]] = []
    real = PreparedSDXL.embed

    def listen(run, captions):
        asked.append(captions)
        return real(run, captions)

    monkeypatch.setattr(PreparedSDXL, "embed", listen)
    settings = {
        "caption_dropout": 0.0,
        "max_train_steps": 12,
        "train_batch_size": 1,
        "train_text_encoders": train_text_encoders,
    }
    first = train(weights, tagged, tmp_path, name="first", captions=SHUFFLED, **settings)
    seen, asked[:] = [caption for (caption,) in asked], []
    assert 2 <= len(set(seen)) <= 4 and all(
        caption.startswith("zwx, ") and len(caption.split(", ")) == 6 for caption in seen
    )
    assert train(weights, tagged, tmp_path, name="second", captions=SHUFFLED, **settings).losses == first.losses
    assert [caption for (caption,) in asked] == seen


def test_all_variants_are_encoded_before_the_first_step_and_never_again(weights, tagged, tmp_path, monkeypatch):
    from trainers.sdxl import encode

    first = train(weights, tagged, tmp_path, name="first", captions=SHUFFLED, cache=TensorCache(tmp_path / "cache"))
    monkeypatch.setattr(encode, "encode_captions", lambda *_: pytest.fail("a caption was encoded again"))
    assert (
        train(weights, tagged, tmp_path, name="second", captions=SHUFFLED, cache=TensorCache(tmp_path / "cache")).losses
        == first.losses
    )


def test_variants_do_not_change_noise_and_timesteps(weights, tagged, tmp_path, monkeypatch):
    batches = record_batches(monkeypatch)
    for name, captions in (("plain", CaptionConfig()), ("shuffled", SHUFFLED)):
        train(weights, tagged, tmp_path, name=name, captions=captions, train_batch_size=1)
    for plain, shuffled in zip(batches[:4], batches[4:], strict=True):
        assert torch.equal(plain.noise, shuffled.noise) and torch.equal(plain.timesteps, shuffled.timesteps)


def test_the_lora_and_the_manifest_record_the_settings(weights, masked_folder, tmp_path):
    result = train(weights, scan(masked_folder), tmp_path, prior_loss_weight=0.5, captions=SHUFFLED, max_train_steps=1)
    expected = {
        "ss_prior_loss_weight": "0.5",
        "ss_shuffle_caption": "True",
        "ss_keep_tokens": "1",
        "ss_masked_loss": "True",
        "ss_num_reg_images": "0",
    }
    assert {name: result.metadata[name] for name in expected} == expected
    (manifest,) = tmp_path.rglob("manifest.json")
    assert json.loads(manifest.read_text())["captions"]["num_caption_variants"] == 4
    assert json.loads(result.metadata["lora_trainer_config"])["unmasked_weight"] == 0.1


def test_the_lora_counts_images_by_folder_as_in_sd_scripts(weights, tmp_path):
    """The datasets: one with kohya's folders, one with repeats and an image that is too small, and
    one of regularization images.
    """
    sizes = {
        "toys/2_ball/a": 64,
        "toys/2_ball/b": 64,
        "toys/5_car/a": 64,
        "cats/a": 64,
        "cats/small": 20,
        "old/1_ball/a": 64,
    }
    for number, (name, size) in enumerate(sizes.items()):
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (size, size), (40 * number, 0, 0)).save(path)
        path.with_suffix(".txt").write_text("red, round")
    toys = scan_folder(DatasetConfig(images=str(tmp_path / "toys"), trigger_word="zwx", num_repeats=3))
    cats = scan_folder(DatasetConfig(images=str(tmp_path / "cats"), num_repeats=4))
    old = scan_folder(DatasetConfig(images=str(tmp_path / "old"), is_regularization=True, loss_weight=0.5))
    metadata = train(weights, join_datasets([toys, cats, old]), tmp_path / "out", max_train_steps=1).metadata
    assert json.loads(metadata["ss_dataset_dirs"]) == {
        "2_ball": {"n_repeats": 6, "img_count": 2},
        "5_car": {"n_repeats": 15, "img_count": 1},
        "cats": {"n_repeats": 4, "img_count": 1},
    }
    assert json.loads(metadata["ss_reg_dataset_dirs"]) == {"1_ball": {"n_repeats": 1, "img_count": 1}}
    assert json.loads(metadata["ss_tag_frequency"])["2_ball"] == {"zwx": 2, "red": 2, "round": 2}
    expected = {"ss_num_train_images": "31", "ss_num_reg_images": "31", "ss_prior_loss_weight": "0.5"}
    assert {name: metadata[name] for name in expected} == expected
    (bucket,) = json.loads(metadata["ss_bucket_info"])["buckets"].values()
    assert bucket == {"resolution": [64, 64], "count": 62}


@pytest.mark.parametrize("base_dtype", BASE_DTYPES)
def test_a_base_of_fewer_bits_trains_nearly_the_same_and_is_another_run(weights, dataset, tmp_path, base_dtype):
    host, given = RecordingHost(), {"learning_rate": 1e-3, "lr_scheduler": "constant", "gradient_checkpointing": True}
    plain = train(weights, dataset, tmp_path, name="plain", **given)
    small = train(weights, dataset, tmp_path, name="small", host=host, base_dtype=base_dtype, resume="auto", **given)
    again = train(weights, dataset, tmp_path, name="small", base_dtype=base_dtype, resume="auto", **given)
    assert any(f"base_dtype {base_dtype}: 192 layers" in event.message for event in host.select(Notice))
    assert not small.was_loaded and again.was_loaded
    assert small.losses != plain.losses
    np.testing.assert_allclose(small.losses, plain.losses, rtol=0.15)
    assert load_file(small.path).keys() == load_file(plain.path).keys()
