"""Flight Check: reports on a dataset and the settings of its training before anything is loaded."""

from typing import Any

from comfy_api.latest import io

from ..trainers.check.config import FlightCheckConfig
from ..trainers.dataset.bucket_config import BucketConfig
from ..trainers.dataset.caption_variants import CaptionConfig
from ..trainers.packages import require_packages
from ..trainers.sdxl.config import SDXLConfig
from ..trainers.training.presets import GOALS, MEMORY_PRESETS
from .config_inputs import check_settings_order, make_file_input, make_settings_inputs
from .host import folders
from .host.progress import STARTING, show_text
from .open_settings import AUTO, OPEN_SETTINGS, replace_by_earlier
from .sockets import CATEGORY, ID_PREFIX, TrainingDataset, TrainingSettings

_VISIBLE = {"stop_at", "max_train_steps", "rank", "resolution", "train_batch_size"}
# Append only. From SDXLConfig, it takes the settings that affect steps, memory, time, disk space or
# texts.
SETTINGS_ORDER = check_settings_order(
    (
        "stop_at",
        "find_near_duplicates",
        "rank",
        "max_train_steps",
        "train_batch_size",
        "optimizer",
        "mixed_precision",
        "target_modules",
        "num_train_epochs",
        "gradient_accumulation_steps",
        "gradient_checkpointing",
        "train_text_encoders",
        "save_every_n_steps",
        "save_every_n_epochs",
        "save_dtype",
        "prior_loss_weight",
        "class_prompt",
        "resolution",
        "resize_mode",
        "random_flip",
        "bucket_no_upscale",
        "bucket_reso_steps",
        "min_bucket_reso",
        "max_bucket_reso",
        "extra_resolutions",
        "shuffle_captions",
        "keep_tokens",
        "caption_separator",
        "tag_dropout",
        "num_caption_variants",
        "use_wildcards",
        "validation_share",
        "save_best",
        "ema_decay",
        "save_state_every_n_minutes",
        "sample_every_n_steps",
        "blocks_to_swap",
        "adapter",
        "lokr_factor",
        "lokr_decompose_both",
        "lokr_full_matrix",
        "conv_rank",
        "network_weights",
    ),
    FlightCheckConfig,
    BucketConfig,
    CaptionConfig,
    some_of=(SDXLConfig,),
)


class FlightCheck(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=ID_PREFIX + "FlightCheck",
            display_name="Flight Check (LoRA Trainer)",
            category=CATEGORY,
            description="Checks images, captions and settings before training: buckets, "
            "cropping, near-duplicates, captions, steps, memory, time and disk. Put it between Load "
            "Images and Train LoRA, with the same settings: it stops the run at errors.",
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
                    "dataset", tooltip="The dataset for Train LoRA: usually 10 to 200 images with captions."
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
                    tooltip="As in Train LoRA: decides the settings that are left at 0 or auto. auto: the memory of "
                    "this GPU.",
                ),
                *make_settings_inputs(
                    SETTINGS_ORDER,
                    FlightCheckConfig,
                    SDXLConfig,
                    BucketConfig,
                    CaptionConfig,
                    visible=_VISIBLE,
                    open_settings=OPEN_SETTINGS,
                    own=[make_file_input(SDXLConfig, "network_weights", folders.list_starting_points())],
                ),
                TrainingSettings.Input(
                    "settings", optional=True, tooltip="From Settings of a LoRA: the same as in Train LoRA."
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The model that is trained, whichever it is: sizes, memory, time and the length of "
                    "captions are judged for it. Not connected: SDXL.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="The model's text encoders: captions are counted with their tokenizer, and they encode an "
                    "empty one, which tells whether they are this model's. SDXL needs none.",
                ),
            ],
            outputs=[
                TrainingDataset.Output("dataset", tooltip="The same dataset, for Train LoRA."),
                io.String.Output("report", tooltip="Numbers and findings as text."),
                io.Image.Output("picture", tooltip="The report as an image, 1280 pixels wide."),
            ],
        )

    @classmethod
    def execute(
        cls,
        dataset: Any,
        goal: str = "object",
        memory: str = AUTO,
        settings: Any = None,
        model: Any = None,
        clip: Any = None,
        **widgets: Any,
    ) -> io.NodeOutput:
        # torch and diffusers take seconds to import: not before they are needed
        show_text(STARTING)
        require_packages()
        from .host.flight_check import CheckRequest, check_in_graph

        chosen = replace_by_earlier(widgets, settings)
        checked = check_in_graph(CheckRequest(dataset, goal, memory, chosen, model, clip))
        return io.NodeOutput(
            dataset,
            checked.text,
            checked.image,
            ui={**checked.preview(cls), "text": [checked.text], "lora_trainer": [checked.facts]},
        )
