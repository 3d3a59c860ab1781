"""Test-only: Python runs this file at the start of every process of Musubi Tuner with its folder on
PYTHONPATH. No file of Musubi is changed.

The sizes of Z-Image in Musubi's code become those in MUSUBI_SIZES, as JSON, as each of its modules
is imported. The command lines are those of a real training. If torchvision's own operators do not
load with a CPU build of torch, their names are declared, so that torchvision can be imported.
"""

import importlib
import importlib.abc
import importlib.util
import json
import os
import sys

SIZES = json.loads(os.environ.get("MUSUBI_SIZES", "{}"))


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


def set_sizes(config):
    for name, value in SIZES["config"].items():
        setattr(config, name, value)


def set_time_width(module):
    whole = module.TimestepEmbedder
    module.TimestepEmbedder = lambda out_size, **_: whole(out_size, mid_size=SIZES.get("time_width", 1024))


def set_vae(module):
    whole = module.AutoencoderKL

    class AutoencoderKL(whole):
        def __init__(self, *arguments, **settings):
            super().__init__(*arguments, **{**settings, **SIZES["vae"]})

    module.AutoencoderKL = AutoencoderKL


def set_text_encoder(module):
    whole = module.Qwen3Config
    module.Qwen3Config = lambda **settings: whole(**{**settings, **SIZES["qwen3"]})


sys.meta_path.insert(0, DeclareOperators())
if SIZES:
    sys.meta_path.insert(0, AfterImport("musubi_tuner.zimage.zimage_config", set_sizes))
    sys.meta_path.insert(0, AfterImport("musubi_tuner.zimage.zimage_model", set_time_width))
    sys.meta_path.insert(0, AfterImport("musubi_tuner.zimage.zimage_autoencoder", set_vae))
    sys.meta_path.insert(0, AfterImport("musubi_tuner.zimage.zimage_utils", set_text_encoder))
