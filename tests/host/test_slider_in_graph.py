"""Train Slider LoRA (SDXL) on a real server."""

from typing import Any

import pytest
from safetensors import safe_open

from tests.host.test_training_in_graph import PLAIN, get_facts, sink
from trainers.comfyui.client import Prompt, PromptFailed
from trainers.comfyui.server import ComfyServer

TINY = {"resolution": 64, "rank": 2, "alpha": 2.0, "train_batch_size": 1, "max_train_steps": 2, "num_drawings": 3}
PROMPTS = {"target": "a circle", "positive": "a large circle", "negative": "a small circle"}


def make_prompt(**settings: Any) -> Prompt:
    inputs = {"model": ["base", 0], "clip": ["base", 1], "vae": ["base", 2]}
    return {
        "base": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "embedded_base.safetensors"}},
        "trainer": {
            "class_type": "LoRATrainer_TrainSlider",
            "inputs": {**inputs, **TINY, **PLAIN, **PROMPTS, **settings},
        },
        "sink": sink(),
    }


def test_a_slider_is_trained_without_images_and_loads_whole(comfyui_server: ComfyServer):
    facts = get_facts(
        comfyui_server.client.run(make_prompt(output_name="size", sample_every_n_steps=2, sample_steps=1))
    )
    assert (facts["steps"], facts["modules"]) == (2, 192)
    with safe_open(facts["path"], "pt") as file:
        assert "from -2 to 2" in file.metadata()["modelspec.usage_hint"]


def test_two_equal_prompts_are_refused_on_the_node(comfyui_server: ComfyServer):
    with pytest.raises(PromptFailed, match="positive and negative are both 'a large circle'"):
        comfyui_server.client.run(make_prompt(negative="a large circle"))
