"""Reading and writing SDXL models: checkpoints, diffusers folders, weights in memory, and
everything that is refused.
"""

import errno
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Callable
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from trainers.captions.clip_tokenizer import tokenize
from trainers.embedded_base.sdxl import architecture
from trainers.sdxl.model import export, sdxl_model
from trainers.sdxl.model.export import write_checkpoint, write_diffusers_folder
from trainers.sdxl.model.layout import LDM_PREFIX, PARTS, Part, bare_text_name, unet_to_ldm
from trainers.sdxl.model.sdxl_model import SDXLModel, build_model, load_model

UNET, TEXT_1, TEXT_2, VAE = (LDM_PREFIX[part] for part in PARTS)


@pytest.fixture(scope="module")
def embedded() -> SDXLModel:
    """A model of the embedded base's shape with random weights."""
    torch.manual_seed(0)
    text_encoder, text_encoder_2 = architecture.build_text_encoders()
    return make_random_model(architecture.build_unet(), text_encoder, text_encoder_2, architecture.build_vae())


@pytest.fixture(scope="module")
def small() -> SDXLModel:
    """An even smaller model, with a different depth in each block as in SSD-1B, and without a
    middle block as in KOALA-700M.
    """
    torch.manual_seed(1)
    unet: dict[str, Any] = {
        "block_out_channels": (32, 64),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "mid_block_type": None,
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, (1, 2)),
        "reverse_transformer_layers_per_block": ((3, 1, 1), 1),
        "attention_head_dim": (1, 1),
        "use_linear_projection": True,
        "cross_attention_dim": 128,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 64 + 6 * 256,
    }
    config: dict[str, Any] = {
        "vocab_size": 100,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 1,
        "projection_dim": 64,
        "eos_token_id": 49407,
    }
    text_encoder = CLIPTextModel(CLIPTextConfig(**config, num_hidden_layers=1, hidden_act="quick_gelu"))
    text_encoder_2 = CLIPTextModelWithProjection(CLIPTextConfig(**config, num_hidden_layers=2, hidden_act="gelu"))
    vae: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (32, 32),
    }
    return make_random_model(
        UNet2DConditionModel(**unet),
        text_encoder,
        text_encoder_2,
        AutoencoderKL(**vae, latent_channels=4, scaling_factor=0.13025),
    )


def make_random_model(unet: nn.Module, text_encoder: nn.Module, text_encoder_2: nn.Module, vae: nn.Module) -> SDXLModel:
    """Make a model of random weights, so that no two can be swapped unnoticed."""
    modules: dict[Part, nn.Module] = {
        "unet": unet,
        "text_encoder": text_encoder,
        "text_encoder_2": text_encoder_2,
        "vae": vae,
    }
    for module in modules.values():
        for parameter in module.parameters():
            parameter.data.add_(torch.randn_like(parameter), alpha=0.02)
    return build_model({part: module.state_dict() for part, module in modules.items()}, name="random")


