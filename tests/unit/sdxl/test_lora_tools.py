"""The tools for finished LoRAs by their command, on files of the embedded SDXL: forward passes,
headers, names, and what is refused.
"""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trainers.__main__ import main
from trainers.embedded_base import write_embedded_checkpoint
from trainers.lora.file import save_lora, to_kohya
from trainers.lora.modules import LoraModule, ModuleNames, list_weighted_modules
from trainers.lora.read import read_lora
from trainers.sdxl.lora_spellings import diffusers_names, host_names, names_of_checkpoint, standard_names
from trainers.sdxl.merge import merge_lora
from trainers.sdxl.model.export import write_checkpoint
from trainers.sdxl.model.sdxl_model import SDXLModel, build_model, load_model
from trainers.sdxl.model.standard_unet import standard_unet
from trainers.sdxl.names import TEXT_ENCODER, TEXT_ENCODER_2, UNET, kohya_names, module_key

PARTS = (UNET, TEXT_ENCODER, TEXT_ENCODER_2)
HEADER = {
    "ss_base_model_version": "sdxl_base_v1-0",
    "ss_network_dim": "4",
    "ss_steps": "100",
    "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
}


def get_parts(model: SDXLModel) -> dict[str, nn.Module]:
    return {part: getattr(model, part) for part in PARTS}


def list_weights(model: SDXLModel) -> dict[tuple[str, str], Tensor]:
    """The layers that a LoRA here changes: linear ones, and a convolution of each kernel."""
    return {
        module_key(part, path): layer.weight
        for part, module in get_parts(model).items()
        for path, layer in module.named_modules()
        if (isinstance(layer, nn.Linear) and any(word in path for word in ("attn", "mlp.", "ff.")))
        or (isinstance(layer, nn.Conv2d) and path.endswith(("conv1", "conv_shortcut")))
    }


def draw_modules(model: SDXLModel, *, rank: int, alpha: float, seed: int) -> dict[tuple[str, str], LoraModule]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return 0.05 * torch.randn(*shape, generator=generator)

    shapes = {key: weight.shape for key, weight in list_weights(model).items()}
    return {
        key: LoraModule(draw(rank, *shape[1:]), draw(shape[0], rank, *[1] * (len(shape) - 2)), alpha)
        for key, shape in shapes.items()
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("loras")


@pytest.fixture(scope="module")
def base(folder: Path) -> Path:
    write_embedded_checkpoint(folder / "base.safetensors")
    return folder / "base.safetensors"


@pytest.fixture(scope="module")
def names(base: Path) -> ModuleNames:
    return kohya_names(*map(list_weighted_modules, get_parts(load_model(base)).values()))


@pytest.fixture(scope="module")
def loras(folder: Path, base: Path, names: ModuleNames) -> dict[str, Path]:
    """Two LoRAs, one with alpha, on UNet and text encoders."""
    paths = {}
    for seed, (name, rank, alpha) in enumerate((("anna", 4, 2.0), ("bob", 6, 6.0))):
        modules = draw_modules(load_model(base), rank=rank, alpha=alpha, seed=seed)
        paths[name] = folder / f"{name}.safetensors"
        own = {"modelspec.title": name, "modelspec.trigger_phrase": f"{name}zwx", "ss_output_name": name}
        own["ss_tag_frequency"] = json.dumps({"10_toys": {f"{name}zwx": 3, "white background": 2}})
        save_lora(paths[name], to_kohya(modules, names, dtype=torch.float32), {**HEADER, **own})
    return paths


def run(*arguments: object) -> None:
    assert main(["lora", *map(str, arguments)]) == 0


def read_header(path: Path) -> dict[str, str]:
    with safe_open(path, framework="numpy") as file:
        return file.metadata()


def predict(base: Path, names: ModuleNames, *loras: tuple[Path, float]) -> Tensor:
    """The prediction of the UNet on the conditions of both text encoders."""
    model = load_model(base)
    for part in get_parts(model).values():
        part.float()
    for path, strength in loras:
        merge_lora(read_lora(path, names), get_parts(model), strength=strength)
    return predict_with(model)


@torch.no_grad()
def predict_with(model: SDXLModel) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 1000, (1, 77), generator=generator)
    assert model.text_encoder is not None and model.text_encoder_2 is not None
    first = model.text_encoder(tokens, output_hidden_states=True)
    second = model.text_encoder_2(tokens, output_hidden_states=True)
    return model.unet(
        torch.randn(1, 4, 16, 16, generator=generator),
        500,
        torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1),
        added_cond_kwargs={
            "text_embeds": second.text_embeds,
            "time_ids": torch.tensor([[128.0, 128, 0, 0, 128, 128]]),
        },
    ).sample


