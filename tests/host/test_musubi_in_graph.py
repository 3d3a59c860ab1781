"""Train LoRA (Musubi Tuner) on a real server, with the real Musubi Tuner and tiny weights. Skipped,
with a reason, if one of them is missing.
"""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.musubi.tiny import TinyMusubi, make_tiny_musubi
from trainers.comfyui.client import (
    ComfyClient,
    Message,
    Prompt,
    PromptFailed,
    PromptInterrupted,
    PromptRejected,
    Result,
)
from trainers.comfyui.find import Installation
from trainers.comfyui.server import ComfyServer
from trainers.demo.in_comfyui import prepare_demo_directory
from trainers.musubi.owner_file import format_lines

FILES = {"dit": "z_image_tiny_bf16.safetensors", "vae": "ae.safetensors", "text_encoder": "qwen_3_4b.safetensors"}
SMALL = {"rank": 4, "learning_rate": 1e-2, "resolution": 64}
PLAIN = {
    "max_train_steps": 8,
    "optimizer": "AdamW",
    "save_every_n_steps": 4,
    "save_dtype": "fp32",
    "max_data_loader_n_workers": 0,
    "bucket_no_upscale": False,
}
ENDLESS = 100_000  # steps, more than can end within the tests' time limit
NUM_MODULES = 14  # two layers of seven


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyMusubi:
    return make_tiny_musubi(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def server(
    installation: Installation, tiny: TinyMusubi, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ComfyServer]:
    """Start a separate server, with the environment that Musubi's processes need and with Musubi's
    folder in its owner's file.
    """
    folder = tmp_path_factory.mktemp("comfyui with Musubi")
    prepare_demo_directory(folder)
    (folder / "custom_nodes" / "musubi_pack").symlink_to(Path(__file__).with_name("musubi_pack"))
    for kind, name in (("diffusion_models", "dit"), ("vae", "vae"), ("text_encoders", "text_encoder")):
        (folder / "models" / kind).mkdir(exist_ok=True)
        (folder / "models" / kind / FILES[name]).symlink_to(tiny.models[name])
    (folder / "environment.json").write_text(json.dumps(tiny.environment), encoding="utf-8")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
        monkeypatch.delenv("MUSUBI_TUNER_DIR", raising=False)
        monkeypatch.delenv("MUSUBI_PYTHON", raising=False)
        point_at(folder, tiny.installation.folder, tiny.installation.python)
        with ComfyServer(installation, base_directory=folder, log=folder / "server.log", cpu=True) as server:
            yield server


def point_at(base_directory: Path, folder: Path, python: Path) -> None:
    """Write the owner's file as the machine's owner does."""
    owner_file = base_directory / "config/lora-trainer/musubi.toml"
    owner_file.parent.mkdir(parents=True, exist_ok=True)
    owner_file.write_text(format_lines(folder, python), encoding="utf-8")


@pytest.fixture(scope="module")
def client(server: ComfyServer) -> ComfyClient:
    return server.client


def trainer(**settings: Any) -> dict[str, Any]:
    """Build the trainer's node. The inputs of the architecture are given without its prefix."""
    of_architecture = {**FILES, **SMALL}
    inputs = {f"architecture.{name}": settings.pop(name, value) for name, value in of_architecture.items()}
    return {
        "class_type": "LoRATrainer_MusubiTrain",
        "inputs": {"dataset": ["pictures", 0], "architecture": "z-image", **inputs, **PLAIN, **settings},
    }


def prompt(**settings: Any) -> Prompt:
    return {
        "pictures": {"class_type": "LoRATrainer_LoadImages", "inputs": {"folder": "toadstools"}},
        "trainer": trainer(**settings),
        "sink": {"class_type": "PreviewAny", "inputs": {"source": ["trainer", 3]}},
    }


def get_facts(result: Result) -> dict[str, Any]:
    return result.outputs["trainer"]["lora_trainer"][0]


def runs(server: ComfyServer, name: str) -> list[Path]:
    return sorted((server.base_directory / "output/lora_trainer/runs").glob(f"{name}-*"))


# ---- train and apply ----


@pytest.fixture(scope="module")
def trained(client: ComfyClient) -> Result:
    """Run one prompt that trains, compares the weights of both MODELs, and saves the file."""
    return client.run(
        {
            **prompt(model=["base", 0], output_name="toadstool"),
            "base": {"class_type": "TestTinyZImage", "inputs": {"name": FILES["dit"]}},
            "compare": {
                "class_type": "TestCompareLora",
                "inputs": {"model": ["base", 0], "patched": ["trainer", 0], "path": ["trainer", 3]},
            },
            "save": {"class_type": "LoRATrainer_SaveLoRA", "inputs": {"lora": ["trainer", 1], "filename": "toadstool"}},
        }
    )


def test_the_output_model_has_the_weights_plus_the_lora(trained: Result):
    compared = trained.outputs["compare"]
    assert compared["weights"] == compared["patched"]
    assert compared["moved"][0] > 1e-4
    assert compared["error"][0] < 1e-5


def test_every_module_loads_and_the_node_says_so(trained: Result):
    assert f"{NUM_MODULES}/{NUM_MODULES} modules load" in trained.outputs["trainer"]["text"][0]
    assert f"{NUM_MODULES}/{NUM_MODULES} modules load" in trained.outputs["save"]["text"][0]
    facts = get_facts(trained)
    assert facts["steps"] == 8 and facts["modules"] == NUM_MODULES and len(facts["loss"]) == 8


def test_the_run_folder_and_the_history_are_complete(server: ComfyServer, trained: Result):
    (run,) = runs(server, "toadstool")
    assert Path(get_facts(trained)["path"]) == run / "toadstool.safetensors"
    assert {"manifest.json", "loss.csv", "loss.png", "run.log", "dataset.toml"} <= {path.name for path in run.iterdir()}
    assert trained.texts("trainer")[-1] == trained.outputs["trainer"]["text"][0].replace("\n", "  \n")
    assert trained.previews("trainer")


def test_the_same_prompt_trains_only_once(client: ComfyClient):
    first, again = client.run(prompt(seed=1)), client.run(prompt(seed=1))
    assert "trainer" in first.executed_nodes() and "trainer" not in again.executed_nodes()
    assert get_facts(first) == get_facts(again)


def test_inputs_that_are_left_out_get_the_recommended_values(server: ComfyServer, client: ComfyClient):
    """All inputs are left out, except the optimizer and the number of steps, whose defaults are too
    slow on a CPU.
    """
    short = {"max_train_steps": 2, "optimizer": "AdamW", "output_name": "recommended"}
    given = {
        name: value
        for name, value in trainer()["inputs"].items()
        if name.removeprefix("architecture.") not in {*SMALL, *PLAIN}
    }
    client.run(
        {
            **prompt(),
            "trainer": {"class_type": "MusubiTrain", "inputs": {**given, **short, "architecture.resolution": 64}},
        }
    )
    (run,) = runs(server, "recommended")
    settings = json.dumps(json.loads((run / "manifest.json").read_text(encoding="utf-8")))
    assert '"rank": 32' in settings and '"discrete_flow_shift": 2.0' in settings


# ---- what goes wrong ----


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dit": "[None]"}, "Value not in list"),
        ({"dit": "../../secret.safetensors"}, "Value not in list"),
        ({"rank": 5000}, "Value 5000 bigger than max of 1024"),
        ({"architecture.blocks_to_swap": 29}, "Value 29 bigger than max of 28"),
        ({"output_name": "a/b"}, "Give a plain file name without folders"),
        ({"resume": "/tmp/state"}, "Value not in list"),
        ({"control": ["sink", 0]}, "Return type mismatch"),
    ],
)
def test_bad_settings_are_refused_on_the_right_node_before_anything_runs(
    client: ComfyClient, settings: dict[str, Any], message: str
):
    with pytest.raises(PromptRejected) as refusal:
        client.run(prompt(**settings))
    assert set(refusal.value.node_errors) == {"trainer"} and message in str(refusal.value)
    assert len(refusal.value.node_errors["trainer"]["errors"]) == 1


