"""Counts the device memory of training steps on models of full size, on the meta device, and prints
it next to the estimate: for each model with all weights on the device, and with those of its blocks
streamed. Needs ComfyUI, and some minutes; no GPU.
"""

import argparse
import json
import os
import subprocess
import tempfile
from typing import Any

from tests.host.conftest import PREAMBLE
from trainers.comfyui.find import PACK, find_comfyui
from trainers.wording import GIBIBYTE

SCRIPT = PACK / "tests" / "host" / "scripts" / "flow_memory.py"
MODELS = ("Z-Image", "FLUX.2 klein 4B", "Anima", "Qwen-Image")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resolution", type=int, default=1024)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=100, help="words of the caption")
    options = parser.parse_args()
    print(
        "| model | weights | counted GB | estimate GB | weights | adapters | activations | seconds |\n"
        + "|---" * 8
        + "|"
    )
    common = {"size": options.resolution, "batch": 1, "tokens": options.tokens, "rank": options.rank}
    for name in MODELS:
        for is_streamed in (False, True):
            print(make_row(measure({"name": name, "is_streamed": is_streamed, **common})), flush=True)


def measure(configuration: dict[str, Any]) -> dict[str, Any]:
    comfyui = find_comfyui()
    environment = {**os.environ, "PYTHONPATH": str(comfyui.folder), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        arguments = [str(PACK), folder, json.dumps([configuration])]
        command = [str(comfyui.python), "-c", PREAMBLE + SCRIPT.read_text(encoding="utf-8"), *arguments]
        result = subprocess.run(
            command, cwd=comfyui.folder, env=environment, stdout=subprocess.PIPE, text=True, check=True
        )
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("RESULT")]
    return json.loads(line.removeprefix("RESULT"))


def make_row(result: dict[str, Any]) -> str:
    estimate, configuration = result["estimate"], result["configuration"]
    numbers = (
        result["counted"],
        *(estimate[f"{part}_bytes"] for part in ("training", "weights", "adapters", "activations")),
    )
    where = "streamed" if configuration["is_streamed"] else "on the device"
    values = " | ".join(f"{number / GIBIBYTE:.2f}" for number in numbers)
    return f"| {configuration['name']} | {where} | {values} | {result['seconds']:.1f} |"


if __name__ == "__main__":
    main()
