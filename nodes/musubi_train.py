"""Train LoRA (Musubi Tuner): the trainer of trainers/musubi, with the model files that ComfyUI
lists.

The choice of the architecture brings the inputs that depend on it: its model files, its options,
and settings with its recommended defaults.
"""

from typing import Any

from comfy_api.latest import io
from comfy_execution.graph import ExecutionBlocker

from ..trainers.files.names import check_output_name
from ..trainers.musubi.architectures import ARCHITECTURES, Architecture, ModelFile, Option
from ..trainers.musubi.config import MusubiConfig
from .config_inputs import check_settings_order, make_file_input, make_settings_inputs
from .host import folders, musubi_files
from .host.progress import STARTING, show_text
from .sockets import CATEGORY, ID_PREFIX, TrainingDataset

# The settings that the choice of an architecture brings; fp8 and blocks_to_swap only if it has
# them.
ARCHITECTURE_ORDER = (
    "rank",
    "learning_rate",
    "resolution",
    "fp8",
    "timestep_sampling",
    "discrete_flow_shift",
    "blocks_to_swap",
)
# Append only.
SETTINGS_ORDER = check_settings_order(
    (
        "max_train_steps",
        "seed",
        "output_name",
        "alpha",
        "train_batch_size",
        "caption_source",
        "optimizer",
        "optimizer_args",
        "lr_scheduler",
        "lr_warmup_steps",
        "gradient_accumulation_steps",
        "gradient_checkpointing",
        "max_grad_norm",
        "network_dropout",
        "loraplus_lr_ratio",
        "exclude_patterns",
        "include_patterns",
        "mixed_precision",
        "fp8_text_encoder",
        "attention",
        "weighting_scheme",
        "extra_resolutions",
        "bucket_no_upscale",
        "max_data_loader_n_workers",
        "save_every_n_steps",
        "keep_last_n_checkpoints",
        "save_state",
        "save_dtype",
        "sample_every_n_steps",
        "sample_prompts",
        "base_weights_multiplier",
        "network_weights",
        "base_weights",
        "resume",
        "dataset_toml",
    ),
    MusubiConfig,
    also=("output_name", "dataset_toml"),
    elsewhere=ARCHITECTURE_ORDER,
)
_VISIBLE = {"rank", "learning_rate", "resolution", "max_train_steps", "seed"}


def _make_choice(architecture: Architecture) -> io.DynamicCombo.Option:
    return io.DynamicCombo.Option(
        architecture.name,
        [
            *(_make_model_input(architecture, file) for file in architecture.models),
            *map(_make_option_input, architecture.options),
            *_make_recommended_inputs(architecture),
        ],
    )


def _make_model_input(architecture: Architecture, file: ModelFile) -> io.Input:
    """Make the input of a model file. A required file has no "[None]": if none is chosen, ComfyUI
    itself refuses the prompt.
    """
    files = musubi_files.list_model_files(file.folder)
    options = files if file.required else [folders.NONE, *files]
    tooltip = f"{file.help} From models/{file.folder}."
    return io.Combo.Input(
        file.name,
        options=options,
        default=musubi_files.guess_file(architecture, file, files),
        optional=not file.required,
        tooltip=tooltip,
    )


def _make_option_input(option: Option) -> io.Input:
    return io.Combo.Input(
        option.name, options=list(option.choices), default=option.default, optional=True, tooltip=option.help
    )


def _make_recommended_inputs(architecture: Architecture) -> list[io.Input]:
    entries: dict[str, Any] = {
        entry.id: entry for entry in make_settings_inputs(ARCHITECTURE_ORDER, MusubiConfig, visible=_VISIBLE)
    }
    for name, value in architecture.defaults.items():
        if name in entries:
            entries[name].default = value
    entries["resolution"].step = architecture.resolution_step
    entries["blocks_to_swap"].max = architecture.max_blocks_to_swap
    without = {
        name
        for name, has in (("fp8", architecture.fp8_arguments), ("blocks_to_swap", architecture.max_blocks_to_swap))
        if not has
    }
    return [entry for name, entry in entries.items() if name not in without]


def _make_own_inputs() -> list[io.Input]:
    entries = make_settings_inputs(
        SETTINGS_ORDER,
        MusubiConfig,
        visible=_VISIBLE,
        own=[_make_output_name(), *_make_file_inputs(), _make_dataset_toml()],
    )
    by_name: dict[str, Any] = {entry.id: entry for entry in entries}
    # The front end's own default would train again with every Run.
    by_name["seed"].control_after_generate = io.ControlAfterGenerate.fixed
    by_name["sample_prompts"].multiline = True  # one per line
    return entries


