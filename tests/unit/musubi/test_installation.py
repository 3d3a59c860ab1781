"""Finding Musubi Tuner and its Python, and the doctor's report."""

import sys
from importlib import metadata
from pathlib import Path

import pytest

from trainers.files.client_folders import ClientFolder
from trainers.musubi import installation as places
from trainers.musubi.doctor import diagnose
from trainers.musubi.installation import NoMusubi, find_installation
from trainers.musubi.owner_file import format_lines, get_owner_file


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUSUBI_TUNER_DIR", raising=False)
    monkeypatch.delenv("MUSUBI_PYTHON", raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    monkeypatch.setattr(places, "PACK", tmp_path / "elsewhere" / "pack")
    monkeypatch.setenv("APPDATA" if sys.platform == "win32" else "XDG_CONFIG_HOME", str(tmp_path / "config"))


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


def write_owner_file(text: str | bytes) -> Path:
    path = get_owner_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_the_owners_file_wins_over_the_usual_places_and_the_environment_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    make_checkout(tmp_path / "home/musubi-tuner")
    chosen, set_one = make_checkout(tmp_path / "it's chosen"), make_checkout(tmp_path / "set")
    path = write_owner_file("\ufeff" + format_lines(chosen, sys.executable) + "\r\n")
    assert path == tmp_path / "config/lora-trainer/musubi.toml"
    found = find_installation()
    assert (found.folder, found.python) == (chosen, Path(sys.executable))
    write_owner_file(f"folder = '{tmp_path / 'set'}'")
    assert find_installation().python == set_one / ".venv/bin/python"
    write_owner_file(f"folder = '{tmp_path / 'gone'}'")
    with pytest.raises(NoMusubi, match=r"folder in .*musubi\.toml: .*gone: there is no such folder"):
        find_installation()
    monkeypatch.setenv("MUSUBI_TUNER_DIR", str(set_one))
    monkeypatch.setenv("MUSUBI_PYTHON", sys.executable)
    assert find_installation().folder == set_one


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("folder = 'musubi-tuner'", "folder must be an absolute path in single quotes, got 'musubi-tuner'"),
        ("python = 3", "python must be an absolute path in single quotes, got 3"),
        ("dir = '/x'", "unknown line 'dir'. Known: folder, python"),
        ('folder = "C:\\Users\\me"', "cannot be read"),
        ("folder = '/a'\npython".encode("utf-16"), "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_used_is_an_error_that_names_it(text: str | bytes, message: str):
    path = write_owner_file(text)
    with pytest.raises(NoMusubi) as error:
        find_installation()
    assert str(path) in str(error.value) and message in str(error.value)


def test_paths_of_windows_need_no_escapes():
    assert (
        format_lines(r"C:\musubi", r"C:\musubi\python.exe")
        == "folder = 'C:\\musubi'\npython = 'C:\\musubi\\python.exe'"
    )


@pytest.fixture
def uploads(tmp_path: Path) -> list[ClientFolder]:
    (tmp_path / "input").mkdir()
    return [ClientFolder("ComfyUI's input folder", tmp_path / "input")]


@pytest.mark.parametrize("way", ["direct", "folder link", "link above", "sources link", "dots"])
@pytest.mark.parametrize("chosen_by", ["argument", "environment", "file", "usual place"])
def test_a_folder_that_clients_can_write_to_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uploads: list[ClientFolder], way: str, chosen_by: str
):
    uploaded = make_checkout(tmp_path / "input/m")
    folder = tmp_path / "home/musubi-tuner" if chosen_by == "usual place" else tmp_path / "fine"
    folder.parent.mkdir(exist_ok=True)
    if way == "folder link":
        folder.symlink_to(uploaded)
    elif way == "link above":
        (tmp_path / "link").symlink_to(tmp_path / "input")
        folder.symlink_to(tmp_path / "link/m") if chosen_by == "usual place" else None
        folder = folder if chosen_by == "usual place" else tmp_path / "link/m"
    elif way == "sources link":
        make_checkout(folder)
        (folder / "src").rename(folder / "old")
        (folder / "src").symlink_to(uploaded / "src")
    elif chosen_by == "usual place":
        uploads[0] = ClientFolder(uploads[0].name, folder.parent)
        uploaded.rename(folder)
    else:
        folder = uploaded if way == "direct" else tmp_path / "input/../input/m"
    if chosen_by == "environment":
        monkeypatch.setenv("MUSUBI_TUNER_DIR", str(folder))
    if chosen_by == "file":
        write_owner_file(f"folder = '{folder}'")
    given = str(folder) if chosen_by == "argument" else ""
    with pytest.raises(NoMusubi, match=r"is below ComfyUI's input folder .* so it is never run\. Move Musubi Tuner"):
        find_installation(folder=given, client_folders=uploads)
    assert "is below ComfyUI's input folder" in diagnose(folder=given, client_folders=uploads).text()


def test_an_interpreter_that_clients_can_write_to_is_refused_also_through_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uploads: list[ClientFolder]
):
    """By its own place, by a link in the way, and by what a link points to, which may be a link."""
    folder = make_checkout(tmp_path / "musubi")
    (tmp_path / "input/python").symlink_to(sys.executable)
    (tmp_path / "first").symlink_to(tmp_path / "input/python")
    (tmp_path / "above").symlink_to(tmp_path / "input")
    for python in ("input/python", "first", "above/python"):
        monkeypatch.setenv("MUSUBI_PYTHON", str(tmp_path / python))
        with pytest.raises(NoMusubi, match=r"MUSUBI_PYTHON: .* is below ComfyUI's input folder"):
            find_installation(folder=str(folder), client_folders=uploads)
    monkeypatch.delenv("MUSUBI_PYTHON")
    (folder / ".venv").rename(tmp_path / "input/venv")
    (folder / ".venv").symlink_to(tmp_path / "input/venv")
    with pytest.raises(NoMusubi, match="is below ComfyUI's input folder"):
        find_installation(folder=str(folder), client_folders=uploads)


