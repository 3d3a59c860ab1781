"""The real scripts of Musubi Tuner on tiny weights: from images to a LoRA for ComfyUI, and runs
that are stopped or fail.
"""

import csv
import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.musubi.tiny import NUM_MODULES, TinyMusubi, make_tiny_musubi
from trainers.__main__ import main
from trainers.dataset.config import DatasetConfig
from trainers.dataset.dataset import Dataset
from trainers.dataset.scan import scan_folder
from trainers.musubi.config import MusubiConfig
from trainers.musubi.failure import MusubiFailed
from trainers.musubi.installation import Installation
from trainers.musubi.plan import MusubiJob
from trainers.musubi.trainer import MusubiTrainer
from trainers.training.console_host import ConsoleHost
from trainers.training.events import CheckpointSaved, Event, Interrupted, Notice, SamplesDrawn, StepDone
from trainers.training.run_folder import RunFolder
from trainers.training.trained_lora import TrainedLora

ENDLESS = 100_000  # steps, more than can end within the tests' time limit
CONFIG = MusubiConfig(
    rank=4,
    learning_rate=1e-2,
    resolution=64,
    max_train_steps=8,
    save_every_n_steps=4,
    optimizer="AdamW",
    save_dtype="fp32",
    bucket_no_upscale=False,
    max_data_loader_n_workers=0,
)


