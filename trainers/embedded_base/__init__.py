"""The base models that ship with the project: a tiny SDXL and a tiny Z-Image that draw coloured
shapes. See README.md in this folder.

    python -m trainers.embedded_base FILE.safetensors       # the SDXL as a checkpoint
    python -m trainers.embedded_base FOLDER                 # the SDXL as a diffusers folder
    python -m trainers.embedded_base FOLDER --model z-image # the Z-Image's three files
"""

from .sdxl import write_embedded_checkpoint
from .z_image import write_embedded_z_image

__all__ = ["write_embedded_checkpoint", "write_embedded_z_image"]
