"""Load Images on a real server: every source of images, what is refused and when, and what counts
as a change.
"""

import io
import json
import os
import re
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trainers.comfyui.client import (
    ComfyClient,
    Message,
    Prompt,
    PromptFailed,
    PromptInterrupted,
    PromptRejected,
    Result,
)
from trainers.comfyui.find import PACK
from trainers.comfyui.server import ComfyServer

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
COLORS = (RED, GREEN, BLUE)
SIZES = ((64, 48), (40, 72), (96, 96))  # (width, height)


@pytest.fixture(scope="module")
def client(comfyui_server: ComfyServer) -> ComfyClient:
    return comfyui_server.client


@pytest.fixture(scope="module")
def input_folder(comfyui_server: ComfyServer) -> Path:
    return comfyui_server.base_directory / "input"


@pytest.fixture(scope="module", autouse=True)
def colors_folder(input_folder: Path) -> Path:
    """input/colors: three images of one colour each, in different sizes, with captions."""
    return write_images(input_folder / "colors", captions=["something red", "something green", "something blue"])


def write_images(folder: Path, *, captions: list[str]) -> Path:
    folder.mkdir()
    for number, (size, color, caption) in enumerate(zip(SIZES, COLORS, captions, strict=True), start=1):
        Image.new("RGB", size, color).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(caption)
    return folder


def load(nodes: Prompt | None = None, **inputs: Any) -> Prompt:
    """Build a prompt of Load Images with these inputs, which shows its outputs."""
    return {
        **(nodes or {}),
        "load": {"class_type": "LoRATrainer_LoadImages", "inputs": inputs},
        "dataset": {"class_type": "PreviewAny", "inputs": {"source": ["load", 0]}},
        "images": {"class_type": "PreviewImage", "inputs": {"images": ["load", 1]}},
        "report": {"class_type": "PreviewAny", "inputs": {"source": ["load", 2]}},
    }


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def get_captions(result: Result) -> list[str]:
    (text,) = result.outputs["dataset"]["text"]  # one dataset, not one per image
    return re.findall(r"caption='([^']*)'", text)


def get_report(result: Result) -> str:
    (text,) = result.outputs["report"]["text"]
    return text


def fetch_images(client: ComfyClient, result: Result) -> list[np.ndarray]:
    return [np.asarray(Image.open(io.BytesIO(client.fetch(file))).convert("RGB")) for file in result.files("images")]


def catch_failure(client: ComfyClient, prompt: Prompt) -> str:
    with pytest.raises(PromptFailed) as failure:
        client.run(prompt)
    assert failure.value.error["node_id"] == "load"
    return failure.value.error["exception_message"].strip()


# ---- folders ----


@pytest.mark.parametrize("by", ["folder", "path"])
def test_a_folder_is_chosen_from_the_list_or_typed(client: ComfyClient, colors_folder: Path, by: str):
    chosen = {"folder": "colors"} if by == "folder" else {"path": f' "{colors_folder}" ', "folder": "[None]"}
    result = client.run(load(**chosen))
    assert get_captions(result) == ["something red", "something green", "something blue"]
    assert get_report(result) == "3 images kept, 0 left out\n"
    assert [image.shape[1::-1] for image in fetch_images(client, result)] == list(SIZES)
    assert [tuple(image[0, 0]) for image in fetch_images(client, result)] == list(COLORS)


def test_the_list_has_all_folders_below_the_input_folder(client: ComfyClient, input_folder: Path):
    (input_folder / "made" / "later").mkdir(parents=True)
    options = client.get("/object_info/LoRATrainer_LoadImages")["LoRATrainer_LoadImages"]["input"]["optional"][
        "folder"
    ][1]["options"]
    assert options[0] == "[None]" and {"toadstools", "colors", "made", "made/later"} <= set(options)


