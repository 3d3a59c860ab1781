"""The flight check of a training on any other model than SDXL."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.dataset.paintings import paint
from trainers.check.config import FlightCheckConfig
from trainers.check.cost import Surroundings
from trainers.check.flight_check import check_flight
from trainers.check.memory_estimate import MemoryEstimate
from trainers.check.report import FlightReport
from trainers.dataset.bucket_config import BucketConfig
from trainers.dataset.config import DatasetConfig
from trainers.dataset.scan import scan_folder
from trainers.flow.check.family_check import FlowCheck, FlowEstimate, LatentFormat
from trainers.flow.config import FlowConfig
from trainers.flow.families import FlowFamilyRow
from trainers.training.plan import TrainingPlan
from trainers.training.run_settings import RunSettings

ROW = FlowFamilyRow("Toy", resolution_step=32, caption_tokens=8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed in range(6):
        paint(seed).save(tmp_path / f"{seed}.png")
        (tmp_path / f"{seed}.txt").write_text("zwx, a toy" + " on a table" * (3 if seed == 2 else 0))
    return tmp_path


def check(
    folder: Path, *, count: Callable[[str], int] | None = lambda text: len(text.split()), **settings: Any
) -> tuple[FlightReport, list[int]]:
    """Return the report, and the number of tokens that the memory was estimated for."""
    asked: list[int] = []

    def estimate(plan: TrainingPlan[FlowConfig], num_tokens: int) -> FlowEstimate:
        asked.append(num_tokens)
        return FlowEstimate(MemoryEstimate(2**30, 2**20, 2**30, 0), 1000, ("Blocks come one by one",))

    family = FlowCheck(ROW, "toy_4b", "bf16", LatentFormat(16, 8, 100), estimate, count, ("toy_4b is distilled",))
    buckets = BucketConfig(resolution=128, bucket_reso_steps=settings.pop("bucket_reso_steps", 64))
    report = check_flight(
        scan_folder(DatasetConfig(images=str(folder), trigger_word="zwx")),
        RunSettings(FlowConfig(**{"max_train_steps": 400, "caption_dropout": 0.0, **settings}), buckets),
        family,
        FlightCheckConfig(find_near_duplicates=False),
        Surroundings(output_folder=folder / "output"),
    )
    return report, asked


def list_messages(report: FlightReport, kind: str) -> list[str]:
    return [finding.message for finding in report.findings if finding.kind == kind]


def test_the_report_is_on_this_model(folder: Path) -> None:
    report, asked = check(folder)
    assert asked == [12]  # the tokens of the longest caption
    assert "Model: Toy (toy_4b)\n" in report.text() and "Blocks come one by one" in report.text()
    assert list_messages(report, "model") == ["toy_4b is distilled"]
    assert report.cost.disk is not None and report.cost.disk.lora_bytes == 2000


def test_captions_are_counted_by_its_own_tokenizer_and_limit(folder: Path) -> None:
    report, _ = check(folder)
    (message,) = list_messages(report, "overlong_caption")
    assert message.startswith("1 caption of more than 8 tokens, which is as many as Toy was trained with")


def test_without_a_tokenizer_that_is_said_and_the_limit_is_assumed(folder: Path) -> None:
    report, asked = check(folder, count=None)
    assert asked == [8] and list_messages(report, "overlong_caption") == []
    assert "Connect clip to count them" in list_messages(report, "uncounted_captions")[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bucket_reso_steps": 16}, "multiples of 32 pixels"),
        ({"learning_rate": 0.0}, "learning_rate is 0"),
        ({"optimizer_args": "d_coef=2"}, "AdamW does not take them"),
        ({"network_weights": "gone.safetensors"}, "there is no such file"),
    ],
)
def test_what_the_trainer_would_refuse_is_an_error(folder: Path, settings: dict[str, Any], message: str) -> None:
    paint(9, (144, 112)).save(folder / "9.png")
    (folder / "9.txt").write_text("zwx")
    report, _ = check(folder, **settings)
    assert report.is_refused and message in "".join(list_messages(report, "refused_by_trainer"))
