"""Trainings in the graph go on: after an interrupt, a pause, a restart of the server and behind
other prompts; finish on request; and are loaded when they are finished.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.host.test_training_in_graph import get_facts, tiny_prompt
from tests.limits import TIME_LIMIT
from trainers.comfyui.client import ComfyClient, Message, PromptInterrupted, Result
from trainers.comfyui.find import Installation
from trainers.comfyui.server import ComfyServer
from trainers.demo.in_comfyui import prepare_demo_directory

STEPS = 29  # unlike the number of images and captions, so that its progress is told apart
SETTINGS = {"max_train_steps": STEPS, "lr_warmup_steps": 2.0, "lora_dropout": 0.1}


@pytest.fixture(scope="module")
def base_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("comfyui")
    prepare_demo_directory(folder)
    (folder / "custom_nodes" / "fault_pack").symlink_to(Path(__file__).with_name("fault_pack"))
    return folder


@pytest.fixture(scope="module")
def start(installation: Installation, base_directory: Path) -> Iterator[Callable[[], ComfyServer]]:
    """start() stops the running server, if there is one, and starts another on the same folders."""
    running: list[ComfyServer] = []

    def begin() -> ComfyServer:
        stop()
        log = base_directory / "server.log"
        server = ComfyServer(installation, base_directory=base_directory, log=log, cpu=True)
        running.append(server.__enter__())
        return server

    def stop() -> None:
        while running:
            running.pop().__exit__(None, None, None)

    yield begin
    stop()


@pytest.fixture(scope="module")
def client(start: Callable[[], ComfyServer]) -> ComfyClient:
    return start().client


def prompt(name: str, **settings: Any) -> dict[str, Any]:
    return tiny_prompt(**{**SETTINGS, "output_name": name, **settings})


def run_folder(base_directory: Path, name: str) -> Path:
    (run,) = (base_directory / "output/lora_trainer/runs").glob(f"{name}-*")
    return run


def at_step(number: int, act: Callable[[], object], *, total: int = STEPS) -> Callable[[Message], None]:
    """Call `act` once, when a run of `total` steps has reached the step."""
    done: list[int] = []

    def listen(message: Message) -> None:
        is_ours = message.kind == "progress" and message.data["node"] == "trainer" and message.data["max"] == total
        if is_ours and message.data["value"] >= number and not done:
            done.append(number)
            act()

    return listen


@pytest.fixture(scope="module")
def whole(client: ComfyClient) -> dict[str, torch.Tensor]:
    """The LoRA of a run that nothing stopped."""
    return load_file(get_facts(client.run(prompt("whole", resume="new")))["path"])


def assert_same(result: Result, whole: dict[str, torch.Tensor]) -> None:
    facts = get_facts(result)
    assert facts["steps"] == len(facts["loss"]) == STEPS and not facts["finished_early"]
    found = load_file(facts["path"])
    assert found.keys() == whole.keys() and all(torch.equal(found[name], whole[name]) for name in whole)


def interrupt_at(client: ComfyClient, number: int, name: str) -> dict[str, Any]:
    """Interrupt a run of another seed, so that no finished run is found."""
    ours = prompt(name, seed=number)
    with pytest.raises(PromptInterrupted):
        client.run(ours, on_message=at_step(number, client.interrupt))
    return ours


def read_status(run: Path) -> dict[str, Any]:
    return json.loads((run / "progress.json").read_text())


def test_an_interrupted_prompt_goes_on_and_gives_the_uninterrupted_lora(client, base_directory):
    ours = interrupt_at(client, 3, "stopped")
    run = run_folder(base_directory, "stopped")
    assert read_status(run)["status"] == "cancelled" and "goes on at step" in read_status(run)["message"]
    result = client.run(ours)
    assert_same(result, load_file(get_facts(client.run(prompt("uninterrupted", seed=3, resume="new")))["path"]))
    assert get_facts(result)["run"] == run.name and "going on with" in (run / "run.log").read_text()
    origin = json.loads((run / "origin.json").read_text())
    assert origin["node_id"] == "trainer" and origin["prompt_id"]


def test_after_a_restart_of_the_server_a_run_goes_on_and_a_finished_one_is_loaded(start, client, base_directory, whole):
    ours = interrupt_at(client, 4, "restarted")
    again = start().client
    facts = get_facts(again.run(ours))
    assert facts["steps"] == STEPS and facts["run"] == run_folder(base_directory, "restarted").name
    loaded = again.run(prompt("whole"))
    assert_same(loaded, whole)
    assert get_facts(loaded)["loaded"] and get_facts(loaded)["run"] == run_folder(base_directory, "whole").name
    assert "Loaded the finished run of 29 steps" in loaded.outputs["trainer"]["text"][0]


@pytest.fixture(scope="module")
def restarted(start: Callable[[], ComfyServer]) -> ComfyClient:
    return start().client


def test_finish_now_hands_the_lora_so_far_to_the_rest_of_the_graph(restarted, base_directory):
    def finish() -> None:
        (run_folder(base_directory, "finished") / "finish").touch()

    result = restarted.run(prompt("finished", seed=5, max_train_steps=500), on_message=at_step(3, finish, total=500))
    facts = get_facts(result)
    assert facts["finished_early"] and 3 <= facts["steps"] < 500 and Path(facts["path"]).is_file()
    assert "sink" in result.executed_nodes() and "(finished early)" in result.outputs["trainer"]["text"][0]
    assert read_status(run_folder(base_directory, "finished"))["status"] == "finished early"


def test_a_pause_stops_the_prompt_and_the_same_prompt_goes_on(restarted, base_directory):
    steps = 100  # more than a fast machine makes until it notices the pause, after at most half a second
    ours = prompt("paused", seed=6, max_train_steps=steps)

    def pause() -> None:
        (run_folder(base_directory, "paused") / "pause").touch()

    with pytest.raises(PromptInterrupted):
        restarted.run(ours, on_message=at_step(3, pause, total=steps))
    run = run_folder(base_directory, "paused")
    assert read_status(run)["status"] == "paused" and not (run / "paused.safetensors").exists()
    assert get_facts(restarted.run(ours))["steps"] == steps


def test_a_polite_training_lets_a_waiting_prompt_go_first(restarted, base_directory):
    """It is queued again behind it, and goes on then."""
    other: list[Result] = []
    another = ComfyClient(restarted.url)  # two prompts of one client would share its messages
    runner = threading.Thread(target=lambda: other.append(another.run(prompt("other", seed=8, max_train_steps=2))))
    (base_directory / "impatient.txt").touch()
    try:
        with pytest.raises(PromptInterrupted):
            restarted.run(prompt("polite", seed=7, let_others_go_first=True), on_message=at_step(1, runner.start))
        runner.join(TIME_LIMIT)
        run, deadline = run_folder(base_directory, "polite"), time.monotonic() + TIME_LIMIT
        while not (run / "result.json").exists() and time.monotonic() < deadline:
            time.sleep(0.2)
    finally:
        (base_directory / "impatient.txt").unlink()
    assert get_facts(other[0])["steps"] == 2
    assert json.loads((run / "result.json").read_text())["steps"] == STEPS
    times = [(run_folder(base_directory, name) / "result.json").stat().st_mtime for name in ("other", "polite")]
    assert times[0] < times[1]
