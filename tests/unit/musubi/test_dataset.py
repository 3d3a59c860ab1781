"""A dataset as files for Musubi Tuner: names, captions, links, repeats, control images, caches,
and the dataset.toml, both ours and a user's own.
"""

import json
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from trainers.dataset.config import DatasetConfig
from trainers.dataset.dataset import Dataset
from trainers.dataset.join import join_datasets
from trainers.dataset.scan import scan_folder
from trainers.musubi.architectures import ARCHITECTURES
from trainers.musubi.config import MusubiConfig, Recipe, resolve
from trainers.musubi.dataset_folder import StagedDataset, stage
from trainers.musubi.dataset_toml import read_toml, write_toml
from trainers.musubi.own_dataset import stage_own

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def write_images(
    folder: Path, names: list[str], *, caption: str | None = "a {}", size: tuple[int, int] = (64, 48)
) -> Path:
    """Write each image in a different colour, so that no two files are identical."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (number * 7 % 256, sum(str(path.relative_to(folder.parent)).encode()) % 256, 99)).save(
            path
        )
        if caption is not None:
            path.with_suffix(".txt").write_text(caption.format(path.stem), encoding="utf-8")
    return folder


def scan(folder: Path, **settings) -> Dataset:
    return scan_folder(DatasetConfig(images=str(folder), **settings))


def make_recipe(architecture: str = "z-image", options: dict[str, str] | None = None, **settings) -> Recipe:
    row = ARCHITECTURES[architecture]
    return Recipe(row, resolve(MusubiConfig(**settings), row), {}, options or {})


def staged(
    dataset: Dataset, tmp_path: Path, *, control: Dataset | None = None, recipe: Recipe | None = None, **facts
) -> StagedDataset:
    return stage(
        dataset,
        control,
        tmp_path / "run" / "dataset",
        recipe=recipe or make_recipe(),
        cache_root=tmp_path / "cache",
        cache_facts=facts,
    )


def own(text: str, tmp_path: Path, recipe: Recipe | None = None, **facts) -> StagedDataset:
    return stage_own(text, recipe=recipe or make_recipe(), cache_root=tmp_path / "cache", cache_facts=facts)


def read_tables(result: StagedDataset) -> list[dict]:
    return tomllib.loads(result.toml_text)["datasets"]


def test_images_with_the_same_stem_get_their_own_numbers(tmp_path):
    folder = write_images(tmp_path / "in", ["a.png", "a.jpg", "b [1].png"])
    result = staged(scan(folder), tmp_path)
    result.write()
    (group,) = result.groups
    assert sorted(path.name for path in group.folder.iterdir()) == [
        "0001.jpg",
        "0001.txt",
        "0002.png",
        "0002.txt",
        "0003.png",
        "0003.txt",
    ]
    assert (result.num_images, result.num_items) == (3, 3)
    assert (group.folder / "0003.txt").read_text(encoding="utf-8") == "a b [1]"


def test_images_are_linked_instead_of_copied(tmp_path):
    folder = write_images(tmp_path / "in", ["a.png"])
    result = staged(scan(folder), tmp_path)
    result.write()
    assert os.path.samefile(folder / "a.png", result.groups[0].folder / "0001.png")


def test_images_are_copied_if_they_cannot_be_linked(tmp_path, monkeypatch):
    def no_links(*_):
        raise OSError(18, "Invalid cross-device link")

    folder = write_images(tmp_path / "in", ["a.png"])
    result = staged(scan(folder), tmp_path)
    monkeypatch.setattr(os, "link", no_links)
    result.write()
    assert (result.groups[0].folder / "0001.png").read_bytes() == (folder / "a.png").read_bytes()


def test_images_that_musubi_would_read_differently_are_written_as_new_files(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    Image.new("RGBA", (32, 32), (255, 0, 0, 0)).save(folder / "transparent.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 32), (0, 0, 255)).save(folder / "turned.jpg", exif=exif)
    Image.new("I;16", (32, 32), 30000).save(folder / "deep.png")
    result = staged(scan(folder, fallback_caption="x", alpha_background="#00ff00"), tmp_path)
    result.write()
    written = {image.file.image.name: result.groups[0].folder / image.file.name for image in result.groups[0].images}
    assert Image.open(written["transparent.png"]).convert("RGB").getpixel((0, 0)) == (0, 255, 0)
    assert Image.open(written["turned.jpg"]).size == (32, 64)
    assert Image.open(written["turned.jpg"]).format == "PNG"
    assert Image.open(written["deep.png"]).convert("RGB").getpixel((0, 0)) == (117, 117, 117)


def test_the_suffix_follows_the_content_of_the_file(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    Image.new("RGB", (32, 32)).save(folder / "really_a_jpeg.PNG", format="JPEG")
    result = staged(scan(folder, fallback_caption="x"), tmp_path)
    assert [image.file.name for image in result.groups[0].images] == ["0001.jpg"]


def test_an_image_that_has_changed_since_the_scan_is_an_error(tmp_path):
    folder = write_images(tmp_path / "in", ["a.png"])
    result = staged(scan(folder), tmp_path)
    Image.new("RGB", (64, 64), "white").save(folder / "a.png")
    with pytest.raises(RuntimeError, match="has changed since the folder was scanned"):
        result.write()


def test_images_with_other_repeats_get_their_own_folder(tmp_path):
    once, thrice = write_images(tmp_path / "once", ["a.png", "b.png"]), write_images(tmp_path / "thrice", ["a.png"])
    dataset = join_datasets([scan(once), scan(thrice, num_repeats=3)])
    result = staged(dataset, tmp_path)
    assert [(table["num_repeats"], Path(table["image_directory"]).name) for table in read_tables(result)] == [
        (1, "1-repeats-1"),
        (3, "2-repeats-3"),
    ]
    assert (result.num_images, result.num_items) == (3, 5)


def test_every_resolution_has_its_own_table_and_cache(tmp_path):
    folder = write_images(tmp_path / "in", ["a.png", "b.png"])
    result = staged(scan(folder), tmp_path, recipe=make_recipe(resolution=512, extra_resolutions="256, 128"))
    tables = read_tables(result)
    assert [table["resolution"] for table in tables] == [[512, 512], [256, 256], [128, 128]]
    assert len({table["cache_directory"] for table in tables}) == 3
    assert (result.num_images, result.num_items) == (6, 6)


def test_the_toml_sets_what_musubi_does_not_default_to(tmp_path):
    folder = write_images(tmp_path / "in", ["a.png"])
    result = staged(scan(folder), tmp_path, recipe=make_recipe(train_batch_size=4))
    assert tomllib.loads(result.toml_text)["general"] == {
        "caption_extension": ".txt",
        "batch_size": 4,
        "enable_bucket": True,
        "bucket_no_upscale": True,
    }
    assert "\\" not in result.toml_text and not result.toml_text.startswith("\ufeff")


def test_captions_become_one_line_or_only_the_trigger_word(tmp_path):
    folder = write_images(tmp_path / "in", ["a.png"], caption="a dog\non a beach")
    dataset = scan(folder, trigger_word="ohwx")
    assert staged(dataset, tmp_path).groups[0].images[0].caption == "ohwx, a dog on a beach"
    assert (
        staged(dataset, tmp_path, recipe=make_recipe(caption_source="trigger_word")).groups[0].images[0].caption
        == "ohwx"
    )


def test_images_without_a_caption_are_left_out_by_name(tmp_path):
    folder = write_images(tmp_path / "in", ["a.png"])
    write_images(folder, ["b.png"], caption=None)
    result = staged(scan(folder), tmp_path)
    assert result.num_images == 1
    assert "left out: b.png: no caption" in result.notices[0]
    with pytest.raises(ValueError, match=r"strict is on and 1 image cannot be used: b\.png"):
        staged(scan(folder, strict=True), tmp_path)


def test_no_caption_at_all_is_an_error(tmp_path):
    dataset = scan(write_images(tmp_path / "in", ["a.png"], caption=None))
    with pytest.raises(ValueError, match=r"no usable image among 1: a\.png: no caption"):
        staged(dataset, tmp_path)
    with pytest.raises(ValueError, match="caption_source is trigger_word, but it has no trigger word"):
        staged(dataset, tmp_path, recipe=make_recipe(caption_source="trigger_word"))


def test_an_image_that_musubi_would_scale_to_nothing_is_left_out(tmp_path):
    folder = write_images(tmp_path / "in", ["a.png"])
    write_images(folder, ["thin.png"], size=(200, 12))
    assert (
        "left out: thin.png: its sides must be at least 16 pixels, got 200 x 12"
        in staged(scan(folder), tmp_path).notices[0]
    )
    assert staged(scan(folder), tmp_path, recipe=make_recipe(bucket_no_upscale=False)).num_images == 2


def test_validation_images_are_not_trained_on(tmp_path):
    learned = scan(write_images(tmp_path / "in", ["a.png"]), strict=True)
    held_out = scan(write_images(tmp_path / "other", ["b.png"], size=(80, 48)), is_validation=True)
    assert staged(join_datasets([learned, held_out]), tmp_path).num_images == 1


def test_features_that_musubi_does_not_have_are_named(tmp_path):
    folder = write_images(tmp_path / "in", ["a.png"])
    Image.new("L", (64, 48), 255).save(folder / "a-masklabel.png")
    notices = staged(scan(folder, loss_weight=0.5), tmp_path).notices
    assert [notice.split(":")[0] for notice in notices] == [
        "Musubi Tuner has no masks (1 image)",
        "Musubi Tuner has no loss_weight (1 image)",
    ]


def test_control_images_go_with_their_image(tmp_path):
    images = scan(write_images(tmp_path / "in", ["a.png", "a_1.png"]))
    control = scan(write_images(tmp_path / "control", ["a.png", "a_0.png", "a_1.png", "a_1_0.png"], caption=None))
    result = staged(images, tmp_path, control=control, recipe=make_recipe("qwen-image-edit"))
    photos = {image.file.image.name: [file.image.name for file in image.controls] for image in result.groups[0].images}
    assert photos == {"a.png": ["a.png", "a_0.png"], "a_1.png": ["a_1.png", "a_1_0.png"]}
    result.write()
    folder = result.groups[0].control_folder
    assert folder is not None and read_tables(result)[0]["control_directory"] == folder.as_posix()
    assert sorted(path.name for path in folder.iterdir()) == ["0001_0.png", "0001_1.png", "0002_0.png", "0002_1.png"]


def test_a_control_image_of_no_image_is_named(tmp_path):
    images = scan(write_images(tmp_path / "in", ["a.png"]))
    control = scan(write_images(tmp_path / "control", ["a.png", "b.png", "a_x.png"], caption=None))
    notices = staged(images, tmp_path, control=control, recipe=make_recipe("flux-kontext")).notices
    assert "2 control images of no image that is trained, not used: a_x.png, b.png" in notices


def test_an_image_with_a_large_text_is_written_anew_as_musubis_pillow_refuses_it(tmp_path):
    folder = write_images(tmp_path / "in", ["a.png", "b.png"])
    texts = PngInfo()
    texts.add_text("workflow", "x" * 2_000_000, zip=True)
    Image.open(folder / "a.png").save(folder / "a.png", pnginfo=texts)
    (group,) = staged(scan(folder), tmp_path).groups
    assert [image.file.is_link for image in group.images] == [False, True]


@pytest.mark.parametrize(
    ("architecture", "options", "control", "message"),
    [
        ("flux-kontext", {}, None, "FLUX.1 Kontext needs control images"),
        ("z-image", {}, ["a.png"], "Z-Image takes no control images"),
        ("flux-kontext", {}, ["b.png"], r"no control image for 1 image: a\.png.*keep_duplicates"),
        ("flux-kontext", {}, ["a_0.png", "a_1.png"], r"a\.png has 2 control images, but FLUX.1 Kontext takes 1"),
        ("qwen-image-edit", {"model_version": "edit"}, ["a_0.png", "a_1.png"], "takes 1 per image"),
    ],
)
def test_wrong_control_images_are_an_error(tmp_path, architecture, options, control, message):
    images = scan(write_images(tmp_path / "in", ["a.png"]))
    photos = scan(write_images(tmp_path / "control", control, caption=None)) if control else None
    with pytest.raises(ValueError, match=message):
        staged(images, tmp_path, control=photos, recipe=make_recipe(architecture, options))


def fill_caches(result: StagedDataset) -> None:
    for cache in result.caches:
        cache.path.mkdir(parents=True)
        for number in range(1, cache.num_images + 1):
            (cache.path / f"{number:04}_0064x0048_zi.safetensors").touch()
            (cache.path / f"{number:04}_zi_te.safetensors").touch()


def test_caches_are_complete_only_if_they_were_confirmed_and_all_still_exist(tmp_path):
    dataset = scan(write_images(tmp_path / "in", ["a.png", "b.png"]))
    result = staged(dataset, tmp_path)
    fill_caches(result)
    assert not result.caches_are_complete(), "a run that was stopped may have left half a file"
    result.confirm_caches()
    assert staged(dataset, tmp_path).caches_are_complete()
    next(result.caches[0].path.glob("*_te.safetensors")).unlink()
    assert not result.caches_are_complete()


def test_missing_caches_are_an_error_that_counts_them(tmp_path):
    result = staged(scan(write_images(tmp_path / "in", ["a.png", "b.png"])), tmp_path)
    fill_caches(result)
    (result.caches[0].path / "0001_zi_te.safetensors").unlink()
    with pytest.raises(RuntimeError, match="cached 2 latents and 1 captions of 2 images"):
        result.confirm_caches()
    assert not result.caches_are_complete()


@pytest.mark.parametrize("change", ["caption", "pixels", "resolution", "vae", "control"])
def test_a_change_of_what_the_caches_hold_changes_their_folder(tmp_path, change):
    folder, shown = (
        write_images(tmp_path / "in", ["a.png", "b.png"]),
        write_images(tmp_path / "control", ["a.png", "b.png"]),
    )
    facts = {"vae": 1}
    before = staged(scan(folder), tmp_path, control=scan(shown), recipe=make_recipe("flux-2"), **facts).cache_root
    settings = {}
    if change == "caption":
        (folder / "a.txt").write_text("another", encoding="utf-8")
    elif change == "pixels":
        Image.new("RGB", (64, 48), "white").save(folder / "a.png")
    elif change == "control":
        Image.new("RGB", (64, 48), "white").save(shown / "a.png")
    elif change == "resolution":
        settings = {"resolution": 512}
    else:
        facts = {"vae": 2}
    assert (
        staged(
            scan(folder), tmp_path, control=scan(shown), recipe=make_recipe("flux-2", **settings), **facts
        ).cache_root
        != before
    )


def test_a_change_of_other_settings_keeps_the_folder_of_the_caches(tmp_path):
    folder = write_images(tmp_path / "in", ["a.png"])
    before = staged(scan(folder), tmp_path).cache_root
    settings = {"train_batch_size": 4, "rank": 8, "learning_rate": 1.0, "max_train_steps": 7}
    assert staged(scan(folder, num_repeats=9), tmp_path, recipe=make_recipe(**settings)).cache_root == before


@given(st.text(st.characters(exclude_categories=("Cs", "Cc"))), st.integers(), st.booleans())
def test_no_name_can_break_the_syntax_of_the_toml(name, number, switch):
    table = {"image_directory": name, "num_repeats": number, "enable_bucket": switch, "resolution": [number, 64]}
    assert tomllib.loads(write_toml({"caption_extension": name}, [table, table])) == {
        "general": {"caption_extension": name},
        "datasets": [table, table],
    }


@pytest.mark.parametrize("name", ["a\nb = 1", "a\x00", "a\x7fb", "\udce9"])
def test_names_with_control_characters_are_refused(name):
    with pytest.raises(ValueError, match=r"that a dataset\.toml cannot hold"):
        write_toml({}, [{"image_directory": name}])


def own_toml(folder: Path, **changes) -> str:
    settings = {
        "image_directory": folder.as_posix(),
        "resolution": [64, 64],
        "caption_extension": ".txt",
        "enable_bucket": True,
        **changes,
    }
    return write_toml({}, [{name: value for name, value in settings.items() if value is not None}])


def test_an_own_toml_is_rewritten_with_our_cache_folders(tmp_path):
    folder = write_images(tmp_path / "in", ["a.png", "b.png"])
    result = own(own_toml(folder, num_repeats=3), tmp_path)
    (table,) = read_tables(result)
    assert Path(table["cache_directory"]).parent == result.cache_root
    assert (result.num_images, result.num_items, result.groups) == (2, 6, ())
    assert not list(folder.glob("*.safetensors"))
    fill_caches(result)
    result.confirm_caches()
    assert own(own_toml(folder, num_repeats=3), tmp_path).caches_are_complete()
    (folder / "a.txt").write_text("changed", encoding="utf-8")
    assert not own(own_toml(folder, num_repeats=3), tmp_path).caches_are_complete()


def test_an_own_cache_directory_is_kept_but_never_reused(tmp_path):
    folder = write_images(tmp_path / "in", ["a.png"])
    result = own(own_toml(folder, cache_directory=(tmp_path / "mine").as_posix()), tmp_path)
    assert read_tables(result)[0]["cache_directory"] == (tmp_path / "mine").as_posix()
    assert not result.caches_are_complete()


def test_a_byte_order_mark_and_a_general_table_are_read(tmp_path):
    folder = write_images(tmp_path / "in", ["a.png"])
    text = (
        '\ufeff[general]\ncaption_extension = ".txt"\nresolution = 64\n\n[[datasets]]\nimage_directory = '
        f'"{folder.as_posix()}"\n'
    )
    (table,) = read_tables(own(text, tmp_path))
    assert (table["resolution"], table["caption_extension"]) == (64, ".txt")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_direktory": "x"}, r"\[\[datasets\]\] 1 of dataset_toml: unknown key image_direktory"),
        ({"network_module": "os"}, "unknown key network_module"),
        ({"num_repeats": "3"}, "num_repeats must be a whole number, got '3'"),
        ({"num_repeats": True}, "num_repeats must be a whole number, got True"),
        ({"num_repeats": 0}, "num_repeats must be 1 or more, got 0"),
        ({"resolution": [64, 64, 64]}, r"resolution must be a whole number or \[width, height\]"),
        ({"enable_bucket": False, "resolution": [72, 72]}, "both sides of resolution must be multiples of 16"),
        ({"caption_extension": None}, 'Write caption_extension = ".txt"'),
        ({"image_directory": "pictures"}, "image_directory must be an absolute path"),
        ({"image_directory": "/no/such/folder"}, "image_directory /no/such/folder: there is no such folder"),
        ({"image_directory": None}, "give exactly one of image_directory, image_jsonl_file"),
        ({"video_directory": "/x"}, "got image_directory and video_directory"),
        ({"cache_directory": "/cache [1]"}, "would not find its caches"),
        ({"control_directory": "/no/such"}, "control_directory /no/such: there is no such folder"),
    ],
)
def test_problems_in_an_own_toml_are_reported(tmp_path, changes, message):
    folder = write_images(tmp_path / "in", ["a.png"])
    with pytest.raises(ValueError, match=message):
        own(own_toml(folder, **changes), tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('image_directory = "C:\\pictures"', "is not valid TOML.*forward slashes"),
        ("", "has no .*datasets.* table"),
        ("datasets = 3", "has no .*datasets.* table"),
        ("datasets = []", "has no .*datasets.* table"),
        ("general = 3\n[[datasets]]\n", "general must be a table"),
        ("[training]\nnetwork_module = 'os'\n[[datasets]]\n", "unknown table training"),
        (
            "[general]\nimage_directory = '/x'\n[[datasets]]\n",
            r"\[general\] of dataset_toml: unknown key image_directory",
        ),
    ],
)
def test_an_own_toml_with_the_wrong_structure_is_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        own(text, tmp_path)


def test_all_problems_in_an_own_toml_are_reported_at_once(tmp_path):
    text = "[general]\nbatch_size = 0.5\n[[datasets]]\nimage_directory = 3\n[[datasets]]\nfoo = 1\n"
    with pytest.raises(ValueError) as caught:
        own(text, tmp_path)
    assert len(str(caught.value).splitlines()) == 3


def test_two_tables_with_the_same_cache_are_refused():
    table = {"image_directory": "/", "caption_extension": ".txt", "cache_directory": "/c", "enable_bucket": True}
    _, problems = read_toml(write_toml({}, [table, table]), resolution_step=16)
    assert problems == ["[[datasets]] 2 of dataset_toml has the cache_directory of 1. Give each its own, or none"]


def test_images_that_musubi_would_mix_up_skip_or_fail_on_are_reported(tmp_path):
    folder = write_images(tmp_path / "in", ["a.png", "a.jpg", "b.png"])
    with pytest.raises(ValueError, match="several images are called a, and Musubi Tuner would keep only one"):
        own(own_toml(folder), tmp_path)
    (folder / "a.jpg").unlink()
    (folder / "b.txt").unlink()
    (folder / "a.png").rename(folder / "c.Png")
    with pytest.raises(ValueError, match="no image with a caption"):
        own(own_toml(folder), tmp_path)
    write_images(folder, ["d.png"])
    notices = own(own_toml(folder), tmp_path).notices
    assert any("ignores c.Png" in notice for notice in notices)
    assert any("Musubi Tuner leaves out 1 image without a caption: b.png" in notice for notice in notices)
    (folder / "d.txt").write_bytes("été".encode("cp1252"))
    with pytest.raises(ValueError, match=r"d\.txt is not in UTF-8"):
        own(own_toml(folder), tmp_path)


def test_control_images_of_an_own_toml_are_counted(tmp_path):
    folder, control = write_images(tmp_path / "in", ["a.png", "b.png"]), write_images(tmp_path / "control", ["a.png"])
    text = own_toml(folder, control_directory=control.as_posix())
    with pytest.raises(ValueError, match=r"no control image for b\.png"):
        own(text, tmp_path, make_recipe("flux-kontext"))
    with pytest.raises(ValueError, match="Z-Image takes no control images"):
        own(text, tmp_path)
    with pytest.raises(ValueError, match=r"FLUX\.1 Kontext needs control images\. Set control_directory"):
        own(own_toml(folder), tmp_path, make_recipe("flux-kontext"))
    write_images(control, ["b.png"])
    assert own(text, tmp_path, make_recipe("flux-kontext")).num_images == 2


def test_a_jsonl_file_of_images_is_read_and_its_lines_are_checked(tmp_path):
    folder = write_images(tmp_path / "in", ["a.png", "b.png"], caption=None)
    lines = tmp_path / "list.jsonl"
    entries = [{"image_path": (folder / name).as_posix(), "caption": "x"} for name in ("a.png", "b.png")]
    lines.write_text("\n".join(map(json.dumps, entries)), encoding="utf-8")
    text = write_toml({}, [{"image_jsonl_file": lines.as_posix(), "resolution": 64, "enable_bucket": True}])
    assert own(text, tmp_path).num_images == 2
    lines.write_text(
        json.dumps(entries[0]) + "\nnot json\n" + json.dumps({**entries[1], "image_path": "/no.png"}), encoding="utf-8"
    )
    with pytest.raises(ValueError, match=r"line 2 of .* is not JSON\n.*line 3 of .* names /no\.png"):
        own(text, tmp_path)


def test_videos_are_accepted_but_not_counted(tmp_path):
    text = write_toml(
        {},
        [
            {
                "video_directory": tmp_path.as_posix(),
                "caption_extension": ".txt",
                "resolution": 64,
                "enable_bucket": True,
                "source_fps": 24.0,
            }
        ],
    )
    result = own(text, tmp_path, make_recipe("wan"))
    assert (result.num_images, result.num_items) == (0, 0)
    result.confirm_caches()
    assert not result.caches_are_complete(), "caches that cannot be counted are filled again in every run"
