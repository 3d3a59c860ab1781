"""The prompts of sample images as Musubi Tuner reads them: a JSON list, so that Musubi takes no
caption for an option.
"""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .config import MusubiConfig

# Musubi's options that are numbers or text. Options that name files (--i, --ci, ...) are left out:
# control images come from the dataset.
_OPTIONS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "w": ("width", int),
    "h": ("height", int),
    "f": ("frame_count", int),
    "d": ("seed", int),
    "s": ("sample_steps", int),
    "g": ("guidance_scale", float),
    "fs": ("discrete_flow_shift", float),
    "l": ("cfg_scale", float),
    "n": ("negative_prompt", str),
}
_OPTION = re.compile(r"\s--(?=[a-z]+\s)")


def read_prompts(
    config: MusubiConfig, *, first_caption: str, control_images: Sequence[Path] = ()
) -> list[dict[str, Any]]:
    """Return one entry per line of sample_prompts, or the first image's caption. Resolution and
    seed are those of the training, unless a line sets them.

    Raises:
        ValueError: an option is unknown or has a wrong value.
    """
    lines = [line.strip() for line in config.sample_prompts.splitlines() if line.strip() and not line.startswith("#")]
    entries = [_read_line(line) for line in lines] or [{"prompt": first_caption}]
    usual = {"width": config.resolution, "height": config.resolution, "seed": config.seed}
    control = {"control_image_path": [str(path) for path in control_images]} if control_images else {}
    return [{**usual, **control, **entry} for entry in entries]


def prompts_text(prompts: list[dict[str, Any]]) -> str:
    return json.dumps(prompts, ensure_ascii=False, indent=2) + "\n"


def _read_line(line: str) -> dict[str, Any]:
    prompt, *options = _OPTION.split(line)
    entry: dict[str, Any] = {"prompt": prompt.strip()}
    for option in options:
        name, _, value = option.strip().partition(" ")
        if name not in _OPTIONS:
            raise ValueError(
                f"sample_prompts: unknown option --{name} in {line!r}. Known: "
                f"{', '.join('--' + known for known in _OPTIONS)}"
            )
        key, kind = _OPTIONS[name]
        try:
            entry[key] = kind(value.strip())
        except ValueError:
            raise ValueError(
                f"sample_prompts: --{name} must be {'a whole number' if kind is int else 'a number'}, got "
                f"{value.strip()!r}"
            ) from None
    return entry
