"""Train LoRA on a real server: SDXL as its own node trains it, and a tiny Z-Image from training to
the saved file, stopped, gone on and failed. The graph's MODEL stays as it is.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.host.test_save_and_apply import fetch_image, get_text, node
from tests.host.test_training_in_graph import base_nodes, get_facts, sink, trainer
from trainers.comfyui.client import ComfyClient, Message, Prompt, PromptFailed, PromptInterrupted, Result
from trainers.comfyui.server import ComfyServer

STEPS = 29  # unlike the number of images and captions, so that its progress is told apart
TINY = {
    "resolution": 64,
    "bucket_reso_steps": 32,
    "rank": 2,
    "alpha": 2.0,
    "learning_rate": 1e-2,
    "max_train_steps": STEPS,
    "lora_dropout": 0.1,
    "train_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "optimizer": "AdamW",
    "save_dtype": "fp32",
}
SOCKETS = {"model": ["base", 0], "clip": ["base", 1], "vae": ["base", 2], "dataset": ["pictures", 0]}


def loader(family: str = "Z-Image", file_name: str = "z_image.safetensors", class_name: str = "") -> dict[str, Any]:
    return node("FlowPack_LoadTinyModel", family=family, file_name=file_name, class_name=class_name)


def flow_prompt(base: dict[str, Any] | None = None, **settings: Any) -> Prompt:
    pictures = node("LoRATrainer_LoadImages", folder="toadstools", trigger_word="zwx")
    train = node("LoRATrainer_TrainLoRA", **{**SOCKETS, **TINY, **settings})
    return {"base": base or loader(), "pictures": pictures, "trainer": train, "sink": sink()}


def at_step(number: int, act: Callable[[], object], *, total: int = STEPS) -> Callable[[Message], None]:
    """Call `act` once, when the trainer has reached the step."""
    done: list[int] = []

    def listen(message: Message) -> None:
        is_ours = message.kind == "progress" and message.data["node"] == "trainer" and message.data["max"] == total
        if is_ours and message.data["value"] >= number and not done:
            done.append(number)
            act()

    return listen


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys() and found
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def read_hash(client: ComfyClient, turn: int) -> list[str]:
    """Hash the weights of the MODEL that ComfyUI has cached."""
    prompt = {"base": loader(), "hash": node("FlowPack_HashModel", model=["base", 0], turn=turn)}
    result = client.run(prompt)
    assert turn == 0 or "base" not in result.executed_nodes()
    return result.outputs["hash"]["text"]


@pytest.fixture(scope="module")
def client(comfyui_server: ComfyServer) -> ComfyClient:
    return comfyui_server.client


@pytest.fixture(scope="module")
def untouched(client: ComfyClient) -> list[str]:
    return read_hash(client, 0)


@pytest.fixture(scope="module")
def trained(client: ComfyClient, untouched: list[str]) -> Result:
    save = node("LoRATrainer_SaveLoRA", lora=["trainer", 2], filename="tiny_z_image")
    return client.run({**flow_prompt(output_name="whole"), "save": save, **drawing("with socket", ["trainer", 0])})


def drawing(name: str, model: list[Any]) -> Prompt:
    sampler = {"seed": 1, "steps": 3, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    return {
        f"{name} text": node("CLIPTextEncode", clip=["base", 1], text="a zwx on a white background"),
        f"{name} latent": node("EmptySD3LatentImage", width=64, height=64, batch_size=1),
        f"{name} sampler": node(
            "KSampler",
            model=model,
            positive=[f"{name} text", 0],
            negative=[f"{name} text", 0],
            latent_image=[f"{name} latent", 0],
            **sampler,
        ),
        f"{name} decode": node("VAEDecode", samples=[f"{name} sampler", 0], vae=["base", 2]),
        name: node("PreviewImage", images=[f"{name} decode", 0]),
    }


# ---- SDXL ----


def test_sdxl_gives_the_same_lora_as_its_own_node(client: ComfyClient):
    settings = {"resume": "new", "seed": 3, "min_snr_gamma": 1.0}
    of_sdxl = trainer(**settings, output_name="by_sdxl")
    of_any = {**trainer(**settings, output_name="by_any"), "class_type": "LoRATrainer_TrainLoRA"}
    results = [client.run({**base_nodes(), "trainer": each, "sink": sink()}) for each in (of_sdxl, of_any)]
    first, second = (load_file(get_facts(result)["path"]) for result in results)
    assert_equal(second, first)
    assert get_facts(results[0])["loss"] == get_facts(results[1])["loss"]
    assert get_facts(results[1])["modules"] == 192


def test_sdxl_names_settings_that_it_does_not_use(client: ComfyClient):
    inputs = {**trainer(output_name="unused"), "class_type": "LoRATrainer_TrainLoRA"}
    inputs["inputs"] |= {"loss_weighting": "bell"}
    result = client.run({**base_nodes(), "trainer": inputs, "sink": sink()})
    assert "Not used: loss_weighting, which SDXL has no." in get_text(result, "trainer")


# ---- another model ----


def test_a_model_trains_and_the_whole_lora_fits(trained: Result):
    facts = get_facts(trained)
    assert facts["steps"] == len(facts["loss"]) == STEPS and not facts["loaded"]
    assert sum(facts["loss"][-5:]) < sum(facts["loss"][:5])
    assert f"{facts['modules']}/{facts['modules']} modules load" in get_text(trained, "trainer")
    texts = trained.texts("trainer")
    assert any("Z-Image: noise levels sigmoid, shift 2" in text for text in texts)


def test_the_manifest_names_the_family(trained: Result):
    manifest = json.loads((Path(get_facts(trained)["path"]).parent / "manifest.json").read_text())
    assert manifest["base_model"] == {"name": "z_image", "family": "Z-Image"}


def test_the_saved_file_draws_the_same_image_as_the_socket(
    comfyui_server: ComfyServer, client: ComfyClient, trained: Result
):
    with safe_open(comfyui_server.base_directory / "models/loras/tiny_z_image.safetensors", "pt") as file:
        assert file.metadata()["modelspec.architecture"] == "z-image/lora"
    core = node("LoraLoaderModelOnly", model=["base", 0], lora_name="tiny_z_image.safetensors", strength_model=1.0)
    ours = node("LoRATrainer_ApplyLoRA", model=["base", 0], lora=["trainer", 2], strength_model=1.0)
    prompt = {**flow_prompt(output_name="whole"), "core": core, "ours": ours}
    prompt |= {**drawing("with core", ["core", 0]), **drawing("with ours", ["ours", 0])}
    prompt |= drawing("without", ["base", 0])
    again = client.run(prompt)
    socket, by_core, by_ours, without = (
        fetch_image(client, result, name)
        for result, name in (
            (trained, "with socket"),
            (again, "with core"),
            (again, "with ours"),
            (again, "without"),
        )
    )
    assert (socket == by_core).all() and (socket == by_ours).all() and (socket != without).any()


def test_the_finished_run_is_loaded(client: ComfyClient, trained: Result):
    changed = client.run(flow_prompt(output_name="another_name"))
    assert get_facts(changed)["loaded"] and get_facts(changed)["steps"] == STEPS
    assert_equal(load_file(get_facts(changed)["path"]), load_file(get_facts(trained)["path"]))


def test_an_interrupted_run_goes_on_and_gives_the_uninterrupted_lora(client: ComfyClient, untouched: list[str]):
    ours = flow_prompt(output_name="stopped", seed=5)
    with pytest.raises(PromptInterrupted):
        client.run(ours, on_message=at_step(3, client.interrupt))
    assert read_hash(client, 1) == untouched
    result = client.run(ours)
    assert get_facts(result)["run"].startswith("stopped-") and get_facts(result)["steps"] == STEPS
    uninterrupted = client.run(flow_prompt(output_name="uninterrupted", seed=5, resume="new"))
    assert_equal(load_file(get_facts(result)["path"]), load_file(get_facts(uninterrupted)["path"]))


def ask_run(server: ComfyServer, name: str, request: str) -> Callable[[], None]:
    """As the panel's buttons do."""
    return lambda: (find_run(server, name) / request).touch()


