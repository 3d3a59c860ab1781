"""Every memory preset within the memory of the card that it is for: does it fit, and is the
estimate right? Then too little memory: what the error says, and what is left of the run.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch

from trainers.check.memory_estimate import CUDA_CONTEXT_BYTES, MemoryEstimate
from trainers.sdxl.config import SDXLConfig
from trainers.sdxl.memory import estimate_memory
from trainers.sdxl.model.standard_unet import standard_unet
from trainers.training.device import is_out_of_memory
from trainers.training.events import StepDone
from trainers.training.optimizers import can_step
from trainers.training.presets import MEMORY_PRESETS, choose_memory_preset
from trainers.training.resume.state_ring import list_states
from trainers.wording import GIBIBYTE, MEBIBYTE

from ..bench import Bench, can_stream
from ..report import Report
from ..trial import Trial, make_trial

NAME, TITLE = "memory", "Memory presets, and too little memory"
SHARE_SECONDS, NEEDED_SECONDS = 120.0, 25.0
CARDS_GB = (8, 12, 16, 24, 6, 4)
TINY_CARDS_GB = (8, 24)  # one with and one without gradient checkpointing
GOAL = 0.10  # of the measured peak, between it and the estimate
SECONDS_PER_RUN = 10.0
SAMPLES = {"sample_every_n_steps": 2, "sample_steps": 2, "sample_prompt": "a thing"}
STOP_STEP = 2
# An error that helps names one of these.
REMEDIES = (
    "gradient_checkpointing",
    "train_batch_size",
    "step_down_on_oom",
    "blocks_to_swap",
    "sample_every_n_steps",
    "resolution",
    "AdamW8bit",
)


def run(bench: Bench, report: Report) -> None:
    square = (bench.sizes.square, bench.sizes.square)
    for size_wh in [bench.sizes.upright] if bench.is_tiny else [square, bench.sizes.upright]:
        for card_gb in TINY_CARDS_GB if bench.is_tiny else CARDS_GB:
            part = f"{card_gb} GB at {size_wh[0]}x{size_wh[1]}"
            if bench.total_bytes is not None and _is_larger(card_gb, bench.total_bytes):
                report.skip(part, f"this card has {bench.total_bytes / GIBIBYTE:.1f} GB")
            elif bench.is_tiny or report.has_time(part, SECONDS_PER_RUN):
                _check_card(bench, report, card_gb, size_wh)
    _check_too_little(bench, report)


def _is_larger(card_gb: int, total_bytes: int) -> bool:
    """Tell whether such a card has clearly more memory than this one."""
    return card_gb * GIBIBYTE > total_bytes * 1.05


def _check_card(bench: Bench, report: Report, card_gb: int, size_wh: tuple[int, int]) -> None:
    preset = choose_memory_preset(card_gb * GIBIBYTE)
    part = f"{card_gb} GB, preset {preset}, {size_wh[0]}x{size_wh[1]}"
    settings = _choose_settings(bench, report, preset)
    name = part.replace(" ", "").replace(",", "-")
    trial = make_trial(
        bench, report, name, load_model=bench.load_full, size_wh=size_wh, num_images=2, max_train_steps=3, **settings
    )
    estimate = _estimate(trial, size_wh)
    must_fit = estimate.total_bytes <= card_gb * GIBIBYTE or can_stream()
    error = _train_within(bench, trial, card_gb)
    report.add_row(card=f"{card_gb} GB", preset=preset, size=f"{size_wh[0]}x{size_wh[1]}", **_measure(trial, estimate))
    if must_fit:
        report.check(f"{part} fits", not error, value=error or "trained", goal="3 steps and samples")
    elif error:
        report.skip(f"{part} fits", f"the estimate is {estimate.text()}, and so it ran out of memory")
    else:
        report.check(f"{part} fits", True, value="trained", goal=f"nothing: {estimate.total_bytes / GIBIBYTE:.1f} GB")
    if not bench.has_cuda or bench.is_tiny:
        report.skip(f"{part}: the estimate", "it is that of full-size SDXL on a CUDA device")
    elif not error and estimate.total_bytes <= card_gb * GIBIBYTE:
        _check_estimate(report, part, trial, estimate)


def _choose_settings(bench: Bench, report: Report, preset: str) -> dict[str, Any]:
    settings = {name: value for name, value in asdict(MEMORY_PRESETS[preset]).items() if name != "resolution"}
    if not can_step(settings["optimizer"], bench.device):
        report.skip(f"{settings['optimizer']} of preset {preset}", f"it cannot step on {bench.device}; AdamW instead")
        settings["optimizer"] = "AdamW"
    return {**settings, **SAMPLES, "learning_rate": 1e-4, "mixed_precision": bench.half, "save_dtype": "bf16"}


def _estimate(trial: Trial, size_wh: tuple[int, int]) -> MemoryEstimate:
    config = trial.plan().settings.training
    assert isinstance(config, SDXLConfig)
    return estimate_memory(standard_unet(), config, size_hw=(size_wh[1], size_wh[0]), precision=config.mixed_precision)


def _train_within(bench: Bench, trial: Trial, card_gb: int) -> str:
    """Return an empty text, or the error of a run that ran out of memory."""
    try:
        with limited_memory(bench, card_gb * GIBIBYTE - CUDA_CONTEXT_BYTES):
            trial.train()
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        if not is_out_of_memory(error):
            raise
        return first_line(error)
    return ""


@contextmanager
def limited_memory(bench: Bench, num_bytes: int) -> Iterator[None]:
    """Inside the block torch gets at most so much of the device's memory; elsewhere than on CUDA it
    gets all of it.
    """
    try:
        set_limit(bench, num_bytes)
        yield
    finally:
        set_limit(bench, None)


def set_limit(bench: Bench, num_bytes: int | None) -> None:
    if bench.has_cuda:
        assert bench.total_bytes is not None
        torch.cuda.empty_cache()
        fraction = 1.0 if num_bytes is None else min(1.0, num_bytes / bench.total_bytes)
        torch.cuda.set_per_process_memory_fraction(fraction, bench.device)


def _measure(trial: Trial, estimate: MemoryEstimate) -> dict[str, Any]:
    caching = max((trial.peak_bytes.get(stage, 0) for stage in ("loading", "caching")), default=0)
    return {
        "caching GB": caching / GIBIBYTE,
        "estimated caching GB": estimate.caching_bytes / GIBIBYTE,
        "training GB": trial.peak_bytes.get("training", 0) / GIBIBYTE,
        "estimated training GB": estimate.training_bytes / GIBIBYTE,
        "samples": trial.num_samples,
    }


def _check_estimate(report: Report, part: str, trial: Trial, estimate: MemoryEstimate) -> None:
    """Compare what tensors take. The estimate's overhead, CUDA's context and gaps of the allocator,
    is a rule of thumb, and is not part of it.
    """
    measured = max(trial.peak_bytes.values())
    estimated = max(estimate.training_bytes, estimate.caching_bytes)
    difference = abs(estimated - measured) / measured
    report.check_most(f"{part}: estimate against the measured peak", difference, GOAL)


def _check_too_little(bench: Bench, report: Report) -> None:
    """Take the memory away after step 2, then give it back and go on."""
    if not bench.has_cuda:
        report.skip("too little memory", "only CUDA's memory can be limited")
        return
    if not (bench.is_tiny or report.has_time("too little memory", 2 * SECONDS_PER_RUN)):
        return
    settings = {"max_train_steps": 4, "train_batch_size": 2, "mixed_precision": bench.half}
    size_wh = (bench.sizes.square, bench.sizes.square)
    trial = make_trial(bench, report, "too-little", load_model=bench.load_full, size_wh=size_wh, **settings)
    trial.on_step.append(lambda _, event: _take_memory_away(bench, event))
    before = bench.allocated_bytes()
    error = _train_until_out_of_memory(bench, trial)
    report.check("too little memory is an error", bool(error), value=error, goal="out of memory in step 3")
    named = [remedy for remedy in REMEDIES if remedy in " ".join([error, *trial.notices])]
    report.check("the error names a remedy", bool(named), value=", ".join(named) or error, goal="a setting to change")
    _check_what_is_left(report, trial)
    bench.free()
    left = bench.allocated_bytes() - before
    report.check("the memory is free again", left < MEBIBYTE, value=f"{left / MEBIBYTE:.1f} MB", goal="less than 1 MB")
    trial.on_step.clear()
    trial.train(resume="auto")
    report.check("with enough memory the run goes on", len(trial.losses) == 4, value=len(trial.losses), goal="4 steps")


def _take_memory_away(bench: Bench, event: StepDone) -> None:
    if event.step == STOP_STEP:
        set_limit(bench, bench.allocated_bytes() + MEBIBYTE)


def _train_until_out_of_memory(bench: Bench, trial: Trial) -> str:
    try:
        trial.train()
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        if not is_out_of_memory(error):
            raise
        return first_line(error)
    finally:
        set_limit(bench, None)
    return ""


def _check_what_is_left(report: Report, trial: Trial) -> None:
    assert trial.run_folder is not None
    states = [path.name for path in list_states(trial.run_folder.states)]
    checkpoints = sorted(path.name for path in trial.run_folder.checkpoints.glob("*.safetensors"))
    report.check("a state is left", bool(states), value=", ".join(states), goal=f"of step {STOP_STEP}")
    report.check("a checkpoint is left", bool(checkpoints), value=", ".join(checkpoints), goal=f"of step {STOP_STEP}")


def first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
