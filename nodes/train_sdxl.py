"""Train LoRA (SDXL): the trainer of trainers/sdxl on the graph's MODEL, CLIP and VAE."""

from typing import Any

from comfy_api.latest import io

from ..trainers.dataset.bucket_config import BucketConfig
from ..trainers.dataset.caption_variants import CaptionConfig
from ..trainers.files.names import check_output_name
from ..trainers.packages import require_packages
from ..trainers.sdxl.config import SDXLConfig
from .config_inputs import check_settings_order, make_settings_inputs
from .host.progress import STARTING, show_text
from .open_settings import AUTO, OPEN_SETTINGS, replace_by_earlier
from .sockets import CATEGORY, ID_PREFIX, TrainingDataset
from .trainer_inputs import make_outputs, make_preset_inputs, make_run_inputs, make_settings_socket, to_node_output

_VISIBLE = {"max_train_steps", "learning_rate", "rank", "resolution"}
# Append only. Flight Check has an order too.
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
        "train_text_encoders",
        "text_encoder_learning_rate",
        "text_encoder_2_learning_rate",
        "min_snr_gamma",
        "noise_offset",
        "caption_dropout",
        "prediction_type",
        "zero_terminal_snr",
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
        "blocks_to_swap",
        "lr_decay_steps",
        "timestep_sampling",
        "sigmoid_scale",
        "logit_mean",
        "logit_std",
        "min_timestep",
        "max_timestep",
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
    BucketConfig,
    CaptionConfig,
    also=("output_name", "resume", "let_others_go_first"),
)


class LoRATrainSDXL(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=ID_PREFIX + "LoRATrainSDXL",
            # The editor's search ranks by this name alone: "lora train" must find it first.
            display_name="LoRA Trainer: Train LoRA (SDXL)",
            category=CATEGORY,
            description="Trains a LoRA on the SDXL model that is loaded in the graph, without a second copy of it. "
            "The next node can use the result at once; everything is also kept in "
            "output/lora_trainer/runs.",
            search_aliases=[
                "LoRATrainSDXL",
                "train lora",
                "lora train",
                "lora trainer",
                "lora training",
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
                    tooltip="SDXL base model from any loader. Merges and LoRAs on it are part of the frozen base. fp8 "
                    "and ComfyUI's own quantized weights stay as they are: half the memory of an fp16 file or less, "
                    "and steps take somewhat longer. GGUF and others are refused.",
                ),
                io.Clip.Input("clip", tooltip="Its two text encoders (CLIP-L and CLIP-G)."),
                io.Vae.Input("vae", tooltip="Its VAE."),
                TrainingDataset.Input(
                    "dataset", tooltip="From Load Images or a node after it: usually 10 to 200 images with captions."
                ),
                *make_preset_inputs(),
                *make_settings_inputs(
                    SETTINGS_ORDER,
                    SDXLConfig,
                    BucketConfig,
                    CaptionConfig,
                    visible=_VISIBLE,
                    open_settings=OPEN_SETTINGS,
                    own=make_run_inputs(),
                ),
                make_settings_socket(),
            ],
            outputs=make_outputs(),
        )

    @classmethod
    def validate_inputs(cls, output_name: str | None = None) -> bool | str:
        """None while it comes over a link, or is not given.

        One name only, here and in the other nodes: ComfyUI (0.33) puts the one message on every
        input that is named here. It checks numbers and choices itself; what settings must be
        together is checked before anything is loaded.
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
        **widgets: Any,
    ) -> io.NodeOutput:
        # diffusers and peft take seconds to import: not before they are needed
        show_text(STARTING)
        require_packages()
        from .host.graph_training import TrainingRequest
        from .host.sdxl_training import train_sdxl
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
        )
        return to_node_output(train_sdxl(request))
