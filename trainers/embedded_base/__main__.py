"""Write an embedded base model. The SDXL: as a checkpoint if the path ends in .safetensors, else as
a diffusers folder. The Z-Image: into subfolders of the path, which is ComfyUI's folder `models`.
"""

import argparse
import tempfile
from pathlib import Path

from ..sdxl.model.export import write_diffusers_folder
from ..sdxl.model.sdxl_model import load_model
from . import write_embedded_checkpoint, write_embedded_z_image


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m trainers.embedded_base", description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("--model", choices=["sdxl", "z-image"], default="sdxl")
    options = parser.parse_args()
    if options.model == "z-image":
        write_embedded_z_image(options.path)
    elif options.path.suffix == ".safetensors":
        write_embedded_checkpoint(options.path)
    else:
        _write_sdxl_folder(options.path)


def _write_sdxl_folder(path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "embedded_base.safetensors"
        write_embedded_checkpoint(checkpoint)
        write_diffusers_folder(load_model(checkpoint), path)


if __name__ == "__main__":
    main()
