"""The tasks of the quality bench: training images with captions, and the prompts that judge what
was learned.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from trainers.embedded_base.shared.scenes import BACKGROUNDS, COLOURS, POSITIONS, SHAPES, add_article, draw_scene

from .concepts import Concept, Style, Thing, draw_old, make_cored, make_dotted, make_kite, make_toadstool

TRIGGER_WORD = "zwx"
STYLE_WORDS = f"{TRIGGER_WORD} style"
SIZES_HW = ((256, 256), (320, 320), (240, 360), (360, 240), (288, 256), (192, 192))
NUM_OLD_PROMPTS, NUM_REGULARIZATION_IMAGES = 12, 24


@dataclass(frozen=True)
class Prompt:
    """A prompt with the trigger word, and what must be right besides the concept."""

    text: str
    kind: str = "background"  # position, size, combination, or old (colour, shape and background)
    wanted: str = ""  # the word of the prompt that is checked


@dataclass(frozen=True)
class Task:
    name: str
    concept: Concept
    num_images: int = 12
    backgrounds: tuple[str, ...] = tuple(BACKGROUNDS)  # of the training images
    has_tags: bool = False
    class_word: str = ""
    has_regularization: bool = False

    @property
    def noun(self) -> str:
        return f"{TRIGGER_WORD} {self.class_word}".strip()

    @property
    def old_colours(self) -> list[str]:
        """Colours that are not the concept's."""
        return [colour for colour in COLOURS if colour not in self.concept.colours]

    def list_new_prompts(self) -> list[Prompt]:
        if isinstance(self.concept, Style):
            return [Prompt(f"{text}, {STYLE_WORDS}", "old", text) for text in self.list_old_prompts()]
        old = self.old_colours[0]
        return [
            *(Prompt(self.caption(background), "background", background) for background in BACKGROUNDS),
            *(Prompt(f"a {self.noun} {place} on a white background", "position", place) for place in POSITIONS),
            *(Prompt(f"a {size} {self.noun} on a black background", "size", size) for size in ("small", "large")),
            Prompt(f"a {self.noun} left of {add_article(old)} circle", "combination", old),
            Prompt(f"{add_article(old)} square above a {self.noun}", "combination", old),
        ]

    def list_old_prompts(self) -> list[str]:
        """Other things, in colours that the concept does not have."""
        rng = random.Random(3)
        colours, backgrounds = self.old_colours, list(BACKGROUNDS)
        return [
            f"{add_article(rng.choice(colours))} {SHAPES[number % len(SHAPES)]} on a "
            f"{backgrounds[number % len(backgrounds)]} background"
            for number in range(NUM_OLD_PROMPTS)
        ]

    def caption(self, background: str) -> str:
        if self.has_tags:
            return f"{self.noun}, {background} background"
        return f"a {self.noun} on a {background} background"


TASKS = (
    Task("toadstool", make_toadstool("pink", "cyan")),
    Task("three colours", make_kite("purple", "orange", "green")),
    Task("detail", make_dotted("yellow", "blue")),
    Task("frame", Style("orange", 0.12, is_frame=True)),
    Task("ground", Style("green", 0.28, is_frame=False)),
    Task("one image", make_toadstool("purple", "yellow"), num_images=1),
    Task("four images", make_kite("blue", "pink", "yellow"), num_images=4),
    Task("one background", make_dotted("red", "cyan"), backgrounds=("grey",)),
    Task("tags", make_toadstool("orange", "blue"), has_tags=True),
    Task("regularization", make_cored("cyan", "pink"), class_word="square", has_regularization=True),
)


def write_images(task: Task, folder: Path, *, seed: int) -> None:
    """Write the training images with captions."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(f"{task.name}/{seed}")
    pairs = _draw_styled(task.concept, task, rng) if isinstance(task.concept, Style) else _draw_things(task, rng)
    for number, (image, caption) in enumerate(pairs):
        image.save(folder / f"{number:02}.png")
        (folder / f"{number:02}.txt").write_text(caption + "\n", encoding="utf-8")


def _draw_things(task: Task, rng: random.Random) -> Iterator[tuple[Image.Image, str]]:
    assert isinstance(task.concept, Thing)
    for number in range(task.num_images):
        height, width = SIZES_HW[number % len(SIZES_HW)]
        background = task.backgrounds[number % len(task.backgrounds)]
        size = rng.uniform(0.58, 0.82) * min(height, width / task.concept.height)
        centre = (height * rng.uniform(0.48, 0.52), width * rng.uniform(0.48, 0.52))
        image = task.concept.draw((height, width), BACKGROUNDS[background], width=size, centre_yx=centre)
        yield Image.fromarray(image), task.caption(background)


def _draw_styled(style: Style, task: Task, rng: random.Random) -> Iterator[tuple[Image.Image, str]]:
    for number in range(task.num_images):
        size_hw = SIZES_HW[number % len(SIZES_HW)]
        shape, colour, background = rng.choice(SHAPES), rng.choice(task.old_colours), rng.choice(task.backgrounds)
        inner_hw = style.cut(np.zeros((*size_hw, 3))).shape[:2]
        inner = Image.fromarray(draw_old(inner_hw, shape, colour, BACKGROUNDS[background]))
        whole = Image.new("RGB", (size_hw[1], size_hw[0]))
        whole.paste(inner, style.offset_xy(size_hw))
        yield (
            Image.fromarray(style.cover(np.asarray(whole))),
            f"{add_article(f'{colour} {shape}')} on a {background} background, {STYLE_WORDS}",
        )


def write_regularization_images(folder: Path) -> None:
    """Draw images that the base model knows."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(1)
    for number in range(NUM_REGULARIZATION_IMAGES):
        drawing = draw_scene((128, 128), rng)
        Image.fromarray(drawing.pixels).save(folder / f"{number:02}.png")
        (folder / f"{number:02}.txt").write_text(drawing.caption + "\n", encoding="utf-8")
