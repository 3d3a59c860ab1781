"""Musubi Doctor: checks whether this machine can train with Musubi Tuner, and how to get what is
missing. Changes nothing.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..files.client_folders import ClientFolder
from ..wording import GIBIBYTE, format_gigabytes
from .architectures import MUSUBI_VERSION
from .installation import Installation, NoMusubi, find_folder, find_python, read_version
from .owner_file import format_lines, get_owner_file
from .process import build_environment

PROBE_SECONDS = 600  # for the first import of torch, from a slow disk on a busy machine
# What training on images imports: name in Python, name for pip.
PACKAGES = {
    **{
        name: name
        for name in (
            "accelerate",
            "av",
            "diffusers",
            "einops",
            "numpy",
            "safetensors",
            "tokenizers",
            "toml",
            "torch",
            "torchvision",
            "tqdm",
        )
    },
    **{
        "cv2": "opencv-python-headless",
        "huggingface_hub": "huggingface-hub",
        "PIL": "pillow",
        "transformers": "transformers",
        "voluptuous": "voluptuous",
    },
}
OPTIONAL_PACKAGES = {
    "bitsandbytes": "the optimizer AdamW8bit",
    "sentencepiece": "FLUX.1 Kontext and Wan",
    "easydict": "Wan",
    "ftfy": "Wan",
}
_PROBE = """
import importlib.metadata, importlib.util, json, site, sys
given = json.loads(sys.argv[1])
# Isolated mode leaves out the user's own packages, which the training finds.
if sys.prefix == sys.base_prefix:
    site.addsitedir(site.getusersitepackages())
sys.path.append(given["sources"])  # last: nothing in it can take the name of another module
found = {"python": sys.version.split()[0]}
found["missing"] = [name for name in given["modules"] if importlib.util.find_spec(name) is None]
installed = [name for name in given["pins"] if list(importlib.metadata.distributions(name=name))]
found["versions"] = {name: importlib.metadata.version(name) for name in installed}
try:
    import torch
    found["torch"] = torch.__version__
    found["cuda"] = torch.version.cuda or ""
    gpus = range(torch.cuda.device_count())
    found["gpus"] = [[torch.cuda.get_device_name(i), *torch.cuda.mem_get_info(i)] for i in gpus]
    import musubi_tuner.zimage_train_network
except BaseException as error:
    found["error"] = type(error).__name__ + ": " + str(error)
