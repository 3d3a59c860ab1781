"""Installing the pack leaves the packages of the host alone."""

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
# Packages that belong to the host, and those that only developers need.
FORBIDDEN = {"torch", "torchvision", "torchaudio", "numpy", "pytest"}
# The packages of an older ComfyUI: all older than what pip would choose itself.
HOST_PACKAGES = {"torch": "2.6.0", "torchvision": "0.21.0", "torchaudio": "2.6.0", "numpy": "1.26.4"}
UNREACHABLE = re.compile(
    r"NewConnectionError|ConnectTimeout|NameResolutionError|ProxyError|Connection refused|from versions: none"
)


def test_pyproject_and_requirements_agree() -> None:
    assert sorted(_read_pyproject()["project"]["dependencies"]) == sorted(_read_requirements())


def test_requirements_are_lower_bounds_only() -> None:
    for requirement in _read_requirements():
        assert re.fullmatch(r"[a-z-]+>=[\d.]+(; .+)?", requirement), requirement


def test_requirements_leave_out_the_hosts_packages() -> None:
    assert not FORBIDDEN & {_get_package_name(requirement) for requirement in _read_requirements()}


def test_optimizer_packages_are_optional() -> None:
    optional = {
        _get_package_name(requirement)
        for requirement in _read_pyproject()["project"]["optional-dependencies"]["optimizers"]
    }
    assert optional == {"came-pytorch", "lion-pytorch", "prodigy-plus-schedule-free", "prodigyopt", "schedulefree"}
    assert not optional & {_get_package_name(requirement) for requirement in _read_requirements()}


def test_dev_extra_pins_torch_and_includes_the_optimizers() -> None:
    dev = _read_pyproject()["project"]["optional-dependencies"]["dev"]
    assert "torch==2.13.0" in dev
    assert "lora-trainer[optimizers]" in dev


def test_pyproject_follows_the_registry_rules() -> None:
    project = _read_pyproject()["project"]
    assert re.fullmatch(r"[a-z]+([-_.]?[a-z0-9]+)*", project["name"]) and "comfyui" not in project["name"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["version"])
    assert project["license"] == {"text": "Apache-2.0"}
    assert {"Repository", "Homepage", "Documentation", "Issues"} <= set(project["urls"])


def test_installing_the_requirements_leaves_the_hosts_torch_alone(tmp_path: Path) -> None:
    python = _make_host_environment(tmp_path)
    installed = _list_installs(python, ROOT / "requirements.txt")
    assert {"diffusers", "peft", "transformers", "accelerate"} <= installed  # pip did resolve
    touched = {name for name in installed if name in HOST_PACKAGES or name.startswith(("nvidia-", "triton", "cuda-"))}
    assert not touched


def _read_pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def _read_requirements() -> list[str]:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def _get_package_name(requirement: str) -> str:
    return re.split(r"[\s\[<>=!~;]", requirement)[0].lower()


def _make_host_environment(folder: Path) -> Path:
    """Make an empty environment in which pip finds HOST_PACKAGES: it reads only their metadata."""
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


def _list_installs(python: Path, requirements: Path) -> set[str]:
    """List the packages that pip would install there. Skip the test without pip or a package
    index.
    """
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--dry-run", "--quiet", "--retries=1"]
    result = _run([*command, "--report=-", f"--requirement={requirements}"])
    if "No module named pip" in result.stderr:
        pytest.skip(f"{sys.executable} has no pip, so the effect of an installation was not checked")
    if result.returncode and UNREACHABLE.search(result.stderr):
        pytest.skip("the package index cannot be reached, so the effect of an installation was not checked")
    assert result.returncode == 0, result.stderr
    return {entry["metadata"]["name"].lower().replace("_", "-") for entry in json.loads(result.stdout)["install"]}


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=TIME_LIMIT, check=False)