@pytest.fixture(scope="module")
def checkpoint(small: SDXLModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("small") / "small.safetensors"
    write_checkpoint(small, path)
    return path


@pytest.fixture
def folder(small: SDXLModel, tmp_path: Path) -> Path:
    write_diffusers_folder(small, tmp_path / "small")
    return tmp_path / "small"


@pytest.fixture
def changed(checkpoint: Path, tmp_path: Path) -> Callable[[dict[str, Tensor | None]], Path]:
    """Write the small checkpoint with some tensors replaced, or with None left out. A name that
    ends with "*" matches all names with that prefix.
    """

    def write(changes: dict[str, Tensor | None]) -> Path:
        tensors = load_file(checkpoint)
        for name, tensor in changes.items():
            if tensor is not None:
                tensors[name] = tensor
            else:
                tensors = {
                    key: value
                    for key, value in tensors.items()
                    if not re.fullmatch(re.escape(name).replace(r"\*", ".*"), key)
                }
        save_file(tensors, tmp_path / "changed.safetensors")
        return tmp_path / "changed.safetensors"

    return write


def assert_same_model(ours: Any, theirs: Any) -> None:
    """Compare weights and outputs of all four parts."""
    for part in PARTS:
        expected, found = (get_weights_by_bare_name(getattr(model, part)) for model in (theirs, ours))
        assert found.keys() == expected.keys()
        assert all(
            torch.equal(found[name], expected[name]) and found[name].dtype == expected[name].dtype for name in expected
        ), part
    for found_output, expected_output in zip(compute_outputs(ours), compute_outputs(theirs), strict=True):
        torch.testing.assert_close(found_output, expected_output, rtol=0, atol=1e-5)


def get_weights_by_bare_name(module: nn.Module) -> dict[str, Tensor]:
    return {bare_text_name(name): weight for name, weight in module.state_dict().items()}


@torch.no_grad()
def compute_outputs(model: Any) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    token_ids = torch.randint(0, 100, (1, 77), generator=generator)
    states = [encoder(token_ids, output_hidden_states=True) for encoder in (model.text_encoder, model.text_encoder_2)]
    text = torch.cat([state.hidden_states[-2] for state in states], dim=-1)
    conditions = {"text_embeds": states[1].text_embeds, "time_ids": torch.tensor([[1024.0, 1024, 0, 0, 1024, 1024]])}
    prediction = model.unet(
        torch.randn(1, 4, 8, 8, generator=generator), 500, text, added_cond_kwargs=conditions
    ).sample
    mean = model.vae.encode(torch.randn(1, 3, 32, 32, generator=generator)).latent_dist.mean
    image = model.vae.decode(torch.randn(1, 4, 8, 8, generator=generator)).sample
    return [text, states[1].text_embeds, prediction, mean, image]


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# Round trips


@pytest.mark.parametrize("name", ["embedded", "small"])
def test_a_checkpoint_and_a_folder_hold_the_same_model(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(name)
    write_checkpoint(model, tmp_path / "model.safetensors")
    from_checkpoint = load_model(tmp_path / "model.safetensors")
    assert_same_model(from_checkpoint, model)
    write_diffusers_folder(from_checkpoint, tmp_path / "model")
    assert_same_model(load_model(tmp_path / "model"), model)


def test_a_loaded_model_is_frozen_complete_and_named_after_its_file(checkpoint: Path, folder: Path) -> None:
    for path, name in ((checkpoint, "small"), (folder, "small")):
        model = load_model(path)
        assert (model.name, model.path, model.prediction_type, model.zero_terminal_snr) == (
            name,
            path,
            "epsilon",
            False,
        )
        for part in PARTS:
            module = getattr(model, part)
            assert not module.training
            assert not any(parameter.requires_grad or parameter.is_meta for parameter in module.parameters())
            assert not any(buffer.is_meta for buffer in module.buffers())


def test_half_precision_files_stay_half_precision(small: SDXLModel, tmp_path: Path) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        half = build_model(
            {part: {name: w.to(dtype) for name, w in getattr(small, part).state_dict().items()} for part in PARTS},
            name="half",
        )
        write_checkpoint(half, tmp_path / f"{dtype}.safetensors")
        write_diffusers_folder(half, tmp_path / f"{dtype}")
        for path in (tmp_path / f"{dtype}.safetensors", tmp_path / f"{dtype}"):
            model = load_model(path)
            assert {parameter.dtype for part in PARTS for parameter in getattr(model, part).parameters()} == {dtype}


def test_the_folder_loads_in_the_diffusers_pipeline(embedded: SDXLModel, tmp_path: Path) -> None:
    write_diffusers_folder(embedded, tmp_path / "model")
    pipeline = StableDiffusionXLPipeline.from_pretrained(tmp_path / "model", local_files_only=True)
    assert_same_model(pipeline, embedded)
    captions = ["a red circle, 123 Ümläuts' end", "", "word " * 100]
    for tokenizer, pad_token in ((pipeline.tokenizer, 49407), (pipeline.tokenizer_2, 0)):
        found = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        assert torch.equal(found, torch.stack([chunks[0] for chunks in tokenize(captions, pad_token=pad_token)]))
    images: Any = pipeline("a red circle", num_inference_steps=1, height=64, width=64, output_type="np")
    assert images.images.shape == (1, 64, 64, 3)


def test_diffusers_own_converter_reads_the_checkpoint(embedded: SDXLModel, tmp_path: Path) -> None:
    write_checkpoint(embedded, tmp_path / "model.safetensors")
    write_diffusers_folder(embedded, tmp_path / "model")
    pipeline = StableDiffusionXLPipeline.from_single_file(
        tmp_path / "model.safetensors", config=str(tmp_path / "model"), local_files_only=True
    )
    assert_same_model(pipeline, embedded)


@torch.no_grad()
def test_text_encoder_2_in_the_checkpoint_computes_what_open_clip_computes(small: SDXLModel, checkpoint: Path) -> None:
    weights = {
        name.removeprefix(TEXT_2): weight for name, weight in load_file(checkpoint).items() if name.startswith(TEXT_2)
    }
    token_ids = torch.randint(0, 100, (1, 77), generator=torch.Generator().manual_seed(3))
    states = weights["token_embedding.weight"][token_ids] + weights["positional_embedding"]
    causal_mask = torch.full((77, 77), -math.inf).triu(1)
    for layer in range(2):
        block = {name.removeprefix(f"transformer.resblocks.{layer}."): weight for name, weight in weights.items()}
        attention = nn.MultiheadAttention(64, 1, batch_first=True)
        attention.load_state_dict(
            {name.removeprefix("attn."): weight for name, weight in block.items() if name.startswith("attn.")}
        )
        normed = nn.functional.layer_norm(states, (64,), block["ln_1.weight"], block["ln_1.bias"])
        states = states + attention(normed, normed, normed, attn_mask=causal_mask, need_weights=False)[0]
        normed = nn.functional.layer_norm(states, (64,), block["ln_2.weight"], block["ln_2.bias"])
        hidden = nn.functional.gelu(nn.functional.linear(normed, block["mlp.c_fc.weight"], block["mlp.c_fc.bias"]))
        states = states + nn.functional.linear(hidden, block["mlp.c_proj.weight"], block["mlp.c_proj.bias"])
    normed = nn.functional.layer_norm(states, (64,), weights["ln_final.weight"], weights["ln_final.bias"])
    assert small.text_encoder_2 is not None
    output = small.text_encoder_2(token_ids)
    torch.testing.assert_close(output.last_hidden_state, normed, rtol=0, atol=1e-5)
    # no END token: the first
    torch.testing.assert_close(output.text_embeds, normed[:, 0] @ weights["text_projection"], rtol=0, atol=1e-5)


def test_ldm_attention_weights_of_the_vae_are_convolutions(checkpoint: Path) -> None:
    assert load_file(checkpoint)[VAE + "encoder.mid.attn_1.q.weight"].shape == (32, 32, 1, 1)


# No copies


def test_building_a_model_copies_no_weight(small: SDXLModel) -> None:
    given: dict[Part, dict[str, Tensor]] = {
        part: {name: weight.clone() for name, weight in getattr(small, part).state_dict().items()} for part in PARTS
    }
    model = build_model(given, name="shared")
    for part in PARTS:
        for name, parameter in getattr(model, part).state_dict().items():
            assert parameter.data_ptr() == given[part][name].data_ptr()


def test_full_size_sdxl_is_built_without_memory_for_it() -> None:
    """Nominally 7 GB: every weight is an expanded view of one number, so any copy would take
    gigabytes.
    """
    modules = make_full_size_modules()
    number = torch.zeros((), dtype=torch.float16)
    model = build_model(
        {
            part: {name: number.expand(w.shape) for name, w in module.state_dict().items()}
            for part, module in modules.items()
        },
        name="SDXL",
    )
    assert {part: sum(parameter.numel() for parameter in getattr(model, part).parameters()) for part in PARTS} == {
        "unet": 2_567_463_684,
        "text_encoder": 123_060_480,
        "text_encoder_2": 694_659_840,
        "vae": 83_653_863,
    }
    assert {parameter.data_ptr() for part in PARTS for parameter in getattr(model, part).parameters()} == {
        number.data_ptr()
    }


@cache
def make_full_size_modules() -> dict[Part, nn.Module]:
    """Make the modules of the published SDXL base on the meta device."""
    unet: dict[str, Any] = {
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "use_linear_projection": True,
        "cross_attention_dim": 2048,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    }
    clip_l = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    clip_g = CLIPTextConfig(
        hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20, projection_dim=1280
    )
    vae: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
    }
    vae |= {"block_out_channels": (128, 256, 512, 512), "latent_channels": 4}
    with torch.device("meta"):
        return {
            "unet": UNet2DConditionModel(**unet),
            "text_encoder": CLIPTextModel(clip_l),
            "text_encoder_2": CLIPTextModelWithProjection(clip_g),
            "vae": AutoencoderKL(**vae),
        }


def make_full_size_header() -> dict[str, tuple[str, list[int]]]:
    """Make the part of a half-precision SDXL base checkpoint's header that identifies the model."""
    unet = make_full_size_modules()["unet"].state_dict()
    header = {UNET + ldm: ("F16", list(unet[name].shape)) for name, ldm in unet_to_ldm(unet).items()}
    return header | make_header(
        TEXT_1 + "text_model.final_layer_norm.weight", TEXT_2 + "ln_final.weight", VAE + "quant_conv.weight"
    )


def make_header(*names: str) -> dict[str, tuple[str, list[int]]]:
    return {name: ("F16", [2]) for name in names}


def write_empty_file(path: Path, header: dict[str, tuple[str, list[int]]]) -> None:
    """Write a valid .safetensors file whose tensors take no disk space: it is sparse."""
    sizes = {"F32": 4, "F16": 2, "F8_E4M3": 1}
    entries, end = {}, 0
    for name, (dtype, shape) in header.items():
        start, end = end, end + sizes[dtype] * math.prod(shape)
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    content = json.dumps(entries).encode()
    content += b" " * (-len(content) % 8)
    with open(path, "wb") as stream:
        stream.write(len(content).to_bytes(8, "little") + content)
        stream.truncate(stream.tell() + end)


# Extra tensors, and older names


def test_weights_that_do_not_belong_to_sdxl_are_left_out(changed: Any, small: SDXLModel) -> None:
    extras = {
        TEXT_1 + "text_model.embeddings.position_ids": torch.arange(77)[None],
        TEXT_1 + "text_projection.weight": torch.zeros(64, 64),
        TEXT_1 + "logit_scale": torch.tensor(4.6),
        TEXT_2 + "logit_scale": torch.tensor(4.6),
        "model_ema.decay": torch.tensor(0.99),
        "denoiser.sigmas": torch.ones(1000),
    }
    assert_same_model(load_model(changed(extras)), small)


def test_text_encoder_1_may_lack_the_text_model_level(changed: Any, checkpoint: Path, small: SDXLModel) -> None:
    own = {name: tensor for name, tensor in load_file(checkpoint).items() if name.startswith(TEXT_1)}
    bare = {name.replace("text_model.", ""): tensor for name, tensor in own.items()}
    assert_same_model(load_model(changed({TEXT_1 + "*": None} | bare)), small)


def test_text_encoder_2_may_have_its_projection_as_a_linear_layer(
    changed: Any, checkpoint: Path, small: SDXLModel
) -> None:
    projection = load_file(checkpoint)[TEXT_2 + "text_projection"]
    path = changed({TEXT_2 + "text_projection": None, TEXT_2 + "text_projection.weight": projection.T.contiguous()})
    assert_same_model(load_model(path), small)


def test_old_vae_names_in_a_folder_are_read(folder: Path, small: SDXLModel) -> None:
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    renewed = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = {
        re.sub(r"to_(q|k|v|out\.0)\b", lambda match: renewed[match[0]], name): tensor
        for name, tensor in load_file(path).items()
    }
    assert any("proj_attn" in name for name in old)
    save_file(old, path)
    assert_same_model(load_model(folder), small)


def test_half_precision_variants_and_shards_in_a_folder_are_found(folder: Path, small: SDXLModel) -> None:
    (folder / "vae" / "diffusion_pytorch_model.safetensors").rename(
        folder / "vae" / "diffusion_pytorch_model.fp16.safetensors"
    )
    whole = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(whole)
    whole.unlink()
    shards = {
        f"diffusion_pytorch_model-0000{index + 1}-of-00002.safetensors": sorted(tensors)[index::2] for index in range(2)
    }
    for shard, names in shards.items():
        save_file({name: tensors[name] for name in names}, folder / "unet" / shard)
    index = {"weight_map": {name: shard for shard, names in shards.items() for name in names}}
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    assert_same_model(load_model(folder), small)
    (folder / "unet" / next(iter(shards))).unlink()
    with pytest.raises(
        ValueError, match=r"unet/ lacks diffusion_pytorch_model-00001-of-00002\.safetensors that .*index\.json names"
    ):
        load_model(folder)


def test_a_folder_needs_no_configs(folder: Path, small: SDXLModel) -> None:
    for path in [*folder.glob("*/config.json"), folder / "model_index.json"]:
        path.unlink()
    shutil.rmtree(folder / "tokenizer")
    assert_same_model(load_model(folder), small)


# Prediction type


@pytest.mark.parametrize(
    ("keys", "prediction_type", "zero_terminal_snr"),
    [
        ((), "epsilon", False),
        (("v_pred",), "v_prediction", False),
        (("v_pred", "ztsnr"), "v_prediction", True),
        (("ztsnr",), "epsilon", False),
    ],
)
def test_the_prediction_type_is_read_from_the_keys_that_comfyui_reads(
    changed: Any, tmp_path: Path, keys: tuple[str, ...], prediction_type: str, zero_terminal_snr: bool
) -> None:
    model = load_model(changed({key: torch.empty(0) for key in keys}))
    assert (model.prediction_type, model.zero_terminal_snr) == (prediction_type, zero_terminal_snr)
    write_checkpoint(model, tmp_path / "again.safetensors")
    write_diffusers_folder(model, tmp_path / "again")
    for path in (tmp_path / "again.safetensors", tmp_path / "again"):
        again = load_model(path)
        assert (again.prediction_type, again.zero_terminal_snr) == (prediction_type, zero_terminal_snr)


@pytest.mark.parametrize("stated", ["v", "v_prediction", "v-pred"])
def test_a_header_alone_that_says_v_prediction_is_taken_and_said(
    small: SDXLModel, tmp_path: Path, caplog: pytest.LogCaptureFixture, stated: str
) -> None:
    write_checkpoint(small, tmp_path / "model.safetensors", {"modelspec.prediction_type": stated})
    with caplog.at_level(logging.WARNING):
        assert load_model(tmp_path / "model.safetensors").prediction_type == "v_prediction"
    assert "its header says that it predicts v" in caplog.text


def test_a_vae_without_encoder_is_named(changed: Any) -> None:
    with pytest.raises(ValueError, match="its VAE has no encoder, so images cannot be encoded"):
        load_model(changed({"first_stage_model.encoder*": None, "first_stage_model.quant_conv*": None}))


def test_zero_terminal_snr_of_an_epsilon_folder_is_ignored_with_a_warning(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    edit_json(folder / "scheduler" / "scheduler_config.json", rescale_betas_zero_snr=True)
    with caplog.at_level(logging.WARNING):
        assert not load_model(folder).zero_terminal_snr
    assert "rescale_betas_zero_snr is ignored" in caplog.text


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"prediction_type": "sample"}, "prediction_type 'sample'; allowed: 'epsilon', 'v_prediction'"),
        ({"_class_name": "EDMDPMSolverMultistepScheduler"}, "trained with EDM's noise levels"),
        ({"beta_schedule": "linear"}, "beta_schedule linear, SDXL's has scaled_linear"),
    ],
)
def test_another_noise_schedule_is_refused(folder: Path, setting: dict[str, str], message: str) -> None:
    edit_json(folder / "scheduler" / "scheduler_config.json", **setting)
    with pytest.raises(ValueError, match=re.escape(message)):
        load_model(folder)


