"""Test-only ComfyUI pack: a tiny Z-Image model, which no loader recognises, and a node that
measures what a LoRA did to its weights.

It also puts <base directory>/environment.json into the server's environment for Musubi's processes,
since ComfyServer does not pass on PYTHONPATH.
"""

import json
import os
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import comfy.utils
import folder_paths
import torch
from safetensors.torch import load_file

os.environ.update(json.loads((Path(folder_paths.base_path) / "environment.json").read_text(encoding="utf-8")))

CATEGORY = "tests"
SIZES = {
    **{
        "image_model": "lumina2",
        "patch_size": 2,
        "in_channels": 16,
        "qk_norm": True,
        "rope_theta": 256.0,
        "ffn_dim_multiplier": 8 / 3,
    },
    **{"z_image_modulation": True, "time_scale": 1000.0, "pad_tokens_multiple": 32, "axes_lens": [1536, 512, 512]},
}


class TinyZImage:
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "load"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"name": (folder_paths.get_filename_list("diffusion_models"),)}}

    def load(self, name):
        tensors = comfy.utils.load_torch_file(folder_paths.get_full_path_or_raise("diffusion_models", name))
        dim, caption_features = tensors["cap_embedder.1.weight"].shape
        layers = {key.split(".")[1] for key in tensors if key.startswith("layers.")}
        head_dim = tensors["layers.0.attention.q_norm.weight"].shape[0]
        sizes = {
            "dim": dim,
            "cap_feat_dim": caption_features,
            "n_layers": len(layers),
            "n_heads": dim // head_dim,
            "n_kv_heads": dim // head_dim,
        }
        config = comfy.supported_models.ZImage(
            {**SIZES, **sizes, "axes_dims": [head_dim // 4, head_dim * 3 // 8, head_dim * 3 // 8]}
        )
        config.set_inference_dtype(torch.float32, None)
        model = config.get_model(tensors, "")
        # Parameter by parameter: ComfyUI rounds some sizes up, which no full-size Z-Image has. It
        # is patched and compared, never run.
        unknown = set(tensors) - set(model.diffusion_model.state_dict())
        assert not unknown, unknown
        for key, tensor in tensors.items():
            comfy.utils.set_attr_param(model.diffusion_model, key, tensor.float())
        device = comfy.model_management.get_torch_device()
        return (comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=device),)


class CompareLora:
    """Measures how far the weights of `patched` are from W + (alpha / rank) B A of Musubi's own
    file, and how far they moved.
    """

    RETURN_TYPES = ()
    FUNCTION = "compare"
    CATEGORY = CATEGORY
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "patched": ("MODEL",), "path": ("STRING", {"forceInput": True})}}

    def compare(self, model, patched, path):
        lora = load_file(Path(path).parent / "musubi" / Path(path).name)
        weights = model.model.diffusion_model.state_dict()
        expected = {
            name: weight.float() + change(name, lora)
            for name, weight in weights.items()
            if change(name, lora) is not None
        }
        found = {
            name: patched.patch_weight_to_device(f"diffusion_model.{name}", return_weight=True).float()
            for name in expected
        }
        error = max(float((found[name] - expected[name]).abs().max()) for name in expected)
        moved = min(float((expected[name] - weights[name]).abs().max()) for name in expected)
        return {
            "ui": {"error": [error], "moved": [moved], "weights": [len(expected)], "patched": [len(patched.patches)]}
        }


def change(name, lora):
    """Return what the LoRA adds to one of ComfyUI's weights; None if nothing. ComfyUI has q, k and
    v in one weight.
    """
    module = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
    if module.endswith("_attention_qkv"):
        parts = [product(module.removesuffix("qkv") + f"to_{letter}", lora) for letter in "qkv"]
        return None if None in parts else torch.cat(parts)
    return product(module.replace("_attention_out", "_attention_to_out_0"), lora)


def product(module, lora):
    if f"{module}.alpha" not in lora:
        return None
    down, up = lora[f"{module}.lora_down.weight"].float(), lora[f"{module}.lora_up.weight"].float()
    return float(lora[f"{module}.alpha"]) / down.shape[0] * up @ down


NODE_CLASS_MAPPINGS = {"TestTinyZImage": TinyZImage, "TestCompareLora": CompareLora}