def test_folders_beside_those_of_clients_are_fine(tmp_path: Path, uploads: list[ClientFolder]):
    folder = make_checkout(tmp_path / "input too")
    uploads.append(ClientFolder("ComfyUI's models folder of a disk that is not there", tmp_path / "gone"))
    assert find_installation(folder=str(folder), client_folders=uploads).folder == folder


def test_the_owners_file_is_not_read_where_clients_can_write_it(tmp_path: Path):
    path = write_owner_file(format_lines(make_checkout(tmp_path / "musubi"), sys.executable))
    folders = [ClientFolder("ComfyUI's user folder", tmp_path / "config")]
    with pytest.raises(NoMusubi, match=r"musubi\.toml is below ComfyUI's user folder"):
        find_installation(client_folders=folders)
    assert path.exists()


def test_the_doctor_says_which_two_lines_to_write_and_where(tmp_path: Path):
    lines = f"write these two lines into {get_owner_file()}:\n  folder = '"
    assert lines + f"{tmp_path / 'home/musubi-tuner'}'\n  python = '" in diagnose().text()
    folder = make_checkout(tmp_path / "musubi")
    text = diagnose(folder=str(folder)).text()
    assert lines + f"{folder}'\n  python = '{folder / '.venv/bin/python'}'\n" in text


def test_the_probe_imports_nothing_from_the_current_folder_the_environment_or_over_a_name_that_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Musubi's own package comes last on the search path, and is found there."""
    folder = make_checkout(tmp_path / "musubi")
    hostile = f"open({str(tmp_path / 'mark')!r}, 'w').close()"
    for place in (folder, folder / "src", tmp_path / "search path", tmp_path / "current"):
        place.mkdir(exist_ok=True)
        for name in ("json.py", "torch.py", "site.py", "sitecustomize.py"):
            (place / name).write_text(hostile)
    (folder / "src/musubi_tuner/zimage_train_network.py").write_text("raise ImportError('it was imported')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "search path"))
    monkeypatch.setenv("PYTHONSTARTUP", str(tmp_path / "search path/json.py"))
    monkeypatch.chdir(tmp_path / "current")
    text = diagnose(folder=str(folder), python=sys.executable).text()
    assert not (tmp_path / "mark").exists() and f"Folder: {folder}" in text
    assert "not installed: " in text or "it was imported" in text
