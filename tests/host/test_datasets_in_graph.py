"""Masks, kohya's folders and several datasets on a real server, and the nodes' reports on them."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from trainers.comfyui.client import Prompt, PromptFailed, PromptRejected
from trainers.comfyui.server import ComfyServer


@pytest.fixture
def folders(comfyui_server: ComfyServer, tmp_path: Path) -> Path:
    """toys: two images, one with a mask; kohya: one subfolder with three repeats."""
    for name, colour in (("toys/a.png", "red"), ("toys/b.png", "blue"), ("kohya/3_dog/a.png", "green")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), colour).save(tmp_path / name)
    Image.new("L", (64, 64), 200).save(tmp_path / "toys" / "a-masklabel.png")
    return tmp_path


def load(path: Path, **settings: Any) -> dict[str, Any]:
    return {"class_type": "LoRATrainer_LoadImages", "inputs": {"path": str(path), **settings}}


def preview(node: str, output: int) -> dict[str, Any]:
    return {"class_type": "PreviewAny", "inputs": {"source": [node, output]}}


def join_prompt(folders: Path, **regularization: Any) -> Prompt:
    return {
        "toys": load(folders / "toys", trigger_word="zwx", num_repeats=5),
        "dogs": load(folders / "kohya", is_regularization=True, loss_weight=0.5, **regularization),
        "joined": {
            "class_type": "LoRATrainer_JoinDatasets",
            "inputs": {"dataset_1": ["toys", 0], "dataset_3": ["dogs", 0]},
        },
        "report": preview("joined", 1),
    }


def test_the_report_describes_joined_datasets(comfyui_server: ComfyServer, folders: Path) -> None:
    result = comfyui_server.client.run(join_prompt(folders))
    (text,) = result.outputs["report"]["text"]
    assert text.splitlines()[:3] == [
        "3 images kept, 0 left out",
        "  toys: 2 images, 5 repeats each, 1 with a mask",
        "  kohya: 1 regularization image, 3 repeats each, loss weight 0.5",
    ]
    assert "kohya/3_dog: kohya's folder: 1 x 3 repeats, 'dog' for images without a caption" in text


def test_a_trigger_word_for_regularization_images_is_refused(comfyui_server: ComfyServer, folders: Path) -> None:
    with pytest.raises((PromptFailed, PromptRejected), match="regularization images must not have a trigger word"):
        comfyui_server.client.run(join_prompt(folders, trigger_word="zwx"))


def test_a_new_mask_runs_the_node_again_but_an_unchanged_folder_does_not(
    comfyui_server: ComfyServer, folders: Path
) -> None:
    prompt: Prompt = {"toys": load(folders / "toys", fallback_caption="a toy"), "report": preview("toys", 2)}
    comfyui_server.client.run(prompt)
    assert "toys" not in comfyui_server.client.run(prompt).executed_nodes()
    shutil.copy(folders / "toys" / "a-masklabel.png", folders / "toys" / "b-masklabel.png")
    result = comfyui_server.client.run(prompt)
    assert "toys" in result.executed_nodes()
    assert "2 with a mask" in result.outputs["report"]["text"][0]


@pytest.mark.parametrize("mask_source", ["files", "off"])
def test_masks_from_sockets_are_not_taken_for_transparency(comfyui_server: ComfyServer, mask_source: str) -> None:
    prompt: Prompt = {
        "picture": {
            "class_type": "EmptyImage",
            "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0xFF0000},
        },
        "mask": {"class_type": "SolidMask", "inputs": {"value": 0.5, "width": 32, "height": 32}},
        "pictures": {
            "class_type": "LoRATrainer_LoadImages",
            "inputs": {"images": ["picture", 0], "masks": ["mask", 0], "captions": "a toy", "mask_source": mask_source},
        },
        "report": preview("pictures", 2),
    }
    if mask_source == "off":
        with pytest.raises(PromptFailed, match="masks are connected, but mask_source is off"):
            comfyui_server.client.run(prompt)
        return
    (text,) = comfyui_server.client.run(prompt).outputs["report"]["text"]
    assert text.splitlines()[:2] == ["1 image kept, 0 left out", "  pictures: 1 image, 1 with a mask"]
