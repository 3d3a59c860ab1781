"""The routes of the training panel on a real server, over run folders as a trainer writes them."""

import json
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.run_folders import keep_alive, write_run
from trainers.comfyui.client import ComfyClient
from trainers.comfyui.server import ComfyServer

NAME = "panel-20261130-140000 (2)"
ORIGIN = {"node_id": "12:5", "workflow_id": "w", "prompt_id": "p"}
ROUTE = f"/lora_trainer/runs/{urllib.parse.quote(NAME)}"


@pytest.fixture(scope="module")
def client(comfyui_server: ComfyServer) -> ComfyClient:
    return comfyui_server.client


@pytest.fixture
def run_folder(comfyui_server: ComfyServer) -> Iterator[Path]:
    folder = write_run(comfyui_server.base_directory / "output/lora_trainer/runs", NAME, origin=ORIGIN)
    yield folder
    shutil.rmtree(folder)


def refuse(client: ComfyClient, path: str, *, post: Any = None) -> tuple[int, str]:
    with pytest.raises(urllib.error.HTTPError) as refusal:
        client.get(path) if post is None else client.post(path, post)
    return refusal.value.code, refusal.value.read().decode()


def test_one_request_has_all_that_the_panel_shows(client: ComfyClient, run_folder: Path):
    with keep_alive(run_folder):
        run = client.get(f"{ROUTE}?points=100")
    assert run["summary"]["name"] == NAME and run["summary"]["status"] == "running" and run["summary"]["can_ask"]
    assert 50 < len(run["curve"]["step"]) <= 100 and run["curve"]["step"][-1] == 600
    assert run["validation"]["best_step"] == 400 and run["memory_budget_bytes"] == 12 * 2**30
    assert run["loras"][0]["lora_name"] is None  # it is in no folder that loaders list
    assert Path(run["loras"][0]["path"]) == run_folder / "checkpoints" / "panel-step00000600.safetensors"


def test_samples_are_images_of_the_hosts_own_route(client: ComfyClient, run_folder: Path):
    sample = client.get(ROUTE)["samples"][0]
    image = client._request(f"/view?{urllib.parse.urlencode(sample['file'])}")
    assert image == (run_folder / "samples" / sample["name"]).read_bytes()


def test_a_nodes_runs_are_found_by_its_execution_id(client: ComfyClient, run_folder: Path):
    found = client.get("/lora_trainer/runs?node=3&node=12:5&workflow=w")
    assert [run["name"] for run in found] == [NAME] and found[0]["prompt_id"] == "p"
    assert client.get("/lora_trainer/runs?node=12:5&workflow=other") == []
    assert NAME in [run["name"] for run in client.get("/lora_trainer/runs")]


@pytest.mark.parametrize("what", ["finish", "pause"])
def test_a_button_leaves_a_file_for_a_living_run(client: ComfyClient, run_folder: Path, what: str):
    with keep_alive(run_folder):
        assert json.loads(client.post(f"{ROUTE}/{what}", {})) == {"requested": what}
    assert (run_folder / what).read_bytes() == b""
    (run_folder / what).unlink()
    code, text = refuse(client, f"{ROUTE}/{what}", post={})
    assert code == 409 and f"only a run that is going on can be asked to {what}" in text
    assert not (run_folder / what).exists()


def test_a_lora_of_a_run_is_copied_once_to_where_loaders_list_it(
    comfyui_server: ComfyServer, client: ComfyClient, run_folder: Path
):
    name, loras = "panel-step00000600.safetensors", comfyui_server.base_directory / "models" / "loras"
    path = run_folder / "checkpoints" / name
    for _ in range(2):
        assert json.loads(client.post(f"{ROUTE}/list", {"path": str(path)})) == {"lora_name": name}
    assert (loras / name).read_bytes() == path.read_bytes()
    assert name in client.get("/object_info/LoraLoader")["LoraLoader"]["input"]["required"]["lora_name"][0]
    (loras / name).write_bytes(b"another")
    second = "panel-step00000600-2.safetensors"
    assert json.loads(client.post(f"{ROUTE}/list", {"path": str(path)})) == {"lora_name": second}
    assert (loras / name).read_bytes() == b"another"
    for each in (name, second):
        (loras / each).unlink()


def test_only_a_runs_own_loras_are_copied(client: ComfyClient, run_folder: Path, tmp_path: Path):
    other = tmp_path / "x.safetensors"
    other.write_bytes(b"x")
    code, text = refuse(client, f"{ROUTE}/list", post={"path": str(other)})
    assert code == 404 and "has no LoRA" in text
    assert refuse(client, f"{ROUTE}/list", post={"file": 1})[0] == 400


def test_a_page_of_another_origin_cannot_ask(client: ComfyClient, run_folder: Path):
    headers: list[dict[str, str]] = [
        {"Content-Type": "text/plain"},  # which needs no permission
        {"Content-Type": "application/json", "Origin": "http://elsewhere.example"},
        {"Content-Type": "application/json", "Sec-Fetch-Site": "cross-site"},
    ]
    with keep_alive(run_folder):
        for number, each in enumerate(headers):
            request = urllib.request.Request(f"{client.url}{ROUTE}/finish", data=b"{}", headers=each)
            with pytest.raises(urllib.error.HTTPError) as refusal:
                urllib.request.urlopen(request)
            assert refusal.value.code == (415 if number == 0 else 403)
    assert not (run_folder / "finish").exists()


@pytest.mark.parametrize("name", ["gone", "..", "%2e%2e", "..%2fcache", "%2fetc", "..%5c..", "%00", "C%3a"])
def test_only_runs_are_served(client: ComfyClient, name: str):
    for path in (f"/lora_trainer/runs/{name}", f"/lora_trainer/runs/{name}/finish"):
        code, _ = refuse(client, path, post={} if path.endswith("finish") else None)
        assert code in (404, 405)


@pytest.mark.parametrize("points", ["0", "-1", "x", "1001", "9" * 40, "", "１"])
def test_too_many_points_are_refused(client: ComfyClient, run_folder: Path, points: str):
    code, text = refuse(client, f"{ROUTE}?points={urllib.parse.quote(points)}")
    assert code == 400 and text.startswith("points must be between 1 and 1000, got")


def test_too_many_nodes_are_refused(client: ComfyClient):
    assert refuse(client, "/lora_trainer/runs?" + "node=1&" * 101) == (400, "101 nodes, at most 100 at once")
