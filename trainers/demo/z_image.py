"""The demo on the embedded Z-Image: Train LoRA trains on a real ComfyUI server, and core's nodes
draw the same seeds without and with the LoRA.
"""

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..comfyui.client import ComfyClient, Prompt, Result
from ..comfyui.console import run_prompt
from ..comfyui.find import PACK, Installation
from ..comfyui.prompt_file import Setting, apply_settings, read_prompt
from ..comfyui.server import ComfyServer
from ..embedded_base.shared.scenes import RESOLUTION
from ..embedded_base.z_image import MODEL_NAME, TEXT_ENCODER_NAME, VAE_NAME
from ..files.atomic_write import atomic_write
from .before_after import NEW_PROMPTS, OLD_PROMPTS, Comparison, draw_grid, judge
from .concept import TRIGGER_WORD
from .in_comfyui import IMAGES_FOLDER, fetch_image, prepare_demo_directory

PROMPT = PACK / "example_workflows" / "api" / "train_z_image_in_the_graph.json"
MODEL, CLIP, VAE, TRAINER = ["1", 0], ["6", 0], ["7", 0], ["8", 0]  # outputs in the prompt
LORA_NAME = "toadstool"


@dataclass(frozen=True)
class ZImageDemo:
    """The results, and the files with them."""

    lora: Path
    before_after: Path
    run_folder: Path
    comparison: Comparison


def run_z_image_demo(
    installation: Installation,
    folder: Path,
    *,
    settings: dict[str, Any],
    num_seeds: int,
    num_steps: int = 25,
) -> ZImageDemo:
    """Run the demo. `settings` are those of Train LoRA; `num_steps` are the sampler's."""
    base_directory = folder / "comfyui"
    prepare_demo_directory(base_directory)
    print(f"Starting ComfyUI {installation.version} in {installation.folder} ...", file=sys.stderr)
    with ComfyServer(installation, base_directory=base_directory, log=base_directory / "server.log") as server:
        prompt = read_prompt(PROMPT)
        apply_settings(prompt, list_settings(settings, lora_name=LORA_NAME), server.client)
        prompts = NEW_PROMPTS + OLD_PROMPTS
        for side, model in (("before", MODEL), ("after", TRAINER)):
            prompt |= draw_prompts(side, prompts, model=model, clip=CLIP, vae=VAE, batch=num_seeds, steps=num_steps)
        result = run_prompt(server.client, prompt)
        before, after = (fetch_images(server.client, result, side, len(prompts)) for side in ("before", "after"))
    comparison = judge(before, after, num_seeds=num_seeds)
    with atomic_write(folder / "before_after.png") as temporary:
        draw_grid(comparison, num_seeds=num_seeds).save(temporary, format="PNG")
    (run_folder,) = (base_directory / "output" / "lora_trainer" / "runs").iterdir()
    lora = shutil.copy2(base_directory / "models" / "loras" / f"{LORA_NAME}.safetensors", folder)
    return ZImageDemo(Path(lora), folder / "before_after.png", run_folder, comparison)


def list_settings(trainer_settings: dict[str, Any], *, lora_name: str) -> list[Setting]:
    """Return the inputs that make PROMPT train on the demo's images and the embedded Z-Image."""
    inputs = {
        "UNETLoader": {"unet_name": MODEL_NAME},
        "CLIPLoader": {"clip_name": TEXT_ENCODER_NAME},
        "VAELoader": {"vae_name": VAE_NAME},
        "LoRATrainer_LoadImages": {"folder": IMAGES_FOLDER, "trigger_word": TRIGGER_WORD},
        "LoRATrainer_TrainLoRA": {**trainer_settings, "output_name": lora_name},
        "LoRATrainer_SaveLoRA": {"filename": lora_name},
    }
    return [(node, name, value) for node, values in inputs.items() for name, value in values.items()]


def draw_prompts(
    name: str,
    prompts: Sequence[str],
    *,
    model: list[Any],
    clip: list[Any],
    vae: list[Any],
    batch: int,
    steps: int,
    seed: int = 0,
) -> Prompt:
    """Return core's nodes that draw `batch` images of each prompt. The nodes that show them are
    called "<name> 0" and so on.
    """
    nodes: Prompt = {
        f"{name} nothing": _node("CLIPTextEncode", clip=clip, text=""),
        f"{name} latent": _node("EmptySD3LatentImage", width=RESOLUTION, height=RESOLUTION, batch_size=batch),
    }
    for number, text in enumerate(prompts):
        nodes |= {
            f"{name} text {number}": _node("CLIPTextEncode", clip=clip, text=text),
            f"{name} sampler {number}": _node(
                "KSampler",
                model=model,
                positive=[f"{name} text {number}", 0],
                negative=[f"{name} nothing", 0],
                latent_image=[f"{name} latent", 0],
                seed=seed,
                steps=steps,
                cfg=4.0,
                sampler_name="euler",
                scheduler="simple",
                denoise=1.0,
            ),
            f"{name} decode {number}": _node("VAEDecode", samples=[f"{name} sampler {number}", 0], vae=vae),
            f"{name} {number}": _node("PreviewImage", images=[f"{name} decode {number}", 0]),
        }
    return nodes


def fetch_images(client: ComfyClient, result: Result, name: str, num_prompts: int) -> np.ndarray:
    """Fetch what the nodes of draw_prompts show: [prompts * seeds, height, width, 3] uint8."""
    files = [file for number in range(num_prompts) for file in result.files(f"{name} {number}")]
    return np.stack([fetch_image(client, file) for file in files])


def _node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}
