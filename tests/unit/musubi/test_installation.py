"""Finding Musubi Tuner and its Python, and the doctor's report."""

import sys
from importlib import metadata
from pathlib import Path

import pytest

from trainers.musubi import installation as places
from trainers.musubi.doctor import diagnose
from trainers.musubi.installation import NoMusubi, find_installation


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUSUBI_TUNER_DIR", raising=False)
    monkeypatch.delenv("MUSUBI_PYTHON", raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    monkeypatch.setattr(places, "PACK", tmp_path / "elsewhere" / "pack")


def make_checkout(folder: Path, *, interpreter: str = ".venv/bin/python") -> Path:
    (folder / "src/musubi_tuner").mkdir(parents=True)
    (folder / "src/musubi_tuner/zimage_train_network.py").touch()
    (folder / "pyproject.toml").write_text('[project]\nname = "musubi-tuner"\nversion = "0.3.4"\n')
    if interpreter:
        (folder / interpreter).parent.mkdir(parents=True)
        (folder / interpreter).symlink_to(sys.executable)
    return folder


def test_a_given_folder_wins_over_the_environment_which_wins_over_the_usual_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    usual = make_checkout(tmp_path / "home/musubi-tuner", interpreter="venv/bin/python")
    found = find_installation()
    assert (found.folder, found.python, found.version) == (usual, usual / "venv/bin/python", "0.3.4")
    set_one = make_checkout(tmp_path / "set")
    monkeypatch.setenv("MUSUBI_TUNER_DIR", str(set_one))
    assert find_installation().folder == set_one
    assert find_installation(folder=str(usual)).folder == usual
    monkeypatch.setenv("MUSUBI_PYTHON", sys.executable)
    assert find_installation().python == Path(sys.executable)


def test_a_pack_in_custom_nodes_looks_inside_and_next_to_comfyui(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(places, "PACK", tmp_path / "apps/ComfyUI/custom_nodes/pack")
    neighbour = make_checkout(tmp_path / "apps/musubi-tuner")
    assert find_installation().folder == neighbour
    inside = make_checkout(tmp_path / "apps/ComfyUI/musubi-tuner")
    assert find_installation().folder == inside


def test_a_relative_folder_becomes_an_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make_checkout(tmp_path / "musubi")
    monkeypatch.chdir(tmp_path)
    found = find_installation(folder="musubi")
    assert found.folder == tmp_path / "musubi" and found.python.is_absolute()


def test_the_error_for_a_missing_installation_says_where_it_was_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(NoMusubi, match=r"was not found in .*home/musubi-tuner.* git clone"):
        find_installation()
    make_checkout(tmp_path / "home/musubi-tuner")
    monkeypatch.setenv("MUSUBI_TUNER_DIR", str(tmp_path / "gone"))
    with pytest.raises(NoMusubi, match=r"MUSUBI_TUNER_DIR: .*gone: there is no such folder"):
        find_installation()
    with pytest.raises(NoMusubi, match="is not a Musubi Tuner that trains Z-Image"):
        find_installation(folder=str(tmp_path))
    with pytest.raises(NoMusubi, match=r"python: there is no such file"):
        find_installation(folder=str(tmp_path / "home/musubi-tuner"), python=str(tmp_path / "python"))
    with pytest.raises(NoMusubi, match=r"has no Python in \.venv or venv"):
        find_installation(folder=str(make_checkout(tmp_path / "bare", interpreter="")))


def test_the_doctor_lists_what_is_missing_with_its_remedy(tmp_path: Path):
    folder = make_checkout(tmp_path / "musubi")
    diagnosis = diagnose(folder=str(folder))
    text = diagnosis.text()
    assert not diagnosis.is_ready and text.startswith("Musubi Tuner cannot be used yet.")
    assert f"Folder: {folder}, version 0.3.4" in text and "pip install -e ." in text


def test_the_doctor_lists_versions_that_differ_from_musubis_pins(tmp_path: Path):
    folder = make_checkout(tmp_path / "musubi")
    (folder / "pyproject.toml").write_text(
        'version = "0.4.0"\ndependencies = [\n  "pillow==1.0",\n  "no-such-package==2",\n]\n'
    )
    text = diagnose(folder=str(folder), python=sys.executable).text()
    assert "version 0.4.0 is untested; the tested version is 0.3.4" in text
    assert f"not the versions that Musubi Tuner asks for: pillow {metadata.version('pillow')} (1.0)." in text


def test_the_doctor_reports_an_unusable_python(tmp_path: Path):
    folder = make_checkout(tmp_path / "musubi", interpreter="")
    fake = folder / "python"
    fake.write_text("#!/bin/sh\necho not me >&2\nexit 5\n")
    fake.chmod(0o755)
    assert "ended with status 5 and said: not me" in diagnose(folder=str(folder), python=str(fake)).text()
    fake.chmod(0o644)
    assert "cannot be started" in diagnose(folder=str(folder), python=str(fake)).text()
    assert "there is no such folder" in diagnose(folder=str(tmp_path / "gone")).text()
