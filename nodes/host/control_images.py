"""A caption with its control images as conditions: by ComfyUI's own nodes, as its workflows for
edit models connect them. What is trained is what these workflows sample with.
"""

from collections.abc import Callable, Sequence
from typing import Any

from comfy_extras.nodes_edit_model import ReferenceLatent
from comfy_extras.nodes_flux import FluxKontextImageScale
from comfy_extras.nodes_post_processing import ImageScaleToTotalPixels
from comfy_extras.nodes_qwen import TextEncodeQwenImageEdit, TextEncodeQwenImageEditPlus
from torch import Tensor


def encode_with_controls(way: str, clip: Any, vae: Any, caption: str, control_images: Sequence[Tensor]) -> Any:
    """Return ComfyUI's CONDITIONING. `control_images` are IMAGEs, [1, H, W, 3] in 0..1; `way` is
    that of the family (trainers/flow/families.py).
    """
    return _WAYS[way](clip, vae, caption, control_images)


def _encode_qwen_edit(clip: Any, vae: Any, caption: str, control_images: Sequence[Tensor]) -> Any:
    return TextEncodeQwenImageEdit.execute(clip, caption, vae, *control_images)[0]


def _encode_qwen_edit_plus(clip: Any, vae: Any, caption: str, control_images: Sequence[Tensor]) -> Any:
    return TextEncodeQwenImageEditPlus.execute(clip, caption, vae, *control_images)[0]


def _encode_kontext(clip: Any, vae: Any, caption: str, control_images: Sequence[Tensor]) -> Any:
    return _refer(clip, vae, caption, [FluxKontextImageScale.execute(image)[0] for image in control_images])


def _encode_flux_2(clip: Any, vae: Any, caption: str, control_images: Sequence[Tensor]) -> Any:
    scaled = [ImageScaleToTotalPixels.execute(image, "lanczos", 1.0, 1)[0] for image in control_images]
    return _refer(clip, vae, caption, scaled)


def _refer(clip: Any, vae: Any, caption: str, control_images: Sequence[Tensor]) -> Any:
    conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(caption))
    for image in control_images:
        conditioning = ReferenceLatent.execute(conditioning, {"samples": vae.encode(image)})[0]
    return conditioning


_WAYS: dict[str, Callable[[Any, Any, str, Sequence[Tensor]], Any]] = {
    "qwen_image_edit": _encode_qwen_edit,
    "qwen_image_edit_plus": _encode_qwen_edit_plus,
    "flux_kontext": _encode_kontext,
    "flux_2": _encode_flux_2,
}
