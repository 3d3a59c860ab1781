"""An SDXL run that was stopped goes on bit for bit, whatever it trains."""

from typing import Any

import pytest
import torch

from tests.unit.sdxl.test_trainer import RecordingHost, dataset, train, weights  # noqa: F401 (fixtures)
from trainers.files.tensor_cache import TensorCache
from trainers.training.events import Interrupted, Notice, StepDone

CASES: dict[str, dict[str, Any]] = {
    "text encoders": {"train_text_encoders": True, "text_encoder_learning_rate": 1e-3},
    "fp16 with scaler": {"mixed_precision": "fp16"},
    "prior preservation and dropout": {"prior_loss_weight": 0.5, "class_prompt": "a thing", "lora_dropout": 0.3},
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
