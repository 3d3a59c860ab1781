"""The model families that the flow trainer knows, one row each: which layers a LoRA trains, and
what suits the family. Other models are trained with the defaults. To add a family, add a row.
"""

import re
from dataclasses import dataclass, replace

from ..training.config import MAX_TIMESTEP


@dataclass(frozen=True)
class ControlImages:
    """How a model looks at control images.

    - way: the nodes of ComfyUI that prepare them; nodes/host/control_images.py calls them.
    - limit: how many per image; 0: any number.
    - marker: part of the file names of edit models; "": all models of the family edit.
    """

    way: str
    limit: int = 0
    marker: str = ""


@dataclass(frozen=True)
class FlowVariant:
    """What readers of the LoRA call a model whose file name has `marker` in it. File names are
    compared in lower case, with - for every separator. control_images: None for the family's.
    timesteps: the lowest and the highest that it draws at.
    """

    marker: str
    base_model: str
    modelspec_architecture: str
    control_images: ControlImages | None = None
    timesteps: tuple[int, int] = (0, MAX_TIMESTEP)


@dataclass(frozen=True)
class FlowFamilyRow:
    """A family. The settings are what its trainers recommend; each row names the source.

    - name: as users say it.
    - configs: the classes of comfy.supported_models that ComfyUI recognises it as.
    - clip_type: of ComfyUI's CLIP loaders. By the default one they look at the files themselves.
    - target_modules: matches the whole names of the linear layers to train in the diffusion model:
      attention and MLP of every block. Peers leave modulation, norms and embedders out.
    - resolution: pixels of a side that the model was made for, if that is less than 1024.
    - resolution_step: pixels. Sides of images are multiples of it, so that nothing is padded.
    - base_model: as Civitai and LoRA managers name it.
    - modelspec_architecture: as SwarmUI knows it, else as sd-scripts and Musubi write it.
    - variants: models of the family with other names; the first whose marker fits counts.
    - timestep_sampling, discrete_flow_shift: as in FlowConfig; None: the model's own shift.
    - has_shift_by_size: its shift grows with the size of the image, if none is given.
    - needs_guidance: the guidance to train with, for models that read one. None: they read none.
    - caption_tokens: trainers cut captions after that many. None: they do not cut.
    - distilled_markers: parts of file names of distilled models, which break in plain training.
    - undistilled_markers: parts of file names that tell a base model from these.
    - remedy: what to do with a distilled model. One sentence.
    - control_images: None: it does not look at any.
    - timesteps: those that the model draws at; others belong to another expert.
    """

    name: str
    configs: tuple[str, ...] = ()
    clip_type: str = "stable_diffusion"
    target_modules: str = ""
    resolution: int = 1024
    resolution_step: int = 16
    base_model: str = "Other"
    modelspec_architecture: str = "other/lora"
    variants: tuple[FlowVariant, ...] = ()
    rank: int = 16
    learning_rate: float = 1e-4
    timestep_sampling: str = "sigmoid"
    discrete_flow_shift: float | None = None
    has_shift_by_size: bool = False
    needs_guidance: float | None = None
    caption_tokens: int | None = None
    distilled_markers: tuple[str, ...] = ()
    undistilled_markers: tuple[str, ...] = ()
    remedy: str = ""
    control_images: ControlImages | None = None
    timesteps: tuple[int, int] = (0, MAX_TIMESTEP)

    def for_file(self, file_name: str) -> "FlowFamilyRow":
        """Return the row with the names of the variant that this file is."""
        name = _normalize(file_name)
        for variant in self.variants:
            if variant.marker in name:
                return replace(
                    self,
                    base_model=variant.base_model,
                    modelspec_architecture=variant.modelspec_architecture,
                    control_images=variant.control_images or self.control_images,
                    timesteps=variant.timesteps,
                )
        return self

    def with_models_own_shift(self) -> "FlowFamilyRow":
        """For a model whose user has chosen the shift, with a ModelSampling node."""
        return replace(self, discrete_flow_shift=None, has_shift_by_size=False)

    def is_edit_model(self, file_name: str) -> bool:
        """Tell whether a model of a family with control_images was made for them, by its name."""
        return self.control_images is not None and self.control_images.marker in _normalize(file_name)

    def is_distilled(self, file_name: str) -> bool:
        """Tell whether this file's name says that the model is distilled. De-Turbo and undistilled
        models are made for training.
        """
        name = _normalize(file_name)
        if any(marker in name for marker in self.undistilled_markers):
            return False
        return any(re.search(rf"(?<!de)(?<!de-)(?<!un){re.escape(marker)}", name) for marker in self.distilled_markers)


