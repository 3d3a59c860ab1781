"""Which folders a prompt may name on a server whose owner has chosen them."""

from pathlib import Path

import pytest
from PIL import Image

from trainers.comfyui.client import PromptFailed, PromptRejected
from trainers.comfyui.find import Installation
from trainers.comfyui.server import ComfyServer
from trainers.demo.in_comfyui import prepare_demo_directory


def load(path: Path) -> dict:
    return {
        "load": {"class_type": "LoRATrainer_LoadImages", "inputs": {"path": str(path), "trigger_word": "zwx"}},
        "report": {"class_type": "PreviewAny", "inputs": {"source": ["load", 2]}},
    }


def compare(**inputs: str) -> dict:
    sockets = {"model": ["base", 0], "clip": ["base", 1], "vae": ["base", 2]}
    return {
        "base": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "embedded_base.safetensors"}},
        "compare": {
            "class_type": "LoRATrainer_CompareCheckpoints",
            "inputs": {**sockets, "prompts": "a dog", **inputs},
        },
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
        lora = str(tmp_path / "secret" / "x.safetensors")
        for inputs in ({"loras": lora}, {"run": lora}, {"run": str(tmp_path / "secret")}):
            with pytest.raises(PromptFailed, match=r"is in no folder that this server may read: .*sets"):
                server.client.run(compare(**inputs))