def without(name: str) -> Prompt:
    whole = prompt()
    del whole["trainer"]["inputs"][name]
    return whole


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (prompt(**{"architecture.t5": "ae.safetensors"}), "z-image has no t5. It has"),
        (
            {**prompt(), "trainer": {**trainer(), "inputs": {**trainer()["inputs"], "dit": "x"}}},
            "dit must be given with the architecture. Write architecture.dit",
        ),
        (without("dataset"), "no dataset: connect Load Images"),
        (without("architecture"), "architecture must be one of z-image, krea-2"),
        (prompt(architecture="z-imagine"), "architecture must be one of z-image, krea-2"),
        (prompt(control=["pictures", 0]), "control"),
        (prompt(resolution=72), "resolution"),
        (prompt(dit="embedded.safetensors"), "Value not in list"),
    ],
    ids=[
        "another architecture's",
        "not prefixed",
        "no dataset",
        "no architecture",
        "unknown architecture",
        "control images",
        "resolution",
        "no such file",
    ],
)
def test_the_errors_for_wrong_inputs_say_what_to_do(
    server: ComfyServer, client: ComfyClient, broken: Prompt, message: str
):
    before = runs(server, "")
    with pytest.raises((PromptFailed, PromptRejected)) as failure:
        client.run(broken)
    assert message in str(failure.value) and "node trainer" in str(failure.value)
    assert runs(server, "") == before


