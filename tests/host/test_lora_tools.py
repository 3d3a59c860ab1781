"""The LoRA tools on a real server, measured on ComfyUI's own patched weights and by images."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.host.test_save_and_apply import BASE, drawing, fetch_image, get_text, node
from tests.host.test_train_any_model import flow_prompt
from trainers.__main__ import main
from trainers.comfyui.client import ComfyClient, Prompt, PromptFailed
from trainers.comfyui.find import PACK
from trainers.comfyui.server import ComfyServer
from trainers.embedded_base import write_embedded_checkpoint

LAYERS = {  # kohya's name: outputs, inputs
    "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k": (64, 192),
    "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_v": (64, 192),
    "lora_te1_text_model_encoder_layers_0_self_attn_q_proj": (64, 64),
    "lora_te2_text_model_encoder_layers_0_self_attn_q_proj": (128, 128),
}


def write_lora(path: Path, seed: int, *, rank: int = 4) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, (outputs, inputs) in LAYERS.items():
        tensors[f"{name}.lora_down.weight"] = torch.randn(rank, inputs, generator=generator) / 4
        tensors[f"{name}.lora_up.weight"] = torch.randn(outputs, rank, generator=generator) / 4
        tensors[f"{name}.alpha"] = torch.tensor(rank / 2)
    header = {"modelspec.trigger_phrase": f"zw{seed}", "modelspec.title": path.stem, "ss_output_name": path.stem}
    save_file(tensors, path, {**header, "ss_base_model_version": "sdxl_base_v1-0"})


@pytest.fixture(scope="module")
def client(comfyui_server: ComfyServer) -> ComfyClient:
    return comfyui_server.client


@pytest.fixture(scope="module")
def loras(comfyui_server: ComfyServer) -> Path:
    folder = comfyui_server.base_directory / "models" / "loras"
    folder.mkdir(exist_ok=True)
    for seed, name in enumerate(("first", "second")):
        write_lora(folder / f"{name}.safetensors", seed)
    return folder


def load(name: str) -> dict[str, Any]:
    return node("LoRATrainer_LoRAInfo", lora_name=f"{name}.safetensors")


def apply(lora: str, model: str = "base", strength: float = 1.0) -> dict[str, Any]:
    strengths = {"strength_model": strength, "strength_clip": strength}
    return node("LoRATrainer_ApplyLoRA", model=[model, 0], clip=[model, 1], lora=[lora, 0], **strengths)


INFO: Prompt = {**BASE, "first": load("first"), "second": load("second")}


def is_alike(one: np.ndarray, other: np.ndarray) -> bool:
    """Up to the rounding of half precision in the weights, and of pixels."""
    return int(np.abs(one.astype(int) - other.astype(int)).max()) <= 2


@pytest.mark.usefixtures("loras")
def test_lora_info_says_what_a_file_is_and_gives_it_on(client: ComfyClient):
    result = client.run({**INFO, "words": node("PreviewAny", source=["first", 2])})
    text = get_text(result, "first")
    for line in ("4 modules of LoRA", "sdxl_base_v1-0", "zw0", "rank 4, alpha 2, norm"):
        assert line in text, text
    assert get_text(result, "words") == "zw0"


def test_a_merged_lora_draws_what_both_draw(client: ComfyClient, loras: Path):
    strengths = {"strength_1": 0.8, "strength_2": -0.5, "save_dtype": "fp32"}
    result = client.run(
        {
            **INFO,
            "merge": node("LoRATrainer_MergeLoRAs", lora_1=["first", 0], lora_2=["second", 0], **strengths),
            "save": node("LoRATrainer_SaveLoRA", lora=["merge", 0], filename="merged"),
            "both 1": apply("first", strength=0.8),
            "both 2": apply("second", "both 1", strength=-0.5),
            "one": apply("merge"),
            **drawing("with both", ["both 2", 0], ["both 2", 1]),
            **drawing("with one", ["one", 0], ["one", 1]),
            **drawing("plain", ["base", 0], ["base", 1]),
        }
    )
    assert is_alike(fetch_image(client, result, "with one"), fetch_image(client, result, "with both"))
    assert not is_alike(fetch_image(client, result, "with one"), fetch_image(client, result, "plain"))
    assert get_text(result, "save").startswith("merged.safetensors: 4/4 modules load")
    with safe_open(loras / "merged.safetensors", framework="numpy") as file:
        header = file.metadata()
    assert header["modelspec.trigger_phrase"] == "zw0, zw1" and header["ss_network_dim"] == "8"


@pytest.mark.usefixtures("loras")
def test_a_lora_comes_back_out_of_model_and_clip_that_carry_it(client: ComfyClient, loras: Path):
    sockets = {"model": ["on", 0], "clip": ["on", 1], "model_base": ["base", 0], "clip_base": ["base", 1]}
    result = client.run(
        {
            **INFO,
            "on": apply("first"),
            "extract": node("LoRATrainer_ExtractLoRA", **sockets, rank=4, save_dtype="fp32"),
            "resize": node("LoRATrainer_ResizeLoRA", lora=["extract", 0], rank=2),
            "save": node("LoRATrainer_SaveLoRA", lora=["extract", 0], filename="extracted"),
            "resized": node("LoRATrainer_SaveLoRA", lora=["resize", 0], filename="resized"),
        }
    )
    assert get_text(result, "extract").startswith("4 modules, rank 4, nothing cut off")
    assert re.match(r"4 modules, rank 2, \d+\.\d+% of the norm cut off", get_text(result, "resize"))
    before, after = load_file(loras / "first.safetensors"), load_file(loras / "extracted.safetensors")
    for name in LAYERS:
        expected = 0.5 * before[f"{name}.lora_up.weight"] @ before[f"{name}.lora_down.weight"]
        found = after[f"{name}.lora_up.weight"] @ after[f"{name}.lora_down.weight"]
        assert (found - expected).norm() < 1e-4 * expected.norm(), name
    resized = load_file(loras / "resized.safetensors")
    assert {float(tensor) for name, tensor in resized.items() if name.endswith(".alpha")} == {2.0}


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"model": ["base", 0]}, "the two models do not differ in any of"),
        ({"model": ["on", 0], "clip": ["on", 1]}, "connect both clip and clip_base, or neither"),
    ],
    ids=["the same model", "one clip"],
)
@pytest.mark.usefixtures("loras")
def test_what_has_no_difference_is_refused(client: ComfyClient, inputs: dict[str, Any], message: str):
    extract = node("LoRATrainer_ExtractLoRA", **inputs, model_base=["base", 0])
    shown = node("PreviewAny", source=["extract", 1])
    with pytest.raises(PromptFailed, match=message):
        client.run({**INFO, "on": apply("first"), "extract": extract, "shown": shown})


def test_any_other_models_lora_comes_back_out_of_it(client: ComfyClient, loras: Path):
    """A LoRA that was just trained on a tiny Z-Image, merged with itself and extracted."""
    extract = node("LoRATrainer_ExtractLoRA", model=["trainer", 0], model_base=["base", 0], rank=2, save_dtype="fp32")
    twice = node("LoRATrainer_MergeLoRAs", lora_1=["trainer", 2], lora_2=["trainer", 2], rank=2)
    saves = {
        f"save {name}": node("LoRATrainer_SaveLoRA", lora=lora, filename=f"z {name}")
        for name, lora in (("trained", ["trainer", 2]), ("extracted", ["extract", 0]), ("twice", ["merge", 0]))
    }
    client.run({**flow_prompt(output_name="tools", max_train_steps=2), "extract": extract, "merge": twice, **saves})
    trained, extracted, twice_as_strong = (
        load_file(loras / f"z {name}.safetensors") for name in ("trained", "extracted", "twice")
    )
    assert extracted.keys() == trained.keys() == twice_as_strong.keys()
    for name in [name.removesuffix(".alpha") for name in trained if name.endswith(".alpha")]:
        expected, found, doubled = (
            each[f"{name}.alpha"] / 2 * each[f"{name}.lora_up.weight"] @ each[f"{name}.lora_down.weight"]
            for each in (trained, extracted, twice_as_strong)
        )
        assert (found - expected).norm() < 1e-4 * expected.norm(), name
        assert (doubled - 2 * expected).norm() < 1e-5 * expected.norm(), name
    with safe_open(loras / "z extracted.safetensors", framework="numpy") as file:
        assert file.metadata()["modelspec.architecture"] == "z-image/lora"


# ---- files of the tools in ComfyUI's own loader ----

COUNT = """
import json
import sys
from pathlib import Path

