"""Seconds per step of the trainer, next to two bare loops and to what the card's matrix products
could do; kernels per step; weights that are streamed.
"""

import time
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, supported_activities

from trainers.sdxl.config import SDXLConfig
from trainers.sdxl.memory import estimate_memory
from trainers.sdxl.model.standard_unet import standard_unet
from trainers.training.device import COMPUTE_DTYPES, is_out_of_memory
from trainers.training.events import StepDone

from ..bare_loops import RANK, BareLoop, make_own_loop, make_peft_loop
from ..bench import STREAMING, Bench, can_stream, resident
from ..report import Report
from ..trial import Trial, make_trial

NAME, TITLE = "speed", "Speed"
SHARE_SECONDS, NEEDED_SECONDS = 100.0, 40.0
SECONDS_PER_RUN = 8.0
BATCH_SIZES = (1, 4)
WARM_UP, MEASURED = 2, 4  # steps of the trainer
LEAST_SHARE, MOST_OF_PEER, MOST_STREAMED = 0.45, 0.75, 1.15
MATRIX_SIZE, NUM_PRODUCTS = 8192, 30
STREAMED_BLOCKS = 1000  # more than there are: all

Case = tuple[int, int]  # resolution, batch size


def run(bench: Bench, report: Report) -> None:
    rate = measure_matrix_rate(bench)
    report.add_row(matrix_rate_tflops=rate / 1e12)
    cases = [(size, batch) for size in dict.fromkeys((bench.sizes.small, bench.sizes.square)) for batch in BATCH_SIZES]
    own, flops = _measure_own_loop(bench, report, cases)
    bench.free()
    peft = _measure_loop(bench, report, make_peft_loop(bench), cases, name="PEFT's loop")
    bench.free()
    for case in cases:
        if case in own and case in peft:
            _compare(bench, report, case, own[case], peft[case], flops[case] / rate)
    _count_kernels(bench, report)
    _check_streaming(bench, report)


def measure_matrix_rate(bench: Bench) -> float:
    """Return the operations per second of a large matrix product in half precision."""
    size, num_products = (256, 2) if bench.is_tiny else (MATRIX_SIZE, NUM_PRODUCTS)
    left, right = (torch.randn(size, size, device=bench.device).to(COMPUTE_DTYPES[bench.half]) for _ in range(2))
    for _ in range(3):
        torch.mm(left, right)
    bench.synchronize()
    began_at = time.perf_counter()
    for _ in range(num_products):
        torch.mm(left, right)
    bench.synchronize()
    return num_products * 2 * size**3 / (time.perf_counter() - began_at)


def _measure_own_loop(bench: Bench, report: Report, cases: list[Case]) -> tuple[dict[Case, float], dict[Case, int]]:
    """Return the seconds of a step and its operations: one image's, times the batch size."""
    loop = make_own_loop(bench)
    seconds = _measure_loop(bench, report, loop, cases, name="the bare loop")
    flops = {}
    for size in {size for size, _ in cases}:
        loop.set_checkpointing(not _fits_without_checkpointing(bench, (size, max(BATCH_SIZES))))
        of_one = loop.count_flops(size=size, batch_size=1)
        flops |= {(size, batch): batch * of_one for batch in BATCH_SIZES}
    return seconds, flops


def _measure_loop(bench: Bench, report: Report, loop: BareLoop, cases: list[Case], *, name: str) -> dict[Case, float]:
    found = {}
    for size, batch_size in cases:
        part = f"{name}, {size} pixels, batch {batch_size}"
        if not (bench.is_tiny or report.has_time(part, SECONDS_PER_RUN / 2)):
            continue
        loop.set_checkpointing(not _fits_without_checkpointing(bench, (size, batch_size)))
        try:
            found[size, batch_size] = loop.seconds_per_step(size=size, batch_size=batch_size)
        except RuntimeError as error:  # torch.OutOfMemoryError is one
            if not is_out_of_memory(error):
                raise
            report.skip(part, "the card has too little memory")
    return found


def _fits_without_checkpointing(bench: Bench, case: Case) -> bool:
    if bench.is_tiny or bench.total_bytes is None:
        return bench.is_tiny
    size, batch_size = case
    config = SDXLConfig(rank=RANK, train_batch_size=batch_size, gradient_checkpointing=False)
    estimate = estimate_memory(standard_unet(), config, size_hw=(size, size), precision=bench.half)
    return estimate.total_bytes < bench.total_bytes


