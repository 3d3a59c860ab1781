"""The Flight Check node on a real server: its report and image, the dataset that it passes on to
the trainer, and the reason for a refusal.
"""

import io
import json
import re
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from trainers.comfyui.client import Prompt, PromptFailed, Result
from trainers.comfyui.server import ComfyServer
from trainers.demo.concept import TRIGGER_WORD

SETTINGS = {
    "resolution": 64,
    "bucket_reso_steps": 32,
    "rank": 2,
    "train_batch_size": 2,
    "gradient_accumulation_steps": 1,
    "max_train_steps": 3,
}


def prompt(*, folder: str = "toadstools", **settings: Any) -> Prompt:
    return {
        "pictures": {
            "class_type": "LoRATrainer_LoadImages",
            "inputs": {"folder": folder, "trigger_word": TRIGGER_WORD},
        },
        "check": {
            "class_type": "LoRATrainer_FlightCheck",
            "inputs": {"dataset": ["pictures", 0], **SETTINGS, **settings},
        },
    }


def test_the_node_reports_draws_and_passes_on_the_dataset(comfyui_server: ComfyServer):
    client = comfyui_server.client
    base = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "embedded_base.safetensors"}}
    links = {"model": ["base", 0], "clip": ["base", 1], "vae": ["base", 2], "dataset": ["check", 0]}
    train = {"class_type": "LoRATrainer_LoRATrainSDXL", "inputs": {**links, **SETTINGS, "optimizer": "AdamW"}}
    show = {"class_type": "SaveImage", "inputs": {"images": ["check", 2], "filename_prefix": "check"}}
    steps = {"class_type": "PreviewAny", "inputs": {"source": ["train", 5]}}
    result = client.run({**prompt(stop_at="never"), "base": base, "train": train, "show": show, "steps": steps})
    (text,) = result.outputs["check"]["text"]
    facts = result.outputs["check"]["lora_trainer"][0]
    assert text.startswith("Flight check of toadstools: ready: ") and "Steps: 3, " in text
    assert facts["num_pictures"] == 12 and facts["cost"]["schedule"]["total_steps"] == 3 and not facts["refused"]
    on_node, saved = fetch_image(result, "check", comfyui_server), fetch_image(result, "show", comfyui_server)
    assert on_node.shape[1] == 1280 and np.abs(on_node.astype(int) - saved).max() <= 1
    assert result.outputs["train"]["lora_trainer"][0]["steps"] == 3


def fetch_image(result: Result, node: str, server: ComfyServer) -> np.ndarray:
    (file,) = result.files(node)
    return np.asarray(Image.open(io.BytesIO(server.client.fetch(file))).convert("RGB"))


def test_a_refusal_says_what_to_fix_and_shows_the_image(comfyui_server: ComfyServer):
    previews = []
    with pytest.raises(PromptFailed, match="Flight check of toadstools: refused") as failure:
        comfyui_server.client.run(
            prompt(stop_at="warning"),
            on_message=lambda message: previews.append(message) if message.kind == "preview" else None,
        )
    message = str(failure.value)
    assert "3 steps do not reach every image" in message and "set stop_at to error or never to train anyway" in message
    assert Image.open(io.BytesIO(previews[-1].data["image"])).width > 500