def test_the_settings_reach_the_dataset(client: ComfyClient, input_folder: Path):
    write_images(input_folder / "settings", captions=["a cat", "", ""])
    nested = input_folder / "settings" / "more"
    nested.mkdir()
    Image.new("RGB", (32, 32), "white").save(nested / "4.png")
    Image.new("RGB", (32, 32), "white").save(nested / "5.png")
    result = client.run(
        load(
            folder="settings",
            trigger_word="zwx",
            fallback_caption="a thing",
            num_repeats=3,
            recursive=True,
            keep_duplicates=True,
        )
    )
    assert (
        get_captions(result) == ["zwx, a cat", *["zwx, a thing"] * 4]
        and "num_repeats=3" in result.outputs["dataset"]["text"][0]
    )
    result = client.run(load(folder="settings", trigger_word="zwx", recursive=True))
    assert get_captions(result) == [
        "zwx, a cat",
        "zwx",
        "zwx",
        "zwx",
    ] and "more/5.png: it is the same file as more/4.png" in get_report(result)
    assert "strict is on and 1 image cannot be used: more/5.png" in catch_failure(
        client, load(folder="settings", trigger_word="zwx", recursive=True, strict=True)
    )


def test_images_deep_below_the_folder_need_recursive(client: ComfyClient, input_folder: Path):
    folder = input_folder / "deep" / "a" / "b"
    folder.mkdir(parents=True)
    Image.new("RGB", (32, 32), "white").save(folder / "1.png")
    assert get_captions(client.run(load(folder="deep", trigger_word="zwx", recursive=True))) == ["zwx"]
    assert "It has subfolders; turn on recursive" in catch_failure(client, load(folder="deep", trigger_word="zwx"))


def test_previews_are_at_most_512_pixels_and_in_the_order_of_the_dataset(client: ComfyClient, input_folder: Path):
    folder = input_folder / "previews"
    folder.mkdir()
    for number, size in ((2, (2000, 1000)), (10, (500, 1536)), (1, (400, 512))):
        Image.new("RGB", size, (number, 0, 0)).save(folder / f"{number}.png")
    images = fetch_images(client, client.run(load(folder="previews", trigger_word="x")))
    assert [(image.shape[1], image.shape[0], image[0, 0, 0]) for image in images] == [
        (400, 512, 1),
        (512, 256, 2),
        (167, 512, 10),
    ]


def test_previews_are_read_when_another_node_takes_them_and_not_before(client: ComfyClient, input_folder: Path):
    folder = input_folder / "wired"
    folder.mkdir()
    Image.new("RGB", (64, 64), (7, 0, 0)).save(folder / "1.png")
    prompt = load(folder="wired", trigger_word="x")
    without = {name: node for name, node in prompt.items() if name != "images"}
    client.run(without)
    assert is_cached(client.run(without))
    result = client.run(prompt)
    assert not is_cached(result)
    assert [image[0, 0, 0] for image in fetch_images(client, result)] == [7]
    assert is_cached(client.run(prompt))


def is_cached(result: Result) -> bool:
    """Tell whether Load Images was not run again."""
    return any(message.kind == "execution_cached" and "load" in message.data["nodes"] for message in result.messages)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"path": "/no/such/place"}, "/no/such/place: there is no such folder or .zip file"),
        ({"path": "~nobody_of_this_name/x"}, "~nobody_of_this_name/x: there is no such folder or .zip file"),
        ({"path": "/no/such/pictures.zip"}, "/no/such/pictures.zip: there is no such folder or .zip file"),
        ({"path": "//server/share"}, "//server/share: network paths are not read"),
        ({"path": "a\0b"}, "has a character with code 0"),
        ({"path": "a\ud83d"}, "has U+D83D at position 2"),
        ({"path": "EMPTY"}, "empty: no images in it. Images are .png, "),
        ({"folder": "gone"}, "Value not in list"),
        ({"folder": "../output"}, "Value not in list"),
        ({"folder": "toadstools", "num_repeats": 0}, "Value 0 smaller than min of 1"),
    ],
)
def test_impossible_sources_are_refused_before_anything_runs(
    client: ComfyClient, input_folder: Path, inputs: dict[str, Any], message: str
):
    (input_folder / "empty").mkdir(exist_ok=True)
    if inputs.get("path") == "EMPTY":
        inputs = {"path": str(input_folder / "empty")}
    whole = {
        "folder": "[None]",
        "path": "",
        "num_repeats": 1,
        "trigger_word": "zwx",
        **inputs,
    }  # as the editor sends it
    with pytest.raises(PromptRejected) as refusal:
        client.run(load(**whole))
    (error,) = refusal.value.node_errors["load"]["errors"]  # one mistake, one error, on its own widget
    assert message in str(refusal.value) and error["extra_info"]["input_name"] == list(inputs)[-1]


