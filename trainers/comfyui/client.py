"""A client for ComfyUI's server: queues an API-format prompt and follows it over the websocket.
Knows no individual nodes.
"""

import asyncio
import json
import struct
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from ..training.events import Interrupted

Prompt = dict[str, dict[str, Any]]
Receive = Callable[[], Awaitable[Any]]  # receives one frame, whose class depends on aiohttp's version
# ComfyUI's binary messages begin with these numbers.
PREVIEW_IMAGE, TEXT, PREVIEW_IMAGE_WITH_METADATA = 1, 3, 4
REQUEST_TIMEOUT = 600.0  # ComfyUI validates a prompt before accepting it, and validation can read a whole folder
HEARTBEAT = 120.0
# A local server is not reached through a proxy from the environment.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Message:
    """One message from the server, and the seconds since the prompt was queued.

    kind: ComfyUI's name for the event ("executing", "progress_state", "executed", ...), or for its
    binary messages "progress_text" (data: node, text) or "preview" (data: node, image, the bytes of
    a JPEG or PNG file).
    """

    seconds: float
    kind: str
    data: dict[str, Any]


@dataclass(frozen=True)
class OutputFile:
    """A file as /view expects it. type: "output", "temp" or "input"."""

    filename: str
    subfolder: str
    type: str


@dataclass(frozen=True)
class Result:
    """The result of a prompt. outputs: what each output node showed, by node id and kind, such as
    outputs["9"]["images"].
    """

    prompt_id: str
    history: dict[str, Any]
    messages: list[Message] = field(default_factory=list)

    @property
    def outputs(self) -> dict[str, dict[str, list[Any]]]:
        return self.history["outputs"]

    def files(self, node: str | None = None) -> list[OutputFile]:
        """Return the files that all nodes, or the given one, have shown, each once."""
        shown = [self.outputs.get(node, {})] if node else self.outputs.values()
        entries = [
            entry
            for output in shown
            for values in output.values()
            for entry in values
            if isinstance(entry, dict) and "filename" in entry
        ]
        return list(
            dict.fromkeys(
                OutputFile(entry["filename"], entry.get("subfolder", ""), entry.get("type", "output"))
                for entry in entries
            )
        )

    def texts(self, node: str) -> list[str]:
        """Return a node's progress texts."""
        return [
            message.data["text"]
            for message in self.messages
            if message.kind == "progress_text" and message.data["node"] == node
        ]

    def previews(self, node: str) -> list[bytes]:
        return [
            message.data["image"]
            for message in self.messages
            if message.kind == "preview" and message.data["node"] == node
        ]

    def executed_nodes(self) -> list[str]:
        """Return the nodes that ran, in order; cached nodes are not among them."""
        return [
            message.data["node"]
            for message in self.messages
            if message.kind == "executing" and message.data.get("node")
        ]


class PromptRejected(ValueError):
    """The server refused the prompt. node_errors: ComfyUI's errors by node id."""

    def __init__(self, answer: dict[str, Any]) -> None:
        self.node_errors: dict[str, dict[str, Any]] = answer.get("node_errors") or {}
        lines = _describe_node_errors(self.node_errors) or [_describe_error(answer.get("error") or {})]
        super().__init__("ComfyUI refused the prompt:\n" + "\n".join(f"  {line}" for line in lines))


class PromptFailed(RuntimeError):
    """A node raised an error. error: ComfyUI's full report, including the traceback."""

    def __init__(self, error: dict[str, Any]) -> None:
        self.error = error
        super().__init__(f"node {error['node_id']} ({error['node_type']}): {error['exception_message'].strip()}")


class PromptInterrupted(Interrupted):
    """The prompt was cancelled while it ran, or removed from the queue."""


