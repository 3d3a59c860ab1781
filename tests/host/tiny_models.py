"""Tiny random MODELs of ComfyUI's own classes, one for each model family, with a text encoder and a
VAE that answer in the family's shapes. It runs in ComfyUI's interpreter.

Shapes: B batch, C channels, F frames, H W latent height and width, N tokens, D width.
"""

import json
import math
import re
import zlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import comfy.ldm.anima.model
import comfy.model_patcher
import comfy.ops
import comfy.supported_models
import torch
from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor
from torch import Generator, Tensor, nn

CPU = torch.device("cpu")
Tokens = list[list[tuple[int, float]]]
Extras = Callable[[Generator, int, int], dict[str, Any]]


class FakeClip:
    """Gives every text its own random conditions, in the shapes of the family's text encoder."""

    def __init__(
        self,
        width: int,
        *,
        pooled: int | None = None,
        template: int = 0,
        padded_to: int = 1,
        chunk: int | None = None,
        mask: bool = False,
        glyphs: bool = False,
        extras: Extras | None = None,
    ):
        self.width = width
        self.pooled_width = pooled
        self.template = template  # tokens that the encoder's template adds to the text
        self.padded_to = padded_to  # shorter texts are padded to this number of tokens
        self.chunk = chunk  # CLIP works in chunks of 77 tokens
        self.mask = mask  # the encoder hands its attention mask out
        self.glyphs = glyphs  # quoted text has conditions of its own
        self.extras = extras
        self.num_encoded = 0
        self.cond_stage_model = nn.Linear(2, 2)
        self.tokenizer = None
        self.layer_idx = None
        self.tokenizer_options: dict[str, Any] = {}
        self.patcher = SimpleNamespace(patches={}, forced_hooks=None, model_size=lambda: 2**21, load_device=CPU)

    def tokenize(
        self, text: str, images: Sequence[Tensor] = (), llama_template: str = "", **options: object
    ) -> dict[str, Tokens]:
        """Token 0 pads. Words in quotes get tokens of their own, if the family draws glyphs. An
        image is a token too.
        """
        tokens = [(zlib.crc32(word.encode()) or 1, 1.0) for word in (llama_template + text).split()]
        tokens += [(zlib.crc32(image.cpu().numpy().tobytes()) or 1, 1.0) for image in images]
        tokens += [(1, 1.0)] * self.template
        length = max(self.padded_to, len(tokens), 1)
        if self.chunk:
            length = math.ceil(length / self.chunk) * self.chunk
        found = {"tiny": [tokens + [(0, 1.0)] * (length - len(tokens))]}
        quoted = "".join(re.findall(r'"(.*?)"', text))
        if self.glyphs and quoted:
            found["byt5"] = [[(byte, 1.0) for byte in quoted.encode()]]
        return found

    def encode_from_tokens_scheduled(self, tokens: dict[str, Tokens], **options: object) -> list[list[Any]]:
        self.num_encoded += 1
        ids = [token for token, _ in tokens["tiny"][0]]
        generator = Generator().manual_seed(zlib.crc32(repr(ids).encode()))
        cond = torch.randn(1, len(ids), self.width, generator=generator)  # [1, N, D]
        pooled = None if self.pooled_width is None else torch.randn(1, self.pooled_width, generator=generator)
        entries: dict[str, Any] = {"pooled_output": pooled}
        if self.mask:
            entries["attention_mask"] = torch.tensor([[int(token != 0) for token in ids]])
        if self.extras:
            entries |= self.extras(generator, len(ids), self.width)
        if "byt5" in tokens:
            entries["conditioning_byt5small"] = torch.randn(1, len(tokens["byt5"][0]), 1472, generator=generator)
        return [[cond, entries]]


