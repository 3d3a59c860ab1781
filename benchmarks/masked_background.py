"""Measures what a mask keeps out of a LoRA: trains on the demo's toadstools, all on one background
that the base model does not know, with and without masks.

    python -m benchmarks.masked_background FOLDER    # about 3 minutes for each row on one core

The captions do not name the background, so a training without masks learns it as part of the
concept. A row is one training: how well the toadstool is drawn on the backgrounds that its prompts
name, and how far these are pulled to the trained one (0 %: as named; 100 %: as trained).
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from trainers.commands.demo import SETTINGS
from trainers.commands.sdxl import train
from trainers.demo.before_after import NEW_PROMPTS, Comparison, compare, draw_grid
from trainers.demo.concept import LAYOUTS, TRIGGER_WORD, draw_toadstool
from trainers.embedded_base import write_embedded_checkpoint
from trainers.embedded_base.shared.scenes import BACKGROUNDS
from trainers.sdxl.model.sdxl_model import load_model

BACKGROUND = (120, 70, 20)
FRAME = 10  # pixels at the sides and above, where only the background is
ROWS: dict[str, dict[str, Any]] = {
    "no masks": {"mask_source": "off"},
    "masks, unmasked_weight 0.1": {},
    "masks, unmasked_weight 0": {"unmasked_weight": 0.0},
    "masks, unmasked_weight 0.1, normalized": {"normalize_masked_loss": True},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--steps", type=int, default=SETTINGS["max_train_steps"])
    parser.add_argument("--num-seeds", type=int, default=8, help="images per prompt (default: %(default)s)")
    options = parser.parse_args()
    base, images = options.folder / "base.safetensors", _write_images(options.folder / "toadstools")
    write_embedded_checkpoint(base)
    print(
        "| trained with | new concept | pulled to the trained background | drift of old prompts |\n|---|---|---|---|",
        flush=True,
    )
    for name in options.rows:
        files = {
            "images": str(images),
            "base": str(base),
            "output": name,
            "output_dir": str(options.folder),
            "cache_dir": str(options.folder / "cache"),
        }
        lora = train(
            {
                **SETTINGS,
                **ROWS[name],
                **files,
                "trigger_word": TRIGGER_WORD,
                "max_train_steps": options.steps,
                "device": "cpu",
            }
        )
        assert lora.path is not None
        comparison = compare(load_model(base), lora.path, num_seeds=options.num_seeds, num_steps=20)
        draw_grid(comparison, num_seeds=options.num_seeds).save(lora.path.with_suffix(".png"))
        print(f"| {name} | {_format_cells(comparison, options.num_seeds)} |", flush=True)


def _write_images(folder: Path) -> Path:
    """Draw the demo's layouts on BACKGROUND, each with a mask a little larger than the toadstool,
    as people paint masks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, (height, width), _, share, (y, x) in LAYOUTS:
        place = {"cap_width": share * min(height, width), "centre_yx": (y * height, x * width)}
        image = draw_toadstool((height, width), BACKGROUND, **place)
        distance = np.abs(np.asarray(image).astype(int) - BACKGROUND).max(axis=-1)
        mask = Image.fromarray(np.where(distance > 20, 255, 0).astype(np.uint8)).filter(ImageFilter.MaxFilter(9))
        stem = Path(name).stem
        image.save(folder / f"{stem}.png")
        mask.save(folder / f"{stem}-masklabel.png")
        (folder / f"{stem}.txt").write_text(f"a {TRIGGER_WORD}\n", encoding="utf-8")
    return folder


def _format_cells(comparison: Comparison, num_seeds: int) -> str:
    """Format the cells of a row. The pull is given without and with the LoRA."""
    pulls = []
    for images in (comparison.before, comparison.after):
        of_prompts = zip(NEW_PROMPTS, np.split(images[: len(NEW_PROMPTS) * num_seeds], len(NEW_PROMPTS)), strict=True)
        pulls.append(np.mean([_measure_pull(image, prompt) for prompt, own in of_prompts for image in own]))
    return f"{comparison.fidelity_after:.2f} | {pulls[0]:.0%} -> {pulls[1]:.0%} | {comparison.drift:.1f}"


def _measure_pull(image: np.ndarray, prompt: str) -> float:
    """Return how far the background of an image [height, width, 3] is from the colour in the prompt
    (0) to BACKGROUND (1).
    """
    named = next(
        np.array(colour, dtype=float) for name, colour in BACKGROUNDS.items() if f" {name} background" in prompt
    )
    seen = np.median(
        np.concatenate(
            [image[:FRAME].reshape(-1, 3), image[:, :FRAME].reshape(-1, 3), image[:, -FRAME:].reshape(-1, 3)]
        ),
        axis=0,
    )
    way = np.array(BACKGROUND) - named
    return float((seen - named) @ way / (way @ way))


if __name__ == "__main__":
    main()
