"""ComfyUI's queue of prompts: who asked for what is running, who waits, and going to its end."""

import copy
import time
import uuid
from typing import Any

from comfy_execution.utils import get_executing_context
from server import PromptServer


def describe_origin() -> dict[str, Any] | None:
    """Say which node of which prompt and workflow is being executed; None outside of a prompt. The
    node's id has the ids of the subgraphs around it: "12:5".
    """
    context = get_executing_context()
    if context is None:
        return None
    item = _find_running(context.prompt_id)
    workflow = (item[3].get("extra_pnginfo") or {}).get("workflow") if item else None
    return {
        "node_id": context.node_id,
        "prompt_id": context.prompt_id,
        "workflow_id": workflow.get("id") if isinstance(workflow, dict) else None,
    }


def is_output_linked(index: int) -> bool:
    """Tell whether another node takes this output of the node that is being executed, or
    fingerprinted. True if nobody can know: outside of a prompt, and for nodes that another node
    made.
    """
    context = get_executing_context()
    item = _find_running(context.prompt_id) if context else None
    if context is None or item is None or context.node_id not in item[2]:
        return True
    link = [context.node_id, index]
    return any(link in node["inputs"].values() for node in item[2].values())


def has_waiting_prompts() -> bool:
    queue = PromptServer.instance.prompt_queue
    return queue.get_tasks_remaining() > len(queue.currently_running)


def queue_again() -> bool:
    """Put the prompt that is being executed at the end of the queue, under a new id. Return False
    outside of a prompt.
    """
    context = get_executing_context()
    item = _find_running(context.prompt_id) if context else None
    if item is None:
        return False
    queue = PromptServer.instance.prompt_queue
    last = max((waiting[0] for waiting in queue.queue), default=item[0])
    _, _, prompt, extra_data, *rest = copy.deepcopy(item)
    extra_data["create_time"] = int(time.time() * 1000)
    queue.put((max(last, item[0]) + 1, str(uuid.uuid4()), prompt, extra_data, *rest))
    return True


def _find_running(prompt_id: str) -> tuple | None:
    running = list(PromptServer.instance.prompt_queue.currently_running.values())
    return next((item for item in running if item[1] == prompt_id), None)
