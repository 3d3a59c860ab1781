"""Renames the weights of legacy Florence-2 checkpoints to the names in transformers' own classes.
The old names are from microsoft's remote code, which is not needed.
"""

import re
from collections.abc import Mapping

from torch import Tensor

_VISION_BLOCK = r"^vision_tower\.blocks\.(\d+)\.(\d+)\.(spatial|channel)_block\."
_OUR_BLOCK = r"model.vision_tower.blocks.\1.\2.\3_block."
_RENAMES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^language_model\.lm_head\.", "lm_head."),
        (r"^language_model\.model\.", "model.language_model."),
        (r"^image_projection$", "model.multi_modal_projector.image_projection.weight"),
        (r"^image_proj_norm\.", "model.multi_modal_projector.image_proj_norm."),
        (r"^image_pos_embed\.", "model.multi_modal_projector.image_position_embed."),
        (r"^visual_temporal_embed\.", "model.multi_modal_projector.visual_temporal_embed."),
        (r"^vision_tower\.convs\.(\d+)\.proj\.", r"model.vision_tower.convs.\1.conv."),
        (r"^vision_tower\.convs\.", "model.vision_tower.convs."),
        (_VISION_BLOCK + r"conv([12])\.fn\.dw\.", _OUR_BLOCK + r"conv\4."),
        (_VISION_BLOCK + r"(?:window|channel)_attn\.norm\.", _OUR_BLOCK + "norm1."),
        (_VISION_BLOCK + r"(window|channel)_attn\.fn\.", _OUR_BLOCK + r"\4_attn."),
        (_VISION_BLOCK + r"ffn\.norm\.", _OUR_BLOCK + "norm2."),
        (_VISION_BLOCK + r"ffn\.fn\.net\.", _OUR_BLOCK + "ffn."),
    )
]
_UNUSED = re.compile(r"^language_model\.final_logits_bias$|^vision_tower\.(norms|head)\.")


def convert_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the same tensors under their native names. Only the image projection is a new view, as
    it was stored transposed.
    """
    return {
        _convert_name(name): weight.T if name == "image_projection" else weight
        for name, weight in weights.items()
        if not _UNUSED.match(name)
    }


def convert_vision_settings(legacy: Mapping[str, object]) -> dict[str, object]:
    """Return the vision settings that have different names in the native config."""
    position, temporal = legacy.get("image_pos_embed") or {}, legacy.get("visual_temporal_embedding") or {}
    sources = legacy.get("image_feature_source", ["spatial_avg_pool", "temporal_avg_pool"])
    if sources != ["spatial_avg_pool", "temporal_avg_pool"]:
        raise ValueError(
            f"this Florence-2 model takes its image features from {sources}; only spatial_avg_pool and "
            "temporal_avg_pool are supported"
        )
    assert isinstance(position, dict) and isinstance(temporal, dict)
    return {
        "embed_dim": legacy["dim_embed"],
        "max_position_embeddings": position.get("max_pos_embeddings", 50),
        "max_temporal_embeddings": temporal.get("max_temporal_embeddings", 100),
    }


def _convert_name(name: str) -> str:
    for pattern, replacement in _RENAMES:
        renamed, count = pattern.subn(replacement, name)
        if count:
            return renamed
    return name  # the later check of all names reports unknown ones
