"""Compare Checkpoints on a real server: every image of the grid is what Apply LoRA, KSampler and
VAE Decode give; the choice goes on, without drawing again.
"""

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from trainers.comfyui.client import (
    ComfyClient,
    Message,
    Prompt,
    PromptFailed,
    PromptInterrupted,
    PromptRejected,
    Result,
)
from trainers.comfyui.server import ComfyServer

SIZE = 64
PROMPTS = "a {trigger} on a white background\na blue square"
SAMPLER = {"steps": 3, "cfg": 4.0, "sampler_name": "euler", "scheduler": "normal"}
GRID: dict[str, Any] = {
    "prompts": PROMPTS,
    "negative_prompt": "a red circle",
    "strengths": "0.5, 1",
    "seeds": "1, 2",
    "width": SIZE,
    "height": SIZE,
    **SAMPLER,
}


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


BASE: Prompt = {
    "base": node("CheckpointLoaderSimple", ckpt_name="embedded_base.safetensors"),
    "pictures": node("LoadImages", folder="toadstools", trigger_word="zwx"),
    # UNet and text encoders, with two checkpoints before the final LoRA
    "trainer": node(
        "LoRATrainSDXL",
        model=["base", 0],
        clip=["base", 1],
        vae=["base", 2],
        dataset=["pictures", 0],
        resolution=64,
        bucket_reso_steps=32,
        rank=2,
        alpha=2.0,
        train_batch_size=2,
        gradient_accumulation_steps=1,
        optimizer="AdamW",
        max_train_steps=3,
        save_every_n_steps=1,
        seed=5,  # of no other test: a run of the same would be loaded, without these checkpoints
        learning_rate=1e-2,
        train_text_encoders=True,
        text_encoder_learning_rate=1e-2,
        text_encoder_2_learning_rate=1e-2,
        output_name="compared",
    ),
}


def compare(**inputs: Any) -> dict[str, Any]:
    sockets = {"model": ["base", 0], "clip": ["base", 1], "vae": ["base", 2]}
    return node("LoRATrainer_CompareCheckpoints", **{**sockets, **GRID, **inputs})


def drawing(name: str, model: list[Any], clip: list[Any], *, text: str, seed: int) -> Prompt:
    return {
        f"{name} positive": node("CLIPTextEncode", clip=clip, text=text),
        f"{name} negative": node("CLIPTextEncode", clip=clip, text="a red circle"),
        f"{name} latent": node("EmptyLatentImage", width=SIZE, height=SIZE, batch_size=1),
        f"{name} sampler": node(
            "KSampler",
            model=model,
            positive=[f"{name} positive", 0],
            negative=[f"{name} negative", 0],
            latent_image=[f"{name} latent", 0],
            seed=seed,
            denoise=1.0,
            **SAMPLER,
        ),
        f"{name} decode": node("VAEDecode", samples=[f"{name} sampler", 0], vae=["base", 2]),
        name: node("PreviewImage", images=[f"{name} decode", 0]),
    }


def fetch_image(client: ComfyClient, result: Result, name: str) -> np.ndarray:
    (file,) = result.files(name)
    return np.asarray(Image.open(io.BytesIO(client.fetch(file))).convert("RGB"))


def get_facts(result: Result, name: str = "compare") -> dict[str, Any]:
    (facts,) = result.outputs[name]["lora_trainer"]
    return facts


def cut_out(grid: np.ndarray, facts: dict[str, Any], *, lora: int, strength: float, row: int) -> np.ndarray:
    found = [image for image in facts["images"] if (image["lora"], image["strength"]) == (lora, strength)]
    left, top, right, bottom = found[row]["box"]
    return grid[top:bottom, left:right]


@pytest.fixture(scope="module")
def client(comfyui_server: ComfyServer) -> ComfyClient:
    return comfyui_server.client


@pytest.fixture(scope="module")
def compared(client: ComfyClient) -> Result:
    """Train, compare the run by the trainer's path, go on with number 2, and draw the same images
    with ComfyUI's nodes.
    """
    zwx = "a zwx on a white background"
    return client.run(
        {
            **BASE,
            "compare": compare(run=["trainer", 4], choose=2, choose_strength=0.5),
            "path": node("PreviewAny", source=["compare", 4]),
            "grid": node("PreviewImage", images=["compare", 0]),
            "apply": node(
                "LoRATrainer_ApplyLoRA", model=["base", 0], clip=["base", 1], lora=["trainer", 2], strength_model=1.0
            ),
            **drawing("plain", ["base", 0], ["base", 1], text=zwx, seed=1),
            **drawing("final", ["apply", 0], ["apply", 1], text="a blue square", seed=2),
            **drawing("chosen", ["compare", 1], ["compare", 2], text=zwx, seed=1),
            "chosen apply": node(
                "LoRATrainer_ApplyLoRA",
                model=["base", 0],
                clip=["base", 1],
                lora=["compare", 3],
                strength_model=0.5,
                strength_clip=0.5,
            ),
            **drawing("chosen lora", ["chosen apply", 0], ["chosen apply", 1], text=zwx, seed=1),
        }
    )


