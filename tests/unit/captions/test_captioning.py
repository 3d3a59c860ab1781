"""Captioning a dataset: which images the model is asked about, trigger word, existing captions,
files and cache. No caption is ever empty.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.data.make_tiny_florence2 import COLOURS, FOLDER, plain_image
from trainers.__main__ import main
from trainers.captions.captioning import (
    THUMBNAIL_SIZE,
    CaptionCache,
    CaptionerConfig,
    caption_dataset,
    compose_caption,
    set_captions,
)
from trainers.captions.florence2.captioner import Florence2Captioner
from trainers.dataset.config import DatasetConfig
from trainers.dataset.dataset import Dataset
from trainers.dataset.scan import scan_folder
from trainers.training.console_host import ConsoleHost
from trainers.training.events import Event, ImageCaptioned, Interrupted, Notice, StageProgress, StageStarted


class RecordingHost(ConsoleHost):
    def __init__(self) -> None:
        super().__init__(torch.device("cpu"), quiet=True)
        self.events: list[Event] = []
        self.polls_until_interrupt = -1

    def report(self, event: Event) -> None:
        self.events.append(event)

    def check_interrupted(self) -> None:
        self.polls_until_interrupt -= 1
        if self.polls_until_interrupt == 0:
            raise Interrupted("cancelled")


class Namer:
    """Describes an image by the colour of its first pixel, and records the requests."""

    def __init__(self, identity: str = "namer 1", texts: Sequence[str] = ()) -> None:
        self.identity = identity
        self.batches: list[int] = []
        self.settings: list[tuple[str, int, int]] = []
        self._texts = list(texts)

    def describe(
        self,
        images: Sequence[Image.Image],
        *,
        prompt: str,
        num_beams: int,
        max_new_tokens: int,
        check_interrupted: Callable[[], None],
    ) -> list[str]:
        self.batches.append(len(images))
        self.settings.append((prompt, num_beams, max_new_tokens))
        check_interrupted()
        return [self._texts.pop(0) if self._texts else "#" + image.tobytes()[:3].hex() for image in images]


def make_folder(folder: Path, captions: Sequence[str | None]) -> Path:
    """Scan a folder where 1.png is #010000 and so on, with these captions."""
    folder.mkdir(exist_ok=True)
    for number, caption in enumerate(captions, start=1):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number}.png")
        if caption is not None:
            (folder / f"{number}.txt").write_text(caption, encoding="utf-8")
    return folder


def scan(folder: Path, **settings: object) -> Dataset:
    return scan_folder(DatasetConfig(images=str(folder), **settings))


def list_captions(dataset: Dataset) -> list[str]:
    return [image.caption for image in dataset.images]


def run(
    dataset: Dataset,
    captioner: Namer | None = None,
    host: RecordingHost | None = None,
    cache: CaptionCache | None = None,
    **settings: object,
) -> list[str]:
    captioned = caption_dataset(
        dataset, captioner or Namer(), CaptionerConfig(**settings), host or RecordingHost(), cache or CaptionCache(None)
    )
    return list_captions(captioned)


# ---- which captions, in which order ----


def test_every_image_gets_the_caption_for_its_own_pixels(tmp_path):
    folder = make_folder(tmp_path / "pictures", [None] * 11)
    assert run(scan(folder), batch_size=4) == [f"#{number:02x}0000" for number in range(1, 12)]


def test_keep_captions_only_images_without_a_caption(tmp_path):
    captioner = Namer()
    assert run(scan(make_folder(tmp_path / "pictures", ["a cat", None, " ", "a dog"])), captioner) == [
        "a cat",
        "#020000",
        "#030000",
        "a dog",
    ]
    assert captioner.batches == [2]


@pytest.mark.parametrize(
    "stand_in",
    [{"trigger_word": "sks"}, {"fallback_caption": "a thing"}, {"trigger_word": "sks", "fallback_caption": "a thing"}],
)
def test_a_stand_in_for_a_missing_caption_is_not_kept(tmp_path, stand_in):
    captions = run(scan(make_folder(tmp_path / "pictures", [None, "a cat"]), **stand_in))
    trigger = "sks, " if "trigger_word" in stand_in else ""
    assert captions == [f"{trigger}#010000", f"{trigger}a cat"]


