"""Reads an API-format prompt from a file and sets values in it."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from .client import ComfyClient, Prompt

# (node id, or class for all its nodes), input, value
Setting = tuple[str, str, Any]


def read_prompt(path: Path) -> Prompt:
    """Read the file. Raises ValueError if it is not a prompt in API format."""
    try:
        prompt = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from error
    if isinstance(prompt, dict) and "nodes" in prompt:
        raise ValueError(f"{path} is a workflow from the editor. Open it in ComfyUI and choose Workflow > Export (API)")
    if (
        not isinstance(prompt, dict)
        or not prompt
        or not all(isinstance(node, dict) and "class_type" in node for node in prompt.values())
    ):
        raise ValueError(
            f"{path} is not a prompt in API format: an object with one entry per node, each with a class_type"
        )
    return prompt


def parse_setting(text: str) -> Setting:
    """Parse NODE.INPUT=VALUE. The value is JSON if it parses as JSON, else a string."""
    place, equals, value = text.partition("=")
    node, dot, name = place.partition(".")
    if not (equals and dot and node and name):
        raise ValueError(f"a setting is NODE.INPUT=VALUE, got {text}")
    try:
        return node, name, json.loads(value)
    except ValueError:
        return node, name, value


def find_nodes(prompt: Prompt, name: str) -> list[str]:
    """Find the node with that id, or all nodes of that class. Raises ValueError if none exists."""
    found = [name] if name in prompt else [node for node, about in prompt.items() if about["class_type"] == name]
    if not found:
        known = ", ".join(f"{node} ({about['class_type']})" for node, about in prompt.items())
        raise ValueError(f"the prompt has no node {name}. It has: {known}")
    return found


def apply_settings(prompt: Prompt, settings: Iterable[Setting], client: ComfyClient) -> None:
    """Set the values in the prompt. The server knows the inputs that a node can have besides those
    in the prompt.

    Raises:
        ValueError: there is no such node, or it has no such input.
    """
    for nodes, name, value in settings:
        for node in find_nodes(prompt, nodes):
            inputs, class_type = prompt[node].setdefault("inputs", {}), prompt[node]["class_type"]
            if name not in inputs:
                _check_input_name(node, name, class_type, client.get("/object_info/" + quote(class_type, safe="")))
            inputs[name] = value


def _check_input_name(node: str, name: str, class_type: str, object_info: dict[str, Any]) -> None:
    if class_type not in object_info:
        return  # the server will refuse the prompt, with a better reason
    known = [name for group in ("required", "optional") for name in object_info[class_type]["input"].get(group, {})]
    if name.split(".")[0] not in known:  # inputs that grow or depend on another have their own name after the dot
        raise ValueError(f"node {node} ({class_type}) has no input {name}. It has: {', '.join(known)}")
