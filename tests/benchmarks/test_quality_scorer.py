"""The quality bench's scorer, on images made by hand: what is better gets a better score."""

import random
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from benchmarks.quality.concepts import Style, Thing, draw_old, make_cored, shows_any
from benchmarks.quality.scoring import Score, score
from benchmarks.quality.tasks import TASKS, Prompt, Task, write_images
from trainers.embedded_base.shared.scenes import BACKGROUNDS

SIZE_HW = (128, 128)
Draw = Callable[[Task, Prompt], np.ndarray]


def draw_good(task: Task, prompt: Prompt) -> np.ndarray:
    """Draw what the prompt asks for."""
    if isinstance(task.concept, Style):
        return _cover(task.concept, prompt.wanted)
    y, x = {
        "on the left": (0.5, 0.3),
        "on the right": (0.5, 0.7),
        "at the top": (0.3, 0.5),
        "at the bottom": (0.7, 0.5),
    }.get(prompt.wanted, (0.5, 0.5))
    width = {"small": 0.36, "large": 0.72}.get(prompt.wanted, 0.5)
    image = _draw_thing(task, prompt, width=width, centre=(y, x))
    if prompt.kind == "combination":
        image[:24, :24] = draw_old((24, 24), "square", prompt.wanted, BACKGROUNDS["white"])
    return image


def draw_overfitted(task: Task, prompt: Prompt) -> np.ndarray:
    """Draw a training image, whatever the prompt says besides the trigger word."""
    if isinstance(task.concept, Style):
        return _cover(task.concept, "a red circle on a white background")
    return _draw_thing(task, Prompt("", wanted="white"), width=0.66, centre=(0.5, 0.5))


def draw_broken(task: Task, prompt: Prompt) -> np.ndarray:
    """Draw stripes of the right colours."""
    names = [*task.concept.colours, "red" if "red" not in task.concept.colours else "purple"]
    image = draw_old(SIZE_HW, "square", names[0], BACKGROUNDS["white"]).copy()
    for number, name in enumerate(names):
        image[32 + 20 * number : 52 + 20 * number, 40:90] = draw_old((60, 60), "square", name, (0, 0, 0))[30, 30]
    return image


def _cover(style: Style, prompt: str) -> np.ndarray:
    inner = draw_prompt(prompt, style.cut(np.zeros((*SIZE_HW, 3))).shape[:2])
    whole = Image.new("RGB", SIZE_HW)
    whole.paste(Image.fromarray(inner), style.offset_xy(SIZE_HW))
    return style.cover(np.asarray(whole))


def _draw_thing(task: Task, prompt: Prompt, *, width: float, centre: tuple[float, float]) -> np.ndarray:
    assert isinstance(task.concept, Thing)
    background = BACKGROUNDS.get(prompt.wanted, BACKGROUNDS["grey"])
    y, x = (value * 128 for value in centre)
    return task.concept.draw(SIZE_HW, background, width=width * 128, centre_yx=(y, x)).copy()


def draw_prompt(prompt: str, size_hw: tuple[int, int] = SIZE_HW) -> np.ndarray:
    _, colour, shape, *_, background, _ = prompt.split()
    return draw_old(size_hw, shape, colour, BACKGROUNDS[background])


def judge(task: Task, draw: Draw, *, leaking: bool = False) -> Score:
    """Score one image per prompt. Leaking: every second old image shows the concept's colours."""
    before = np.stack([draw_prompt(text) for text in task.list_old_prompts()])
    after = before.copy()
    if leaking:
        for image in after[::2]:
            image[:20, :20] = draw_old((20, 20), "square", task.concept.colours[0], (0, 0, 0))[10, 10]
    return score(task, np.stack([draw(task, prompt) for prompt in task.list_new_prompts()]), after, before)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_good_images_win_and_broken_ones_lose(task):
    good, overfitted, broken = (judge(task, draw) for draw in (draw_good, draw_overfitted, draw_broken))
    leaking = judge(task, draw_good, leaking=True)
    assert good.total > 0.95 and good.leak == 0 and good.drift == 0
    assert overfitted.fidelity > 0.9 and overfitted.freedom < 0.7
    assert leaking.leak == 0.5 and leaking.fidelity == good.fidelity
    assert good.total > max(overfitted.total, leaking.total)
    assert min(overfitted.total, leaking.total) > broken.total
    assert broken.fidelity < 0.3


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_training_images_show_the_concept_and_old_ones_do_not(task, tmp_path):
    write_images(task, tmp_path, seed=0)
    images = [np.asarray(Image.open(path)) for path in sorted(tmp_path.glob("*.png"))]
    assert len(images) == task.num_images
    assert min(task.concept.score(image) for image in images) > 0.95
    old = [draw_prompt(text) for text in task.list_old_prompts()]
    assert max(task.concept.score(image) for image in old) < 0.2
    assert not any(shows_any(image, task.concept.colours) for image in old)


def test_a_thing_without_one_of_its_colours_keeps_part_of_its_score():
    thing = make_cored("cyan", "pink")
    image = thing.draw(SIZE_HW, BACKGROUNDS["white"], width=64, centre_yx=(64, 64)).copy()
    image[50:78, 50:78] = draw_old((9, 9), "square", "cyan", (0, 0, 0))[4, 4]
    assert 0.1 < thing.score(image) < 0.6


def test_noise_costs_little():
    noise = np.random.default_rng(0).normal(0, 12, (*SIZE_HW, 3))
    for task in TASKS:
        image = draw_good(task, task.list_new_prompts()[0])
        assert task.concept.score(np.clip(image + noise, 0, 255).astype(np.uint8)) > 0.9


def test_another_seed_places_the_thing_elsewhere(tmp_path):
    for seed in (0, 1):
        write_images(TASKS[0], tmp_path / str(seed), seed=seed)
    first, second = (np.asarray(Image.open(tmp_path / str(seed) / "00.png")) for seed in (0, 1))
    assert (first != second).any()
    assert random.Random("toadstool/0").random() != random.Random("toadstool/1").random()