def test_rewording_the_reports_notes_does_not_change_which_images_get_a_caption(tmp_path):
    dataset = scan(make_folder(tmp_path / "images", [None, "a cat"]), fallback_caption="a thing")
    notes = [replace(note, reason="other words") for note in dataset.report.notes]
    reworded = replace(dataset, report=replace(dataset.report, notes=notes))
    assert notes and run(reworded) == run(dataset) == ["#010000", "a cat"]


def test_overwrite_and_append(tmp_path):
    dataset = scan(make_folder(tmp_path / "pictures", ["a cat", "A dog.", None]), trigger_word="sks")
    assert run(dataset, existing_captions="overwrite") == ["sks, #010000", "sks, #020000", "sks, #030000"]
    assert run(dataset, existing_captions="append") == ["sks, a cat, #010000", "sks, A dog. #020000", "sks, #030000"]


def test_appending_twice_has_the_effect_of_appending_once(tmp_path):
    folder = make_folder(tmp_path / "pictures", ["a cat"])
    for _ in range(2):
        assert run(scan(folder), existing_captions="append", write_files=True) == ["a cat, #010000"]


def test_appended_text_goes_to_every_line_of_a_wildcard_caption():
    config = CaptionerConfig(existing_captions="append")
    assert compose_caption("a cat\none cat", "black", config, trigger_word="") == "a cat, black\none cat, black"


def test_the_trigger_template_is_not_applied_to_a_text_that_has_the_trigger_word(tmp_path):
    dataset = scan(make_folder(tmp_path / "pictures", [None, None]), trigger_word="sks")
    template = "a photo of {trigger}: {caption}"
    assert run(dataset, Namer(texts=["{a} cat", "the SKS cat"]), trigger_template=template) == [
        "a photo of sks: {a} cat",
        "the SKS cat",
    ]


def test_regularization_images_get_no_trigger_word(tmp_path):
    assert run(scan(make_folder(tmp_path / "pictures", [None]), is_regularization=True)) == ["#010000"]


def test_cleaning_can_be_turned_off_without_asking_the_model_again(tmp_path):
    dataset, cache = scan(make_folder(tmp_path / "pictures", [None])), CaptionCache(None)
    captioner = Namer(texts=["The image shows\na cat."])
    assert run(dataset, captioner, cache=cache) == ["A cat."]
    assert run(dataset, captioner, cache=cache, clean_captions=False) == ["The image shows a cat."]
    assert captioner.batches == [1]


# ---- cache ----


def test_a_second_run_asks_the_model_nothing(tmp_path):
    dataset = scan(make_folder(tmp_path / "pictures", [None] * 3))
    first = run(dataset, cache=CaptionCache(tmp_path / "cache"))
    captioner = Namer()
    assert run(dataset, captioner, cache=CaptionCache(tmp_path / "cache")) == first
    assert captioner.batches == []


