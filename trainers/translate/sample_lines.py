"""Sample prompts of other programs as lines of sample_prompt."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from .values import is_off

_OPTION = re.compile(r"\s--(\S+)\s+(.*?)(?=\s--|$)")
_KNOWN_OPTIONS = ("n", "w", "h", "d", "s", "l")
# Their fields, in sd-scripts' prompt files and in OneTrainer's samples, by sd-scripts' option.
_FIELDS = {
    "n": ("negative_prompt",),
    "w": ("width",),
    "h": ("height",),
    "d": ("seed",),
    "s": ("sample_steps", "diffusion_steps"),
    "l": ("scale", "cfg_scale"),
}


def read_lines(text: str) -> tuple[str, list[str]]:
    """Return the prompts with the options that are known here, and the names of other options."""
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    unknown = {name for line in lines for name, _ in _OPTION.findall(line) if name.lower() not in _KNOWN_OPTIONS}
    return "\n".join(_keep_known(line) for line in lines), sorted(unknown)


def write_lines(prompts: Iterable[Mapping[str, Any]]) -> str:
    """Write prompts that are tables, in one line each."""
    return "\n".join(_write_line(prompt) for prompt in prompts if prompt.get("enabled", True))


def _keep_known(line: str) -> str:
    prompt = re.split(r"\s--\S", " " + line)[0].strip()
    options = [(name.lower(), text) for name, text in _OPTION.findall(" " + line) if name.lower() in _KNOWN_OPTIONS]
    return _join(prompt, options)


def _write_line(prompt: Mapping[str, Any]) -> str:
    options = []
    for option, names in _FIELDS.items():
        value = next((prompt[name] for name in names if prompt.get(name) is not None), "")
        if option == "d" and prompt.get("random_seed"):
            continue
        if not is_off(value) or (option == "d" and value != ""):
            options.append((option, str(value)))
    return _join(str(prompt.get("prompt", "")), options)


def _join(prompt: str, options: Iterable[tuple[str, str]]) -> str:
    """Bars and line ends would end the prompt."""
    parts = [prompt, *(f"--{name} {text}" for name, text in options)]
    return " ".join(" ".join(parts).replace("|", " ").split())
