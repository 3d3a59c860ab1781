"""Train LoRA (SDXL): the trainer of trainers/sdxl on the graph's MODEL, CLIP and VAE."""

from typing import Any

from comfy_api.latest import io

from ..trainers.config import field_names
from ..trainers.dataset.bucket_config import BucketConfig
from ..trainers.dataset.caption_variants import CaptionConfig
from ..trainers.files.names import check_output_name
from ..trainers.sdxl.config import SDXLConfig
from ..trainers.sdxl.presets import GOALS, MEMORY_PRESETS
from .config_inputs import AUTO, config_inputs
from .host import folders
from .sockets import CATEGORY, ID_PREFIX, TrainingDataset

FROM_GOAL, FROM_MEMORY = "from goal", "from memory"
# What a preset decides while its widget is left open.
OPEN_SETTINGS = {
    "max_train_steps": f"{FROM_GOAL}, by the number of pictures",
    **dict.fromkeys(("rank", "alpha", "learning_rate"), FROM_GOAL),
    **dict.fromkeys(
        ("resolution", "train_batch_size", "gradient_accumulation_steps", "gradient_checkpointing", "optimizer"),
        FROM_MEMORY,
    ),
}
_VISIBLE = {"max_train_steps", "learning_rate", "rank", "resolution"}
_OWN = {"seed", "network_weights"}
# Parameters that came after the first release: saved graphs store widget values by position, so
# their inputs stand at the very end.
_ADDED_LATER = {"unmasked_weight", "normalize_masked_loss", "prior_loss_weight", "class_prompt", "extra_resolutions"}


def _preset_lines(presets: dict[str, Any]) -> str:
    return "; ".join(f"{name}: {preset.text()}" for name, preset in presets.items())


def _settings_inputs() -> list[io.Input]:
    """The visible ones first, then what is advanced, in the order of the configs; new ones go to
    the end.
    """
    leave_out = _OWN | _VISIBLE | _ADDED_LATER
    own = [
        *config_inputs(
            SDXLConfig,
            auto=OPEN_SETTINGS,
            leave_out={spec for spec in SDXLConfig.__dataclass_fields__ if spec not in _VISIBLE},
            visible=_VISIBLE,
        ),
        *config_inputs(
            BucketConfig,
            auto=OPEN_SETTINGS,
            leave_out={spec for spec in BucketConfig.__dataclass_fields__ if spec not in _VISIBLE},
            visible=_VISIBLE,
        ),
    ]
    advanced = [
        *config_inputs(SDXLConfig, auto=OPEN_SETTINGS, leave_out=leave_out),
        *config_inputs(BucketConfig, auto=OPEN_SETTINGS, leave_out=leave_out),
    ]
    return [*own, *_run_inputs(), *advanced, _network_weights(), *_added_later()]


def _added_later() -> list[io.Input]:
    return [
        *config_inputs(SDXLConfig, auto={}, leave_out=set(field_names(SDXLConfig)) - _ADDED_LATER),
        *config_inputs(BucketConfig, auto={}, leave_out=set(field_names(BucketConfig)) - _ADDED_LATER),
        *config_inputs(CaptionConfig, auto={}),
    ]


def _run_inputs() -> list[io.Input]:
    return [
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=2**53 - 1,  # what a browser counts exactly
            # the front end's own default would train anew with every Run
            control_after_generate=io.ControlAfterGenerate.fixed,
            optional=True,
            tooltip="Seed of everything random in the run. The same seed, settings, pictures and machine give the "
            "same LoRA.",
        ),
        io.String.Input(
            "output_name",
            default="lora",
            optional=True,
            tooltip="Name of the run's folder in output/lora_trainer/runs, and of the LoRA in it. Save LoRA names "
            "the file that loaders list.",
        ),
    ]


def _network_weights() -> io.Input:
    return io.Combo.Input(
        "network_weights",
        options=[folders.NONE, *folders.lora_files()],
        default=folders.NONE,
        optional=True,
        advanced=True,
        tooltip="LoRA file to start from, of the same rank and layers.",
    )


class LoRATrainSDXL(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=ID_PREFIX + "LoRATrainSDXL",
            display_name="Train LoRA (SDXL)",
            category=CATEGORY,
            description="Trains a LoRA on the SDXL model that is loaded in the graph. The result can be used by the "
            "next node at once; "
            "everything is also kept in output/lora_trainer/runs.",
            search_aliases=[
                "LoRATrainSDXL",
                "train lora",
                "sdxl trainer",
                "kohya",
                "dreambooth",
                "fine-tune",
                "finetune",
            ],
            has_intermediate_output=True,
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="SDXL base model, from any loader, merged or with LoRAs on it: they are part of the "
                    "frozen base.",
                ),
                io.Clip.Input("clip", tooltip="Its two text encoders (CLIP-L and CLIP-G)."),
                io.Vae.Input("vae", tooltip="Its VAE."),
                TrainingDataset.Input(
                    "dataset", tooltip="From Load Images or a node after it: usually 10 to 200 pictures with captions."
                ),
                io.Combo.Input(
                    "goal",
                    options=list(GOALS),
                    default="object",
                    optional=True,
                    tooltip="What is to be learned; decides the settings that are left open (0). "
                    f"{_preset_lines(GOALS)}.",
                ),
                io.Combo.Input(
                    "memory",
                    options=[AUTO, *MEMORY_PRESETS],
                    default=AUTO,
                    optional=True,
                    tooltip="Memory of the GPU; decides the settings that are left open. auto: what it has. "
                    f"{_preset_lines(MEMORY_PRESETS)}.",
                ),
                *_settings_inputs(),
            ],
            outputs=[
                io.Model.Output("model", tooltip="The model that came in, with the LoRA at strength 1."),
                io.Clip.Output("clip", tooltip="The text encoders that came in, with the LoRA at strength 1."),
                io.LoraModel.Output("lora", tooltip="The LoRA, for Save LoRA and Apply LoRA."),
                io.LossMap.Output("loss", tooltip="The loss of every optimizer step, for Plot Loss Graph."),
                io.String.Output("path", tooltip="Full path of the LoRA in the run's folder."),
                io.Int.Output("steps", tooltip="Optimizer steps that were trained."),
            ],
        )

    @classmethod
    def validate_inputs(
        cls,
        output_name: str | None = None,
        resolution: int | None = None,
        max_bucket_reso: int | None = None,
        extra_resolutions: str | None = None,
        caption_separator: str | None = None,
    ) -> bool | str:
        """Values are None while they come over a link, or are not given."""
        try:
            check_output_name("lora" if output_name is None else output_name)
            BucketConfig(
                resolution=resolution or 1024,
                max_bucket_reso=max_bucket_reso or 2048,
                extra_resolutions=extra_resolutions or "",
            )
            CaptionConfig(caption_separator="," if caption_separator is None else caption_separator)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        dataset: Any,
        goal: str = "object",
        memory: str = AUTO,
        output_name: str = "lora",
        **settings: Any,
    ) -> io.NodeOutput:
        # diffusers and peft take seconds to import: not before they are needed
        from .host.training import train_sdxl
        from .host.weights import GraphModel

        trained = train_sdxl(
            GraphModel(model, clip, vae), dataset, goal=goal, memory=memory, output_name=output_name, settings=settings
        )
        return io.NodeOutput(
            trained.model,
            trained.clip,
            trained.lora,
            {"loss": trained.result.losses},
            str(trained.result.path),
            trained.result.steps,
            ui={
                "text": [trained.summary],
                "lora_trainer": [trained.facts()],
            },  # no images: the last preview, the whole curve, stays on the node
        )
