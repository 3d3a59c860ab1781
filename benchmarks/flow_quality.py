"""What a LoRA on the embedded Z-Image learns and forgets: Train LoRA's trainer next to Musubi
Tuner, unmodified, on the same images, at equal samples.

    python -m benchmarks.flow_quality FOLDER --seeds 0 1 2 3 4

Both train on the demo's toadstool at rank 16, with the timesteps, shift and weights that each
recommends for Z-Image. ComfyUI draws with every LoRA. Needs a ComfyUI and a Musubi Tuner. Musubi
reads the sizes of its Z-Image from its own code: `tests/musubi/shim` sets those of the embedded one
as it starts, and no file of Musubi is changed. What is finished in FOLDER is not repeated.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainers.comfyui.client import Prompt
from trainers.comfyui.find import PACK, find_comfyui
from trainers.comfyui.prompt_file import apply_settings, read_prompt
from trainers.comfyui.server import ComfyServer
from trainers.demo.before_after import NEW_PROMPTS, OLD_PROMPTS, draw_grid, judge
from trainers.demo.concept import IMAGES, TRIGGER_WORD
from trainers.demo.in_comfyui import prepare_demo_directory
from trainers.demo.z_image import PROMPT, draw_prompts, fetch_images, list_settings
from trainers.embedded_base.z_image import MODEL_NAME, TEXT_ENCODER_NAME, VAE_NAME
from trainers.embedded_base.z_image.architecture import (
    NUM_HEADS,
    NUM_LAYERS,
    NUM_REFINERS,
    ROPE_AXES,
    TEXT_ENCODER,
    TEXT_WIDTH,
    VAE,
    WIDTH,
)

SHIM = PACK / "tests" / "musubi" / "shim"
TOKENIZER = Path("comfy/text_encoders/qwen25_tokenizer")  # in ComfyUI
MUSUBIS_TOKENIZER = "models--Tongyi-MAI--Z-Image"  # in Hugging Face's cache
SIZES = {
    "config": {
        "DEFAULT_TRANSFORMER_DIM": WIDTH,
        "DEFAULT_TRANSFORMER_N_HEADS": NUM_HEADS,
        "DEFAULT_TRANSFORMER_N_KV_HEADS": NUM_HEADS,
        "DEFAULT_TRANSFORMER_N_LAYERS": NUM_LAYERS,
        "DEFAULT_TRANSFORMER_N_REFINER_LAYERS": NUM_REFINERS,
        "DEFAULT_TRANSFORMER_CAP_FEAT_DIM": TEXT_WIDTH,
        "ROPE_AXES_DIMS": list(ROPE_AXES),
    },
    "time_width": WIDTH,
    "vae": {name: VAE[name] for name in ("block_out_channels", "layers_per_block")},
    "qwen3": {name: value for name, value in TEXT_ENCODER.items() if name != "rope_parameters"},
}
COMMON = {
    "rank": 16,
    "alpha": 16.0,
    "resolution": 128,
    "train_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "optimizer": "AdamW",
    "save_dtype": "fp32",
}
OURS, MUSUBI = "Train LoRA", "Musubi Tuner"


@dataclass(frozen=True)
class Cell:
    """One trained LoRA: fidelity of the new concept, share of old prompts that are right, mean
    change of their pixels (0 to 255), processor time of the training in seconds.
    """

    contender: str
    seed: int
    fidelity: float
    old_right: float
    drift: float
    cpu_seconds: float


def main() -> None:
    options = _read_options()
    comfyui = options.folder / "comfyui"
    if not comfyui.exists():
        prepare_demo_directory(comfyui)
    for seed in options.seeds:
        for contender in options.contenders:
            if not _cell_file(options.folder, contender, seed).exists():
                seconds = _train(contender, seed, comfyui, options)
                _judge(contender, seed, seconds, comfyui, options)
    print(_format(_read_cells(options.folder)))


def _train(contender: str, seed: int, comfyui: Path, options: argparse.Namespace) -> float:
    """Train one LoRA, and return the processor time that it took, with all programs."""
    settings = {
        **COMMON,
        "seed": seed,
        "max_train_steps": options.steps,
        "learning_rate": options.learning_rate,
    }
    before = _children_seconds()
    if contender == OURS:
        _train_in_graph(settings, _lora_name(contender, seed), comfyui)
    else:
        lora = _train_with_musubi(settings, comfyui / "models", options.folder / contender / str(seed))
        shutil.copy2(lora, comfyui / "models" / "loras" / f"{_lora_name(contender, seed)}.safetensors")
    return _children_seconds() - before


def _train_in_graph(settings: dict[str, Any], lora_name: str, comfyui: Path) -> None:
    own = {"bucket_reso_steps": 32, "gradient_checkpointing": "off"}
    with ComfyServer(find_comfyui(), base_directory=comfyui, log=comfyui / "server.log") as server:
        prompt = read_prompt(PROMPT)
        apply_settings(prompt, list_settings({**settings, **own}, lora_name=lora_name), server.client)
        server.client.run(prompt)


def _train_with_musubi(settings: dict[str, Any], models: Path, work: Path) -> Path:
    files = {
        "images": IMAGES,
        "trigger_word": TRIGGER_WORD,
        "mixed_precision": "no",
        "dit": models / "diffusion_models" / MODEL_NAME,
        "vae": models / "vae" / VAE_NAME,
        "text_encoder": models / "text_encoders" / TEXT_ENCODER_NAME,
        "output": "lora",
        "output_dir": work,
        "cache_dir": work.parent / "cache",
        "max_data_loader_n_workers": 0,
    }
    shutil.rmtree(work, ignore_errors=True)
    command = [sys.executable, "-m", "trainers", "musubi", "train", "--architecture", "z-image"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **_make_musubi_environment(work.parent / "hf")}
    subprocess.run([*command, *_as_flags({**settings, **files})], env=environment, check=True)
    (lora,) = work.glob("lora*.safetensors")
    return lora


def _as_flags(settings: dict[str, Any]) -> list[str]:
    return [part for name, value in settings.items() for part in ("--" + name.replace("_", "-"), str(value))]


def _children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _make_musubi_environment(home: Path) -> dict[str, str]:
    """Put ComfyUI's copy of Qwen's tokenizer where Musubi looks for it offline."""
    repository, revision = home / "hub" / MUSUBIS_TOKENIZER, "0" * 40
    if not repository.exists():
        shutil.copytree(find_comfyui().folder / TOKENIZER, repository / "snapshots" / revision / "tokenizer")
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(revision)
    return {
        "PYTHONPATH": os.pathsep.join([str(PACK), str(SHIM)]),
        "MUSUBI_SIZES": json.dumps(SIZES),
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "1",
    }


def _judge(contender: str, seed: int, cpu_seconds: float, comfyui: Path, options: argparse.Namespace) -> None:
    """Draw old and new prompts with the LoRA, compare them with the base's, keep the numbers."""
    before = options.folder / "before.npy"
    if not before.exists():
        np.save(before, _draw(comfyui, None, options.num_seeds))
    after = _draw(comfyui, _lora_name(contender, seed), options.num_seeds)
    comparison = judge(np.load(before), after, num_seeds=options.num_seeds)
    file = _cell_file(options.folder, contender, seed)
    draw_grid(comparison, num_seeds=options.num_seeds).save(file.with_suffix(".png"))
    cell = Cell(contender, seed, comparison.fidelity_after, comparison.old_right_after, comparison.drift, cpu_seconds)
    file.write_text(json.dumps(asdict(cell)))