def test_a_run_is_its_checkpoints_and_its_final_lora_in_the_order_of_steps(compared: Result):
    facts = get_facts(compared)
    assert [lora["name"] for lora in facts["loras"]] == ["step 1", "step 2", "final, step 3"]
    assert len(facts["images"]) == (1 + 3 * 2) * (2 * 2)
    assert {image["prompt"] for image in facts["images"]} == {"a zwx on a white background", "a blue square"}


def test_the_grid_has_a_place_for_every_image(client: ComfyClient, compared: Result):
    grid = fetch_image(client, compared, "compare")
    boxes = [image["box"] for image in get_facts(compared)["images"]]
    assert len({tuple(box) for box in boxes}) == len(boxes)
    for left, top, right, bottom in boxes:
        assert (right - left, bottom - top) == (SIZE, SIZE)
        assert right < grid.shape[1] and bottom < grid.shape[0]
        assert grid[top:bottom, left:right].std() > 0
    assert np.array_equal(grid, fetch_image(client, compared, "grid"))


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("plain", {"lora": 0, "strength": 0.0, "row": 0}),
        ("final", {"lora": 3, "strength": 1.0, "row": 3}),
        ("chosen", {"lora": 2, "strength": 0.5, "row": 0}),
        ("chosen lora", {"lora": 2, "strength": 0.5, "row": 0}),
    ],
)
def test_an_image_of_the_grid_is_what_comfyuis_own_nodes_draw(
    client: ComfyClient, compared: Result, name: str, cell: dict[str, Any]
):
    """And the chosen MODEL, CLIP and LoRA draw the image that was chosen."""
    grid = fetch_image(client, compared, "compare")
    found = cut_out(grid, get_facts(compared), **cell)
    expected = fetch_image(client, compared, name)
    assert np.array_equal(found, expected)


def test_the_columns_differ(client: ComfyClient, compared: Result):
    grid, facts = fetch_image(client, compared, "compare"), get_facts(compared)
    cells = [
        cut_out(grid, facts, lora=lora, strength=strength, row=0)
        for lora, strength in ((0, 0.0), (1, 0.5), (1, 1.0), (3, 0.5), (3, 1.0))
    ]
    for index, cell in enumerate(cells):
        for other in cells[index + 1 :]:
            assert not np.array_equal(cell, other)


def test_the_path_of_the_choice_goes_on(compared: Result):
    (path,) = compared.outputs["path"]["text"]
    assert Path(path).name == "compared-step00000002.safetensors"
    (text,) = compared.outputs["compare"]["text"]
    assert text.startswith("28 images, drawn. Going on with 2: step 2, at strength 0.5\n1: /")


def test_a_new_choice_does_not_draw_again(client: ComfyClient, compared: Result):
    messages: list[Message] = []
    result = client.run({**BASE, "compare": compare(run=["trainer", 4], choose=1)}, on_message=messages.append)
    assert "compare" in result.executed_nodes() and "trainer" not in result.executed_nodes()
    assert get_facts(compared)["is_new"] and not get_facts(result)["is_new"] and get_facts(result)["chosen"] == 1
    assert result.files("compare") == compared.files("compare")
    assert not [message for message in messages if message.kind == "progress" and message.data["node"] == "compare"]


def test_another_strength_draws_again(client: ComfyClient, compared: Result):
    result = client.run({**BASE, "compare": compare(run=["trainer", 4], strengths="1", seeds="1")})
    assert get_facts(result)["is_new"] and result.files("compare") != compared.files("compare")
    first = cut_out(fetch_image(client, compared, "compare"), get_facts(compared), lora=3, strength=1.0, row=0)
    again = cut_out(fetch_image(client, result, "compare"), get_facts(result), lora=3, strength=1.0, row=0)
    assert np.array_equal(first, again)