# ---- merge ----


def test_a_merged_lora_has_the_effect_of_both_at_their_strengths(folder, base, names, loras):
    merged = folder / "merged.safetensors"
    run("merge", *loras.values(), "--strengths", 1, -0.5, "--output", merged)
    expected = predict(base, names, (loras["anna"], 1.0), (loras["bob"], -0.5))
    torch.testing.assert_close(predict(base, names, (merged, 1.0)), expected, rtol=0, atol=1e-5)
    assert (expected - predict(base, names)).abs().max() > 0.01
    modules = read_lora(merged, names)
    assert len(modules) == len(read_lora(loras["anna"], names)) and {module.rank for module in modules.values()} == {10}


def test_a_merged_loras_header_has_what_both_say_and_no_training(folder, loras):
    run("merge", *loras.values(), "--output", folder / "toys.safetensors")
    header = read_header(folder / "toys.safetensors")
    assert header["ss_base_model_version"] == "sdxl_base_v1-0" and header["ss_steps"] == "100"
    assert header["modelspec.title"] == header["ss_output_name"] == "toys"
    assert header["modelspec.merged_from"] == "anna, bob"
    assert header["modelspec.trigger_phrase"] == "annazwx, bobzwx"
    assert list(json.loads(header["ss_tag_frequency"])) == ["10_toys", "10_toys (2)"]
    assert header["ss_network_dim"] == header["ss_network_alpha"] == "10"
    (step,) = json.loads(header["lora_trainer_tools"])
    assert [source["name"] for source in step["sources"]] == ["anna.safetensors", "bob.safetensors"]
    assert step["sources"][0]["sshs_model_hash"] == read_header(loras["anna"])["sshs_model_hash"]
    assert str(folder) not in json.dumps(header), "a file that is shared tells no folders"


def test_a_merge_to_a_rank_loses_what_its_sentence_says(folder, names, loras, capsys):
    run("merge", *loras.values(), "--rank", 5, "--output", folder / "merged5.safetensors")
    sources = [read_lora(path, names) for path in loras.values()]
    whole = {key: sum(to_matrix(source[key]) for source in sources) for key in sources[0]}
    assert share_of_error(whole, read_lora(folder / "merged5.safetensors", names)) == said_share(capsys)


def to_matrix(module: LoraModule) -> Tensor:
    return module.alpha / module.rank * module.up.flatten(1).double() @ module.down.flatten(1).double()


def share_of_error(whole: dict[Any, Any], modules: dict[Any, LoraModule]) -> str:
    errors = [float((update - to_matrix(modules[key])).norm()) for key, update in whole.items()]
    return f"{math.hypot(*errors) / math.hypot(*(float(update.norm()) for update in whole.values())):.2%}"


