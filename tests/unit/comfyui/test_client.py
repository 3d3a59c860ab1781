"""The client against a stand-in for ComfyUI's server that follows a script and records the
requests.
"""

import asyncio
import json
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from trainers.comfyui.client import ComfyClient, OutputFile, PromptFailed, PromptInterrupted, PromptRejected
from trainers.comfyui.console import NodeBars, save_files
from trainers.comfyui.prompt_file import apply_settings, find_nodes, parse_setting, read_prompt

PROMPT = {"5": {"class_type": "LoRATrainer_LoadImages", "inputs": {"folder": "x"}}}
OUTPUTS = {"5": {"images": [{"filename": "a.png", "subfolder": "s", "type": "output"}] * 2, "text": ["done"]}}


class StandIn:
    """A server. script: the websocket's messages after a prompt is queued; "ID" becomes its id.
    None at the end closes the connection.
    """

    def __init__(self) -> None:
        self.script: list[dict[str, Any] | bytes | None] = [
            make_event("execution_start"),
            make_event("execution_success"),
        ]
        self.answer: tuple[int, dict[str, Any]] = (200, {"node_errors": {}})
        self.requests: list[tuple[str, Any]] = []
        self.is_queued = True
        self.url = ""
        self._socket: web.WebSocketResponse | None = None

    async def websocket(self, request: web.Request) -> web.WebSocketResponse:
        self._socket = web.WebSocketResponse()
        await self._socket.prepare(request)
        await self._socket.send_json({"type": "status", "data": {}})
        async for message in self._socket:
            self.requests.append(("feature_flags", json.loads(message.data)["data"]))
            await self._socket.send_json({"type": "feature_flags", "data": {}})
        return self._socket

    async def prompt(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.requests.append(("/prompt", body))
        assert self._socket is not None
        for line in (
            self.script if self.answer[0] == 200 else []
        ):  # before the answer, which is the earliest possible moment
            await self._say(line, body["prompt_id"])
        return web.json_response(self.answer[1], status=self.answer[0])

    async def _say(self, line: dict[str, Any] | bytes | None, prompt_id: str) -> None:
        assert self._socket is not None
        if line is None:
            await self._socket.close()
        elif isinstance(line, bytes):
            await self._socket.send_bytes(line)
        else:
            await self._socket.send_str(json.dumps(line).replace("ID", prompt_id))

    async def post(self, request: web.Request) -> web.Response:
        self.requests.append((request.path, await request.json()))
        return web.Response()

    async def queue(self, request: web.Request) -> web.Response:
        waiting = [[0, self.requests[-1][1]["prompt_id"]]] if self.is_queued else []
        return web.json_response({"queue_running": [], "queue_pending": waiting})

    async def history(self, request: web.Request) -> web.Response:
        return web.json_response({request.match_info["id"]: {"outputs": OUTPUTS}} if self.is_queued else {})

    async def view(self, request: web.Request) -> web.Response:
        return web.Response(body=json.dumps(dict(request.query)).encode())

    async def object_info(self, request: web.Request) -> web.Response:
        return web.json_response(
            {"LoRATrainer_LoadImages": {"input": {"optional": {"folder": [], "trigger_word": []}}}}
        )

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/ws", self.websocket),
            web.post("/prompt", self.prompt),
            web.post("/queue", self.post),
            web.post("/interrupt", self.post),
            web.get("/queue", self.queue),
            web.get("/history/{id}", self.history),
            web.get("/view", self.view),
            web.get("/object_info/{name}", self.object_info),
        ]


def make_event(kind: str, **more: Any) -> dict[str, Any]:
    return {"type": kind, "data": {"prompt_id": "ID", **more}}


