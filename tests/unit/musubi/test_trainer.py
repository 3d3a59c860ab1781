"""The whole run with programs that play Musubi's part: they write what the real ones write, with
the faults that the environment asks for.
"""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from trainers.dataset.config import DatasetConfig
from trainers.dataset.dataset import Dataset
from trainers.dataset.scan import scan_folder
from trainers.musubi.config import MusubiConfig
from trainers.musubi.failure import MusubiFailed
from trainers.musubi.installation import Installation
from trainers.musubi.plan import MusubiJob
from trainers.musubi.saved_state import has_seal, read_key
from trainers.musubi.trainer import MusubiTrainer
from trainers.training.console_host import ConsoleHost
from trainers.training.events import CheckpointSaved, Event, Interrupted, Notice, SamplesDrawn, StepDone
from trainers.training.run_folder import RunFolder

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="the programs that play Musubi's part are written for POSIX"
)

COMMON = """
import json, os, re, sys, time
from pathlib import Path
import numpy
from safetensors.numpy import load_file, save_file

wrong = json.loads(os.environ["MUSUBI_DOES_WRONG"])
given = {flag: value for flag, value in zip(sys.argv, sys.argv[1:]) if flag.startswith("--")}

def say(text, end="\\n"):
    print(text, end=end, flush=True)

def cache(ending):
    toml = Path(given["--dataset_config"]).read_text(encoding="utf-8")
    images = Path(re.search(r'image_directory = "(.*)"', toml)[1])
    caches = Path(re.search(r'cache_directory = "(.*)"', toml)[1])
    caches.mkdir(parents=True, exist_ok=True)
    stems = sorted(path.stem for path in images.glob("*.png"))[: wrong.get("found")]
    say(f"INFO:musubi_tuner.dataset.datasources:found {len(stems)} images")
    for number, stem in enumerate(stems[: wrong.get("cached")]):
        save_file({"x": numpy.ones(1, numpy.float32)}, caches / f"{stem}{ending}.safetensors")
        say(f"\\r{number + 1}it [00:00, 5.0it/s]", end="")

def lora(value=1.0, modules=2):
    halves = {"lora_down": (2, 4), "lora_up": (4, 2)}
    return {
        f"lora_unet_layers_{number}_attention_to_q.{half}.weight": numpy.full(shape, value, numpy.float32)
        for number in range(modules) for half, shape in halves.items()
    }
"""
LATENTS = "cache('_0064x0064_zi')"
TEXT = "cache('_zi_te')"
TRAIN = """
folder, steps = Path(given["--output_dir"]), int(given["--max_train_steps"])
name = next(flag for flag in given if flag.startswith("--output_name=")).partition("=")[2]
if "says" in wrong:
    sys.exit(wrong["says"])
if "--base_weights" in given:
    say(f"merging module: {given['--base_weights']} with multiplier 1.0")
    say(f"INFO:musubi_tuner.networks.lora:create LoRA for U-Net/DiT: {wrong.get('merged', 2)} modules.")
say(f"INFO:musubi_tuner.networks.lora:create LoRA for U-Net/DiT: {wrong.get('modules', 2)} modules.")
if "--network_weights" in given:
    loaded = wrong.get("loaded", "<All keys matched successfully>")
    say(f"load network weights from {given['--network_weights']}: {loaded}")
say(f"  num train items / x: {wrong.get('items', 2)}")
say("\\rsteps:   0%|          | 0/8 [00:00<?, ?it/s]\\nepoch 1/1")
(folder / "sample").mkdir(exist_ok=True)
for step in range(1, wrong.get("steps", steps) + 1):
    loss = wrong.get("loss", f"{1 / step:.3g}")
    say(f"\\rsteps:  1%|#  | {step}/{steps} [00:01<00:01,  4.00it/s, avr_loss=stale]", end="")
    if step % 4 == 0:
        from PIL import Image
        Image.new("RGB", (8, 8)).save(folder / "sample" / f"{name}_{step:06d}_00_20260101000000_0_000.png")
        path = folder / f"{name}-step{step:08d}.safetensors"
        say(f"\\nsaving checkpoint: {path}")
        save_file(lora(), path)
        state = folder / f"{name}-step{step:08d}-state"
        state.mkdir()
        for file in ("model.safetensors", "optimizer.bin", "random_states_0.pkl"):
            (state / file).write_text(f"{file} at {step}")
        if "half" in wrong and step == 8:
            path.write_bytes(path.read_bytes()[:-9])
    say(f"\\rsteps:  1%|#  | {step}/{steps} [00:01<00:01,  4.00it/s, avr_loss={loss}]", end="")
    if step == wrong.get("hangs_at"):
        time.sleep(9000)
if "file" not in wrong:
    save_file(lora(wrong.get("value", 1.0), wrong.get("written", 2)), folder / f"{name}.safetensors")
"""
CONVERT = """
if "convert" in wrong:
    raise RuntimeError(wrong["convert"])
if given["--target"] == "other":
    renamed = {
        "lora_unet_layers_": "diffusion_model.layers.",
        "_attention_to_q": ".attention.to_q",
        "lora_down": "lora_A",
        "lora_up": "lora_B",
    }
    tensors = {}
    for name, tensor in load_file(given["--input"]).items():
        for old, new in renamed.items():
            name = name.replace(old, new)
        tensors[name] = tensor
else:
    tensors = lora()
save_file(tensors, given["--output"])
"""
SCRIPTS = {
    "zimage_cache_latents.py": LATENTS,
    "zimage_cache_text_encoder_outputs.py": TEXT,
    "zimage_train_network.py": TRAIN,
    "convert_lora.py": CONVERT,
}
CONFIG = MusubiConfig(
    max_train_steps=8, save_every_n_steps=4, resolution=64, optimizer="AdamW", bucket_no_upscale=False
)