# Hashes


def test_part_hashes_depend_on_every_weight_and_not_on_the_file(
    small: SDXLModel, checkpoint: Path, folder: Path, changed: Any
) -> None:
    for part in PARTS:
        assert small.part_hash(part) == load_model(checkpoint).part_hash(part) == load_model(folder).part_hash(part)
    name = VAE + "quant_conv.bias"
    other = load_model(changed({name: load_file(checkpoint)[name] + 1e-3}))
    assert [other.part_hash(part) == small.part_hash(part) for part in PARTS] == [True, True, True, False]
    half = build_model(
        {part: {key: w.half() for key, w in getattr(small, part).state_dict().items()} for part in PARTS}, name="half"
    )
    assert half.part_hash("unet") != small.part_hash("unet")


def test_file_hashes_are_those_of_a1111(checkpoint: Path, small: SDXLModel, folder: Path) -> None:
    content, model = checkpoint.read_bytes(), load_model(checkpoint)
    assert model.sha256 == sha256(content).hexdigest()
    assert model.legacy_hash == sha256(content[0x100000:0x110000]).hexdigest()[:8]
    assert small.sha256 is None and load_model(folder).sha256 is None and small.legacy_hash is None


# Refusals


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (
            make_header("lora_unet_input_blocks_4_1_proj_in.lora_down.weight"),
            "this is a LoRA. Choose the checkpoint that it was made for",
        ),
        (make_header("unet.down_blocks.1.attentions.0.proj_in.lora_A.weight"), "this is a LoRA."),
        (make_header("control_model.input_hint_block.0.weight"), "this is a ControlNet."),
        (make_header("model.diffusion_model.double_blocks.0.img_attn.qkv.weight"), "this is Flux or a relative of it."),
        (make_header("double_blocks.0.img_attn.qkv.weight"), "this is Flux or a relative of it."),
        (
            make_header("model.diffusion_model.joint_blocks.0.context_block.attn.qkv.weight"),
            "this is Stable Diffusion 3.",
        ),
        (make_header("cond_stage_model.transformer.text_model.final_layer_norm.bias"), "this is Stable Diffusion 1.x."),
        (make_header("cond_stage_model.model.ln_final.bias"), "this is Stable Diffusion 2.x."),
        (
            make_header("conditioner.embedders.0.model.ln_final.bias"),
            "this is the SDXL refiner. Choose the SDXL base model",
        ),
        (make_header("edm_mean", "edm_std"), "this is Playground v2.5"),
        (make_header("edm_vpred.sigma_max"), "this is CosXL or a relative of it"),
        (
            make_header("model.diffusion_model.scaled_fp8"),
            "this is a quantized model. Choose its fp16, bf16 or fp32 file",
        ),
        (make_header("model.diffusion_model.input_blocks.4.1.proj_in.weight_scale"), "this is a quantized model."),
        (make_header("model.diffusion_model.input_blocks.4.1.proj_in.input_scale"), "this is a quantized model."),
        (make_header("encoder.conv_in.weight", "decoder.conv_in.weight"), "this is a VAE alone."),
        (make_header("first_stage_model.encoder.conv_in.weight"), "this is a VAE alone."),
        (make_header("down_blocks.0.resnets.0.norm1.weight"), "this is a UNet alone."),
        (make_header("input_blocks.0.0.weight"), "this is a UNet alone."),
        (make_header("text_model.encoder.layers.0.mlp.fc1.weight"), "this is a text encoder alone."),
        (make_header("blocks.0.weight"), "not an SDXL model: unknown weights such as blocks.0.weight"),
        (make_header(), "not an SDXL model: unknown weights such as (none)"),
        (
            make_header("model.diffusion_model.blocks.0.self_attn.q.weight"),
            "not an SDXL model: SDXL has no place for blocks.0.self_attn.q.weight",
        ),
    ],
)
def test_other_files_are_refused_by_name_from_their_header(
    tmp_path: Path, header: dict[str, tuple[str, list[int]]], message: str
) -> None:
    path = tmp_path / "other.safetensors"
    write_empty_file(path, header)
    with pytest.raises(ValueError, match=re.escape(f"{path}: {message}")):
        load_model(path)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"input_blocks.0.0.weight": [320, 9, 3, 3]}, "this is an inpainting model: its UNet takes 9 channels, not 4"),
        (
            {"input_blocks.0.0.weight": [320, 8, 3, 3]},
            "this is an instruct-pix2pix model: its UNet takes 8 channels, not 4",
        ),
        ({"label_emb.0.0.weight": None}, "its UNet is that of an unknown architecture: it takes no pooled text"),
        ({"time_embed.cond_proj.weight": [320, 256]}, "SDXL has no place for time_embed.cond_proj.weight"),
    ],
)
def test_other_unets_are_refused_by_name_from_the_header(
    tmp_path: Path, shapes: dict[str, list[int] | None], message: str
) -> None:
    header = make_full_size_header()
    for name, shape in shapes.items():
        if shape is None:
            del header[UNET + name]
        else:
            header[UNET + name] = ("F16", shape)
    write_empty_file(tmp_path / "other.safetensors", header)
    with pytest.raises(ValueError, match=re.escape(message)):
        load_model(tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        (
            "label_emb.0.0.weight",
            torch.zeros(128, 1664),
            "the UNet reads pooled text of width 128, but text encoder 2 gives 64",
        ),
        (
            "input_blocks.5.1.transformer_blocks.1.attn1.to_q.weight",
            None,
            "its UNet is missing 1 weights (down_blocks.1.attentions.1.transformer_blocks.1.attn1",
        ),
        (
            "input_blocks.5.1.transformer_blocks.1.attn1.to_q.bias",
            torch.zeros(64),
            "its UNet is missing nothing, unexpected are 1 weights (down_blocks.1",
        ),
        ("out.2.bias", torch.zeros(5), "conv_out.bias of its UNet has shape [5], not [4]"),
    ],
)
def test_weights_that_do_not_fit_are_named(changed: Any, name: str, tensor: Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        load_model(changed({UNET + name: tensor}))


def test_text_encoders_of_another_model_are_refused(small: SDXLModel, embedded: SDXLModel) -> None:
    parts: dict[Part, Any] = {
        "unet": small.unet,
        "text_encoder": embedded.text_encoder,
        "text_encoder_2": embedded.text_encoder_2,
    }
    with pytest.raises(
        ValueError,
        match="the UNet reads text of width 128, but the text encoders give 192: they belong to another model",
    ):
        build_model({part: module.state_dict() for part, module in parts.items()}, name="mixed")


@pytest.mark.parametrize(
    ("text_width", "size_width", "message"),
    [
        (768, None, "that of Stable Diffusion 1.x"),
        (1024, None, "that of Stable Diffusion 2.x"),
        (1280, 2560, "this is the SDXL refiner"),
    ],
)
def test_folders_of_related_models_are_refused_by_name(
    folder: Path, text_width: int, size_width: int | None, message: str
) -> None:
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    for name, tensor in tensors.items():
        if name.endswith("attn2.to_k.weight"):
            tensors[name] = torch.zeros(tensor.shape[0], text_width)
    if size_width is None:
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("add_embedding")}
    else:
        tensors["add_embedding.linear_1.weight"] = torch.zeros(128, size_width)
    save_file(tensors, path)
    shutil.rmtree(folder / "text_encoder")  # as in the refiner: the message names the model, not the missing part
    with pytest.raises(ValueError, match=re.escape(message)):
        load_model(folder)