def said_share(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out.partition(" of the norm cut off")[0].rpartition(" ")[2]


# ---- resize ----


def test_resizing_loses_what_its_sentence_says(folder, names, loras, capsys):
    run("resize", loras["bob"], "--rank", 3, "--output", folder / "bob3.safetensors")
    whole = {key: to_matrix(module) for key, module in read_lora(loras["bob"], names).items()}
    assert share_of_error(whole, read_lora(folder / "bob3.safetensors", names)) == said_share(capsys)
    values = [torch.linalg.svdvals(update) for update in whole.values()]
    lost = math.hypot(*(float(each[3:].norm()) for each in values)) / math.hypot(
        *(float(each.norm()) for each in values)
    )
    (step,) = json.loads(read_header(folder / "bob3.safetensors")["lora_trainer_tools"])
    assert math.isclose(step["error"], lost, rel_tol=1e-2)


def test_a_share_of_the_norm_is_kept_in_every_module(folder, names, loras):
    run("resize", loras["bob"], "--rank", 0, "--norm-share", 0.9, "--output", folder / "bob90.safetensors")
    resized = read_lora(folder / "bob90.safetensors", names)
    for key, module in read_lora(loras["bob"], names).items():
        values = torch.linalg.svdvals(to_matrix(module))
        kept = resized[key].rank
        assert values[:kept].norm() >= 0.9 * values.norm() > values[: kept - 1].norm(), key
    assert read_header(folder / "bob90.safetensors")["ss_network_dim"] == "Dynamic"


def test_loha_and_whole_differences_are_resized_as_what_they_are(folder, capsys):
    generator = torch.Generator().manual_seed(0)
    name = "lora_unet_input_blocks_4_1_proj_in"
    loha = {
        f"{name}.hada_w{half}_{end}": torch.randn(shape, generator=generator)
        for half in (1, 2)
        for end, shape in (("a", (8, 2)), ("b", (2, 10)))
    }
    expected = math.prod(loha[f"{name}.hada_w{half}_a"] @ loha[f"{name}.hada_w{half}_b"] for half in (1, 2))
    save_file({**loha, "lora_unet_input_blocks_4_1_norm.diff": torch.ones(4)}, folder / "loha.safetensors")
    run("resize", folder / "loha.safetensors", "--rank", 4, "--output", folder / "from_loha.safetensors")
    tensors = load_file(folder / "from_loha.safetensors")
    torch.testing.assert_close(
        tensors[f"{name}.lora_up.weight"] @ tensors[f"{name}.lora_down.weight"], expected, rtol=1e-4, atol=1e-4
    )
    assert torch.equal(tensors["lora_unet_input_blocks_4_1_norm.diff"], torch.ones(4))
    assert "2 modules, rank 4, nothing cut off" in capsys.readouterr().out


# ---- extract ----


@pytest.fixture(scope="module")
def tuned(folder: Path, base: Path, loras: dict[str, Path], names: ModuleNames) -> Path:
    """The base model in float32 with a LoRA in its weights."""
    model = load_model(base)
    parts = {part: getattr(model, part).float() for part in (*PARTS, "vae")}
    write_checkpoint(_rebuild(parts), folder / "base32.safetensors")
    merge_lora(read_lora(loras["anna"], names), get_parts(model))
    with torch.no_grad():
        model.unet.get_parameter("conv_in.bias").add_(1)
    write_checkpoint(_rebuild(parts), folder / "tuned.safetensors")
    return folder / "tuned.safetensors"


def _rebuild(parts: dict[str, nn.Module]) -> SDXLModel:
    return build_model({part: module.state_dict() for part, module in parts.items()}, name="x")  # type: ignore[misc]


def test_a_lora_comes_back_out_of_the_model_that_it_was_merged_into(folder, base, names, loras, tuned, capsys):
    extracted = folder / "extracted.safetensors"
    arguments = (tuned, folder / "base32.safetensors", "--output", extracted, "--device", "cpu")
    run("extract", *arguments, "--rank", 4, "--save-dtype", "fp32")
    before, after = predict(base, names, (loras["anna"], 1.0)), predict(base, names, (extracted, 1.0))
    assert (after - before).norm() < 1e-4 * before.norm()
    expected, found = read_lora(loras["anna"], names), read_lora(extracted, names)
    assert found.keys() == expected.keys()
    for key, module in expected.items():
        error = (to_matrix(found[key]) - to_matrix(module)).norm()
        assert error < 1e-4 * to_matrix(module).norm(), key
    out = capsys.readouterr().out
    assert "layers equal in both models" in out
    assert "1 weight that differ too, such as model.diffusion_model.input_blocks.0.0.bias" in out.replace("\n", " ")
    header = read_header(extracted)
    assert header["ss_base_model_version"] == "sdxl_base_v1-0" and header["ss_sd_model_name"] == "base32.safetensors"


def test_only_one_layer_of_the_two_checkpoints_is_read_at_a_time(folder, tuned, monkeypatch):
    from trainers.files.weight_file import WeightFile

    reads: list[list[str]] = []
    original = WeightFile.read
    monkeypatch.setattr(WeightFile, "read", lambda file, names: reads.append([*names]) or original(file, reads[-1]))
    run("extract", tuned, folder / "base32.safetensors", "--output", folder / "again.safetensors", "--device", "cpu")
    assert reads and {len(names) for names in reads} == {1}


# ---- names ----


def test_the_names_made_without_a_model_are_those_of_the_real_sdxl():
    unet = list_weighted_modules(standard_unet())
    standard = standard_names()
    real = kohya_names(unet, [], [])
    assert {key: standard.get(key) for key in real} == real
    surplus = [key for key in standard if key[0] == UNET and key not in real]
    assert all(key[1].endswith("conv_shortcut") or ".transformer_blocks." in key[1] for key in surplus)


def test_host_and_diffusers_names_of_the_embedded_base(base, names):
    with safe_open(base, framework="numpy") as file:
        weights = list(file.keys())
    found = names_of_checkpoint(weights)
    assert dict(found) == {key: name for key, name in names.items() if key in found}
    assert set(names) - set(found) == set(), "all modules with a weight"
    prefix = "model.diffusion_model."
    own = {
        f"diffusion_model.{name.removeprefix(prefix).removesuffix('.weight')}"
        for name in weights
        if name.startswith(prefix) and name.endswith(".weight")
    }
    assert {name for name in host_names(found).values() if name.startswith("diffusion_model.")} == own
    unet = list_weighted_modules(load_model(base).unet)
    assert {f"unet.{path}" for path in unet} == {n for n in diffusers_names(found).values() if n.startswith("unet.")}


@pytest.mark.parametrize("form", ["comfyui", "diffusers"])
def test_a_lora_that_is_converted_there_and_back_is_the_same(folder, base, names, loras, form):
    there, back = folder / f"{form}.safetensors", folder / f"from_{form}.safetensors"
    run("convert", loras["anna"], "--to", form, "--base", base, "--output", there)
    run("convert", there, "--to", "kohya", "--base", base, "--output", back)
    before, after = load_file(loras["anna"]), load_file(back)
    if form == "comfyui":
        assert before.keys() == after.keys() and all(torch.equal(tensor, after[key]) for key, tensor in before.items())
    expected, found = read_lora(loras["anna"], names), read_lora(back, names)
    assert {key: to_matrix(module) for key, module in found.items()}.keys() == expected.keys()
    assert all(torch.equal(to_matrix(found[key]), to_matrix(expected[key])) for key in expected), "alpha is 2 of 4"


@pytest.mark.parametrize("form", ["kohya", "diffusers"])
def test_diffusers_loads_all_modules_at_the_right_strength(folder, base, names, loras, form):
    path = folder / f"for_diffusers_{form}.safetensors"
    run("convert", loras["anna"], "--to", form, "--base", base, "--output", path)
    model = load_model(base)
    for part in get_parts(model).values():
        part.float()
    pipeline = StableDiffusionXLPipeline(
        vae=model.vae,
        text_encoder=model.text_encoder,
        text_encoder_2=model.text_encoder_2,
        tokenizer=None,
        tokenizer_2=None,
        unet=model.unet,
        scheduler=EulerDiscreteScheduler(),
    )
    pipeline.load_lora_weights(folder, weight_name=path.name)
    loaded = [layer for part in get_parts(model).values() for layer in part.modules() if isinstance(layer, LoraLayer)]
    expected = predict(base, names, (loras["anna"], 1.0))
    assert len(loaded) == len(read_lora(loras["anna"], names))
    torch.testing.assert_close(predict_with(model), expected, rtol=0, atol=1e-4)


def test_names_with_dots_of_another_model_come_from_its_file(folder, capsys):
    flat = {f"lora_unet_layers_0_feed_forward_w1.lora_{role}.weight": torch.ones(2, 2) for role in ("down", "up")}
    save_file(flat, folder / "flat.safetensors")
    save_file({"layers.0.feed_forward.w1.weight": torch.ones(2, 2)}, folder / "z_image.safetensors")
    command = ("lora", "convert", str(folder / "flat.safetensors"), "--to", "comfyui", "--output")
    assert main([*command, str(folder / "no.safetensors")]) == 1
    assert "which of the underscores in lora_unet_layers_0_feed_forward_w1 are dots?" in capsys.readouterr().err
    assert main([*command, str(folder / "dots.safetensors"), "--base", str(folder / "z_image.safetensors")]) == 0
    assert sorted(load_file(folder / "dots.safetensors")) == [
        "diffusion_model.layers.0.feed_forward.w1.lora_down.weight",
        "diffusion_model.layers.0.feed_forward.w1.lora_up.weight",
    ]
    run("convert", folder / "dots.safetensors", "--to", "kohya", "--output", folder / "flat again.safetensors")
    assert load_file(folder / "flat again.safetensors").keys() == flat.keys()


# ---- show and edit ----


def test_show_says_what_a_lora_is(loras, capsys):
    run("show", loras["anna"])
    text = capsys.readouterr().out
    for line in ("title                  anna", "trigger words          annazwx", "rank 4, alpha 2, norm"):
        assert line in text, text
    assert "sdxl_base_v1-0, stable-diffusion-xl-v1-base/lora" in text and "annazwx (3), white background (2)" in text


def test_an_edited_header_keeps_the_tensors_and_gets_new_hashes(folder, loras):
    edited = folder / "edited.safetensors"
    texts = ("--title", "Anna", "--trigger-words", "zwx, hat", "--license", "CC-BY-4.0", "--set", "ss_steps", "")
    run("edit", loras["anna"], *texts, "--output", edited)
    before, after = read_header(loras["anna"]), read_header(edited)
    assert (after["modelspec.title"], after["modelspec.license"]) == ("Anna", "CC-BY-4.0")
    assert after["modelspec.trigger_phrase"] == "zwx, hat" and "ss_steps" not in after
    assert after["sshs_model_hash"] == before["sshs_model_hash"], "it covers the tensors"
    data = edited.read_bytes()
    data = data[8 + int.from_bytes(data[:8], "little") :]
    assert after["sshs_model_hash"] == hashlib.sha256(data).hexdigest()
    assert after["modelspec.hash_sha256"] == f"0x{after['sshs_model_hash']}"


def test_show_tells_a_wrong_hash_and_edit_puts_it_right(folder, loras, capsys):
    path = folder / "wrong.safetensors"
    save_file(load_file(loras["anna"]), path, {**read_header(loras["anna"]), "sshs_model_hash": "0" * 64})
    run("show", path)
    assert f"but the header says {'0' * 64}: edit the file to hash it again" in capsys.readouterr().out
    run("edit", path, "--overwrite")
    assert read_header(path)["sshs_model_hash"] == read_header(loras["anna"])["sshs_model_hash"]


def test_trigger_words_reach_model_managers_that_read_kohyas_class_tokens(folder, loras):
    run("edit", loras["anna"], "--trigger-words", "zwx", "--output", folder / "tokens.safetensors")
    (dataset,) = json.loads(read_header(folder / "tokens.safetensors")["ss_datasets"])
    assert dataset["subsets"][0]["class_tokens"] == "zwx"


# ---- what is refused ----

FILES = {"anna", "bob", "base", "dora", "oft", "peft", "wide", "narrow", "scaled", "half"}
REFUSALS = {
    "one LoRA": (["merge", "anna"], "merging needs two LoRAs or more"),
    "strengths": (["merge", "anna", "bob", "--strengths", "1"], "--strengths has 1 number for 2 LoRAs"),
    "no cut": (["resize", "anna", "--rank", "0"], "rank is 0 and norm_share 1, so nothing would be cut"),
    "share": (["resize", "anna", "--norm-share", "2"], "norm_share must be between 0.01 and 1.0, got 2.0"),
    "a DoRA": (["resize", "dora", "--rank", "1"], "x is a DoRA: what it does depends on the base model's weights"),
    "an OFT": (["show", "oft"], "this file is an OFT"),
    "a model": (["show", "base"], "the file holds no LoRA weights"),
    "other names": (["merge", "anna", "peft"], "name the modules of their network differently"),
    "other sizes": (["merge", "wide", "narrow"], "have different sizes of lora_unet_x, so they are for different base"),
    "no difference": (["extract", "base", "base", "--device", "cpu"], "the two models do not differ in any of"),
    "a LoRA as model": (["extract", "anna", "base"], "so they are models of different kinds"),
    "a folder": (["extract", "nowhere", "base"], "nowhere: not a .safetensors file"),
    "half a file": (["extract", "half", "base"], "half.safetensors: not a whole .safetensors file"),
    "half a LoRA": (["resize", "half"], "half.safetensors: not a whole .safetensors file"),
    "quantized": (["extract", "scaled", "base"], "its weights are quantized with scales (a.scale_weight)"),
    "diffusers' flow": (["convert", "peft", "--to", "diffusers"], "it is not for SDXL"),
    "diffusers' DoRA": (["convert", "peft", "--to", "kohya"], "have diffusers' names of another model than SDXL"),
    "a hash": (["edit", "anna", "--set", "sshs_model_hash", "1"], "sshs_model_hash cannot be set"),
}


@pytest.fixture(scope="module")
def others(folder: Path, base: Path, loras: dict[str, Path]) -> None:
    def pair(name: str, width: int) -> dict[str, Tensor]:
        return {f"{name}.lora_down.weight": torch.ones(2, width), f"{name}.lora_up.weight": torch.ones(4, 2)}

    files = {
        "dora": {**pair("x", 4), "x.dora_scale": torch.ones(4, 1)},
        "oft": {**pair("x", 4), "y.oft_blocks": torch.ones(2, 2)},
        "peft": pair("transformer.blocks.0.attn.to_q", 4),
        "wide": pair("lora_unet_x", 6),
        "narrow": pair("lora_unet_x", 4),
        "scaled": {"a.weight": torch.ones(2, 2), "a.scale_weight": torch.ones(1)},
    }
    for name, tensors in files.items():
        save_file(tensors, folder / f"{name}.safetensors")
    (folder / "half.safetensors").write_bytes(loras["anna"].read_bytes()[:-100])


@pytest.mark.usefixtures("others")
@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_done_is_said_and_leaves_no_file(folder, capsys, case):
    (command, *arguments), message = REFUSALS[case]
    paths = [str(folder / f"{word}.safetensors") if word in FILES else word for word in arguments]
    output = folder / "refused.safetensors"
    assert main(["lora", command, *paths, *([] if command == "show" else ["--output", str(output)])]) == 1
    assert message in capsys.readouterr().err
    assert not output.exists()


def test_no_file_is_overwritten_unless_told_to(loras, capsys):
    before = loras["anna"].read_bytes()
    assert main(["lora", "resize", str(loras["bob"]), "--rank", "2", "--output", str(loras["anna"])]) == 1
    assert "anna.safetensors exists already. Give another --output, or --overwrite" in capsys.readouterr().err
    assert loras["anna"].read_bytes() == before
