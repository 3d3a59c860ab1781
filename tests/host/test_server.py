"""A real server: it starts with the packs, runs prompts, reports their errors, can be interrupted,
and stops.
"""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.limits import TIME_LIMIT
from trainers.__main__ import main
from trainers.comfyui.client import ComfyClient, Message, Prompt, PromptFailed, PromptInterrupted, PromptRejected
from trainers.comfyui.find import PACK
from trainers.comfyui.server import ComfyServer
from trainers.embedded_base.shared.scenes import fits


def draw(prompt: str, *, seed: int, steps: int = 20) -> Prompt:
    """Draw one image of the embedded base model with ComfyUI's own nodes."""
    return {
        "base": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "embedded_base.safetensors"}},
        "positive": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["base", 1], "text": prompt}},
        "negative": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["base", 1], "text": ""}},
        "latent": {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 1}},
        "sampler": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["base", 0],
                "positive": ["positive", 0],
                "negative": ["negative", 0],
                "latent_image": ["latent", 0],
                "seed": seed,
                "steps": steps,
                "cfg": 4.0,
                "sampler_name": "euler",
                "scheduler": "normal",
                "denoise": 1.0,
            },
        },
        "decode": {"class_type": "VAEDecode", "inputs": {"samples": ["sampler", 0], "vae": ["base", 2]}},
        "save": {"class_type": "SaveImage", "inputs": {"images": ["decode", 0], "filename_prefix": "circle"}},
    }


def test_every_pack_is_imported(comfyui_server: ComfyServer):
    log = comfyui_server.read_log()
    assert "IMPORT FAILED" not in log
    assert "custom_nodes/ComfyUI-LoRA-Trainer" in log and "custom_nodes/embedded_base_pack" in log


def test_the_server_computes_in_one_thread(comfyui_server: ComfyServer):
    """Several servers must not slow each other down. fault_pack logs the number of threads."""
    assert "fault_pack: torch computes in 1 thread(s)" in comfyui_server.read_log()


def test_the_embedded_base_follows_the_prompt(comfyui_server: ComfyServer):
    caption = "a red circle on a white background"
    result = comfyui_server.client.run(draw(caption, seed=1))
    (file,) = result.files("save")
    pixels = np.asarray(Image.open(io.BytesIO(comfyui_server.client.fetch(file))).convert("RGB"))
    assert pixels.shape == (128, 128, 3) and all(fits(pixels, caption))
    assert result.executed_nodes()[-1] == "save"
    steps = [
        message.data["value"]
        for message in result.messages
        if message.kind == "progress" and message.data["node"] == "sampler"
    ]
    assert steps[-1] == 20 and steps == sorted(steps)


def test_the_same_prompt_again_comes_from_the_cache(comfyui_server: ComfyServer):
    prompt = draw("a blue square on a black background", seed=2, steps=2)
    first, second = comfyui_server.client.run(prompt), comfyui_server.client.run(prompt)
    assert "sampler" in first.executed_nodes() and second.executed_nodes() == []
    assert first.files("save") == second.files("save")


def test_a_refused_prompt_names_the_node_and_the_input(comfyui_server: ComfyServer):
    prompt = draw("x", seed=0)
    prompt["base"]["inputs"]["ckpt_name"] = "nowhere.safetensors"
    with pytest.raises(
        PromptRejected,
        match=r"node base \(CheckpointLoaderSimple\), ckpt_name: Value not in list: 'nowhere\.safetensors' not in",
    ):
        comfyui_server.client.run(prompt)
    with pytest.raises(PromptRejected, match="Node 'NoSuchNode' not found"):
        comfyui_server.client.run({"1": {"class_type": "NoSuchNode", "inputs": {}}})


def test_a_partly_wrong_prompt_is_refused_as_a_whole(comfyui_server: ComfyServer):
    prompt = draw("x", seed=3, steps=10_000)
    prompt["other"] = {"class_type": "SaveImage", "inputs": {"filename_prefix": "y"}}
    with pytest.raises(PromptRejected, match=r"node other \(SaveImage\), images: Required input is missing"):
        comfyui_server.client.run(prompt)


