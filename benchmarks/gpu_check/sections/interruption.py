"""A run that is interrupted in the middle of a step goes on; the captioner on the device; a process
group of one process.
"""

import tempfile
from pathlib import Path

import torch
from PIL import Image

from trainers.captions.florence2.captioner import Florence2Captioner
from trainers.sdxl.prepared_model import PreparedSDXL
from trainers.training.device import COMPUTE_DTYPES
from trainers.training.resume.state_ring import list_states

from ..bench import Bench
from ..machine import FLORENCE2
from ..report import Report
from ..trial import Trial, make_trial

NAME, TITLE = "interruption", "Interruption, captioner, process group"
SHARE_SECONDS, NEEDED_SECONDS = 35.0, 10.0
NUM_STEPS, INTERRUPTED_STEP = 4, 3
# What the tiny Florence-2 of the tests was taught to say.
ANSWERS = {
    "red": "a photo of a red square",
    "blue": "a photo of a blue square",
}
COLOURS = {"red": (220, 30, 30), "blue": (40, 60, 220)}


def run(bench: Bench, report: Report) -> None:
    _check_interruption(bench, report)
    _check_captioner(bench, report)
    _check_process_group(bench, report)


def _check_interruption(bench: Bench, report: Report) -> None:
    """Ctrl-C in the middle of the forward pass of step 3, then the same request again."""
    whole = _make_trial(bench, report, "whole")
    whole.train()
    stopped = _make_trial(bench, report, "stopped")
    stopped.on_prepared.append(_interrupt_in_step)
    try:
        stopped.train()
    except KeyboardInterrupt:
        pass
    finally:
        stopped.on_prepared.clear()
    assert stopped.run_folder is not None
    states = [path.name for path in list_states(stopped.run_folder.states)]
    is_left = f"{INTERRUPTED_STEP - 1:08d}" in "".join(states)
    report.check(
        "an interrupted run leaves its state", is_left, value=", ".join(states), goal=f"step {INTERRUPTED_STEP - 1}"
    )
    stopped.train(resume="auto")
    report.check(
        "the same request goes on to the same losses",
        stopped.losses == whole.losses,
        value=f"{len(stopped.losses)} steps, last loss {stopped.losses[-1]:.6f}",
        goal=f"{NUM_STEPS} steps, last loss {whole.losses[-1]:.6f}",
    )


def _make_trial(bench: Bench, report: Report, name: str) -> Trial:
    return make_trial(bench, report, name, max_train_steps=NUM_STEPS, mixed_precision=bench.half)


def _interrupt_in_step(model: PreparedSDXL) -> None:
    num_passes = 0

    def interrupt(*_: object) -> None:
        nonlocal num_passes
        num_passes += 1
        if num_passes == INTERRUPTED_STEP:
            raise KeyboardInterrupt

    model.model.unet.mid_block.register_forward_pre_hook(interrupt)


def _check_captioner(bench: Bench, report: Report) -> None:
    if not FLORENCE2.is_dir():
        report.skip("captioner", f"{FLORENCE2} is not there")
        return
    images = [Image.new("RGB", (80, 48), COLOURS[colour]) for colour in ANSWERS]
    for precision in ("no", bench.half):
        captioner = Florence2Captioner(
            FLORENCE2, dtype=COMPUTE_DTYPES[precision], place=lambda model: model.to(bench.device)
        )
        texts = captioner.describe(images, prompt="<CAPTION>", num_beams=3, max_new_tokens=50)
        captioner.close()
        name = f"captions in {'float32' if precision == 'no' else precision}"
        report.check(name, texts == list(ANSWERS.values()), value="; ".join(texts), goal="; ".join(ANSWERS.values()))


def _check_process_group(bench: Bench, report: Report) -> None:
    """Start a group of this one process, and sum gradients in it, as several processes do."""
    if not torch.distributed.is_available():
        report.skip("process group", "this torch has no torch.distributed")
        return
    backend = "nccl" if bench.has_cuda else "gloo"
    if bench.has_cuda and not torch.distributed.is_nccl_available():
        report.skip("process group", "this torch has no NCCL")
        return
    with tempfile.TemporaryDirectory() as folder:
        store = (Path(folder) / "store").as_uri()
        torch.distributed.init_process_group(backend, init_method=store, rank=0, world_size=1)
        try:
            gradients = torch.arange(1000, dtype=torch.float32, device=bench.device)
            torch.distributed.all_reduce(gradients)
            total = gradients.sum().item()
        finally:
            torch.distributed.destroy_process_group()
    report.check(f"one process of {backend} sums its gradients", total == 499_500, value=total, goal="499500")
