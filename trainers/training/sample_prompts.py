"""What the sample images show: prompts and their options, from the settings. Imports no torch."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..dataset.image import TrainingImage
from ..wording import name_examples
from .config import AUTO_SCHEDULER, DEFAULT_SAMPLER, TrainingConfig

TRIGGER = "{trigger}"
SIZES = (64, 4096)  # pixels of a side
_SIZE_UNIT = 8  # pixels of a latent
_OPTION = re.compile(r"\s--(?=[a-z]+\s)")


@dataclass(frozen=True)
class SamplePrompt:
    """One row of samples: an image for each seed. size_hw None: the size that most images have.
    strength: of the LoRA.
    """

    prompt: str
    negative_prompt: str
    seeds: tuple[int, ...]
    size_hw: tuple[int, int] | None
    num_steps: int
    guidance_scale: float
    control_images: tuple[TrainingImage, ...] = ()
    sampler: str = DEFAULT_SAMPLER
    scheduler: str = AUTO_SCHEDULER
    strength: float = 1.0

    @property
    def label(self) -> str:
        return self.prompt if self.strength == 1 else f"{self.prompt} (strength {self.strength:g})"


def read_sample_prompts(
    config: TrainingConfig,
    *,
    first_caption: str,
    trigger_word: str,
    control_images: Mapping[str, tuple[TrainingImage, ...]] | None = None,
) -> tuple[SamplePrompt, ...]:
    """Read sample_prompt: one prompt per line or between vertical bars, each with kohya's options,
    such as: {trigger} on a beach --n blurry --w 832 --h 1216 --d 7 --s 28 --l 6. `control_images`
    are those of the dataset, by the names of their images: --ci names one, else the first counts.

    Raises:
        ValueError: an option is unknown or wrong, or {trigger} has no trigger word.
    """
    control_images = control_images or {}
    usual = SamplePrompt(
        prompt=first_caption,
        negative_prompt=config.sample_negative_prompt,
        seeds=read_seeds(config.sample_seeds),
        size_hw=read_size(config.sample_size),
        num_steps=config.sample_steps,
        guidance_scale=config.sample_guidance_scale,
        control_images=next(iter(control_images.values()), ()),
        sampler=config.sample_sampler,
        scheduler=config.sample_scheduler,
    )
    lines = [line.strip() for line in re.split(r"[\n|]", config.sample_prompt)]
    prompts = [_read_line(line, usual, control_images) for line in lines if line and not line.startswith("#")]
    prompts = prompts or [usual]
    return tuple(_replace_trigger(prompt, trigger_word) for prompt in prompts)


def read_seeds(text: str) -> tuple[int, ...]:
    """Read seeds with commas or spaces between them."""
    words = re.findall(r"[^\s,]+", text)
    if not words or not all(re.fullmatch(r"\d{1,19}", word) and int(word) < 2**63 for word in words):
        raise ValueError(f"sample_seeds must be whole numbers with commas between them, such as 0, 1; got {text!r}")
    return tuple(int(word) for word in words)


def read_size(text: str) -> tuple[int, int] | None:
    """Read width x height, and return (height, width); None for an empty text."""
    if not text.strip():
        return None
    match = re.fullmatch(r"\s*(\d+)\s*[xX×*]\s*(\d+)\s*", text)
    if match is None:
        raise ValueError(f"sample_size must be width x height, such as 832x1216, or empty; got {text!r}")
    return check_size((int(match[2]), int(match[1])))


def check_size(size_hw: tuple[int, int]) -> tuple[int, int]:
    low, high = SIZES
    if any(side % _SIZE_UNIT or not low <= side <= high for side in size_hw):
        raise ValueError(
            f"the sides of a sample image must be multiples of {_SIZE_UNIT} from {low} to {high}, got "
            f"{size_hw[1]} x {size_hw[0]}"
        )
    return size_hw


# sd-scripts' options, and what they must be
_OPTIONS: dict[str, tuple[Callable[[str], Any], str]] = {
    "n": (str, "a text"),
    "w": (int, "a whole number"),
    "h": (int, "a whole number"),
    "d": (lambda text: read_seeds(text)[0], "a whole number"),
    "s": (int, "a whole number"),
    "l": (float, "a number"),
    "ci": (str, "the name of an image of the dataset"),
}


def _read_line(line: str, usual: SamplePrompt, control_images: Mapping[str, tuple[TrainingImage, ...]]) -> SamplePrompt:
    prompt, *options = _OPTION.split(" " + line)
    values: dict[str, Any] = {}
    for option in options:
        name, _, text = option.partition(" ")
        if name not in _OPTIONS:
            known = ", ".join(f"--{each}" for each in _OPTIONS)
            raise ValueError(f"sample_prompt: unknown option --{name} in {line!r}. Known: {known}")
        kind, what = _OPTIONS[name]
        try:
            values[name] = kind(text.strip())
        except ValueError:
            raise ValueError(f"sample_prompt: --{name} must be {what}, got {text.strip()!r}") from None
    if "ci" in values:
        usual = replace(usual, control_images=_choose_control_images(values["ci"], control_images))
    return _apply_options(replace(usual, prompt=prompt.strip() or usual.prompt), values)


def _choose_control_images(
    name: str, control_images: Mapping[str, tuple[TrainingImage, ...]]
) -> tuple[TrainingImage, ...]:
    if name not in control_images:
        names = name_examples(control_images, 5) or "none has any"
        raise ValueError(
            f"sample_prompt: --ci must be the name of an image of the dataset with control images ({names}), got "
            f"{name!r}"
        )
    return control_images[name]


def _apply_options(prompt: SamplePrompt, values: Mapping[str, Any]) -> SamplePrompt:
    if ("w" in values) != ("h" in values):
        raise ValueError("sample_prompt: --w and --h belong together. Give both or none")
    num_steps = values.get("s", prompt.num_steps)
    if not 1 <= num_steps <= 200:
        raise ValueError(f"sample_prompt: --s must be between 1 and 200, got {num_steps}")
    return replace(
        prompt,
        negative_prompt=values.get("n", prompt.negative_prompt),
        seeds=(values["d"],) if "d" in values else prompt.seeds,
        size_hw=check_size((values["h"], values["w"])) if "w" in values else prompt.size_hw,
        num_steps=num_steps,
        guidance_scale=values.get("l", prompt.guidance_scale),
    )


def _replace_trigger(prompt: SamplePrompt, trigger_word: str) -> SamplePrompt:
    texts = (prompt.prompt, prompt.negative_prompt)
    if not trigger_word and any(TRIGGER in text for text in texts):
        raise ValueError(
            f"sample_prompt has {TRIGGER}, but the dataset has no trigger word. Write the words themselves, or set "
            "trigger_word"
        )
    prompt_text, negative_text = (text.replace(TRIGGER, trigger_word) for text in texts)
    return replace(prompt, prompt=prompt_text, negative_prompt=negative_text)
