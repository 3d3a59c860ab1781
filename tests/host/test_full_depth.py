"""A model with all of SDXL's layers at toy width: ComfyUI loads all 722 modules of the UNet, and
those of the text encoders.
"""

import json
from collections.abc import Callable
from pathlib import Path

from trainers.demo.concept import IMAGES
from trainers.embedded_base import write_embedded_checkpoint

PACK = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("scripts") / "full_depth.py"


def test_a_full_depth_model_loads_722_of_722(run_in_comfyui: Callable[..., str], tmp_path: Path):
    write_embedded_checkpoint(tmp_path / "base.safetensors")
    output = run_in_comfyui(SCRIPT.read_text(), PACK, tmp_path / "base.safetensors", IMAGES, tmp_path)
    (line,) = [line for line in output.splitlines() if line.startswith("RESULT")]
    results = json.loads(line.removeprefix("RESULT"))
    assert results["unet"] == 722
    assert results["all"] == results["in_file"] > 722
    assert f"{results['all']}/{results['all']} modules load" in results["summary"]