def test_a_model_of_another_architecture_is_refused_before_anything_is_started(
    server: ComfyServer, client: ComfyClient
):
    checkpoint = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "embedded_base.safetensors"}}
    with pytest.raises(PromptFailed, match="the MODEL is SDXL, not a model of Z-Image"):
        client.run({**prompt(model=["checkpoint", 0], output_name="other"), "checkpoint": checkpoint})
    assert runs(server, "other") == []


def test_without_a_model_the_nodes_after_the_model_output_are_stopped(client: ComfyClient):
    merge = {"class_type": "ModelSamplingAuraFlow", "inputs": {"model": ["trainer", 0], "shift": 3.0}}
    behind = {
        **prompt(seed=2),
        "shifted": merge,
        "same": {"class_type": "PreviewAny", "inputs": {"source": ["shifted", 0]}},
    }
    with pytest.raises(PromptFailed, match="has no model to apply the LoRA to"):
        client.run(behind)


def test_a_cancelled_training_shows_its_steps_and_leaves_no_process_and_a_usable_checkpoint(
    server: ComfyServer, client: ComfyClient
):
    interrupted: list[Message] = []
    texts: list[str] = []

    def interrupt(message: Message) -> None:
        if message.kind == "progress_text":
            texts.append(message.data["text"])
        if (
            message.kind == "progress"
            and message.data["max"] == ENDLESS
            and message.data["value"] > 5
            and not interrupted
        ):
            interrupted.append(message)
            client.interrupt()

    with pytest.raises(PromptInterrupted):
        client.run(prompt(seed=3, max_train_steps=ENDLESS, output_name="cancelled"), on_message=interrupt)
    assert any(text.startswith("step ") and f"/{ENDLESS} · loss" in text and "ETA" in text for text in texts)
    (run,) = runs(server, "cancelled")
    assert musubi_processes(run) == []
    newest = max(run.rglob("cancelled-step*.safetensors"), key=lambda path: path.name)
    assert len(load_file(newest)) == 3 * NUM_MODULES and not (run / "cancelled.safetensors").exists()


def musubi_processes(run: Path) -> list[str]:
    if not Path("/proc/self/cmdline").exists():
        return []
    lines = [
        path.read_bytes().decode(errors="replace")
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if os.access(path, os.R_OK)
    ]
    return [line for line in lines if str(run) in line]


