"""Test-only: Python runs this file at the start of every process of Musubi Tuner with its folder on
PYTHONPATH. No file of Musubi is changed.

With MUSUBI_TINY=1, the sizes in Musubi's code become tiny, as each of its modules is imported. The
command lines are those of a real training. If torchvision's own operators do not load with a CPU
build of torch, their names are declared, so that torchvision can be imported.
"""

import importlib
import importlib.abc
import importlib.util
import os
import sys

CAPTION_FEATURES = 64
QWEN3 = {
    **{
        "hidden_size": CAPTION_FEATURES,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "max_window_layers": 3,
        "vocab_size": 320,
    },
    **{"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 1024},
    **{"bos_token_id": 256, "eos_token_id": 258},
}
VAE = {"block_out_channels": (16, 16, 16, 16), "layers_per_block": 1}


class AfterImport(importlib.abc.MetaPathFinder):
    """Calls `change` with the module of this name as soon as it is loaded."""

    def __init__(self, name, change):
        self.name, self.change, self.is_looking = name, change, False

    def find_spec(self, fullname, path, target=None):
        if fullname != self.name or self.is_looking:
            return None
        self.is_looking = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self.is_looking = False
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            self.change(module)

        spec.loader.exec_module = exec_module
        return spec


class DeclareOperators(importlib.abc.MetaPathFinder):
    """Tries the first import of torchvision, and declares the missing operators if it fails."""

    has_tried = False

    def find_spec(self, fullname, path, target=None):
        if fullname != "torchvision" or DeclareOperators.has_tried:
            return None
        DeclareOperators.has_tried = True
        try:
            importlib.import_module("torchvision")
        except RuntimeError:
            for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
                del sys.modules[name]
            declare_operators()
        return importlib.util.find_spec("torchvision")


def declare_operators():
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    sys.torchvision_library = library  # the declarations live as long as this object


def shrink_sizes(config):
    config.DEFAULT_TRANSFORMER_DIM = 64
    config.DEFAULT_TRANSFORMER_N_HEADS = config.DEFAULT_TRANSFORMER_N_KV_HEADS = 2
    config.DEFAULT_TRANSFORMER_N_LAYERS, config.DEFAULT_TRANSFORMER_N_REFINER_LAYERS = 2, 1
    config.DEFAULT_TRANSFORMER_CAP_FEAT_DIM = CAPTION_FEATURES
    config.ROPE_AXES_DIMS = [8, 12, 12]
    config.ADALN_EMBED_DIM = 32
    config.DEFAULT_VAE_NORM_NUM_GROUPS = 8


def shrink_vae(module):
    whole = module.AutoencoderKL

    class AutoencoderKL(whole):
        def __init__(self, *arguments, **settings):
            super().__init__(*arguments, **{**settings, **VAE})

    module.AutoencoderKL = AutoencoderKL


def shrink_text_encoder(module):
    whole = module.Qwen3Config
    module.Qwen3Config = lambda **settings: whole(**{**settings, **QWEN3})


sys.meta_path.insert(0, DeclareOperators())
if os.environ.get("MUSUBI_TINY") == "1":
    sys.meta_path.insert(0, AfterImport("musubi_tuner.zimage.zimage_config", shrink_sizes))
    sys.meta_path.insert(0, AfterImport("musubi_tuner.zimage.zimage_autoencoder", shrink_vae))
    sys.meta_path.insert(0, AfterImport("musubi_tuner.zimage.zimage_utils", shrink_text_encoder))
