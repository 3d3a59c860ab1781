"""Resize LoRA: a LoRA cut to fewer ranks by its singular values."""

from typing import Any

from comfy_api.latest import io

from ..trainers.config import build_config
from ..trainers.lora.tools.config import ResizeConfig
from .config_inputs import check_settings_order, make_settings_inputs
from .sockets import CATEGORY, ID_PREFIX

SETTINGS_ORDER = check_settings_order(("rank", "norm_share", "save_dtype"), ResizeConfig)  # append only


class ResizeLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=ID_PREFIX + "ResizeLoRA",
            display_name="Resize LoRA (LoRA Trainer)",
            category=CATEGORY,
            description="Cuts a LoRA to its largest singular values, module by module: a smaller file with almost the "
            "same effect. It says how much was cut off. LoHa and LoKr become LoRA.",
            search_aliases=["ResizeLoRA", "reduce rank", "compress lora", "svd", "lora rank", "smaller lora"],
            inputs=[
                io.LoraModel.Input("lora", tooltip="From LoRA Info, Train LoRA or any node that outputs LORA_MODEL."),
                *make_settings_inputs(SETTINGS_ORDER, ResizeConfig, visible={"rank", "norm_share"}),
            ],
            outputs=[
                io.LoraModel.Output("lora", tooltip="The smaller LoRA."),
                io.String.Output("text", tooltip="Its modules, ranks, and how much was cut off."),
            ],
        )

    @classmethod
    def execute(cls, lora: Any, **settings: Any) -> io.NodeOutput:
        from ..trainers.lora.tools.made_lora import resize_lora
        from .host.lora_tools import as_graph_lora, read_graph_lora
        from .host.progress import show_text

        made = resize_lora(read_graph_lora(lora, "lora"), build_config(ResizeConfig, settings), label="lora")
        show_text(made.text)
        return io.NodeOutput(as_graph_lora(made), made.text, ui={"text": [made.text]})
