"""What installing the pack does to the environment that it is installed in."""

import json
import re
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import pytest

from tests.limits import TIME_LIMIT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
# The host's own, and what only developers need.
FORBIDDEN = {"torch", "torchvision", "torchaudio", "numpy", "pytest"}
# What a ComfyUI of some age has: older than anything that pip would choose itself.
HOST_PACKAGES = {"torch": "2.6.0", "torchvision": "0.21.0", "torchaudio": "2.6.0", "numpy": "1.26.4"}
UNREACHABLE = re.compile(
    r"NewConnectionError|ConnectTimeout|NameResolutionError|ProxyError|Connection refused|from versions: none"
)


def test_pyproject_and_requirements_agree() -> None:
    assert sorted(_pyproject()["project"]["dependencies"]) == sorted(_requirements())


def test_requirements_are_lower_bounds_only() -> None:
    for requirement in _requirements():
        assert re.fullmatch(r"[a-z-]+>=[\d.]+(; .+)?", requirement), requirement


def test_requirements_leave_out_what_the_host_owns() -> None:
    assert not FORBIDDEN & {_name(requirement) for requirement in _requirements()}


def test_optimizer_packages_are_no_requirement() -> None:
    optional = {_name(requirement) for requirement in _pyproject()["project"]["optional-dependencies"]["optimizers"]}
    assert optional == {"lion-pytorch", "prodigyopt"}
    assert not optional & {_name(requirement) for requirement in _requirements()}


def test_dev_extra_pins_torch_and_brings_the_optimizers() -> None:
    dev = _pyproject()["project"]["optional-dependencies"]["dev"]
    assert "torch==2.13.0" in dev
    assert "lora-trainer[optimizers]" in dev


def test_registry_rules_hold_for_pyproject() -> None:
    project = _pyproject()["project"]
    assert re.fullmatch(r"[a-z]+([-_.]?[a-z0-9]+)*", project["name"]) and "comfyui" not in project["name"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["version"])
    assert project["license"] == {"text": "Apache-2.0"}
    assert {"Repository", "Homepage", "Documentation", "Issues"} <= set(project["urls"])


def test_installing_the_requirements_leaves_the_hosts_torch_alone(tmp_path: Path) -> None:
    python = _environment_of_a_host(tmp_path)
    installed = _would_install(python, ROOT / "requirements.txt")
    assert {"diffusers", "peft", "transformers", "accelerate"} <= installed  # pip did resolve
    touched = {name for name in installed if name in HOST_PACKAGES or name.startswith(("nvidia-", "triton", "cuda-"))}
    assert not touched


def _pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def _requirements() -> list[str]:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def _name(requirement: str) -> str:
    return re.split(r"[\s\[<>=!~;]", requirement)[0].lower()


def _environment_of_a_host(folder: Path) -> Path:
    """An empty environment in which pip finds HOST_PACKAGES installed: only their metadata,
    which is all that pip reads.
    """
    venv.create(folder / "venv", with_pip=False)
    scripts = folder / "venv" / ("Scripts" if sys.platform == "win32" else "bin")
    python = scripts / ("python.exe" if sys.platform == "win32" else "python")
    site_packages = Path(
        _run([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).stdout.strip()
    )
    for name, version in HOST_PACKAGES.items():
        metadata = site_packages / f"{name}-{version}.dist-info" / "METADATA"
        metadata.parent.mkdir()
        metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return python


def _would_install(python: Path, requirements: Path) -> set[str]:
    """The packages that pip would install there; skips where there is no pip or no package
    index.
    """
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--dry-run", "--quiet", "--retries=1"]
    result = _run([*command, "--report=-", f"--requirement={requirements}"])
    if "No module named pip" in result.stderr:
        pytest.skip(f"{sys.executable} has no pip: what an installation changes was not checked")
    if result.returncode and UNREACHABLE.search(result.stderr):
        pytest.skip("the package index cannot be reached: what an installation changes was not checked")
    assert result.returncode == 0, result.stderr
    return {entry["metadata"]["name"].lower().replace("_", "-") for entry in json.loads(result.stdout)["install"]}


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=TIME_LIMIT, check=False)
