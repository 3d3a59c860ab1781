"""Save LoRA and Apply LoRA on a real server: images with the socket and with the file, core's nodes
with our LoRA, and ours with core's.
"""

import io
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from trainers.comfyui.client import ComfyClient, Prompt, PromptFailed, PromptRejected, Result
from trainers.comfyui.find import PACK
from trainers.comfyui.server import ComfyServer
from trainers.embedded_base import write_embedded_checkpoint

BASE: Prompt = {"base": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "embedded_base.safetensors"}}}
STRENGTHS = {"strength_model": 0.8, "strength_clip": 0.5}


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def our_lora() -> Prompt:
    """Train a LoRA on UNet and text encoders. The nodes have their plain ids, and most optional
    inputs are left out.
    """
    size = {
        "resolution": 64,
        "bucket_reso_steps": 32,
        "rank": 2,
        "alpha": 2.0,
        "train_batch_size": 2,
        "gradient_accumulation_steps": 1,
    }
    rates = {
        "learning_rate": 1e-2,
        "train_text_encoders": True,
        "text_encoder_learning_rate": 1e-2,
        "text_encoder_2_learning_rate": 1e-2,
    }
    sockets = {"model": ["base", 0], "clip": ["base", 1], "vae": ["base", 2], "dataset": ["pictures", 0]}
    return {
        **BASE,
        "pictures": node("LoadImages", folder="toadstools", trigger_word="zwx"),
        "trainer": node(
            "LoRATrainSDXL", **sockets, **size, **rates, optimizer="AdamW", max_train_steps=2, output_name="anna"
        ),
    }


