"""Seals of states: what our run wrote can be continued, what others wrote or changed cannot."""

import json
import stat
import sys
from pathlib import Path

import pytest

from trainers.musubi.saved_state import SEAL_NAME, copy_sealed, get_key_file, has_seal, make_key, read_key, seal_state

FILES = ("model.safetensors", "optimizer.bin", "scheduler.bin", "random_states_0.pkl")


@pytest.fixture(autouse=True)
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    monkeypatch.setenv("APPDATA" if sys.platform == "win32" else "XDG_CONFIG_HOME", str(tmp_path / "config"))
    return make_key()


@pytest.fixture
def state(tmp_path: Path, key: bytes) -> Path:
    folder = tmp_path / "disc-step00000004-state"
    folder.mkdir()
    for name in FILES:
        (folder / name).write_text(name)
    seal_state(folder, key)
    return folder


def test_the_key_is_made_once_and_is_the_users_alone(key: bytes):
    assert len(key) == 32 and make_key() == key == read_key()
    if sys.platform != "win32":
        assert stat.S_IMODE(get_key_file().stat().st_mode) == 0o600


def test_a_sealed_state_is_copied_whole(state: Path, key: bytes, tmp_path: Path):
    assert has_seal(state, key)
    copy_sealed(state, tmp_path / "copy", key)
    assert {path.name: path.read_text() for path in (tmp_path / "copy").iterdir()} == {name: name for name in FILES}


def test_a_moved_state_keeps_its_seal(state: Path, key: bytes, tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    assert has_seal(state.rename(tmp_path / "elsewhere" / state.name), key)


def test_files_that_were_added_are_not_copied(state: Path, key: bytes, tmp_path: Path):
    (state / "custom_checkpoint_0.pkl").touch()
    copy_sealed(state, tmp_path / "copy", key)
    assert not (tmp_path / "copy" / "custom_checkpoint_0.pkl").exists()


def test_files_that_are_none_of_accelerates_are_not_sealed(state: Path, key: bytes):
    (state / "custom_checkpoint_0.pkl").touch()
    seal_state(state, key)
    assert set(json.loads((state / SEAL_NAME).read_text())["files"]) == set(FILES)


def test_a_changed_file_of_the_same_size_is_refused(state: Path, key: bytes, tmp_path: Path):
    (state / "random_states_0.pkl").write_text("RANDOM_STATES_0.PKL")
    with pytest.raises(ValueError, match=r"random_states_0\.pkl is not as our run wrote it"):
        copy_sealed(state, tmp_path / "copy", key)


def test_a_changed_size_is_not_even_offered(state: Path, key: bytes):
    (state / "optimizer.bin").write_text("longer than it was")
    assert not has_seal(state, key)
    (state / "optimizer.bin").unlink()
    assert not has_seal(state, key)


@pytest.mark.parametrize(
    "seal",
    [
        "",
        "[]",
        "{}",
        "null",
        "[" * 100_000,
        '{"name": "disc-step00000004-state", "files": {}, "seal": 1}',
        '{"seal": "\u00e9"}',
    ],
)
def test_a_forged_seal_is_none(state: Path, key: bytes, tmp_path: Path, seal: str):
    (state / SEAL_NAME).write_text(seal, encoding="utf-8")
    assert not has_seal(state, key)
    with pytest.raises(ValueError, match="has no seal of a run on this machine"):
        copy_sealed(state, tmp_path / "copy", key)


def test_the_seal_of_another_state_or_another_machine_does_not_fit(state: Path, key: bytes, tmp_path: Path):
    content = json.loads((state / SEAL_NAME).read_text())
    content["files"]["optimizer.bin"]["sha256"] = "0" * 64
    (state / SEAL_NAME).write_text(json.dumps(content))
    assert not has_seal(state, key)
    seal_state(state, b"another key")
    assert not has_seal(state, key) and not has_seal(state, b"")
    seal_state(state, key)
    assert not has_seal(state.rename(tmp_path / "disc-step00000005-state"), key)


def test_without_a_key_nothing_has_a_seal(state: Path):
    seal_state(state, b"")
    assert not has_seal(state, b"")
