"""Flight Check: a dataset and the settings of its training, judged and drawn before anything is
loaded.
"""

from typing import Any

from comfy_api.latest import io

from ..trainers.config import field_names
from ..trainers.dataset.bucket_config import BucketConfig
from ..trainers.dataset.caption_variants import CaptionConfig
from ..trainers.sdxl.check.flight_check import FlightCheckConfig
from ..trainers.sdxl.config import SDXLConfig
from ..trainers.sdxl.presets import GOALS, MEMORY_PRESETS
from .config_inputs import AUTO, config_inputs
from .sockets import CATEGORY, ID_PREFIX, TrainingDataset
from .train_sdxl import OPEN_SETTINGS

_VISIBLE = {"max_train_steps", "rank", "resolution", "train_batch_size"}
# What decides the steps, the memory, the time, the disk or the texts.
_TRAINING_SETTINGS = {
    *(
        "rank",
        "max_train_steps",
        "train_batch_size",
        "optimizer",
        "mixed_precision",
        "target_modules",
        "num_train_epochs",
        "gradient_accumulation_steps",
    ),
    *(
        "gradient_checkpointing",
        "train_text_encoders",
        "save_every_n_steps",
        "save_every_n_epochs",
        "save_dtype",
        "prior_loss_weight",
        "class_prompt",
    ),
}


class FlightCheck(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=ID_PREFIX + "FlightCheck",
            display_name="Flight Check (LoRA Trainer)",
            category=CATEGORY,
            description="Checks pictures, captions and settings before the training, without loading a model: "
            "buckets, cropping, near-duplicates, "
            "captions, steps, memory, time and disk. Put it between Load Images and Train LoRA, with the same "
            "settings: it stops the run at errors.",
            search_aliases=[
                "FlightCheck",
                "check dataset",
                "dataset report",
                "buckets",
                "duplicates",
                "vram estimate",
                "preflight",
            ],
            is_output_node=True,
            inputs=[
                TrainingDataset.Input(
                    "dataset", tooltip="What Train LoRA is to get: usually 10 to 200 pictures with captions."
                ),
                io.Combo.Input(
                    "goal",
                    options=list(GOALS),
                    default="object",
                    optional=True,
                    tooltip="As in Train LoRA: decides the settings that are left at 0.",
                ),
                io.Combo.Input(
                    "memory",
                    options=[AUTO, *MEMORY_PRESETS],
                    default=AUTO,
                    optional=True,
                    tooltip="As in Train LoRA: decides the settings that are left open. auto: the memory that the "
                    "GPU has.",
                ),
                *config_inputs(FlightCheckConfig, auto={}, visible={"stop_at"}),
                *config_inputs(
                    SDXLConfig,
                    auto=OPEN_SETTINGS,
                    leave_out=set(field_names(SDXLConfig)) - _TRAINING_SETTINGS,
                    visible=_VISIBLE,
                ),
                *config_inputs(BucketConfig, auto=OPEN_SETTINGS, visible=_VISIBLE),
                *config_inputs(CaptionConfig, auto={}),
            ],
            outputs=[
                TrainingDataset.Output("dataset", tooltip="The dataset that came in: for Train LoRA."),
                io.String.Output("report", tooltip="Numbers and findings as text."),
                io.Image.Output("picture", tooltip="The report as a picture, 1280 pixels wide."),
            ],
        )

    @classmethod
    def execute(cls, dataset: Any, goal: str = "object", memory: str = AUTO, **settings: Any) -> io.NodeOutput:
        # torch and diffusers take seconds to import: not before they are needed
        from .host.flight_check import check_in_graph

        checked = check_in_graph(dataset, goal=goal, memory=memory, settings=settings)
        return io.NodeOutput(
            dataset,
            checked.text,
            checked.picture,
            ui={**checked.preview(cls), "text": [checked.text], "lora_trainer": [checked.facts]},
        )
