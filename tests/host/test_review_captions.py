"""Review Captions on a real server, as programs use it. tests/browser/test_review_captions.py tests
what users see.
"""

import io
import json
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from trainers.comfyui.client import ComfyClient, Prompt, PromptFailed, PromptRejected, Result
from trainers.comfyui.server import ComfyServer
from trainers.demo.concept import TRIGGER_WORD

TINY = {"resolution": 64, "bucket_reso_steps": 32, "rank": 2, "alpha": 2.0, "train_batch_size": 2, "max_train_steps": 2}
PLAIN = {"optimizer": "AdamW", "gradient_checkpointing": "off", "gradient_accumulation_steps": 1}


@pytest.fixture(scope="module")
def client(comfyui_server: ComfyServer) -> ComfyClient:
    return comfyui_server.client


def review_prompt(**settings: Any) -> Prompt:
    return {
        "pictures": {
            "class_type": "LoRATrainer_LoadImages",
            "inputs": {"folder": "toadstools", "trigger_word": TRIGGER_WORD},
        },
        "review": {"class_type": "LoRATrainer_ReviewCaptions", "inputs": {"dataset": ["pictures", 0], **settings}},
        "captions": {"class_type": "PreviewAny", "inputs": {"source": ["review", 1]}},
        "report": {"class_type": "PreviewAny", "inputs": {"source": ["review", 2]}},
    }


def training_prompt(**settings: Any) -> Prompt:
    inputs = {
        "model": ["base", 0],
        "clip": ["base", 1],
        "vae": ["base", 2],
        "dataset": ["review", 0],
        **TINY,
        **PLAIN,
        "output_name": "reviewed",
    }
    return {
        **review_prompt(**settings),
        "base": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "embedded_base.safetensors"}},
        "trainer": {"class_type": "LoRATrainer_LoRATrainSDXL", "inputs": inputs},
        "sink": {"class_type": "PreviewAny", "inputs": {"source": ["trainer", 4]}},
    }


def get_captions(result: Result) -> list[str]:
    return result.outputs["captions"]["text"]


def get_key(result: Result) -> str:
    return result.outputs["review"]["lora_trainer_review"][0]["key"]


@pytest.fixture(scope="module")
def review(client: ComfyClient) -> dict[str, Any]:
    """Return what the widget gets after a run."""
    return client.get(f"/lora_trainer/reviews/{get_key(client.run(review_prompt()))}")


def test_without_edits_the_captions_pass_through(comfyui_server: ComfyServer, client: ComfyClient):
    result = client.run(review_prompt())
    folder = comfyui_server.base_directory / "input" / "toadstools"
    written = [path.read_text(encoding="utf-8").strip() for path in sorted(folder.glob("*.txt"))]
    assert get_captions(result) == written and all(TRIGGER_WORD in caption for caption in written)
    assert result.outputs["report"]["text"] == [f"{len(written)} captions"]


def test_the_training_uses_edits_by_hash_and_by_name_and_the_report_names_the_others(
    client: ComfyClient, review: dict[str, Any]
):
    first, second, third, *_ = review["pictures"]
    edits = {first["sha256"]: f"{TRIGGER_WORD}, by hash", second["name"]: "by name", "gone.png": "nobody"}
    edits[third["sha256"]] = {"caption": f"{TRIGGER_WORD}, mine", "incoming": "an older caption"}
    result = client.run(training_prompt(edits=json.dumps(edits)))
    manifest = json.loads(
        (Path(result.outputs["trainer"]["lora_trainer"][0]["path"]).parent / "manifest.json").read_text()
    )
    captions = {name: image["caption"] for name, image in manifest["dataset"]["images"].items()}
    assert [captions[photo["name"]] for photo in (first, second, third)] == [
        f"{TRIGGER_WORD}, by hash",
        f"{TRIGGER_WORD}, by name",
        f"{TRIGGER_WORD}, mine",
    ]
    assert get_captions(result) == list(captions.values())
    (report,) = result.outputs["report"]["text"]
    assert "3 edited" in report and "not in this dataset: gone.png" in report
    assert f"which is still used: {third['name']}" in report


@pytest.mark.parametrize(
    ("edits", "message"),
    [("{", "is not JSON (line 1, column 2"), ("[1]", "must be an object"), ('{"a.png": 1}', "a.png must be a caption")],
)
def test_edits_that_cannot_be_read_are_refused_on_the_node(client: ComfyClient, edits: str, message: str):
    with pytest.raises(PromptRejected) as refusal:
        client.run(review_prompt(edits=edits))
    assert set(refusal.value.node_errors) == {"review"} and message in str(refusal.value)