def test_missing_parts_are_named(changed: Any, folder: Path) -> None:
    with pytest.raises(
        ValueError,
        match=r"it has no text encoder 1 and no text encoder 2 and no VAE\. Choose a checkpoint with UNet, both",
    ):
        load_model(changed({"conditioner.*": None, "first_stage_model.*": None}))
    with pytest.raises(ValueError, match=r"it has no VAE\."):
        load_model(changed({"first_stage_model.*": None}))
    shutil.rmtree(folder / "text_encoder_2")
    with pytest.raises(ValueError, match=r"it has no text encoder 2\."):
        load_model(folder)
    shutil.rmtree(folder / "unet")
    edit_json(folder / "model_index.json", _class_name="FluxPipeline")
    with pytest.raises(ValueError, match=r"it has no unet/ folder \(FluxPipeline\)"):
        load_model(folder)


def test_quantized_weights_are_refused(tmp_path: Path, folder: Path) -> None:
    header = make_full_size_header()
    header[UNET + "out.2.weight"] = ("F8_E4M3", header[UNET + "out.2.weight"][1])
    write_empty_file(tmp_path / "fp8.safetensors", header)
    with pytest.raises(ValueError, match=r"quantized \(F8_E4M3\).*Choose the fp16, bf16 or fp32 file"):
        load_model(tmp_path / "fp8.safetensors")
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor.to(torch.float8_e5m2) for name, tensor in load_file(path).items()}, path)
    with pytest.raises(ValueError, match=r"quantized \(F8_E5M2\)"):
        load_model(folder)