def test_open_settings_are_resolved_as_in_the_trainer(comfyui_server: ComfyServer):
    result = comfyui_server.client.run(
        prompt(
            stop_at="never",
            max_train_steps=0,
            goal="person",
            memory="8 GB",
            train_batch_size=0,
            gradient_accumulation_steps=0,
        )
    )
    facts = result.outputs["check"]["lora_trainer"][0]
    assert facts["cost"]["schedule"]["total_steps"] == 12 * 100 // 2
    assert facts["presets"] == {
        "goal": "person",
        "memory": "8 GB",
        "given": {"rank": 2, "resolution": 64},
        "chosen": {"max_train_steps": 12 * 100 // 2, "train_batch_size": 1, "gradient_accumulation_steps": 2},
    }


def test_settings_of_a_lora_replace_those_of_the_node(comfyui_server: ComfyServer):
    header = {"lora_trainer_config": json.dumps({"max_train_steps": 5, "rank": 4, "seed": 9, "magic": 1})}
    loras = comfyui_server.base_directory / "models" / "loras"
    save_file({"x.alpha": torch.ones(())}, loras / "earlier.safetensors", header)
    earlier = {"class_type": "LoRATrainer_TrainingSettings", "inputs": {"lora": "earlier.safetensors"}}
    result = comfyui_server.client.run({**prompt(stop_at="never", settings=["earlier", 0]), "earlier": earlier})
    assert result.outputs["check"]["lora_trainer"][0]["cost"]["schedule"]["total_steps"] == 5
    (text,) = result.outputs["earlier"]["text"]
    assert "rank: 4" in text and "magic 1: there is no such setting here" in text


def test_with_a_model_the_report_is_on_that_model(comfyui_server: ComfyServer):
    base = {
        "class_type": "FlowPack_LoadTinyModel",
        "inputs": {"family": "Z-Image", "file_name": "z_image_turbo.safetensors", "class_name": ""},
    }
    links = {"model": ["base", 0], "clip": ["base", 1]}
    result = comfyui_server.client.run({**prompt(stop_at="never", max_train_steps=40, **links), "base": base})
    (text,) = result.outputs["check"]["text"]
    facts = result.outputs["check"]["lora_trainer"][0]
    assert facts["model"] == "Z-Image (z_image_turbo)" and "Model: Z-Image (z_image_turbo)" in text
    kinds = {finding["kind"]: finding["message"] for finding in facts["findings"]}
    assert kinds["model"].startswith("z_image_turbo is distilled") and "refused_by_trainer" not in kinds
    assert "uncounted_captions" not in kinds
    assert 0 < facts["cost"]["memory_bytes"] < 2**30  # CUDA's context is nearly all of it
    assert fetch_image(result, "check", comfyui_server).shape[1] == 1280


def test_without_clip_it_says_that_captions_were_not_counted(comfyui_server: ComfyServer):
    base = {
        "class_type": "FlowPack_LoadTinyModel",
        "inputs": {"family": "Z-Image", "file_name": "z_image.safetensors", "class_name": ""},
    }
    result = comfyui_server.client.run({**prompt(stop_at="never", model=["base", 0]), "base": base})
    assert (
        "Z-Image was trained with at most 512 tokens. Connect clip to count them" in result.outputs["check"]["text"][0]
    )


@pytest.mark.parametrize(
    ("base", "settings", "message"),
    [
        (
            {
                "class_type": "FlowPack_LoadTinyModel",
                "inputs": {"family": "Z-Image", "file_name": "z_image.safetensors", "class_name": ""},
            },
            {"target_modules": "atn"},
            "target_modules: 'atn' matches no linear layer of NextDiT. Use auto",
        ),
        (
            {
                "class_type": "FlowPack_LoadTinyModel",
                "inputs": {"family": "Z-Image", "file_name": "z_image.safetensors", "class_name": ""},
            },
            {"clip": ["other", 1]},
            "CLIP gives texts of width ",
        ),
        (
            {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "embedded_base.safetensors"}},
            {"clip": ["last", 0]},
            "CLIP Set Last Layer is -1; SDXL is trained on the penultimate layer",
        ),
    ],
)
def test_it_refuses_models_and_layers_as_the_trainer_does(
    comfyui_server: ComfyServer, base: dict[str, Any], settings: dict[str, Any], message: str
):
    more = {
        "last": {"class_type": "CLIPSetLastLayer", "inputs": {"clip": ["base", 1], "stop_at_clip_layer": -1}},
        "other": {
            "class_type": "FlowPack_LoadTinyModel",
            "inputs": {"family": "FLUX.1", "file_name": "flux.safetensors", "class_name": ""},
        },
    }
    asked = {**prompt(model=["base", 0], max_train_steps=400, **settings), "base": base}
    linked = settings["clip"][0] if "clip" in settings else ""
    with pytest.raises(PromptFailed, match=f"the trainer would stop: {re.escape(message)}"):
        comfyui_server.client.run({**asked, **{name: node for name, node in more.items() if name == linked}})


def test_it_refuses_a_lora_to_start_from_that_is_for_another_model(comfyui_server: ComfyServer):
    loras = comfyui_server.base_directory / "models" / "loras"
    names = ("layers_0_attention_qkv", "no_such_layer")
    factors = {f"lora_unet_{name}.lora_{way}.weight": torch.ones(2, 2) for name in names for way in ("down", "up")}
    save_file(factors, loras / "of_another_model.safetensors")
    base = {
        "class_type": "FlowPack_LoadTinyModel",
        "inputs": {"family": "Z-Image", "file_name": "z_image.safetensors", "class_name": ""},
    }
    asked = prompt(model=["base", 0], max_train_steps=400, network_weights="of_another_model.safetensors")
    with pytest.raises(PromptFailed, match=r"the trainer would stop: .*of_another_model.safetensors: "):
        comfyui_server.client.run({**asked, "base": base})
