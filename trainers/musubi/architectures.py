"""The architectures that Musubi Tuner trains on images, one row each. To add one, add a row."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Stage = Literal["latents", "text", "train"]

# The version that the table, all commands and the parsers recorded for the tests are written for.
MUSUBI_VERSION = "0.3.4"
ALL_STAGES: tuple[Stage, ...] = ("latents", "text", "train")
HALF_AND_FULL = ("BF16", "F16", "F32")


@dataclass(frozen=True)
class ModelFile:
    """A file that the user picks from ComfyUI's list `folder`. `flag` is Musubi's flag for it in
    the scripts of `stages`.

    `weight_dtypes` are the number formats that its large tensors may have, as safetensors headers
    name them. `only_with` names an option and the only value with which the file is used (and then
    it is required). `may_be_pickled`: Musubi also reads a .pt or .pth file here, without running
    code from it (weights_only).
    """

    name: str
    flag: str
    folder: Literal["diffusion_models", "vae", "text_encoders", "clip_vision"]
    help: str
    stages: tuple[Stage, ...]
    required: bool = True
    weight_dtypes: tuple[str, ...] = HALF_AND_FULL
    only_with: tuple[str, str] | None = None
    may_be_pickled: bool = False


@dataclass(frozen=True)
class Variant:
    """One value of an option, and what differs with it. `value` is Musubi's name for it, if that is
    not `name`.
    """

    name: str
    value: str = ""
    max_blocks_to_swap: int | None = None
    tokenizers: tuple[str, ...] = ()
    has_fp8_text_encoder: bool = True
    max_control_images: int | None = None
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True)
class Option:
    """A choice that only this architecture has. `flag` is Musubi's flag for it in the scripts of
    `stages`.
    """

    name: str
    flag: str
    variants: tuple[Variant, ...]
    default: str
    help: str
    stages: tuple[Stage, ...] = ALL_STAGES

    @property
    def choices(self) -> tuple[str, ...]:
        return tuple(variant.name for variant in self.variants)

    def find_variant(self, name: str) -> Variant:
        return next(variant for variant in self.variants if variant.name == name)


@dataclass(frozen=True)
class Architecture:
    """A row of the table.

    - defaults: the values of MusubiConfig's open settings.
    - fixed_arguments: arguments that the scripts always get, by stage.
    - fp8_arguments: arguments of the training script for 8-bit model weights. Empty: the file
      already has 8-bit weights, or they are not possible.
    - fp8_text_encoder: flag of the text and training scripts for an 8-bit text encoder; "": none.
    - resolution_step: resolutions must be multiples of it.
    - control_images: whether images come with the prompt. max_control_images: how many per image;
      0: any number.
    - conversion: how Musubi's file becomes one that ComfyUI loads whole: not at all, by one of
      Musubi's scripts, or by our own renaming.
    - key_pattern: matches the whole name of each module in the file for ComfyUI, without endings
      such as `.lora_down.weight`.
    - num_modules: how many modules Musubi trains in the full-size model; 0: it varies.
    - tokenizers: Hugging Face repositories that Musubi downloads on its first run.
    - precision_follows_dit: mixed_precision must be the number format of the model file.
    - allows_weighting: weighting_scheme may be something other than none.
    - swap_needs_single_images: blocks_to_swap with control images or flash_attn needs
      train_batch_size 1.
    - excluded_by_default: layers that Musubi leaves out unless exclude_patterns are given.
    """

    name: str
    title: str
    cache_latents: str
    cache_text: str
    train: str
    models: tuple[ModelFile, ...]
    network_module: str
    defaults: Mapping[str, Any]
    max_blocks_to_swap: int
    key_pattern: str
    options: tuple[Option, ...] = ()
    fixed_arguments: Mapping[Stage, tuple[str, ...]] = field(default_factory=dict)
    arguments_without_control: tuple[str, ...] = ()
    arguments_with_control: tuple[str, ...] = ()
    fp8_arguments: tuple[str, ...] = ("--fp8_base", "--fp8_scaled")
    fp8_text_encoder: str = ""
    resolution_step: int = 16
    control_images: Literal["none", "optional", "required"] = "none"
    max_control_images: int = 0
    conversion: Literal["none", "convert_lora", "hunyuan_video_1_5", "hidream_o1"] = "none"
    num_modules: int = 0
    tokenizers: tuple[str, ...] = ()
    precision_follows_dit: bool = False
    allows_weighting: bool = True
    swap_needs_single_images: bool = False
    excluded_by_default: tuple[str, ...] = ()

    def choose_variants(self, options: Mapping[str, str]) -> tuple[Variant, ...]:
        """Return the variant that each option chooses; options that are not given have defaults."""
        return tuple(option.find_variant(options.get(option.name, option.default)) for option in self.options)

    def find_swap_limit(self, options: Mapping[str, str]) -> int:
        """Return the largest number of blocks that can wait in main memory."""
        return next(
            (
                variant.max_blocks_to_swap
                for variant in self.choose_variants(options)
                if variant.max_blocks_to_swap is not None
            ),
            self.max_blocks_to_swap,
        )

    def find_control_limit(self, options: Mapping[str, str]) -> int:
        """Return the largest number of control images per image; 0: any number."""
        return next(
            (
                variant.max_control_images
                for variant in self.choose_variants(options)
                if variant.max_control_images is not None
            ),
            self.max_control_images,
        )

    def list_tokenizers(self, options: Mapping[str, str]) -> tuple[str, ...]:
        return self.tokenizers + tuple(
            repository for variant in self.choose_variants(options) for repository in variant.tokenizers
        )

    def has_fp8_text_encoder(self, options: Mapping[str, str]) -> bool:
        return bool(self.fp8_text_encoder) and all(
            variant.has_fp8_text_encoder for variant in self.choose_variants(options)
        )

    def fits(self, module: str) -> bool:
        """Return whether a module of a file for ComfyUI is named as in this architecture."""
        return re.fullmatch(self.key_pattern, module) is not None


def _dit(help: str, **changes: Any) -> ModelFile:
    return ModelFile("dit", "--dit", "diffusion_models", help, ("train",), **changes)


def _vae(help: str, **changes: Any) -> ModelFile:
    return ModelFile("vae", "--vae", "vae", help, ("latents", "train"), **changes)


def _text_encoder(help: str, *, name: str = "text_encoder", flag: str = "", **changes: Any) -> ModelFile:
    return ModelFile(name, flag or f"--{name}", "text_encoders", help, ("text", "train"), **changes)


def _defaults(
    *,
    rank: int = 32,
    learning_rate: float = 1e-4,
    resolution: int = 1024,
    timestep_sampling: str = "shift",
    discrete_flow_shift: float = 0.0,
) -> dict[str, Any]:
    return {
        "rank": rank,
        "learning_rate": learning_rate,
        "resolution": resolution,
        "timestep_sampling": timestep_sampling,
        "discrete_flow_shift": discrete_flow_shift,
    }


_Z_IMAGE = Architecture(
    name="z-image",
    title="Z-Image",
    cache_latents="zimage_cache_latents.py",
    cache_text="zimage_cache_text_encoder_outputs.py",
    train="zimage_train_network.py",
    models=(
        _dit("Z-Image model in bf16: the base model, De-Turbo, or Turbo with a training adapter as base_weights."),
        _vae("VAE of Z-Image and FLUX.1 (ae.safetensors)."),
        _text_encoder("Qwen3 4B (qwen_3_4b.safetensors)."),
    ),
    network_module="networks.lora_zimage",
    defaults=_defaults(discrete_flow_shift=2.0),
    fp8_text_encoder="--fp8_llm",
    max_blocks_to_swap=28,
    conversion="convert_lora",
    key_pattern=r"diffusion_model\.layers\.\d+\.(attention\.(to_[qkv]|to_out\.0)|feed_forward\.w[123])",
    num_modules=210,
    tokenizers=("Tongyi-MAI/Z-Image",),
)

_KREA_2 = Architecture(
    name="krea-2",
    title="Krea 2",
    cache_latents="krea2_cache_latents.py",
    cache_text="krea2_cache_text_encoder_outputs.py",
    train="krea2_train_network.py",
    models=(
        _dit("Krea 2 RAW in bf16. Train on RAW; the LoRA works with Turbo too."),
        _vae("VAE of Qwen-Image (qwen_image_vae.safetensors)."),
        _text_encoder("Qwen3-VL 4B (qwen3vl_4b_bf16.safetensors)."),
    ),
    network_module="networks.lora_krea2",
    defaults=_defaults(discrete_flow_shift=2.5),
    max_blocks_to_swap=26,
    key_pattern=r"lora_unet_((txtfusion_(layerwise|refiner)_)?blocks_\d+_(attn_(w[qkvo]|gate)|mlp_(down|gate|up))|first|last_linear|tmlp_\d|txtmlp_\d|tproj_\d|txtfusion_projector)",
    num_modules=264,
    tokenizers=("Qwen/Qwen3-VL-4B-Instruct",),
)

_QWEN_MODELS = (
    _vae("VAE of Qwen-Image (qwen_image_vae.safetensors)."),
    _text_encoder("Qwen2.5-VL 7B in bf16 (qwen_2.5_vl_7b.safetensors)."),
)
_QWEN_KEYS = (
    r"lora_unet_transformer_blocks_\d+_"
    r"(attn_(to_[qkv]|add_[qkv]_proj|to_out_0|to_add_out)|(img|txt)_(mlp_net_(0_proj|2)|mod_1))"
)

_QWEN_IMAGE = Architecture(
    name="qwen-image",
    title="Qwen-Image",
    cache_latents="qwen_image_cache_latents.py",
    cache_text="qwen_image_cache_text_encoder_outputs.py",
    train="qwen_image_train_network.py",
    models=(_dit("Qwen-Image in bf16 (qwen_image_bf16.safetensors)."), *_QWEN_MODELS),
    network_module="networks.lora_qwen_image",
    defaults=_defaults(rank=16, learning_rate=5e-5, discrete_flow_shift=2.2),
    fixed_arguments={stage: ("--model_version", "original") for stage in ALL_STAGES},
    fp8_text_encoder="--fp8_vl",
    max_blocks_to_swap=59,
    key_pattern=_QWEN_KEYS,
    num_modules=840,
    tokenizers=("Qwen/Qwen-Image",),
)

_QWEN_IMAGE_EDIT = Architecture(
    name="qwen-image-edit",
    title="Qwen-Image-Edit",
    cache_latents="qwen_image_cache_latents.py",
    cache_text="qwen_image_cache_text_encoder_outputs.py",
    train="qwen_image_train_network.py",
    models=(_dit("Qwen-Image-Edit in bf16, the version chosen in model_version."), *_QWEN_MODELS),
    options=(
        Option(
            "model_version",
            "--model_version",
            (Variant("edit", max_control_images=1), Variant("edit-2509"), Variant("edit-2511")),
            "edit-2511",
            "Version of Qwen-Image-Edit. edit takes one control image, the others take several.",
        ),
    ),
    network_module="networks.lora_qwen_image",
    defaults=_defaults(rank=16, learning_rate=5e-5, timestep_sampling="qwen_shift"),
    fp8_text_encoder="--fp8_vl",
    max_blocks_to_swap=59,
    control_images="required",
    key_pattern=_QWEN_KEYS,
    num_modules=840,
    tokenizers=("Qwen/Qwen-Image", "Qwen/Qwen-Image-Edit"),
)

_FLUX_2 = Architecture(
    name="flux-2",
    title="FLUX.2",
    cache_latents="flux_2_cache_latents.py",
    cache_text="flux_2_cache_text_encoder_outputs.py",
    train="flux_2_train_network.py",
    models=(
        _dit("FLUX.2 in bf16, the version chosen in model_version."),
        _vae(
            "VAE of FLUX.2 from Black Forest Labs: not FLUX.1's, which has the same name. Repackaged files may lack "
            "layers."
        ),
        _text_encoder("Qwen3 4B or 8B in bf16 for klein-4b or klein-9b, Mistral 3 for dev."),
    ),
    options=(
        Option(
            "model_version",
            "--model_version",
            (
                Variant("klein-base-4b", max_blocks_to_swap=13, tokenizers=("Qwen/Qwen3-4B",)),
                Variant("klein-base-9b", max_blocks_to_swap=16, tokenizers=("Qwen/Qwen3-8B",)),
                Variant("klein-4b", max_blocks_to_swap=13, tokenizers=("Qwen/Qwen3-4B",)),
                Variant("klein-9b", max_blocks_to_swap=16, tokenizers=("Qwen/Qwen3-8B",)),
                Variant(
                    "dev",
                    max_blocks_to_swap=29,
                    tokenizers=("mistralai/Mistral-Small-3.1-24B-Instruct-2503",),
                    has_fp8_text_encoder=False,
                ),
            ),
            "klein-base-4b",
            "Version of FLUX.2. The base versions are made for training; the others are distilled.",
        ),
    ),
    network_module="networks.lora_flux_2",
    excluded_by_default=(r".*(img_mod\.lin|txt_mod\.lin|modulation\.lin).*",),
    defaults=_defaults(timestep_sampling="flux2_shift"),
    fp8_text_encoder="--fp8_text_encoder",
    max_blocks_to_swap=29,
    control_images="optional",
    key_pattern=r"lora_unet_(double_blocks_\d+_(img|txt)_(attn_(qkv|proj)|mlp_[02])|single_blocks_\d+_linear[12])",
)

_FLUX_KONTEXT = Architecture(
    name="flux-kontext",
    title="FLUX.1 Kontext",
    cache_latents="flux_kontext_cache_latents.py",
    cache_text="flux_kontext_cache_text_encoder_outputs.py",
    train="flux_kontext_train_network.py",
    models=(
        _dit("FLUX.1 Kontext dev in bf16 (flux1-kontext-dev.safetensors)."),
        _vae("VAE of FLUX.1 (ae.safetensors)."),
        _text_encoder("T5-XXL in fp16 (t5xxl_fp16.safetensors).", name="text_encoder1"),
        _text_encoder("CLIP-L (clip_l.safetensors).", name="text_encoder2"),
    ),
    network_module="networks.lora_flux",
    excluded_by_default=(r".*(img_mod\.lin|txt_mod\.lin|modulation\.lin).*",),
    defaults=_defaults(timestep_sampling="flux_shift"),
    fp8_text_encoder="--fp8_t5",
    max_blocks_to_swap=34,
    control_images="required",
    max_control_images=1,
    key_pattern=r"lora_unet_(double_blocks_\d+_(img|txt)_(attn_(qkv|proj)|mlp_[02])|single_blocks_\d+_linear[12])",
    num_modules=228,
    tokenizers=("openai/clip-vit-large-patch14", "google/t5-v1_1-xxl"),
)

_HIDREAM_O1 = Architecture(
    name="hidream-o1",
    title="HiDream-O1",
    cache_latents="hidream_o1_cache_pixel.py",
    cache_text="hidream_o1_cache_text_encoder_outputs.py",
    train="hidream_o1_train_network.py",
    models=(_dit("HiDream-O1 in bf16, one file. It needs no VAE and no text encoder."),),
    options=(
        Option(
            "model_type",
            "--model_type",
            (
                Variant("full", tokenizers=("HiDream-ai/HiDream-O1-Image",)),
                Variant("dev", tokenizers=("HiDream-ai/HiDream-O1-Image-Dev",)),
            ),
            "full",
            "Version of HiDream-O1.",
            ("text", "train"),
        ),
    ),
    network_module="networks.lora_hidream_o1",
    defaults=_defaults(learning_rate=4e-5, timestep_sampling="uniform"),
    arguments_without_control=("--task", "t2i", "--skip_t2i_visual_dummy"),
    arguments_with_control=("--task", "i2i"),
    max_blocks_to_swap=35,
    resolution_step=32,
    control_images="optional",
    conversion="hidream_o1",
    swap_needs_single_images=True,
    key_pattern=(
        r"lora_unet_(language_model_layers_\d+_(self_attn_[qkvo]_proj|mlp_(down|gate|up)_proj)|final_layer2_linear|x_embedder_proj[12]"
        r"|visual_(blocks_\d+_(attn_(proj|qkv)|mlp_linear_fc[12])|merger_linear_fc[12]))"
    ),
    allows_weighting=False,
)

_IDEOGRAM_4 = Architecture(
    name="ideogram-4",
    title="Ideogram 4",
    cache_latents="ideogram4_cache_latents.py",
    cache_text="ideogram4_cache_text_encoder_outputs.py",
    train="ideogram4_train_network.py",
    models=(
        _dit(
            "Ideogram 4, only as fp8 (ideogram4_fp8_scaled.safetensors). Its licence is non-commercial.",
            weight_dtypes=("F8_E4M3",),
        ),
        _vae("VAE of Ideogram 4 (flux2-vae.safetensors)."),
        _text_encoder("Qwen3-VL 8B (qwen3vl_8b_fp8_scaled.safetensors).", weight_dtypes=("F8_E4M3", *HALF_AND_FULL)),
    ),
    network_module="networks.lora_ideogram4",
    defaults=_defaults(timestep_sampling="ideogram4_shift"),
    fp8_arguments=(),
    max_blocks_to_swap=33,
    key_pattern=r"lora_unet_layers_\d+_(attention_(qkv|o)|feed_forward_w[123])",
    num_modules=170,
    tokenizers=("Qwen/Qwen3-VL-8B-Instruct",),
    allows_weighting=False,
)

_KEEP_SHAPE = "--preserve_distribution_shape"
_WAN = Architecture(
    name="wan",
    title="Wan 2.1 / 2.2",
    cache_latents="wan_cache_latents.py",
    cache_text="wan_cache_text_encoder_outputs.py",
    train="wan_train_network.py",
    models=(
        _dit(
            "Wan text-to-video model in fp16 or bf16. For Wan 2.2 the low-noise model, or the high-noise one for "
            "t2v-A14B-high."
        ),
        ModelFile(
            "dit_high_noise",
            "--dit_high_noise",
            "diffusion_models",
            "Wan 2.2's high-noise model, for task t2v-A14B-both.",
            ("train",),
            required=False,
            only_with=("task", "t2v-A14B-both"),
        ),
        _vae("VAE of Wan 2.1 (wan_2.1_vae.safetensors), also for Wan 2.2 14B.", may_be_pickled=True),
        _text_encoder("UMT5-XXL in fp16 or bf16, not fp8 (umt5_xxl_fp16.safetensors).", name="t5", may_be_pickled=True),
    ),
    options=(
        Option(
            "task",
            "--task",
            (
                Variant("t2v-14B", max_blocks_to_swap=39),
                Variant("t2v-1.3B", max_blocks_to_swap=29),
                Variant("t2i-14B", max_blocks_to_swap=39),
                Variant(
                    "t2v-A14B-low",
                    "t2v-A14B",
                    max_blocks_to_swap=39,
                    arguments=("--min_timestep", "0", "--max_timestep", "875", _KEEP_SHAPE),
                ),
                Variant(
                    "t2v-A14B-high",
                    "t2v-A14B",
                    max_blocks_to_swap=39,
                    arguments=("--min_timestep", "875", "--max_timestep", "1000", _KEEP_SHAPE),
                ),
                Variant("t2v-A14B-both", "t2v-A14B", max_blocks_to_swap=39),
            ),
            "t2v-14B",
            "The model: Wan 2.1 14B or 1.3B, or Wan 2.2 (A14B), which has one model for low and one for high noise: "
            "train on one of them, or one LoRA on both.",
            ("train",),
        ),
    ),
    network_module="networks.lora_wan",
    defaults=_defaults(learning_rate=2e-4, resolution=768, discrete_flow_shift=3.0),
    fp8_text_encoder="--fp8_t5",
    max_blocks_to_swap=39,
    key_pattern=r"lora_unet_blocks_\d+_((self|cross)_attn_[qkvo]|ffn_[02])",
    tokenizers=("google/umt5-xxl",),
    precision_follows_dit=True,
)

_HUNYUAN_VIDEO = Architecture(
    name="hunyuan-video",
    title="HunyuanVideo",
    cache_latents="cache_latents.py",
    cache_text="cache_text_encoder_outputs.py",
    train="hv_train_network.py",
    models=(
        _dit("HunyuanVideo text-to-video model in bf16, with Tencent's layer names.", may_be_pickled=True),
        _vae("VAE of HunyuanVideo with Tencent's layer names.", may_be_pickled=True),
        _text_encoder("LLaVA-Llama3 in fp16 (llava_llama3_fp16.safetensors).", name="text_encoder1"),
        _text_encoder("CLIP-L (clip_l.safetensors).", name="text_encoder2"),
    ),
    network_module="networks.lora",
    defaults=_defaults(learning_rate=2e-4, resolution=768, discrete_flow_shift=7.0),
    fixed_arguments={
        "latents": ("--vae_chunk_size", "32", "--vae_tiling"),
        "train": ("--vae_chunk_size", "32", "--vae_tiling"),
    },
    fp8_arguments=("--fp8_base",),
    fp8_text_encoder="--fp8_llm",
    max_blocks_to_swap=36,
    conversion="convert_lora",
    key_pattern=r"diffusion_model\.(double_blocks\.\d+\.(img|txt)_(attn_(qkv|proj)|mlp\.fc[12])|single_blocks\.\d+\.linear[12])",
    num_modules=240,
    tokenizers=("xtuner/llava-llama-3-8b-v1_1-transformers", "openai/clip-vit-large-patch14"),
)

_HUNYUAN_VIDEO_1_5 = Architecture(
    name="hunyuan-video-1.5",
    title="HunyuanVideo 1.5",
    cache_latents="hv_1_5_cache_latents.py",
    cache_text="hv_1_5_cache_text_encoder_outputs.py",
    train="hv_1_5_train_network.py",
    models=(
        _dit("HunyuanVideo 1.5 text-to-video model in bf16, or in fp16 with mixed_precision fp16."),
        _vae("VAE of HunyuanVideo 1.5 (hunyuanvideo15_vae_fp16.safetensors)."),
        _text_encoder("Qwen2.5-VL 7B in bf16 (qwen_2.5_vl_7b.safetensors)."),
        _text_encoder("ByT5 small (byt5_small_glyphxl_fp16.safetensors).", name="byt5"),
    ),
    network_module="networks.lora_hv_1_5",
    defaults=_defaults(resolution=768, discrete_flow_shift=2.0),
    fixed_arguments={"train": ("--task", "t2v")},
    fp8_text_encoder="--fp8_vl",
    max_blocks_to_swap=51,
    conversion="hunyuan_video_1_5",
    key_pattern=r"lora_unet_double_blocks_\d+_(img|txt)_(attn_(qkv|proj)|mlp_[02]|mod_lin)",
    num_modules=756,
    tokenizers=("google/byt5-small", "Qwen/Qwen2.5-VL-7B-Instruct"),
    precision_follows_dit=True,
)

_KANDINSKY_QWEN, _KANDINSKY_CLIP = "Qwen/Qwen2.5-VL-7B-Instruct", "openai/clip-vit-large-patch14"
_KANDINSKY_TEXT = ("--text_encoder_qwen", _KANDINSKY_QWEN, "--text_encoder_clip", _KANDINSKY_CLIP)
_KANDINSKY_5 = Architecture(
    name="kandinsky-5",
    title="Kandinsky 5",
    cache_latents="kandinsky5_cache_latents.py",
    cache_text="kandinsky5_cache_text_encoder_outputs.py",
    train="kandinsky5_train_network.py",
    models=(
        _dit(
            "Kandinsky 5 text-to-video model in bf16, of the size chosen in task. Its text encoders are downloaded "
            "from Hugging Face."
        ),
        _vae("VAE of HunyuanVideo with Tencent's layer names.", may_be_pickled=True),
    ),
    options=(
        # Without k5-lite-t2i-hd: it needs FLUX's VAE, but Musubi caches the latents of every
        # Kandinsky model with HunyuanVideo's VAE.
        Option(
            "task",
            "--task",
            (
                Variant("k5-lite-t2v-5s-sd", max_blocks_to_swap=30),
                Variant("k5-lite-t2v-5s-pretrain-sd", max_blocks_to_swap=30),
                Variant("k5-pro-t2v-5s-sd", max_blocks_to_swap=58),
            ),
            "k5-lite-t2v-5s-sd",
            "The model, as Musubi names it.",
            ("train",),
        ),
    ),
    network_module="networks.lora_kandinsky",
    defaults=_defaults(resolution=512, discrete_flow_shift=5.0),
    fixed_arguments={"text": _KANDINSKY_TEXT, "train": (*_KANDINSKY_TEXT, "--scheduler_scale", "10.0")},
    fp8_arguments=("--fp8_base",),
    max_blocks_to_swap=58,
    key_pattern=r"lora_unet_(text|visual)_transformer_blocks_\d+_((self|cross)_attention_(to_(query|key|value)|out_layer)|feed_forward_(in|out)_layer)",
    tokenizers=(_KANDINSKY_QWEN, _KANDINSKY_CLIP),
)

ARCHITECTURES: dict[str, Architecture] = {
    row.name: row
    for row in (
        _Z_IMAGE,
        _KREA_2,
        _QWEN_IMAGE,
        _QWEN_IMAGE_EDIT,
        _FLUX_2,
        _FLUX_KONTEXT,
        _HIDREAM_O1,
        _IDEOGRAM_4,
        _WAN,
        _HUNYUAN_VIDEO,
        _HUNYUAN_VIDEO_1_5,
        _KANDINSKY_5,
    )
}


def find_architecture(name: str) -> Architecture:
    """Return the row of that name. Raises ValueError with all names if there is none."""
    if name not in ARCHITECTURES:
        raise ValueError(f"architecture must be one of {', '.join(ARCHITECTURES)}; got {name!r}")
    return ARCHITECTURES[name]
