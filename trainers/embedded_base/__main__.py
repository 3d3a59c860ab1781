"""Write the embedded base model: as a checkpoint if the path ends in .safetensors, else as a
diffusers folder.
"""

import argparse
import tempfile
from pathlib import Path

from ..sdxl.model.export import write_diffusers_folder
from ..sdxl.model.sdxl_model import load_model
from . import write_embedded_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m trainers.embedded_base", description=__doc__)
    parser.add_argument("path", type=Path)
    path = parser.parse_args().path
    if path.suffix == ".safetensors":
        write_embedded_checkpoint(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "embedded_base.safetensors"
        write_embedded_checkpoint(checkpoint)
        write_diffusers_folder(load_model(checkpoint), path)


if __name__ == "__main__":
    main()
