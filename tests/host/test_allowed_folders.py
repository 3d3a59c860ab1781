"""Which folders a prompt may name: the owner's, and ComfyUI's own where others reach the server."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

from trainers.comfyui.client import PromptRejected
from trainers.comfyui.find import Installation
from trainers.comfyui.server import ComfyServer
from trainers.demo.in_comfyui import prepare_demo_directory


def load(path: Path) -> dict:
    return {
        "load": {"class_type": "LoRATrainer_LoadImages", "inputs": {"path": str(path), "trigger_word": "zwx"}},
        "report": {"class_type": "PreviewAny", "inputs": {"source": ["load", 2]}},
    }


def test_only_the_owners_folders_are_read(installation: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("sets", "secret"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (64, 64), "red").save(tmp_path / name / "1.png")
    base = tmp_path / "comfyui"
    base.mkdir()
    prepare_demo_directory(base)
    monkeypatch.setenv("LORA_TRAINER_FOLDERS", str(tmp_path / "sets"))
    with ComfyServer(installation, base_directory=base, log=tmp_path / "server.log", cpu=True) as server:
        assert server.client.run(load(tmp_path / "sets"))
        assert server.client.run(load(base / "input" / "toadstools"))
        for path in (tmp_path / "secret", tmp_path / "nowhere", tmp_path / "sets" / ".." / "secret"):
            with pytest.raises(PromptRejected, match=r"is in no folder that this server may read: .*sets"):
                server.client.run(load(path))


@pytest.mark.parametrize("flags", [("--listen", "0.0.0.0"), ("--multi-user",)], ids=["listen", "multi_user"])
def test_a_server_for_others_reads_only_its_own_folders_by_default(
    installation: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...]
):
    monkeypatch.delenv("LORA_TRAINER_FOLDERS", raising=False)
    secret, base = tmp_path / "secret", tmp_path / "comfyui"
    for folder in (secret, base):
        folder.mkdir()
    Image.new("RGB", (64, 64), "red").save(secret / "1.png")
    prepare_demo_directory(base)
    with ComfyServer(installation, base_directory=base, log=tmp_path / "server.log", cpu=True, flags=flags) as server:
        for own in ("input", "output"):
            shutil.copytree(secret, base / own / "set")
            assert server.client.run(load(base / own / "set"))
        for path in (secret, base / "models", base / "input" / ".." / ".." / "secret"):
            with pytest.raises(PromptRejected, match="is in no folder that this server may read"):
                server.client.run(load(path))
