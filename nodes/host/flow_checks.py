"""What can be told about MODEL, CLIP and VAE before anything is encoded: that they belong together,
and that a LoRA on images can be trained on them. By sizes, not by names of files.
"""

from collections.abc import Sequence
from typing import Any

import comfy.model_sampling
import torch
from torch import nn

from ...trainers.flow.targets import is_linear
from .twin import check_weights
from .weights import GraphModel, require_plain

# Classes of comfy.model_base that make something else than an image from a text.
_OTHER_KINDS = {
    "audio": ("StableAudio1", "StableAudio3", "ACEStep", "ACEStep15", "MiniMaxMusic3", "LTXAV"),
    "3D": ("Hunyuan3Dv2", "Hunyuan3Dv2_1", "Trellis2", "TripoSplat", "Stable_Zero123"),
    "segmentation": ("SAM3",),
    "object detection": ("RT_DETR_v4",),
    "depth": ("DepthAnything3", "Lotus"),
    "upscaling": ("SD_X4Upscaler", "SeedVR2"),
    "image variations": ("SD21UNCLIP", "StableCascade_C", "StableCascade_B"),
    "controlling or extending videos": (
        "SVD_img2vid",
        "WAN21_Vace",
        "WAN21_Camera",
        "WAN21_HuMo",
        "WAN22_Animate",
        "WAN_Animate2",
        "WAN22_S2V",
        "WAN21_SCAIL",
        "WAN22_WanDancer",
    ),
}
_IMAGE_TO_IMAGE = (comfy.model_sampling.IMG_TO_IMG, comfy.model_sampling.IMG_TO_IMG_FLOW)
# The layer that a text comes in through: its input is as wide as the text encoder's output.
_TEXT_LAYERS = (
    "cap_embedder.1",
    "txt_in",
    "txt_in.input_embedder",
    "context_embedder",
    "text_embedding.0",
    "text_proj",
    "llm_cond_proj",
    "caption_projection.0.linear",
    "blocks.0.cross_attn.k_proj",
    "input_blocks.1.1.transformer_blocks.0.attn2.to_k",
)
# Likewise for a vector of the whole text.
_POOLED_LAYERS = (
    "vector_in.in_layer",
    "y_embedder.mlp.0",
    "p_embedder.pooled_embedder.linear_1",
    "label_emb.0.0",
)


def check_graph(graph: GraphModel) -> None:
    """Check MODEL, and that VAE fits it.

    Raises:
        ValueError: a LoRA on images cannot be trained on them; the message says what came and what
            fits.
    """
    model = graph.model.model
    _check_kind(model)
    if graph.clip is None or graph.vae is None:
        raise ValueError(
            f"{'CLIP' if graph.clip is None else 'VAE'} is empty: this checkpoint has none. Load the "
            f"{'text encoder' if graph.clip is None else 'VAE'} of {_name(model)} with its own loader"
        )
    for socket, owner in (("MODEL", graph.model), ("CLIP", graph.clip), ("VAE", graph.vae)):
        require_plain(socket, getattr(owner, "patcher", owner))
    _check_vae(graph.vae, model)
    _check_inputs(model)
    check_weights(graph.model)


def check_parts(model: Any, clip: Any) -> None:
    """Check MODEL and CLIP as check_graph does, without a VAE. None: no CLIP is connected.

    Raises:
        ValueError: as check_graph.
    """
    _check_kind(model.model)
    require_plain("MODEL", model)
    if clip is not None:
        require_plain("CLIP", clip.patcher)
    _check_inputs(model.model)
    check_weights(model)


def _name(model: Any) -> str:
    return type(model.model_config).__name__


def _check_kind(model: Any) -> None:
    bases = {base.__name__ for base in type(model).__mro__}
    kind = next((kind for kind, classes in _OTHER_KINDS.items() if bases.intersection(classes)), None)
    if kind:
        raise ValueError(
            f"MODEL ({_name(model)}) is for {kind}. A LoRA on images needs a model that makes images from a text"
        )
    if isinstance(model.model_sampling, _IMAGE_TO_IMAGE):
        raise ValueError(
            f"MODEL ({_name(model)}) turns one image into another without noise: it cannot be trained here"
        )


def _check_vae(vae: Any, model: Any) -> None:
    wanted = model.latent_format
    found = vae.latent_channels, vae.spacial_compression_encode()
    expected = wanted.latent_channels, wanted.spacial_downscale_ratio
    if found != expected:
        raise ValueError(
            f"VAE makes latents of {found[0]} channels, {found[1]} times smaller than the image; MODEL "
            f"({_name(model)}) takes {expected[0]} channels, {expected[1]} times smaller. Load this model's own VAE"
        )


def _check_inputs(model: Any) -> None:
    """A model for inpainting or control takes more channels than the latents have."""
    wanted = model.latent_format
    time_axis = (1,) if wanted.latent_dimensions == 3 else ()
    noise = torch.zeros(1, wanted.latent_channels, *time_axis, 8, 8)
    if model.concat_cond(noise=noise, device=noise.device) is not None:
        raise ValueError(
            f"MODEL ({_name(model)}) takes an image or a mask beside the noise, as models for inpainting, control or "
            "image to video do. Train on the model that makes images from a text; the LoRA fits both"
        )


def find_text_width(network: nn.Module) -> int | None:
    """Return how wide the texts are that the network takes; None if that is not known."""
    if hasattr(network, "txtlayers"):  # Krea 2 takes several layers of its text encoder side by side
        return network.txtlayers * network.txtdim  # pyright: ignore[reportOperatorIssue, reportReturnType]
    return _find_width(network, _TEXT_LAYERS)


def find_pooled_width(network: nn.Module) -> int | None:
    """Return how wide the vectors of whole texts are, that the network takes; None: it takes
    none.
    """
    return _find_width(network, _POOLED_LAYERS)


def _find_width(network: nn.Module, paths: Sequence[str]) -> int | None:
    layers = dict(network.named_modules())
    layer = next((layers[path] for path in paths if path in layers and is_linear(layers[path])), None)
    return None if layer is None else int(getattr(layer, "in_features"))  # noqa: B009 - not only nn.Linear has it


def count_tokens(clip: Any, caption: str) -> int:
    """Count the tokens of the text encoder that counts most. An encoder may fill short texts up."""
    tokens = clip.tokenize(caption)
    return max(sum(len(chunk) for chunk in chunks) for chunks in tokens.values())


def check_clip(clip: Any, network: nn.Module, name: str) -> None:
    """Encode an empty caption, and check it as read_text does.

    Raises:
        ValueError: as read_text.
    """
    with torch.inference_mode():
        entries = clip.encode_from_tokens_scheduled(clip.tokenize(""))
    read_text(entries, find_text_width(network), name)


def read_text(entries: Sequence[Any], width: int | None, name: str) -> tuple[torch.Tensor, dict[str, Any]]:
    """Return a caption as the CLIP has encoded it, [1, tokens, width], and what comes with it.

    Raises:
        ValueError: it changes over the steps, or has not the width that the network takes.
    """
    if len(entries) != 1:
        raise ValueError("CLIP carries a schedule, which changes over the steps. Remove it before training")
    cond, others = entries[0]
    if width is not None and cond.shape[-1] != width:
        raise ValueError(
            f"CLIP gives texts of width {cond.shape[-1]}; MODEL ({name}) takes {width}. Load the text encoder of "
            f"{name}, with its type chosen in the CLIP loader"
        )
    return cond, others