def test_the_error_of_a_node_is_raised_and_the_next_prompt_runs(comfyui_server: ComfyServer):
    assert comfyui_server.base_directory is not None
    (comfyui_server.base_directory / "models" / "checkpoints" / "broken.safetensors").write_bytes(b"no weights")
    prompt = draw("x", seed=0)
    prompt["base"]["inputs"]["ckpt_name"] = "broken.safetensors"
    with pytest.raises(PromptFailed, match=r"node base \(CheckpointLoaderSimple\): ") as failure:
        comfyui_server.client.run(prompt)
    assert failure.value.error["traceback"]
    assert comfyui_server.client.run(draw("a red ring", seed=4, steps=1)).files("save")


def test_an_interrupt_stops_the_prompt_and_the_next_one_runs(comfyui_server: ComfyServer):
    client, interrupted = comfyui_server.client, []

    def interrupt(message: Message) -> None:
        if message.kind == "progress" and not interrupted:
            interrupted.append(message)
            client.interrupt()

    with pytest.raises(PromptInterrupted):
        client.run(draw("x", seed=5, steps=10_000), on_message=interrupt)
    assert interrupted
    assert client.run(draw("a red ring", seed=6, steps=1)).files("save")


def test_a_waiting_prompt_can_be_removed_from_the_queue(comfyui_server: ComfyServer):
    running, waiting = ComfyClient(comfyui_server.url), ComfyClient(comfyui_server.url)

    def run_another(message: Message) -> None:
        if message.kind == "progress" and not failures:
            with pytest.raises(PromptInterrupted, match="removed from the queue") as failure:
                run_in_thread(lambda: waiting.run(draw("x", seed=8), on_message=lambda _: waiting.interrupt()))
            failures.append(failure)
            running.interrupt()

    failures: list[object] = []
    with pytest.raises(PromptInterrupted, match="was interrupted"):
        running.run(draw("x", seed=7, steps=10_000), on_message=run_another)
    assert failures


def run_in_thread(function: Callable[[], object]) -> None:
    """Run in another thread, since this one already runs an event loop."""
    with ThreadPoolExecutor(1) as threads:
        threads.submit(function).result(timeout=TIME_LIMIT)


def test_the_command_runs_a_prompt_file_on_a_server(
    comfyui_server: ComfyServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "draw.json").write_text(json.dumps(draw("x", seed=0, steps=2)))
    arguments = [
        "comfyui",
        str(tmp_path / "draw.json"),
        "--server",
        comfyui_server.url,
        "--output-dir",
        str(tmp_path / "out"),
    ]
    assert main([*arguments, "--set", "sampler.steps=1", "--set", "save.filename_prefix=a/b"]) == 0
    (written,) = (tmp_path / "out").rglob("*.png")
    assert str(written) in capsys.readouterr().out and written.parent.name == "a"
    workflow = json.loads(Image.open(written).info["prompt"])
    assert workflow["sampler"]["inputs"]["steps"] == 1

    assert main([*arguments, "--set", "sampler.stepz=1"]) == 1
    assert "error: node sampler (KSampler) has no input stepz. It has: model, seed, steps," in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT cannot be sent to one process on Windows")
def test_ctrl_c_interrupts_the_prompt_on_the_server_and_ends_the_command(comfyui_server: ComfyServer, tmp_path: Path):
    (tmp_path / "draw.json").write_text(json.dumps(draw("x", seed=9, steps=10_000)))
    command = [sys.executable, "-m", "trainers", "comfyui", "draw.json", "--server", comfyui_server.url]
    process = subprocess.Popen(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(PACK)}, stderr=subprocess.PIPE, text=True
    )
    while not comfyui_server.client.get("/queue")["queue_running"]:
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=TIME_LIMIT)
    assert process.returncode == 130 and "Cancelled" in errors and "Traceback" not in errors
    assert comfyui_server.client.get("/queue")["queue_running"] == []
