"""Compare Checkpoints: draws LoRAs, strengths, prompts and seeds as one labelled grid, and hands on
the chosen LoRA.
"""

from typing import Any

from comfy_api.latest import io

from ..trainers.compare.config import CompareConfig, parse_strengths
from ..trainers.config import build_config
from .config_inputs import check_settings_order, make_settings_inputs
from .host.ksampler import list_samplers, list_schedulers
from .sockets import CATEGORY, ID_PREFIX

_VISIBLE = {"strengths", "seeds", "steps", "width", "height"}
_OWN = (
    "run",
    "loras",
    "prompts",
    "cfg",
    "sampler_name",
    "scheduler",
    "choose",
    "choose_strength",
)
SETTINGS_ORDER = check_settings_order(  # append only
    (
        "run",
        "loras",
        "strengths",
        "prompts",
        "negative_prompt",
        "seeds",
        "steps",
        "cfg",
        "sampler_name",
        "scheduler",
        "width",
        "height",
        "choose",
        "choose_strength",
        "show_base",
    ),
    CompareConfig,
    elsewhere={"guidance_scale"},  # cfg
    also=_OWN,
)


def _make_own_inputs() -> list[io.Input]:
    return [
        io.String.Input(
            "run",
            default="",
            optional=True,
            tooltip="A run: the name of its folder in output/lora_trainer/runs, or the path of a LoRA in it, such as "
            "Train LoRA's path output. All its checkpoints and its final LoRA are compared, in the order of steps.",
        ),
        io.String.Input(
            "loras",
            default="",
            multiline=True,
            optional=True,
            tooltip="More LoRAs, one in each line: a name as LoRA loaders list it, the path of a .safetensors file, or "
            "the name of a run.",
        ),
        io.String.Input(
            "prompts",
            default="",
            multiline=True,
            optional=True,
            tooltip="One prompt in each line, at least one. The word trigger in curly brackets stands for the trigger "
            "word in the LoRA's header.",
        ),
        *_make_sampler_inputs(),
        io.Int.Input(
            "choose",
            default=0,
            min=0,
            max=1000,
            optional=True,
            tooltip="Which LoRA goes on: its number in the grid. 0: the last one. Changing it does not draw the grid "
            "again.",
        ),
        io.Float.Input(
            "choose_strength",
            default=1.0,
            min=-100.0,
            max=100.0,
            step=0.01,
            optional=True,
            tooltip="Strength of the chosen LoRA in the model and clip outputs. 1: as trained; usually 0.5 to 1.2. "
            "Changing it does not draw the grid again.",
        ),
    ]


def _make_sampler_inputs() -> list[io.Input]:
    return [
        io.Float.Input(
            "cfg",
            default=5.0,
            min=0.0,
            max=100.0,
            step=0.1,
            optional=True,
            tooltip="How strongly an image follows its prompt, as in KSampler. Usually 4 to 8.",
        ),
        io.Combo.Input(
            "sampler_name",
            options=list_samplers(),
            default="euler",
            optional=True,
            advanced=True,
            tooltip="Sampler, as in KSampler.",
        ),
        io.Combo.Input(
            "scheduler",
            options=list_schedulers(),
            default="normal",
            optional=True,
            advanced=True,
            tooltip="Noise schedule, as in KSampler.",
        ),
    ]


class CompareCheckpoints(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=ID_PREFIX + "CompareCheckpoints",
            display_name="Compare Checkpoints (LoRA Trainer)",
            category=CATEGORY,
            description="Draws any number of LoRAs at any strengths, with the same prompts and seeds, as one labelled "
            "grid. The one that you choose goes on as MODEL, CLIP and LoRA.",
            search_aliases=[
                "CompareCheckpoints",
                "compare lora",
                "xy plot",
                "lora grid",
                "best checkpoint",
                "lora strength",
                "epochs",
            ],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The model without these LoRAs: the kind that they were trained on."),
                io.Clip.Input("clip", tooltip="Its text encoders."),
                io.Vae.Input("vae", tooltip="Its VAE."),
                io.LoraModel.Input(
                    "lora",
                    optional=True,
                    tooltip="One more LoRA, from Train LoRA or any node that outputs LORA_MODEL. It is the last one in "
                    "the grid.",
                ),
                *make_settings_inputs(SETTINGS_ORDER, CompareConfig, visible=_VISIBLE, own=_make_own_inputs()),
            ],
            outputs=[
                io.Image.Output("grid", tooltip="All images with their labels, at most 40 megapixels."),
                io.Model.Output("model", tooltip="The model with the chosen LoRA."),
                io.Clip.Output("clip", tooltip="The text encoders with the chosen LoRA."),
                io.LoraModel.Output("lora", tooltip="The chosen LoRA, for Save LoRA and Apply LoRA."),
                io.String.Output("path", tooltip="Full path of its file; empty for one from a link."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, run: str | None = None, loras: str | None = None, **_: Any) -> Any:
        """Another value if a file was added or replaced. What comes over a link is None here."""
        from .host.contenders import fingerprint

        return fingerprint(run or "", loras or "")

    @classmethod
    def validate_inputs(cls, strengths: str | None = None) -> bool | str:
        """None while it comes over a link, or is not given."""
        try:
            parse_strengths("1" if strengths is None else strengths)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        lora: Any = None,
        run: str = "",
        loras: str = "",
        prompts: str = "",
        cfg: float = 5.0,
        sampler_name: str = "euler",
        scheduler: str = "normal",
        choose: int = 0,
        choose_strength: float = 1.0,
        **settings: Any,
    ) -> io.NodeOutput:
        from .host.compare import Choice, compare_in_graph
        from .host.contenders import find_contenders
        from .host.grid_drawing import GraphModels
        from .host.ksampler import SamplerSettings

        config = build_config(CompareConfig, settings)
        compared = compare_in_graph(
            GraphModels(model, clip, vae),
            find_contenders(run, loras, lora),
            prompts=prompts,
            config=config,
            sampler=SamplerSettings(config.steps, cfg, sampler_name, scheduler, config.negative_prompt),
            choice=Choice(choose, choose_strength),
        )
        return io.NodeOutput(
            compared.image,
            compared.model,
            compared.clip,
            compared.lora,
            compared.path,
            ui={"images": [compared.preview], "text": [compared.text], "lora_trainer": [compared.facts]},
        )
