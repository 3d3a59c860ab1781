"""Measures whether the validation finds the best checkpoint: trains new concepts on the embedded
base, and scores the model after every tenth of the run.

    python -m benchmarks.best_checkpoint FOLDER                         # all 20 tasks x 5 seeds
    python -m benchmarks.best_checkpoint FOLDER --tasks 3 --seeds 0     # one cell
    python -m benchmarks.best_checkpoint FOLDER --only-table            # the cells that are done

A task is a toadstool in two colours, with its own number of images and learning rate. Each cell is
one run, and one JSON file; a cell that is there is not trained again. The score of a checkpoint is
its fidelity (0 to 1) minus its drift (the mean change of the pixels of old prompts, as a share of
255). A cell is right if the score of the step that the rule picks is within 2 % of the best one.
"""

import argparse
import json
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainers.commands.demo import SETTINGS
from trainers.dataset.bucket_config import BucketConfig
from trainers.dataset.config import DatasetConfig
from trainers.dataset.scan import scan_folder
from trainers.demo.before_after import OLD_PROMPTS, SIZE_HW
from trainers.demo.concept import TRIGGER_WORD, draw_toadstool, fidelity
from trainers.embedded_base import write_embedded_checkpoint
from trainers.embedded_base.shared.scenes import BACKGROUNDS, COLOURS
from trainers.files.tensor_cache import TensorCache
from trainers.sdxl.config import SDXLConfig
from trainers.sdxl.family import SDXLFamily
from trainers.sdxl.model.sampling import decode_latents, denoise, make_noise_scheduler, use_float32_on_cpu
from trainers.sdxl.model.sdxl_model import load_model
from trainers.sdxl.model.text import encode_captions
from trainers.sdxl.prepared_model import PreparedSDXL
from trainers.training.best_step import find_best, should_stop
from trainers.training.console_host import ConsoleHost
from trainers.training.evaluation import evaluating
from trainers.training.events import Event, StepDone
from trainers.training.loop import train_lora
from trainers.training.plan import TrainingPlan, plan_training
from trainers.training.run_folder import RunFolder
from trainers.training.run_settings import RunSettings
from trainers.training.texts import TrainingTexts
from trainers.training.validation_plan import ValidationDraw, ValidationKind, choose_draws
from trainers.training.validator import geometric_mean

NUM_TASKS, NUM_POINTS, NUM_DRAWS = 20, 10, 12
TOLERANCE = 0.02
SAMPLER_STEPS, GUIDANCE_SCALE = 10, 4.0
NEW_PROMPTS = [f"a {TRIGGER_WORD} on a {background} background" for background in BACKGROUNDS]
KINDS: dict[ValidationKind, str] = {"held-out": "held", "stable loss": "stable"}


@dataclass(frozen=True)
class Task:
    cap: str
    stem: str
    num_images: int
    learning_rate: float


def list_tasks() -> list[Task]:
    pairs = [(cap, stem) for cap in COLOURS for stem in COLOURS if cap != stem]
    random.Random(7).shuffle(pairs)
    return [
        Task(cap, stem, (6, 10, 15, 24)[number % 4], (2e-3, 4e-3, 1e-3)[number % 3])
        for number, (cap, stem) in enumerate(pairs[:NUM_TASKS])
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tasks", type=int, nargs="+", default=list(range(NUM_TASKS)))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--steps", type=int, default=500, help="a multiple of 10 (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--num-seeds", type=int, default=4, help="images per prompt (default: %(default)s)")
    parser.add_argument("--only-table", action="store_true")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if not options.only_table:
        for seed in options.seeds:
            for task in options.tasks:
                run_cell(options, task, seed)
    print_table(options.folder)


def run_cell(options: argparse.Namespace, number: int, seed: int) -> None:
    path = options.folder / f"task{number:02}-seed{seed}.json"
    if path.exists():
        return
    started_at, task, base = time.process_time(), list_tasks()[number], options.folder / "base.safetensors"
    if not base.exists():
        write_embedded_checkpoint(base)
    images = _write_images(options.folder / "images" / f"{number:02}-{seed}", task, seed)
    plan = _plan(images, task, seed, options)
    observer = Observer(plan, Judge(base, task, options.num_seeds))
    with ObservingHost(observer) as host:
        result = train_lora(
            ObservedFamily(base, observer),
            plan,
            host,
            run_folder=RunFolder(options.folder / "loras", f"task{number:02}-seed{seed}"),
            cache=TensorCache(options.folder / "cache"),
            resume="new",
        )
    cell = {
        "task": vars(task),
        "seed": seed,
        "steps": options.steps,
        "points": observer.points,
        "losses": result.losses,
        "seconds": time.process_time() - started_at,
    }
    path.write_text(json.dumps(cell))


