"""Finds a ComfyUI checkout with an interpreter that can run it and this pack, or says what is
missing.
"""

import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

PACK = Path(__file__).parents[2]
MINIMUM_VERSION = (0, 33)
HOST_PACKAGES = ("torch", "aiohttp", "transformers")
OUR_PACKAGES = ("diffusers", "peft")
PROBE_SECONDS = 300  # ends an interpreter that hangs; long enough for a slow disk or a busy machine
INTERPRETERS = (
    "venv/bin/python",
    ".venv/bin/python",
    "venv/Scripts/python.exe",
    ".venv/Scripts/python.exe",
    "../python_embeded/python.exe",
)
HOW_TO_GET_COMFYUI = "Get it with `pip install comfy-cli && comfy install`, or set COMFYUI_DIR to its folder."


@dataclass(frozen=True)
class Installation:
    """A ComfyUI checkout, the interpreter that runs it, and its version."""

    folder: Path
    python: Path
    version: str


class NoComfyUI(RuntimeError):
    """No ComfyUI was found, or none is usable; the message says what to do."""


def find_comfyui() -> Installation:
    """Find ComfyUI: in COMFYUI_DIR, else around this pack's custom_nodes folder, else in
    ~/comfy/ComfyUI.

    Its interpreter is COMFYUI_PYTHON, else the checkout's own venv or .venv.

    Raises:
        NoComfyUI: no ComfyUI was found, or it lacks something.
        ValueError: COMFYUI_DIR or COMFYUI_PYTHON is wrong. No other place is tried then.
    """
    folder = _find_folder()
    version = _read_version(folder)
    python = _find_interpreter(folder)
    _check_packages(folder, python)
    return Installation(folder, python, version)


def _find_folder() -> Path:
    chosen = os.environ.get("COMFYUI_DIR")
    if chosen:
        folder = Path(chosen).expanduser().absolute()
        if not _is_checkout(folder):
            raise ValueError(
                f"COMFYUI_DIR is {chosen}, which has no main.py and comfyui_version.py. Set it to ComfyUI's own "
                "folder, or unset it"
            )
        return folder
    places = [Path.home() / "comfy" / "ComfyUI"]
    if PACK.parent.name == "custom_nodes":
        places.insert(0, PACK.parents[1])
    for place in places:
        if _is_checkout(place):
            return place
    raise NoComfyUI(f"no ComfyUI in {' or '.join(map(str, places))}. {HOW_TO_GET_COMFYUI}")


def _is_checkout(folder: Path) -> bool:
    return (folder / "main.py").is_file() and (folder / "comfyui_version.py").is_file()


def _read_version(folder: Path) -> str:
    found = re.search(
        r'__version__ = "((\d+)\.(\d+)[^"]*)"', (folder / "comfyui_version.py").read_text(encoding="utf-8")
    )
    if found is None or (int(found[2]), int(found[3])) < MINIMUM_VERSION:
        needed = ".".join(map(str, MINIMUM_VERSION))
        raise NoComfyUI(
            f"the ComfyUI in {folder} has version {found[1] if found else 'unknown'}; {needed} or newer is "
            "needed. Update it"
        )
    return found[1]


def _find_interpreter(folder: Path) -> Path:
    chosen = os.environ.get("COMFYUI_PYTHON")
    if chosen:
        python = Path(chosen).expanduser().absolute()
        if not python.is_file():
            raise ValueError(
                f"COMFYUI_PYTHON is {chosen}, which is not a file. Set it to the interpreter that runs ComfyUI, or "
                "unset it"
            )
        return python
    for place in INTERPRETERS:
        if (folder / place).is_file():
            return folder / place
    raise NoComfyUI(f"the ComfyUI in {folder} has no venv or .venv. Set COMFYUI_PYTHON to the interpreter that runs it")


def _check_packages(folder: Path, python: Path) -> None:
    """Check that the packages are installed, without importing them, which takes seconds."""
    probe = (
        f"import importlib.util, json; print(json.dumps([name for name in {HOST_PACKAGES + OUR_PACKAGES!r} if "
        "importlib.util.find_spec(name) is None]))"
    )
    try:
        result = subprocess.run(
            [str(python), "-c", probe],
            cwd=folder,
            env=make_child_environment(),
            capture_output=True,
            text=True,
            timeout=PROBE_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise NoComfyUI(
            f"{python} does not run: {error}. Set COMFYUI_PYTHON to the interpreter that runs ComfyUI"
        ) from error
    missing = json.loads(result.stdout)
    if missing:
        requirements = (PACK if set(missing) <= set(OUR_PACKAGES) else folder) / "requirements.txt"
        raise NoComfyUI(
            f"{python}, which runs the ComfyUI in {folder}, lacks {', '.join(missing)}. Run: {python} -m pip "
            f"install -r {requirements}"
        )


def make_child_environment() -> dict[str, str]:
    """Return the environment variables without PYTHONPATH, which is meant for our interpreter."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