# ---- where Musubi Tuner is ----


def test_the_doctor_reports_what_the_owners_file_names(client: ComfyClient, tiny: TinyMusubi):
    report = client.run({"doctor": {"class_type": "LoRATrainer_MusubiDoctor", "inputs": {}}}).outputs["doctor"]["text"][
        0
    ]
    assert str(tiny.installation.folder) in report and tiny.installation.version in report


def test_a_wrong_folder_in_the_owners_file_is_an_error_that_names_it(
    server: ComfyServer, client: ComfyClient, tiny: TinyMusubi
):
    assert server.base_directory is not None
    point_at(server.base_directory, Path("/nowhere/musubi-tuner"), tiny.installation.python)
    try:
        with pytest.raises(PromptFailed, match=r"musubi\.toml: /nowhere/musubi-tuner"):
            client.run(prompt(seed=4))
    finally:
        point_at(server.base_directory, tiny.installation.folder, tiny.installation.python)


def test_no_input_can_name_a_program_or_a_folder(client: ComfyClient):
    info = client.get("/object_info")["LoRATrainer_MusubiTrain"]
    inputs = json.dumps([info["input"], info["input_order"]])
    assert not any(f'"{name}"' in inputs for name in ("python", "folder", "musubi_path", "interpreter", "path"))


# ---- states of earlier runs ----


def list_states(client: ComfyClient) -> list[str]:
    entry = client.get("/object_info/LoRATrainer_MusubiTrain")["LoRATrainer_MusubiTrain"]["input"]["optional"]["resume"]
    return [name for name in (entry[1].get("options") or entry[0]) if name != "[None]"]


@pytest.fixture(scope="module")
def state(server: ComfyServer, client: ComfyClient) -> str:
    """Of step 4, by its name in the list."""
    client.run(prompt(seed=6, save_state=True, output_name="continued"))
    (run,) = runs(server, "continued")
    return f"{run.name}/musubi/continued-step00000004-state"


def test_a_state_of_an_earlier_run_is_continued_from_a_copy(server: ComfyServer, client: ComfyClient, state: str):
    assert state in list_states(client)
    result = client.run(prompt(seed=6, resume=state, save_state=False, output_name="again"))
    assert get_facts(result)["steps"] == 8 and len(get_facts(result)["loss"]) == 4
    (run,) = runs(server, "again")
    resume = Path(json.loads((run / "manifest.json").read_text(encoding="utf-8"))["training"]["resume"])
    assert resume.as_posix().endswith(f"runs/{state}") and resume.is_dir()
    assert str(resume) not in (run / "commands.txt").read_text(encoding="utf-8")


def test_an_uploaded_state_is_not_offered_and_not_read(server: ComfyServer, client: ComfyClient, state: str):
    """Whole, with a seal of another machine."""
    assert server.base_directory is not None
    runs_folder = server.base_directory / "output/lora_trainer/runs"
    uploaded = "uploaded/musubi/evil-step00000004-state"
    shutil.copytree(runs_folder / state, runs_folder / uploaded)
    assert uploaded not in list_states(client)
    with pytest.raises(PromptRejected, match="Value not in list"):
        client.run(prompt(seed=7, resume=uploaded))


def test_a_state_that_was_changed_by_an_upload_is_refused_by_name(server: ComfyServer, client: ComfyClient, state: str):
    assert server.base_directory is not None
    path = server.base_directory / "output/lora_trainer/runs" / state / "random_states_0.pkl"
    before = path.read_bytes()
    path.write_bytes(b"x" * len(before))
    try:
        with pytest.raises(PromptFailed, match=r"random_states_0\.pkl is not as our run wrote it"):
            client.run(prompt(seed=8, resume=state, output_name="changed"))
    finally:
        path.write_bytes(before)
    assert runs(server, "changed") == []