@pytest.fixture
def server() -> Iterator[StandIn]:
    stand_in, loop, is_ready, ends = StandIn(), asyncio.new_event_loop(), threading.Event(), asyncio.Event()

    async def serve() -> None:
        application = web.Application()
        application.add_routes(stand_in.routes())
        runner = web.AppRunner(application, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        stand_in.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        is_ready.set()
        await ends.wait()
        await runner.cleanup()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert is_ready.wait(10)
    yield stand_in
    loop.call_soon_threadsafe(ends.set)
    thread.join(10)
    loop.close()


def test_messages_that_come_before_the_prompt_is_acknowledged_are_kept(server: StandIn):
    text = struct.pack(">II", 3, 1) + b"5" + "step 1 · loss".encode()
    metadata = json.dumps({"node_id": "5"}).encode()
    preview = struct.pack(">II", 4, len(metadata)) + metadata + b"JPEG"
    old_preview, unknown = struct.pack(">II", 1, 1) + b"JPEG", struct.pack(">I", 99)
    other = {"type": "executing", "data": {"prompt_id": "another", "node": "7"}}
    server.script = [
        make_event("execution_start"),
        other,
        make_event("executing", node="5"),
        text,
        unknown,
        preview,
        old_preview,
        make_event("execution_success"),
    ]
    seen = []
    result = ComfyClient(server.url + "/").run(PROMPT, on_message=lambda message: seen.append(message.kind))
    assert seen == ["execution_start", "executing", "progress_text", "preview", "preview", "execution_success"]
    assert [message.kind for message in result.messages] == seen
    assert (
        result.texts("5") == ["step 1 · loss"]
        and result.previews("5") == [b"JPEG"]
        and result.executed_nodes() == ["5"]
    )
    assert result.files() == result.files("5") == [OutputFile("a.png", "s", "output")] and result.files("6") == []
    assert server.requests[0] == ("feature_flags", {"supports_preview_metadata": True})
    assert all(message.seconds >= 0 for message in result.messages)


def test_long_runs_can_drop_the_messages(server: StandIn):
    assert ComfyClient(server.url).run(PROMPT, keep_messages=False).messages == []


def test_a_refused_prompt_names_node_input_and_reason(server: StandIn):
    def error(kind: str, message: str, details: str) -> dict[str, Any]:
        return {"type": kind, "message": message, "details": details, "extra_info": {"input_name": "folder"}}

    errors = [
        error("custom_validation_failed", "Custom validation failed for node", "folder - it has no images"),
        error("value_not_in_list", "Value not in list", "folder: 'x' not in ['y']"),
        error("required_input_missing", "Required input is missing", "folder"),
    ]
    server.answer = (
        400,
        {"error": {"message": "x"}, "node_errors": {"5": {"class_type": "LoRATrainer_LoadImages", "errors": errors}}},
    )
    with pytest.raises(PromptRejected) as refusal:
        ComfyClient(server.url).run(PROMPT)
    place = "  node 5 (LoRATrainer_LoadImages), folder: "
    reasons = ["it has no images", "Value not in list: 'x' not in ['y']", "Required input is missing"]
    assert str(refusal.value).splitlines() == ["ComfyUI refused the prompt:", *(place + reason for reason in reasons)]
    assert "5" in refusal.value.node_errors


def test_a_prompt_with_an_unknown_node_is_refused_with_the_servers_message(server: StandIn):
    error = {
        "type": "missing_node_type",
        "message": "Node 'Foo' not found.",
        "details": "Node ID '#5'",
        "extra_info": {"node_id": "5"},
    }
    server.answer = (400, {"error": error, "node_errors": []})
    with pytest.raises(PromptRejected, match=r"Node 'Foo' not found\.: Node ID '#5'"):
        ComfyClient(server.url).run(PROMPT)


def test_a_prompt_that_is_only_partly_valid_is_withdrawn(server: StandIn):
    error = {"type": "x", "message": "Bad", "details": "", "extra_info": {}}
    server.answer = (200, {"node_errors": {"5": {"class_type": "Foo", "errors": [error]}}})
    with pytest.raises(PromptRejected, match=r"node 5 \(Foo\): Bad"):
        ComfyClient(server.url).run(PROMPT)
    (prompt_id,) = [body["prompt_id"] for path, body in server.requests if path == "/prompt"]
    assert server.requests[-2:] == [("/queue", {"delete": [prompt_id]}), ("/interrupt", {"prompt_id": prompt_id})]


def test_the_error_of_a_node_is_raised_with_its_message(server: StandIn):
    report = {"node_id": "5", "node_type": "Foo", "exception_message": "no images\n", "traceback": []}
    server.script = [make_event("execution_start"), make_event("execution_error", **report)]
    with pytest.raises(PromptFailed, match=r"^node 5 \(Foo\): no images$") as failure:
        ComfyClient(server.url).run(PROMPT)
    assert failure.value.error["traceback"] == []


def test_an_interrupt_names_the_prompt_and_ends_the_run(server: StandIn):
    server.script = [
        make_event("execution_start"),
        make_event("executing", node="5"),
        make_event("execution_interrupted"),
    ]
    client = ComfyClient(server.url)
    with pytest.raises(PromptInterrupted):
        client.run(PROMPT, on_message=lambda message: client.interrupt() if message.kind == "executing" else None)
    (prompt_id,) = [body["prompt_id"] for path, body in server.requests if path == "/prompt"]
    assert server.requests[-1] == ("/interrupt", {"prompt_id": prompt_id})


def test_an_error_in_the_listener_ends_the_prompt_too(server: StandIn):
    with pytest.raises(ZeroDivisionError):
        ComfyClient(server.url).run(PROMPT, on_message=lambda message: 1 // 0)
    assert [path for path, _ in server.requests[-2:]] == ["/queue", "/interrupt"]


def test_an_interrupt_without_our_prompt_does_not_stop_anyone_elses(server: StandIn):
    ComfyClient(server.url).interrupt()
    assert server.requests == []


def test_removing_a_prompt_from_the_queue_ends_the_run(server: StandIn):
    server.script, server.is_queued = [{"type": "status", "data": {}}], False
    with pytest.raises(PromptInterrupted, match="removed from the queue"):
        ComfyClient(server.url).run(PROMPT)


def test_a_server_that_disappears_is_an_error(server: StandIn):
    server.script = [make_event("execution_start"), None]
    with pytest.raises(ConnectionError, match="closed the connection"):
        ComfyClient(server.url).run(PROMPT)


def test_a_missing_server_is_an_error():
    with pytest.raises(ConnectionError, match=r"no ComfyUI answers at http://127\.0\.0\.1:9"):
        ComfyClient("http://127.0.0.1:9").run(PROMPT)
    with pytest.raises(ValueError, match="must begin with http"):
        ComfyClient("localhost:8188")


def test_files_are_fetched_under_their_own_paths_and_never_outside_the_folder(server: StandIn, tmp_path: Path):
    client = ComfyClient(server.url)
    written = save_files(client, [OutputFile("a.png", "s", "output"), OutputFile("b.png", "", "temp")], tmp_path)
    assert written == [tmp_path / "s" / "a.png", tmp_path / "temp" / "b.png"]
    assert json.loads(written[0].read_bytes()) == {"filename": "a.png", "subfolder": "s", "type": "output"}
    with pytest.raises(ValueError, match="outside its own folder"):
        save_files(client, [OutputFile("a.png", "../..", "output")], tmp_path)


def test_settings_change_the_prompt_by_id_or_by_class(server: StandIn):
    prompt = json.loads(json.dumps(PROMPT))
    settings = [
        parse_setting(text)
        for text in ("5.folder=toadstools", "LoRATrainer_LoadImages.trigger_word=zwx=1", "5.folder=7")
    ]
    assert settings[1] == ("LoRATrainer_LoadImages", "trigger_word", "zwx=1")
    apply_settings(prompt, settings, ComfyClient(server.url))
    assert prompt["5"]["inputs"] == {"folder": 7, "trigger_word": "zwx=1"}
    with pytest.raises(
        ValueError, match=r"node 5 \(LoRATrainer_LoadImages\) has no input foldr. It has: folder, trigger_word"
    ):
        apply_settings(prompt, [("5", "foldr", 1)], ComfyClient(server.url))
    with pytest.raises(ValueError, match=r"the prompt has no node 6. It has: 5 \(LoRATrainer_LoadImages\)"):
        find_nodes(prompt, "6")


@pytest.mark.parametrize("text", ["5", "5.folder", "=1", ".folder=1", "5.=1", "folder=a.b"])
def test_a_malformed_setting_is_refused(text: str):
    with pytest.raises(ValueError, match=r"a setting is NODE\.INPUT=VALUE"):
        parse_setting(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ('{"nodes": [], "links": []}', "Export"),
        ("[]", "not a prompt in API format"),
        ('{"1": {"inputs": {}}}', "not a prompt in API format"),
    ],
)
def test_a_file_that_is_not_a_prompt_is_refused(text: str, message: str, tmp_path: Path):
    (tmp_path / "prompt.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_prompt(tmp_path / "prompt.json")


def test_each_node_has_a_bar_with_its_text_and_only_counting_nodes_leave_it(
    server: StandIn, capsys: pytest.CaptureFixture[str]
):
    def state(node: str, value: float, state: str) -> dict[str, Any]:
        return {
            "type": "progress_state",
            "data": {
                "prompt_id": "ID",
                "nodes": {node: {"value": value, "max": 4.0 if node == "5" else 1.0, "state": state}},
            },
        }

    text = struct.pack(">II", 3, 1) + b"5" + b"loss 0.1\nmore"
    server.script = [
        state("4", 0, "running"),
        state("4", 1, "finished"),
        state("5", 0, "running"),
        state("5", 3, "running"),
        text,
    ]
    server.script += [state("5", 4, "finished"), make_event("execution_success")]
    prompt = {"4": {"class_type": "Quick"}, "5": {"class_type": "Foo", "_meta": {"title": "Train"}}}
    with NodeBars(prompt) as bars:
        ComfyClient(server.url).run(prompt, on_message=bars.show)
    last_of_each_line = [line.split("\r")[-1].strip() for line in capsys.readouterr().err.split("\n")]
    assert len(last_of_each_line) == 2 and last_of_each_line[1] == ""
    assert (
        last_of_each_line[0].startswith("Train: 100%")
        and "4/4" in last_of_each_line[0]
        and "loss 0.1]" in last_of_each_line[0]
    )