class ComfyClient:
    """Runs one prompt at a time. url: such as http://127.0.0.1:8188."""

    def __init__(self, url: str) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"a server's address must begin with http:// or https://, got {url}")
        self.url = url.rstrip("/")
        self._prompt_id = ""
        self._is_interrupted = False

    def is_ready(self) -> bool:
        try:
            self.get("/system_stats")
        except OSError:
            return False
        return True

    def run(
        self, prompt: Prompt, *, on_message: Callable[[Message], None] | None = None, keep_messages: bool = True
    ) -> Result:
        """Queue the prompt and follow it to its end. on_message gets each message at once, and can
        call `interrupt`.

        keep_messages: false for long runs, whose messages would fill the memory.

        Raises:
            PromptRejected, PromptFailed, PromptInterrupted
            ConnectionError: no server answers, or it disappeared.
        """
        messages: list[Message] = []

        def take(message: Message) -> None:
            if keep_messages:
                messages.append(message)
            if on_message is None:
                return
            try:
                on_message(message)
            except BaseException:
                self.interrupt()  # no one follows the prompt now
                raise

        self._prompt_id, self._is_interrupted = str(uuid.uuid4()), False
        try:
            asyncio.run(self._run(prompt, take))
        except aiohttp.ClientError as error:
            raise ConnectionError(f"no ComfyUI answers at {self.url}: {error}") from error
        return Result(self._prompt_id, self._wait_for_history(), messages)

    def interrupt(self) -> None:
        """Stop the prompt that `run` follows, or remove it from the queue. `run` then raises
        PromptInterrupted.
        """
        self._is_interrupted = True
        if self._prompt_id:  # without an id, /interrupt would stop anyone's prompt
            self.post("/queue", {"delete": [self._prompt_id]})
            self.post("/interrupt", {"prompt_id": self._prompt_id})

    def fetch(self, file: OutputFile) -> bytes:
        return self._request("/view?" + urllib.parse.urlencode(vars(file)))

    def get(self, path: str) -> Any:
        return json.loads(self._request(path))

    def post(self, path: str, body: dict[str, Any]) -> bytes:
        return self._request(path, json.dumps(body).encode())

    def _request(self, path: str, body: bytes | None = None) -> bytes:
        request = urllib.request.Request(self.url + path, body, {"Content-Type": "application/json"} if body else {})
        with OPENER.open(request, timeout=REQUEST_TIMEOUT) as answer:
            return answer.read()

    async def _run(self, prompt: Prompt, take: Callable[[Message], None]) -> None:
        client_id = uuid.uuid4().hex
        connection = aiohttp.ClientSession()
        async with (
            connection,
            connection.ws_connect(f"{self.url}/ws?clientId={client_id}", max_msg_size=0, heartbeat=HEARTBEAT) as socket,
        ):
            await socket.send_json({"type": "feature_flags", "data": {"supports_preview_metadata": True}})
            connected_at = time.monotonic()
            while (await self._receive(socket.receive, connected_at)).kind != "feature_flags":
                pass
            # The server has answered, so we will miss no message of the prompt.
            self._queue(prompt, client_id)
            await self._follow(socket.receive, take)

    async def _follow(self, receive: Receive, take: Callable[[Message], None]) -> None:
        queued_at, has_started, has_ended = time.monotonic(), False, False
        while not has_ended:
            message = await self._receive(receive, queued_at)
            if message.data.get("prompt_id", self._prompt_id) != self._prompt_id:
                continue
            take(message)
            has_started = has_started or message.kind == "execution_start"
            if message.kind == "status" and not has_started and self._is_gone():
                raise PromptInterrupted("the prompt was removed from the queue")
            has_ended = _is_last(message)

    async def _receive(self, receive: Receive, queued_at: float) -> Message:
        while True:
            frame = await receive()
            if frame.type not in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
                raise ConnectionError(
                    f"ComfyUI at {self.url} closed the connection. Its log says why; if the server still runs, the "
                    "prompt may continue"
                )
            message = _decode(frame, time.monotonic() - queued_at)
            if message is not None:
                return message

    def _queue(self, prompt: Prompt, client_id: str) -> None:
        try:
            answer = json.loads(
                self.post("/prompt", {"prompt": prompt, "client_id": client_id, "prompt_id": self._prompt_id})
            )
        except urllib.error.HTTPError as error:
            if error.code != 400:
                raise
            raise PromptRejected(json.load(error)) from None
        if answer["node_errors"]:
            # ComfyUI runs the valid outputs and leaves out the others.
            self.interrupt()
            raise PromptRejected(answer)
        if self._is_interrupted:  # called before the prompt was in the queue
            self.interrupt()

    def _is_gone(self) -> bool:
        queue = self.get("/queue")
        waiting = {entry[1] for entry in queue["queue_running"] + queue["queue_pending"]}
        return self._prompt_id not in waiting and not self.get(f"/history/{self._prompt_id}")

    def _wait_for_history(self) -> dict[str, Any]:
        """Wait for the history: the server writes it just after it says that the prompt is done."""
        for _ in range(100):
            history = self.get(f"/history/{self._prompt_id}")
            if history:
                return history[self._prompt_id]
            time.sleep(0.05)
        raise RuntimeError(f"ComfyUI at {self.url} has run the prompt but has no history of it")


def _is_last(message: Message) -> bool:
    """True for the message that ends a prompt. Raises its error or interrupt."""
    if message.kind == "execution_error":
        raise PromptFailed(message.data)
    if message.kind == "execution_interrupted":
        raise PromptInterrupted("the prompt was interrupted")
    return message.kind == "execution_success"


def _decode(frame: Any, seconds: float) -> Message | None:
    """Decode a frame. Returns None for a kind of binary message that we do not read."""
    if frame.type == aiohttp.WSMsgType.TEXT:
        event = json.loads(frame.data)
        return Message(seconds, event["type"], event["data"] if isinstance(event.get("data"), dict) else {})
    kind, body = struct.unpack_from(">I", frame.data)[0], frame.data[4:]
    if kind == PREVIEW_IMAGE:
        return Message(seconds, "preview", {"node": None, "image": body[4:]})  # after the number of the image format
    if kind not in (TEXT, PREVIEW_IMAGE_WITH_METADATA):
        return None
    (length,) = struct.unpack_from(">I", body)
    head, rest = body[4 : 4 + length].decode(), body[4 + length :]
    if kind == TEXT:
        return Message(seconds, "progress_text", {"node": head, "text": rest.decode()})
    metadata = json.loads(head)
    return Message(seconds, "preview", {**metadata, "node": metadata["node_id"], "image": rest})


def _describe_node_errors(node_errors: dict[str, dict[str, Any]]) -> list[str]:
    lines = []
    for node, report in node_errors.items():
        for error in report["errors"]:
            input_name = error.get("extra_info", {}).get("input_name")
            place = f"node {node} ({report['class_type']})" + (f", {input_name}" if input_name else "")
            lines.append(f"{place}: {_describe_error(error, input_name)}")
    return lines


def _describe_error(error: dict[str, Any], input_name: str | None = None) -> str:
    """Return the message and its details, without the input's name in front of the details."""
    message, details = error.get("message", "no reason given"), error.get("details", "")
    for separator in (" - ", ": ", ", ", " "):
        details = details.removeprefix(f"{input_name}{separator}")
    if details == input_name:
        details = ""
    if error.get("type") == "custom_validation_failed" and details:
        return details
    return f"{message}: {details}" if details else message