def find_run(server: ComfyServer, name: str) -> Path:
    (found,) = (server.base_directory / "output/lora_trainer/runs").glob(f"{name}-*")
    return found


def read_status(server: ComfyServer, name: str) -> str:
    return json.loads((find_run(server, name) / "progress.json").read_text())["status"]


def test_finish_now_hands_the_lora_so_far_to_the_rest_of_the_graph(
    comfyui_server: ComfyServer, client: ComfyClient, untouched: list[str]
):
    ours = flow_prompt(output_name="ended", seed=8, max_train_steps=500)
    save = node("LoRATrainer_SaveLoRA", lora=["trainer", 2], filename="ended")
    finish = at_step(3, ask_run(comfyui_server, "ended", "finish"), total=500)
    result = client.run({**ours, "save": save}, on_message=finish)
    facts = get_facts(result)
    assert facts["finished_early"] and 3 <= facts["steps"] < 500 and facts["modules"] > 5
    assert "(finished early)" in get_text(result, "trainer") and {"save", "sink"} <= set(result.executed_nodes())
    assert read_status(comfyui_server, "ended") == "finished early" and read_hash(client, 5) == untouched


def test_a_pause_stops_the_prompt_and_the_same_prompt_goes_on(
    comfyui_server: ComfyServer, client: ComfyClient, untouched: list[str]
):
    steps = 100  # more than a fast machine makes until it notices the pause, after at most half a second
    ours = flow_prompt(output_name="paused", seed=9, max_train_steps=steps)
    with pytest.raises(PromptInterrupted):
        client.run(ours, on_message=at_step(3, ask_run(comfyui_server, "paused", "pause"), total=steps))
    run = find_run(comfyui_server, "paused")
    assert read_status(comfyui_server, "paused") == "paused" and not (run / "paused.safetensors").exists()
    assert read_hash(client, 6) == untouched
    facts = get_facts(client.run(ours))
    assert facts["steps"] == steps and facts["run"] == run.name
    whole = client.run(flow_prompt(output_name="not_paused", seed=9, max_train_steps=steps, resume="new"))
    assert_equal(load_file(facts["path"]), load_file(get_facts(whole)["path"]))


