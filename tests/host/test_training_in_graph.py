"""Train LoRA (SDXL) on a real server: trains on the loaded model, the result works in the same
prompt and as a file, and the server survives errors.
"""

import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file

from trainers.comfyui.client import (
    ComfyClient,
    Message,
    OutputFile,
    Prompt,
    PromptFailed,
    PromptInterrupted,
    PromptRejected,
    Result,
)
from trainers.comfyui.server import ComfyServer
from trainers.commands.demo import SETTINGS
from trainers.demo.concept import TRIGGER_WORD, fidelity
from trainers.sdxl.model.noise_schedule import NOISE_SCHEDULE
from trainers.sdxl.model.sdxl_model import load_model
from trainers.sdxl.model.text import encode_captions

ENDLESS = 100_000  # optimizer steps, more than can end within the tests' time limit
# 28 steps: 999 / 27 is an integer, so ComfyUI and diffusers use the noise levels of the same
# integer timesteps.
NUM_STEPS, CFG = 28, 4.0
POSITIVE = f"a {TRIGGER_WORD} on a white background"
TINY = {
    "resolution": 64,
    "bucket_reso_steps": 32,
    "rank": 2,
    "alpha": 2.0,
    "learning_rate": 1e-3,
    "train_batch_size": 2,
    "max_train_steps": 3,
}
PLAIN = {"optimizer": "AdamW", "gradient_checkpointing": "off", "gradient_accumulation_steps": 1, "save_dtype": "fp32"}


def base_nodes(checkpoint: str = "embedded_base.safetensors", folder: str = "toadstools") -> Prompt:
    return {
        "base": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": checkpoint}},
        "pictures": {
            "class_type": "LoRATrainer_LoadImages",
            "inputs": {"folder": folder, "trigger_word": TRIGGER_WORD},
        },
    }


def trainer(**settings: Any) -> dict[str, Any]:
    inputs = {"model": ["base", 0], "clip": ["base", 1], "vae": ["base", 2], "dataset": ["pictures", 0]}
    return {"class_type": "LoRATrainer_LoRATrainSDXL", "inputs": {**inputs, **TINY, **PLAIN, **settings}}


def sampler_nodes(
    model: list[Any], clip: list[Any], *, name: str, seeds: int = 4, latent_node: str = "EmptyLatentImage"
) -> Prompt:
    """Draw images of POSITIVE with `model`, saved by the node `name`."""
    nodes: Prompt = {
        f"{name} positive": {"class_type": "CLIPTextEncode", "inputs": {"clip": clip, "text": POSITIVE}},
        f"{name} negative": {"class_type": "CLIPTextEncode", "inputs": {"clip": clip, "text": ""}},
        f"{name} latent": {
            "class_type": "EmptyLatentImage",
            "inputs": {"width": 128, "height": 128, "batch_size": seeds},
        },
        f"{name} sampler": {
            "class_type": "KSampler",
            "inputs": {
                "model": model,
                "positive": [f"{name} positive", 0],
                "negative": [f"{name} negative", 0],
                "latent_image": [f"{name} latent", 0],
                "seed": 1,
                "steps": NUM_STEPS,
                "cfg": CFG,
                "sampler_name": "euler",
                "scheduler": "normal",
                "denoise": 1.0,
            },
        },
        f"{name} decode": {
            "class_type": "VAEDecode",
            "inputs": {"samples": [f"{name} sampler", 0], "vae": ["base", 2]},
        },
        name: {"class_type": "SaveImage", "inputs": {"images": [f"{name} decode", 0], "filename_prefix": name}},
    }
    return nodes


def fetch_images(client: ComfyClient, result: Result, node: str) -> list[np.ndarray]:
    return [np.asarray(Image.open(io.BytesIO(client.fetch(file))).convert("RGB")) for file in result.files(node)]


def sink(source: str = "trainer") -> dict[str, Any]:
    """Build a node that needs the trainer's output and costs nothing."""
    return {"class_type": "PreviewAny", "inputs": {"source": [source, 4]}}


def tiny_prompt(**settings: Any) -> Prompt:
    return {**base_nodes(), "trainer": trainer(**settings), "sink": sink()}


def get_facts(result: Result) -> dict[str, Any]:
    return result.outputs["trainer"]["lora_trainer"][0]


@pytest.fixture(scope="module")
def client(comfyui_server: ComfyServer) -> ComfyClient:
    return comfyui_server.client


# ---- train, apply, sample ----