def test_a_second_run_does_not_even_load_the_model(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, colour in enumerate(COLOURS):
        plain_image(colour, seed=500 + number).save(folder / f"{number}.png")
    placed = []

    def captions() -> list[str]:
        captioner = Florence2Captioner(FOLDER, dtype=torch.float32, place=placed.append)
        config = CaptionerConfig(task="caption")
        return list_captions(
            caption_dataset(scan(folder), captioner, config, RecordingHost(), CaptionCache(tmp_path / "cache"))
        )

    assert captions() == captions() == [f"a photo of a {colour} square" for colour in COLOURS]
    assert len(placed) == 1


@pytest.mark.parametrize(
    "change", [{"task": "ocr"}, {"prompt": "<MIX_CAPTION>"}, {"num_beams": 1}, {"max_new_tokens": 20}]
)
def test_a_different_request_is_sent_to_the_model(tmp_path, change):
    dataset, cache, captioner = (
        scan(make_folder(tmp_path / "pictures", [None])),
        CaptionCache(tmp_path / "cache"),
        Namer(),
    )
    run(dataset, captioner, cache=cache)
    run(dataset, captioner, cache=cache, batch_size=7)
    assert captioner.batches == [1]
    run(dataset, captioner, cache=cache, **change)
    assert captioner.batches == [1, 1]


def test_a_different_model_image_or_background_is_sent_to_the_model(tmp_path):
    folder, cache = make_folder(tmp_path / "pictures", [None]), CaptionCache(tmp_path / "cache")
    run(scan(folder), cache=cache)
    other_model, other_image, other_background = Namer("namer 2"), Namer(), Namer()
    run(scan(folder), other_model, cache=cache)
    Image.new("RGBA", (8, 8), (9, 9, 9, 128)).save(folder / "1.png")
    run(scan(folder), other_image, cache=cache)
    run(scan(folder, alpha_background="black"), other_background, cache=cache)
    assert [captioner.batches for captioner in (other_model, other_image, other_background)] == [[1], [1], [1]]


def test_the_request_is_the_prompt_or_the_tasks_token(tmp_path):
    captioner = Namer()
    run(
        scan(make_folder(tmp_path / "pictures", [None])),
        captioner,
        task="prompt_gen_tags",
        num_beams=2,
        max_new_tokens=9,
    )
    run(scan(tmp_path / "pictures"), captioner, task="prompt_gen_tags", prompt=" <MIX_CAPTION> ")
    assert captioner.settings == [("<GENERATE_TAGS>", 2, 9), ("<MIX_CAPTION>", 3, 512)]


# ---- what is reported, interrupts, empty captions ----


def test_every_image_is_reported_with_a_thumbnail(tmp_path):
    folder = tmp_path / "pictures"
    make_folder(folder, [None] * 2)
    Image.new("RGB", (2000, 1000)).save(folder / "3.png")
    host, cache = RecordingHost(), CaptionCache(None)
    run(scan(folder), host=host, cache=cache)
    shown = [event for event in host.events if isinstance(event, ImageCaptioned)]
    assert host.events[0] == StageStarted("captioning", 3)
    assert [(event.name, event.caption, event.step, event.total) for event in shown] == [
        ("1.png", "#010000", 1, 3),
        ("2.png", "#020000", 2, 3),
        ("3.png", "#000000", 3, 3),
    ]
    assert shown[2].image.size == (THUMBNAIL_SIZE, THUMBNAIL_SIZE // 2)
    assert host.events[-1] == Notice("3 images captioned")
    host.events.clear()
    run(scan(folder), host=host, cache=cache)
    assert host.events[1] == StageProgress("captioning", 3, 3, "captioned earlier")


def test_an_interrupt_keeps_the_captions_so_far_and_writes_no_file(tmp_path):
    folder = make_folder(tmp_path / "pictures", [None] * 4)
    host, cache, captioner = RecordingHost(), CaptionCache(tmp_path / "cache"), Namer()
    host.polls_until_interrupt = 4  # before and within the second batch's call
    with pytest.raises(Interrupted):
        run(scan(folder), captioner, host, cache, batch_size=2, write_files=True)
    assert not list(folder.glob("*.txt"))
    again = Namer()
    run(scan(folder), again, cache=cache, batch_size=2)
    assert again.batches == [2]


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_caption_is_an_error_that_names_the_image_and_writes_nothing(tmp_path, text):
    folder, cache = make_folder(tmp_path / "pictures", [None] * 3), CaptionCache(tmp_path / "cache")
    with pytest.raises(ValueError, match=r"^2\.png: the model gave an empty caption for <MORE_DETAILED_CAPTION>"):
        run(scan(folder), Namer(texts=["a", text, "c"]), cache=cache, write_files=True)
    assert not list(folder.glob("*.txt"))
    again = Namer()
    run(scan(folder), again, cache=cache)
    assert again.batches == [1]  # an empty caption is not cached


# ---- files ----


def test_files_are_written_in_utf8_and_only_for_new_captions(tmp_path):
    folder = make_folder(tmp_path / "pictures", ["kept", None])
    (folder / "1.txt").write_bytes(b"kept\r\nas it was")
    run(scan(folder, trigger_word="sks"), Namer(texts=["un café, 東京"]), write_files=True)
    assert (folder / "1.txt").read_bytes() == b"kept\r\nas it was"
    assert (folder / "2.txt").read_bytes() == "sks, un café, 東京\n".encode()
    assert sorted(file.name for file in folder.iterdir()) == ["1.png", "1.txt", "2.png", "2.txt"]
    assert list_captions(scan(folder))[1] == "sks, un café, 東京"


def test_files_are_written_only_on_request(tmp_path):
    folder = make_folder(tmp_path / "pictures", [None])
    run(scan(folder))
    assert not list(folder.glob("*.txt"))


def test_two_images_with_one_caption_file_are_refused_before_the_model_is_asked(tmp_path):
    folder = make_folder(tmp_path / "pictures", [None])
    Image.new("RGB", (8, 8), (9, 0, 0)).save(folder / "1.jpg")
    captioner = Namer()
    with pytest.raises(ValueError, match=r"have the same caption file, 1\.txt"):
        run(scan(folder), captioner, write_files=True)
    assert captioner.batches == []
    assert len(run(scan(folder), captioner)) == 2


# ---- settings, captions from elsewhere, command line ----


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "haiku"}, "task must be one of"),
        ({"existing_captions": "delete"}, "existing_captions must be one of"),
        ({"prompt": "<OD>"}, "gives regions"),
        ({"trigger_template": "{trigger}"}, r"trigger_template must contain \{caption\}"),
        ({"trigger_template": "{caption} {name}"}, "nothing else in braces"),
        ({"trigger_template": "{caption} {"}, "nothing else in braces"),
        ({"num_beams": 0}, "num_beams must be between 1 and 16"),
    ],
)
def test_invalid_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        CaptionerConfig(**settings)


