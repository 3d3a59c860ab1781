"""Train LoRA: the trainer for the graph's MODEL, whichever it is, on its MODEL, CLIP and VAE."""

from dataclasses import fields
from typing import Any

from comfy_api.latest import io

from ..trainers.dataset.bucket_config import BucketConfig
from ..trainers.dataset.caption_variants import CaptionConfig
from ..trainers.files.names import check_output_name
from ..trainers.flow.config import FlowConfig
from ..trainers.flow.families import FAMILIES
from ..trainers.packages import require_packages
from ..trainers.sdxl.config import SDXLConfig
from .config_inputs import check_settings_order, make_settings_inputs
from .host.progress import STARTING, show_text
from .open_settings import AUTO, OPEN_SETTINGS, replace_by_earlier
from .sockets import CATEGORY, ID_PREFIX, TrainingDataset
from .trainer_inputs import make_outputs, make_preset_inputs, make_run_inputs, make_settings_socket, to_node_output

_VISIBLE = {"max_train_steps", "learning_rate", "rank", "resolution"}
# Append only.
SETTINGS_ORDER = check_settings_order(
    (
        "rank",
        "learning_rate",
        "max_train_steps",
        "resolution",
        "seed",
        "output_name",
        "alpha",
        "train_batch_size",
        "optimizer",
        "mixed_precision",
        "target_modules",
        "lora_dropout",
        "num_train_epochs",
        "gradient_accumulation_steps",
        "gradient_checkpointing",
        "max_grad_norm",
        "lr_scheduler",
        "lr_warmup_steps",
        "lr_num_cycles",
        "weight_decay",
        "optimizer_args",
        "timestep_sampling",
        "sigmoid_scale",
        "logit_mean",
        "logit_std",
        "discrete_flow_shift",
        "loss_weighting",
        "noise_offset",
        "caption_dropout",
        "save_every_n_steps",
        "save_every_n_epochs",
        "save_dtype",
        "sample_every_n_steps",
        "sample_prompt",
        "resize_mode",
        "random_flip",
        "bucket_no_upscale",
        "bucket_reso_steps",
        "min_bucket_reso",
        "max_bucket_reso",
        "network_weights",
        "unmasked_weight",
        "normalize_masked_loss",
        "prior_loss_weight",
        "class_prompt",
        "extra_resolutions",
        "shuffle_captions",
        "keep_tokens",
        "caption_separator",
        "tag_dropout",
        "num_caption_variants",
        "use_wildcards",
        "resume",
        "save_state_every_n_minutes",
        "ema_decay",
        "step_down_on_oom",
        "let_others_go_first",
        "validation_share",
        "validate_every_n_steps",
        "save_best",
        "early_stop",
        "sample_negative_prompt",
        "sample_seeds",
        "sample_steps",
        "sample_guidance_scale",
        "sample_size",
        "train_text_encoders",
        "text_encoder_learning_rate",
        "text_encoder_2_learning_rate",
        "min_snr_gamma",
        "prediction_type",
        "zero_terminal_snr",
        "min_timestep",
        "max_timestep",
        "blocks_to_swap",
        "lr_decay_steps",
        "snr_weighting",
        "loss_type",
        "huber_c",
        "huber_schedule",
        "multires_noise_iterations",
        "multires_noise_discount",
        "ip_noise_gamma",
        "immiscible_noise",
        "stop_text_encoder_training",
        "torch_compile",
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
        "tlora_min_rank",
        "init_lora_weights",
        "sample_sampler",
        "sample_scheduler",
    ),
    SDXLConfig,
    FlowConfig,
    BucketConfig,
    CaptionConfig,
    also=("output_name", "resume", "let_others_go_first"),
)


def _list_own(config: type, other: type) -> list[str]:
    """List the parameters that only the first config has."""
    others = {spec.name for spec in fields(other)}
    return [spec.name for spec in fields(config) if spec.name not in others]


_BY_MODEL = "from the model; for SDXL, from goal"
_OPEN_SETTINGS = {**OPEN_SETTINGS, "rank": _BY_MODEL, "learning_rate": _BY_MODEL}
_NOTES = {
    **{name: "Only for SDXL." for name in _list_own(SDXLConfig, FlowConfig)},
    **{name: "Not for SDXL." for name in _list_own(FlowConfig, SDXLConfig)},
    "target_modules": "SDXL takes attention, attention_mlp (auto), b-lora, b-lora-content and b-lora-style too.",
    "mixed_precision": "Only for SDXL: others compute in the data type that the graph has loaded them in.",
}


class TrainLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=ID_PREFIX + "TrainLoRA",
            # The editor's search ranks by this name alone: "lora train" must find it first.
            display_name="LoRA Trainer: Train LoRA",
            category=CATEGORY,
            description="Trains a LoRA on the model that is loaded in the graph, whichever it is: "
            f"SDXL, {', '.join(row.name for row in FAMILIES)} and others. It takes the graph's own weights, without a "
            "second copy of them. The next node can use the result at once; everything is also kept in "
            "output/lora_trainer/runs.",
            search_aliases=[
                "TrainLoRA",
                "train lora",
                "lora train",
                "lora trainer",
                "lora training",
                "fine-tune",
                "finetune",
                "dreambooth",
                "SDXL",
                *(row.name for row in FAMILIES),
                "flux",
                "flux klein",
                "z-image",
                "zimage",
                "qwen",
                "wan",
                "hunyuan",
                "sd3",
                "kohya",
                "ai-toolkit",
            ],
            has_intermediate_output=True,
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="Diffusion model from any loader. Merges and LoRAs on it are part of the frozen base: a "
                    "training adapter for a distilled model goes here.",
                ),
                io.Clip.Input("clip", tooltip="The model's text encoders, as for sampling."),
                io.Vae.Input("vae", tooltip="The model's VAE."),
                TrainingDataset.Input(
                    "dataset", tooltip="From Load Images or a node after it: usually 10 to 200 images with captions."
                ),
                *make_preset_inputs(
                    goal_note=" For other models than SDXL, rank and learning rate come from the model.",
                    memory_note=" Other models than SDXL train single images, accumulated to the same number, with "
                    "gradient checkpointing.",
                ),
                *make_settings_inputs(
                    SETTINGS_ORDER,
                    SDXLConfig,
                    FlowConfig,
                    BucketConfig,
                    CaptionConfig,
                    visible=_VISIBLE,
                    open_settings=_OPEN_SETTINGS,
                    own=make_run_inputs(),
                    notes=_NOTES,
                ),
                make_settings_socket(),
                io.Model.Input(
                    "apply_to",
                    optional=True,
                    tooltip="The model that gets the finished LoRA, where a training adapter is on the one that is "
                    "trained: the same model without it. Not connected: the input model.",
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
        dataset: Any,
        goal: str = "object",
        memory: str = AUTO,
        output_name: str = "lora",
        resume: str = AUTO,
        let_others_go_first: bool = False,
        settings: Any = None,
        apply_to: Any = None,
        **widgets: Any,
    ) -> io.NodeOutput:
        # diffusers and peft take seconds to import: not before they are needed
        show_text(STARTING)
        require_packages()
        from .host.graph_training import TrainingRequest
        from .host.trainer_choice import train_on_any_model
        from .host.weights import GraphModel

        request = TrainingRequest(
            GraphModel(model, clip, vae),
            dataset,
            goal=goal,
            memory=memory,
            output_name=output_name,
            settings=replace_by_earlier(widgets, settings),
            resume=resume,
            is_polite=let_others_go_first,
            apply_to=apply_to,
        )
        return to_node_output(train_on_any_model(request))
