"""Scores what a LoRA learned and what it damaged, from images. Needs no model.

Images are uint8 [prompts * seeds, height, width, 3], prompt by prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainers.embedded_base.shared.scenes import BACKGROUNDS, fits, read_image

from .concepts import Style, Thing, shows_any
from .tasks import Prompt, Task

RECOGNIZED = 0.4  # score from which a thing can be said to be somewhere
OTHER_PLACE = 0.42  # a centre below this share of the image is on the left, or at the top
SMALL, LARGE = 0.47, 0.6  # widths


@dataclass(frozen=True)
class Score:
    """fidelity: 0 to 1, mean over the new prompts; worst_prompt: the mean of the worst of them.
    freedom: share of images in which background, place, size or company is what the prompt says,
    mean over these kinds. leak: share of images of old prompts that show a colour of the concept
    only with the LoRA. kept: share of those of them that have the right colour, shape and
    background without the LoRA that have it with it too, and no leak. drift: mean change of
    their pixels, 0 to 255.
    """

    fidelity: float
    worst_prompt: float
    freedom: float
    leak: float
    kept: float
    drift: float

    @property
    def total(self) -> float:
        """One number to rank by, at most 1: what is learned, times what is left of the old."""
        return 0.5 * (self.fidelity + self.freedom) * self.kept


def score(task: Task, new: np.ndarray, old: np.ndarray, old_before: np.ndarray) -> Score:
    """Score images of the task's new and old prompts with a LoRA; `old_before` are without it."""
    prompts, texts = task.list_new_prompts(), task.list_old_prompts()
    num_seeds = len(new) // len(prompts)
    fidelity = np.array([task.concept.score(image) for image in new]).reshape(len(prompts), num_seeds)
    leaks = find_leaks(task, old, old_before)
    was_right, is_right = (
        np.array([all(fits(image, texts[index // num_seeds])) for index, image in enumerate(images)])
        for images in (old_before, old)
    )
    return Score(
        fidelity=float(fidelity.mean()),
        worst_prompt=float(fidelity.mean(1).min()),
        freedom=_measure_freedom(task, prompts, new, num_seeds),
        leak=float(leaks.mean()),
        kept=float((is_right & ~leaks)[was_right].mean()) if was_right.any() else 1.0,
        drift=measure_drift(old, old_before),
    )


def find_leaks(task: Task, after: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Return which images of old prompts show a colour of the concept that they did not show."""
    shown = [[shows_any(image, task.concept.colours) for image in images] for images in (after, before)]
    return np.array(shown[0]) & ~np.array(shown[1])


def measure_drift(after: np.ndarray, before: np.ndarray) -> float:
    return float(np.abs(after.astype(float) - before).mean())


def _measure_freedom(task: Task, prompts: Sequence[Prompt], images: np.ndarray, num_seeds: int) -> float:
    answers: dict[str, list[bool]] = {}
    for index, image in enumerate(images):
        prompt = prompts[index // num_seeds]
        answers.setdefault(prompt.kind, []).append(_obeys(task, prompt, image))
    return float(np.mean([np.mean(each) for each in answers.values()]))


def _obeys(task: Task, prompt: Prompt, image: np.ndarray) -> bool:
    if isinstance(task.concept, Style):
        return task.concept.score(image) >= RECOGNIZED and all(fits(task.concept.cut(image), prompt.wanted))
    assert isinstance(task.concept, Thing)
    found = task.concept.find(image)
    if found.score < RECOGNIZED:
        return False
    y, x = found.centre_yx
    return {
        "background": lambda: prompt.wanted not in BACKGROUNDS or read_image(image).background == prompt.wanted,
        "position": lambda: _is_at(prompt.wanted, y, x),
        "size": lambda: found.width < SMALL if prompt.wanted == "small" else found.width > LARGE,
        "combination": lambda: shows_any(image, (prompt.wanted,)),
    }[prompt.kind]()


def _is_at(place: str, y: float, x: float) -> bool:
    return {
        "on the left": x < OTHER_PLACE,
        "on the right": x > 1 - OTHER_PLACE,
        "at the top": y < OTHER_PLACE,
        "at the bottom": y > 1 - OTHER_PLACE,
    }[place]
