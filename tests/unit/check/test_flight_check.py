"""The flight check on small real folders: every kind of finding with its message, the cost, the
image and the command.
"""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.unit.dataset.imagined import imagine_dataset
from tests.unit.dataset.paintings import paint
from trainers.__main__ import main
from trainers.check.check_finding import CheckFinding
from trainers.check.config import FlightCheckConfig
from trainers.check.cost import Surroundings
from trainers.check.drawing.report_image import draw_flight_check
from trainers.check.flight_check import check_flight
from trainers.check.report import FlightReport
from trainers.dataset.bucket_config import BucketConfig
from trainers.dataset.caption_variants import CaptionConfig
from trainers.dataset.config import DatasetConfig
from trainers.dataset.crop_plan import plan_crops
from trainers.dataset.dataset import Dataset
from trainers.dataset.join import join_datasets
from trainers.dataset.scan import scan_folder
from trainers.sdxl.check.family_check import SDXLCheck
from trainers.sdxl.config import SDXLConfig
from trainers.sdxl.model.standard_unet import standard_unet
from trainers.training.run_settings import RunSettings
from trainers.training.schedule import plan_schedule

GIB = 2**30


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six different images with captions."""
    folder = tmp_path / "toys"
    folder.mkdir()
    for seed in range(6):
        add(folder, f"{seed}.png", paint(seed), caption=f"zwx, toy number {seed} on a table")
    return folder


def add(
    folder: Path, name: str, image: Image.Image, *, caption: str = "zwx, one more toy on the floor", **saving: object
) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    image.save(folder / name, **saving)
    if caption:
        (folder / name).with_suffix(".txt").write_text(caption)


def scan(folder: Path, **settings: object) -> Dataset:
    return scan_folder(DatasetConfig(images=str(folder), **{"trigger_word": "zwx", **settings}))


def check(
    dataset: Dataset,
    *,
    captions: CaptionConfig | None = None,
    surroundings: Surroundings | None = None,
    **settings: object,
) -> FlightReport:
    configs = {kind: {} for kind in (SDXLConfig, BucketConfig, FlightCheckConfig)}
    for name, value in {"resolution": 128, "max_train_steps": 400, **settings}.items():
        next(given for kind, given in configs.items() if name in kind.__dataclass_fields__)[name] = value
    config, buckets, flight_check = (kind(**given) for kind, given in configs.items())
    run_settings = RunSettings(config, buckets, captions or CaptionConfig())
    surroundings = surroundings or Surroundings(output_folder=Path("/nowhere/output"))
    return check_flight(dataset, run_settings, SDXLCheck(), flight_check, surroundings)


def find_finding(report: FlightReport, kind: str) -> CheckFinding:
    (finding,) = [finding for finding in report.findings if finding.kind == kind]
    return finding


def list_kinds(report: FlightReport) -> set[str]:
    return {finding.kind for finding in report.findings}


def list_lines(report: FlightReport, kind: str) -> list[str]:
    finding = find_finding(report, kind)
    return [finding.level, *finding.lines()]


def test_a_good_folder_has_no_findings(folder: Path) -> None:
    report = check(scan(folder))
    assert report.findings == [] and not report.is_refused and report.verdict == "ready: no findings"
    assert report.text().startswith(
        "Flight check of toys: ready: no findings\n\nModel: SDXL\nImages: 6 images\n"
        "Cropping: 0.0% of an image's area is lost"
    )
    assert "Steps: 400, 66.7 epochs of 6 samples; each image is seen about 67 times" in report.text()


def test_crops_to_subjects_and_changed_copies_are_shown(folder: Path) -> None:
    width, height = Image.open(folder / "0.png").size
    mask = Image.new("L", (width, height))
    mask.paste(255, (0, 0, width // 4, height // 4))
    mask.save(folder / "0-masklabel.png")
    settings = {
        "crop_to_subject": "zoom",
        "subject_margin": 0.0,
        "resolution": 64,
        "color_aug": 0.1,
        "rotation_aug": 5.0,
    }
    report = check(scan(folder), **settings)
    use = next(use for use in report.uses if use.image.name == "0.png")
    assert use.crop.top_left_yx == (0, 0) and use.lost_share > 0.25  # as it is trained, and as was asked for
    assert "heavy_crop" not in list_kinds(report)
    assert "Cropped to subjects: crop_to_subject zoom" in report.text().splitlines()
    assert "Changed copies: 4 of each image (color_aug 0.1, rotation_aug 5); epochs take turns" in report.text()
    assert "5.png: no mask with white in it, so crop_to_subject zoom does not change its crop" in report.text()
    assert draw_flight_check(report).width == 1280


def test_crops_to_subjects_without_a_mask_are_what_the_trainer_refuses(folder: Path) -> None:
    report = check(scan(folder), crop_to_subject="center")
    assert "the trainer would stop: crop_to_subject is center, but no image of toys has a mask" in report.text()


def test_broken_files_are_errors_and_harmless_ones_warnings(folder: Path) -> None:
    (folder / "broken.png").write_bytes((folder / "1.png").read_bytes()[:900])
    (folder / "empty.jpg").touch()
    (folder / "film.gif").write_bytes(b"GIF89a")
    (folder / "again.png").write_bytes((folder / "2.png").read_bytes())
    report = check(scan(folder))
    assert list_lines(report, "unusable") == [
        "error",
        "  2 images cannot be used. Repair, replace or remove each",
        "    broken.png: it is damaged (image file is truncated)",
        "    empty.jpg: the file is empty (0 bytes)",
    ]
    level, message, *left_out = list_lines(report, "left_out")
    assert (level, message) == ("warning", "  2 images left out")
    assert sorted(left_out) == [
        "    again.png: it is the same file as 2.png",
        "    film.gif: .gif files are not read. Convert it to one of .png, .jpg, .jpeg, .webp, .bmp, .avif",
    ]
    assert report.verdict == "refused: 1 error, 1 warning" and report.num_left_out == 4


def test_rewording_the_scans_report_changes_no_finding(folder: Path) -> None:
    (folder / "broken.png").write_bytes((folder / "1.png").read_bytes()[:900])
    (folder / "film.gif").write_bytes(b"GIF89a")
    (folder / "again.png").write_bytes((folder / "2.png").read_bytes())
    add(folder, "tiny.png", Image.new("RGB", (9, 9)))
    add(folder, "bare.png", paint(7), caption="")
    dataset = scan(folder, trigger_word="")
    left_out = [replace(remark, reason="other words") for remark in dataset.report.left_out]
    notes = [replace(note, reason="other words") for note in dataset.report.notes]
    reworded = replace(dataset, report=replace(dataset.report, left_out=left_out, notes=notes))
    before, after = (
        [
            (finding.level, finding.kind, finding.message, [remark.name for remark in finding.images])
            for finding in check(each).findings
        ]
        for each in (dataset, reworded)
    )
    assert {kind for _, kind, _, _ in before} >= {"unusable", "left_out", "too_small", "no_caption"} and after == before


def test_images_without_any_caption_are_an_error(folder: Path) -> None:
    add(folder, "bare.png", paint(7), caption="")
    report = check(scan(folder, trigger_word=""))
    assert list_lines(report, "no_caption") == [
        "error",
        "  1 image left out: no caption. Write captions, connect Florence-2 Caption (LoRA Trainer), or set "
        "trigger_word",
        "    bare.png",
    ]
    assert list_lines(report, "no_trigger_word")[0] == "note"
    assert list_kinds(report) == {"no_caption", "no_trigger_word"}


def test_if_no_image_has_a_caption_that_is_said_once(tmp_path: Path) -> None:
    add(tmp_path / "bare", "a.png", paint(0), caption="")
    report = check(scan(tmp_path / "bare", trigger_word=""))
    assert [finding.kind for finding in report.findings if finding.level == "error"] == ["no_caption"]
    assert report.uses == [] and report.is_refused and report.to_dict()["buckets"] == {}
    assert draw_flight_check(report).width == 1280


def test_braces_without_wildcards_are_a_warning(folder: Path) -> None:
    add(folder, "braces.png", paint(7), caption="zwx, a {red|blue} toy")
    assert list_lines(check(scan(folder)), "unused_alternatives") == [
        "warning",
        "  1 caption with {a|b}, trained as it is. Turn on use_wildcards to choose one of them",
        "    braces.png",
    ]
    wildcards = CaptionConfig(use_wildcards=True)
    assert "unused_alternatives" not in list_kinds(check(scan(folder), captions=wildcards))


def test_a_strict_refusal_is_an_error_and_the_rest_is_planned(folder: Path) -> None:
    add(folder, "tiny.png", paint(7, (40, 40)))
    report = check(scan(folder, strict=True))
    assert find_finding(report, "refused_by_trainer").message.startswith(
        "the trainer would stop: toys: strict is on and 1 image cannot be used: tiny.png: 40 x 40"
    )
    assert len(report.uses) == 6 and report.is_refused


def test_images_that_are_too_small_are_named(folder: Path) -> None:
    add(folder, "tiny.png", paint(7, (40, 40)))
    level, message, image = list_lines(check(scan(folder)), "too_small")
    assert (level, message) == ("warning", "  1 image left out as too small")
    assert image.startswith("    tiny.png: 40 x 40 pixels are too small, both sides must have 64 or more")


def test_heavy_cropping_is_reported_worst_first(folder: Path) -> None:
    add(folder, "wide.png", paint(7, (512, 128)))
    add(folder, "wider.png", paint(8, (640, 128)))
    report = check(scan(folder), resize_mode="center_crop")
    assert list_lines(report, "heavy_crop") == [
        "warning",
        "  2 images cropped by 25% or more. Set resize_mode to bucket, or crop them yourself",
        "    wider.png: 80% of 640 x 128 is cut away for 128 x 128",
        "    wide.png: 75% of 512 x 128 is cut away for 128 x 128",
    ]
    use = next(use for use in report.uses if use.image.name == "wide.png")
    assert use.lost_share == 0.75 and use.enlargement == 1.0


def test_enlarged_and_small_images_are_reported_separately(folder: Path) -> None:
    add(folder, "small.png", paint(7, (80, 80)))
    report = check(scan(folder), bucket_no_upscale=False)
    assert list_lines(report, "enlarged") == [
        "warning",
        "  1 image enlarged, which teaches blur. Use larger images, or turn bucket_no_upscale on",
        "    small.png: 80 x 80 is enlarged 1.6 times",
    ]
    assert list_lines(check(scan(folder), bucket_reso_steps=16), "small") == [
        "note",
        "  1 image trained far below resolution 128: the files are too small",
        "    small.png: at 80 x 80, from 80 x 80",
    ]


def test_near_duplicates_are_found_and_grouped(folder: Path) -> None:
    image = paint(20, (300, 200))
    add(folder, "a.png", image)
    add(folder, "b.jpg", image.resize((210, 140)), quality=40)
    add(folder, "c.png", image.crop((12, 4, 300, 196)))
    report = check(scan(folder))
    message = "1 group of near-duplicates, each learned like one image with repeats. Keep the best of each"
    assert list_lines(report, "near_duplicates") == ["warning", f"  {message}", "    a.png: looks like b.jpg, c.png"]
    assert report.duplicate_groups == [["a.png", "b.jpg", "c.png"]]
    assert "near_duplicates" not in list_kinds(check(scan(folder), find_near_duplicates=False))


def test_long_and_overlong_captions_are_counted_in_tokens(folder: Path) -> None:
    add(folder, "long.png", paint(7), caption="zwx, " + "red " * 90)
    add(folder, "overlong.png", paint(8), caption="zwx, " + "red " * 300)
    report = check(scan(folder))
    assert list_lines(report, "long_caption") == [
        "note",
        "  1 caption of more than 75 tokens, learned in chunks; the first chunk counts most",
        f"    long.png: {count_tokens('zwx,') + 90} tokens, 2 chunks",
    ]
    assert list_lines(report, "overlong_caption") == [
        "warning",
        "  1 caption of more than 225 tokens. Other programs cut such prompts off, and their last words have little "
        "effect. Shorten them",
        f"    overlong.png: {count_tokens('zwx,') + 300} tokens, 5 chunks",
    ]


def count_tokens(text: str) -> int:
    from trainers.captions.clip_tokenizer import token_ids

    return len(token_ids([text])[0])


def test_caption_lines_chosen_at_random_are_counted_one_by_one(folder: Path) -> None:
    add(folder, "lines.png", paint(7), caption="zwx, " + "red " * 50 + "\nzwx, " + "blue " * 50)
    assert "long_caption" in list_kinds(check(scan(folder)))
    assert "long_caption" not in list_kinds(check(scan(folder), captions=CaptionConfig(use_wildcards=True)))


def test_captions_with_only_the_trigger_word_are_reported_once(folder: Path) -> None:
    add(folder, "bare.png", paint(7), caption="")
    meaning = "it will mean everything these images show. Write captions, or connect Florence-2 Caption (LoRA Trainer)"
    report = check(scan(folder))
    assert list_lines(report, "trigger_word_alone") == [
        "warning",
        f"  1 caption with only the trigger word: {meaning}",
        "    bare.png",
    ]
    assert list_kinds(report) == {"trigger_word_alone"}  # the scan's note on it is not repeated


def test_captions_without_the_trigger_word_are_found(folder: Path) -> None:
    dataset = scan(folder, trigger_word="")
    dataset = Dataset(dataset.images, 1, "qqq", dataset.report, dataset.folder_name)
    level, message, first, *_ = list_lines(check(dataset), "trigger_word_missing")
    assert (level, message) == ("warning", "  6 captions without the trigger word. Add it")
    assert first == "    0.png: no qqq in: zwx, toy number 0 on a table"


def test_the_same_caption_everywhere_is_noted(tmp_path: Path) -> None:
    for seed in range(5):
        add(tmp_path / "same", f"{seed}.png", paint(seed), caption="zwx, a toy")
    assert list_lines(check(scan(tmp_path / "same")), "same_caption") == [
        "note",
        "  all captions are the same: zwx, a toy",
    ]


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        (
            {"max_train_steps": 4},
            "not_all_seen",
            "4 steps do not reach every image: an epoch has 6. Set max_train_steps higher",
        ),
        (
            {"max_train_steps": 60},
            "seldom_seen",
            "an image is seen only 10 times; 60 to 100 are usual. Raise max_train_steps, unless the images are alike",
        ),
        (
            {"max_train_steps": 3000},
            "often_seen",
            "an image is seen 500 times; 60 to 100 are usual. The LoRA may memorize it. Lower "
            "max_train_steps or num_repeats",
        ),
    ],
)
def test_how_often_an_image_is_seen_is_judged(folder: Path, settings: dict, kind: str, message: str) -> None:
    report = check(scan(folder), **settings)
    assert (find_finding(report, kind).level, find_finding(report, kind).message) == (
        "warning",
        message,
    ) and list_kinds(report) == {kind}


def test_few_images_and_partial_batches_are_reported(folder: Path) -> None:
    for seed in range(3, 6):
        (folder / f"{seed}.png").unlink()
    report = check(scan(folder), train_batch_size=2, max_train_steps=100)
    assert (
        find_finding(report, "few_pictures").message
        == "only 3 images: the LoRA will memorize what it sees. 10 to 200 are usual"
    )
    assert (
        find_finding(report, "partial_batches").message
        == "1 of 2 batches per epoch have fewer than 2 images, because all images of a batch have one size"
    )


def test_a_mask_that_is_all_black_is_an_error(folder: Path) -> None:
    Image.new("L", (160, 160), 0).save(folder / "1-masklabel.png")
    Image.new("L", (160, 160), 255).save(folder / "2-masklabel.png")
    report = check(scan(folder))
    assert report.num_masks == 2
    assert list_lines(report, "empty_mask") == [
        "error",
        "  the masks of 1 image are all black, so nothing is learned. White areas are learned: are the masks inverted?",
        "    1.png",
    ]


def test_held_out_images_are_not_counted(folder: Path) -> None:
    report = check(scan(folder), validation_share=0.3)
    assert report.num_images == 4 and report.cost.schedule.num_samples == 4
    assert any("2 images held out, never trained on" in line for line in list_lines(report, "remarks"))
    assert report.num_held_out == report.to_dict()["num_held_out"] == 2
    assert "Images: 4 images, 2 held out" in report.text()


def test_with_held_out_images_the_estimates_are_those_of_the_run(folder: Path) -> None:
    """Four of six images are trained: few, in shorter epochs, but all six are encoded."""
    whole, split = check(scan(folder)), check(scan(folder), validation_share=0.3)
    assert list_lines(split, "few_pictures")[1].startswith("  only 4 images")
    assert "few_pictures" not in list_kinds(whole)
    assert split.cost.schedule.total_steps == whole.cost.schedule.total_steps == 400
    assert split.cost.schedule.times_seen_range == (100, 100)
    assert split.cost.disk.latents_bytes == whole.cost.disk.latents_bytes
    epochs = check(scan(folder), validation_share=0.3, num_train_epochs=10)
    assert epochs.cost.schedule.total_steps == 40


def test_regularization_images_are_counted_apart_and_need_no_trigger_word(folder: Path, tmp_path: Path) -> None:
    for seed in range(30, 33):
        add(tmp_path / "class", f"{seed}.png", paint(seed), caption="a toy")
    report = check(join_datasets([scan(folder), scan(tmp_path / "class", trigger_word="", is_regularization=True)]))
    assert (report.num_images, report.num_regularization) == (6, 3)
    assert list_kinds(report) <= {"remarks"}
    assert report.cost.schedule.num_samples == 12 and report.cost.schedule.times_seen_range == (400 / 12, 400 / 12)


def test_the_trainers_error_on_captions_is_a_finding(folder: Path) -> None:
    report = check(scan(folder, trigger_word=""), prior_loss_weight=1.0)
    assert find_finding(report, "refused_by_trainer").message.startswith(
        "the trainer would stop: prior_loss_weight needs a prompt"
    )


def test_too_little_memory_and_disk_are_errors(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = check(scan(folder), surroundings=Surroundings(device_bytes=4 * GIB))
    needed = f"{report.cost.memory_bytes / GIB:.1f} GB"
    remedy = "Lower train_batch_size or resolution, or turn gradient_checkpointing on"
    assert (
        find_finding(report, "memory").message
        == f"the training needs about {needed} of memory, but the GPU has 4.0 GB. {remedy}"
    )
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 2**20}))
    assert find_finding(check(scan(folder)), "disk").message.endswith(
        "output has 1.0 MB free. Make room, or keep fewer checkpoints"
    )


@pytest.mark.parametrize(("stop_at", "is_refused"), [("error", False), ("warning", True), ("never", False)])
def test_stop_at_decides_what_is_refused(folder: Path, stop_at: str, is_refused: bool) -> None:
    report = check(scan(folder), stop_at=stop_at, max_train_steps=60)
    assert report.is_refused is is_refused
    if is_refused:
        with pytest.raises(
            ValueError,
            match=r"an image is seen only 10 times(.|\n)*set stop_at to error or never to train anyway",
        ):
            report.require_clear()
    else:
        report.require_clear()


def test_findings_come_by_level_and_long_lists_are_cut(folder: Path) -> None:
    for number in range(12):
        (folder / f"empty{number}.png").touch()
    report = check(scan(folder), max_train_steps=60)
    assert [finding.level for finding in report.findings] == ["error", "warning"]
    shown = find_finding(report, "unusable").lines()
    assert len(shown) == 1 + 8 + 1 and shown[-1] == "    and 4 more"


def test_a_missing_library_error_says_how_to_install_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imagehash", None)
    with pytest.raises(
        ModuleNotFoundError,
        match="needs the package ImageHash: pip install ImageHash, or turn find_near_duplicates off",
    ):
        check(scan(folder))
    assert check(scan(folder), find_near_duplicates=False).findings == []


def test_the_loras_size_grows_with_its_rank(folder: Path) -> None:
    sizes = [check(scan(folder), rank=rank).cost.disk.lora_bytes for rank in (8, 16)]
    assert sizes == [2 * 21_278_720, 4 * 21_278_720]  # parameters of rank 8 on SDXL's 722 layers, two bytes each


def test_the_unet_is_counted_without_weights() -> None:
    assert {parameter.device.type for parameter in standard_unet().parameters()} == {"meta"}


def test_the_time_comes_from_an_earlier_run_with_the_same_settings_or_is_unknown(folder: Path, tmp_path: Path) -> None:
    surroundings = Surroundings(output_folder=tmp_path / "output")
    assert (
        "Time: unknown, because no earlier run in the output folder has these settings"
        in check(scan(folder), surroundings=surroundings).text()
    )
    write_run(tmp_path / "output/runs/old", seconds_per_step=1.5, rank=16)
    write_run(tmp_path / "output/runs/other", seconds_per_step=9.0, rank=64)
    write_run(tmp_path / "output/runs/short", seconds_per_step=9.0, rank=16, num_steps=5)
    (tmp_path / "output/runs/cut").mkdir()
    (tmp_path / "output/runs/cut/manifest.json").write_text('{"training": {')
    report = check(scan(folder), surroundings=surroundings)
    assert report.cost.seconds == pytest.approx(600, rel=1e-3)
    assert "Time: about 10 min for the steps (1.50 s per step, as in old on cuda:0 with my_model)" in report.text()


def test_the_time_with_prior_preservation_is_scaled_from_a_run_without_it_if_no_run_has_it(
    folder: Path, tmp_path: Path
) -> None:
    surroundings = Surroundings(output_folder=tmp_path / "output")
    write_run(tmp_path / "output/runs/plain", seconds_per_step=1.0, rank=16)
    report = check(scan(folder), surroundings=surroundings, prior_loss_weight=1.0, class_prompt="a thing")
    assert report.cost.seconds == pytest.approx(400 * 1.3, rel=1e-3)
    assert (
        "(1.30 s per step, estimated with prior_loss_weight from the 1.00 s in plain on cuda:0 with my_model)"
        in report.text()
    )
    write_run(tmp_path / "output/runs/prior", seconds_per_step=2.0, rank=16, prior_loss_weight=0.5)
    write_run(tmp_path / "output/runs/mixed", seconds_per_step=9.0, rank=16, extra_resolutions="64")
    for prior_loss_weight, seconds in ((1.0, 800), (0.0, 400)):
        report = check(
            scan(folder), surroundings=surroundings, prior_loss_weight=prior_loss_weight, class_prompt="a thing"
        )
        assert report.cost.seconds == pytest.approx(seconds, rel=1e-3)


def write_run(
    folder: Path, *, seconds_per_step: float, num_steps: int = 50, extra_resolutions: str = "", **settings: float
) -> None:
    folder.mkdir(parents=True)
    training = {spec: getattr(SDXLConfig(**settings), spec) for spec in SDXLConfig.__dataclass_fields__}
    buckets = {"resolution": 128, "extra_resolutions": extra_resolutions}
    manifest = {
        "training": training,
        "buckets": buckets,
        "precision": "bf16",
        "device": "cuda:0",
        "base_model": {"name": "my_model"},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    rows = [f"{step},1,0.1,0.1,0.0001,{1 / seconds_per_step:.4g}" for step in range(1, num_steps + 1)]
    (folder / "loss.csv").write_text(
        "step,epoch,loss,average_loss,learning_rate,steps_per_second\n" + "\n".join(rows) + "\n"
    )


def test_the_samples_of_a_thousand_images_are_counted() -> None:
    plan = plan_crops(imagine_dataset(1000, num_repeats=10, sizes=True), BucketConfig(), seed=0)
    assert plan_schedule(plan, SDXLConfig(train_batch_size=4)).num_samples == 10_000


def test_the_image_shows_every_section(folder: Path) -> None:
    plain = draw_flight_check(check(scan(folder)))
    add(folder, "wide.png", paint(1, (512, 128)))
    add(folder, "copy.jpg", paint(2).resize((140, 140)))
    (folder / "empty.png").touch()
    full = draw_flight_check(check(scan(folder)))
    assert plain.mode == "RGB" and plain.width == full.width == 1280 and full.height > plain.height + 200


@pytest.mark.parametrize("num_images", [1, 200])
def test_one_image_and_many_long_names_can_be_drawn(tmp_path: Path, num_images: int) -> None:
    for number in range(num_images):
        Image.new("RGB", (64 + number % 40 * 8, 64 + number % 7 * 40), (number, 0, 255 - number)).save(
            make_path(tmp_path / "many", f"{number}{'x' * 120}ä漢.png")
        )
    report = check(scan(tmp_path / "many"), find_near_duplicates=False)
    assert draw_flight_check(report).height < 4000


def make_path(folder: Path, name: str) -> Path:
    folder.mkdir(exist_ok=True)
    return folder / name


def test_the_command_prints_writes_the_image_and_exits_by_level(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "check",
        "--images",
        str(folder),
        "--trigger-word",
        "zwx",
        "--resolution",
        "128",
        "--output-dir",
        str(tmp_path / "output"),
    ]
    assert main([*arguments, "--max-train-steps", "400", "--picture", str(tmp_path / "check.png")]) == 0
    assert "Flight check of toys: ready: no findings" in capsys.readouterr().out
    assert Image.open(tmp_path / "check.png").width == 1280
    assert main([*arguments, "--max-train-steps", "60", "--stop-at", "warning", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["refused"] and [finding["kind"] for finding in report["findings"]] == ["seldom_seen"]
    assert report["pictures"][0]["times_seen"] == 10 and report["cost"]["schedule"]["total_steps"] == 60
    assert not (tmp_path / "output").exists()


def test_the_report_is_plain_json(folder: Path) -> None:
    assert math.isfinite(json.loads(json.dumps(check(scan(folder)).to_dict(), allow_nan=False))["cost"]["memory_bytes"])


def test_the_command_line_imports_neither_torch_nor_imagehash_to_read_flags() -> None:
    code = (
        "import sys, trainers.__main__; print(sorted({'torch', 'diffusers', 'imagehash', 'scipy'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3]
    )
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"network_weights": "gone.safetensors"}, "network_weights: gone.safetensors: there is no such file"),
        ({"optimizer_args": "d_coef=2"}, "optimizer_args 'd_coef=2': AdamW does not take them"),
        (
            {"optimizer": "Prodigy", "learning_rate": 1.0, "train_text_encoders": True},
            "Prodigy finds one learning rate for everything",
        ),
        ({"learning_rate": 0.0}, "learning_rate is 0"),
        ({"target_modules": "atn"}, "target_modules: 'atn' matches no linear or convolution layer of the UNet"),
        (
            {"target_modules": "("},
            "target_modules: '(' is neither attention, attention_mlp, b-lora, b-lora-content, b-lora-style nor",
        ),
    ],
)
def test_what_the_trainer_would_refuse_of_the_settings_is_an_error(
    folder: Path, tmp_path: Path, settings: dict, message: str
) -> None:
    report = check_flight(
        scan(folder),
        RunSettings(SDXLConfig(**settings)),
        SDXLCheck("no"),
        FlightCheckConfig(find_near_duplicates=False),
        Surroundings(None, tmp_path),
    )
    assert report.is_refused and any(message in finding.message for finding in report.findings)


def test_control_images_are_refused_as_the_trainer_refuses_them(folder: Path, tmp_path: Path) -> None:
    for number in range(6):
        add(tmp_path / "seen", f"{number}.png", paint(9), caption="")
    report = check(scan(folder, control_images=str(tmp_path / "seen")))
    assert find_finding(report, "refused_by_trainer").message.startswith(
        "the trainer would stop: 6 images with control images, but SDXL does not look at control images. Choose"
    )
    assert report.is_refused and draw_flight_check(report).width == 1280


def test_an_optimizer_that_does_not_work_on_the_device_is_an_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> bool:
        raise RuntimeError("no kernel for this device")

    monkeypatch.setattr("trainers.training.optimizers._step_once", fail)
    report = check(scan(folder), optimizer="AdamW8bit", surroundings=Surroundings(device="cpu"))
    message = "optimizer AdamW8bit cannot train on cpu (no kernel for this device). Choose AdamW"
    assert message in find_finding(report, "refused_by_trainer").message


def test_the_command_refuses_a_base_model_by_its_header(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "other.safetensors"
    save_file({"first.weight": torch.zeros(4, 4, 3, 3)}, base)
    arguments = ["check", "--images", str(folder), "--trigger-word", "zwx", "--resolution", "128", "--base", str(base)]
    assert main(arguments) == 1
    assert f"error: {base}: not an SDXL model: unknown weights such as first.weight" in capsys.readouterr().err