def test_two_sources_and_an_empty_folder_are_errors(client: ComfyClient, input_folder: Path):
    (input_folder / "empty").mkdir(exist_ok=True)
    assert "empty: no images in it" in catch_failure(client, load(folder="empty"))
    message = catch_failure(client, load(folder="toadstools", path=str(input_folder / "toadstools")))
    assert "are both set. Empty path, or set folder to [None]" in message


def test_a_large_folder_is_not_counted_before_the_prompt_is_queued(client: ComfyClient, input_folder: Path):
    """2000 entries are enough to say that the scan must look."""
    large = input_folder / "large"
    large.mkdir()
    for number in range(2500):
        (large / f"{number}.dat").touch()
    assert "2500 files of other kinds" in catch_failure(client, load(path=str(large)))  # raised when it ran


def test_without_images_the_node_says_where_they_may_come_from(client: ComfyClient):
    message = catch_failure(client, load(trigger_word="zwx", folder="[None]"))
    assert message.startswith("no images: choose a folder, write a path or an address, or connect images")


def test_a_value_from_a_link_is_checked_when_it_arrives(client: ComfyClient, colors_folder: Path):
    prompt = load({"text": node("PrimitiveString", value=str(colors_folder))}, path=["text", 0])
    assert len(get_captions(client.run(prompt))) == 3
    prompt["text"]["inputs"]["value"] = "/no/such/place"
    assert catch_failure(client, prompt).startswith("/no/such/place: there is no such folder")
    prompt["text"]["inputs"]["value"] = ""
    assert catch_failure(client, prompt).startswith("no images: choose a folder")


# ---- images from other nodes ----


def test_lists_of_images_and_texts_from_core_become_one_dataset(client: ComfyClient):
    result = client.run(
        load(
            {"core": node("LoadImageTextDataSetFromFolder", folder="colors")}, images=["core", 0], captions=["core", 1]
        )
    )
    found = dict(zip(get_captions(result), (tuple(image[0, 0]) for image in fetch_images(client, result)), strict=True))
    assert found == {"something red": RED, "something green": GREEN, "something blue": BLUE}
    assert {image.shape[1::-1] for image in fetch_images(client, result)} == set(SIZES)


def test_a_batch_and_one_caption_for_all(client: ComfyClient):
    plain = {"width": 32, "height": 32, "batch_size": 1}
    batch = {"red": node("EmptyImage", **plain, color=0xFF0000), "green": node("EmptyImage", **plain, color=0xFF00)}
    batch["batch"] = node("ImageBatch", image1=["red", 0], image2=["green", 0])
    result = client.run(load(batch, images=["batch", 0], captions="a plain colour", trigger_word="zwx"))
    assert get_captions(result) == ["zwx, a plain colour"] * 2
    assert [tuple(image[0, 0]) for image in fetch_images(client, result)] == [RED, GREEN]


def test_a_wrong_number_of_captions_and_a_second_source_are_errors(client: ComfyClient):
    nodes = {
        "core": node("LoadImageTextDataSetFromFolder", folder="colors"),
        "one": node("EmptyImage", width=32, height=32, batch_size=2, color=0),
    }
    message = catch_failure(client, load(nodes, images=["one", 0], captions=["core", 1]))
    assert message == "got 2 images, but 3 captions. Give one caption per image, in the same order, or one for all"
    message = catch_failure(client, load(nodes, folder="colors", images=["core", 0], captions=["core", 1]))
    assert "images and captions are connected, and " in message and "colors is chosen too. Use one source" in message
    assert "captions are connected, and " in catch_failure(client, load(nodes, folder="colors", captions=["core", 1]))


def test_an_invalid_colour_is_an_error(client: ComfyClient):
    message = catch_failure(client, load(folder="colors", alpha_background="no colour"))
    assert message == "alpha_background must be a colour such as white or #ffffff, got 'no colour'"


@pytest.fixture(scope="module")
def mask_nodes(input_folder: Path) -> Prompt:
    """Build a red image of 64 x 64, and masks of half that size: "left", with a white left half,
    and "black".
    """
    left = Image.new("RGB", (32, 32))
    left.paste((255, 255, 255), (0, 0, 16, 32))
    left.save(input_folder / "left.png")
    return {
        "red": node("EmptyImage", width=64, height=64, batch_size=1, color=0xFF0000),
        "left": node("LoadImageMask", image="left.png", channel="red"),
        "black": node("SolidMask", value=0.0, width=32, height=32),
    }


