"""Finding ComfyUI, and the messages if it is missing, old or incomplete."""

import sys
import venv
from pathlib import Path

import pytest

from trainers.comfyui import find
from trainers.comfyui.find import NoComfyUI, find_comfyui


@pytest.fixture(autouse=True)
def empty_home(tmp_path, monkeypatch) -> Path:
    for name in ("COMFYUI_DIR", "COMFYUI_PYTHON"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    return tmp_path / "home"


def make_checkout(folder: Path, version: str = "0.33.0") -> Path:
    folder.mkdir(parents=True)
    (folder / "main.py").touch()
    (folder / "comfyui_version.py").write_text(f'__version__ = "{version}"\n')
    return folder


def test_comfyui_dir_comes_first(tmp_path, empty_home, monkeypatch):
    make_checkout(empty_home / "comfy" / "ComfyUI")
    monkeypatch.setenv("COMFYUI_DIR", str(make_checkout(tmp_path / "mine", "0.40.1")))
    monkeypatch.setenv("COMFYUI_PYTHON", sys.executable)
    found = find_comfyui()
    assert (found.folder, found.python, found.version) == (tmp_path / "mine", Path(sys.executable), "0.40.1")


def test_the_comfyui_around_the_pack_comes_before_the_one_in_the_home_folder(tmp_path, empty_home, monkeypatch):
    make_checkout(empty_home / "comfy" / "ComfyUI")
    monkeypatch.setattr(find, "PACK", make_checkout(tmp_path / "around") / "custom_nodes" / "pack")
    monkeypatch.setenv("COMFYUI_PYTHON", sys.executable)
    assert find_comfyui().folder == tmp_path / "around"


def test_a_wrong_comfyui_dir_is_an_error_even_if_another_comfyui_exists(tmp_path, empty_home, monkeypatch):
    make_checkout(empty_home / "comfy" / "ComfyUI")
    monkeypatch.setenv("COMFYUI_DIR", str(tmp_path))
    with pytest.raises(ValueError, match=r"COMFYUI_DIR is .* which has no main\.py"):
        find_comfyui()


def test_a_wrong_comfyui_python_is_an_error(empty_home, monkeypatch):
    make_checkout(empty_home / "comfy" / "ComfyUI")
    monkeypatch.setenv("COMFYUI_PYTHON", "/nowhere/python")
    with pytest.raises(ValueError, match=r"COMFYUI_PYTHON is /nowhere/python, which is not a file"):
        find_comfyui()


def test_if_nothing_is_found_the_error_says_where_it_looked_and_how_to_get_comfyui(empty_home):
    with pytest.raises(NoComfyUI) as reason:
        find_comfyui()
    assert str(empty_home / "comfy" / "ComfyUI") in str(
        reason.value
    ) and "pip install comfy-cli && comfy install" in str(reason.value)


def test_an_old_version_is_refused(empty_home):
    make_checkout(empty_home / "comfy" / "ComfyUI", "0.3.70")
    with pytest.raises(NoComfyUI, match=r"has version 0\.3\.70; 0\.33 or newer is needed"):
        find_comfyui()


def test_a_checkout_without_an_interpreter_asks_for_one(empty_home):
    make_checkout(empty_home / "comfy" / "ComfyUI")
    with pytest.raises(NoComfyUI, match="Set COMFYUI_PYTHON"):
        find_comfyui()


@pytest.mark.parametrize("name", ["venv", ".venv"])
def test_packages_that_comfyui_lacks_are_named_with_advice(name, empty_home):
    folder = make_checkout(empty_home / "comfy" / "ComfyUI")
    venv.create(folder / name, with_pip=False)
    with pytest.raises(NoComfyUI, match="lacks torch, aiohttp, transformers, diffusers, peft") as reason:
        find_comfyui()
    python = folder / name / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    assert f"Run: {python} -m pip install -r {folder / 'requirements.txt'}" in str(reason.value)


def test_if_only_our_packages_are_missing_the_error_names_our_requirements(empty_home, monkeypatch):
    folder = make_checkout(empty_home / "comfy" / "ComfyUI")
    venv.create(folder / "venv", with_pip=False)
    monkeypatch.setattr(find, "HOST_PACKAGES", ("json",))
    with pytest.raises(NoComfyUI, match="lacks diffusers, peft") as reason:
        find_comfyui()
    assert str(find.PACK / "requirements.txt") in str(reason.value)


def test_an_interpreter_that_does_not_run_is_named(tmp_path, empty_home, monkeypatch):
    make_checkout(empty_home / "comfy" / "ComfyUI")
    (tmp_path / "python").write_text("not a program")
    monkeypatch.setenv("COMFYUI_PYTHON", str(tmp_path / "python"))
    with pytest.raises(NoComfyUI, match="does not run"):
        find_comfyui()