print("FOUND" + json.dumps(found))
"""


@dataclass(frozen=True)
class Diagnosis:
    """Lines about what was found, and about what is wrong, each with its remedy. `places` are the
    lines for the owner's file.
    """

    found: list[str]
    problems: list[str]
    remarks: list[str]
    places: str

    @property
    def is_ready(self) -> bool:
        return not self.problems

    def text(self) -> str:
        verdict = "Musubi Tuner is ready." if self.is_ready else "Musubi Tuner cannot be used yet."
        sections = [verdict, *self.found]
        sections += ["To do:", *(f"  {problem}" for problem in self.problems)] if self.problems else []
        sections += ["Good to know:", *(f"  {remark}" for remark in self.remarks)] if self.remarks else []
        sections.append(f"To use another Musubi Tuner or Python, write these two lines into {get_owner_file()}:")
        sections += [f"  {line}" for line in self.places.splitlines()]
        return "\n".join(sections) + "\n"


def diagnose(*, folder: str = "", python: str = "", client_folders: Sequence[ClientFolder] = ()) -> Diagnosis:
    """Find the folder and its Python, then ask that Python what it has. Takes as long as an import
    of torch, at most ten minutes. Nothing below `client_folders` is run.
    """
    found: list[str] = []
    place = Path.home() / "musubi-tuner"
    interpreter = place / (".venv/Scripts/python.exe" if sys.platform == "win32" else ".venv/bin/python")
    try:
        place = find_folder(folder, client_folders=client_folders)
        version = read_version(place)
        found.append(f"Folder: {place}, version {version}")
        interpreter = find_python(place, python, client_folders=client_folders)
        found.append(f"Python: {interpreter}")
    except NoMusubi as error:
        return Diagnosis(found, [str(error)], [], format_lines(place, interpreter))
    installation, places = Installation(place, interpreter, version), format_lines(place, interpreter)
    probed, failure = _probe(installation)
    if failure:
        return Diagnosis(found, [failure], [], places)
    found += list(_describe_found(probed))
    problems, remarks = _find_problems(probed, interpreter, place), _find_remarks(probed, installation)
    return Diagnosis(found, list(problems), list(remarks), places)


def _probe(installation: Installation) -> tuple[dict, str]:
    """Return what the interpreter says about itself, or why it cannot say.

    It runs isolated in an empty folder: no file of the current folder and no variable of the
    environment decides what it imports.
    """
    questions = {
        "modules": [*PACKAGES, *OPTIONAL_PACKAGES],
        "pins": list(_read_pins(installation.folder)),
        "sources": str(installation.folder / "src"),
    }
    command = [str(installation.python), "-I", "-X", "utf8", "-c", _PROBE, json.dumps(questions)]
    environment = build_environment(installation)
    del environment["PYTHONPATH"]
    try:
        with tempfile.TemporaryDirectory(prefix="lora-trainer-", ignore_cleanup_errors=True) as empty_folder:
            result = subprocess.run(
                command,
                check=False,
                cwd=empty_folder,
                env=environment,
                capture_output=True,
                timeout=PROBE_SECONDS,
                stdin=subprocess.DEVNULL,
            )
    except subprocess.TimeoutExpired:
        return (
            {},
            f"{installation.python} did not answer within {PROBE_SECONDS} seconds. Is its disk asleep, or is it not "
            "Python?",
        )
    except OSError as error:
        return {}, f"{installation.python} cannot be started: {error}. Set the Python of Musubi Tuner's .venv"
    lines = result.stdout.decode("utf-8", "replace").splitlines()
    answer = next((line.removeprefix("FOUND") for line in lines if line.startswith("FOUND")), "")
    if not answer:
        said = (result.stderr.decode("utf-8", "replace").strip().splitlines() or ["nothing"])[-1]
        return (
            {},
            f"{installation.python} is not a usable Python: it ended with status {result.returncode} and said: {said}",
        )
    return json.loads(answer), ""


def _describe_found(probed: dict) -> Iterator[str]:
    cuda = f"CUDA {probed['cuda']}" if probed.get("cuda") else "without CUDA"
    yield f"Python {probed['python']}, torch {probed.get('torch', 'none')} {cuda if 'torch' in probed else ''}".rstrip()
    for name, free, total in probed.get("gpus", []):
        yield f"GPU: {name}, {free / GIBIBYTE:.1f} of {format_gigabytes(total)} free"


def _find_problems(probed: dict, python: Path, folder: Path) -> Iterator[str]:
    missing = [PACKAGES[name] for name in probed["missing"] if name in PACKAGES]
    if "torch" in missing or "torchvision" in missing:
        yield (
            "torch or torchvision is not installed: install both for your GPU as on pytorch.org, with "
            f"{_quote(python)} -m pip"
        )
    others = [name for name in missing if name not in ("torch", "torchvision")]
    if others:
        yield f"not installed: {', '.join(others)}. In {folder}: {_quote(python)} -m pip install -e ."
    if "error" in probed and not missing:
        yield (
            f"its training script cannot be imported: {probed['error']}. In {folder}: {_quote(python)} -m pip "
            "install -e ."
        )


def _find_remarks(probed: dict, installation: Installation) -> Iterator[str]:
    if installation.version != MUSUBI_VERSION:
        yield f"version {installation.version} is untested; the tested version is {MUSUBI_VERSION}"
    if "torch" in probed and not probed.get("gpus"):
        yield "torch sees no GPU: training would take days on the CPU"
    for name in probed["missing"]:
        if name in OPTIONAL_PACKAGES:
            yield (
                f"{name} is not installed. For {OPTIONAL_PACKAGES[name]}, run {_quote(installation.python)} "
                f"-m pip install {name}"
            )
    pins = _read_pins(installation.folder)
    others = [
        f"{name} {version} ({pins[name]})"
        for name, version in probed.get("versions", {}).items()
        if version != pins[name]
    ]
    if others:
        yield (
            f"not the versions that Musubi Tuner asks for: {', '.join(others)}. Most work; if one fails, install "
            "the version in brackets"
        )
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        yield "HF_HUB_OFFLINE is 1: tokenizers that are not in the Hugging Face cache yet cannot be downloaded"


def _read_pins(folder: Path) -> dict[str, str]:
    """Return the versions that Musubi's pyproject.toml pins."""
    try:
        text = (folder / "pyproject.toml").read_text(encoding="utf-8")
    except OSError:
        return {}
    return dict(re.findall(r'"([\w.-]+)==([\w.]+)"', text))


def _quote(python: Path) -> str:
    return f'"{python}"' if " " in str(python) else str(python)