@pytest.mark.parametrize("num_bytes", [0, 7, 100, 20_000, -1])
def test_a_truncated_file_is_refused(checkpoint: Path, tmp_path: Path, num_bytes: int) -> None:
    path = tmp_path / "cut.safetensors"
    path.write_bytes(checkpoint.read_bytes()[:num_bytes])
    with pytest.raises(
        ValueError, match=r"cut\.safetensors is truncated or damaged \([\d,]+ bytes; .*\)\. Download or copy it again"
    ):
        load_model(path)


def test_a_web_page_saved_as_safetensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "page.safetensors").write_text("<!doctype html><title>Not found</title>")
    with pytest.raises(ValueError, match="truncated or damaged"):
        load_model(tmp_path / "page.safetensors")


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".bin"])
def test_a_pickle_is_refused_without_opening_it(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"\x80\x04")
    with pytest.raises(
        ValueError, match=rf"a \{suffix} file is a pickle, which can run any code .* Choose the \.safetensors file"
    ):
        load_model(path)


def test_a_folder_with_pickles_only_is_refused(folder: Path) -> None:
    (folder / "vae" / "diffusion_pytorch_model.safetensors").rename(folder / "vae" / "diffusion_pytorch_model.bin")
    with pytest.raises(
        ValueError,
        match=r"vae/ has only diffusion_pytorch_model\.bin, a pickle.* It needs diffusion_pytorch_model\.safetensors",
    ):
        load_model(folder)