@pytest.fixture(scope="module")
def trained(client: ComfyClient) -> Result:
    """Run one prompt: draw without the LoRA, train, draw with it, and save the file."""
    settings = {name: ("off", "on")[value] if isinstance(value, bool) else value for name, value in SETTINGS.items()}
    settings |= {"rank": 16, "alpha": 16.0, "seed": 0}
    return client.run(
        {
            **base_nodes(),
            "trainer": trainer(**settings),
            **sampler_nodes(["base", 0], ["base", 1], name="before"),
            **sampler_nodes(["trainer", 0], ["trainer", 1], name="after"),
            "save": {
                "class_type": "LoRATrainer_SaveLoRA",
                "inputs": {"lora": ["trainer", 2], "filename": "toadstool", "preview": ["after decode", 0]},
            },
        }
    )


def test_the_image_with_the_lora_shows_the_new_concept(client: ComfyClient, trained: Result):
    assert np.mean([fidelity(image) for image in fetch_images(client, trained, "before")]) < 0.1
    assert np.mean([fidelity(image) for image in fetch_images(client, trained, "after")]) > 0.5


def test_the_socket_gives_the_same_image_as_diffusers_with_the_saved_file(
    comfyui_server: ComfyServer, client: ComfyClient, trained: Result
):
    base = load_model(comfyui_server.base_directory / "models/checkpoints/embedded_base.safetensors")
    parts = [torch.nn.Module.float(part) for part in (base.vae, base.text_encoder, base.text_encoder_2, base.unet)]
    scheduler = EulerDiscreteScheduler(**NOISE_SCHEDULE, timestep_spacing="linspace", prediction_type="epsilon")
    pipeline = StableDiffusionXLPipeline(
        parts[0], parts[1], parts[2], None, None, parts[3], scheduler, add_watermarker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_lora_weights(comfyui_server.base_directory / "models/loras/toadstool.safetensors")
    with torch.no_grad():
        embeddings, nothing = (encode_captions(parts[1], parts[2], [caption] * 4) for caption in (POSITIVE, ""))
    drawn = pipeline(
        prompt_embeds=embeddings.prompt_embeds,
        pooled_prompt_embeds=embeddings.pooled_prompt_embeds,
        negative_prompt_embeds=nothing.prompt_embeds,
        negative_pooled_prompt_embeds=nothing.pooled_prompt_embeds,
        latents=torch.randn((4, 4, 16, 16), generator=torch.Generator().manual_seed(1)),
        height=128,
        width=128,
        num_inference_steps=NUM_STEPS,
        guidance_scale=CFG,
        output_type="np",
    ).images
    ours = np.stack(fetch_images(client, trained, "after")).astype(float)
    assert np.abs(drawn * 255 - ours).mean() < 2.0


def test_the_file_in_the_next_prompt_gives_the_same_pixels_as_the_socket(client: ComfyClient, trained: Result):
    loader = {
        "class_type": "LoraLoader",
        "inputs": {"lora_name": "toadstool.safetensors", "strength_model": 1.0, "strength_clip": 1.0},
    }
    loader["inputs"] |= {"model": ["base", 0], "clip": ["base", 1]}
    prompt = {"base": base_nodes()["base"], "lora": loader, **sampler_nodes(["lora", 0], ["lora", 1], name="from file")}
    from_file = fetch_images(client, client.run(prompt), "from file")
    assert np.array_equal(from_file, fetch_images(client, trained, "after"))


def test_training_does_not_change_a_bit_of_the_graphs_model(client: ComfyClient, trained: Result):
    prompt = {**base_nodes(), **sampler_nodes(["base", 0], ["base", 1], name="again")}
    # The same latents from another node, so that the images are drawn again instead of coming from
    # the cache.
    prompt["copy"] = {"class_type": "RepeatLatentBatch", "inputs": {"samples": ["again latent", 0], "amount": 1}}
    prompt["again sampler"]["inputs"]["latent_image"] = ["copy", 0]
    again = client.run(prompt)
    assert "again sampler" in again.executed_nodes()
    assert np.array_equal(fetch_images(client, again, "again"), fetch_images(client, trained, "before"))


def test_progress_is_shown_and_stays_below_four_messages_a_second(trained: Result):
    texts = trained.texts("trainer")
    is_whole = re.compile(r"step .*loss .*(it/s|s/it) .*ETA .*GB")  # a busy machine takes seconds for each step
    assert any(is_whole.search(text) for text in texts)
    assert any("rank 16, alpha 16" in text and "Memory: about" in text for text in texts[:3])
    assert "192/192 modules load" in texts[-1]
    assert len(trained.previews("trainer")) >= 2
    about_trainer = [message for message in trained.messages if _is_progress_of(message, "trainer")]
    duration = about_trainer[-1].seconds - about_trainer[0].seconds
    assert len(about_trainer) > 4 and len(about_trainer) / duration <= 4
    bar = [(message.data["value"], message.data["max"]) for message in about_trainer if message.kind == "progress"]
    steps = [value for value, total in bar if total == SETTINGS["max_train_steps"]]
    assert len(steps) >= 3 and steps == sorted(steps) and bar[-1] == (1, 1)


def _is_progress_of(message: Message, node: str) -> bool:
    if message.kind == "progress_state":
        return message.data["nodes"].get(node, {}).get("state") == "running"
    return message.kind in ("progress", "progress_text", "preview") and message.data["node"] == node


def test_the_run_folder_and_the_history_are_complete(comfyui_server: ComfyServer, trained: Result):
    facts = get_facts(trained)
    assert facts["steps"] == SETTINGS["max_train_steps"] == len(facts["loss"]) and facts["modules"] == 192
    folder = Path(facts["path"]).parent
    assert folder.parent == comfyui_server.base_directory / "output/lora_trainer/runs"
    assert {"manifest.json", "loss.csv", "loss.png", "run.log", "dataset.txt"} <= {
        path.name for path in folder.iterdir()
    }
    assert json.loads((folder / "manifest.json").read_text())["base_model"]["name"] == "embedded_base"
    assert Image.open(io.BytesIO(comfyui_server.client.fetch(OutputFile(**facts["loss_plot"])))).size[0] > 100


# ---- what trains again, and what does not ----


def test_the_same_prompt_trains_once_and_unrelated_changes_do_not_train_again(client: ComfyClient):
    prompt = {**tiny_prompt(seed=10), **sampler_nodes(["trainer", 0], ["trainer", 1], name="cached", seeds=1)}
    first = client.run(prompt)
    assert "trainer" in first.executed_nodes()
    again = client.run(prompt)
    assert "trainer" not in again.executed_nodes()
    assert get_facts(again) == get_facts(first)  # API clients get it from the cache too
    prompt["cached sampler"]["inputs"]["seed"] = 2
    changed = client.run(prompt)
    assert "cached sampler" in changed.executed_nodes() and "trainer" not in changed.executed_nodes()


def test_the_same_seed_gives_the_same_bytes(client: ComfyClient):
    runs = [
        get_facts(client.run(tiny_prompt(seed=seed, output_name=name, resume="new")))
        for seed, name in ((11, "one"), (11, "two"), (12, "three"))
    ]
    one, two, three = (load_file(run["path"]) for run in runs)
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    assert runs[0]["loss"] == runs[1]["loss"] != runs[2]["loss"]
    assert not all(torch.equal(one[name], three[name]) for name in one)


def test_another_caption_image_or_base_model_trains_again(comfyui_server: ComfyServer, client: ComfyClient):
    root = comfyui_server.base_directory
    folder = root / "input" / "edited"
    shutil.copytree(root / "input" / "toadstools", folder)
    images = sorted(path for path in folder.iterdir() if path.suffix == ".png")
    prompt = tiny_prompt(seed=13)
    prompt["pictures"]["inputs"]["folder"] = "edited"

    def trains() -> bool:
        return "trainer" in client.run(prompt).executed_nodes()

    assert trains() and not trains()
    images[0].with_suffix(".txt").write_text("another caption")
    assert trains() and not trains()
    ImageOps.invert(Image.open(images[0]).convert("RGB")).save(images[0])
    assert trains() and not trains()
    tensors = load_file(root / "models/checkpoints/embedded_base.safetensors")
    save_file(
        {name: tensor * 1.01 for name, tensor in tensors.items()}, root / "models/checkpoints/other_base.safetensors"
    )
    prompt["base"]["inputs"]["ckpt_name"] = "other_base.safetensors"
    assert trains()


# ---- what goes wrong ----


def train_again(client: ComfyClient, seed: int) -> None:
    """Require that the server is healthy: the next training succeeds, and its model draws."""
    prompt = {**tiny_prompt(seed=seed), **sampler_nodes(["trainer", 0], ["trainer", 1], name="healthy", seeds=1)}
    assert get_facts(client.run(prompt))["steps"] == 3


def test_an_interrupt_ends_the_training_and_keeps_a_checkpoint(comfyui_server: ComfyServer, client: ComfyClient):
    interrupted: list[Message] = []
    texts: list[str] = []

    def interrupt(message: Message) -> None:
        if message.kind == "progress_text" and message.data["node"] == "trainer":
            texts.append(message.data["text"])
        if (
            message.kind == "progress"
            and message.data["node"] == "trainer"
            and message.data["max"] == ENDLESS
            and message.data["value"] >= 2
            and not interrupted
        ):
            interrupted.append(message)
            client.interrupt()

    with pytest.raises(PromptInterrupted):
        client.run(tiny_prompt(seed=20, max_train_steps=ENDLESS, output_name="cancelled"), on_message=interrupt)
    (run,) = (comfyui_server.base_directory / "output/lora_trainer/runs").glob("cancelled-*")
    (checkpoint,) = (run / "checkpoints").iterdir()
    assert len(load_file(checkpoint)) == 3 * 192 and not (run / "cancelled.safetensors").exists()
    assert texts[0].startswith("starting (")
    last = texts[-1].splitlines()
    assert last[0].startswith("Cancelled at step ") and last[1].startswith("Start the same again, and it goes on at")
    assert str(checkpoint) in last[1]
    train_again(client, seed=21)


def test_a_checkpoint_of_an_earlier_run_is_offered_as_network_weights(comfyui_server: ComfyServer, client: ComfyClient):
    client.run(tiny_prompt(seed=24, save_every_n_steps=2, output_name="earlier"))
    (checkpoint,) = (comfyui_server.base_directory / "output/lora_trainer").glob("runs/earlier-*/checkpoints/*")
    name = "[checkpoint] " + checkpoint.relative_to(comfyui_server.base_directory / "output/lora_trainer").as_posix()
    inputs = client.get("/object_info/LoRATrainer_LoRATrainSDXL")["LoRATrainer_LoRATrainSDXL"]["input"]["optional"]
    entry = inputs["network_weights"]
    assert name in (entry[1].get("options") or entry[0])
    facts = get_facts(client.run(tiny_prompt(seed=24, network_weights=name, output_name="later")))
    manifest = json.loads((Path(facts["path"]).parent / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["training"]["network_weights"] == str(checkpoint)
    with pytest.raises(PromptRejected, match="not in list"):
        client.run(tiny_prompt(seed=24, network_weights="[checkpoint] ../../elsewhere.safetensors"))


@pytest.fixture
def fault(comfyui_server: ComfyServer):
    path = comfyui_server.base_directory / "fault.txt"
    yield path.write_text
    path.unlink(missing_ok=True)


def test_an_out_of_memory_error_names_the_next_setting_and_leaves_the_server_healthy(
    comfyui_server: ComfyServer, client: ComfyClient, fault
):
    fault("oom")
    with pytest.raises(PromptFailed) as failure:
        client.run(tiny_prompt(seed=22))
    message = failure.value.error["exception_message"]
    assert "The GPU ran out of memory" in message and "The run needs about" in message
    assert "Next, try gradient_checkpointing on (about" in message
    (comfyui_server.base_directory / "fault.txt").unlink()
    train_again(client, seed=22)


@pytest.mark.parametrize("package", ["diffusers", "peft"])
def test_a_missing_package_is_named_with_the_command_that_installs_it(client: ComfyClient, fault, package: str):
    fault(f"no {package}")
    with pytest.raises(PromptFailed) as failure:
        client.run(tiny_prompt(seed=24))
    message = failure.value.error["exception_message"]
    assert re.search(rf"the package {package} is not installed\. Run: \S*python\S* -m pip install {package}\b", message)


def test_flight_check_names_a_missing_package_too(client: ComfyClient, fault):
    fault("no peft")
    check = {"class_type": "LoRATrainer_FlightCheck", "inputs": {"dataset": ["pictures", 0], **TINY}}
    del check["inputs"]["alpha"], check["inputs"]["learning_rate"]
    with pytest.raises(PromptFailed, match="the package peft is not installed"):
        client.run({"pictures": base_nodes()["pictures"], "check": check})


def test_a_header_that_says_v_prediction_is_named_and_the_graph_decides(
    comfyui_server: ComfyServer, client: ComfyClient
):
    checkpoints = comfyui_server.base_directory / "models/checkpoints"
    tensors = load_file(checkpoints / "embedded_base.safetensors")
    save_file(tensors, checkpoints / "says_v.safetensors", {"modelspec.prediction_type": "v"})
    prompt = {**tiny_prompt(seed=25), **base_nodes("says_v.safetensors")}
    notice = "The header of says_v.safetensors says that it predicts v, but the graph samples it by epsilon"
    trained = client.run(prompt)
    assert any(notice in text for text in trained.texts("trainer")[:3])
    assert notice in trained.outputs["trainer"]["text"][0]
    plain = client.run(tiny_prompt(seed=25))
    assert get_facts(trained)["loss"] == get_facts(plain)["loss"]
    sampling = {"model": ["base", 0], "sampling": "v_prediction", "zsnr": False}
    prompt["v"] = {"class_type": "ModelSamplingDiscrete", "inputs": sampling}
    prompt["trainer"]["inputs"]["model"] = ["v", 0]
    assert not any("header" in text for text in client.run(prompt).texts("trainer"))


def test_an_error_in_a_step_leaves_the_server_healthy(comfyui_server: ComfyServer, client: ComfyClient, fault):
    fault("error")
    with pytest.raises(PromptFailed, match="injected"):
        client.run(tiny_prompt(seed=23))
    (comfyui_server.base_directory / "fault.txt").unlink()
    train_again(client, seed=23)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 5000}, "Value 5000 bigger than max of 1024"),
        ({"output_name": "a/b"}, "Give a plain file name without folders"),
        ({"resolution": 5000}, "Value 5000 bigger than max of 4096"),
        ({"goal": "dragon"}, "Value not in list"),
        ({"model": ["pictures", 0]}, "Return type mismatch"),
    ],
)
def test_bad_settings_are_refused_on_the_right_node_before_anything_runs(
    client: ComfyClient, settings: dict[str, Any], message: str
):
    texts = {"output_name": "x", "extra_resolutions": "", "caption_separator": ",", "max_bucket_reso": 2048}
    with pytest.raises(PromptRejected) as refusal:
        client.run(tiny_prompt(**{**texts, **settings}))  # the editor sends every widget
    (error,) = refusal.value.node_errors["trainer"]["errors"]  # one mistake, one error, on its own widget
    assert message in str(refusal.value) and error["extra_info"]["input_name"] == next(iter(settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resolution": 100}, "must be a multiple of 64, got 100. The nearest are 64 and 128"),
        ({"resolution": 4096}, "max_bucket_reso must not be below resolution 4096, got 2048"),
        ({"extra_resolutions": "x"}, "extra_resolutions must be numbers separated by commas"),
        ({"resolution": 2048, "min_bucket_reso": 1024}, "no usable image"),
        ({"target_modules": "nothing"}, "target_modules: 'nothing' matches no linear or convolution layer"),
        ({"optimizer_args": "beta"}, "optimizer_args: cannot read 'beta'"),
    ],
)
def test_the_errors_for_settings_that_fit_no_image_or_model_say_what_to_do(
    client: ComfyClient, settings: dict[str, Any], message: str
):
    with pytest.raises(PromptFailed) as failure:
        client.run(tiny_prompt(seed=24, **settings))
    assert failure.value.error["node_id"] == "trainer" and message in failure.value.error["exception_message"]