def test_no_node_after_it_runs_until_the_captions_are_reviewed(client: ComfyClient, review: dict[str, Any]):
    for _ in range(2):  # the second time, most of it comes from the cache
        with pytest.raises(PromptFailed, match="captions wait for your review") as refusal:
            client.run(training_prompt(wait_for_review=True))
        assert review["key"] in refusal.value.error["exception_message"]
    result = client.run(training_prompt(wait_for_review=True, reviewed=review["key"]))
    assert result.outputs["trainer"]["lora_trainer"][0]["steps"] == 2
    with pytest.raises(PromptFailed, match="wait for your review"):
        client.run(training_prompt(wait_for_review=True, reviewed="0" * 64))


def test_the_widget_gets_captions_and_thumbnails(client: ComfyClient, review: dict[str, Any]):
    result = client.run(review_prompt())
    assert [image["caption"] for image in review["pictures"]] == get_captions(result)
    assert {image["trigger_word"] for image in review["pictures"]} == {TRIGGER_WORD}
    thumbnail = Image.open(
        io.BytesIO(client._request(f"/lora_trainer/thumbnails/{review['pictures'][0]['thumbnail']}"))
    )
    assert thumbnail.format == "JPEG" and max(thumbnail.size) <= 320


@pytest.mark.parametrize(
    "path", ["reviews/" + "0" * 64, "reviews/..%2f..%2fserver.log", "thumbnails/x", "thumbnails/%2e%2e"]
)
def test_only_stored_reviews_and_thumbnails_are_served(client: ComfyClient, path: str):
    with pytest.raises(urllib.error.HTTPError) as refusal:
        client.get(f"/lora_trainer/{path}")
    assert refusal.value.code == 404


def test_the_server_counts_tokens_and_changes_captions_for_the_widget(client: ComfyClient):
    facts = json.loads(
        client.post(
            "/lora_trainer/captions/inspect", {"captions": ["sks cat", "cat " * 76], "trigger_words": ["sks", "sks"]}
        )
    )
    assert facts == [
        {"num_tokens": 2, "num_chunks": 1, "has_trigger_word": True},
        {"num_tokens": 76, "num_chunks": 2, "has_trigger_word": False},
    ]
    change = {"captions": ["a cat", "a dog"], "operation": "replace", "text": "cat", "replacement": "fox"}
    assert json.loads(client.post("/lora_trainer/captions/change", change)) == ["a fox", "a dog"]


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("inspect", {"captions": ["a"], "trigger_words": []}, "1 captions, but 0 trigger_words"),
        ("inspect", {"captions": [1], "trigger_words": [""]}, "a list of texts as captions and trigger_words"),
        ("inspect", {"captions": ["x" * 1_000_001], "trigger_words": [""]}, "at most 1,000,000 at once"),
        (
            "inspect",
            {"captions": ["\ud83d"], "trigger_words": [""]},
            "captions has U+D83D at position 1, which is half",
        ),
        ("change", ["a"], "must be a JSON object, got list"),
        ("change", {"captions": ["a\udc00"], "operation": "remove", "text": "a"}, "captions has U+DC00 at position 2"),
        ("change", {"captions": ["a"], "operation": "remove", "text": "\ud83d"}, "text has U+D83D"),
        ("change", {"captions": ["a"], "operation": ["x"], "text": "a"}, "operation must be a text, got list"),
        ("change", {"captions": ["a"], "operation": "remove", "text": "x" * 10_001}, "at most 10,000 are allowed"),
        ("change", {"captions": ["a"], "operation": "shuffle", "text": "x"}, "operation must be one of"),
        ("change", {"captions": ["a"], "operation": "remove", "text": ""}, "no text to remove"),
    ],
)
def test_the_answer_to_a_wrong_request_says_why(client: ComfyClient, path: str, body: Any, message: str):
    with pytest.raises(urllib.error.HTTPError) as refusal:
        client.post(f"/lora_trainer/captions/{path}", body)
    assert refusal.value.code == 400 and message in refusal.value.read().decode()


def test_json_without_end_is_a_clear_refusal(client: ComfyClient):
    for path in ("inspect", "change"):
        request = urllib.request.Request(
            f"{client.url}/lora_trainer/captions/{path}",
            data=b"[" * 200_000,
            headers={"Content-Type": "application/json"},
        )
        with pytest.raises(urllib.error.HTTPError) as refusal:
            urllib.request.urlopen(request)
        assert refusal.value.code == 400 and "nested too deeply" in refusal.value.read().decode()


def test_the_server_answers_others_while_it_inspects_captions(client: ComfyClient):
    body = {"captions": ["a cat, " * 14] * 9_000, "trigger_words": ["sks"] * 9_000}
    with ThreadPoolExecutor(1) as threads:
        inspected = threads.submit(client.post, "/lora_trainer/captions/inspect", body)
        num_answers = 0
        while not inspected.done():
            client.get("/queue")
            num_answers += 1
        # a server that waits for the captions gives one answer, together with theirs
        assert num_answers > 3 and json.loads(inspected.result())[0]["num_tokens"] == 42