def find_family(config_class_name: str) -> FlowFamilyRow | None:
    """Find the row by the name of a class in comfy.supported_models."""
    return next((row for row in FAMILIES if config_class_name in row.configs), None)


def _normalize(file_name: str) -> str:
    return re.sub(r"[\W_]+", "-", file_name.lower())


_FLUX_LAYERS = (
    r"double_blocks\.\d+\.(img|txt)_(attn\.(qkv|proj)|mlp\.[02])"  # two streams
    r"|single_blocks\.\d+\.linear[12]"  # attention and MLP in one
)
_LUMINA_LAYERS = r"layers\.\d+\.(attention\.(qkv|out)|feed_forward\.w[123])"
_COSMOS_LAYERS = r"blocks\.\d+\.((self|cross)_attn\.(q_proj|k_proj|v_proj|output_proj)|mlp\.layer[12])"
_WAN_LAYERS = r"blocks\.\d+\.((self|cross)_attn\.[qkvo]|ffn\.[02])"
_UNET_LAYERS = (
    r"(input_blocks\.\d+|middle_block|output_blocks\.\d+)\.1\."
    r"(proj_(in|out)|transformer_blocks\.\d+\.(attn[12]\.to_([qkv]|out\.0)|ff\.net\.(0\.proj|2)))"
)
_QWEN_EDIT = ControlImages("qwen_image_edit", limit=1, marker="edit")
_QWEN_EDIT_PLUS = ControlImages("qwen_image_edit_plus", limit=3, marker="edit")
_WAN_BOUNDARY = 875  # of text to video: Wan 2.2's configuration, wan_t2v_A14B.py
_WAN_EXPERTS = {
    marker: timesteps
    for timesteps, markers in {
        (_WAN_BOUNDARY, MAX_TIMESTEP): ("high-noise", "highnoise", "a14b-high"),
        (0, _WAN_BOUNDARY): ("low-noise", "lownoise", "a14b-low"),
    }.items()
    for marker in markers
}
_WAN_FAST = ("lightx2v", "lightning", "causvid", "distill", "fusionx", "turbo", "self-forcing")