class Recorder(ConsoleHost):
    """Records the events, and calls `on_event` with each."""

    def __init__(self, on_event: Callable[[Event], None] = lambda _: None) -> None:
        super().__init__(torch.device("cpu"), quiet=True)
        self.events: list[Event] = []
        self._on_event = on_event
        self.is_cancelled = False

    def report(self, event: Event) -> None:
        self.events.append(event)
        self._on_event(event)

    def take_request(self) -> None:
        return None

    def check_interrupted(self) -> None:
        if self.is_cancelled:
            raise Interrupted("cancelled by the test")

    def steps(self) -> list[StepDone]:
        return [event for event in self.events if isinstance(event, StepDone)]

    def notices(self) -> str:
        return "\n".join(event.message for event in self.events if isinstance(event, Notice))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyMusubi:
    return make_tiny_musubi(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(autouse=True)
def environment(tiny: TinyMusubi, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in tiny.environment.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with spaces, accents and brackets in its name. Musubi's search for its caches
    reads brackets as a pattern.
    """
    place = tmp_path_factory.mktemp("runs") / "été [1] 'quoted'"
    place.mkdir()
    return place


@pytest.fixture(scope="module")
def dataset(place: Path) -> Dataset:
    folder = place / "pictures"
    folder.mkdir()
    for name, size, colour in (
        ("a [1].png", (128, 128), "red"),
        ("b.png", (160, 96), "green"),
        ("b.jpg", (128, 128), "blue"),
    ):
        Image.new("RGB", size, colour).save(folder / name)
    for stem in ("a [1]", "b"):
        (folder / f"{stem}.txt").write_text(f"a disc, été, {stem}", encoding="utf-8")
    return scan_folder(DatasetConfig(images=str(folder), trigger_word="ohwx"))


def make_trainer(
    tiny: TinyMusubi, place: Path, cache: Path, *, name: str = "disc", config: MusubiConfig = CONFIG
) -> MusubiTrainer:
    job = MusubiJob("z-image", config, tiny.models, {})
    return MusubiTrainer(job, tiny.installation, run_folder=RunFolder(place, name, keep_inside=True), cache_root=cache)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def trained(tiny: TinyMusubi, place: Path, cache: Path, dataset: Dataset) -> tuple[TrainedLora, Recorder]:
    host = Recorder()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in tiny.environment.items():
            patch.setenv(name, value)
        config = replace(
            CONFIG, sample_every_n_steps=4, sample_prompts="\n".join(2 * ["a red disc --w 64 --h 64 --s 2 --l 1"])
        )
        return make_trainer(tiny, place, cache, config=config).train(dataset, host), host


def compute_products(tensors: dict[str, torch.Tensor], *, down: str, up: str) -> dict[str, torch.Tensor]:
    """Return (alpha / rank) B A of every module; without an alpha, it is the rank."""
    result = {}
    for name in tensors:
        if name.endswith(down):
            module = name.removesuffix(down)
            first, second = tensors[name].double(), tensors[module + up].double()
            alpha = tensors.get(f"{module}.alpha", torch.tensor(float(first.shape[0])))
            result[module.removeprefix("diffusion_model.").removeprefix("lora_unet_").replace(".", "_")] = (
                alpha.double() / first.shape[0] * second @ first
            )
    return result


def require_same_products(path: Path, raw_path: Path) -> None:
    expected = compute_products(load_file(raw_path), down=".lora_down.weight", up=".lora_up.weight")
    found = compute_products(load_file(path), down=".lora_A.weight", up=".lora_B.weight")
    assert len(expected) == NUM_MODULES and found.keys() == expected.keys()
    for name, product in expected.items():
        torch.testing.assert_close(found[name], product, rtol=1e-5, atol=1e-8)
        assert product.abs().max() > 1e-5


def test_the_files_for_comfyui_change_every_weight_as_musubis_own_files_do(trained: tuple[TrainedLora, Recorder]):
    result, _ = trained
    assert result.path is not None
    folder = result.path.parent
    require_same_products(result.path, folder / "musubi" / "disc.safetensors")
    (checkpoint,) = result.checkpoints
    require_same_products(checkpoint, folder / "musubi" / checkpoint.name)
    assert result.state_dict.keys() == load_file(result.path).keys()
    assert result.metadata["ss_network_dim"] == "4" and result.metadata["ss_output_name"] == "disc"


def test_every_step_checkpoint_and_sample_is_reported(trained: tuple[TrainedLora, Recorder]):
    result, host = trained
    steps = host.steps()
    assert [event.step for event in steps] == list(range(1, 9)) and {event.total for event in steps} == {8}
    assert result.losses == [event.loss for event in steps] and result.steps == 8
    assert all(event.learning_rate == CONFIG.learning_rate and event.steps_per_second > 0 for event in steps)
    assert [event.step for event in host.events if isinstance(event, CheckpointSaved)] == [4, 8]
    assert [path.name for path in result.checkpoints] == ["disc-step00000004.safetensors"]
    samples = [event for event in host.events if isinstance(event, SamplesDrawn)]
    assert [event.step for event in samples] == [0, 4, 8]
    assert all(event.path.is_file() and event.image.size == (128, 64) for event in samples)  # two prompts, side by side


def test_the_run_folder_documents_the_run(trained: tuple[TrainedLora, Recorder]):
    result, _ = trained
    assert result.path is not None
    folder = result.path.parent
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert (
        manifest["architecture"] == "z-image"
        and manifest["training"]["discrete_flow_shift"] == 2.0
        and manifest["num_images"] == 3
    )
    assert len(list(csv.reader((folder / "loss.csv").open()))) == 9 and (folder / "loss.png").is_file()
    log = (folder / "musubi.log").read_text(encoding="utf-8")
    assert log.count("\n$ ") == 5 and "create LoRA for U-Net/DiT: 14 modules" in log
    assert "zimage_train_network.py" in (folder / "commands.txt").read_text(encoding="utf-8")


def test_a_resumed_run_trains_the_remaining_steps_on_the_caches_of_the_first(
    tiny: TinyMusubi, place: Path, cache: Path, dataset: Dataset, trained: tuple[TrainedLora, Recorder]
):
    first, _ = trained
    assert first.path is not None
    state = first.path.parent / "musubi" / "disc-step00000004-state"
    host = Recorder()
    resumed = make_trainer(tiny, place, cache, config=replace(CONFIG, resume=str(state))).train(dataset, host)
    assert [event.step for event in host.steps()] == [5, 6, 7, 8] and resumed.steps == 8 and len(resumed.losses) == 4
    assert [event.step for event in host.events if isinstance(event, CheckpointSaved)] == [
        8
    ] and resumed.checkpoints == []
    assert resumed.path is not None and resumed.path != first.path and "the caches of an earlier run" in host.notices()
    log = (resumed.path.parent / "musubi.log").read_text(encoding="utf-8")
    assert "zimage_cache_latents" not in log and "--max_train_steps 4" in log
    before, after = load_file(first.checkpoints[0]), resumed.state_dict
    distance = max(float((after[name] - before[name]).abs().max()) for name in before)
    # four steps of Adam from the checkpoint; from the start, the distance would be much larger
    assert 0 < distance < 5 * CONFIG.learning_rate


def test_base_weights_with_other_names_are_converted_and_merged_completely(
    tiny: TinyMusubi, place: Path, cache: Path, dataset: Dataset, trained: tuple[TrainedLora, Recorder]
):
    first, _ = trained
    host, config = Recorder(), replace(CONFIG, base_weights=str(first.path), max_train_steps=1)
    result = make_trainer(tiny, place, cache, name="on top", config=config).train(dataset, host)
    assert result.path is not None and "merged" not in host.notices()
    log = (result.path.parent / "musubi.log").read_text(encoding="utf-8")
    assert "--target default" in log and log.count("create LoRA for U-Net/DiT: 14 modules") == 2


def test_base_weights_that_fit_no_layer_stop_the_training(
    tiny: TinyMusubi, place: Path, tmp_path: Path, cache: Path, dataset: Dataset
):
    halves = {"lora_down": torch.ones(4, 8), "lora_up": torch.ones(8, 4)}
    save_file(
        {f"lora_unet_blocks_0_ffn_0.{half}.weight": tensor for half, tensor in halves.items()},
        tmp_path / "wan.safetensors",
    )
    config = replace(CONFIG, base_weights=str(tmp_path / "wan.safetensors"))
    with pytest.raises(
        MusubiFailed, match=r"stopped at training: nothing in base_weights .* fits the model. Is it made for Z-Image\?"
    ):
        make_trainer(tiny, place, cache, name="foreign", config=config).train(dataset, Recorder())


def test_training_can_start_from_musubis_own_lora_file(
    tiny: TinyMusubi, place: Path, cache: Path, dataset: Dataset, trained: tuple[TrainedLora, Recorder]
):
    first, _ = trained
    assert first.path is not None
    raw = first.path.parent / "musubi" / "disc.safetensors"
    result = make_trainer(
        tiny, place, cache, name="on", config=replace(CONFIG, network_weights=str(raw), max_train_steps=1)
    ).train(dataset, Recorder())
    distance = max(float((result.state_dict[name] - tensor).abs().max()) for name, tensor in first.state_dict.items())
    assert 0 < distance < 2 * CONFIG.learning_rate


def test_repeats_resolutions_and_batches_are_counted_as_musubi_counts_them(
    tiny: TinyMusubi, place: Path, tmp_path: Path, dataset: Dataset
):
    config = replace(CONFIG, extra_resolutions="48, 80", train_batch_size=2, max_train_steps=2)
    host = Recorder()
    make_trainer(tiny, place, tmp_path / "cache", name="many", config=config).train(
        replace(dataset, num_repeats=3), host
    )
    (run,) = (place / "runs").glob("many-*")
    assert "num train items / 学習画像、動画数: 27" in (run / "musubi.log").read_text(encoding="utf-8")


def test_a_hostile_name_in_a_dataset_toml_stays_a_name(tiny: TinyMusubi, tmp_path: Path):
    folder = tmp_path / "x'; caption_extension = .py #"
    folder.mkdir()
    Image.new("RGB", (64, 64), "red").save(folder / "$(touch owned).png")
    (folder / "$(touch owned).txt").write_text('a disc"\n[[datasets]]\nimage_directory = "/etc"', encoding="utf-8")
    own = (
        f"[[datasets]]\nimage_directory = {json.dumps(str(folder))}\nresolution = [64, 64]\ncaption_extension = "
        "'.txt'\n"
    )
    trainer = make_trainer(tiny, tmp_path / "output", tmp_path / "cache", config=replace(CONFIG, max_train_steps=1))
    assert trainer.train(None, Recorder(), dataset_toml=own).steps == 1
    assert not list(tmp_path.rglob("owned")) and not (tiny.installation.folder / "owned").exists()
    with pytest.raises(ValueError, match="output_dir"):
        trainer.train(None, Recorder(), dataset_toml=own + "output_dir = '/etc'\n")


def test_the_command_line_trains_and_plans(
    tiny: TinyMusubi, place: Path, cache: Path, dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    files = [argument for name, path in tiny.models.items() for argument in (f"--{name.replace('_', '-')}", str(path))]
    settings = [
        "--rank",
        "4",
        "--learning-rate",
        "1e-2",
        "--resolution",
        "64",
        "--max-train-steps",
        "2",
        "--optimizer",
        "AdamW",
    ]
    folders = [
        "--images",
        str(place / "pictures"),
        "--output-dir",
        str(tmp_path),
        "--cache-dir",
        str(tmp_path / "cache"),
    ]
    arguments = [
        "--architecture",
        "z-image",
        "--output",
        "from_shell",
        *files,
        *settings,
        *folders,
        "--no-bucket-no-upscale",
        "--max-data-loader-n-workers",
        "0",
    ]
    assert main(["musubi", "plan", *arguments]) == 0
    planned = capsys.readouterr().out
    assert "[[datasets]]" in planned and "--network_dim 4" in planned and list(tmp_path.iterdir()) == []
    assert main(["musubi", "train", *arguments]) == 0
    assert f"LoRA: {tmp_path / 'from_shell.safetensors'}" in capsys.readouterr().out
    assert len(load_file(tmp_path / "from_shell.safetensors")) == 2 * NUM_MODULES
    assert main(["musubi", "train", *arguments, "--t5", "x.safetensors"]) == 1
    assert "z-image has no --t5. It has --dit, --text-encoder, --vae" in capsys.readouterr().err


def test_a_cancelled_training_leaves_no_process_and_complete_checkpoints(
    tiny: TinyMusubi, place: Path, cache: Path, dataset: Dataset
):
    def cancel(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == 6:
            host.is_cancelled = True

    host = Recorder(cancel)
    trainer = make_trainer(tiny, place, cache, name="cancelled", config=replace(CONFIG, max_train_steps=ENDLESS))
    with pytest.raises(Interrupted):
        trainer.train(dataset, host)
    assert host.steps()[-1].step < ENDLESS
    (run,) = (place / "runs").glob("cancelled-*")
    assert not (run / "cancelled.safetensors").exists() and (run / "loss.png").is_file()
    checkpoints = sorted((run / "musubi").glob("*.safetensors"))
    assert checkpoints and all(len(load_file(path)) == 3 * NUM_MODULES for path in checkpoints)
    assert (
        f"the last checkpoint is {checkpoints[-1]}. Convert it before you load it into ComfyUI" in host.notices()
        and "convert_lora.py" in host.notices()
    )
    assert find_processes(run) == []


def test_the_error_after_a_killed_process_says_so(tiny: TinyMusubi, place: Path, cache: Path, dataset: Dataset):
    def kill(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == 2:
            (run,) = (place / "runs").glob("killed-*")
            for number in find_processes(run):
                os.kill(number, signal.SIGKILL)

    if not Path("/proc/self/cmdline").exists():
        pytest.skip("finds the process in /proc, which only Linux has")
    with pytest.raises(MusubiFailed, match=r"failed at training: the process was killed \(SIGKILL\)") as failure:
        make_trainer(tiny, place, cache, name="killed", config=replace(CONFIG, max_train_steps=ENDLESS)).train(
            dataset, Recorder(kill)
        )
    assert "musubi.log has all" in str(failure.value)


def test_a_missing_tokenizer_is_reported_before_anything_starts(
    tiny: TinyMusubi, place: Path, tmp_path: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "empty"))
    with pytest.raises(
        ValueError, match=r"Tongyi-MAI/Z-Image is not in the Hugging Face cache .* HF_HUB_OFFLINE forbids"
    ):
        make_trainer(tiny, place, tmp_path / "cache", name="offline").train(dataset, Recorder())
    assert list((place / "runs").glob("offline-*")) == []


def test_a_broken_interpreter_is_an_error_before_anything_is_trained(
    tiny: TinyMusubi, place: Path, tmp_path: Path, dataset: Dataset
):
    wrong = Installation(tiny.installation.folder, tmp_path / "python", tiny.installation.version)
    (tmp_path / "python").write_text("#!/bin/sh\nexit 3\n")
    job = MusubiJob("z-image", CONFIG, tiny.models, {})
    trainer = MusubiTrainer(
        job, wrong, run_folder=RunFolder(place, "wrong", keep_inside=True), cache_root=tmp_path / "cache"
    )
    with pytest.raises(MusubiFailed, match=r"cannot be started: .* Run Musubi Doctor"):
        trainer.train(dataset, Recorder())
    (tmp_path / "python").chmod(0o755)
    with pytest.raises(MusubiFailed, match="it ended with status 3 and did not say why"):
        MusubiTrainer(
            job, wrong, run_folder=RunFolder(place, "wrong", keep_inside=True), cache_root=tmp_path / "cache"
        ).train(dataset, Recorder())


def find_processes(run: Path) -> list[int]:
    """Return the processes with the run's folder on their command line."""
    folders = (path for path in Path("/proc").glob("[0-9]*") if os.access(path / "cmdline", os.R_OK))
    return [int(folder.name) for folder in folders if str(run).encode() in _read_command_line(folder)]


def _read_command_line(folder: Path) -> bytes:
    try:
        return (folder / "cmdline").read_bytes()
    except OSError:  # it has just ended
        return b""
