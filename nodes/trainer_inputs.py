"""Inputs and outputs that the nodes of the pack's own trainers share."""

from typing import Any

from comfy_api.latest import io

from ..trainers.sdxl.config import SDXLConfig
from ..trainers.training.config import AUTO_SCHEDULER, DEFAULT_SAMPLER
from ..trainers.training.presets import GOALS, MEMORY_PRESETS
from .config_inputs import find_help_text, make_file_input
from .host import folders
from .host.ksampler import list_samplers, list_schedulers
from .open_settings import AUTO
from .sockets import TrainingSettings


def make_preset_inputs(*, goal_note: str = "", memory_note: str = "") -> list[io.Input]:
    """Make goal and memory. The notes follow the presets' numbers in the tooltips."""
    return [
        io.Combo.Input(
            "goal",
            options=list(GOALS),
            default="object",
            optional=True,
            tooltip="What the LoRA should learn. Decides the settings that are left at 0. "
            f"{_describe_presets(GOALS)}.{goal_note}",
        ),
        make_memory_input(note=memory_note),
    ]


def make_memory_input(*, note: str = "") -> io.Input:
    return io.Combo.Input(
        "memory",
        options=[AUTO, *MEMORY_PRESETS],
        default=AUTO,
        optional=True,
        tooltip="Memory of the GPU. Decides the settings that are left at 0 or auto. auto: the memory of "
        "this GPU. "
        f"{_describe_presets(MEMORY_PRESETS)}.{note}",
    )


def _describe_presets(presets: dict[str, Any]) -> str:
    return "; ".join(f"{name}: {preset.text()}" for name, preset in presets.items())


def make_run_inputs() -> list[io.Input]:
    """Make the inputs of a run that are no settings of its training, and those whose choices are
    ComfyUI's.
    """
    return [
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=2**53 - 1,  # the largest integer that a browser stores exactly
            # The front end's own default would train again with every Run.
            control_after_generate=io.ControlAfterGenerate.fixed,
            optional=True,
            tooltip=find_help_text(SDXLConfig, "seed"),
        ),
        io.String.Input(
            "output_name",
            default="lora",
            optional=True,
            tooltip="Name of the run's folder in output/lora_trainer/runs and of the LoRA in it. The file that "
            "loaders list is named in Save LoRA.",
        ),
        io.Combo.Input(
            "resume",
            options=[AUTO, "new", *folders.list_runs()],
            default=AUTO,
            optional=True,
            advanced=True,
            tooltip="auto: goes on with a run of the same settings, images and model that was stopped, loads one that "
            "is finished, and extends one that had fewer steps. new: none of it. Or the run to go on with, whatever "
            "has changed.",
        ),
        io.Boolean.Input(
            "let_others_go_first",
            default=False,
            optional=True,
            advanced=True,
            tooltip="Pauses for prompts that wait in the queue, every two minutes at most, and goes on after them.",
        ),
        make_file_input(SDXLConfig, "network_weights", folders.list_starting_points()),
        _make_choice("sample_sampler", list_samplers(), default=DEFAULT_SAMPLER),
        _make_choice("sample_scheduler", [AUTO_SCHEDULER, *list_schedulers()], default=AUTO_SCHEDULER),
    ]


def _make_choice(name: str, options: list[str], *, default: str) -> io.Input:
    return io.Combo.Input(
        name,
        options=options,
        default=default,
        optional=True,
        advanced=True,
        tooltip=find_help_text(SDXLConfig, name),
    )


def make_settings_socket() -> io.Input:
    return TrainingSettings.Input(
        "settings",
        optional=True,
        tooltip="From Settings of a LoRA. They replace goal, memory and the values above, except seed, "
        "mixed_precision, network_weights, resume, let_others_go_first and the names that begin with "
        "output_, save_ and sample_.",
    )


def make_outputs() -> list[io.Output]:
    return [
        io.Model.Output("model", tooltip="The input model with the LoRA at strength 1."),
        io.Clip.Output("clip", tooltip="The input text encoders with the LoRA at strength 1."),
        io.LoraModel.Output("lora", tooltip="The LoRA, for Save LoRA and Apply LoRA."),
        io.LossMap.Output("loss", tooltip="The loss of every optimizer step, for Plot Loss Graph."),
        io.String.Output("path", tooltip="Full path of the LoRA in the run's folder."),
        io.Int.Output("steps", tooltip="Number of optimizer steps trained."),
    ]


def to_node_output(trained: Any) -> io.NodeOutput:
    """Return the outputs of a TrainedInGraph."""
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
        },  # no images, so that the last preview with the whole curve stays on the node
    )
