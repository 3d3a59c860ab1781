"""The demo as a ComfyUI user sees it: the example API-format prompt on the real server, with the
embedded SDXL or the embedded Z-Image.
"""

import io
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..comfyui.client import ComfyClient, OutputFile
from ..comfyui.console import run_prompt
from ..comfyui.find import PACK, Installation
from ..comfyui.prompt_file import Setting, apply_settings, find_nodes, read_prompt
from ..comfyui.server import ComfyServer, prepare_base_directory
from ..embedded_base import write_embedded_checkpoint, write_embedded_z_image
from ..files.atomic_write import atomic_write
from .before_after import SIZE_HW
from .concept import IMAGES, TRIGGER_WORD, fidelity

PROMPT = PACK / "example_workflows" / "api" / "train_apply_sample.json"
CHECKPOINT, IMAGES_FOLDER = "embedded_base.safetensors", "toadstools"


@dataclass(frozen=True)
class ComfyDemo:
    """The results. before_after: without the LoRA on the left, with it on the right. fidelity: 0 to
    1, the mean of concept.fidelity.
    """

    lora: Path
    before_after: Path
    run_folder: Path
    fidelity_before: float
    fidelity_after: float


def prepare_demo_directory(folder: Path) -> None:
    """Make a base directory for ComfyUI with this pack, the embedded base models and the demo's
    images.
    """
    prepare_base_directory(
        folder, {"ComfyUI-LoRA-Trainer": PACK, "embedded_base_pack": PACK / "nodes" / "embedded_base_pack"}
    )
    write_embedded_checkpoint(folder / "models" / "checkpoints" / CHECKPOINT)
    write_embedded_z_image(folder / "models")
    shutil.copytree(IMAGES, folder / "input" / IMAGES_FOLDER)


def run_demo(installation: Installation, folder: Path, *, settings: dict[str, Any], num_seeds: int) -> ComfyDemo:
    """Run the demo. `settings` are those of the trainer, as on the command line."""
    base_directory = folder / "comfyui"
    prepare_demo_directory(base_directory)
    prompt = read_prompt(PROMPT)
    print(f"Starting ComfyUI {installation.version} in {installation.folder} ...", file=sys.stderr)
    with ComfyServer(installation, base_directory=base_directory, log=base_directory / "server.log") as server:
        apply_settings(prompt, demo_settings(settings, num_seeds=num_seeds), server.client)
        result = run_prompt(server.client, prompt)
        (save,) = find_nodes(prompt, "SaveImage")
        pairs = np.concatenate([fetch_image(server.client, file) for file in result.files(save)])
    with atomic_write(folder / "before_after.png") as temporary:
        Image.fromarray(pairs).save(temporary, format="PNG")
    (lora,) = (base_directory / "models" / "loras").glob("*.safetensors")
    (run_folder,) = (base_directory / "output" / "lora_trainer" / "runs").iterdir()
    width = SIZE_HW[1]
    return ComfyDemo(
        lora=Path(shutil.copy2(lora, folder)),
        before_after=folder / "before_after.png",
        run_folder=run_folder,
        fidelity_before=_mean_fidelity(pairs[:, :width]),
        fidelity_after=_mean_fidelity(pairs[:, -width:]),
    )


def demo_settings(trainer_settings: dict[str, Any], *, num_seeds: int) -> list[Setting]:
    """Return the inputs that make the example prompt train on the demo's images and draw at the
    size of the embedded base.
    """
    height, width = SIZE_HW
    trainer = {
        **trainer_settings,
        "rank": 16,
        "alpha": 16.0,
        "optimizer": "AdamW",
        "gradient_accumulation_steps": 1,
        "output_name": "toadstool",
    }
    inputs = {
        "CheckpointLoaderSimple": {"ckpt_name": CHECKPOINT},
        "LoRATrainer_LoadImages": {"folder": IMAGES_FOLDER, "trigger_word": TRIGGER_WORD},
        # A preset may decide a node's switches, so their values are the words on and off, or auto.
        "LoRATrainer_LoRATrainSDXL": {
            name: ("off", "on")[value] if isinstance(value, bool) else value for name, value in trainer.items()
        },
        "EmptyLatentImage": {"width": width, "height": height, "batch_size": num_seeds},
        "LoRATrainer_SaveLoRA": {"filename": "toadstool"},
    }
    return [(node, name, value) for node, values in inputs.items() for name, value in values.items()]


def fetch_image(client: ComfyClient, file: OutputFile) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(client.fetch(file))).convert("RGB"))


def _mean_fidelity(column: np.ndarray) -> float:
    """Average the fidelity of images that are stacked in a column."""
    return float(np.mean([fidelity(image) for image in np.split(column, len(column) // SIZE_HW[0])]))