def test_a_mask_does_not_change_the_image_and_is_stored_next_to_it(
    client: ComfyClient, comfyui_server: ComfyServer, mask_nodes: Prompt
):
    result = client.run(
        load(mask_nodes, images=["red", 0], masks=["left", 0], captions="x", alpha_background="#00ff00")
    )
    (image,) = fetch_images(client, result)
    assert (image == RED).all()
    files = (comfyui_server.base_directory / "output/lora_trainer/cache/pictures").rglob("*-masklabel.png")
    mask = np.asarray(Image.open(max(files, key=lambda file: file.stat().st_mtime_ns)))
    assert mask.shape == (64, 64) and (mask[:, :30] == 255).all() and (mask[:, 34:] == 0).all()


def test_black_masks_and_a_wrong_number_of_masks_are_errors(client: ComfyClient, mask_nodes: Prompt):
    message = catch_failure(client, load(mask_nodes, images=["red", 0], masks=["black", 0], captions="x"))
    assert message.startswith("the mask of image 1 is all black") and "Invert Mask" in message
    pair = node("ImageBatch", image1=["red", 0], image2=["red", 0])
    message = catch_failure(
        client, load({**mask_nodes, "pair": pair}, images=["pair", 0], masks=["left", 0], captions="x")
    )
    assert message == "got 2 images, but 1 mask. Connect one mask per image, in the same order"


# ---- archives ----