def drawing(name: str, model: list[Any], clip: list[Any]) -> Prompt:
    """Draw an image that the node `name` shows."""
    sampler = {"seed": 1, "steps": 3, "cfg": 4.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    return {
        f"{name} positive": node("CLIPTextEncode", clip=clip, text="a zwx on a white background"),
        f"{name} negative": node("CLIPTextEncode", clip=clip, text=""),
        f"{name} latent": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        f"{name} sampler": node(
            "KSampler",
            model=model,
            positive=[f"{name} positive", 0],
            negative=[f"{name} negative", 0],
            latent_image=[f"{name} latent", 0],
            **sampler,
        ),
        f"{name} decode": node("VAEDecode", samples=[f"{name} sampler", 0], vae=["base", 2]),
        name: node("PreviewImage", images=[f"{name} decode", 0]),
    }


def fetch_image(client: ComfyClient, result: Result, name: str) -> np.ndarray:
    (file,) = result.files(name)
    return np.asarray(Image.open(io.BytesIO(client.fetch(file))).convert("RGB"))


def get_text(result: Result, name: str) -> str:
    (text,) = result.outputs[name]["text"]
    return text


@pytest.fixture(scope="module")
def client(comfyui_server: ComfyServer) -> ComfyClient:
    return comfyui_server.client


@pytest.fixture(scope="module")
def loras(comfyui_server: ComfyServer) -> Path:
    return comfyui_server.base_directory / "models" / "loras"


# ---- our LoRA ----


@pytest.fixture(scope="module")
def saved(client: ComfyClient) -> Result:
    """Run one prompt that trains a LoRA, saves it with our node and with core's, and draws with it
    in every way that the socket allows.
    """
    apply = partial_apply(lora=["trainer", 2])
    return client.run(
        {
            **our_lora(),
            "red": node("EmptyImage", width=40, height=30, batch_size=2, color=0xFF0000),
            "save": node(
                "LoRATrainer_SaveLoRA", lora=["trainer", 2], filename="people/anna %date:yyyy%", preview=["red", 0]
            ),
            "path": node("PreviewAny", source=["save", 0]),
            "lora_name": node("PreviewAny", source=["save", 1]),
            "core save": node("SaveLoRA", lora=["trainer", 2], prefix="loras/by_core"),
            "core graph": node("LossGraphNode", loss=["trainer", 3], filename_prefix="loss"),
            "core apply": node(
                "LoraModelLoader", model=["base", 0], lora=["trainer", 2], strength_model=0.8, bypass=False
            ),
            "apply": apply(clip=["base", 1], **STRENGTHS),
            "apply to model": apply(strength_model=0.8),
            "apply nothing": apply(clip=["base", 1], strength_model=0.0, strength_clip=0.0),
            **drawing("plain", ["base", 0], ["base", 1]),
            **drawing("with lora", ["apply", 0], ["apply", 1]),
            **drawing("with clip", ["base", 0], ["apply", 1]),
            **drawing("with model", ["apply to model", 0], ["base", 1]),
            **drawing("with core", ["core apply", 0], ["base", 1]),
            **drawing("with nothing", ["apply nothing", 0], ["apply nothing", 1]),
        }
    )


def partial_apply(**inputs: Any) -> Callable[..., dict[str, Any]]:
    return lambda **more: node("LoRATrainer_ApplyLoRA", model=["base", 0], **inputs, **more)


def test_the_file_is_listed_by_every_lora_loader_at_once(client: ComfyClient, loras: Path, saved: Result):
    name = f"people/anna {time.localtime().tm_year}.safetensors"
    assert get_text(saved, "lora_name") == name and get_text(saved, "path") == str(loras / name)
    listed = client.get("/object_info/LoraLoader")["LoraLoader"]["input"]["required"]["lora_name"][0]
    assert name in listed and "by_core_00001_.safetensors" in listed


def test_the_node_says_that_all_modules_load(saved: Result):
    num_modules = sum(name.endswith(".lora_up.weight") for name in load_file(get_text(saved, "path")))
    assert num_modules > 192  # all of the UNet's, and text encoders
    shown = get_text(saved, "save")
    assert re.fullmatch(
        rf"people/anna \d+\.safetensors: {num_modules}/{num_modules} modules load, [\d.]+ MB, read back and verified",
        shown,
    )


def test_programs_find_the_path_in_the_history(client: ComfyClient, saved: Result):
    outputs = client.get(f"/history/{saved.prompt_id}")[saved.prompt_id]["outputs"]
    path = get_text(saved, "path")
    num_modules = sum(name.endswith(".lora_up.weight") for name in load_file(path))
    facts = {"path": path, "lora_name": get_text(saved, "lora_name"), "modules": num_modules}
    assert outputs["save"]["lora_trainer"] == [facts]


def test_the_preview_is_saved_next_to_the_file(saved: Result):
    preview = Image.open(Path(get_text(saved, "path")).with_suffix(".png"))
    assert preview.size == (40, 30) and preview.getpixel((0, 0)) == (255, 0, 0)


def test_the_header_describes_the_training(saved: Result):
    with safe_open(get_text(saved, "path"), "pt") as file:
        metadata = file.metadata()
    assert (
        metadata["ss_network_dim"] == "2"
        and metadata["ss_steps"] == "2"
        and metadata["ss_sd_model_name"] == "embedded_base"
    )
    assert (
        metadata["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
        and metadata["modelspec.trigger_phrase"] == "zwx"
    )
    assert json.loads(metadata["ss_tag_frequency"])["toadstools"] and len(metadata["sshs_model_hash"]) == 64


def test_a_taken_name_gets_a_number_and_no_file_is_overwritten(loras: Path, client: ComfyClient, saved: Result):
    first = Path(get_text(saved, "path"))
    before = first.read_bytes()
    result = client.run(
        {**our_lora(), "again": node("LoRATrainer_SaveLoRA", lora=["trainer", 2], filename="people/anna %year%")}
    )
    assert "trainer" not in result.executed_nodes()
    assert get_text(result, "again").startswith(f"people/{first.stem}-2.safetensors: ")
    assert first.read_bytes() == before == (first.parent / f"{first.stem}-2.safetensors").read_bytes()
    assert sorted(path.name for path in first.parent.iterdir()) == sorted(
        [first.name, f"{first.stem}.png", f"{first.stem}-2.safetensors"]
    )


def test_a_preview_never_overwrites_another_image(client: ComfyClient, loras: Path, saved: Result):
    (loras / "taken.png").write_bytes(b"an image of somebody's")
    red = node("EmptyImage", width=8, height=8, batch_size=1, color=0xFF0000)
    client.run(
        {
            **our_lora(),
            "red": red,
            "save": node("LoRATrainer_SaveLoRA", lora=["trainer", 2], filename="taken", preview=["red", 0]),
        }
    )
    assert (loras / "taken.png").read_bytes() == b"an image of somebody's"
    assert sorted(path.name for path in loras.glob("taken*")) == ["taken-2.png", "taken-2.safetensors", "taken.png"]


@pytest.mark.parametrize("filename", ["../x", "C:\\x", "a/../../x", "/x", "", "what?", "%sampler%"])
def test_an_impossible_name_is_refused_on_the_node(client: ComfyClient, filename: str):
    with pytest.raises(PromptRejected) as refusal:
        client.run({**our_lora(), "save": node("LoRATrainer_SaveLoRA", lora=["trainer", 2], filename=filename)})
    assert set(refusal.value.node_errors) == {"save"} and "name" in str(refusal.value)


def test_a_name_from_a_link_is_checked_when_it_arrives(client: ComfyClient, loras: Path, saved: Result):
    prompt = {
        **our_lora(),
        "text": node("PrimitiveString", value="linked"),
        "save": node("LoRATrainer_SaveLoRA", lora=["trainer", 2], filename=["text", 0]),
    }
    assert get_text(client.run(prompt), "save").startswith("linked.safetensors: ")
    prompt["text"]["inputs"]["value"] = "../outside"
    with pytest.raises(PromptFailed, match=r"leads out of the loras folder"):
        client.run(prompt)
    assert not (loras.parent / "outside.safetensors").exists()


def test_the_history_has_the_path_of_the_file(saved: Result):
    (facts,) = saved.outputs["save"]["lora_trainer"]
    assert facts["path"] == get_text(saved, "path") and Path(facts["path"]).is_file()
    assert facts["lora_name"] == get_text(saved, "lora_name") and facts["modules"] > 0


def test_the_default_name_has_the_date(client: ComfyClient, saved: Result):
    result = client.run({**our_lora(), "save": node("LoRATrainer_SaveLoRA", lora=["trainer", 2])})
    assert re.match(r"my_lora_\d{4}-\d\d-\d\d\.safetensors: ", get_text(result, "save"))


def test_the_file_gives_the_same_image_as_the_socket(client: ComfyClient, saved: Result):
    loader = node(
        "LoraLoader", model=["base", 0], clip=["base", 1], lora_name=get_text(saved, "lora_name"), **STRENGTHS
    )
    by_core = node(
        "LoraLoader", model=["base", 0], clip=["base", 1], lora_name="by_core_00001_.safetensors", **STRENGTHS
    )
    drawings = {
        **drawing("file", ["loader", 0], ["loader", 1]),
        **drawing("core's file", ["by core", 0], ["by core", 1]),
    }
    result = client.run({**BASE, "loader": loader, "by core": by_core, **drawings})
    expected = fetch_image(client, saved, "with lora")
    assert np.array_equal(fetch_image(client, result, "file"), expected) and np.array_equal(
        fetch_image(client, result, "core's file"), expected
    )


def test_apply_lora_reaches_unet_and_text_encoders_each_at_its_strength(client: ComfyClient, saved: Result):
    images = {name: fetch_image(client, saved, name) for name in ("plain", "with lora", "with clip", "with model")}
    for one, other in (
        ("plain", "with model"),
        ("plain", "with clip"),
        ("with model", "with lora"),
        ("with clip", "with lora"),
    ):
        assert not np.array_equal(images[one], images[other]), (one, other)


def test_on_the_model_alone_it_does_the_same_as_cores_node(client: ComfyClient, saved: Result):
    assert np.array_equal(fetch_image(client, saved, "with model"), fetch_image(client, saved, "with core"))


def test_strength_zero_is_the_base_model(client: ComfyClient, saved: Result):
    assert np.array_equal(fetch_image(client, saved, "with nothing"), fetch_image(client, saved, "plain"))


def test_core_plots_the_loss(saved: Result):
    assert saved.outputs["core graph"]["images"]


# ---- core's LoRA ----


def test_a_lora_of_cores_trainer_is_applied_and_saved(client: ComfyClient, loras: Path):
    training = {
        "batch_size": 1,
        "grad_accumulation_steps": 1,
        "steps": 2,
        "learning_rate": 1e-2,
        "rank": 2,
        "seed": 0,
        "existing_lora": "[None]",
    }
    methods = {
        "optimizer": "AdamW",
        "loss_function": "MSE",
        "training_dtype": "none",
        "lora_dtype": "fp32",
        "algorithm": "LoRA",
    }
    memory = {
        "gradient_checkpointing": False,
        "checkpoint_depth": 1,
        "offloading": False,
        "quantized_backward": False,
        "bucket_mode": False,
    }
    prompt = {
        **BASE,
        "picture": node("EmptyImage", width=64, height=64, batch_size=1, color=0xFF0000),
        "latent": node("VAEEncode", pixels=["picture", 0], vae=["base", 2]),
        "text": node("CLIPTextEncode", clip=["base", 1], text="red"),
        "core trainer": node(
            "TrainLoraNode",
            model=["base", 0],
            latents=["latent", 0],
            positive=["text", 0],
            **training,
            **methods,
            **memory,
            bypass_mode=False,
        ),
        "save": node("LoRATrainer_SaveLoRA", lora=["core trainer", 0], filename="from_core"),
        "apply": node("LoRATrainer_ApplyLoRA", model=["base", 0], lora=["core trainer", 0]),
        **drawing("socket", ["apply", 0], ["base", 1]),
    }
    result = client.run(prompt)
    num_modules = len(
        {
            name.rpartition(".")[0].removesuffix(".lora_up").removesuffix(".lora_down")
            for name in load_file(loras / "from_core.safetensors")
        }
    )
    assert get_text(result, "save").startswith(f"from_core.safetensors: {num_modules} modules, ")

    loader = node("LoraLoaderModelOnly", model=["base", 0], lora_name="from_core.safetensors", strength_model=1.0)
    from_file = client.run(
        {
            **BASE,
            "loader": loader,
            **drawing("file", ["loader", 0], ["base", 1]),
            **drawing("plain", ["base", 0], ["base", 1]),
        }
    )
    assert np.array_equal(fetch_image(client, from_file, "file"), fetch_image(client, result, "socket"))
    assert not np.array_equal(fetch_image(client, from_file, "file"), fetch_image(client, from_file, "plain"))


# ---- what is no LoRA for this model ----

REFUSALS = """
import json
import sys
from pathlib import Path

import torch
from pack_loader import load_pack

pack, checkpoint, folder = map(Path, sys.argv[1:])
load_pack(pack / "nodes" / "embedded_base_pack", "embedded_base_pack")
load_pack(pack, "lora_trainer")
import comfy.sd
from lora_trainer.nodes.host.lora import apply_lora
from lora_trainer.nodes.host.lora_file import save_to_loras_folder

NAME = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"


def pair(name, value=1.0):
    return {
        f"{name}.lora_down.weight": torch.ones(2, 192),
        f"{name}.lora_up.weight": torch.full((128, 2), value),
        f"{name}.alpha": torch.tensor(2.0),
    }


def message(function, *arguments, **settings):
    try:
        return str(function(*arguments, **settings))
    except (ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}".replace(f"{folder}/", "")


model, clip = comfy.sd.load_checkpoint_guess_config(str(checkpoint))[:2]
strengths = {"strength_model": 1.0, "strength_clip": 1.0}
save = {"folder": folder, "preview": None}
print("RESULT" + json.dumps({
    "apply flux": message(apply_lora, model, clip, pair("lora_unet_double_blocks_0_img_attn_qkv"), **strengths),
    "apply no lora": message(apply_lora, model, clip, {"model.diffusion_model.out.weight": torch.ones(4)}, **strengths),
    "apply empty": message(apply_lora, model, clip, {}, **strengths),
    "save no lora": message(save_to_loras_folder, {"a": torch.ones(4), "b": torch.ones(4)}, "none", **save),
    "save empty": message(save_to_loras_folder, {}, "empty", **save),
    "save nan": message(save_to_loras_folder, pair(NAME, float("nan")), "nan", **save),
    "save zero": message(save_to_loras_folder, pair(NAME, 0.0), "zero", **save),
    "files": [path.name for path in folder.iterdir()],
}))
"""


@pytest.fixture(scope="module")
def refusals(run_in_comfyui: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("refusals")
    write_embedded_checkpoint(folder / "base.safetensors")
    (folder / "loras").mkdir()
    (line,) = [
        line
        for line in run_in_comfyui(REFUSALS, PACK, folder / "base.safetensors", folder / "loras").splitlines()
        if line.startswith("RESULT")
    ]
    return json.loads(line.removeprefix("RESULT"))


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (
            "apply flux",
            "ValueError: none of the LoRA's 3 tensors fits this MODEL or CLIP, such as "
            "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight",
        ),
        ("apply no lora", "ValueError: none of the LoRA's 1 tensors fits"),
        (
            "apply empty",
            "ValueError: none of the LoRA's 0 tensors fits this MODEL or CLIP. Apply it to the kind of model",
        ),
        ("save no lora", "ValueError: this LORA_MODEL holds no LoRA weights (a, b). Connect Train LoRA's lora output"),
        ("save empty", "ValueError: this LORA_MODEL holds no LoRA weights (nothing at all)"),
        (
            "save nan",
            "RuntimeError: nan.safetensors: 1 of 3 tensors hold values that are not finite: "
            "lora_unet_input_blocks_4_1_",
        ),
        ("save zero", "RuntimeError: zero.safetensors: all up weights are zero"),
    ],
)
def test_anything_but_a_lora_for_this_model_is_an_error(refusals: dict[str, Any], case: str, message: str):
    assert refusals[case].startswith(message), refusals[case]


def test_a_failed_save_leaves_no_file(refusals: dict[str, Any]):
    assert refusals["files"] == []
