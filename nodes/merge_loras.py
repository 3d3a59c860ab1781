"""Merge LoRAs: up to four LoRAs, each at its strength, as one."""

from typing import Any

from comfy_api.latest import io

from ..trainers.config import build_config
from ..trainers.lora.tools.config import MergeConfig
from .config_inputs import check_settings_order, make_settings_inputs
from .sockets import CATEGORY, ID_PREFIX

MAX_LORAS = 4
_STRENGTHS = tuple(f"strength_{number}" for number in range(1, MAX_LORAS + 1))
SETTINGS_ORDER = check_settings_order(  # append only
    (*_STRENGTHS, "rank", "norm_share", "save_dtype"), MergeConfig, also=_STRENGTHS
)


class MergeLoRAs(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=ID_PREFIX + "MergeLoRAs",
            display_name="Merge LoRAs (LoRA Trainer)",
            category=CATEGORY,
            description="Makes one LoRA of several: its effect is the sum of theirs, each at its strength. Exact, or "
            "cut to fewer ranks. LoHa and LoKr are taken too. Connect lora to Save LoRA.",
            search_aliases=["MergeLoRAs", "combine loras", "add loras", "lora merger", "lora stack"],
            inputs=[
                *(
                    io.LoraModel.Input(
                        f"lora_{number}",
                        optional=number > 2,
                        tooltip="A LoRA, from LoRA Info, Train LoRA or any node that outputs LORA_MODEL.",
                    )
                    for number in range(1, MAX_LORAS + 1)
                ),
                *make_settings_inputs(
                    SETTINGS_ORDER, MergeConfig, visible={*_STRENGTHS, "rank"}, own=map(_make_strength, _STRENGTHS)
                ),
            ],
            outputs=[
                io.LoraModel.Output("lora", tooltip="The merged LoRA."),
                io.String.Output("text", tooltip="Its modules, ranks, and how much was cut off."),
            ],
        )

    @classmethod
    def execute(cls, **inputs: Any) -> io.NodeOutput:
        from ..trainers.lora.tools.made_lora import merge_loras
        from ..trainers.lora.tools.merge import MergeSource
        from .host.lora_tools import as_graph_lora, read_graph_lora
        from .host.progress import show_text

        loras = {number: inputs.get(f"lora_{number}") for number in range(1, MAX_LORAS + 1)}
        sources = [
            MergeSource(
                read_graph_lora(lora, f"lora_{number}"), inputs.get(f"strength_{number}", 1.0), f"lora_{number}"
            )
            for number, lora in loras.items()
            if lora is not None
        ]
        made = merge_loras(sources, build_config(MergeConfig, inputs), title="merged")
        show_text(made.text)
        return io.NodeOutput(as_graph_lora(made), made.text, ui={"text": [made.text]})


def _make_strength(name: str) -> io.Input:
    return io.Float.Input(
        name,
        default=1.0,
        min=-100.0,
        max=100.0,
        step=0.01,
        optional=True,
        tooltip="Strength of this LoRA in the merged one. 1: as trained; usually 0.3 to 1. Negative values take its "
        "effect away.",
    )