def test_files_names_and_a_link_are_compared_together(
    client: ComfyClient, comfyui_server: ComfyServer, compared: Result
):
    first, _, final = (Path(lora["path"]) for lora in get_facts(compared)["loras"])
    loras = comfyui_server.base_directory / "models" / "loras"
    (loras / "listed.safetensors").write_bytes(final.read_bytes())
    result = client.run(
        {**BASE, "compare": compare(loras=f"listed\n{first}\n\n", lora=["trainer", 2], strengths="1", seeds="1")}
    )
    names = [lora["name"] for lora in get_facts(result)["loras"]]
    assert names == ["listed", "compared-step00000001", "compared"]
    grid, facts = fetch_image(client, result, "compare"), get_facts(result)
    same = [cut_out(grid, facts, lora=lora, strength=1.0, row=0) for lora in (1, 3)]
    assert np.array_equal(*same)


def test_cancelling_takes_effect_at_a_step_and_leaves_nothing(
    client: ComfyClient, comfyui_server: ComfyServer, compared
):
    temp = comfyui_server.base_directory / "temp" / "lora_trainer_compare"
    before = sorted(temp.iterdir())
    interrupted: list[Message] = []

    def interrupt(message: Message) -> None:
        if message.kind == "progress" and message.data["node"] == "compare" and not interrupted:
            interrupted.append(message)
            client.interrupt()

    with pytest.raises(PromptInterrupted):
        client.run({**BASE, "compare": compare(run=["trainer", 4], steps=1000)}, on_message=interrupt)
    assert interrupted[0].data["max"] == 28 * 1000
    assert sorted(temp.iterdir()) == before
    # the model is as it was
    plain = client.run(
        {**BASE, **drawing("plain", ["base", 0], ["base", 1], text="a zwx on a white background", seed=1)}
    )
    assert plain.executed_nodes()


def test_progress_says_which_image_and_how_long(client: ComfyClient, compared: Result):
    result = client.run({**BASE, "compare": compare(run=["trainer", 4], strengths="1", seeds="7", steps=2)})
    texts = result.texts("compare")
    assert any(re.match(r"image \d/8 · ETA \d\d:\d\d  \n(without LoRA|\d: )", text) for text in texts), texts


# ---- errors ----


@pytest.fixture(scope="module")
def wrong(comfyui_server: ComfyServer) -> Path:
    """Files that are no LoRA for this model."""
    folder = comfyui_server.base_directory / "output" / "wrong"
    folder.mkdir()
    name = "lora_unet_double_blocks_0_img_attn_qkv"
    flux = {f"{name}.lora_down.weight": torch.ones(2, 8), f"{name}.lora_up.weight": torch.ones(8, 2)}
    save_file(flux, folder / "flux.safetensors")
    (folder / "half.safetensors").write_bytes((folder / "flux.safetensors").read_bytes()[:60])
    (folder / "old.pt").write_bytes(b"pickle")
    return folder


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"loras": "WRONG/flux.safetensors"}, "flux.safetensors: none of its 2 tensors fits this MODEL or CLIP"),
        ({"loras": "WRONG/half.safetensors"}, "half.safetensors: not a whole .safetensors file"),
        ({"loras": "WRONG/none.safetensors"}, "none.safetensors: there is no such file"),
        ({"loras": "none.safetensors"}, "none.safetensors: no LoRA loader lists this file"),
        ({"loras": "WRONG/old.pt"}, "old.pt: only .safetensors files are compared"),
        ({"run": "nobody"}, "nobody: there is no such run in .*runs. The newest are"),
        ({}, "there is no LoRA to compare"),
        ({"loras": "WRONG/flux.safetensors", "prompts": " \n"}, "there is no prompt"),
        ({"loras": "WRONG/flux.safetensors"} | {"seeds": ", ".join(map(str, range(100)))}, "600 images; at most 400"),
        (
            {"loras": "WRONG/flux.safetensors", "choose": 2, "prompts": "x"},
            "choose must be a number in the grid, 1 to 1",
        ),
        ({"loras": "WRONG/flux.safetensors", "prompts": "a {trigger}"}, "names no trigger word for {trigger}"),
    ],
)
def test_what_cannot_be_compared_is_an_error_before_the_first_image(
    client: ComfyClient, compared: Result, wrong: Path, inputs: dict[str, Any], message: str
):
    inputs = {"prompts": "a\nb", **inputs}
    inputs = {
        name: value.replace("WRONG", str(wrong)) if isinstance(value, str) else value for name, value in inputs.items()
    }
    messages: list[Message] = []
    with pytest.raises(PromptFailed, match=message):
        client.run({**BASE, "compare": compare(**inputs)}, on_message=messages.append)
    assert not [message for message in messages if message.kind == "progress" and message.data["node"] == "compare"]


def test_strengths_that_are_no_numbers_are_rejected_at_once(client: ComfyClient):
    with pytest.raises(PromptRejected, match="strengths: must be numbers between -100 and 100"):
        client.run({**BASE, "compare": compare(run="x", strengths="strong")})
