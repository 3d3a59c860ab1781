"""Train Slider LoRA (SDXL): a slider from two prompts, on the graph's MODEL and CLIP."""

from typing import Any

from comfy_api.latest import io

from ..trainers.dataset.bucket_config import BucketConfig
from ..trainers.files.names import check_output_name
from ..trainers.packages import require_packages
from ..trainers.sdxl.slider.config import NOT_FOR_SLIDERS, SliderConfig
from .config_inputs import check_settings_order, make_settings_inputs
from .host.progress import STARTING, show_text
from .open_settings import AUTO, FROM_MEMORY
from .sockets import CATEGORY, ID_PREFIX
from .trainer_inputs import make_memory_input, make_outputs, make_run_inputs, to_node_output

_VISIBLE = {"target", "positive", "negative", "max_train_steps", "learning_rate", "rank", "resolution"}
# Append only.
SETTINGS_ORDER = check_settings_order(
    (
        "target",
        "positive",
        "negative",
        "rank",
        "learning_rate",
        "max_train_steps",
        "resolution",
        "seed",
        "output_name",
        "attributes",
        "slider_guidance",
        "num_drawings",
        "prior_loss_weight",
        "class_prompt",
        "alpha",
        "train_batch_size",
        "optimizer",
        "mixed_precision",
        "target_modules",
        "lora_dropout",
        "gradient_accumulation_steps",
        "gradient_checkpointing",
        "max_grad_norm",
        "lr_scheduler",
        "lr_warmup_steps",
        "lr_num_cycles",
        "lr_decay_steps",
        "weight_decay",
        "optimizer_args",
        "min_snr_gamma",
        "snr_weighting",
        "prediction_type",
        "zero_terminal_snr",
        "timestep_sampling",
        "sigmoid_scale",
        "logit_mean",
        "logit_std",
        "min_timestep",
        "max_timestep",
        "loss_type",
        "huber_c",
        "huber_schedule",
        "save_every_n_steps",
        "save_dtype",
        "sample_every_n_steps",
        "sample_prompt",
        "sample_negative_prompt",
        "sample_seeds",
        "sample_steps",
        "sample_guidance_scale",
        "sample_size",
        "network_weights",
        "resume",
        "save_state_every_n_minutes",
        "ema_decay",
        "step_down_on_oom",
        "let_others_go_first",
        "blocks_to_swap",
        "adapter",
        "lokr_factor",
        "lokr_decompose_both",
        "lokr_full_matrix",
        "use_rslora",
        "conv_rank",
        "conv_alpha",
        "rank_dropout",
        "module_dropout",
        "scale_weight_norms",
        "network_reg_dims",
        "network_reg_lrs",
        "loraplus_lr_ratio",
        "init_lora_weights",
        "sample_sampler",
        "sample_scheduler",
    ),
    SliderConfig,
    some_of=(BucketConfig,),
    also=("output_name", "resume", "let_others_go_first"),
    elsewhere=NOT_FOR_SLIDERS,
)


class TrainSlider(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=ID_PREFIX + "TrainSlider",
            display_name="LoRA Trainer: Train Slider LoRA (SDXL)",
            category=CATEGORY,
            description="Trains a slider on the SDXL model that is loaded in the graph, from two prompts and without "
            "images: a LoRA that leads to the one at strength 1 and to the other at -1. Everything is also kept in "
            "output/lora_trainer/runs.",
            search_aliases=[
                "TrainSlider",
                "slider",
                "slider lora",
                "concept slider",
                "concept sliders",
                "text slider",
                "train slider",
                "LECO",
            ],
            has_intermediate_output=True,
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="SDXL base model from any loader. Merges and LoRAs on it are part of the frozen base.",
                ),
                io.Clip.Input("clip", tooltip="Its two text encoders (CLIP-L and CLIP-G)."),
                io.Vae.Input("vae", tooltip="Its VAE, which only sample images need."),
                make_memory_input(),
                *make_settings_inputs(
                    SETTINGS_ORDER,
                    SliderConfig,
                    BucketConfig,
                    visible=_VISIBLE,
                    open_settings=FROM_MEMORY,
                    own=make_run_inputs(),
                ),
            ],
            outputs=make_outputs(),
        )

    @classmethod
    def validate_inputs(cls, output_name: str | None = None) -> bool | str:
        """One name only, as in the other nodes: ComfyUI (0.33) puts the one message on every input
        that is named here.
        """
        try:
            check_output_name("lora" if output_name is None else output_name)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        memory: str = AUTO,
        output_name: str = "lora",
        resume: str = AUTO,
        let_others_go_first: bool = False,
        **widgets: Any,
    ) -> io.NodeOutput:
        # diffusers and peft take seconds to import: not before they are needed
        show_text(STARTING)
        require_packages()
        from .host.graph_training import TrainingRequest
        from .host.sdxl_training import train_slider
        from .host.weights import GraphModel

        request = TrainingRequest(
            GraphModel(model, clip, vae),
            None,
            goal="",
            memory=memory,
            output_name=output_name,
            settings=widgets,
            resume=resume,
            is_polite=let_others_go_first,
        )
        return to_node_output(train_slider(request))