def test_other_paths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file or folder"):
        load_model(tmp_path / "missing.safetensors")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match=r"neither a \.safetensors file nor a diffusers folder"):
        load_model(tmp_path / "notes.txt")
    with pytest.raises(ValueError, match=r"it has no unet/ folder \(no diffusers pipeline\)"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("part", "setting", "message"),
    [
        (
            "unet",
            {"attention_head_dim": 8},
            "unet/config.json says attention_head_dim 8, but an SDXL model with these weights has (1, 1)",
        ),
        ("unet", {"norm_num_groups": 16}, "norm_num_groups 16"),
        ("text_encoder", {"hidden_act": "gelu"}, "text_encoder/config.json says hidden_act gelu"),
        ("text_encoder_2", {"num_attention_heads": 2}, "num_attention_heads 2"),
        ("vae", {"scaling_factor": 0.18215}, "vae/config.json says scaling_factor 0.18215"),
    ],
)
def test_a_config_that_contradicts_the_weights_is_refused(
    folder: Path, part: str, setting: dict[str, Any], message: str
) -> None:
    edit_json(folder / part / "config.json", **setting)
    with pytest.raises(ValueError, match=re.escape(message)):
        load_model(folder)


def test_a_config_may_say_one_number_for_all_levels(folder: Path, small: SDXLModel) -> None:
    edit_json(folder / "unet" / "config.json", attention_head_dim=1, layers_per_block=[2, 2])
    assert_same_model(load_model(folder), small)


