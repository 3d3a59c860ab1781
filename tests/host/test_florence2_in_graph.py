"""Captioning on a real server: load, caption and train in one prompt. No image is captioned twice,
and the captioner is unloaded before the training starts.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.data.make_tiny_florence2 import COLOURS, FOLDER, plain_image
from trainers.comfyui.client import ComfyClient, Prompt, PromptFailed, PromptRejected, Result
from trainers.comfyui.server import ComfyServer

PACK = Path(__file__).parents[2]
MODEL = "LLM/Florence-2-tiny"
CAPTIONS = [f"sks, A {colour} square." for colour in COLOURS]
TINY = {
    **{
        "resolution": 64,
        "bucket_reso_steps": 32,
        "rank": 2,
        "alpha": 2.0,
        "learning_rate": 1e-3,
        "train_batch_size": 2,
        "max_train_steps": 2,
    },
    **{"optimizer": "AdamW", "gradient_checkpointing": "off", "gradient_accumulation_steps": 1, "save_dtype": "fp32"},
}


def write_images(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for number, colour in enumerate(COLOURS):
        plain_image(colour, seed=700 + number, size_hw=(96, 96)).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def server(comfyui_server: ComfyServer) -> Iterator[ComfyServer]:
    folder = comfyui_server.base_directory / "models" / MODEL
    shutil.copytree(FOLDER, folder)
    write_images(comfyui_server.base_directory / "input" / "colours")
    yield comfyui_server
    shutil.rmtree(folder)  # the first model found is the node's default


@pytest.fixture(scope="module")
def client(server: ComfyServer) -> ComfyClient:
    return server.client


def caption_nodes(folder: str = "colours", **settings: Any) -> Prompt:
    inputs = {"dataset": ["pictures", 0], "model": MODEL, "task": "detailed_caption", **settings}
    return {
        "pictures": {"class_type": "LoRATrainer_LoadImages", "inputs": {"folder": folder, "trigger_word": "sks"}},
        "captioner": {"class_type": "LoRATrainer_Florence2Caption", "inputs": inputs},
        "captions": {"class_type": "PreviewAny", "inputs": {"source": ["captioner", 1]}},
    }


def train_nodes(dataset: str = "captioner", **settings: Any) -> Prompt:
    inputs = {
        "model": ["base", 0],
        "clip": ["base", 1],
        "vae": ["base", 2],
        "dataset": [dataset, 0],
        **TINY,
        **settings,
    }
    return {
        "base": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "embedded_base.safetensors"}},
        "trainer": {"class_type": "LoRATrainer_LoRATrainSDXL", "inputs": inputs},
        "sink": {"class_type": "PreviewAny", "inputs": {"source": ["trainer", 4]}},
    }


def manifest_captions(result: Result) -> list[str]:
    path = Path(result.outputs["trainer"]["lora_trainer"][0]["path"])
    manifest = json.loads((path.parent / "manifest.json").read_text())
    return [image["caption"] for image in manifest["dataset"]["images"].values()]


def cached_captions(server: ComfyServer) -> dict[Path, int]:
    return {
        path: path.stat().st_mtime_ns
        for path in (server.base_directory / "output" / "lora_trainer" / "cache" / "captions").rglob("*.txt")
    }


def test_load_caption_and_train_in_one_prompt(client: ComfyClient):
    result = client.run({**caption_nodes(), **train_nodes()})
    assert manifest_captions(result) == CAPTIONS
    assert result.texts("captioner")[0].startswith("starting (")
    assert "".join(result.outputs["captioner"]["text"]) == "".join(
        f"{number}.png: {caption}\n" for number, caption in enumerate(CAPTIONS)
    )


def reviewed_nodes(edits: dict[str, str], **captioner: Any) -> Prompt:
    """Caption with the model, edit, check and train."""
    review = {"dataset": ["captioner", 0], "edits": json.dumps(edits)}
    check = {"dataset": ["review", 0], **TINY, "stop_at": "never"}
    return {
        **caption_nodes(**captioner),
        "review": {"class_type": "LoRATrainer_ReviewCaptions", "inputs": review},
        "check": {"class_type": "LoRATrainer_FlightCheck", "inputs": check},
        **train_nodes("check"),
    }


@pytest.fixture
def memory(server: ComfyServer) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """Return a function that reads the memory records at each caption and step since its last
    call.
    """
    file = server.base_directory / "memory.jsonl"
    file.touch()

    def read() -> list[dict[str, Any]]:
        records = [json.loads(line) for line in file.read_text().splitlines()]
        file.write_text("")
        return records

    yield read
    file.unlink()


def test_captions_are_reviewed_checked_and_trained_on_after_the_model_is_unloaded(
    client: ComfyClient, memory: Callable[[], list[dict[str, Any]]], server: ComfyServer
):
    shutil.rmtree(server.base_directory / "output" / "lora_trainer" / "cache" / "captions", ignore_errors=True)
    result = client.run(reviewed_nodes({"0.png": "sks, mine"}, batch_size=3))
    assert manifest_captions(result) == ["sks, mine", *CAPTIONS[1:]]
    assert "4 captions, 1 edited" in "".join(result.outputs["review"]["text"])
    assert "".join(result.outputs["check"]["text"]).startswith("Flight check of colours: ready")
    records = memory()
    assert [record["event"] for record in records] == ["caption", "caption", "step", "step"]
    assert all(record["florence2_bytes"] > 300_000 and record["loaded_models"] == 1 for record in records[:2])
    assert [(record["florence2_bytes"], record["loaded_models"]) for record in records[2:]] == [(0, 0)] * 2

    # another setting runs the node again, but not the model
    again = client.run(reviewed_nodes({"0.png": "sks, another"}, batch_size=2))
    assert "captioner" in again.executed_nodes()
    assert manifest_captions(again) == ["sks, another", *CAPTIONS[1:]]
    assert [record["event"] for record in memory()] == ["step", "step"]


def test_captions_are_output_as_a_list(client: ComfyClient):
    assert client.run(caption_nodes()).outputs["captions"]["text"] == CAPTIONS


def test_no_image_is_captioned_twice(client: ComfyClient, server: ComfyServer):
    client.run({**caption_nodes(), **train_nodes()})
    before = cached_captions(server)
    again = client.run({**caption_nodes(), **train_nodes(seed=5)})
    assert "captioner" not in again.executed_nodes()
    other = client.run({**caption_nodes(batch_size=1, trigger_template="{caption} by {trigger}"), **train_nodes()})
    assert "captioner" in other.executed_nodes()
    assert manifest_captions(other) == [f"A {colour} square. by sks" for colour in COLOURS]
    assert len(before) >= 4 and cached_captions(server) == before


def test_the_plain_id_is_accepted(client: ComfyClient):
    prompt = caption_nodes()
    prompt["captioner"]["class_type"] = "Florence2Caption"
    assert client.run(prompt).outputs["captions"]["text"] == CAPTIONS


def test_caption_files_are_written_next_to_the_images_of_a_folder(client: ComfyClient, server: ComfyServer):
    folder = write_images(server.base_directory / "input" / "with files")
    client.run(caption_nodes("with files", write_files=True))
    assert [(folder / f"{number}.txt").read_text() for number in range(4)] == [caption + "\n" for caption in CAPTIONS]


def test_images_from_other_nodes_get_no_files_and_the_report_says_so(client: ComfyClient, server: ComfyServer):
    prompt = caption_nodes(write_files=True)
    prompt["picture"] = {
        "class_type": "EmptyImage",
        "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0xDC1E1E},
    }
    prompt["pictures"]["inputs"] = {"images": ["picture", 0], "trigger_word": "sks"}
    stored = server.base_directory / "output" / "lora_trainer" / "cache" / "pictures"
    before = set(stored.rglob("*.txt"))
    result = client.run(prompt)
    assert result.outputs["captions"]["text"] == ["sks, A red square."]
    assert "No caption files were written" in "".join(result.outputs["captioner"]["text"])
    assert set(stored.rglob("*.txt")) == before


def test_captions_from_another_packs_node_reach_the_dataset_in_order(client: ComfyClient):
    prompt = {
        "pictures": caption_nodes()["pictures"],
        "tagger": {"class_type": "ForeignTagger", "inputs": {"image": ["pictures", 1]}},
        "set": {
            "class_type": "LoRATrainer_SetCaptions",
            "inputs": {"dataset": ["pictures", 0], "captions": ["tagger", 0]},
        },
    }
    assert manifest_captions(client.run({**prompt, **train_nodes("set")})) == [
        f"sks, {colour}, tagged" for colour in COLOURS
    ]


def test_a_wrong_number_of_captions_is_explained(client: ComfyClient):
    prompt = caption_nodes()
    prompt["text"] = {"class_type": "PrimitiveString", "inputs": {"value": "one for all"}}
    prompt["set"] = {
        "class_type": "LoRATrainer_SetCaptions",
        "inputs": {"dataset": ["pictures", 0], "captions": ["text", 0]},
    }
    prompt["sink"] = {"class_type": "PreviewAny", "inputs": {"source": ["set", 2]}}
    with pytest.raises(PromptFailed, match="4 images, but 1 caption"):
        client.run(prompt)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "LLM/Florence-9"}, "Value not in list"),
        ({"model": "[None]"}, "no model: choose one"),
        ({"model": "[None]", "model_id": "florence-community/Florence-2-base", "download": False}, "Turn on download"),
        ({"model": "[None]", "model_id": "Florence-2-base"}, "model_id:? must be OWNER/NAME"),
        ({"model_id": "florence-community/Florence-2-base"}, "are both set"),
        ({"prompt": "<OD>"}, "gives regions of the image"),
    ],
)
def test_what_cannot_work_is_one_error_on_its_node(client: ComfyClient, settings: dict[str, Any], message: str):
    whole = {
        "model": MODEL,
        "model_id": "",
        "download": False,
        "prompt": "",
        "trigger_template": "{caption}",
        **settings,
    }
    with pytest.raises((PromptRejected, PromptFailed), match=message) as failure:
        client.run(caption_nodes(**whole))
    if isinstance(failure.value, PromptRejected):
        (error,) = next(iter(failure.value.node_errors.values()))["errors"]
        assert error["extra_info"]["input_name"] in settings


def test_models_are_listed(client: ComfyClient):
    node = client.get("/object_info/LoRATrainer_Florence2Caption")["LoRATrainer_Florence2Caption"]
    assert MODEL in json.dumps(node["input"]["optional"]["model"])


def test_the_captioner_is_removed_from_memory(run_in_comfyui: Callable[..., str], tmp_path: Path):
    shutil.copytree(FOLDER, tmp_path / "models" / "florence2" / "owner" / "tiny")
    script = (Path(__file__).with_name("scripts") / "florence2_memory.py").read_text()
    output = run_in_comfyui(script, PACK, FOLDER, write_images(tmp_path / "pictures"), tmp_path)
    (line,) = [line for line in output.splitlines() if line.startswith("RESULT")]
    seen = json.loads(line.removeprefix("RESULT"))
    assert seen["names"] == ["florence2/owner/tiny"]
    assert (
        seen["captions"]
        == seen["captions without the model"]
        == [f"a photo of a {colour} square" for colour in COLOURS]
    )
    # in both batches, under ComfyUI's management; not in the second run
    assert seen["loaded"] == [
        [1, True],
        [1, True],
    ]
    assert "empty caption" in seen["error"]
    assert (seen["alive"], seen["modules"], seen["left"]) == (0, 0, 0)