def _write_images(folder: Path, task: Task, seed: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(f"{seed}/{vars(task)}")
    for number in range(task.num_images):
        height, width = rng.choice([(128, 128), (128, 128), (160, 96), (96, 160)])
        background = list(BACKGROUNDS)[number % len(BACKGROUNDS)]
        image = draw_toadstool(
            (height, width),
            BACKGROUNDS[background],
            cap_width=rng.uniform(0.55, 0.85) * min(height, width),
            centre_yx=(height * rng.uniform(0.46, 0.54), width * rng.uniform(0.46, 0.54)),
            cap=COLOURS[task.cap],
            stem=COLOURS[task.stem],
        )
        image.save(folder / f"{number:02}.png")
        (folder / f"{number:02}.txt").write_text(f"a {TRIGGER_WORD} on a {background} background\n", encoding="utf-8")
    return folder


def _plan(images: Path, task: Task, seed: int, options: argparse.Namespace) -> TrainingPlan[SDXLConfig]:
    """Hold out a fifth of the images. The benchmark measures, so the trainer need not."""
    config = SDXLConfig(
        learning_rate=task.learning_rate,
        max_train_steps=options.steps,
        train_batch_size=options.batch_size,
        gradient_checkpointing=False,
        save_dtype="fp32",
        seed=seed,
        validation_share=0.2,
        validate_every_n_steps=-1,
    )
    buckets = BucketConfig(resolution=SETTINGS["resolution"], bucket_reso_steps=SETTINGS["bucket_reso_steps"])
    settings = RunSettings(config, buckets)
    plan = plan_training(scan_folder(DatasetConfig(images=str(images), trigger_word=TRIGGER_WORD)), settings)
    texts = TrainingTexts(plan.dataset, plan.crops.items, config, settings.captions, measured=plan.all_items)
    return replace(plan, texts=texts)


class Judge:
    """Scores a UNet against the base, with the same prompts and noise every time."""

    def __init__(self, base: Path, task: Task, num_seeds: int) -> None:
        self._model, self._task = load_model(base), task
        use_float32_on_cpu(self._model)
        prompts = [(prompt, seed) for prompt in (*NEW_PROMPTS, *OLD_PROMPTS[:4]) for seed in range(num_seeds)]
        self._seeds, self._num_new = [seed for _, seed in prompts], len(NEW_PROMPTS) * num_seeds
        assert self._model.text_encoder is not None and self._model.text_encoder_2 is not None
        with torch.no_grad():
            self._embeddings = encode_captions(
                self._model.text_encoder,
                self._model.text_encoder_2,
                [""] * len(prompts) + [prompt for prompt, _ in prompts],
            )
        self._before = self._draw(self._model.unet)

    @torch.no_grad()
    def _draw(self, unet: Any) -> np.ndarray:
        model = self._model
        assert model.vae is not None
        with evaluating(unet):
            latents = denoise(
                unet,
                self._embeddings,
                make_noise_scheduler(model.prediction_type, zero_terminal_snr=model.zero_terminal_snr),
                seeds=self._seeds,
                size_hw=SIZE_HW,
                num_steps=SAMPLER_STEPS,
                guidance_scale=GUIDANCE_SCALE,
            )
        return decode_latents(model.vae, latents)

    def score(self, unet: Any) -> dict[str, float]:
        images, split = self._draw(unet), self._num_new
        colours = {"cap": COLOURS[self._task.cap], "stem": COLOURS[self._task.stem]}
        drift = np.abs(images[split:].astype(float) - self._before[split:]).mean()
        return {
            "fidelity": float(np.mean([fidelity(image, **colours) for image in images[:split]])),
            "drift": float(drift),
        }


class Observer:
    """Measures both kinds of validation, and the score, at the start and after every tenth."""

    def __init__(self, plan: TrainingPlan[SDXLConfig], judge: Judge) -> None:
        seed, items = plan.settings.training.seed, plan.crops.items
        self._draws: dict[str, tuple[ValidationDraw, ...]] = {
            "held": choose_draws(plan.validation.held_out, NUM_DRAWS, seed=seed),
            "stable": choose_draws(items, NUM_DRAWS, seed=seed),
        }
        self._every = plan.schedule.total_steps // NUM_POINTS
        self._judge = judge
        self.model: PreparedSDXL | None = None
        self.points: list[dict[str, Any]] = []

    def observe(self, step: int) -> None:
        if step % self._every:
            return
        assert self.model is not None
        losses = {name: self.model.validation_losses(draws).tolist() for name, draws in self._draws.items()}
        self.points.append({"step": step, **losses, **self._judge.score(self.model.model.unet)})


class ObservedFamily(SDXLFamily):
    def __init__(self, base: Path, observer: Observer) -> None:
        super().__init__(lambda _: load_model(base))
        self._observer = observer

    def prepare(self, *given: Any, **named: Any) -> PreparedSDXL:
        self._observer.model = model = super().prepare(*given, **named)
        self._observer.observe(0)
        return model


class ObservingHost(ConsoleHost):
    """The console, with the observer after each step."""

    def __init__(self, observer: Observer) -> None:
        super().__init__(torch.device("cpu"), quiet=True)
        self._observer = observer

    def report(self, event: Event) -> None:
        super().report(event)
        if isinstance(event, StepDone):
            self._observer.observe(event.step)


# --- the table ---


@dataclass(frozen=True)
class Pick:
    step: int
    stopped_at: int  # with early_stop
    score: float


def print_table(folder: Path) -> None:
    cells = [json.loads(path.read_text()) for path in sorted(folder.glob("task*.json"))]
    print("| task | seed | best step | score | last step's | held-out picks | stops | stable loss picks | stops |")
    print("|---|---|---|---|---|---|---|---|---|")
    for cell in cells:
        print(f"| {' | '.join(_format_row(cell))} |")
    for kind in KINDS:
        right = sum(is_right(cell, choose_step(cell, kind)) for cell in cells)
        print(f"{kind}: right in {right} of {len(cells)}")
    last = sum(cell_score(cell["points"][-1]) >= (1 - TOLERANCE) * best_score(cell) for cell in cells)
    print(f"the last step: right in {last} of {len(cells)}")


def _format_row(cell: dict[str, Any]) -> Iterator[str]:
    task, scores = cell["task"], {point["step"]: cell_score(point) for point in cell["points"][1:]}
    best = max(scores, key=lambda step: scores[step])
    yield f"{task['cap']} on {task['stem']}, {task['num_images']} images, {task['learning_rate']:g}"
    yield from (str(cell["seed"]), str(best), f"{scores[best]:.3f}", f"{cell_score(cell['points'][-1]):.3f}")
    for kind in KINDS:
        pick = choose_step(cell, kind)
        yield f"{pick.step}: {pick.score:.3f}{'' if is_right(cell, pick) else ' (wrong)'}"
        yield str(pick.stopped_at)


def cell_score(point: dict[str, Any]) -> float:
    return point["fidelity"] - point["drift"] / 255


def best_score(cell: dict[str, Any]) -> float:
    return max(cell_score(point) for point in cell["points"][1:])


def is_right(cell: dict[str, Any], pick: Pick) -> bool:
    return pick.score >= best_score(cell) - TOLERANCE * abs(best_score(cell))


def choose_step(cell: dict[str, Any], kind: ValidationKind) -> Pick:
    """Run the trainer's rule with early_stop over a cell."""
    rows: list[Sequence[float]] = []
    for point in cell["points"]:
        rows.append((point["step"], geometric_mean(torch.tensor(point[KINDS[kind]])), math.nan))
        if should_stop(rows, kind, total_steps=cell["steps"]):
            break
    best = find_best(rows, kind)
    assert best is not None
    score = next(cell_score(point) for point in cell["points"] if point["step"] == best.step)
    return Pick(best.step, int(rows[-1][0]), score)


if __name__ == "__main__":
    main()