def test_a_broken_config_is_named(folder: Path) -> None:
    (folder / "unet" / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"unet/config\.json is not valid JSON"):
        load_model(folder)


def test_a_unet_that_diffusers_cannot_hold_is_refused(changed: Any) -> None:
    with pytest.raises(
        ValueError,
        match=r"diffusers cannot build this UNet: down_blocks\.1 has 2 resnets, but attention after 1 of them",
    ):
        load_model(changed({UNET + "input_blocks.5.1.*": None}))


# Writing


def test_nothing_is_overwritten(small: SDXLModel, tmp_path: Path) -> None:
    for name, write in (("model.safetensors", write_checkpoint), ("model", write_diffusers_folder)):
        (tmp_path / name).write_text("precious")
        with pytest.raises(FileExistsError, match=r"exists already\. Choose another name; it was not overwritten"):
            write(small, tmp_path / name)
        assert (tmp_path / name).read_text() == "precious"


@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (
            SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
            OSError,
            "the disk is full",
        ),
        (
            SafetensorError("Error while serializing: I/O error: Permission denied (os error 13)"),
            PermissionError,
            "Permission denied",
        ),
        (KeyboardInterrupt("Ctrl-C"), KeyboardInterrupt, "Ctrl-C"),
    ],
)
def test_a_failed_write_leaves_nothing(
    small: SDXLModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    raised: type[BaseException],
    message: str,
) -> None:
    def fail(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        path.write_bytes(b"half of it")
        raise error

    monkeypatch.setattr(export, "save_file", fail)
    for write in (write_checkpoint, write_diffusers_folder):
        with pytest.raises(raised, match=message) as caught:
            write(small, tmp_path / "model")
        assert not isinstance(caught.value, OSError) or caught.value.errno in (errno.ENOSPC, errno.EACCES)
        assert list(tmp_path.iterdir()) == []


def test_a_model_without_a_part_cannot_be_written(small: SDXLModel, tmp_path: Path) -> None:
    without_vae = build_model(
        {part: getattr(small, part).state_dict() for part in PARTS if part != "vae"}, name="no VAE"
    )
    assert without_vae.vae is None
    with pytest.raises(RuntimeError, match="the VAE is no longer in memory"):
        write_checkpoint(without_vae, tmp_path / "model.safetensors")
    with pytest.raises(RuntimeError, match="the VAE is no longer in memory"):
        write_diffusers_folder(without_vae, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_metadata_is_written_together_with_the_format(small: SDXLModel, tmp_path: Path) -> None:
    write_checkpoint(small, tmp_path / "model.safetensors", {"modelspec.title": "Tiny"})
    content = (tmp_path / "model.safetensors").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert header["__metadata__"] == {"format": "pt", "modelspec.title": "Tiny"}


@pytest.mark.parametrize("as_folder", [False, True])
def test_a_model_outlives_its_files_being_cut(checkpoint: Path, folder: Path, tmp_path: Path, as_folder: bool) -> None:
    """Weights that are mapped would end the process with SIGBUS."""
    path = shutil.copy(checkpoint, tmp_path / "cut.safetensors")
    model = load_model(folder if as_folder else Path(path))
    expected = model.part_hash("unet")
    for file in (Path(path), *folder.rglob("*.safetensors")):
        os.truncate(file, 0)
    assert model.part_hash("unet") == expected


def test_a_hash_is_not_that_of_a_file_that_came_later(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = Path(shutil.copy(checkpoint, tmp_path / "model.safetensors"))
    assert load_model(path).sha256 and load_model(path).legacy_hash
    model = load_model(path)
    path.write_bytes(b"another")
    assert model.sha256 is None and model.legacy_hash is None
    assert "has changed since it was loaded" in caplog.text


def test_a_checkpoint_that_changes_while_it_is_loaded_is_an_error(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(shutil.copy(checkpoint, tmp_path / "model.safetensors"))

    def cut(names: object) -> None:
        os.truncate(path, 20_000)

    monkeypatch.setattr(sdxl_model, "refuse_quantized", cut)
    with pytest.raises(RuntimeError, match=r"model\.safetensors was changed while it was read"):
        load_model(path)