def test_the_graphs_model_is_the_same_bit_for_bit(client: ComfyClient, untouched: list[str], trained: Result):
    assert read_hash(client, 2) == untouched


@pytest.mark.parametrize("fault", ["error", "oom"])
def test_after_an_error_the_graphs_model_is_the_same(
    comfyui_server: ComfyServer, client: ComfyClient, untouched: list[str], fault: str
):
    file = comfyui_server.base_directory / "fault.txt"
    file.write_text(fault)
    try:
        with pytest.raises(PromptFailed) as failed:
            client.run(flow_prompt(output_name="failed", seed=6, gradient_checkpointing="off", resolution=128))
    finally:
        file.unlink()
    expected = {"error": "injected", "oom": "Next, try gradient_checkpointing on (about "}
    assert expected[fault] in str(failed.value)
    assert read_hash(client, 3 if fault == "error" else 4) == untouched
    assert get_facts(client.run(flow_prompt(output_name="healthy", seed=6)))["steps"] == STEPS


# ---- what is told about models and settings ----


def test_a_distilled_model_gives_a_warning(client: ComfyClient):
    base = loader(file_name="z_image_turbo.safetensors")
    result = client.run(flow_prompt(base, output_name="turbo", max_train_steps=2, train_text_encoders=True))
    texts = "\n".join(result.texts("trainer"))
    assert "z_image_turbo is distilled" in texts and "zimage_turbo_training_adapter" in texts
    assert "Not used: train_text_encoders, which only SDXL has." in texts


def test_with_a_training_adapter_there_is_no_warning_and_the_lora_goes_on_the_plain_model(
    client: ComfyClient, trained: Result
):
    base = loader(file_name="z_image_turbo.safetensors")
    prompt = flow_prompt(base, output_name="adapted", max_train_steps=2, model=["adapter", 0], apply_to=["base", 0])
    prompt["adapter"] = node(
        "LoraLoaderModelOnly", model=["base", 0], lora_name="tiny_z_image.safetensors", strength_model=1.0
    )
    prompt["hash"] = node("FlowPack_HashModel", model=["trainer", 0], turn=9)
    result = client.run(prompt)
    assert "distilled" not in "\n".join(result.texts("trainer"))
    modules = get_facts(result)["modules"]
    assert result.outputs["hash"]["text"][1] == f"{modules} patches"


def test_an_unknown_model_trains_with_general_settings(client: ComfyClient):
    result = client.run(flow_prompt(loader(class_name="Unheard"), output_name="unheard", max_train_steps=2))
    assert "Unheard is not among the models" in "\n".join(result.texts("trainer"))
    assert get_facts(result)["steps"] == 2


def test_settings_left_open_come_from_the_family(client: ComfyClient):
    left_open = dict.fromkeys(("rank", "alpha", "learning_rate", "discrete_flow_shift"), 0) | {
        "timestep_sampling": "auto"
    }
    result = client.run(flow_prompt(output_name="open", max_train_steps=2, **left_open))
    chosen = get_facts(result)["presets"]["chosen"]
    assert (chosen["rank"], chosen["alpha"], chosen["learning_rate"]) == (32, 16, 1e-4)
    assert (chosen["timestep_sampling"], chosen["discrete_flow_shift"]) == ("sigmoid", 2.0)


def test_a_model_sampling_node_decides_the_shift(client: ComfyClient):
    prompt = flow_prompt(output_name="shifted", max_train_steps=2, discrete_flow_shift=0, model=["sampling", 0])
    prompt["sampling"] = node("ModelSamplingAuraFlow", model=["base", 0], shift=5.0)
    result = client.run(prompt)
    assert get_facts(result)["presets"]["chosen"].get("discrete_flow_shift", 0) == 0
    assert "the model's own shift" in get_text(result, "trainer")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mixed_precision": "bf16"}, "mixed_precision is bf16, but this model computes"),
        ({"bucket_reso_steps": 24}, "bucket_reso_steps must be a multiple of 16 for Z-Image, got 24"),
        ({"target_modules": "nothing"}, "matches no linear layer"),
    ],
)
def test_a_setting_that_does_not_fit_is_refused(client: ComfyClient, settings: dict[str, Any], message: str):
    with pytest.raises(PromptFailed, match=message):
        client.run(flow_prompt(output_name="refused", **settings))


def test_needed_and_free_memory_are_said_before_the_training(trained: Result):
    log = Path(get_facts(trained)["path"]).with_name("run.log").read_text(encoding="utf-8")
    assert re.search(r"Memory: about 0\.\d GB: weights 0\.0, .* CUDA 0\.6; [\d.]+ GB free\.", log)
