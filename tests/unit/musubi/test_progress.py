"""Facts as events: steps and their losses, wrong counts, learning rates, tokenizers."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.optim import SGD
from transformers import get_scheduler

from trainers.musubi.config import MusubiConfig
from trainers.musubi.installation import Installation
from trainers.musubi.output import BatchCount, StatedCount
from trainers.musubi.progress import ImageCounter, _SampleImages, learning_rate_at, read_step
from trainers.musubi.tokenizers import find_missing_tokenizers, require_fetchable


class Silent:
    """A host that only records events."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.events: list[object] = []

    def report(self, event: object) -> None:
        self.events.append(event)


@pytest.mark.parametrize("name", ["constant", "linear", "cosine", "cosine_with_restarts", "polynomial"])
@pytest.mark.parametrize("warmup", [0, 4, 0.25])
def test_learning_rates_match_the_schedules_that_musubi_uses(name: str, warmup: float):
    config = MusubiConfig(learning_rate=0.01, max_train_steps=20, lr_scheduler=name, lr_warmup_steps=warmup)
    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.learning_rate)
    steps = round(warmup * 20) if warmup < 1 else int(warmup)
    taken = "constant_with_warmup" if name == "constant" and steps else name
    schedule = get_scheduler(taken, optimizer, num_warmup_steps=steps, num_training_steps=20)
    for step in range(1, 21):
        assert learning_rate_at(config, step) == pytest.approx(schedule.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        schedule.step()


def test_images_are_counted_over_all_datasets_and_missing_ones_are_reported():
    counter = ImageCounter("encoding images", Silent(), num_images=7, batch_size=2)
    for fact in (
        StatedCount("images", 4),
        StatedCount("images", 2),
        BatchCount(0),
        BatchCount(2),
        BatchCount(0),
        BatchCount(1),
    ):
        counter.take(fact)
    assert [event.step for event in counter._host.events if hasattr(event, "step")] == [0, 4, 4, 6]
    assert counter.describe_missing() == "it found 6 of 7 images"
    assert ImageCounter("", Silent(), num_images=7, batch_size=1).describe_missing() == ""  # it reported no count
    nothing = ImageCounter("", Silent(), num_images=7, batch_size=1)
    nothing.take(StatedCount("images", 0))
    assert nothing.describe_missing() == "it found 0 of 7 images"


def test_only_names_of_step_checkpoints_have_a_step():
    assert read_step(Path("a-step00000250.safetensors")) == 250
    assert read_step(Path("a-step5-step00000250.safetensors")) == 250
    assert read_step(Path("a.safetensors")) is None and read_step(Path("a-000002.safetensors")) is None


@pytest.mark.parametrize("variable", ["HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "TRANSFORMERS_CACHE"])
def test_tokenizers_are_found_where_hugging_face_puts_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
):
    installation = Installation(tmp_path / "musubi", Path("python"), "0")
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "TRANSFORMERS_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv(variable, str(tmp_path))
    assert find_missing_tokenizers(["a/b", "c/d"], installation) == ["a/b", "c/d"]
    with pytest.raises(
        ValueError, match=r"a/b, c/d is not in the Hugging Face cache \(.*\), and HF_HUB_OFFLINE forbids downloading"
    ):
        require_fetchable(["a/b", "c/d"], installation)
    below = {"HF_HUB_CACHE": ".", "TRANSFORMERS_CACHE": ".", "HF_HOME": "hub", "XDG_CACHE_HOME": "huggingface/hub"}[
        variable
    ]
    snapshot = tmp_path / below / "models--a--b" / "snapshots" / "123"
    snapshot.mkdir(parents=True)
    assert find_missing_tokenizers(["a/b"], installation) == ["a/b"]  # a download that has only begun
    (snapshot / "tokenizer.json").touch()
    assert find_missing_tokenizers(["a/b"], installation) == []
    (tmp_path / "musubi/c/d").mkdir(parents=True)
    require_fetchable(["a/b", "c/d"], installation)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    require_fetchable(["e/f"], installation)


@pytest.mark.parametrize("num_bytes", [0, 40, -1])
def test_a_sample_is_read_only_when_it_is_completely_written(tmp_path: Path, num_bytes: int):
    first, second = (tmp_path / f"x_000004_0{number}_20260101000000_0_000.png" for number in range(2))
    for path in (first, second):
        Image.effect_noise((64, 64), 90).convert("RGB").save(path)
    whole = second.read_bytes()
    second.write_bytes(whole[: len(whole) // 2] if num_bytes == -1 else whole[:num_bytes])
    samples = _SampleImages(tmp_path)
    assert samples.read_new() == []
    second.write_bytes(whole)
    ((step, row),) = samples.read_new()
    assert step == 4 and row.size == (128, 64)
    assert samples.read_new() == []
