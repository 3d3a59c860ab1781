"""Settings of a LoRA: what an earlier LoRA was trained with, for Train LoRA and Flight Check."""

from typing import Any

from comfy_api.latest import io

from ..trainers.dataset.bucket_config import BucketConfig
from ..trainers.dataset.caption_variants import CaptionConfig
from ..trainers.flow.config import FlowConfig
from ..trainers.sdxl.config import SDXLConfig
from .host import folders
from .sockets import CATEGORY, ID_PREFIX, TrainingSettings


class LoRASettings(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=ID_PREFIX + "TrainingSettings",
            display_name="Settings of a LoRA (LoRA Trainer)",
            category=CATEGORY,
            description="Reads the settings that a LoRA was trained with from its file, for Train LoRA, Train LoRA "
            "(SDXL) and Flight Check: all of them for a LoRA of this pack, those that exist here for one of kohya's "
            "scripts. It lists what it does not take.",
            search_aliases=[
                "TrainingSettings",
                "lora metadata",
                "read lora settings",
                "kohya settings",
                "same settings",
            ],
            is_output_node=True,
            inputs=[
                io.Combo.Input(
                    "lora",
                    options=[folders.NONE, *folders.list_starting_points()],
                    default=folders.NONE,
                    optional=True,
                    tooltip="A LoRA file, or a checkpoint of an earlier run.",
                ),
            ],
            outputs=[
                TrainingSettings.Output("settings", tooltip="For the input settings of Train LoRA and Flight Check."),
                io.String.Output("text", tooltip="The settings, and what was not taken, as text."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, lora: str = folders.NONE) -> Any:
        if lora == folders.NONE:
            return lora
        status = folders.find_starting_point(lora).stat()
        return status.st_mtime_ns, status.st_size

    @classmethod
    def execute(cls, lora: str = folders.NONE) -> io.NodeOutput:
        if lora == folders.NONE:
            raise ValueError("Choose a LoRA to take the settings from")
        from ..trainers.training.earlier_settings import read_earlier_settings

        configs = (SDXLConfig, FlowConfig, BucketConfig, CaptionConfig)
        earlier = read_earlier_settings(folders.find_starting_point(lora), configs)
        return io.NodeOutput(earlier, earlier.text(), ui={"text": [earlier.text()]})
