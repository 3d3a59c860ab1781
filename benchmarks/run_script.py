"""Runs an unmodified training script and records CPU and wall clock at the end of each optimizer
step, and the peak memory.

It must run under the script's own interpreter, so it needs nothing but torch. It records through
torch's global optimizer hook; the script is not edited. Only sizes that sd-scripts has in its code
are changed, on request.
"""

import argparse
import json
import resource
import runpy
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", type=Path, required=True, help="JSON file to write")
    parser.add_argument(
        "--thin-sd-scripts",
        action="store_true",
        help="the script is sd-scripts': set its UNet to the thin model's 64 channels",
    )
    parser.add_argument(
        "--unet-config",
        type=json.loads,
        help="the script is sd-scripts': give it diffusers' UNet of this configuration (JSON) in place of its own",
    )
    parser.add_argument("script", help="path of the script, or a module name")
    parser.add_argument("script_arguments", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    clocks: list[tuple[float, float]] = []

    def read_clocks(optimizer: Optimizer, *_: object) -> None:
        clocks.append((time.process_time(), time.perf_counter()))

    register_optimizer_step_post_hook(read_clocks)
    prepare = make_sd_scripts_thin if options.thin_sd_scripts else None
    if options.unet_config:
        prepare = partial(give_sd_scripts_another_unet, options.unet_config)
    run(options.script, options.script_arguments, prepare=prepare)
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    options.record.write_text(json.dumps({"clocks": clocks, "peak_bytes": peak_bytes}))


def run(script: str, arguments: list[str], *, prepare: Callable[[], None] | None = None) -> None:
    """Run the script, or the module in the current folder, as __main__ with these arguments.
    `prepare` is called first, and may import the script's own modules.
    """
    is_file = script.endswith(".py")
    sys.argv = [script, *arguments]
    sys.path[0] = str(Path(script).parent) if is_file else ""
    if prepare is not None:
        prepare()
    try:
        if is_file:
            runpy.run_path(script, run_name="__main__")
        else:
            runpy.run_module(script, run_name="__main__", alter_sys=True)
    except SystemExit as ending:
        if ending.code:
            raise


def make_sd_scripts_thin() -> None:
    """Set the only two numbers in which sd-scripts' UNet differs from the thin model's."""
    # imported late: the checkout's folder is on sys.path only now
    from library import sdxl_original_unet  # pyright: ignore[reportMissingImports]

    sdxl_original_unet.MODEL_CHANNELS, sdxl_original_unet.TIME_EMBED_DIM = 64, 256


def give_sd_scripts_another_unet(config: dict[str, Any]) -> None:
    """Let sd-scripts train a UNet that is not built like SDXL's, and text encoders with fewer
    layers: its own class has SDXL's structure in its code, and it takes layer 11 of encoder 1.
    """
    from diffusers import UNet2DConditionModel
    from library import sdxl_model_util, sdxl_original_unet  # pyright: ignore[reportMissingImports]
    from transformers import CLIPTextModel

    class Unet(UNet2DConditionModel):
        def __init__(self) -> None:
            super().__init__(**config)

        def get_aug_embed(self, emb: Any, encoder_hidden_states: Any, added_cond_kwargs: dict[str, Any]) -> Any:
            assert self.add_embedding is not None
            return self.add_embedding(added_cond_kwargs["vector"])

        def forward(self, *inputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
            *usual, vector = inputs  # latents, timesteps and text states first
            return super().forward(*usual, added_cond_kwargs={"vector": vector}, return_dict=False)[0]

        def set_use_sdpa(self, sdpa: bool) -> None:
            """diffusers' attention uses it already."""

    own_forward = CLIPTextModel.forward

    def forward(self: CLIPTextModel, *arguments: Any, **settings: Any) -> Any:
        output: Any = own_forward(self, *arguments, **settings)
        output.hidden_states = (output.hidden_states[-2],) * 12
        return output

    CLIPTextModel.forward = forward
    sdxl_original_unet.SdxlUNet2DConditionModel = Unet
    sdxl_model_util.convert_diffusers_unet_state_dict_to_sdxl = lambda weights: weights


if __name__ == "__main__":
    main()