class FakeVAE:
    """Averages squares of pixels, and mixes the colours into the latent channels.

    A VAE for video takes a batch of images as the frames of one video, as comfy.sd.VAE does.
    """

    output_channels = 3
    crop_input = True

    def __init__(self, channels: int, downscale: int, *, frames_per_latent: int | None = None):
        self.latent_channels = channels
        self.latent_dim = 2 if frames_per_latent is None else 3
        self.not_video = False
        self.frames_per_latent = frames_per_latent or 1
        self.spatial = downscale
        self.downscale_ratio = self.upscale_ratio = downscale
        if frames_per_latent is not None:
            self.downscale_ratio = (
                lambda frames: (frames + frames_per_latent - 1) // frames_per_latent,
                *[downscale] * 2,
            )
            self.upscale_ratio = (lambda frames: (frames - 1) * frames_per_latent + 1, *[downscale] * 2)
        mix = torch.randn(channels, 3, generator=Generator().manual_seed(channels))
        self.mix = torch.linalg.qr(mix)[0] * math.sqrt(channels / 3)  # [C, 3] with orthogonal columns
        self.num_encoded = 0
        self.first_stage_model = nn.Linear(2, 2)
        self.vae_dtype = torch.float32
        self.patcher = SimpleNamespace(model_size=lambda: 2**20, load_device=CPU)

    def memory_used_encode(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        return 900 * math.prod(shape[2:]) * dtype.itemsize

    def memory_used_decode(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        return 1000 * math.prod(shape[2:]) * dtype.itemsize

    def spacial_compression_encode(self) -> int:
        return self.spatial

    def spacial_compression_decode(self) -> int:
        return self.spatial

    def encode(self, pixels: Tensor) -> Tensor:
        """pixels: [B, H, W, 3] from 0 to 1."""
        self.num_encoded += 1
        height, width = (side // self.spatial * self.spatial for side in pixels.shape[1:3])
        image = pixels[:, :height, :width, :3].movedim(-1, 1) * 2 - 1
        pooled = nn.functional.avg_pool2d(image, self.spatial)  # [B, 3, H, W]
        latents = torch.einsum("cr,brhw->bchw", self.mix, pooled)
        if self.latent_dim == 2:
            return latents
        return latents[:: self.frames_per_latent].movedim(0, 1).unsqueeze(0)  # [1, C, F, H, W]

    def decode(self, latents: Tensor) -> Tensor:
        if self.latent_dim == 3:
            frames = latents.movedim(2, 1)  # [B, F, C, H, W]
            return torch.stack([self._decode_images(video) for video in frames])
        return self._decode_images(latents)

    def _decode_images(self, latents: Tensor) -> Tensor:
        pooled = torch.einsum("cr,bchw->brhw", self.mix, latents) * 3 / self.latent_channels
        pixels = nn.functional.interpolate(pooled, scale_factor=self.spatial)
        return ((pixels + 1) / 2).clamp(0, 1).movedim(1, -1)


@dataclass(frozen=True)
class Spec:
    """How to build one family at tiny size."""

    config: str
    """The class in comfy.supported_models."""
    unet_config: dict[str, Any]
    clip: dict[str, Any]
    channels: int = 16
    downscale: int = 8
    frames_per_latent: int | None = None
    """None: latents have no time axis."""
    extra_conditions: dict[str, Any] = field(default_factory=dict)
    """What graphs of this family add to the conditions, for example with FluxGuidance."""
    state_dict: dict[str, Tensor] = field(default_factory=dict)
    """What the host looks at in the checkpoint to tell variants apart."""


@dataclass(frozen=True)
class TinyModel:
    name: str
    patcher: comfy.model_patcher.ModelPatcher
    latent_channels: int
    downscale: int
    has_time_axis: bool
    context_width: int
    pooled_width: int | None
    extra_conditions: dict[str, Any]
    clip: FakeClip
    vae: FakeVAE

    def latent_shape(self, batch_size: int, height: int, width: int) -> tuple[int, ...]:
        """The latents' shape for images of this size in pixels."""
        time_axis = (1,) if self.has_time_axis else ()
        return (batch_size, self.latent_channels, *time_axis, height // self.downscale, width // self.downscale)


def build_tiny(name: str, dtype: torch.dtype = torch.float32) -> TinyModel:
    """The MODEL is in inference mode, as everything in a graph is."""
    spec = SPECS[name]
    clip = FakeClip(**spec.clip)
    return TinyModel(
        name=name,
        patcher=build_patcher(spec, dtype),
        latent_channels=spec.channels,
        downscale=spec.downscale,
        has_time_axis=spec.frames_per_latent is not None,
        context_width=clip.width,
        pooled_width=clip.pooled_width,
        extra_conditions=dict(spec.extra_conditions),
        clip=clip,
        vae=FakeVAE(spec.channels, spec.downscale, frames_per_latent=spec.frames_per_latent),
    )


def build_patcher(spec: Spec, dtype: torch.dtype) -> comfy.model_patcher.ModelPatcher:
    config = getattr(comfy.supported_models, spec.config)(dict(spec.unet_config))
    config.unet_config.update(spec.unet_config)  # the class has put its full size over some of them
    config.set_inference_dtype(dtype, None)
    with torch.inference_mode(), ExitStack() as stack:
        adapter = partial(comfy.ldm.anima.model.LLMAdapter, **TINY_ANIMA_ADAPTER)  # 130 M weights otherwise
        stack.enter_context(patch.object(comfy.ldm.anima.model, "LLMAdapter", adapter))
        model = config.get_model(spec.state_dict, "")
        fill(model.diffusion_model)
        model.to(CPU)
    return comfy.model_patcher.ModelPatcher(model, CPU, CPU)


GROUP_SIZES = {"nvfp4": 16, "mxfp8": 32, "convrot_w4a4": 256, "asym_w4a8_int8": 256}


def build_quantized(name: str, kind: str) -> TinyModel:
    """A tiny model whose blocks' matrices are in one of ComfyUI's quantized forms, as its loaders
    make them.
    """
    tiny, spec = build_tiny(name), SPECS[name]
    layout = QUANT_ALGOS[kind]["comfy_tensor_layout"]
    weights = {}
    with torch.inference_mode():
        for path, weight in tiny.patcher.model.diffusion_model.state_dict().items():
            weights[path] = weight.clone()
            is_matrix = path.endswith(".weight") and weight.ndim == 2 and re.search(r"(blocks|layers)\.", path)
            if is_matrix and not any(side % GROUP_SIZES.get(kind, 1) for side in weight.shape):
                quantized, module = QuantizedTensor.from_float(weight.clone(), layout), path.removesuffix("weight")
                weights[path] = quantized._qdata
                for scale, value in list_scales(kind, quantized._params).items():
                    weights[module + scale] = value
                marker = json.dumps({"format": kind}).encode()
                weights[f"{module}comfy_quant"] = torch.tensor(list(marker), dtype=torch.uint8)
        config = getattr(comfy.supported_models, spec.config)(dict(spec.unet_config))
        config.unet_config.update(spec.unet_config)
        config.quant_config = {"mixed_ops": True}  # as the loaders set it for files with scales
        config.custom_operations = comfy.ops.pick_operations(None, torch.float32, load_device=CPU, model_config=config)
        config.set_inference_dtype(torch.float32, None)
        model = config.get_model(spec.state_dict, "")
        missing = model.diffusion_model.load_state_dict(weights, strict=False).missing_keys
        assert not missing, missing
        model.to(CPU)
    return replace(tiny, patcher=comfy.model_patcher.ModelPatcher(model, CPU, CPU))


def list_scales(kind: str, params: Any) -> dict[str, Tensor]:
    """Return the scales of a quantized weight by their names in a file."""
    if kind == "nvfp4":
        return {"weight_scale": params.block_scale, "weight_scale_2": params.scale}
    return {"weight_scale": params.scale}


def fill(network: nn.Module) -> None:
    """Norms do nothing but normalise; the other weights keep the size of what goes through them."""
    generator = Generator().manual_seed(0)
    buffers = ((name, buffer) for name, buffer in network.named_buffers() if name == "pos_embed")
    for name, weight in [*network.named_parameters(), *buffers]:
        if weight.ndim > 1:
            fan_in = weight[0].numel()
            weight.copy_(torch.randn(weight.shape, generator=generator) / math.sqrt(fan_in))
        elif name.endswith(".weight"):
            weight.fill_(1)
        elif name.endswith(".scale"):  # Krea 2 adds 1 to it
            weight.zero_()
        else:
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)


def anima_extras(generator: Generator, num_tokens: int, width: int) -> dict[str, Any]:
    """Another tokenizer's tokens: here one more, its end token."""
    ids = torch.randint(0, 32128, (num_tokens + 1,), generator=generator, dtype=torch.int)
    return {"t5xxl_ids": ids, "t5xxl_weights": torch.ones(num_tokens + 1)}


def hidream_extras(generator: Generator, num_tokens: int, width: int) -> dict[str, Any]:
    return {"conditioning_llama3": torch.randn(1, 4, 128, width, generator=generator)}  # [1, layers, N, D]


TINY_ANIMA_ADAPTER = {"source_dim": 32, "target_dim": 32, "model_dim": 32, "num_layers": 1, "num_heads": 2}

FLUX = {
    "image_model": "flux",
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "vec_in_dim": 32,
    "context_in_dim": 64,
    "hidden_size": 128,
    "mlp_ratio": 4.0,
    "num_heads": 4,
    "depth": 2,
    "depth_single_blocks": 2,
    "axes_dim": [8, 12, 12],
    "theta": 10000,
    "qkv_bias": True,
    "guidance_embed": True,
    "txt_ids_dims": [],
}
FLUX_2 = FLUX | {
    "image_model": "flux2",
    "in_channels": 128,
    "out_channels": 128,
    "patch_size": 1,
    "vec_in_dim": None,
    "mlp_ratio": 3.0,
    "axes_dim": [8, 8, 8, 8],
    "theta": 2000,
    "qkv_bias": False,
    "guidance_embed": False,
    "txt_ids_dims": [3],
    "global_modulation": True,
    "mlp_silu_act": True,
    "ops_bias": False,
    "default_ref_method": "index",
    "ref_index_scale": 10.0,
}
CHROMA = {key: value for key, value in FLUX.items() if key != "guidance_embed"} | {
    "image_model": "chroma",
    "in_channels": 64,
    "out_channels": 64,
    "vec_in_dim": None,
    "in_dim": 64,
    "out_dim": 128,
    "hidden_dim": 64,
    "n_layers": 2,
}
LUMINA_2 = {
    "image_model": "lumina2",
    "patch_size": 2,
    "in_channels": 16,
    "dim": 96,
    "cap_feat_dim": 64,
    "n_layers": 2,
    "qk_norm": True,
    "n_heads": 4,
    "n_kv_heads": 2,
    "axes_dims": [8, 8, 8],
    "axes_lens": [300, 512, 512],
    "rope_theta": 10000.0,
    "ffn_dim_multiplier": 4.0,
}
Z_IMAGE = LUMINA_2 | {
    "dim": 256,  # its modulation needs at least this
    "n_kv_heads": 4,
    "axes_dims": [16, 24, 24],
    "axes_lens": [1536, 512, 512],
    "rope_theta": 256.0,
    "ffn_dim_multiplier": 8 / 3,
    "z_image_modulation": True,
    "time_scale": 1000.0,
    "pad_tokens_multiple": 32,
}
QWEN = {
    "image_model": "qwen_image",
    "in_channels": 64,
    "num_layers": 2,
    "attention_head_dim": 32,
    "num_attention_heads": 4,
    "joint_attention_dim": 64,
    "axes_dims_rope": (8, 12, 12),
}
KREA_2 = {
    "image_model": "krea2",
    "features": 128,
    "tdim": 32,
    "txtdim": 64,
    "heads": 4,
    "kvheads": 2,
    "layers": 2,
    "channels": 16,
    "patch": 2,
    "txtlayers": 3,
    "txtheads": 2,
    "txtkvheads": 2,
}
COSMOS = {
    "image_model": "cosmos_predict2",
    "max_img_h": 240,
    "max_img_w": 240,
    "max_frames": 128,
    "in_channels": 16,
    "out_channels": 16,
    "patch_spatial": 2,
    "patch_temporal": 1,
    "model_channels": 128,
    "concat_padding_mask": True,
    "crossattn_emb_channels": 32,
    "pos_emb_cls": "rope3d",
    "pos_emb_learnable": True,
    "pos_emb_interpolation": "crop",
    "min_fps": 1,
    "max_fps": 30,
    "use_adaln_lora": True,
    "adaln_lora_dim": 16,
    "num_blocks": 2,
    "num_heads": 2,
    "extra_per_block_abs_pos_emb": False,
    "rope_h_extrapolation_ratio": 4.0,
    "rope_w_extrapolation_ratio": 4.0,
    "rope_t_extrapolation_ratio": 1.0,
    "extra_h_extrapolation_ratio": 1.0,
    "extra_w_extrapolation_ratio": 1.0,
    "extra_t_extrapolation_ratio": 1.0,
    "rope_enable_fps_modulation": False,
}
SD3 = {  # SD 3.5 medium; its first blocks have a second attention
    "in_channels": 16,
    "patch_size": 2,
    "out_channels": 16,
    "depth": 2,
    "input_size": None,
    "adm_in_channels": 32,
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 64, "out_features": 128}},
    "num_patches": 256,
    "pos_embed_max_size": 16,
    "qk_norm": "rms",
    "pos_embed_scaling_factor": None,
    "x_block_self_attn_layers": [0],
}
HUNYUAN_VIDEO = {
    "image_model": "hunyuan_video",
    "in_channels": 16,
    "patch_size": [1, 2, 2],
    "out_channels": 16,
    "vec_in_dim": 32,
    "axes_dim": [8, 12, 12],
    "meanflow": False,
    "context_in_dim": 64,
    "hidden_size": 128,
    "mlp_ratio": 4.0,
    "num_heads": 4,
    "depth": 2,
    "depth_single_blocks": 2,
    "theta": 256,
    "qkv_bias": True,
    "byt5": False,
    "guidance_embed": True,
    "use_cond_type_embedding": False,
    "vision_in_dim": None,
    "meanflow_sum": False,
}
HUNYUAN_IMAGE = HUNYUAN_VIDEO | {
    "in_channels": 64,
    "patch_size": [1, 1],
    "out_channels": 64,
    "vec_in_dim": None,
    "axes_dim": [16, 16],
    "byt5": True,
    "guidance_embed": False,
}
WAN = {
    "image_model": "wan2.1",
    "model_type": "t2v",
    "patch_size": (1, 2, 2),
    "in_dim": 16,
    "dim": 96,
    "ffn_dim": 128,
    "freq_dim": 32,
    "text_dim": 64,
    "out_dim": 16,
    "num_heads": 2,
    "num_layers": 2,
    "window_size": (-1, -1),
    "qk_norm": True,
    "cross_attn_norm": True,
    "eps": 1e-6,
}
ERNIE = {
    "image_model": "ernie",
    "hidden_size": 128,
    "num_attention_heads": 4,
    "num_layers": 2,
    "ffn_hidden_size": 192,
    "text_in_dim": 64,
    "rope_axes_dim": (8, 12, 12),
}
IDEOGRAM_4 = {
    "image_model": "ideogram4",
    "in_channels": 128,
    "num_layers": 2,
    "num_attention_heads": 4,
    "attention_head_dim": 32,
    "intermediate_size": 192,
    "adaln_dim": 32,
    "llm_features_dim": 64,
    "mrope_section": [6, 5, 5],
}
HIDREAM = {
    "image_model": "hidream",
    "attention_head_dim": 32,
    "axes_dims_rope": [16, 8, 8],
    "caption_channels": [64, 64],
    "max_resolution": [128, 128],
    "in_channels": 16,
    "llama_layers": [0, 1, 2, 3],
    "num_attention_heads": 4,
    "num_routed_experts": 4,
    "num_activated_experts": 2,
    "num_layers": 2,
    "num_single_layers": 2,
    "out_channels": 16,
    "patch_size": 2,
    "text_emb_dim": 32,
}
SD_15 = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": [1, 1, 1, 1],
    "channel_mult": [1, 2, 2, 2],
    "transformer_depth": [1, 1, 1, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_middle": 1,
    "context_dim": 64,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": False,
    "adm_in_channels": None,
    "use_temporal_attention": False,
    "num_heads": 2,
    "num_head_channels": -1,
    "legacy": False,
}
SD_2 = SD_15 | {"use_linear_in_transformer": True, "num_heads": -1, "num_head_channels": 16}
SIGN_OF_V_PREDICTION = {"output_blocks.11.1.transformer_blocks.0.norm1.bias": torch.tensor([0.0, 1.0])}

FLUX_CLIP = {"width": 64, "pooled": 32, "padded_to": 256}
KLEIN_CLIP = {"width": 64, "template": 12, "padded_to": 512, "mask": True}
QWEN_CLIP = {"width": 64, "template": 5}  # it keeps its mask, because nothing is padded
UMT5_CLIP = {"width": 64, "padded_to": 512}
FLUX_2_LATENTS = {"channels": 128, "downscale": 16}
VIDEO = {"frames_per_latent": 4}

SPECS = {
    "Z-Image": Spec("ZImage", Z_IMAGE, {"width": 64, "template": 8, "mask": True}),
    "FLUX.1": Spec("Flux", FLUX, FLUX_CLIP, extra_conditions={"guidance": 3.5}),
    "FLUX.1 Kontext": Spec(
        "Flux", FLUX, FLUX_CLIP, extra_conditions={"guidance": 2.5, "reference_latents": [torch.ones(1, 16, 8, 8)]}
    ),
    "FLUX.1 schnell": Spec("FluxSchnell", FLUX | {"guidance_embed": False}, FLUX_CLIP),
    "FLUX.2 klein": Spec("Flux2", FLUX_2, KLEIN_CLIP, **FLUX_2_LATENTS),
    "FLUX.2 dev": Spec(
        "Flux2",
        FLUX_2 | {"guidance_embed": True},
        {"width": 64, "template": 40, "mask": True},
        extra_conditions={"guidance": 4.0},
        **FLUX_2_LATENTS,
    ),
    "Chroma": Spec("Chroma", CHROMA, {"width": 64, "template": 1}),
    "Qwen-Image": Spec("QwenImage", QWEN, QWEN_CLIP, **VIDEO),
    "Qwen-Image-Edit": Spec(
        "QwenImage",
        QWEN | {"default_ref_method": "index_timestep_zero"},
        QWEN_CLIP,
        extra_conditions={"reference_latents": [torch.ones(1, 16, 1, 8, 8)]},
        **VIDEO,
    ),
    "Krea 2": Spec("Krea2", KREA_2, {"width": 3 * 64, "template": 5}, **VIDEO),
    "Anima": Spec(
        "Anima", COSMOS | {"image_model": "anima"}, {"width": 32, "mask": True, "extras": anima_extras}, **VIDEO
    ),
    "Cosmos-Predict2": Spec("CosmosT2IPredict2", COSMOS, {"width": 32, "padded_to": 512, "mask": True}, **VIDEO),
    "Lumina 2": Spec("Lumina2", LUMINA_2, {"width": 64, "template": 1, "mask": True}),
    "SD 3.5": Spec("SD3", SD3, {"width": 64, "pooled": 32, "padded_to": 154}),
    "HunyuanImage 2.1": Spec("HunyuanImage21", HUNYUAN_IMAGE, QWEN_CLIP | {"glyphs": True}, channels=64, downscale=32),
    "HunyuanVideo": Spec(
        "HunyuanVideo",
        HUNYUAN_VIDEO,
        {"width": 64, "pooled": 32, "template": 1},
        extra_conditions={"guidance": 6.0},
        **VIDEO,
    ),
    "Wan 2.1": Spec("WAN21_T2V", WAN, UMT5_CLIP, **VIDEO),
    "Wan 2.2 14B": Spec("WAN21_T2V", WAN, UMT5_CLIP, **VIDEO),  # two files, the same class
    "Wan 2.2 5B": Spec("WAN22_T2V", WAN | {"in_dim": 48, "out_dim": 48}, UMT5_CLIP, channels=48, downscale=16, **VIDEO),
    "ERNIE-Image": Spec("ErnieImage", ERNIE, {"width": 64, "template": 1, "mask": True}, **FLUX_2_LATENTS),
    "Ideogram 4": Spec("Ideogram4", IDEOGRAM_4, {"width": 64, "template": 8, "mask": True}, **FLUX_2_LATENTS),
    "HiDream": Spec("HiDream", HIDREAM, {"width": 64, "pooled": 32, "padded_to": 128, "extras": hidream_extras}),
    "SD 1.5": Spec("SD15", SD_15, {"width": 64, "pooled": 64, "chunk": 77}, channels=4),
    "SD 2": Spec("SD20", SD_2, {"width": 64, "pooled": 64, "chunk": 77}, channels=4),
    "SD 2 v": Spec("SD20", SD_2, {"width": 64, "pooled": 64, "chunk": 77}, channels=4, state_dict=SIGN_OF_V_PREDICTION),
}