FAMILIES: tuple[FlowFamilyRow, ...] = (
    FlowFamilyRow(
        name="Z-Image",
        configs=("ZImage",),
        clip_type="lumina2",
        target_modules=_LUMINA_LAYERS,
        base_model="ZImageBase",
        modelspec_architecture="z-image/lora",
        variants=(
            FlowVariant("de-turbo", "ZImageTurbo", "z-image/lora"),
            FlowVariant("turbo", "ZImageTurbo", "z-image/lora"),
        ),
        rank=32,  # Musubi Tuner, docs/zimage.md
        discrete_flow_shift=2.0,
        caption_tokens=512,
        distilled_markers=("turbo",),
        remedy=(
            "Train on Z-Image (base), or load ostris' zimage_turbo_training_adapter as a LoRA before the trainer and "
            "use the trained LoRA without it."
        ),
    ),
    FlowFamilyRow(
        name="FLUX.1",
        configs=("Flux",),
        clip_type="flux",
        target_modules=_FLUX_LAYERS,
        base_model="Flux.1 D",
        modelspec_architecture="flux-1-dev/lora",
        variants=(
            FlowVariant("kontext", "Flux.1 Kontext", "flux-1-dev/lora"),
            FlowVariant("krea", "Flux.1 Krea", "flux-1-dev/lora"),
        ),
        rank=16,  # sd-scripts, docs/flux_train_network.md: flux_shift, and guidance 1
        needs_guidance=1.0,
        has_shift_by_size=True,
        caption_tokens=512,
        distilled_markers=("turbo", "hyper", "lightning", "schnell", "nitro"),
        remedy="Train on FLUX.1 dev, or on a finetune of it that needs 20 steps or more.",
        control_images=ControlImages("flux_kontext", marker="kontext"),
    ),
    FlowFamilyRow(
        name="FLUX.1 schnell",
        configs=("FluxSchnell",),
        clip_type="flux",
        target_modules=_FLUX_LAYERS,
        base_model="Flux.1 S",
        modelspec_architecture="flux-1-schnell/lora",
        rank=16,  # ai-toolkit, config/examples/train_lora_flux_schnell_24gb.yaml
        caption_tokens=256,
        distilled_markers=("schnell", "turbo"),
        remedy=(
            "Load ostris' FLUX.1-schnell-training-adapter as a LoRA before the trainer and use the trained LoRA "
            "without it, or train on FLUX.1 dev."
        ),
    ),
    FlowFamilyRow(
        name="FLUX.2",
        configs=("Flux2",),
        clip_type="flux2",
        target_modules=_FLUX_LAYERS,
        base_model="Flux.2 D",
        modelspec_architecture="flux.2-dev/lora",
        variants=(
            FlowVariant("klein-base-4b", "Flux.2 Klein 4B-base", "flux.2-klein-4b/lora"),
            FlowVariant("klein-4b-base", "Flux.2 Klein 4B-base", "flux.2-klein-4b/lora"),
            FlowVariant("klein-base-9b", "Flux.2 Klein 9B-base", "flux.2-klein-9b/lora"),
            FlowVariant("klein-9b-base", "Flux.2 Klein 9B-base", "flux.2-klein-9b/lora"),
            FlowVariant("klein-4b", "Flux.2 Klein 4B", "flux.2-klein-4b/lora"),
            FlowVariant("klein-9b", "Flux.2 Klein 9B", "flux.2-klein-9b/lora"),
        ),
        rank=32,  # Musubi Tuner, docs/flux_2.md: flux2_shift; train on the base models
        needs_guidance=1.0,
        has_shift_by_size=True,
        caption_tokens=512,
        distilled_markers=("klein", "turbo"),
        undistilled_markers=("base",),
        remedy="Train on FLUX.2 klein base of the same size; the LoRA works with the distilled klein too.",
        control_images=ControlImages("flux_2"),
    ),
    FlowFamilyRow(
        name="Chroma",
        configs=("Chroma",),
        clip_type="chroma",
        target_modules=_FLUX_LAYERS,
        base_model="Chroma",
        modelspec_architecture="chroma/lora",
        rank=16,  # ai-toolkit, config/examples/train_lora_chroma_24gb.yaml
        discrete_flow_shift=1.0,  # sd-scripts, docs/flux_train_network.md: sigmoid without shift, guidance 0
        needs_guidance=0.0,
        caption_tokens=512,
        distilled_markers=("flash", "turbo", "lightning"),
        remedy="Train on Chroma1-Base or Chroma1-HD; the LoRA works with the fast versions too.",
    ),
    FlowFamilyRow(
        name="Qwen-Image",
        configs=("QwenImage",),
        clip_type="qwen_image",
        target_modules=(
            r"transformer_blocks\.\d+\."
            r"(attn\.(to_[qkv]|add_[qkv]_proj|to_out\.0|to_add_out)|(img|txt)_mlp\.net\.(0\.proj|2))"
        ),
        base_model="Qwen",
        modelspec_architecture="qwen-image/lora",
        variants=(
            FlowVariant("edit-2509", "Qwen", "qwen-image-edit/lora", _QWEN_EDIT_PLUS),
            FlowVariant("edit-2511", "Qwen", "qwen-image-edit/lora", _QWEN_EDIT_PLUS),
            FlowVariant("edit-plus", "Qwen", "qwen-image-edit/lora", _QWEN_EDIT_PLUS),
            FlowVariant("edit", "Qwen", "qwen-image-edit/lora", _QWEN_EDIT),
        ),
        rank=16,  # Musubi Tuner, docs/qwen_image.md
        learning_rate=5e-5,
        discrete_flow_shift=2.2,
        caption_tokens=1024,
        distilled_markers=("lightning", "turbo", "distill"),
        remedy="Train on Qwen-Image itself and put the Lightning LoRA back in when sampling.",
        control_images=_QWEN_EDIT_PLUS,
    ),
    FlowFamilyRow(
        name="Krea 2",
        configs=("Krea2",),
        clip_type="krea2",
        target_modules=r"blocks\.\d+\.(attn\.(w[qkvo]|gate)|mlp\.(gate|up|down))",
        base_model="Krea 2",
        modelspec_architecture="krea-2/lora",
        rank=32,  # Musubi Tuner, docs/krea2.md
        discrete_flow_shift=2.5,
        caption_tokens=512,
        distilled_markers=("turbo",),
        remedy=(
            "Train on Krea 2 RAW, whose LoRAs work with Turbo, or load ostris' krea2_turbo_training_adapter as a LoRA "
            "before the trainer and use the trained LoRA without it."
        ),
    ),
    FlowFamilyRow(
        name="Anima",
        configs=("Anima",),
        target_modules=_COSMOS_LAYERS,
        base_model="Anima",
        modelspec_architecture="anima/lora",
        rank=8,  # sd-scripts, docs/anima_train_network.md
        discrete_flow_shift=1.0,
        caption_tokens=512,
        distilled_markers=("turbo", "lightning", "distill"),
        remedy="Train on the Anima base model; the LoRA works with the fast versions too.",
    ),
    FlowFamilyRow(
        name="Cosmos-Predict2",
        configs=("CosmosT2IPredict2",),
        clip_type="cosmos",
        target_modules=_COSMOS_LAYERS,
        modelspec_architecture="nvidia-cosmos-predict2-t2i-2b/lora",
        variants=(FlowVariant("14b", "Other", "nvidia-cosmos-predict2-t2i-14b/lora"),),
        rank=32,  # diffusion-pipe, examples/main_example.toml; it trains this family with logit-normal t
        learning_rate=2e-5,
        timestep_sampling="logit_normal",
        caption_tokens=512,
        distilled_markers=("distill",),
        remedy="Train on the Cosmos-Predict2 base model of the same size.",
    ),
    FlowFamilyRow(
        name="Lumina 2",
        configs=("Lumina2",),
        clip_type="lumina2",
        target_modules=_LUMINA_LAYERS,
        base_model="Lumina",
        modelspec_architecture="lumina-2/lora",
        rank=8,  # sd-scripts, docs/lumina_train_network.md: nextdit_shift, uniform with 3.16 at 1024 pixels
        timestep_sampling="uniform",
        discrete_flow_shift=3.16,
        caption_tokens=256,
        distilled_markers=("turbo", "lightning", "distill", "dmd"),
        remedy="Train on Lumina Image 2.0 itself.",
    ),
    FlowFamilyRow(
        name="SD 3.5",
        configs=("SD3",),
        clip_type="sd3",
        target_modules=r"joint_blocks\.\d+\.(context|x)_block\.(attn2?\.(qkv|proj)|mlp\.fc[12])",
        base_model="SD 3.5",
        modelspec_architecture="stable-diffusion-v3.5-large/lora",
        variants=(
            FlowVariant("3-5-large-turbo", "SD 3.5 Large Turbo", "stable-diffusion-v3.5-large/lora"),
            FlowVariant("3-5-large", "SD 3.5 Large", "stable-diffusion-v3.5-large/lora"),
            FlowVariant("3-5-medium", "SD 3.5 Medium", "stable-diffusion-v3.5-medium/lora"),
            FlowVariant("sd3-medium", "SD 3", "stable-diffusion-v3-medium/lora"),
        ),
        rank=16,  # sd-scripts, docs/sd3_train_network.md: weighting_scheme uniform, training_shift 1
        timestep_sampling="uniform",
        discrete_flow_shift=1.0,
        caption_tokens=256,
        distilled_markers=("turbo",),
        remedy="Train on SD 3.5 Large; the LoRA works with Large Turbo too.",
    ),
    FlowFamilyRow(
        name="HunyuanImage 2.1",
        configs=("HunyuanImage21",),
        clip_type="hunyuan_image",
        target_modules=_FLUX_LAYERS,
        resolution_step=32,
        modelspec_architecture="hunyuan-image-2_1/lora",
        rank=16,  # sd-scripts, docs/hunyuan_image_train_network.md: levels of the scheduler with shift 5
        timestep_sampling="uniform",
        discrete_flow_shift=5.0,
        caption_tokens=1024,
        distilled_markers=("distill",),
        remedy="Train on HunyuanImage 2.1 itself, not on its distilled version.",
    ),
    FlowFamilyRow(
        name="HunyuanVideo",
        configs=("HunyuanVideo",),
        clip_type="hunyuan_video",
        target_modules=_FLUX_LAYERS,
        base_model="Hunyuan Video",
        modelspec_architecture="hunyuan-video/lora",
        rank=32,  # Musubi Tuner, docs/hunyuan_video.md; its embedded guidance is 1 in training
        learning_rate=2e-4,
        discrete_flow_shift=7.0,
        needs_guidance=1.0,
        caption_tokens=256,
        distilled_markers=("fast", "accvid"),  # cfgdistill is the usual model
        remedy="Train on HunyuanVideo itself; the LoRA works with the fast versions too.",
    ),
    FlowFamilyRow(
        name="Wan 2.1 and 2.2 14B",
        configs=("WAN21_T2V",),
        clip_type="wan",
        target_modules=_WAN_LAYERS,
        base_model="Wan Video 14B t2v",
        modelspec_architecture="wan-2_1-text2video-14b/lora",
        variants=(
            FlowVariant("1-3b", "Wan Video 1.3B t2v", "wan-2_1-text2video-1_3b/lora"),
            *(
                FlowVariant(marker, "Wan Video 2.2 T2V-A14B", "wan-2_1-text2video-14b/lora", timesteps=timesteps)
                for marker, timesteps in _WAN_EXPERTS.items()
            ),
            FlowVariant("wan2-2", "Wan Video 2.2 T2V-A14B", "wan-2_1-text2video-14b/lora"),
        ),
        rank=32,  # Musubi Tuner, docs/wan.md
        learning_rate=2e-4,
        discrete_flow_shift=3.0,
        caption_tokens=512,
        distilled_markers=_WAN_FAST,
        remedy="Train on the Wan model itself and put the LoRA that makes it fast back in when sampling.",
    ),
    FlowFamilyRow(
        name="Wan 2.2 5B",
        configs=("WAN22_T2V",),
        clip_type="wan",
        target_modules=_WAN_LAYERS,
        resolution_step=32,
        base_model="Wan Video 2.2 TI2V-5B",
        modelspec_architecture="wan-2_2-ti2v-5b/lora",
        rank=32,  # as its 14B; ai-toolkit trains it with the same rank
        learning_rate=1e-4,  # ai-toolkit, config/examples/train_lora_wan22_14b_24gb.yaml
        discrete_flow_shift=3.0,
        caption_tokens=512,
        distilled_markers=_WAN_FAST,
        remedy="Train on the Wan model itself and put the LoRA that makes it fast back in when sampling.",
    ),
    FlowFamilyRow(
        name="ERNIE-Image",
        configs=("ErnieImage",),
        target_modules=r"layers\.\d+\.(self_attention\.(to_[qkv]|to_out\.0)|mlp\.(gate_proj|up_proj|linear_fc2))",
        base_model="Ernie",
        modelspec_architecture="ernie-image/lora",
        variants=(FlowVariant("turbo", "Ernie Turbo", "ernie-image/lora"),),
        rank=32,  # ai-toolkit, defaults of its user interface: levels without a shift
        timestep_sampling="uniform",
        discrete_flow_shift=1.0,
        distilled_markers=("turbo",),
        remedy="Train on ERNIE-Image itself; the LoRA works with Turbo too.",
    ),
    FlowFamilyRow(
        name="Ideogram 4",
        configs=("Ideogram4",),
        clip_type="ideogram4",
        target_modules=r"layers\.\d+\.(attention\.(qkv|o)|feed_forward\.w[123])",
        base_model="Ideogram 4.0",
        modelspec_architecture="ideogram-4/lora",
        rank=32,  # ai-toolkit, defaults of its user interface
        timestep_sampling="logit_normal",  # Musubi Tuner, docs/ideogram4.md
        discrete_flow_shift=2.0,  # its mean of log(pixels / 512^2) / 2, at 1024 pixels
        caption_tokens=2048,
        distilled_markers=("turbo", "distill"),
        remedy="Train on Ideogram 4 itself.",
    ),
    FlowFamilyRow(
        name="HiDream",
        configs=("HiDream",),
        clip_type="hidream",
        target_modules=(
            r"(double|single)_stream_blocks\.\d+\.block\."
            r"(attn1\.to_(q|k|v|out)(_t)?|(ff_i\.shared_experts|ff_t)\.w[123])"
        ),
        base_model="HiDream",
        modelspec_architecture="hidream-i1/lora",
        rank=32,  # ai-toolkit, config/examples/train_lora_hidream_48.yaml: no routed experts, shift 3
        learning_rate=2e-4,
        timestep_sampling="uniform",
        discrete_flow_shift=3.0,
        caption_tokens=128,
        distilled_markers=("dev", "fast"),
        remedy="Train on HiDream-I1 Full; Dev and Fast are distilled.",
    ),
    FlowFamilyRow(
        name="SD 1.5",
        configs=("SD15",),
        target_modules=_UNET_LAYERS,
        resolution=512,
        resolution_step=64,
        base_model="SD 1.5",
        modelspec_architecture="stable-diffusion-v1/lora",
        variants=(
            FlowVariant("lcm", "SD 1.5 LCM", "stable-diffusion-v1/lora"),
            FlowVariant("hyper", "SD 1.5 Hyper", "stable-diffusion-v1/lora"),
        ),
        rank=16,  # sd-scripts, docs/train_network.md
        timestep_sampling="uniform",
        caption_tokens=225,
        distilled_markers=("lcm", "hyper", "turbo", "lightning"),
        remedy="Train on the model without LCM, Hyper or Lightning; the LoRA works with them too.",
    ),
    FlowFamilyRow(
        name="SD 2",
        configs=("SD20",),
        target_modules=_UNET_LAYERS,
        resolution=768,
        resolution_step=64,
        base_model="SD 2.1",
        modelspec_architecture="stable-diffusion-v2-768-v/lora",
        variants=(FlowVariant("512", "SD 2.0", "stable-diffusion-v2-512/lora"),),
        rank=16,  # sd-scripts, docs/train_network.md
        timestep_sampling="uniform",
        caption_tokens=225,
        distilled_markers=("turbo",),
        remedy="Train on SD 2.1; SD Turbo is a distilled SD 2.1.",
    ),
)
