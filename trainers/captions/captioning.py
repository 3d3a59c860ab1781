"""Captions the images of a dataset with a model: chooses the images, combines the texts with
existing captions, and caches the texts.

The model itself is in florence2/. Imports no torch.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from PIL import Image

from ..config import check_ranges, param
from ..dataset.dataset import Dataset
from ..dataset.image import TrainingImage
from ..dataset.trigger_word import add_trigger_word
from ..files.atomic_write import atomic_write
from ..training.events import ImageCaptioned, Notice, StageProgress, StageStarted
from ..wording import name_first, pluralize
from .florence2.cleaning import clean_caption
from .florence2.tasks import TASKS, expand_prompt

if TYPE_CHECKING:
    from ..training.host import Host

THUMBNAIL_SIZE = 512


@dataclass(frozen=True)
class CaptionerConfig:
    """What to ask the model, and how to use its answers."""

    task: str = param(
        "more_detailed_caption",
        "What to ask the model for. The prompt_gen tasks need a PromptGen model, which was trained on them.",
        choices=tuple(TASKS),
    )
    prompt: str = param(
        "",
        "Sent to the model unchanged instead of task: a token such as <MIX_CAPTION>, or a sentence. "
        "Empty: task decides.",
    )
    existing_captions: str = param(
        "keep",
        "What to do with images that have a caption. keep: caption only images without one; "
        "overwrite: replace it; append: add the new text to it, once.",
        choices=("keep", "overwrite", "append"),
    )
    trigger_template: str = param(
        "{trigger}, {caption}",
        "How to combine the dataset's trigger word and a caption. Must contain the word caption in braces.",
    )
    clean_captions: bool = param(
        True, 'Remove openings such as "The image shows". The medium stays: "a photo of", "a drawing of".'
    )
    write_files: bool = param(
        False,
        "Also write every new caption to a .txt file next to its image (UTF-8). An existing file is replaced.",
    )
    num_beams: int = param(
        3,
        "Beams of the search. 1 is fastest, 3 usual; more costs memory and rarely gives better captions.",
        min=1,
        max=16,
    )
    max_new_tokens: int = param(
        512, "Longest caption in tokens of about 0.75 words. Captions usually end at 20 to 150.", min=1, max=1023
    )
    batch_size: int = param(
        4,
        "Images captioned at once. Usually 1 to 16; more is faster on a GPU and needs more memory. "
        "Captions stay the same.",
        min=1,
        max=256,
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        expand_prompt(self.request)
        places = re.findall(r"\{[^{}]*\}|[{}]", self.trigger_template)
        if "{caption}" not in places or not set(places) <= {"{caption}", "{trigger}"}:
            raise ValueError(
                f"trigger_template must contain {{caption}}, and nothing else in braces except {{trigger}}, got "
                f'"{self.trigger_template}"'
            )

    @property
    def request(self) -> str:
        """The prompt, or the task's token if there is no prompt."""
        return self.prompt.strip() or TASKS[self.task]


class Captioner(Protocol):
    """A model that describes images. `identity` changes whenever the same image could get a
    different text.
    """

    @property
    def identity(self) -> str: ...

    def describe(
        self,
        images: Sequence[Image.Image],
        *,
        prompt: str,
        num_beams: int,
        max_new_tokens: int,
        check_interrupted: Callable[[], None],
    ) -> list[str]: ...