from pack_loader import load_pack

pack, checkpoint, folder = map(Path, sys.argv[1:])
load_pack(pack / "nodes" / "embedded_base_pack", "embedded_base_pack")
import comfy.lora
import comfy.lora_convert
import comfy.sd
import comfy.utils

model, clip = comfy.sd.load_checkpoint_guess_config(str(checkpoint))[:2]
key_map = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, comfy.lora.model_lora_keys_unet(model.model, {}))


def find_patches(path):
    tensors = comfy.lora_convert.convert_lora(comfy.utils.load_torch_file(str(path)))
    return comfy.lora.load_lora(tensors, key_map, log_missing=False)


def compute(patches):
    weights = {**model.model.state_dict(), **clip.cond_stage_model.state_dict()}
    return {
        name: comfy.lora.calculate_weight([(1.0, patch, 1.0, None, None)], weights[name].float().clone(), name)
        - weights[name].float()
        for name, patch in patches.items()
    }


updates = {path.stem: compute(find_patches(path)) for path in sorted(folder.glob("*.safetensors"))}
expected = updates["first"]
print("RESULT" + json.dumps({
    name: [
        len(found),
        max((float((found[key] - expected[key]).norm() / expected[key].norm()) for key in found), default=1.0),
    ]
    for name, found in updates.items()
}))
"""


@pytest.fixture(scope="module")
def loaded(run_in_comfyui: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    """How many modules of a converted file ComfyUI loads, and how far its updates are off."""
    folder = tmp_path_factory.mktemp("tools")
    base = folder / "base.safetensors"
    write_embedded_checkpoint(base)
    (folder / "loras").mkdir()
    first = folder / "loras" / "first.safetensors"
    write_lora(first, 0)
    for form in ("comfyui", "diffusers", "kohya"):
        output = folder / "loras" / f"{form}.safetensors"
        assert main(["lora", "convert", str(first), "--to", form, "--base", str(base), "--output", str(output)]) == 0
    resize = ["--rank", "4", "--output", str(folder / "loras" / "resize.safetensors")]
    assert main(["lora", "resize", str(first), *resize]) == 0
    output = run_in_comfyui(COUNT, PACK, base, folder / "loras")
    (line,) = [each for each in output.splitlines() if each.startswith("RESULT")]
    return json.loads(line.removeprefix("RESULT"))


@pytest.mark.parametrize("form", ["kohya", "comfyui", "resize"])
def test_comfyui_loads_all_modules_of_a_tools_file_at_the_same_strength(loaded: dict[str, list[float]], form: str):
    num_modules, error = loaded[form]
    assert num_modules == len(LAYERS) and error < 1e-5


def test_comfyui_passes_over_the_attention_of_a_file_for_diffusers(loaded: dict[str, list[float]]):
    """As the help of --to says: ComfyUI knows older names of attention, with `.processor`."""
    num_modules, error = loaded["diffusers"]
    assert num_modules == 2 and error < 1e-5
