"""Extract LoRA: the difference of two models as a LoRA, whatever made it."""

from typing import Any

from comfy_api.latest import io

from ..trainers.config import build_config
from ..trainers.lora.tools.config import ExtractConfig
from .config_inputs import check_settings_order, make_settings_inputs
from .sockets import CATEGORY, ID_PREFIX

SETTINGS_ORDER = check_settings_order(("rank", "norm_share", "save_dtype"), ExtractConfig)  # append only


class ExtractLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=ID_PREFIX + "ExtractLoRA",
            display_name="Extract LoRA (LoRA Trainer)",
            category=CATEGORY,
            description="Makes a LoRA of the difference of two models of the same kind: a fine-tune minus its base, a "
            "merge, or a model with any LoRAs, DoRAs or LoKrs on it. Any model that ComfyUI loads.",
            search_aliases=["ExtractLoRA", "lora from checkpoint", "model difference", "subtract models", "lora save"],
            inputs=[
                io.Model.Input("model", tooltip="The changed model, with all its LoRAs and merges."),
                io.Model.Input("model_base", tooltip="The model that it was made from."),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="The changed text encoders. Without them the LoRA changes the model only.",
                ),
                io.Clip.Input("clip_base", optional=True, tooltip="The text encoders that they were made from."),
                *make_settings_inputs(SETTINGS_ORDER, ExtractConfig, visible={"rank"}),
            ],
            outputs=[
                io.LoraModel.Output("lora", tooltip="The LoRA, for Save LoRA and Apply LoRA."),
                io.String.Output("text", tooltip="Its modules, ranks, and how much of the difference is not in it."),
            ],
        )

    @classmethod
    def execute(
        cls, model: Any, model_base: Any, clip: Any = None, clip_base: Any = None, **settings: Any
    ) -> io.NodeOutput:
        from .host.lora_tools import extract_in_graph

        config = build_config(ExtractConfig, settings)
        lora, text = extract_in_graph((model, clip), (model_base, clip_base), config, title="extracted")
        return io.NodeOutput(lora, text, ui={"text": [text]})