class Recorder(ConsoleHost):
    """Records the events, and calls `on_event` with each."""

    def __init__(self, on_event: Callable[[Event], None] = lambda _: None) -> None:
        super().__init__(torch.device("cpu"), quiet=True)
        self.events: list[Event] = []
        self.is_cancelled = False
        self._on_event = on_event

    def report(self, event: Event) -> None:
        self.events.append(event)
        self._on_event(event)

    def take_request(self) -> None:
        return None

    def check_interrupted(self) -> None:
        if self.is_cancelled:
            raise Interrupted("cancelled by the test")

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def notices(self) -> str:
        return "\n".join(event.message for event in self.of(Notice))


@pytest.fixture
def installation(tmp_path: Path) -> Installation:
    sources = tmp_path / "musubi/src/musubi_tuner"
    sources.mkdir(parents=True)
    for name, text in SCRIPTS.items():
        (sources / name).write_text(COMMON + text, encoding="utf-8")
    return Installation(tmp_path / "musubi", Path(sys.executable), "0.3.4")


@pytest.fixture
def does_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that tells the programs what to do wrong. The tokenizer exists."""
    snapshot = tmp_path / "hf/hub/models--Tongyi-MAI--Z-Image/snapshots/1/tokenizer"
    snapshot.mkdir(parents=True)
    (snapshot / "vocab.json").touch()
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("MUSUBI_DOES_WRONG", "{}")
    return lambda **what: monkeypatch.setenv("MUSUBI_DOES_WRONG", json.dumps(what))


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    (tmp_path / "pictures").mkdir()
    for number, colour in enumerate(("red", "blue")):
        Image.new("RGB", (64, 64), colour).save(tmp_path / f"pictures/{number}.png")
        (tmp_path / f"pictures/{number}.txt").write_text(colour)
    return scan_folder(DatasetConfig(images=str(tmp_path / "pictures")))


@pytest.fixture
def make_trainer(
    tmp_path: Path, installation: Installation, does_wrong: Callable[..., None]
) -> Callable[..., MusubiTrainer]:
    models = {name: tmp_path / f"{name}.safetensors" for name in ("dit", "vae", "text_encoder")}
    for path in models.values():
        save_file({"x.weight": torch.ones(64, 64, dtype=torch.bfloat16)}, path)

    def make(config: MusubiConfig = CONFIG, **more: Any) -> MusubiTrainer:
        run_folder = RunFolder(tmp_path / "output", "disc", keep_inside=True)
        return MusubiTrainer(
            MusubiJob("z-image", config, models, {}, **more),
            installation,
            run_folder=run_folder,
            cache_root=tmp_path / "cache",
        )

    return make


Make = Callable[..., MusubiTrainer]
Wrong = Callable[..., None]


def test_every_step_checkpoint_and_sample_is_reported(make_trainer: Make, dataset: Dataset):
    host = Recorder()
    result = make_trainer().train(dataset, host)
    assert [event.step for event in host.of(StepDone)] == list(range(1, 9))
    assert result.losses == [1, 0.5, 0.333, 0.25, 0.2, 0.167, 0.143, 0.125] and result.steps == 8
    assert [event.step for event in host.of(CheckpointSaved)] == [4, 8] and [
        event.step for event in host.of(SamplesDrawn)
    ] == [4, 8]
    assert (
        result.path is not None
        and load_file(result.path).keys() == result.state_dict.keys()
        and len(result.state_dict) == 4
    )
    assert [path.name for path in result.checkpoints] == ["disc-step00000004.safetensors"]
    assert all(name.startswith("diffusion_model.") for name in load_file(result.checkpoints[0]))
    assert "2 modules, 8 steps in 00:00:0" in host.notices()


def test_a_second_run_uses_the_caches_of_the_first(make_trainer: Make, dataset: Dataset, does_wrong: Wrong):
    make_trainer().train(dataset, Recorder())
    does_wrong(found=0)  # the cache scripts do not run, so this changes nothing
    host = Recorder()
    make_trainer().train(dataset, host)
    assert "using the caches of an earlier run with the same images" in host.notices()


def test_the_manifest_names_the_state_that_was_chosen_and_not_its_copy(
    make_trainer: Make, dataset: Dataset, tmp_path: Path
):
    make_trainer().train(dataset, Recorder())
    (chosen,) = (tmp_path / "output/runs").glob("*/musubi/*-step00000004-state")
    copy = shutil.copytree(chosen, tmp_path / "copy" / chosen.name)
    trainer = make_trainer(replace(CONFIG, resume=str(copy)), chosen_resume=str(chosen))
    trainer.train(dataset, Recorder())
    (run,) = (path for path in (tmp_path / "output/runs").iterdir() if path != chosen.parents[1])
    assert json.loads((run / "manifest.json").read_text(encoding="utf-8"))["training"]["resume"] == str(chosen)
    assert f"--resume {copy}" in (run / "commands.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"found": 1}, r"ended encoding images without an error, but it found 1 of 2 images"),
        ({"cached": 1}, r"cached 1 latents and 1 captions of 2 images"),
        ({"modules": 0}, r"was stopped at training: no layer gets a LoRA"),
        ({"items": 1}, r"it trains on 1 samples per epoch, but the dataset has 2"),
        ({"steps": 7}, r"ended training without an error, but it trained 7 of 8 steps"),
        ({"loss": "nan"}, r"was stopped at training: the loss of step 1 is nan. Lower learning_rate"),
        ({"file": "none"}, r"ended without an error, but wrote no LoRA"),
        ({"written": 1}, r"the LoRA has 1 modules, but Musubi Tuner said that it trains 2"),
        ({"value": 0.0}, r"all up weights are zero"),
        ({"value": float("nan")}, r"values that are not finite"),
        (
            {"says": "x.py: error: unrecognized arguments: --y"},
            r"failed at training: this version of Musubi Tuner does not know --y",
        ),
        ({"says": "torch.OutOfMemoryError: CUDA out of memory."}, r"failed at training: the GPU ran out of memory"),
        (
            {"convert": "no"},
            r"failed at converting the LoRA: RuntimeError: no(.|\n)*The LoRA as Musubi Tuner trained it is kept: "
            r".*disc.safetensors",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_each_fault_of_musubi_is_an_error_that_names_it(
    make_trainer: Make, dataset: Dataset, does_wrong: Wrong, wrong: dict[str, Any], message: str
):
    does_wrong(**wrong)
    with pytest.raises(RuntimeError, match=message):
        make_trainer().train(dataset, Recorder())


def test_captions_encoded_without_their_tokenizer_are_not_used(
    make_trainer: Make, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "empty"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    for _ in range(2):  # the second time shows that the caches do not count as complete
        with pytest.raises(MusubiFailed, match="encoded the captions without Tongyi-MAI/Z-Image"):
            make_trainer().train(dataset, Recorder())


def write_lora(path: Path, *modules: str) -> str:
    save_file(
        {f"{module}.{half}.weight": torch.ones(32, 32) for module in modules for half in ("lora_down", "lora_up")}, path
    )
    return str(path)


def test_base_weights_that_fit_in_part_are_reported_and_others_are_an_error(
    make_trainer: Make, dataset: Dataset, tmp_path: Path, does_wrong: Wrong
):
    config = replace(CONFIG, base_weights=write_lora(tmp_path / "adapter.safetensors", "lora_unet_a", "lora_unet_b"))
    host = Recorder()
    make_trainer(config).train(dataset, host)
    assert "merged" not in host.notices()
    does_wrong(merged=1)
    make_trainer(config).train(dataset, host)
    assert "only 1 of 2 modules were merged; the others fit no layer" in host.notices()
    does_wrong(merged=0)
    with pytest.raises(MusubiFailed, match=r"nothing in base_weights .* fits the model"):
        make_trainer(config).train(dataset, host)


def test_network_weights_that_do_not_fit_are_an_error(
    make_trainer: Make, dataset: Dataset, tmp_path: Path, does_wrong: Wrong
):
    config = replace(CONFIG, network_weights=write_lora(tmp_path / "raw.safetensors", "lora_unet_a"))
    host = Recorder()
    does_wrong(loaded="_IncompatibleKeys(missing_keys=['a', 'b'], unexpected_keys=[])")
    make_trainer(config).train(dataset, host)
    assert "has nothing for 2 tensors, which start as in a new LoRA" in host.notices()
    does_wrong(loaded="_IncompatibleKeys(missing_keys=[], unexpected_keys=['x'])")
    with pytest.raises(MusubiFailed, match=r"network_weights .*: 1 tensors fit no layer"):
        make_trainer(config).train(dataset, host)


def test_a_cancelled_run_keeps_only_complete_checkpoints_and_names_the_last(
    make_trainer: Make, dataset: Dataset, tmp_path: Path, does_wrong: Wrong
):
    def cancel(event: Event) -> None:
        host.is_cancelled |= isinstance(event, StepDone) and event.step == 8

    does_wrong(half=True, hangs_at=8)
    host = Recorder(cancel)
    with pytest.raises(Interrupted):
        make_trainer(replace(CONFIG, max_train_steps=100)).train(dataset, host)
    (run,) = (tmp_path / "output/runs").iterdir()
    (checkpoint,) = (run / "musubi").glob("*.safetensors")
    assert checkpoint.name == "disc-step00000004.safetensors" and (run / "loss.png").is_file()
    assert f"the last checkpoint is {checkpoint}. Convert it before you load it into ComfyUI" in host.notices()


def test_the_states_of_a_run_are_sealed_while_it_trains_and_at_its_end(
    make_trainer: Make, dataset: Dataset, tmp_path: Path
):
    sealed_at_step_6: list[bool] = []

    def look(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == 6:
            states = (tmp_path / "output").rglob("*-step00000004-state")
            sealed_at_step_6.extend(has_seal(state, read_key()) for state in states)

    result = make_trainer().train(dataset, Recorder(look))
    assert result.path is not None
    states = sorted((result.path.parent / "musubi").glob("*-state"))
    assert sealed_at_step_6 == [True]
    assert [has_seal(state, read_key()) for state in states] == [True, True]


def test_a_key_that_cannot_be_written_is_a_notice_and_costs_no_training(
    make_trainer: Make, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "a file").touch()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "a file"))
    host = Recorder()
    result = make_trainer().train(dataset, host)
    assert result.path is not None and result.path.is_file()
    assert host.notices().count("-state cannot be continued in ComfyUI, only on the command line: ") == 2


def test_wrong_settings_leave_no_trace(make_trainer: Make, dataset: Dataset, tmp_path: Path):
    with pytest.raises(ValueError, match="multiple of 16"):
        make_trainer(replace(CONFIG, resolution=72)).train(dataset, Recorder())
    assert not (tmp_path / "output").exists() and not (tmp_path / "cache").exists()