# ---- models of every origin ----


def test_merged_models_and_models_with_loras_can_be_trained_on(client: ComfyClient, trained: Result):
    prompt = tiny_prompt(seed=30)
    prompt["lora"] = {
        "class_type": "LoraLoader",
        "inputs": {"lora_name": "toadstool.safetensors", "strength_model": 1.0, "strength_clip": 1.0},
    }
    prompt["lora"]["inputs"] |= {"model": ["base", 0], "clip": ["base", 1]}
    prompt["merge"] = {
        "class_type": "ModelMergeSimple",
        "inputs": {"model1": ["lora", 0], "model2": ["base", 0], "ratio": 0.5},
    }
    prompt["trainer"]["inputs"] |= {"model": ["merge", 0], "clip": ["lora", 1]}
    merged = get_facts(client.run(prompt))
    plain = get_facts(client.run(tiny_prompt(seed=30)))
    assert merged["steps"] == 3 and merged["loss"] != plain["loss"]


def test_text_encoders_are_trained_and_applied_to_the_clip(client: ComfyClient):
    prompt = {
        **tiny_prompt(
            seed=31, train_text_encoders=True, text_encoder_learning_rate=1e-2, text_encoder_2_learning_rate=1e-2
        )
    }
    prompt |= {
        **sampler_nodes(["base", 0], ["base", 1], name="plain", seeds=1),
        **sampler_nodes(["base", 0], ["trainer", 1], name="clip", seeds=1),
    }
    result = client.run(prompt)
    assert get_facts(result)["modules"] > 192
    assert not np.array_equal(fetch_images(client, result, "plain"), fetch_images(client, result, "clip"))
