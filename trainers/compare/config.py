"""The settings of a comparison, and how lists of strengths, seeds and prompts are written."""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from ..config import check_ranges, param

NumberT = TypeVar("NumberT", int, float)

MAX_STRENGTH = 100.0
MAX_SEED = 2**64 - 1
SIZE_STEP = 8  # pixels per latent of most models


@dataclass(frozen=True)
class CompareConfig:
    """Sizes are in pixels."""

    strengths: str = param(
        "1",
        "Strengths at which every LoRA is drawn, separated by commas, such as: 0.6, 0.8, 1. Usually 0.5 to 1.2. 0: the "
        "model without LoRA.",
    )
    negative_prompt: str = param("", "What no image should show, for all prompts.")
    seeds: str = param("0", "Seeds of the noise, separated by commas, such as: 0, 1. Each draws every prompt once.")
    steps: int = param(25, "Sampling steps of each image. Usually 20 to 30.", min=1, max=1000)
    guidance_scale: float = param(
        5.0, "How strongly an image follows its prompt (ComfyUI: cfg). Usually 4 to 8.", min=0.0, max=100.0
    )
    width: int = param(1024, "Width of each image in pixels. Usually 1024 for SDXL.", min=64, max=4096)
    height: int = param(1024, "Height of each image in pixels. Usually 1024 for SDXL.", min=64, max=4096)
    show_base: bool = param(True, "Begin with a column without LoRA.")

    def __post_init__(self) -> None:
        check_ranges(self)
        for name in ("width", "height"):
            if getattr(self, name) % SIZE_STEP:
                raise ValueError(f"{name} must be a multiple of {SIZE_STEP}, got {getattr(self, name)}")
        parse_strengths(self.strengths)
        parse_seeds(self.seeds)

    @property
    def size_hw(self) -> tuple[int, int]:
        return self.height, self.width


def parse_strengths(text: str) -> tuple[float, ...]:
    """The strengths in their order, each once.

    Raises:
        ValueError: there is none, or one is no number between -100 and 100.
    """
    return _parse_numbers(
        text,
        float,
        lambda strength: math.isfinite(strength) and abs(strength) <= MAX_STRENGTH,
        "strengths must be numbers between -100 and 100, separated by commas, such as 0.6, 0.8, 1",
    )


def parse_seeds(text: str) -> tuple[int, ...]:
    """The seeds in their order, each once.

    Raises:
        ValueError: there is none, or one is no whole number from 0 to 2**64 - 1.
    """
    return _parse_numbers(
        text,
        int,
        lambda seed: 0 <= seed <= MAX_SEED,
        f"seeds must be whole numbers between 0 and {MAX_SEED}, separated by commas, such as 0, 1",
    )


def _parse_numbers(
    text: str, kind: Callable[[str], NumberT], is_allowed: Callable[[NumberT], bool], rule: str
) -> tuple[NumberT, ...]:
    numbers: list[NumberT] = []
    for part in re.split(r"[\s,;]+", text.strip().strip(",;")):
        try:
            number = kind(part)
        except ValueError:
            raise ValueError(f"{rule}; got {part!r}") from None
        if not is_allowed(number):
            raise ValueError(f"{rule}; got {part!r}")
        numbers.append(number)
    return tuple(dict.fromkeys(numbers))


def parse_prompts(lines: Iterable[str]) -> tuple[str, ...]:
    """The prompts in their order, each once, without empty lines.

    Raises:
        ValueError: there is none.
    """
    prompts = tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not prompts:
        raise ValueError("there is no prompt. Write at least one, each in its own line")
    return prompts
