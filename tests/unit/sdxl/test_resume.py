"""An SDXL run that was stopped goes on bit for bit, whatever it trains."""

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.sdxl import test_trainer
from tests.unit.sdxl.test_trainer import RecordingHost, dataset, weights  # noqa: F401 (fixtures)
from trainers.dataset.bucket_config import BucketConfig
from trainers.dataset.config import DatasetConfig
from trainers.dataset.scan import scan_folder
from trainers.files.tensor_cache import TensorCache
from trainers.training.events import Event, Interrupted, Notice, SamplesDrawn, StageProgress, StageStarted, StepDone

train = partial(test_trainer.train, resume="auto")

CASES: dict[str, dict[str, Any]] = {
    "text encoders": {"train_text_encoders": True, "text_encoder_learning_rate": 1e-3},
    "fp16 with scaler": {"mixed_precision": "fp16"},
    "prior preservation and dropout": {"prior_loss_weight": 0.5, "class_prompt": "a thing", "lora_dropout": 0.3},
    "text encoders that stop": {"train_text_encoders": True, "stop_text_encoder_training": 2.0, "lora_dropout": 0.2},
    "schedule-free": {"optimizer": "AdamWScheduleFree", "lr_scheduler": "constant", "immiscible_noise": 3},
    "changed copies": {"buckets": BucketConfig(resolution=64, color_aug=0.2, rotation_aug=9, num_augmented_variants=2)},
    "8-bit": {"optimizer": "AdamW8bit", "optimizer_args": "min_8bit_size=1"},
}


@pytest.mark.parametrize("given", CASES.values(), ids=list(CASES))
def test_a_stopped_run_equals_one_that_was_not(weights, dataset, tmp_path, given):  # noqa: F811
    whole = train(weights, dataset, tmp_path / "whole", max_train_steps=6, **given)
    with pytest.raises(Interrupted):
        train(weights, dataset, tmp_path / "parts", host=RecordingHost(cancel_at_step=3), max_train_steps=6, **given)
    host = RecordingHost()
    trained = train(weights, dataset, tmp_path / "parts", host=host, max_train_steps=6, **given)
    assert len(host.select(StepDone)) == 3 and trained.losses == whole.losses
    assert all(torch.equal(trained.state_dict[name], tensor) for name, tensor in whole.state_dict.items())


def test_the_base_model_is_part_of_what_a_run_is(weights, dataset, tmp_path):  # noqa: F811
    """One changed tensor, as a LoRA under the model changes it."""
    cache = TensorCache(None)
    train(weights, dataset, tmp_path, cache=cache)
    unet = dict(weights["unet"])
    name = next(name for name in unet if name.endswith("to_q.weight"))
    unet[name] = unet[name] + 1e-3
    host = RecordingHost()
    with pytest.raises(FileExistsError, match="Choose another output name"):
        train({**weights, "unet": unet}, dataset, tmp_path, host=host)
    assert not host.select(StepDone)
    again = train(weights, dataset, tmp_path, host=host)
    assert again.was_loaded and any("has trained this already" in event.message for event in host.select(Notice))


class ActingHost(RecordingHost):
    """Does something at an event of a kind, once."""

    def __init__(self, kind: type, act: Any) -> None:
        super().__init__()
        self._kind, self._act = kind, act

    def report(self, event: Event) -> None:
        super().report(event)
        if isinstance(event, self._kind) and self._act is not None:
            act, self._act = self._act, None
            act(event)


def interrupt(event: Event) -> None:
    raise Interrupted


@pytest.mark.parametrize("kind", [StageStarted, StageProgress, SamplesDrawn, StepDone])
def test_an_interrupt_in_any_stage_leaves_nothing_in_the_way(weights, dataset, tmp_path, kind):  # noqa: F811
    """StageStarted is the loading of the model, StageProgress the caching of images."""
    given = {"sample_every_n_steps": 2}
    whole = train(weights, dataset, tmp_path / "whole", **given)
    with pytest.raises(Interrupted):
        train(weights, dataset, tmp_path / "parts", host=ActingHost(kind, interrupt), **given)
    trained = train(weights, dataset, tmp_path / "parts", **given)
    assert trained.losses == whole.losses and trained.path.name == "x.safetensors"
    assert not list((tmp_path / "parts").rglob("*.tmp"))


@pytest.mark.parametrize("change", ["deleted", "replaced"])
def test_images_are_read_before_the_first_step(weights, dataset, tmp_path, change):  # noqa: F811
    folder = tmp_path / "images"
    shutil.copytree(Path(dataset.images[0].path).parent, folder)
    own = scan_folder(DatasetConfig(images=str(folder), trigger_word="zwx"))

    def spoil(event: Event) -> None:
        (folder / "0.png").unlink()
        if change == "replaced":
            shutil.copyfile(folder / "1.png", folder / "0.png")

    trained = train(weights, own, tmp_path / "spoiled", host=ActingHost(StepDone, spoil))
    assert trained.losses == train(weights, dataset, tmp_path / "whole").losses


def test_an_image_that_is_gone_before_it_is_read_is_named(weights, dataset, tmp_path):  # noqa: F811
    folder = tmp_path / "images"
    shutil.copytree(Path(dataset.images[0].path).parent, folder)
    own = scan_folder(DatasetConfig(images=str(folder), trigger_word="zwx"))
    (folder / "0.png").unlink()
    with pytest.raises(RuntimeError, match=r"0\.png: it cannot be read"):
        train(weights, own, tmp_path / "output")
    assert not (tmp_path / "output" / "runs").exists()