class CaptionCache:
    """Caches a model's texts as UTF-8 files in `folder`/captions. A key covers everything that
    determines the text. Without a folder, texts stay in memory only.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._in_memory: dict[str, str] = {}

    def get(self, key: str) -> str | None:
        if key not in self._in_memory and self._folder is not None and self._path(key).is_file():
            self._in_memory[key] = self._path(key).read_text(encoding="utf-8")
        return self._in_memory.get(key)

    def put(self, key: str, text: str) -> None:
        self._in_memory[key] = text
        if self._folder is not None:
            _write_text(self._path(key), text)

    def _path(self, key: str) -> Path:
        assert self._folder is not None
        return self._folder / "captions" / key[:2] / f"{key}.txt"


def caption_dataset(
    dataset: Dataset, captioner: Captioner, config: CaptionerConfig, host: "Host", cache: CaptionCache
) -> Dataset:
    """Return the dataset with captions from the model. Cached texts are reused; if all are cached,
    the model is not even loaded.

    Raises:
        ValueError: an image got an empty caption (the message names it; nothing was written), or
            two images share one caption file.
        Interrupted: the user cancelled; the captions so far are in the cache.
    """
    uncaptioned = _find_uncaptioned(dataset)
    chosen = [
        index
        for index, image in enumerate(dataset.images)
        if config.existing_captions != "keep" or image.name in uncaptioned
    ]
    images = [dataset.images[index] for index in chosen]
    if config.write_files:
        _require_own_files(images, dataset.images)
    texts = _describe(images, captioner, config, host, cache)
    captions = [image.caption for image in dataset.images]
    for index, image, text in zip(chosen, images, texts, strict=True):
        existing = "" if image.name in uncaptioned else image.caption
        captions[index] = compose_caption(existing, text, config, trigger_word=dataset.get_trigger_word(image))
    captioned = dataset.with_captions(captions)
    if config.write_files:
        for index in chosen:
            host.check_interrupted()
            _write_text(_get_caption_file(captioned.images[index]), captioned.images[index].caption + "\n")
    host.report(Notice(_summarize(len(chosen), len(dataset.images), is_written=config.write_files)))
    return captioned


def set_captions(dataset: Dataset, captions: Sequence[str]) -> Dataset:
    """Return the dataset with captions from another source, one per image and in the same order.

    Raises:
        ValueError: there are more or fewer captions than images, or one is empty.
    """
    captioned = dataset.with_captions(captions)
    empty = [image.name for image, caption in zip(dataset.images, captions, strict=True) if not caption.strip()]
    if empty:
        raise ValueError(
            f"{name_first(empty, 10)}: got an empty caption. Does the captioning node give a text for every image?"
        )
    return captioned


def compose_caption(existing: str, text: str, config: CaptionerConfig, *, trigger_word: str) -> str:
    """Return the image's new caption: the model's text with the trigger word, or with "append" the
    existing caption followed by the text.
    """
    if not (existing and config.existing_captions == "append"):
        return _apply_template(text, trigger_word, config.trigger_template)
    return "\n".join(_append(line, text) for line in existing.split("\n"))


def _apply_template(text: str, trigger_word: str, template: str) -> str:
    if add_trigger_word(text, trigger_word) == text:  # no trigger word, or the text has it
        return text
    parts = {"{trigger}": trigger_word, "{caption}": text}
    return re.sub(r"\{(?:trigger|caption)\}", lambda place: parts[place.group()], template)


def _append(existing: str, text: str) -> str:
    """Append the text once: with write_files, the next run finds its own text in the caption."""
    if text in existing:
        return existing
    existing = existing.rstrip(" ,")
    return f"{existing} {text}" if existing.endswith((".", "!", "?")) else f"{existing}, {text}"


def _find_uncaptioned(dataset: Dataset) -> set[str]:
    """Return the names of images without a real caption. The trigger word alone and the fallback
    caption are only stand-ins; the report marks such images.
    """
    noted = {note.name for note in dataset.report.notes if note.kind.is_about_missing_caption}
    return noted | {image.name for image in dataset.images if image.caption in ("", dataset.get_trigger_word(image))}


def _describe(
    images: list[TrainingImage], captioner: Captioner, config: CaptionerConfig, host: "Host", cache: CaptionCache
) -> list[str]:
    """Return the final texts, cleaned. Raises ValueError if one is empty."""
    host.report(StageStarted("captioning", len(images)))
    keys = _make_cache_keys(images, captioner, config) if images else []
    texts = {key: text for key in keys if (text := cache.get(key)) is not None}
    missing = [(key, image) for key, image in zip(keys, images, strict=True) if key not in texts]
    num_done = len(images) - len(missing)
    if num_done:
        host.report(StageProgress("captioning", num_done, len(images), "captioned earlier"))
    for key, image, pixels, text in _generate_texts(missing, captioner, config, host):
        texts[key] = text
        if text:
            cache.put(key, text)
        num_done += 1
        pixels.thumbnail((THUMBNAIL_SIZE, THUMBNAIL_SIZE))
        host.report(ImageCaptioned(pixels, image.name, text, num_done, len(images)))
    final = [clean_caption(texts[key]) if config.clean_captions else " ".join(texts[key].split()) for key in keys]
    _require_texts(images, final, config)
    return final


def _generate_texts(
    missing: list[tuple[str, TrainingImage]], captioner: Captioner, config: CaptionerConfig, host: "Host"
) -> Iterator[tuple[str, TrainingImage, Image.Image, str]]:
    for start in range(0, len(missing), config.batch_size):
        host.check_interrupted()
        batch = missing[start : start + config.batch_size]
        images = [image.read() for _, image in batch]
        texts = captioner.describe(
            images,
            prompt=config.request,
            num_beams=config.num_beams,
            max_new_tokens=config.max_new_tokens,
            check_interrupted=host.check_interrupted,
        )
        for (key, image), pixels, text in zip(batch, images, texts, strict=True):
            yield key, image, pixels, text.strip()


def _make_cache_keys(images: list[TrainingImage], captioner: Captioner, config: CaptionerConfig) -> list[str]:
    request = [captioner.identity, config.request, config.num_beams, config.max_new_tokens]
    parts = ([*request, image.sha256, image.alpha_background if image.has_alpha else None] for image in images)
    return [hashlib.sha256(json.dumps(part).encode()).hexdigest()[:40] for part in parts]


def _require_texts(images: list[TrainingImage], texts: list[str], config: CaptionerConfig) -> None:
    empty = [image.name for image, text in zip(images, texts, strict=True) if not text]
    if empty:
        raise ValueError(
            f"{name_first(empty, 10)}: the model gave an empty caption for {config.request}. Nothing was written. "
            "Choose another task (prompt_gen tasks need a PromptGen model), or leave these images out"
        )


def _get_caption_file(image: TrainingImage) -> Path:
    return image.path.with_suffix(".txt")


def _require_own_files(images: list[TrainingImage], all_images: list[TrainingImage]) -> None:
    written = {_get_caption_file(image) for image in images}
    name_by_file: dict[Path, str] = {}
    for image in all_images:
        other = name_by_file.setdefault(_get_caption_file(image), image.name)
        if other != image.name and _get_caption_file(image) in written:
            raise ValueError(
                f"{other} and {image.name} have the same caption file, {_get_caption_file(image).name}. Rename one of "
                "them, or turn off write_files"
            )


def _write_text(path: Path, text: str) -> None:
    with atomic_write(path, overwrite=True) as temporary:
        temporary.write_bytes(text.encode())  # bytes: text mode would change the line ends on Windows


def _summarize(num_captioned: int, num_images: int, *, is_written: bool) -> str:
    kept = f", {pluralize(num_images - num_captioned, 'caption')} kept" if num_captioned < num_images else ""
    return (
        f"{pluralize(num_captioned, 'image')} "
        f"captioned{kept}{', files written' if is_written and num_captioned else ''}"
    )
