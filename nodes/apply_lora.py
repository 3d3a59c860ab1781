"""Apply LoRA: applies a LORA_MODEL to MODEL and CLIP, since core's node leaves out the text
encoders.
"""

from typing import Any

from comfy_api.latest import io

from .sockets import CATEGORY, ID_PREFIX

_STRENGTH: dict[str, Any] = {"default": 1.0, "min": -100.0, "max": 100.0, "step": 0.01, "optional": True}


class ApplyLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=ID_PREFIX + "ApplyLoRA",
            display_name="Apply LoRA (LoRA Trainer)",
            category=CATEGORY,
            description="Applies a LoRA that was just trained to MODEL and CLIP, at any strength. For LoRA files "
            "use ComfyUI's Load LoRA.",
            search_aliases=["ApplyLoRA", "load lora model", "lora strength"],
            inputs=[
                io.Model.Input("model", tooltip="The model to change: the same kind as the LoRA was trained on."),
                io.LoraModel.Input(
                    "lora",
                    tooltip="From Train LoRA, or from any node that outputs LORA_MODEL, with any names that ComfyUI's "
                    "LoRA loaders read.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="The text encoders to change. Without them, the LoRA's part for them is not used.",
                ),
                io.Float.Input(
                    "strength_model",
                    tooltip="Strength in the UNet. 1: as trained; 0: none; usually 0.5 to 1.2. Negative values invert "
                    "it.",
                    **_STRENGTH,
                ),
                io.Float.Input(
                    "strength_clip",
                    tooltip="Strength in the text encoders. 1: as trained; 0: none; usually 0.5 to 1.2. Without "
                    "effect if they were not trained.",
                    **_STRENGTH,
                ),
            ],
            outputs=[
                io.Model.Output("model", tooltip="The model with the LoRA."),
                io.Clip.Output("clip", tooltip="The text encoders with the LoRA; empty if none came in."),
            ],
        )

    @classmethod
    def execute(
        cls, model: Any, lora: dict[str, Any], clip: Any = None, strength_model: float = 1.0, strength_clip: float = 1.0
    ) -> io.NodeOutput:
        from .host.lora import apply_lora

        patched_model, patched_clip, _ = apply_lora(
            model, clip, lora, strength_model=strength_model, strength_clip=strength_clip
        )
        return io.NodeOutput(patched_model, patched_clip)