def _make_output_name() -> io.Input:
    return io.String.Input(
        "output_name",
        default="lora",
        optional=True,
        tooltip="Name of the run's folder in output/lora_trainer/runs and of the LoRA in it. The file that "
        "loaders list is named in Save LoRA.",
    )


def _make_dataset_toml() -> io.Input:
    return io.String.Input(
        "dataset_toml",
        default="",
        multiline=True,
        optional=True,
        advanced=True,
        tooltip="Instead of dataset: a complete dataset configuration of Musubi Tuner, for several folders or "
        "for videos. It is checked before anything starts.",
    )


def _make_file_inputs() -> list[io.Input]:
    """Make the inputs of the LoRAs and states that a run starts from. They are lists, so that a
    workflow cannot name files elsewhere.
    """
    lists = {
        "network_weights": musubi_files.list_raw_loras(),
        "base_weights": folders.list_lora_files(),
        "resume": musubi_files.list_states(),
    }
    return [make_file_input(MusubiConfig, name, files) for name, files in lists.items()]


class MusubiTrain(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=ID_PREFIX + "MusubiTrain",
            # ranked as in train_sdxl.py
            display_name="LoRA Trainer: Train LoRA (Musubi Tuner)",
            category=CATEGORY,
            description="Trains a LoRA for Z-Image, Krea 2, Qwen-Image, FLUX.2, Wan and others with Musubi Tuner, "
            "which must be installed next to ComfyUI: the node Musubi Doctor says whether it is found. "
            "Everything is kept in output/lora_trainer/runs.",
            search_aliases=[
                "MusubiTrain",
                "musubi",
                "train lora",
                "lora train",
                "lora trainer",
                "lora training",
                "z-image",
                "krea",
                "qwen-image",
                "flux",
                "wan",
                "hunyuan",
                "hidream",
                "kandinsky",
                "ideogram",
            ],
            has_intermediate_output=True,
            # Lets us refuse inputs of another architecture, which ComfyUI would drop silently.
            accept_all_inputs=True,
            inputs=[
                TrainingDataset.Input(
                    "dataset",
                    optional=True,
                    tooltip="From Load Images or a node after it: usually 10 to 200 images, each with a caption. Or "
                    "give dataset_toml.",
                ),
                TrainingDataset.Input(
                    "control",
                    optional=True,
                    tooltip="For editing models only, from a second Load Images: the source image of each image in the "
                    "dataset, in a file of the same name.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="Model of the same architecture, which gets the finished LoRA. It is not trained on.",
                ),
                io.DynamicCombo.Input(
                    "architecture",
                    options=[_make_choice(architecture) for architecture in ARCHITECTURES.values()],
                    tooltip="Kind of model to train for. Its model files and the settings that it recommends appear "
                    "below.",
                ),
                *_make_own_inputs(),
            ],
            outputs=[
                io.Model.Output("model", tooltip="The input model with the LoRA at strength 1."),
                io.LoraModel.Output("lora", tooltip="The LoRA, for Save LoRA and Apply LoRA."),
                io.LossMap.Output("loss", tooltip="The loss of every optimizer step, for Plot Loss Graph."),
                io.String.Output("path", tooltip="Full path of the LoRA in the run's folder."),
                io.Int.Output("steps", tooltip="Number of optimizer steps trained."),
            ],
        )

    @classmethod
    def validate_inputs(cls, output_name: str | None = None, *, architecture: Any = None) -> bool | str:
        """output_name is None when it is left out, or comes on a link. ComfyUI always gives the
        dynamic `architecture`; as a keyword-only argument it keeps ComfyUI's own check of it.
        """
        try:
            check_output_name("lora" if output_name is None else output_name)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls,
        architecture: Any = None,
        dataset: Any = None,
        control: Any = None,
        model: Any = None,
        output_name: str = "lora",
        dataset_toml: str = "",
        **settings: Any,
    ) -> io.NodeOutput:
        show_text(STARTING)
        from .host.musubi import MusubiInputs, train_with_musubi

        given = MusubiInputs(architecture, settings, dataset=dataset, control=control, dataset_toml=dataset_toml)
        trained = train_with_musubi(given, model, output_name=output_name)
        nothing = ExecutionBlocker(
            "Train LoRA (Musubi Tuner) has no model to apply the LoRA to. Connect its model input"
        )
        return io.NodeOutput(
            nothing if trained.model is None else trained.model,
            trained.lora,
            {"loss": trained.result.losses},
            str(trained.result.path),
            trained.result.steps,
            ui={"text": [trained.summary], "lora_trainer": [trained.facts()]},
        )
