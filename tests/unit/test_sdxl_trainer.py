"""The trainer as a whole, on the embedded base's shape with random weights: files, interrupts, bad numbers, continuing a LoRA."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from trainers.base import CheckpointSaved, Event, Interrupted, Notice, SamplesDrawn, StageStarted, StepDone
from trainers.buckets import BucketConfig
from trainers.cache import TensorCache
from trainers.dataset import Dataset, DatasetConfig, scan_folder
from trainers.embedded_base.architecture import build_text_encoders, build_unet, build_vae
from trainers.host import DeviceMemory
from trainers.lora_format import kohya_names, read_lora, verify_lora, weighted_modules
from trainers.run_folder import RunFolder
from trainers.sdxl.config import SDXLConfig
from trainers.sdxl.model import SDXLModel, build_model
from trainers.sdxl.trainer import NonFiniteLoss, SDXLTrainer, TrainingLoop

FAST = {"rank": 2, "alpha": 1.0, "max_train_steps": 4, "train_batch_size": 2, "gradient_checkpointing": False, "learning_rate": 1e-3, "lr_warmup_steps": 0.0}


class RecordingHost(DeviceMemory):
    """A host that writes down what it is told, and cancels when it is told to."""

    def __init__(self, *, cancel_at_step: int | None = None) -> None:
        super().__init__(torch.device("cpu"))
        self.events: list[Event] = []
        self._cancel_at_step = cancel_at_step

    def report(self, event: Event) -> None:
        self.events.append(event)

    def check_interrupted(self) -> None:
        if self._cancel_at_step is not None and len(self.of(StepDone)) >= self._cancel_at_step:
            raise Interrupted

    def of(self, kind: type) -> list:
        return [event for event in self.events if isinstance(event, kind)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    folder = tmp_path_factory.mktemp("pictures")
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
    weights, dataset, folder: Path, *, host: RecordingHost | None = None, name: str = "x", cache: TensorCache | None = None, flip: bool = False, **settings
):
    config = SDXLConfig(**{**FAST, **settings})
    run_folder = RunFolder(folder, name)
    trainer = SDXLTrainer(
        config, BucketConfig(resolution=64, random_flip=flip), lambda: copy_model(weights), run_folder=run_folder, cache=cache or TensorCache(None)
    )
    return trainer.train(dataset, host or RecordingHost())


def names_of(weights):
    model = copy_model(weights)
    return kohya_names(*(weighted_modules(part) for part in (model.unet, model.text_encoder, model.text_encoder_2)))


def test_a_run_leaves_a_verified_lora_and_everything_about_it(weights, dataset, tmp_path):
    host = RecordingHost()
    result = train(weights, dataset, tmp_path, host=host, save_every_n_steps=2)
    assert result.path == tmp_path / "x.safetensors" and result.steps == len(result.losses) == 4
    assert [path.name for path in result.checkpoints] == ["x-step00000002.safetensors"]
    (run,) = (tmp_path / "runs").iterdir()
    assert {path.name for path in run.iterdir()} == {"manifest.json", "dataset.txt", "loss.csv", "loss.png", "run.log", "checkpoints"}
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["modules"] == {"unet": 192} and manifest["training"]["rank"] == 2 and len(manifest["dataset"]["images"]) == 4
    assert len((run / "loss.csv").read_text().splitlines()) == 5
    with safe_open(result.path, "pt") as file:
        metadata = file.metadata()
    assert metadata["ss_network_dim"] == "2" and metadata["ss_steps"] == "4" and metadata["modelspec.trigger_phrase"] == "zwx"
    assert [event.stage for event in host.of(StageStarted)] == ["loading", "caching", "caching", "training", "saving"]
    assert [event.step for event in host.of(StepDone)] == [1, 2, 3, 4]
    assert "192/192 modules load" in host.of(Notice)[-1].message
    saved = load_file(result.path)
    assert saved.keys() == result.state_dict.keys() and all(torch.equal(saved[key], tensor) for key, tensor in result.state_dict.items())


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(weights, dataset, tmp_path):
    results = [train(weights, dataset, tmp_path, name=f"run{i}", seed=seed) for i, seed in enumerate((0, 0, 1))]
    assert results[0].losses == results[1].losses != results[2].losses
    assert all(torch.equal(tensor, results[1].state_dict[key]) for key, tensor in results[0].state_dict.items())


def test_training_leaves_the_global_generators_alone(weights, dataset, tmp_path):
    before = torch.random.get_rng_state()
    train(weights, dataset, tmp_path, lora_dropout=0.3, flip=True, noise_offset=0.05)
    assert torch.equal(before, torch.random.get_rng_state())


def test_dropout_flip_and_noise_offset_each_change_the_losses(weights, dataset, tmp_path):
    plain = train(weights, dataset, tmp_path, name="plain").losses
    for i, (setting, flip) in enumerate([({"lora_dropout": 0.5}, False), ({}, True), ({"noise_offset": 0.1}, False), ({"caption_dropout": 1.0}, False)]):
        assert train(weights, dataset, tmp_path, name=f"run{i}", flip=flip, **setting).losses != plain


def test_only_the_adapters_are_trained(weights, dataset, tmp_path):
    model = copy_model(weights)
    trainer = SDXLTrainer(SDXLConfig(**FAST), BucketConfig(resolution=64), lambda: model, run_folder=RunFolder(tmp_path, "x"), cache=TensorCache(None))
    trainer.train(dataset, RecordingHost())
    trained = {name.replace(".base_layer", ""): tensor for name, tensor in model.unet.state_dict().items() if "lora_" not in name}
    assert all(torch.equal(trained[name], tensor) for name, tensor in weights["unet"].items())


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
@pytest.mark.parametrize(
    "batching", [{"train_batch_size": 4}, {"train_batch_size": 2, "gradient_accumulation_steps": 2}, {"train_batch_size": 1, "gradient_accumulation_steps": 4}]
)
def test_a_step_is_the_same_however_it_is_batched(weights, dataset, tmp_path, batching, gradient_checkpointing):
    reference = train(weights, dataset, tmp_path, name="reference", train_batch_size=4, max_train_steps=2)
    other = train(weights, dataset, tmp_path, name="other", max_train_steps=2, gradient_checkpointing=gradient_checkpointing, **batching)
    torch.testing.assert_close(torch.tensor(other.losses), torch.tensor(reference.losses), rtol=1e-5, atol=0)


def test_accumulation_divides_by_the_real_size_of_the_last_group(weights, dataset, tmp_path):
    """Four pictures in groups of three: three samples, then one; the loss stays a mean."""
    host = RecordingHost()
    result = train(
        weights, dataset, tmp_path, host=host, train_batch_size=1, gradient_accumulation_steps=3, num_train_epochs=2, learning_rate=1e-9, caption_dropout=0.0
    )
    assert result.steps == 4 and [event.epoch for event in host.of(StepDone)] == [1, 1, 2, 2]
    assert max(result.losses) < 3 * min(result.losses)


def test_text_encoders_are_trained_each_at_its_own_rate(weights, dataset, tmp_path):
    result = train(weights, dataset, tmp_path, train_text_encoders=True, text_encoder_learning_rate=1e-4, text_encoder_2_learning_rate=0.0)
    prefixes = {key.split("_")[1] for key in result.state_dict}
    assert prefixes == {"unet", "te1"}
    assert not any("layers_2_" in key for key in result.state_dict if key.startswith("lora_te1_"))  # its last layer never gets a gradient
    both = train(weights, dataset, tmp_path, name="both", train_text_encoders=True)
    assert sum(key.endswith(".alpha") and key.startswith("lora_te2_") for key in both.state_dict) == 18
    moved = {key: tensor.abs().sum() for key, tensor in both.state_dict.items() if key.endswith("lora_up.weight")}
    assert all(norm > 0 for norm in moved.values())


def test_the_learning_rate_of_each_encoder_is_its_own(weights, dataset, tmp_path):
    """At a rate of 1e-9 an adapter stays where it was, at 1e-3 it moves."""
    result = train(weights, dataset, tmp_path, train_text_encoders=True, text_encoder_learning_rate=1e-9, text_encoder_2_learning_rate=1e-3, save_dtype="fp32")
    largest = {
        part: max(float(t.abs().max()) for k, t in result.state_dict.items() if k.startswith(f"lora_{part}_") and "lora_up" in k) for part in ("te1", "te2")
    }
    assert largest["te1"] < 1e-7 and largest["te2"] > 1e-4


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_with_adapters_in_float32(weights, dataset, tmp_path, precision):
    exact = train(weights, dataset, tmp_path, name="exact").losses
    result = train(weights, dataset, tmp_path, name="half", mixed_precision=precision, save_dtype="fp32")
    np.testing.assert_allclose(result.losses, exact, rtol=0.05)
    up = next(tensor for key, tensor in result.state_dict.items() if key.endswith("lora_up.weight"))
    assert up.dtype == torch.float32 and not torch.equal(up, up.to(torch.bfloat16).float())


def test_cancelling_keeps_a_checkpoint_of_the_last_step_and_no_final_file(weights, dataset, tmp_path):
    host = RecordingHost(cancel_at_step=3)
    with pytest.raises(Interrupted):
        train(weights, dataset, tmp_path, host=host, max_train_steps=100)
    (checkpoint,) = tmp_path.rglob("*.safetensors")
    assert checkpoint.name == "x-step00000003.safetensors"
    assert [event.step for event in host.of(CheckpointSaved)] == [3]
    verify_lora(checkpoint, names_of(weights), expected=list(read_lora(checkpoint, names_of(weights))))
    assert not list(tmp_path.rglob("*.tmp")) and list(tmp_path.rglob("loss.png"))


def test_cancelling_before_the_first_step_leaves_no_lora_and_no_half_file(weights, dataset, tmp_path):
    with pytest.raises(Interrupted):
        train(weights, dataset, tmp_path, host=RecordingHost(cancel_at_step=0))
    assert not list(tmp_path.rglob("*.safetensors")) and not list(tmp_path.rglob("*.tmp"))


def test_a_loss_that_is_not_finite_stops_with_step_dtype_and_remedy(weights, dataset, tmp_path):
    with pytest.raises(NonFiniteLoss, match=r"step \d+: loss .* in float32\. Lower the learning rate, and check the base model"):
        train(weights, dataset, tmp_path, learning_rate=10.0, max_train_steps=200, optimizer_args="weight_decay=0.0 betas=(0.0,0.0)", max_grad_norm=0.0)
    for checkpoint in tmp_path.rglob("*.safetensors"):
        assert all(torch.isfinite(tensor.float()).all() for tensor in load_file(checkpoint).values())


def test_nan_in_the_base_model_stops_at_the_first_step_with_nothing_saved(weights, dataset, tmp_path):
    broken = {**weights, "unet": {**weights["unet"], "conv_out.bias": torch.full((4,), math.nan)}}
    with pytest.raises(NonFiniteLoss, match="step 1: loss nan"):
        train(broken, dataset, tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_nan_in_the_vae_names_the_picture_and_caches_nothing(weights, dataset, tmp_path):
    broken = {**weights, "vae": {**weights["vae"], "quant_conv.bias": torch.full((8,), math.nan)}}
    with pytest.raises(ValueError, match=r"0\.png: the VAE gave NaN or infinite latents in float32"):
        train(broken, dataset, tmp_path / "out", cache=TensorCache(tmp_path / "cache"))
    assert not list(tmp_path.rglob("*"))


def test_the_second_run_encodes_nothing(weights, dataset, tmp_path, monkeypatch):
    first = train(weights, dataset, tmp_path, name="first", cache=TensorCache(tmp_path / "cache"))
    from trainers.sdxl import encode

    monkeypatch.setattr(encode, "read_crop", lambda item: pytest.fail("a picture was read again"))
    monkeypatch.setattr(encode, "encode_captions", lambda *_: pytest.fail("a caption was encoded again"))
    assert train(weights, dataset, tmp_path, name="second", cache=TensorCache(tmp_path / "cache")).losses == first.losses


def test_another_vae_or_text_encoder_is_not_served_from_the_cache(weights, dataset, tmp_path):
    cache = TensorCache(tmp_path / "cache")
    first = train(weights, dataset, tmp_path, name="first", cache=cache)
    for part, name in (("vae", "encoder.conv_in.weight"), ("text_encoder_2", "text_projection.weight")):
        changed = {**weights, part: {key: tensor * 1.01 if key.endswith(name) else tensor for key, tensor in weights[part].items()}}
        assert train(changed, dataset, tmp_path, name=part, cache=cache).losses != first.losses


def test_training_continues_from_a_lora_with_its_strength(weights, dataset, tmp_path):
    first = train(weights, dataset, tmp_path, name="first", save_dtype="fp32", max_train_steps=8)
    names = names_of(weights)
    before = read_lora(first.path, names)
    continued = train(
        weights, dataset, tmp_path, name="next", save_dtype="fp32", network_weights=str(first.path), learning_rate=1e-9, max_train_steps=1, alpha=2.0
    )
    for key, module in read_lora(continued.path, names).items():
        expected = before[key].alpha / before[key].rank * before[key].up @ before[key].down
        torch.testing.assert_close(module.alpha / module.rank * module.up @ module.down, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 4}, "has rank 2, this run has rank 4. Set rank to 2"),
        ({"target_modules": "attention"}, "modules of the file are not trained in this run, such as lora_unet_"),
    ],
)
def test_a_lora_that_does_not_fit_the_run_is_an_error(weights, dataset, tmp_path, settings, message):
    first = train(weights, dataset, tmp_path, name="first", max_train_steps=1)
    with pytest.raises(ValueError, match=re.escape(message)):
        train(weights, dataset, tmp_path, name="next", network_weights=str(first.path), **settings)


@pytest.mark.parametrize(
    ("target_modules", "message"),
    [("attn[", "is neither attention nor attention_mlp nor a regular expression"), ("nothing", "matches no linear or convolution layer of the UNet")],
)
def test_targets_that_choose_nothing_are_an_error_and_nothing_is_written(weights, dataset, tmp_path, target_modules, message):
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


def test_a_name_taken_while_the_training_ran_loses_nothing(weights, dataset, tmp_path):
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

    from trainers import lora_format

    real = lora_format.save_lora

    def full(path, *rest):
        if path.name == "x.safetensors":
            raise OSError(errno.ENOSPC, f"{path}: the disk is full")
        real(path, *rest)

    monkeypatch.setattr("trainers.sdxl.trainer.save_lora", full)
    with pytest.raises(OSError, match="the disk is full"):
        train(weights, dataset, tmp_path, save_every_n_steps=2)
    assert [path.name for path in tmp_path.rglob("*.safetensors")] == ["x-step00000002.safetensors"]


def test_overfitting_one_picture_brings_the_loss_down(weights, tmp_path):
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


@pytest.mark.parametrize("settings", [{}, {"lora_dropout": 0.5, "gradient_checkpointing": True}, {"train_text_encoders": True}])
def test_drawing_samples_changes_nothing_of_the_training(weights, dataset, tmp_path, settings):
    plain = train(weights, dataset, tmp_path, name="plain", **settings)
    host = RecordingHost()
    sampled = train(weights, dataset, tmp_path, name="sampled", host=host, sample_every_n_steps=2, sample_prompt="zwx", **settings)
    assert sampled.losses == plain.losses
    assert all(torch.equal(sampled.state_dict[name], tensor) for name, tensor in plain.state_dict.items())
    drawn = host.of(SamplesDrawn)
    assert [event.step for event in drawn] == [0, 2, 4]
    assert [event.path.name for event in drawn] == [f"sampled-step{step:08d}.png" for step in (0, 2, 4)]
    pictures = [np.asarray(Image.open(event.path)) for event in drawn]
    assert pictures[0].shape == (64, 128, 3) and not np.array_equal(pictures[0], pictures[2])


def test_running_out_of_memory_keeps_the_steps_before_it(weights, dataset, tmp_path, monkeypatch):
    steps = TrainingLoop._train_step

    def out_of_memory_at_three(self, step, micro_batches):
        if step == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return steps(self, step, micro_batches)

    monkeypatch.setattr(TrainingLoop, "_train_step", out_of_memory_at_three)
    with pytest.raises(torch.OutOfMemoryError):
        train(weights, dataset, tmp_path)
    assert [path.name for path in tmp_path.rglob("*.safetensors")] == ["x-step00000002.safetensors"]
