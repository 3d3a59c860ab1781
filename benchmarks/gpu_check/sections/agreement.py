"""The same tiny training on the CPU and on the device, in every precision; an overflow in fp16; the
same seed twice.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from trainers.sdxl.prepared_model import PreparedSDXL
from trainers.training.events import StepDone
from trainers.training.loss_scale import START
from trainers.training.resume.state_file import read_state
from trainers.training.resume.state_ring import list_states

from ..bench import Bench
from ..report import Report
from ..trial import Trial, make_trial

NAME, TITLE = "agreement", "CPU against the device"
SHARE_SECONDS, NEEDED_SECONDS = 50.0, 15.0
NUM_STEPS = 4
GOALS = {"no": 1e-4, "bf16": 0.03, "fp16": 0.03}
OVERFLOW_STEP = 2


def run(bench: Bench, report: Report) -> None:
    reference = _train(bench, report, "cpu", torch.device("cpu"), "no")
    for precision, goal in GOALS.items():
        with exact_float32():
            losses = _train(bench, report, precision, bench.device, precision)
        difference = max_relative_difference(reference, losses)
        report.check_most(f"losses in {'float32' if precision == 'no' else precision}", difference, goal)
    if bench.has_cuda:
        losses = _train(bench, report, "tf32", bench.device, "no")
        report.add_row(float32_with_torch_defaults=max_relative_difference(reference, losses))
    _check_overflow(bench, report)
    _check_repetition(bench, report)


def _train(bench: Bench, report: Report, name: str, device: torch.device, precision: str) -> list[float]:
    trial = make_trial(bench, report, name, device=device, max_train_steps=NUM_STEPS, mixed_precision=precision)
    trial.train()
    return trial.losses


def max_relative_difference(expected: Sequence[float], got: Sequence[float]) -> float:
    """Return the largest difference of two losses of the same step; NaN if one is not finite."""
    differences = [abs(one - other) / abs(one) for one, other in zip(expected, got, strict=True)]
    return max(differences) if all(map(math.isfinite, differences)) else math.nan


@contextmanager
def exact_float32() -> Iterator[None]:
    """Keep cuDNN from TF32, which rounds the inputs of convolutions to ten bits."""
    cudnn, matmul = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = cudnn, matmul


def _check_overflow(bench: Bench, report: Report) -> None:
    """Make one gradient infinite in step 2."""
    trial = make_trial(bench, report, "overflow", mixed_precision="fp16", max_train_steps=3)
    num_passes = 0
    weights: list[Tensor] = []

    def overflow(gradient: Tensor) -> Tensor:
        nonlocal num_passes
        num_passes += 1
        return gradient * math.inf if num_passes == OVERFLOW_STEP else gradient

    def inject(model: PreparedSDXL) -> None:
        model.adapted.groups[0].weights.parameters[0].register_hook(overflow)

    def keep_weights(trial: Trial, _: StepDone) -> None:
        assert trial.model is not None
        weights.append(torch.cat([flat.detach().cpu() for flat in trial.model.adapted.flat_weights]))

    trial.on_prepared.append(inject)
    trial.on_step.append(keep_weights)
    trial.train()
    first, second, third = weights
    report.check("an overflow in fp16 changes no weight", torch.equal(first, second), value="step 2", goal="skipped")
    report.check("the step after it does", not torch.equal(second, third), value="step 3", goal="learned")
    scale = _read_scale(trial)
    report.check("an overflow halves the loss scale", scale == START / 2, value=scale, goal=f"{START / 2:g}")


def _read_scale(trial: Trial) -> float:
    assert trial.run_folder is not None
    return read_state(list_states(trial.run_folder.states)[0]).scaler["scale"]


def _check_repetition(bench: Bench, report: Report) -> None:
    first, again = (_train(bench, report, name, bench.device, bench.half) for name in ("once", "again"))
    difference = max_relative_difference(first, again)
    report.check("the same seed gives the same losses", first == again, value=difference, goal="no difference")
