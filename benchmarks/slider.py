"""Measures sliders on the embedded base: whether what they act on grows with every strength, and
what else they change.

    python -m benchmarks.slider FOLDER    # about 6 minutes for each slider on one core

A row is one slider at one strength. `property`: what it acts on, the mean over all images: the
share of the image that the object covers (size), or its red less its blue, of 255 (colour).
`right`: the share of the images whose other words are drawn as asked. `drift`: the mean change of
the pixels that the slider should leave alone, as a share of 255, against strength 0: those that
show the background both times, and for colour also whole images of prompts with other colours.
None of the prompts was trained on. FOLDER gets the LoRAs, the images, and all figures as
slider.json.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from trainers.commands.slider import train
from trainers.embedded_base import write_embedded_checkpoint
from trainers.embedded_base.shared.scenes import find_object, fits
from trainers.lora.modules import list_weighted_modules
from trainers.lora.read import read_lora
from trainers.sdxl.merge import merged_lora
from trainers.sdxl.model.sampling import sample_images, use_float32_on_cpu
from trainers.sdxl.model.sdxl_model import SDXLModel, load_model
from trainers.sdxl.names import kohya_names
from trainers.sdxl.slider.plan import STRENGTHS

SIZE_HW = (128, 128)
SETTINGS: dict[str, Any] = {
    "resolution": 128,
    "learning_rate": 2e-3,  # the base is so small that it needs a high one
    "train_batch_size": 2,
    "max_train_steps": 200,
    "num_drawings": 36,
    "gradient_checkpointing": False,
    "save_dtype": "fp32",
}


@dataclass(frozen=True)
class Slider:
    """One slider: its settings, and how to judge it. `kept`: which of colour, shape and background
    it must keep. `others`: prompts that it should leave alone altogether.
    """

    settings: dict[str, str | float]
    measure: Callable[[np.ndarray], float]
    kept: tuple[bool, bool, bool]
    prompts: tuple[str, ...]
    others: tuple[str, ...] = field(default=())


def measure_area(pixels: np.ndarray) -> float:
    return float(find_object(pixels)[1].mean())


def measure_redness(pixels: np.ndarray) -> float:
    _, mask = find_object(pixels)
    red, _, blue = np.median(pixels[mask], axis=0) if mask.any() else (0.0, 0.0, 0.0)
    return float(red) - float(blue)


SLIDERS = {
    "size": Slider(
        {
            "target": "a {attribute}",
            "positive": "a large {attribute}",
            "negative": "a small {attribute}",
            "attributes": "red circle on a white background | green square on a grey background | blue star on a beige "
            "background | yellow cross on a black background | pink triangle on a white background | cyan ring on a "
            "black background",
        },
        measure_area,
        (True, True, True),
        (
            "a red square on a white background",
            "a purple circle on a grey background",
            "a yellow star on a black background",
            "a blue triangle on a white background",
            "a green cross on a beige background",
            "a cyan ring on a grey background",
        ),
    ),
    "colour": Slider(
        {
            "target": "a purple {attribute}",
            "positive": "a red {attribute}",
            "negative": "a blue {attribute}",
            "attributes": "circle on a white background | square on a grey background | star on a beige background | "
            "cross on a black background | triangle on a white background | ring on a grey background",
            "class_prompt": "a green circle on a black background | a yellow star on a white background | an orange "
            "cross on a grey background | a cyan square on a beige background",
            "prior_loss_weight": 1.0,
            "slider_guidance": 0.5,  # purple is between the two: 1 would lead beyond them
        },
        measure_redness,
        (False, True, True),
        (
            "a purple square on a white background",
            "a purple circle on a grey background",
            "a purple star on a black background",
            "a purple triangle on a beige background",
        ),
        (
            "a green square on a white background",
            "a yellow circle on a grey background",
            "an orange star on a black background",
            "a cyan triangle on a beige background",
        ),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sliders", nargs="+", choices=SLIDERS, default=list(SLIDERS))
    parser.add_argument("--steps", type=int, default=SETTINGS["max_train_steps"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-seeds", type=int, default=4, help="images per prompt (default: %(default)s)")
    options = parser.parse_args()
    base = options.folder / "base.safetensors"
    if not base.exists():
        write_embedded_checkpoint(base)
    results: dict[str, Any] = {}
    print("| slider | strength | property | right | drift |\n|---|---|---|---|---|", flush=True)
    for name in options.sliders:
        lora = _train(name, base, options)
        results[name] = judge(SLIDERS[name], load_model(base), lora, num_seeds=options.num_seeds)
        for row in results[name]["rows"]:
            print(f"| {name} | {row['strength']:g} | {row['property']:.3f} | {row['right']:.0%} | {row['drift']:.1%} |")
    (options.folder / "slider.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    for name, result in results.items():
        print(f"{name}: {'monotone' if result['is_monotone'] else 'not monotone'}, drift {result['drift']:.1%}")


def _train(name: str, base: Path, options: argparse.Namespace) -> Path:
    files = {
        "base": str(base),
        "output": f"{name}, seed {options.seed}, {options.steps} steps",
        "output_dir": str(options.folder),
        "cache_dir": str(options.folder / "cache"),
    }
    changed = {"seed": options.seed, "max_train_steps": options.steps, "device": "cpu"}
    trained = train({**SETTINGS, **SLIDERS[name].settings, **files, **changed})
    assert trained.path is not None
    return trained.path


def judge(slider: Slider, model: SDXLModel, lora: Path, *, num_seeds: int) -> dict[str, Any]:
    """Draw every prompt at every strength, and measure. The drift of the whole is that of strengths
    1 and -1, where a slider is usually used.
    """
    drawn = _draw(slider, model, lora, num_seeds)
    rows = [
        {"strength": strength, **_measure(slider, images, drawn[0.0], num_seeds)} for strength, images in drawn.items()
    ]
    values = [row["property"] for row in rows]
    return {
        "rows": rows,
        "is_monotone": all(low < high for low, high in pairwise(values)),
        "drift": float(np.mean([row["drift"] for row in rows if abs(row["strength"]) == 1])),
    }


def _draw(slider: Slider, model: SDXLModel, lora: Path, num_seeds: int) -> dict[float, np.ndarray]:
    """Return images uint8 [prompts * seeds, height, width, 3] by strength, the slider's own prompts
    first, and save a sheet of them with a row for each strength.
    """
    use_float32_on_cpu(model)
    assert model.text_encoder is not None and model.text_encoder_2 is not None
    parts = {"unet": model.unet, "text_encoder": model.text_encoder, "text_encoder_2": model.text_encoder_2}
    modules = read_lora(lora, kohya_names(*(list_weighted_modules(part) for part in parts.values())))
    drawn = {}
    for strength in STRENGTHS:
        with merged_lora(modules, parts, strength=strength):
            prompts, seeds = slider.prompts + slider.others, list(range(num_seeds))
            drawn[strength] = sample_images(model, prompts, seeds=seeds, size_hw=SIZE_HW, num_steps=20)
    sheet = np.concatenate([np.concatenate(list(images[::num_seeds]), axis=1) for images in drawn.values()])
    Image.fromarray(sheet).save(lora.with_suffix(".png"))
    return drawn


def _measure(slider: Slider, images: np.ndarray, unchanged: np.ndarray, num_seeds: int) -> dict[str, float]:
    own = len(slider.prompts) * num_seeds
    right = [
        all(
            fit
            for fit, is_kept in zip(fits(image, slider.prompts[i // num_seeds]), slider.kept, strict=True)
            if is_kept
        )
        for i, image in enumerate(images[:own])
    ]
    changes = np.abs(images.astype(float) - unchanged).mean(-1) / 255  # [N, height, width]
    drifts = [
        changes[i][~(find_object(images[i])[1] | find_object(unchanged[i])[1])].mean() if i < own else changes[i].mean()
        for i in range(len(images))
    ]
    own_drift, *other_drift = [float(np.mean(part)) for part in (drifts[:own], drifts[own:]) if part]
    return {
        "property": float(np.mean([slider.measure(image) for image in images[:own]])),
        "right": float(np.mean(right)),
        "drift": max([own_drift, *other_drift]),
        "drift_of_backgrounds": own_drift,
        **({"drift_of_other_prompts": other_drift[0]} if other_drift else {}),
    }


if __name__ == "__main__":
    main()
