"""The full-size SDXL with random weights and the tiny one: made, on the device, finite."""

import math
import time

import torch

from trainers.sdxl.model.sdxl_model import SDXLModel
from trainers.training.device import COMPUTE_DTYPES, move_module
from trainers.wording import format_bytes

from ..bench import Bench, LoadModel
from ..report import Report
from ..unet_inputs import make_batch

NAME, TITLE = "models", "Models on the device"
SHARE_SECONDS, NEEDED_SECONDS = 40.0, 20.0
SDXL_UNET_PARAMETERS = 2_567_463_684


def run(bench: Bench, report: Report) -> None:
    _measure(bench, report, "tiny", bench.load_tiny)
    if bench.is_tiny:
        report.skip("full-size model", "--tiny")
        return
    unet = _measure(bench, report, "full-size", bench.load_full).unet
    num_parameters = sum(parameter.numel() for parameter in unet.parameters())
    report.check(
        "the full-size UNet is SDXL's",
        num_parameters == SDXL_UNET_PARAMETERS,
        value=num_parameters,
        goal=f"{SDXL_UNET_PARAMETERS} parameters",
    )


def _measure(bench: Bench, report: Report, name: str, load_model: LoadModel) -> SDXLModel:
    began_at = time.monotonic()
    model = load_model()
    made_at = time.monotonic()
    unet = move_module(model.unet, bench.device, COMPUTE_DTYPES[bench.half])
    bench.synchronize()
    moved_at = time.monotonic()
    num_bytes = sum(weight.nbytes for weight in unet.parameters())
    report.add_row(
        model=name,
        unet=format_bytes(num_bytes),
        seconds_to_make=made_at - began_at,
        seconds_to_device=moved_at - made_at,
    )
    size = bench.sizes.small if name == "full-size" else 64
    batch = make_batch(unet, size_wh=(size, size), batch_size=1, dtype=COMPUTE_DTYPES[bench.half])
    with torch.no_grad():
        largest = batch.predict(unet).abs().max().item()
    report.check(f"{name}: the prediction is finite", math.isfinite(largest), value=largest, goal="finite")
    return model