def _draw(comfyui: Path, lora: str | None, num_seeds: int) -> np.ndarray:
    prompts = NEW_PROMPTS + OLD_PROMPTS
    with ComfyServer(find_comfyui(), base_directory=comfyui, log=comfyui / "server.log") as server:
        prompt = _make_prompt(prompts, lora, num_seeds)
        return fetch_images(server.client, server.client.run(prompt), "image", len(prompts))


def _make_prompt(prompts: Sequence[str], lora: str | None, num_seeds: int) -> Prompt:
    nodes: Prompt = {
        "model": {"class_type": "UNETLoader", "inputs": {"unet_name": MODEL_NAME, "weight_dtype": "default"}},
        "clip": {"class_type": "CLIPLoader", "inputs": {"clip_name": TEXT_ENCODER_NAME, "type": "lumina2"}},
        "vae": {"class_type": "VAELoader", "inputs": {"vae_name": VAE_NAME}},
    }
    if lora:
        inputs = {"model": ["model", 0], "lora_name": f"{lora}.safetensors", "strength_model": 1.0}
        nodes["lora"] = {"class_type": "LoraLoaderModelOnly", "inputs": inputs}
    model = ["lora" if lora else "model", 0]
    drawing = draw_prompts("image", prompts, model=model, clip=["clip", 0], vae=["vae", 0], batch=num_seeds, steps=20)
    return {**nodes, **drawing}


def _lora_name(contender: str, seed: int) -> str:
    return f"{contender} {seed}"


def _cell_file(folder: Path, contender: str, seed: int) -> Path:
    return folder / f"{contender} {seed}.json"


def _read_cells(folder: Path) -> list[Cell]:
    return [Cell(**json.loads(file.read_text())) for file in sorted(folder.glob("*.json"))]


def _format(cells: Sequence[Cell]) -> str:
    lines = ["| trainer | seeds | fidelity | old prompts right | drift | CPU s |", "|---|---|---|---|---|---|"]
    for contender in dict.fromkeys(cell.contender for cell in cells):
        own = [cell for cell in cells if cell.contender == contender]
        columns = [
            _spread([cell.fidelity for cell in own], 2),
            _spread([cell.old_right for cell in own], 2),
            _spread([cell.drift for cell in own], 1),
            f"{np.mean([cell.cpu_seconds for cell in own]):.0f}",
        ]
        lines.append(f"| {contender} | {len(own)} | " + " | ".join(columns) + " |")
    return "\n".join(lines)


def _spread(values: Sequence[float], digits: int) -> str:
    return f"{np.mean(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def _read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=lambda text: Path(text).resolve())
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--contenders", nargs="+", choices=[OURS, MUSUBI], default=[OURS, MUSUBI])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--num-seeds", type=int, default=4, help="images per prompt (default: %(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
