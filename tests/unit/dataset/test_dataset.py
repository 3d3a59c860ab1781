"""A folder of pictures and captions: what is taken, how it is read, and what a caption becomes. What is wrong with files: test_bad_pictures.py."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps, features

from trainers.dataset.bucket_config import BucketConfig
from trainers.dataset.config import DatasetConfig
from trainers.dataset.crop_plan import plan_crops
from trainers.dataset.join import join_datasets
from trainers.dataset.report import NO_CAPTION, Remark, RemarkKind
from trainers.dataset.scan import scan_folder
from trainers.dataset.trigger_word import with_trigger_word


def picture(path: Path, size_wh=(96, 64), colour=(10, 20, 30), caption: str | None = "a caption", **settings) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size_wh, colour).save(path, **settings)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


def scan(folder: Path, **settings):
    return scan_folder(DatasetConfig(images=str(folder), **settings))


def white_left(size_wh=(96, 64), mode="RGB") -> Image.Image:
    """White where x < 32, black elsewhere."""
    image = Image.new(mode, size_wh)
    image.paste("white", (0, 0, 32, size_wh[1]))
    return image


def reasons(dataset) -> dict[str, str]:
    return {finding.name: finding.reason for finding in dataset.report.left_out}


def test_all_formats_in_any_case_are_taken_in_natural_order(tmp_path):
    names = ["2.png", "10.PNG", "3.jpg", "4.JPEG", "5.webp", "6.bmp"] + (["7.avif"] if features.check("avif") else [])
    for i, name in enumerate(names):
        picture(tmp_path / name, colour=(i, 0, 0))
    (tmp_path / "notes.md").write_text("not a picture")
    picture(tmp_path / "._2.png")
    picture(tmp_path / ".hidden.png")
    expected = ["2.png", "3.jpg", "4.JPEG", "5.webp", "6.bmp", *(["7.avif"] if features.check("avif") else []), "10.PNG"]
    assert [image.name for image in scan(tmp_path).images] == expected


def test_subfolders_are_taken_only_when_asked(tmp_path):
    picture(tmp_path / "a.png")
    picture(tmp_path / "sub" / "b.png", colour=(1, 1, 1))
    assert [image.name for image in scan(tmp_path).images] == ["a.png"]
    assert [image.name for image in scan(tmp_path, recursive=True).images] == ["a.png", "sub/b.png"]


def test_hidden_folders_and_unfinished_files_are_passed_over(tmp_path):
    picture(tmp_path / "a.png")
    picture(tmp_path / ".thumbnails" / "b.png")
    (tmp_path / ".c.png.x7.tmp").write_bytes(b"")
    dataset = scan(tmp_path, recursive=True)
    assert [image.name for image in dataset.images] == ["a.png"] and dataset.report.left_out == []


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("extension", ["png", "jpg", "webp"])
def test_exif_orientation_is_applied_to_size_and_pixels(tmp_path, orientation, extension):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = white_left()
    stored.save(tmp_path / f"a.{extension}", exif=exif, quality=100)
    (found,) = scan(tmp_path, trigger_word="x").images
    upright = ImageOps.exif_transpose(Image.open(tmp_path / f"a.{extension}")).convert("RGB")
    assert found.size_hw == upright.size[::-1] == ((96, 64) if orientation >= 5 else (64, 96))
    assert np.array_equal(np.asarray(found.read()), np.asarray(upright))


def test_a_grey_picture_of_sixteen_bits_is_scaled_and_not_cut_off(tmp_path):
    levels = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16
    Image.fromarray(levels).save(tmp_path / "a.png")
    (found,) = scan(tmp_path, trigger_word="x").images
    assert np.array_equal(np.asarray(found.read())[:, :, 0], levels // 256)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK"])
def test_every_mode_is_read_as_rgb(tmp_path, mode):
    white_left().convert(mode).save(tmp_path / ("a.jpg" if mode == "CMYK" else "a.png"))
    (found,) = scan(tmp_path, trigger_word="x").images
    pixels = found.read()
    assert pixels.mode == "RGB" and pixels.getpixel((5, 5)) == (255, 255, 255) and pixels.getpixel((80, 5)) == (0, 0, 0)


def test_a_photo_with_a_second_picture_inside_is_no_animation(tmp_path):
    """MPO: cameras and phones put a preview or a depth map behind the photo."""
    white_left().save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[Image.new("RGB", (32, 32), "red")])
    (found,) = scan(tmp_path, trigger_word="x").images
    assert found.size_hw == (64, 96) and found.read().size == (96, 64)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_flattened_on_the_chosen_colour_and_kept_as_a_mask(tmp_path, mode):
    rgba = Image.new("RGBA", (64, 64), (0, 0, 0, 255))
    rgba.paste((0, 0, 0, 0), (0, 0, 32, 64))
    rgba.convert(mode).save(tmp_path / "a.png")
    (found,) = scan(tmp_path, trigger_word="x", alpha_background="#00ff00").images
    assert found.has_alpha
    assert found.read().getpixel((5, 5)) == (0, 255, 0) and found.read().getpixel((50, 5)) == (0, 0, 0)
    alpha = found.read_alpha()
    assert alpha is not None and alpha.getpixel((5, 5)) == 0 and alpha.getpixel((50, 5)) == 255


def test_what_is_half_transparent_is_mixed_with_the_colour_and_the_mask_is_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGBA", (96, 64), (0, 0, 0, 51)).save(tmp_path / "a.png", exif=exif)
    (found,) = scan(tmp_path, trigger_word="x", alpha_background="white").images
    assert found.read().getpixel((5, 5)) == (204, 204, 204)
    alpha = found.read_alpha()
    assert alpha is not None and alpha.size == (64, 96) and alpha.getpixel((5, 5)) == 51


def test_an_opaque_picture_has_no_alpha(tmp_path):
    picture(tmp_path / "a.png")
    (found,) = scan(tmp_path).images
    assert not found.has_alpha and found.read_alpha() is None


def test_captions_come_from_txt_then_caption_then_the_fallback(tmp_path):
    picture(tmp_path / "a.png", caption="from txt").with_suffix(".caption").write_text("from caption")
    picture(tmp_path / "b.png", caption=None, colour=(1, 0, 0)).with_suffix(".caption").write_text("from caption")
    picture(tmp_path / "c.png", caption=None, colour=(2, 0, 0))
    picture(tmp_path / "d.png", caption="  \n", colour=(3, 0, 0))
    picture(tmp_path / "e.png", caption="  \n", colour=(4, 0, 0)).with_suffix(".caption").write_text("from caption")
    dataset = scan(tmp_path, fallback_caption="a thing")
    assert [image.caption for image in dataset.images] == ["from txt", "from caption", "a thing", "a thing", "from caption"]
    assert [note.name for note in dataset.report.notes] == ["c.png", "d.png"]


def test_the_trigger_word_alone_is_the_caption_of_last_resort(tmp_path):
    picture(tmp_path / "a.png", caption=None)
    dataset = scan(tmp_path, trigger_word="zwx")
    assert dataset.images[0].caption == "zwx"
    assert dataset.report.notes[0].reason == "no caption file, or an empty one; the trigger word alone is used"


def test_a_picture_without_any_caption_stays_for_a_captioner_and_is_noted(tmp_path):
    picture(tmp_path / "a.png", caption=None)
    picture(tmp_path / "b.png", colour=(1, 0, 0))
    dataset = scan(tmp_path)
    assert [image.caption for image in dataset.images] == ["", "a caption"] and reasons(dataset) == {}
    assert dataset.report.notes == [Remark("a.png", NO_CAPTION, RemarkKind.NO_CAPTION)]


def test_a_picture_without_any_caption_is_left_out_of_the_training(tmp_path):
    picture(tmp_path / "a.png", caption=None)
    picture(tmp_path / "b.png", size_wh=(64, 64))
    plan = plan_crops(scan(tmp_path), BucketConfig(resolution=64), seed=0)
    assert [item.image.name for item in plan.items] == ["b.png"] and plan.report.num_kept == 1
    why = "it has no caption (.txt or .caption). Write one, or set fallback_caption or trigger_word, or connect Florence2Caption"
    assert plan.report.left_out == [Remark("a.png", why, RemarkKind.NO_CAPTION)] and plan.report.notes == []
    with pytest.raises(ValueError, match=r"strict is on and 1 picture cannot be used: a\.png: it has no caption"):
        plan_crops(scan(tmp_path, strict=True), BucketConfig(resolution=64), seed=0)


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a toy", "zwx, a toy"),
        ("zwx, a toy", "zwx, a toy"),
        ("a ZWX toy", "a ZWX toy"),
        ("a zwxy toy", "zwx, a zwxy toy"),
        ("a re-zwx'd toy", "a re-zwx'd toy"),
        ("", "zwx"),
    ],
)
def test_the_trigger_word_is_put_in_front_once(caption, expected):
    assert with_trigger_word(caption, "zwx") == expected


def test_captions_are_read_as_utf8_with_or_without_a_mark_and_their_lines_stay_lines(tmp_path):
    picture(tmp_path / "a.png").with_suffix(".txt").write_bytes("\ufeffun  café,\r\n\n à côté\n".encode())
    assert scan(tmp_path).images[0].caption == "un café,\nà côté"


def test_the_trigger_word_is_put_in_front_of_every_line(tmp_path):
    picture(tmp_path / "a.png", caption="a toy\nthe zwx stands")
    assert scan(tmp_path, trigger_word="zwx").images[0].caption == "zwx, a toy\nthe zwx stands"


def test_the_caption_file_may_be_in_capitals(tmp_path):
    picture(tmp_path / "A.PNG", caption=None)
    (tmp_path / "A.TXT").write_text("a caption")
    assert scan(tmp_path).images[0].caption == "a caption"


def test_copies_are_left_out_or_kept_by_choice(tmp_path):
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    assert reasons(scan(tmp_path)) == {"b.png": "it is the same file as a.png"}
    assert len(scan(tmp_path, keep_duplicates=True).images) == 2


def test_a_copy_is_kept_when_the_first_has_no_caption(tmp_path):
    picture(tmp_path / "a.png", caption=None)
    picture(tmp_path / "b.png")
    dataset = scan(tmp_path)
    assert [image.name for image in dataset.images] == ["b.png"] and reasons(dataset) == {"a.png": "it is the same file as b.png"}
    assert dataset.report.notes == []


def test_the_report_reads_and_serialises(tmp_path):
    picture(tmp_path / "a.png", caption=None)
    picture(tmp_path / "b.png", caption=None)
    report = scan(tmp_path, trigger_word="zwx").report
    note = "no caption file, or an empty one; the trigger word alone is used"
    assert report.text() == f"1 picture kept, 1 left out\nLeft out:\n  b.png: it is the same file as a.png\nNotes:\n  a.png: {note}\n"
    assert json.loads(json.dumps(report.to_dict())) == {
        "num_kept": 1,
        "left_out": [{"name": "b.png", "reason": "it is the same file as a.png", "kind": "same_file"}],
        "notes": [{"name": "a.png", "reason": note, "kind": "stand_in_caption"}],
        "buckets": {},
        "summary": [],
    }


def test_a_colour_that_is_none_is_an_error():
    with pytest.raises(ValueError, match="alpha_background must be a colour such as white or #ffffff, got 'nocolour'"):
        DatasetConfig(images="x", alpha_background="nocolour")


def test_a_scan_can_be_cancelled_between_two_pictures(tmp_path):
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    seen = []

    def check():
        if seen:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scan_folder(DatasetConfig(images=str(tmp_path)), check_interrupted=check, on_progress=lambda count, total, name: seen.append((count, total, name)))
    assert seen == [(1, 2, "a.png")]


@pytest.mark.parametrize("key", ["text", "caption", "prompt"])
def test_metadata_jsonl_gives_captions_where_there_is_no_caption_file(tmp_path, key):
    picture(tmp_path / "a.png", caption=None)
    picture(tmp_path / "b.png", colour=(1, 0, 0), caption="from txt")
    picture(tmp_path / "sub" / "c.png", colour=(2, 0, 0), caption=None)
    lines = [{"file_name": name, key: f"metadata of {name}"} for name in ("a.png", "b.png", "sub/c.png", "gone.png")]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    dataset = scan(tmp_path, recursive=True, trigger_word="zwx", fallback_caption="a thing")
    assert [image.caption for image in dataset.images] == ["zwx, metadata of a.png", "zwx, from txt", "zwx, metadata of sub/c.png"]
    assert dataset.report.notes == []


def test_the_metadata_beside_a_picture_comes_before_that_of_the_whole_folder(tmp_path):
    picture(tmp_path / "a.png", colour=(1, 0, 0))
    picture(tmp_path / "sub" / "b.png", caption=None)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "sub/b.png", "text": "far"}')
    (tmp_path / "sub" / "metadata.jsonl").write_text('{"file_name": "b.png", "text": "near"}')
    assert scan(tmp_path, recursive=True).images[1].caption == "near"


def test_lines_of_metadata_that_say_nothing_are_noted(tmp_path):
    picture(tmp_path / "a.png", caption=None)
    lines = ["no json", "", "[1]", '{"file_name": "a.png", "text": 5}', '{"text": "x"}', '{"file_name": "a.png", "text": "a toy"}']
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    dataset = scan(tmp_path)
    assert dataset.images[0].caption == "a toy"
    assert dataset.report.notes == [Remark("metadata.jsonl", "line 1, 3, 4, 5: no JSON object with file_name and one of text, caption, prompt; passed over")]


def kohya_folder(root: Path) -> Path:
    picture(root / "10_zwx dog" / "a.png", colour=(1, 0, 0), caption=None)
    picture(root / "10_zwx dog" / "b.png", colour=(2, 0, 0), caption="a dog on grass")
    picture(root / "2_big_cat" / "a.png", colour=(3, 0, 0), caption=None)
    return root


def test_kohyas_folders_are_one_dataset_with_repeats_and_names_as_captions(tmp_path):
    dataset = scan(kohya_folder(tmp_path), num_repeats=3)
    assert [(image.name, image.num_repeats, image.caption) for image in dataset.images] == [
        ("2_big_cat/a.png", 2, "big_cat"),
        ("10_zwx dog/a.png", 10, "zwx dog"),
        ("10_zwx dog/b.png", 10, "a dog on grass"),
    ]
    assert dataset.num_training_samples == 3 * 22
    notes = {note.name: note.reason for note in dataset.report.notes}
    assert notes["10_zwx dog"] == "kohya's folder: 2 x 10 repeats, 'zwx dog' where there is no caption"
    assert notes["2_big_cat/a.png"] == "no caption file, or an empty one; the folder's 'big_cat' is used"
    assert dataset.report.summary == [f"{tmp_path.name}: 3 pictures, 6 to 30 repeats each"]
    items = plan_crops(dataset, BucketConfig(resolution=64), seed=0).items
    assert len(items) == 66 and sum(item.image.name == "10_zwx dog/b.png" for item in items) == 30


def test_in_kohyas_folders_a_fallback_caption_comes_before_the_folders_name(tmp_path):
    captions = [image.caption for image in scan(kohya_folder(tmp_path), fallback_caption="a pet", trigger_word="zwx").images]
    assert captions == ["zwx, a pet", "zwx, a pet", "zwx, a dog on grass"]


def test_beside_kohyas_folders_others_are_passed_over_by_name(tmp_path):
    picture(kohya_folder(tmp_path) / "others" / "c.png", colour=(4, 0, 0))
    picture(tmp_path / "0_old" / "d.png", colour=(5, 0, 0))
    dataset = scan(tmp_path)
    assert len(dataset.images) == 3
    notes = {note.name: note.reason for note in dataset.report.notes}
    assert notes["others"] == "passed over: its name is not N_name, as its neighbours' are (kohya's folders)"
    assert notes["0_old"] == "kohya's folder of 0 repeats: its pictures are passed over"


def test_kohyas_names_mean_nothing_beside_pictures_or_with_recursive(tmp_path):
    picture(kohya_folder(tmp_path / "with") / "own.png")
    assert [image.name for image in scan(tmp_path / "with").images] == ["own.png"]
    dataset = scan(kohya_folder(tmp_path / "without"), recursive=True, trigger_word="zwx")
    assert {image.num_repeats for image in dataset.images} == {1}
    assert "recursive is on: the number in the names of such folders is not taken for repeats" in dataset.report.text()


def test_more_repeats_than_anybody_means_are_an_error(tmp_path):
    picture(tmp_path / "20240101_trip" / "a.png")
    with pytest.raises(ValueError, match=r"20240101_trip: kohya's folder names start with the repeats of their pictures, at most 10,000. Rename it"):
        scan(tmp_path)


def test_captions_from_elsewhere_get_the_trigger_word_and_empty_ones_stay_empty(tmp_path):
    for i in range(3):
        picture(tmp_path / f"{i}.png", colour=(i, 0, 0), caption=None)
    dataset = scan(tmp_path, trigger_word="zwx").with_captions(["a toy", "", "the ZWX\n two  lines "])
    assert [image.caption for image in dataset.images] == ["zwx, a toy", "", "the ZWX\nzwx, two lines"]
    assert dataset.report.notes == []
    with pytest.raises(ValueError, match=r"3 pictures, but 1 caption\. Give one caption per picture, in the same order"):
        dataset.with_captions(["a toy"])


def test_a_note_about_a_caption_goes_when_there_is_one_and_others_stay(tmp_path):
    picture(tmp_path / "a.png", caption=None)
    picture(tmp_path / "b.png", caption=None, colour=(1, 0, 0))
    dataset = scan(tmp_path)
    assert [note.name for note in dataset.with_captions(["a toy", ""]).report.notes] == ["b.png"]
    picture(tmp_path / "c.png", colour=(2, 0, 0)).with_suffix(".txt").write_bytes("café".encode("cp1252"))
    notes = scan(tmp_path).with_captions(["x", "y", "z"]).report.notes
    assert notes == [Remark("c.png", "c.txt is not UTF-8; it was read as Windows-1252")]


def test_rewording_a_note_does_not_change_whether_it_stays(tmp_path):
    picture(tmp_path / "a.png", caption=None)
    picture(tmp_path / "b.png", caption=None, colour=(1, 0, 0))
    dataset = scan(tmp_path)
    notes = [replace(note, reason="other words") for note in dataset.report.notes]
    reworded = replace(dataset, report=replace(dataset.report, notes=notes))
    before, after = (each.with_captions(["a toy", ""]) for each in (dataset, reworded))
    assert [note.name for note in after.report.notes] == ["b.png"]
    plans = [plan_crops(each, BucketConfig(resolution=64), seed=0) for each in (before, after)]
    assert plans[0].report == plans[1].report


def test_joined_datasets_keep_repeats_weights_and_trigger_words(tmp_path):
    for name, colour in (("toys", 1), ("dogs", 2)):
        picture(tmp_path / name / "a.png", colour=(colour, 0, 0), caption="a thing")
        picture(tmp_path / name / "b.gif")
    toys = scan(tmp_path / "toys", trigger_word="zwx", num_repeats=3, strict=False)
    dogs = scan(tmp_path / "dogs", is_regularization=True, loss_weight=0.5)
    joined = join_datasets([toys, dogs])
    assert [(image.name, image.num_repeats, image.loss_weight, image.is_regularization, image.caption) for image in joined.images] == [
        ("toys/a.png", 3, 1.0, False, "zwx, a thing"),
        ("dogs/a.png", 1, 0.5, True, "a thing"),
    ]
    assert (joined.num_repeats, joined.trigger_word, joined.folder_name) == (1, "zwx", "toys + dogs")
    assert joined.report.summary == ["toys: 1 picture, 3 repeats each", "dogs: 1 regularization picture, loss weight 0.5"]
    assert list(reasons(joined)) == ["toys/b.gif", "dogs/b.gif"]
    assert [image.caption for image in joined.with_captions(["red", "blue"]).images] == ["zwx, red", "blue"]


def test_joined_datasets_of_one_name_and_of_one_picture_are_told_apart(tmp_path):
    for parent in ("one", "two"):
        picture(tmp_path / parent / "toys" / "a.png")
    one, two = (scan(tmp_path / parent / "toys", trigger_word=word) for parent, word in (("one", "zwx"), ("two", "qvy")))
    joined = join_datasets([one, two])
    assert [image.name for image in joined.images] == ["toys/a.png", "toys (2)/a.png"]
    assert joined.trigger_word == "zwx, qvy" and [joined.trigger_word_of(image) for image in joined.images] == ["zwx", "qvy"]
    assert joined.report.notes == [Remark("toys (2)/a.png", "it is the same file as toys/a.png; both are used")]


def test_joining_one_dataset_changes_nothing_and_none_is_an_error(tmp_path):
    picture(tmp_path / "a.png")
    dataset = scan(tmp_path)
    assert join_datasets([dataset]) is dataset
    with pytest.raises(ValueError, match="no dataset to join"):
        join_datasets([])


def test_regularization_pictures_with_a_trigger_word_are_an_error():
    with pytest.raises(ValueError, match="regularization pictures must not have a trigger word, got 'zwx'"):
        DatasetConfig(images="x", is_regularization=True, trigger_word="zwx")


def test_a_thumbnail_of_a_large_jpeg_is_decoded_small_and_looks_the_same(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    large = Image.fromarray(pixels).resize((1600, 1200), Image.Resampling.BICUBIC)
    large.save(picture(tmp_path / "a.jpg"), quality=95)
    (image,) = scan(tmp_path).images
    assert image.read(max_pixels=(4 * 64) ** 2).size == (200, 150)
    thumbnail, expected = image.read_thumbnail(64), image.read().resize((64, 48), Image.Resampling.BICUBIC)
    assert thumbnail.size == (64, 48)
    assert np.abs(np.asarray(thumbnail, dtype=float) - np.asarray(expected)).mean() < 3
