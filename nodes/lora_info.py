"""LoRA Info: says what a LoRA is, and loads a file as LORA_MODEL for the other LoRA nodes."""

from typing import Any

from comfy_api.latest import io

from .host import folders
from .sockets import CATEGORY, ID_PREFIX


class LoRAInfo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=ID_PREFIX + "LoRAInfo",
            display_name="LoRA Info (LoRA Trainer)",
            category=CATEGORY,
            description="Says what a LoRA is: modules, ranks, strength, base model, trigger words, training, hashes. "
            "It gives a file of the list as LORA_MODEL, for Merge LoRAs, Resize LoRA, Apply LoRA and Save LoRA.",
            search_aliases=[
                "LoRAInfo",
                "lora metadata",
                "trigger words",
                "load lora file",
                "lora hash",
                "LORA_MODEL",
                "safetensors header",
            ],
            is_output_node=True,
            inputs=[
                io.Combo.Input(
                    "lora_name",
                    options=[folders.NONE, *folders.list_starting_points()],
                    default=folders.NONE,
                    optional=True,
                    tooltip="A LoRA file, or a checkpoint of an earlier run. Not used if lora is connected.",
                ),
                io.LoraModel.Input(
                    "lora", optional=True, tooltip="A LoRA from Train LoRA or any node that outputs LORA_MODEL."
                ),
            ],
            outputs=[
                io.LoraModel.Output("lora", tooltip="The LoRA, with its header."),
                io.String.Output("text", tooltip="What the node shows."),
                io.String.Output("trigger_words", tooltip="Its trigger words; empty if its header names none."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, lora_name: str | None = None, **_: Any) -> Any:
        """Another value if the file was replaced. What comes over a link is None here."""
        if lora_name in (None, folders.NONE):
            return lora_name
        status = folders.find_starting_point(lora_name).stat()
        return status.st_mtime_ns, status.st_size

    @classmethod
    def execute(cls, lora_name: str = folders.NONE, lora: Any = None) -> io.NodeOutput:
        from ..trainers.lora.tools.summary import find_trigger_words, format_facts, list_facts
        from .host.lora_tools import load_graph_lora, read_graph_lora
        from .host.progress import show_text

        if lora is None and lora_name == folders.NONE:
            raise ValueError("Choose a LoRA, or connect lora")
        found = lora if lora is not None else load_graph_lora(folders.find_starting_point(lora_name))
        content = read_graph_lora(found, "lora" if lora is not None else lora_name)
        text = format_facts(list_facts(content, found))
        show_text(text)
        return io.NodeOutput(found, text, find_trigger_words(content.metadata), ui={"text": [text]})
