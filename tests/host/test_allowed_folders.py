"""Which folders a prompt may name: the owner's, and ComfyUI's own where others reach the server."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from trainers.comfyui.client import Message, PromptFailed, PromptRejected
from trainers.comfyui.find import Installation
from trainers.comfyui.server import ComfyServer
from trainers.demo.in_comfyui import prepare_demo_directory

FILES = {"dit": "diffusion_models", "vae": "vae", "text_encoder": "text_encoders"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images in sets, which the server may read, and in secret, which it may not."""
    root = tmp_path_factory.mktemp("owned")
    for name in ("sets", "secret"):
        (root / name).mkdir()
        Image.new("RGB", (64, 64), "red").save(root / name / "1.png")
    (root / "secret" / "list.jsonl").write_text(f'{{"image_path": "{root}/secret/1.png", "caption": "x"}}\n')
    (root / "sets" / "link").symlink_to(root / "secret")
    return root


@pytest.fixture(scope="module")
def server(installation: Installation, root: Path) -> Iterator[ComfyServer]:
    base = root / "comfyui"
    base.mkdir()
    prepare_demo_directory(base)
    for name, folder in FILES.items():
        (base / "models" / folder).mkdir(exist_ok=True)
        weights = {"x.weight": torch.ones(64, 64, dtype=torch.bfloat16)}
        save_file(weights, base / "models" / folder / f"{name}.safetensors")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("LORA_TRAINER_FOLDERS", str(root / "sets"))
        with ComfyServer(installation, base_directory=base, log=root / "server.log", cpu=True) as server:
            yield server


def load(path: Path) -> dict:
    return {
        "load": {"class_type": "LoRATrainer_LoadImages", "inputs": {"path": str(path), "trigger_word": "zwx"}},
        "report": {"class_type": "PreviewAny", "inputs": {"source": ["load", 2]}},
    }


def train_with_musubi(dataset_toml: str) -> dict:
    files = {f"architecture.{name}": f"{name}.safetensors" for name in FILES}
    inputs = {"architecture": "z-image", **files, "max_train_steps": 1, "dataset_toml": dataset_toml}
    return {
        "trainer": {"class_type": "LoRATrainer_MusubiTrain", "inputs": inputs},
        "sink": {"class_type": "PreviewAny", "inputs": {"source": ["trainer", 3]}},
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


def test_only_the_owners_folders_are_read(server: ComfyServer, root: Path):
    assert server.client.run(load(root / "sets"))
    assert server.client.run(load(server.base_directory / "input" / "toadstools"))
    for path in (root / "secret", root / "nowhere", root / "sets" / ".." / "secret", root / "sets" / "link"):
        with pytest.raises(PromptRejected, match=r"is in no folder that this server may read: .*sets"):
            server.client.run(load(path))
    lora = str(root / "secret" / "x.safetensors")
    for inputs in ({"loras": lora}, {"run": lora}, {"run": str(root / "secret")}):
        with pytest.raises(PromptFailed, match=r"is in no folder that this server may read: .*sets"):
            server.client.run(compare(**inputs))


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ("image_directory = '{root}/secret'", r"image_directory: .*secret is in no folder that this server may read"),
        ("image_directory = '{root}/nowhere'", "image_directory: .*nowhere is in no folder that"),
        ("image_directory = '{root}/sets/link'", "image_directory: .*link is in no folder that"),
        ("video_directory = '{root}/secret'", "video_directory: .*secret is in no folder that"),
        (
            "image_directory = '{root}/sets'\ncontrol_directory = '{root}/secret'",
            "control_directory: .*secret is in no folder that",
        ),
        ("image_directory = '//machine/share'", "image_directory: .*network paths are not read"),
        ("image_jsonl_file = '{root}/secret/list.jsonl'", "image_jsonl_file names single files, which this server"),
        ("video_jsonl_file = '{root}/nowhere.jsonl'", "video_jsonl_file names single files, which this server"),
        # the folder itself is allowed: what is missing is found later
        ("image_directory = '{root}/sets'", "Musubi Tuner|a text file of the same name"),
    ],
)
def test_a_dataset_toml_names_only_the_owners_folders(server: ComfyServer, root: Path, paths: str, message: str):
    table = f"[[datasets]]\nresolution = 64\ncaption_extension = '.txt'\n{paths.format(root=root)}\n"
    with pytest.raises(PromptFailed, match=message):
        server.client.run(train_with_musubi(table))


def test_musubi_training_says_first_that_it_starts(server: ComfyServer, root: Path):
    texts: list[str] = []

    def take(message: Message) -> None:
        if message.kind == "progress_text" and message.data["node"] == "trainer":
            texts.append(message.data["text"])

    with pytest.raises(PromptFailed):
        server.client.run(train_with_musubi(f"[[datasets]]\nimage_directory = '{root}/secret'\n"), on_message=take)
    assert texts[0].startswith("starting (")


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