@pytest.fixture(scope="module")
def archive(colors_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("archive") / "colors.zip"
    with zipfile.ZipFile(path, "w") as zip_file:
        for file in colors_folder.iterdir():
            zip_file.write(file, f"colors/{file.name}")
    return path


@pytest.fixture(scope="module")
def address(archive: Path) -> Iterator[str]:
    """The address of the archive on a server on this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(archive.parent)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/{archive.name}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_zip_is_unpacked_and_a_new_one_with_its_name_is_noticed(client: ComfyClient, archive: Path):
    prompt = load(path=str(archive))
    assert get_captions(client.run(prompt)) == ["something red", "something green", "something blue"]
    assert client.run(prompt).executed_nodes() == []
    with zipfile.ZipFile(archive, "a") as zip_file:
        zip_file.writestr("colors/4.txt", "something else")
        zip_file.writestr("colors/4.png", _png((32, 32), "white"))
    assert get_captions(client.run(prompt)) == ["something red", "something green", "something blue", "something else"]


def _png(size: tuple[int, int], color: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, color).save(stream, format="PNG")
    return stream.getvalue()


def test_an_address_on_this_machine_is_refused(client: ComfyClient, address: str):
    message = catch_failure(client, load(path=address))
    assert "127.0.0.1, which is not a public address. The server's owner can allow it with" in message


OPEN_ADDRESS = """
import json
import sys
from pathlib import Path

from pack_loader import load_pack

load_pack(Path(sys.argv[1]), "lora_trainer")
import folder_paths
from lora_trainer.nodes.host.progress import ComfyHost
from lora_trainer.nodes.host.sources import find_source, open_source

folder_paths.set_output_directory(sys.argv[3])
images = open_source(find_source("[None]", sys.argv[2]), images=None, masks=None, captions=None, host=ComfyHost())
print("RESULT" + json.dumps([images.name, sorted(path.name for path in images.folder.iterdir())]))
"""


def test_the_servers_owner_can_allow_such_addresses(
    run_in_comfyui: Callable[..., str], address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("LORA_TRAINER_ALLOW_PRIVATE_URLS", "1")
    (line,) = [
        line
        for line in run_in_comfyui(OPEN_ADDRESS, PACK, f"{address}?token=1", tmp_path).splitlines()
        if line.startswith("RESULT")
    ]
    name, files = json.loads(line.removeprefix("RESULT"))
    assert name == "colors" and {"1.png", "1.txt", "2.png", "3.png"} <= set(files)


# ---- what counts as a change ----


def test_only_a_changed_image_or_caption_runs_the_node_again(client: ComfyClient, input_folder: Path):
    folder = write_images(input_folder / "edited_colors", captions=["one", "two", "three"])
    prompt = load(folder="edited_colors")
    assert client.run(prompt).executed_nodes() and client.run(prompt).executed_nodes() == []

    for file in folder.iterdir():
        os.utime(file, (time.time() + 10, time.time() + 10))
    (folder / "notes.md").write_text("neither an image nor a caption")
    assert client.run(prompt).executed_nodes() == []

    (folder / "1.txt").write_text("uno")
    assert get_captions(client.run(prompt)) == ["uno", "two", "three"]
    Image.new("RGB", (32, 32), "white").save(folder / "4.png")
    (folder / "4.txt").write_text("four")
    assert get_captions(client.run(prompt)) == ["uno", "two", "three", "four"]
    Image.new("RGB", SIZES[0], BLUE).save(folder / "1.png")
    assert tuple(fetch_images(client, client.run(prompt))[0][0, 0]) == BLUE
    (folder / "2.png").unlink()
    assert get_captions(client.run(prompt)) == ["uno", "three", "four"]
    assert client.run(prompt).executed_nodes() == []


def test_control_images_are_in_a_folder_of_any_place_and_a_changed_one_runs_the_node_again(
    client: ComfyClient, input_folder: Path
):
    write_images(input_folder / "edits", captions=["one", "two", "three"])
    for place in (input_folder / "edits" / "control", input_folder / "edits_seen"):
        place.mkdir()
        for number in (1, 2, 3):
            Image.new("RGB", (40, 40), "white").save(place / f"{number}.png")
    for name in ("control", "edits_seen", str(input_folder / "edits_seen")):
        prompt = load(folder="edits", control_images=name)
        assert "edits: 3 images, 3 with control images" in get_report(client.run(prompt))
        assert client.run(prompt).executed_nodes() == []
        changed = (input_folder / "edits_seen" if "seen" in name else input_folder / "edits" / "control") / "1.png"
        Image.new("RGB", (40, 40), (len(name), 0, 0)).save(changed)
        assert "load" in client.run(prompt).executed_nodes()

    message = catch_failure(client, load(folder="edits", control_images="nowhere"))
    assert message.startswith("control_images: there is no folder nowhere, neither in")
    (input_folder / "edits_seen" / "2.png").unlink()
    message = catch_failure(client, load(folder="edits", control_images="edits_seen"))
    assert "no control image for 1 image: 2.png" in message


def test_a_stray_image_next_to_kohyas_folders_runs_the_node_again(client: ComfyClient, input_folder: Path):
    folder = input_folder / "kohya"
    folder.mkdir()
    write_images(folder / "2_zwx", captions=["one", "two", "three"])
    prompt = load(folder="kohya")
    assert "stray.png" not in get_report(client.run(prompt)) and client.run(prompt).executed_nodes() == []
    Image.new("RGB", (32, 32), "white").save(folder / "stray.png")
    assert "stray.png: it is next to kohya's folders" in get_report(client.run(prompt))
    assert client.run(prompt).executed_nodes() == []


def test_hashing_a_large_folder_can_be_interrupted(client: ComfyClient, input_folder: Path):
    """ComfyUI asks for the fingerprint before the first node runs. The file never ends."""
    folder = input_folder / "endless"
    folder.mkdir()
    Image.new("L", (8, 8)).save(folder / "0.png")
    with open(folder / "0.png", "ab") as stream:
        stream.truncate(1 << 42)
    interrupted: list[Message] = []

    def interrupt(message: Message) -> None:
        if message.kind == "execution_start" and not interrupted:
            interrupted.append(message)
            client.interrupt()

    with pytest.raises(PromptInterrupted):
        client.run(load(folder="endless"), on_message=interrupt)
    assert len(get_captions(client.run(load(folder="colors", trigger_word="unharmed")))) == 3
    (folder / "0.png").unlink()


def test_a_long_check_can_be_interrupted(client: ComfyClient, input_folder: Path):
    folder = input_folder / "many"
    folder.mkdir()
    Image.new("L", (6000, 6000)).save(folder / "0.png")
    for number in range(1, 300):
        os.link(folder / "0.png", folder / f"{number}.png")
    interrupted: list[Message] = []

    def interrupt(message: Message) -> None:
        if message.kind == "progress_text" and message.data["node"] == "load" and not interrupted:
            interrupted.append(message)
            client.interrupt()

    with pytest.raises(PromptInterrupted):
        client.run(load(folder="many", trigger_word="x", keep_duplicates=True), on_message=interrupt)
    assert interrupted
    assert len(get_captions(client.run(load(folder="colors", trigger_word="after")))) == 3