def _compare(bench: Bench, report: Report, case: Case, own: float, peft: float, floor: float) -> None:
    """Run the trainer. `floor` is the time of the step at the rate of the matrix products."""
    size, batch_size = case
    part = f"{size} pixels, batch {batch_size}"
    if not (bench.is_tiny or report.has_time(f"the trainer, {part}", SECONDS_PER_RUN)):
        return
    trial = _make_trial(bench, report, case, part.replace(" ", "-").replace(",", ""))
    try:
        trial.train()
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        if not is_out_of_memory(error):
            raise
        report.skip(part, "the card has too little memory")
        return
    seconds = trial.seconds_per_step(warm_up=WARM_UP)
    report.add_row(
        pixels=size,
        batch=batch_size,
        checkpointing=trial.settings["gradient_checkpointing"],
        trainer_seconds=seconds,
        bare_loop_seconds=own,
        peft_loop_seconds=peft,
        share_of_matrix_rate=floor / seconds,
    )
    report.check(f"{part}: a step is measured", seconds > 0, value=seconds, goal="seconds per step")
    _judge(bench, report, f"{part}: of PEFT's loop", seconds / peft, most=MOST_OF_PEER)
    if batch_size == max(BATCH_SIZES):
        _judge(bench, report, f"{part}: share of the matrix rate", floor / seconds, least=LEAST_SHARE)


def _make_trial(bench: Bench, report: Report, case: Case, name: str, **settings: Any) -> Trial:
    size, batch_size = case
    defaults = {
        "gradient_checkpointing": not _fits_without_checkpointing(bench, case),
        "train_batch_size": batch_size,
        "rank": RANK,
        "max_train_steps": WARM_UP + (1 if bench.is_tiny else MEASURED),
        "mixed_precision": bench.half,
        "save_dtype": "bf16",
        **resident(),
    }
    return make_trial(
        bench,
        report,
        name,
        load_model=bench.load_full,
        size_wh=(size, size),
        num_images=max(BATCH_SIZES),
        **{**defaults, **settings},
    )


def _judge(
    bench: Bench, report: Report, name: str, value: float, *, most: float | None = None, least: float | None = None
) -> None:
    """Speed has goals for the full-size model on CUDA only."""
    if bench.is_tiny or not bench.has_cuda:
        report.skip(f"{name} ({value:.2f})", "the goal is for full-size SDXL on a CUDA device")
    elif most is not None:
        report.check_most(name, value, most)
    elif least is not None:
        report.check(name, value >= least, value=value, goal=f"at least {least:g}")


class _KernelCount:
    """Profiles the step after `step`."""

    def __init__(self, step: int) -> None:
        self._step = step
        self._profile = profile(activities=[ProfilerActivity.CUDA])
        self.kernels = self.copies = 0

    def __call__(self, _: Trial, event: StepDone) -> None:
        if event.step == self._step:
            self._profile.start()
        elif event.step == self._step + 1:
            self._profile.stop()
            names = [each.name for each in self._profile.events() or () if each.device_type == DeviceType.CUDA]
            self.copies = sum(name.startswith(("Memcpy", "Memset")) for name in names)
            self.kernels = len(names) - self.copies


def _count_kernels(bench: Bench, report: Report) -> None:
    if ProfilerActivity.CUDA not in supported_activities() or not bench.has_cuda:
        report.skip("kernels per step", "torch's profiler sees no CUDA here")
        return
    case = (bench.sizes.square, 1)
    if not (bench.is_tiny or report.has_time("kernels per step", SECONDS_PER_RUN)):
        return
    for checkpointing in (True, False) if _fits_without_checkpointing(bench, case) else (True,):
        trial = _make_trial(bench, report, case, f"kernels-{checkpointing}", gradient_checkpointing=checkpointing)
        count = _KernelCount(WARM_UP)
        trial.on_step.append(count)
        trial.train()
        report.add_row(checkpointing=checkpointing, kernels_per_step=count.kernels, copies_per_step=count.copies)


def _check_streaming(bench: Bench, report: Report) -> None:
    if not can_stream():
        report.skip("streamed weights", f"this trainer has no setting {STREAMING}")
        return
    case = (bench.sizes.square, max(BATCH_SIZES))
    if not (bench.is_tiny or report.has_time("streamed weights", 2 * SECONDS_PER_RUN)):
        return
    seconds = {}
    for name, blocks in {"resident": 0, "streamed": STREAMED_BLOCKS}.items():
        streaming = {STREAMING: blocks, "gradient_checkpointing": True}
        trial = _make_trial(bench, report, case, name, **streaming)
        trial.train()
        seconds[name] = trial.seconds_per_step(warm_up=WARM_UP)
        report.add_row(weights=name, seconds=seconds[name], peak_gb=trial.peak_bytes.get("training", 0) / 2**30)
    _judge(bench, report, "streamed against resident", seconds["streamed"] / seconds["resident"], most=MOST_STREAMED)