def test_captions_from_another_node_must_match_in_number_and_not_be_empty(tmp_path):
    dataset = scan(make_folder(tmp_path / "pictures", [None, "old"]), trigger_word="sks")
    assert list_captions(set_captions(dataset, ["1girl, solo", "sks smiling"])) == ["sks, 1girl, solo", "sks smiling"]
    with pytest.raises(ValueError, match="2 images, but 3 captions"):
        set_captions(dataset, ["a", "b", "c"])
    with pytest.raises(ValueError, match=r"^2\.png: got an empty caption"):
        set_captions(dataset, ["a", " "])


def test_reading_the_settings_imports_no_torch():
    code = (
        "import trainers.commands.caption, sys; assert not {'torch', 'transformers', 'tokenizers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])


def test_the_command_prints_captions_and_writes_files(tmp_path, capsys):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, colour in enumerate(COLOURS):
        plain_image(colour, seed=900 + number).save(folder / f"{number}.png")
    arguments = [
        "caption",
        "--images",
        str(folder),
        "--model",
        str(FOLDER),
        "--task",
        "detailed_caption",
        "--trigger-word",
        "sks",
    ]
    arguments += ["--cache-dir", str(tmp_path / "cache"), "--device", "cpu", "--write-files"]
    assert main(arguments) == 0
    expected = [f"sks, A {colour} square." for colour in COLOURS]
    assert capsys.readouterr().out.splitlines() == [
        f"{number}.png\t{caption}" for number, caption in enumerate(expected)
    ]
    assert [(folder / f"{number}.txt").read_text() for number in range(4)] == [caption + "\n" for caption in expected]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nowhere"], "missing --images"),
        (["--images", ".", "--model", "nowhere"], "nowhere: there is no such folder"),
        (["--images", ".", "--model", "nowhere", "--task", "haiku"], "task must be one of"),
    ],
)
def test_the_command_explains_errors(arguments, message, capsys):
    assert main(["caption", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_cached_texts_come_back_unchanged(tmp_path):
    cache = CaptionCache(tmp_path)
    cache.put("ab12", "line\none — 東京")
    assert CaptionCache(tmp_path).get("ab12") == "line\none — 東京"
    assert CaptionCache(tmp_path).get("ab13") is None
    assert (
        json.dumps(sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.txt")))
        == '["captions/ab/ab12.txt"]'
    )
