"""The LoRA file: names compared with those of sd-scripts and ComfyUI, and our reader and writer
with the real ones.
"""

import copy
import errno
import hashlib
import json
import math
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_kohya
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from trainers.embedded_base.sdxl.architecture import build_unet
from trainers.lora.file import save_lora, to_kohya, verify_lora
from trainers.lora.modules import LoraModule, ModuleKey, ModuleNames, list_weighted_modules
from trainers.lora.read import check_tensors, find_kind, read_lora
from trainers.sdxl.model.layout import unet_to_ldm
from trainers.sdxl.names import kohya_names, module_key

TEXT_ENCODER_LAYERS = r"(.*\.)?encoder\.layers\.\d+\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])"
ATTENTION_MLP = (
    r".*attentions\.\d+\.(proj_in|proj_out|transformer_blocks\.\d+\.(attn[12]\.to_(q|k|v|out\.0)|ff\.net\.(0\.proj|2)))"
)
UNET_LAYERS = (
    rf"{ATTENTION_MLP}|conv_in|.*resnets\.0\.(conv1|time_emb_proj|conv_shortcut)|.*samplers\.0\.conv"
    r"|(time|add)_embedding\.linear_[12]"
)
TARGETS: dict[str, str] = {
    "unet": UNET_LAYERS,
    "text_encoder": TEXT_ENCODER_LAYERS,
    "text_encoder_2": TEXT_ENCODER_LAYERS,
}

Models = dict[str, Any]  # diffusers does not type its models' config
Modules = dict[ModuleKey, LoraModule]
Names = dict[ModuleKey, str]


# The real classes; the sizes of the pretrained model do not affect names.


def _make_unet(**sizes: Any) -> UNet2DConditionModel:
    levels: dict[str, Any] = {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D")}
    levels["up_block_types"] = ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")
    return UNet2DConditionModel(
        sample_size=8, use_linear_projection=True, addition_embed_type="text_time", **levels, **sizes
    )


def _make_text_encoders(
    widths: tuple[int, int], num_layers: tuple[int, int], vocab_size: int
) -> tuple[nn.Module, nn.Module]:
    configs = [
        CLIPTextConfig(
            vocab_size=vocab_size,
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=depth,
            num_attention_heads=width // 64,
            projection_dim=width,
        )
        for width, depth in zip(widths, num_layers, strict=True)
    ]
    return CLIPTextModel(configs[0]), CLIPTextModelWithProjection(configs[1])


@pytest.fixture(scope="module")
def base() -> Models:
    torch.manual_seed(0)
    unet = _make_unet(
        block_out_channels=(32, 32, 64),
        transformer_layers_per_block=(1, 1, 2),
        attention_head_dim=(1, 1, 2),
        cross_attention_dim=128,
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=64 + 6 * 8,
    )
    te1, te2 = _make_text_encoders((64, 64), (2, 2), vocab_size=100)
    return {"unet": unet.eval(), "text_encoder": te1.eval(), "text_encoder_2": te2.eval()}


def _make_names(models: Models) -> Names:
    return kohya_names(
        *(list_weighted_modules(models[component]) for component in ("unet", "text_encoder", "text_encoder_2"))
    )


@pytest.fixture(scope="module")
def names(base) -> Names:
    return _make_names(base)


def _attach_adapters(base: Models, alphas: dict[str, int]) -> Models:
    """Attach PEFT adapters of rank 4, some of a smaller rank, with alpha 2 unless `alphas` says
    otherwise, and random weights.
    """
    models = copy.deepcopy(base)
    generator = torch.Generator().manual_seed(1)
    for component, model in models.items():
        ranks = {"to_q": 2, "conv1": 3} if component == "unet" else {"mlp.fc1": 2}
        own_alphas = {name: alpha for name, alpha in alphas.items() if ("mlp" in name) != (component == "unet")}
        settings = LoraConfig(
            r=4, lora_alpha=2, target_modules=TARGETS[component], rank_pattern=ranks, alpha_pattern=own_alphas
        )
        inject_adapter_in_model(settings, model)
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05
    return models


def _read_adapter_weights(adapted: Models) -> Modules:
    """Read the adapters' weights directly from their layers."""
    return {
        key: LoraModule(
            layer.lora_A["default"].weight.data, layer.lora_B["default"].weight.data, float(layer.lora_alpha["default"])
        )
        for key, layer in _find_adapter_layers(adapted).items()
    }


def _find_adapter_layers(models: Models) -> dict[ModuleKey, Any]:
    return {
        module_key(component, path): layer
        for component, model in models.items()
        for path, layer in model.named_modules()
        if isinstance(layer, LoraLayer)
    }


@pytest.fixture(scope="module")
def adapted(base) -> Models:
    return _attach_adapters(base, {"to_k": 3, "mlp.fc1": 1})


@pytest.fixture(scope="module")
def trained(adapted) -> Modules:
    return _read_adapter_weights(adapted)


def assert_same_modules(actual: Modules, expected: Modules) -> None:
    assert set(actual) == set(expected)
    for key, module in expected.items():
        assert torch.equal(actual[key].down, module.down) and torch.equal(actual[key].up, module.up), key
        assert actual[key].alpha == module.alpha, key


# Names


@pytest.fixture(scope="module")
def full_depth() -> Models:
    with torch.device("meta"):
        unet = _make_unet(
            block_out_channels=(320, 640, 1280),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )
        te1, te2 = _make_text_encoders((768, 1280), (12, 32), vocab_size=49408)
    return {"unet": unet, "text_encoder": te1, "text_encoder_2": te2}


def test_names_of_the_real_sdxl_are_the_986_that_sd_scripts_and_comfyui_know(full_depth):
    # The digest is that of sd-scripts' own list: sorted lora_name of LoRANetwork([te1, te2],
    # SdxlUNet2DConditionModel()) (commit 48d368f, all on the meta device), joined by newlines.
    # tests/host/test_lora_names.py compares with ComfyUI's own key map.
    names = _make_names(full_depth)
    unet_linears = {
        path
        for path, module in full_depth["unet"].named_modules()
        if isinstance(module, nn.Linear) and ".attentions." in path
    }
    keys: list[ModuleKey] = [("unet", path) for path in unet_linears]
    keys += [key for key in names if key[0] != "unet" and (".self_attn." in key[1] or ".mlp." in key[1])]
    listed = sorted(names[key] for key in keys)
    assert len(unet_linears) == 722
    assert len(listed) == 722 + 72 + 192
    assert (
        hashlib.sha256("\n".join(listed).encode()).hexdigest()
        == "1063b91c0a4164d0d184003241903ddb45ea2789384d465a17bbc942e6c871ff"
    )


@pytest.mark.parametrize(
    ("key", "name"),
    [
        (("unet", "down_blocks.1.attentions.0.proj_in"), "lora_unet_input_blocks_4_1_proj_in"),
        (
            ("unet", "down_blocks.2.attentions.1.transformer_blocks.9.ff.net.0.proj"),
            "lora_unet_input_blocks_8_1_transformer_blocks_9_ff_net_0_proj",
        ),
        (
            ("unet", "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0"),
            "lora_unet_middle_block_1_transformer_blocks_0_attn1_to_out_0",
        ),
        (
            ("unet", "up_blocks.0.attentions.2.transformer_blocks.3.attn2.to_k"),
            "lora_unet_output_blocks_2_1_transformer_blocks_3_attn2_to_k",
        ),
        (("unet", "up_blocks.0.upsamplers.0.conv"), "lora_unet_output_blocks_2_2_conv"),
        (("unet", "down_blocks.0.resnets.1.time_emb_proj"), "lora_unet_input_blocks_2_0_emb_layers_1"),
        (
            ("text_encoder", "encoder.layers.0.self_attn.q_proj"),
            "lora_te1_text_model_encoder_layers_0_self_attn_q_proj",
        ),
        (("text_encoder_2", "encoder.layers.31.mlp.fc2"), "lora_te2_text_model_encoder_layers_31_mlp_fc2"),
        (("text_encoder_2", "text_projection"), "lora_te2_text_projection"),
    ],
)
def test_some_names_of_the_real_sdxl(full_depth, key, name):
    assert _make_names(full_depth)[key] == name


def test_text_encoder_names_do_not_depend_on_the_transformers_version(base):
    unet = list_weighted_modules(base["unet"])
    old, new = ["text_model.encoder.layers.0.mlp.fc1"], ["encoder.layers.0.mlp.fc1"]
    assert kohya_names(unet, old, new) == kohya_names(unet, new, old)


def test_attached_adapters_do_not_change_the_names(adapted, names):
    assert _make_names(adapted) == names


# Writing


def test_written_modules_are_read_back_equal_for_linear_and_convolution(tmp_path, trained, names):
    save_lora(tmp_path / "lora.safetensors", to_kohya(trained, names, dtype=torch.float32), {})
    assert_same_modules(read_lora(tmp_path / "lora.safetensors", names), trained)
    assert {module.down.ndim for module in trained.values()} == {2, 4}
    assert len({(module.rank, module.alpha) for module in trained.values()}) > 3


def test_tensors_are_contiguous_copies_in_the_requested_dtype(trained, names):
    key = ("unet", "conv_in")
    transposed = LoraModule(trained[key].down.transpose(2, 3), trained[key].up, 2.0)
    state_dict = to_kohya({key: transposed}, names, dtype=torch.bfloat16)
    assert list(state_dict) == [
        f"lora_unet_input_blocks_0_0.{part}" for part in ("lora_down.weight", "lora_up.weight", "alpha")
    ]
    assert all(tensor.is_contiguous() and tensor.dtype == torch.bfloat16 for tensor in state_dict.values())
    assert state_dict["lora_unet_input_blocks_0_0.alpha"].shape == ()
    float32 = to_kohya({key: transposed}, names, dtype=torch.float32)
    assert float32["lora_unet_input_blocks_0_0.lora_up.weight"].data_ptr() != transposed.up.data_ptr()


def test_an_alpha_that_the_dtype_would_round_is_kept_exact(trained, names):
    key = ("unet", "conv_in")
    state_dict = to_kohya({key: replace(trained[key], alpha=0.1)}, names, dtype=torch.bfloat16)
    torch.testing.assert_close(state_dict["lora_unet_input_blocks_0_0.alpha"].item(), 0.1, rtol=1e-7, atol=0)


def test_the_same_lora_gives_the_same_file_whatever_the_order(tmp_path, trained, names):
    metadata = {f"ss_{index}": str(index) for index in range(20)}
    save_lora(tmp_path / "a.safetensors", to_kohya(trained, names, dtype=torch.float16), metadata)
    shuffled = to_kohya(dict(reversed(trained.items())), names, dtype=torch.float16)
    save_lora(tmp_path / "b.safetensors", shuffled, dict(reversed(metadata.items())))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_module_that_the_model_lacks_is_not_written(trained, names):
    with pytest.raises(ValueError, match=r"1 LoRA modules have no place in the model: unet down_blocks\.9\.conv"):
        to_kohya({("unet", "down_blocks.9.conv"): trained["unet", "conv_in"]}, names, dtype=torch.float32)


def test_an_existing_file_is_never_overwritten(tmp_path):
    path = tmp_path / "lora.safetensors"
    path.write_bytes(b"precious")
    with pytest.raises(FileExistsError, match="exists already"):
        save_lora(path, {"a": torch.ones(1)}, {})
    assert path.read_bytes() == b"precious"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_no_file(tmp_path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="the disk is full") as caught:
        save_lora(tmp_path / "lora.safetensors", {"a": torch.ones(1)}, {})
    assert caught.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


# Reading. Each writer writes the trained modules in its own way.


def _collect_peft_tensors(adapted: Models) -> dict[str, dict[str, Tensor]]:
    return {component: get_peft_model_state_dict(model) for component, model in adapted.items()}


def _collect_peft_settings(adapted: Models) -> dict[str, dict[str, Any]]:
    settings: dict[str, dict[str, Any]] = {
        component: model.peft_config["default"].to_dict() for component, model in adapted.items()
    }
    return {
        component: {name: list(value) if isinstance(value, set) else value for name, value in part.items()}
        for component, part in settings.items()
    }


def _write_diffusers(folder: Path, adapted: Models, trained: Modules, names: Names) -> Path:
    layers: dict[str, Any] = {
        f"{component}_lora_layers": tensors for component, tensors in _collect_peft_tensors(adapted).items()
    }
    settings: dict[str, Any] = {
        f"{component}_lora_adapter_metadata": part for component, part in _collect_peft_settings(adapted).items()
    }
    StableDiffusionXLPipeline.save_lora_weights(folder, **layers, **settings)
    return folder / "pytorch_lora_weights.safetensors"


def _write_peft_with_prefixes(folder: Path, adapted: Models, trained: Modules, names: Names) -> Path:
    tensors = {
        f"{component}.base_model.model.{name}": tensor
        for component, part in _collect_peft_tensors(adapted).items()
        for name, tensor in part.items()
    }
    settings = {
        f"{component}.{name}": value
        for component, part in _collect_peft_settings(adapted).items()
        for name, value in part.items()
    }
    save_file(tensors, folder / "lora.safetensors", {"lora_adapter_metadata": json.dumps(settings)})
    return folder / "lora.safetensors"


def _write_comfyui(folder: Path, adapted: Models, trained: Modules, names: Names) -> Path:
    ldm = unet_to_ldm(list_weighted_modules(adapted["unet"]))
    prefixes = {
        "text_encoder": "text_encoders.clip_l.transformer.text_model.",
        "text_encoder_2": "text_encoders.clip_g.transformer.text_model.",
    }
    bases = {
        key: f"diffusion_model.{ldm[key[1]]}" if key[0] == "unet" else prefixes[key[0]] + key[1] for key in trained
    }
    return _write_parts(
        folder,
        trained,
        lambda key: (f"{bases[key]}.lora_down.weight", f"{bases[key]}.lora_up.weight", f"{bases[key]}.alpha"),
    )


def _write_kohya_diffusers_style(folder: Path, adapted: Models, trained: Modules, names: Names) -> Path:
    def parts(key: ModuleKey) -> tuple[str, str, str]:
        prefix = {
            "unet": "lora_unet_",
            "text_encoder": "lora_te1_text_model_",
            "text_encoder_2": "lora_te2_text_model_",
        }[key[0]]
        base = prefix + key[1].replace(".", "_")
        return f"{base}.lora_down.weight", f"{base}.lora_up.weight", f"{base}.alpha"

    return _write_parts(folder, trained, parts)


def _write_sd15_style_text_encoder(folder: Path, adapted: Models, trained: Modules, names: Names) -> Path:
    path = _write_kohya_diffusers_style(folder, adapted, trained, names)
    save_file({name.replace("lora_te1_", "lora_te_"): tensor for name, tensor in load_file(path).items()}, path)
    return path


def _write_diffusers_old(folder: Path, adapted: Models, trained: Modules, names: Names) -> Path:
    def parts(key: ModuleKey) -> tuple[str, str, str]:
        component, path = key
        if component != "unet":
            base = f"{component}.text_model.{path}"
            return f"{base}.lora_linear_layer.down.weight", f"{base}.lora_linear_layer.up.weight", f"{base}.alpha"
        head, _, tail = path.partition(".to_")
        if tail:
            base = f"unet.{head}.processor.to_{tail.removesuffix('.0')}_lora"
            return f"{base}.down.weight", f"{base}.up.weight", f"{base}.alpha"
        return f"unet.{path}.lora.down.weight", f"unet.{path}.lora.up.weight", f"unet.{path}.alpha"

    return _write_parts(folder, trained, parts)


def _write_parts(folder: Path, trained: Modules, parts: Callable[[ModuleKey], tuple[str, str, str]]) -> Path:
    tensors = {}
    for key, module in trained.items():
        tensors.update(zip(parts(key), (module.down, module.up, torch.tensor(module.alpha)), strict=True))
    save_file(tensors, folder / "lora.safetensors")
    return folder / "lora.safetensors"


WRITERS = [
    _write_diffusers,
    _write_peft_with_prefixes,
    _write_comfyui,
    _write_kohya_diffusers_style,
    _write_sd15_style_text_encoder,
    _write_diffusers_old,
]


@pytest.mark.parametrize("write", WRITERS, ids=[write.__name__.removeprefix("_write_") for write in WRITERS])
def test_every_spelling_gives_the_same_modules(tmp_path, write, adapted, trained, names):
    path = write(tmp_path, adapted, trained, names)
    assert_same_modules(read_lora(path, names), trained)


def test_the_unets_own_diffusers_file_is_read_without_prefix(tmp_path, base, adapted, trained, names):
    unet = adapted["unet"]
    unet.save_lora_adapter(tmp_path)
    expected = {key: module for key, module in trained.items() if key[0] == "unet"}
    assert_same_modules(read_lora(tmp_path / "pytorch_lora_weights.safetensors", names), expected)


def test_a_peft_folder_is_read_with_the_alpha_of_its_adapter_config(tmp_path, base, names):
    model = get_peft_model(
        copy.deepcopy(base["unet"]), LoraConfig(r=4, lora_alpha=1, target_modules=ATTENTION_MLP, use_rslora=True)
    )
    model.save_pretrained(str(tmp_path))
    modules = read_lora(tmp_path / "adapter_model.safetensors", names)
    assert {key[0] for key in modules} == {"unet"}
    # rsLoRA acts with alpha / sqrt(rank) = 1 / 2, which alpha = 2 at rank 4 gives too.
    assert {module.alpha for module in modules.values()} == {2.0}


def test_diffusers_kohya_file_is_read_with_alpha_equal_to_rank(tmp_path, adapted, trained, names):
    # convert_state_dict_to_kohya always writes alpha = rank, and leaves `text_model` out under
    # transformers 5.
    tensors = {
        f"{component}.{name}": tensor
        for component, part in _collect_peft_tensors(adapted).items()
        for name, tensor in part.items()
    }
    save_file(convert_state_dict_to_kohya(tensors), tmp_path / "lora.safetensors")
    expected = {key: replace(module, alpha=float(module.rank)) for key, module in trained.items()}
    assert_same_modules(read_lora(tmp_path / "lora.safetensors", names), expected)


def test_a_dict_of_tensors_is_read_like_the_file(trained, names):
    assert_same_modules(read_lora(to_kohya(trained, names, dtype=torch.float32), names), trained)


def test_without_alpha_the_rank_is_used(trained, names):
    state_dict = {
        name: tensor
        for name, tensor in to_kohya(trained, names, dtype=torch.float32).items()
        if not name.endswith(".alpha")
    }
    assert_same_modules(
        read_lora(state_dict, names),
        {key: replace(module, alpha=float(module.rank)) for key, module in trained.items()},
    )


def test_modules_come_in_the_order_of_the_model(trained, names):
    reversed_file = dict(reversed(to_kohya(trained, names, dtype=torch.float32).items()))
    assert list(read_lora(reversed_file, names)) == [key for key in names if key in trained]


# Refusing

NAME = "lora_unet_input_blocks_4_1_proj_in"


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("unet.conv_in.lora_magnitude_vector", "a DoRA in PEFT's names"),
        (f"{NAME}.hada_t1", "a LoHa with Tucker decomposition"),
        (f"{NAME}.lokr_t2", "a LoKr with Tucker decomposition"),
        (f"{NAME}.lora_mid.weight", "a LoCon with Tucker decomposition"),
        (f"{NAME}.oft_blocks", "an OFT"),
        (f"{NAME}.a1.weight", "a GLoRA"),
        (f"{NAME}.diff", "a LoRA mixed with whole weight differences"),
        (f"{NAME}.diff_b", "a LoRA mixed with whole weight differences"),
        ("unet.conv_in.lora_B.bias", "a LoRA with biases"),
    ],
)
def test_another_kind_of_adapter_is_refused_by_name(tmp_path, key, kind, names):
    save_file({f"{NAME}.alpha": torch.ones(()), key: torch.ones(2)}, tmp_path / "lora.safetensors")
    with pytest.raises(ValueError, match=f"this file is {kind}.*what is read is LoRA, and DoRA, LoHa and LoKr in"):
        read_lora(tmp_path / "lora.safetensors", names)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"hada_w1_a": (8, 2), "hada_w1_b": (2, 8), "hada_w2_a": (8, 2)}, "has no w2_b weight"),
        (
            {"hada_w1_a": (8, 2), "hada_w1_b": (2, 8), "hada_w2_a": (8, 3), "hada_w2_b": (3, 8)},
            r"w1_a \[8, 2\].*do not belong together",
        ),
        ({"lokr_w1": (2, 2)}, "has no w2_a and no w2_b weight"),
        ({"lokr_w1": (2, 2), "lokr_w2_a": (4, 2), "lokr_w2_b": (3, 4)}, "do not belong together"),
        ({"lokr_w1": (2, 2), "lokr_w2": (4, 4), "lokr_w2_a": (4, 2)}, "has w2 twice"),
        ({"lokr_w1": (2, 2), "lora_up.weight": (4, 2)}, "has up next to a lokr"),
        ({"dora_scale": (1, 8)}, "has no down and no up weight"),
        (
            {"lora_down.weight": (2, 8), "lora_up.weight": (8, 2), "dora_scale": (8, 8)},
            r"magnitude \[8, 8\] do not belong together",
        ),
    ],
)
def test_an_incomplete_or_contradicting_module_is_refused(tensors, message, names):
    with pytest.raises(ValueError, match=f"{NAME}.*{message}"):
        read_lora({f"{NAME}.{ending}": torch.ones(shape) for ending, shape in tensors.items()}, names)


@pytest.mark.parametrize("kind", ["lora", "dora", "loha", "lokr"])
def test_the_kind_is_told_by_the_names(kind):
    endings = {"lora": "lora_down.weight", "dora": "dora_scale", "loha": "hada_w2_b", "lokr": "lokr_w1"}
    assert find_kind({f"{NAME}.alpha": torch.ones(()), f"{NAME}.{endings[kind]}": torch.ones(2, 2)}) == kind


def _make_pair(base: str, width: int = 8) -> dict[str, Tensor]:
    return {f"{base}.lora_down.weight": torch.ones(2, width), f"{base}.lora_up.weight": torch.ones(8, 2)}


@pytest.mark.parametrize(
    ("tensors", "looks_like"),
    [
        (_make_pair("lora_unet_double_blocks_0_img_attn_qkv"), "Flux"),
        ({"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": torch.ones(2, 8)}, "Flux"),
        (_make_pair("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k", 768), "SD 1.x"),
        (_make_pair("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k", 1024), "SD 2.x"),
        (_make_pair("lora_unet_input_blocks_99_1_transformer_blocks_3_attn2_to_k", 2048), "SDXL of another layout"),
        (_make_pair("diffusion_model.blocks.0.self_attn.q"), "Wan"),
        (_make_pair("nobody_knows_me"), "another model"),
        (
            {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(2)},
            "holds no LoRA weights; is it a whole model",
        ),
        ({}, "holds no LoRA weights"),
    ],
)
def test_a_lora_for_another_model_is_refused_and_the_model_guessed(tensors, looks_like, names):
    with pytest.raises(ValueError, match=looks_like):
        read_lora(tensors, names)


def test_unmatched_keys_are_counted_and_the_first_are_named(tmp_path, trained, names):
    state_dict = to_kohya(trained, names, dtype=torch.float32)
    for index in range(4):
        state_dict |= _make_pair(f"lora_unet_nowhere_{index}")
    save_file(state_dict, tmp_path / "lora.safetensors")
    expected = (
        rf"lora.safetensors: 8 of {len(state_dict)} keys do not fit this model: "
        r"lora_unet_nowhere_0.lora_down.weight, lora_unet_nowhere_0.*, \.\.\."
    )
    with pytest.raises(ValueError, match=expected):
        read_lora(tmp_path / "lora.safetensors", names)


def test_a_text_encoder_module_without_prefix_is_refused_because_it_could_be_either(names):
    with pytest.raises(ValueError, match="2 of 2 keys do not fit"):
        read_lora(_make_pair("base_model.model.text_model.encoder.layers.0.mlp.fc1"), names)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"lora_up.weight": torch.ones(8, 2, dtype=torch.bool)}, "up: weights of type bool"),
        ({"lora_down.weight": torch.ones(2, 8, dtype=torch.int8)}, "down: weights of type int8"),
        ({"alpha": torch.ones(3)}, "alpha must be one number"),
        ({"alpha": torch.tensor(True)}, "alpha must be one number"),
        ({"lora_down.weight": torch.ones(0, 8), "lora_up.weight": torch.ones(8, 0)}, "do not belong together"),
    ],
)
def test_weights_that_are_no_numbers_are_refused(changed, message, names):
    tensors = _make_pair(NAME) | {f"{NAME}.{part}": tensor for part, tensor in changed.items()}
    with pytest.raises(ValueError, match=f"{NAME}.*{message}"):
        read_lora(tensors, names)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite_are_named(value):
    tensors = _make_pair(NAME)
    tensors[f"{NAME}.lora_up.weight"][3, 1] = value
    with pytest.raises(ValueError, match=f"x: 1 of 2 tensors hold values that are not finite: {NAME}"):
        check_tensors(tensors, "x")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float64])
def test_every_floating_point_type_is_read_and_can_be_asked_whether_it_is_finite(dtype, names):
    tensors = {name: tensor.to(dtype) for name, tensor in _make_pair(NAME).items()}
    check_tensors(tensors, "x")
    assert len(read_lora(tensors, names)) == 1


PEFT_NAME = "unet.base_model.model.down_blocks.1.attentions.0.proj_in"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("{", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("[]", "is not a JSON object"),
        ('{"unet.lora_alpha": "4"}', "lora_alpha in the file's settings must be a finite number, got '4'"),
        ('{"unet.lora_alpha": true}', "must be a finite number"),
        ('{"unet.lora_alpha": NaN}', "must be a finite number"),
        ('{"unet.alpha_pattern": ["x"]}', "alpha_pattern in the file's settings must be an object"),
        ('{"unet.alpha_pattern": {"(.*)*(.*)*(.*)*(.*)*!": 3}}', "is a regular expression, which is not read"),
    ],
)
def test_odd_settings_in_the_header_are_an_error_and_no_expression_of_a_file_runs(tmp_path, settings, message, names):
    tensors = {f"{PEFT_NAME}.lora_A.weight": torch.ones(2, 32), f"{PEFT_NAME}.lora_B.weight": torch.ones(32, 2)}
    save_file(tensors, tmp_path / "lora.safetensors", {"lora_adapter_metadata": settings})
    with pytest.raises(ValueError, match=re.escape(message)):
        read_lora(tmp_path / "lora.safetensors", names)


@pytest.mark.parametrize("pattern", ["proj_in", "attentions.0.proj_in", r".*\.proj_in", r"attentions\.0\.proj_in"])
def test_the_patterns_that_programs_write_are_read_as_peft_reads_them(tmp_path, pattern, names):
    tensors = {f"{PEFT_NAME}.lora_A.weight": torch.ones(2, 32), f"{PEFT_NAME}.lora_B.weight": torch.ones(32, 2)}
    settings = json.dumps({"unet.lora_alpha": 1, "unet.alpha_pattern": {"xproj_in": 9, "oj_in": 8, pattern: 3}})
    save_file(tensors, tmp_path / "lora.safetensors", {"lora_adapter_metadata": settings})
    (module,) = read_lora(tmp_path / "lora.safetensors", names).values()
    assert module.alpha == 3


def test_what_the_model_has_no_use_for_is_passed_over_only_when_asked(names):
    extra = {**_make_pair("lora_te1_text_projection"), "bundle_emb.zwx.clip_l": torch.ones(2)}
    passed_over: list[str] = []
    modules = read_lora({**_make_pair(NAME), **extra}, names, pass_over=passed_over.extend)
    assert [names[key] for key in modules] == [NAME] and passed_over == list(extra)
    with pytest.raises(ValueError, match="3 of 5 keys do not fit"):
        read_lora({**_make_pair(NAME), **extra}, names)
    with pytest.raises(ValueError, match="2 of 4 keys do not fit this model: lora_unet_nowhere"):
        read_lora({**_make_pair(NAME), **_make_pair("lora_unet_nowhere")}, names, pass_over=passed_over.extend)


def test_a_name_as_long_as_a_book_is_refused_at_once(names):
    with pytest.raises(ValueError, match="a tensor has a name of 100005 characters"):
        read_lora({"attn2" * 20_001: torch.ones(1)}, names)


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".ckpt", ".PT", ""])
def test_a_pickle_is_refused_by_its_name_and_never_opened(tmp_path, suffix, names):
    path = tmp_path / f"lora{suffix}"
    torch.save({}, path)
    with pytest.raises(ValueError, match=r"only .safetensors files are read.*pickle"):
        read_lora(path, names)


@pytest.mark.parametrize("size", [0, 5, 100, -1])
def test_a_truncated_file_is_refused(tmp_path, size, trained, names):
    path = tmp_path / "lora.safetensors"
    save_file(to_kohya(trained, names, dtype=torch.float32), path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"not a whole .safetensors file.*Download or copy it again"):
        read_lora(path, names)


def test_a_missing_file_is_named(tmp_path, names):
    with pytest.raises(ValueError, match=r"gone.safetensors: there is no such file"):
        read_lora(tmp_path / "gone.safetensors", names)


def test_half_a_module_is_refused(names):
    with pytest.raises(ValueError, match=f"{NAME} has no up weight"):
        read_lora({f"{NAME}.lora_down.weight": torch.ones(2, 8)}, names)


def test_factors_that_do_not_fit_together_are_refused(names):
    with pytest.raises(ValueError, match=r"down \[2, 8\] and up \[8, 3\] do not belong together"):
        read_lora({f"{NAME}.lora_down.weight": torch.ones(2, 8), f"{NAME}.lora_up.weight": torch.ones(8, 3)}, names)


def test_a_module_given_under_two_names_is_refused(names):
    with pytest.raises(ValueError, match=f"{NAME} appears twice"):
        read_lora(_make_pair(NAME) | _make_pair("lora_unet_down_blocks_1_attentions_0_proj_in"), names)


# Verifying


def _save(folder: Path, modules: Modules, names: Names) -> Path:
    save_lora(folder / "lora.safetensors", to_kohya(modules, names, dtype=torch.float32), {})
    return folder / "lora.safetensors"


def test_verification_counts_what_loads(tmp_path, trained, names):
    verification = verify_lora(_save(tmp_path, trained, names), names, expected=trained)
    assert verification.text() == f"{len(trained)}/{len(trained)} modules load"
    squares = sum(module.up.double().square().sum() for module in trained.values())
    torch.testing.assert_close(verification.learned_norm, float(squares**0.5), rtol=1e-12, atol=0)


def test_by_default_verification_expects_all_modules(tmp_path, trained, names):
    path = _save(tmp_path, trained, names)
    fewer = ModuleNames(
        {key: names[key] for key in trained}, names.spellings.items(), main_component=names.main_component
    )
    assert verify_lora(path, fewer).num_expected == len(trained)
    with pytest.raises(RuntimeError, match="modules are missing"):
        verify_lora(path, names)


@pytest.mark.parametrize("part", ["down", "up"])
def test_verification_fails_on_nan(tmp_path, part, trained, names):
    key = ("unet", "conv_in")
    broken = replace(trained[key], **{part: torch.full_like(getattr(trained[key], part), torch.nan)})
    path = _save(tmp_path, trained | {key: broken}, names)
    with pytest.raises(
        RuntimeError, match=f"1 of {len(trained)} modules hold values that are not finite: lora_unet_input_blocks_0_0"
    ):
        verify_lora(path, names, expected=trained)


def test_verification_fails_when_nothing_was_learned(tmp_path, trained, names):
    untouched = {key: replace(module, up=torch.zeros_like(module.up)) for key, module in trained.items()}
    with pytest.raises(RuntimeError, match="all up weights are zero"):
        verify_lora(_save(tmp_path, untouched, names), names, expected=trained)


def test_verification_fails_on_a_missing_or_surplus_module(tmp_path, trained, names):
    fewer = {key: module for key, module in trained.items() if key != ("unet", "conv_in")}
    path = _save(tmp_path, fewer, names)
    with pytest.raises(RuntimeError, match=f"1 of {len(trained)} modules are missing: unet conv_in"):
        verify_lora(path, names, expected=trained)
    with pytest.raises(RuntimeError, match="1 modules were not trained: "):
        verify_lora(path, names, expected=list(fewer)[1:])


def test_verification_fails_on_a_file_that_cannot_be_read(tmp_path, names):
    (tmp_path / "lora.safetensors").write_bytes(b"")
    with pytest.raises(RuntimeError, match="the saved LoRA cannot be loaded"):
        verify_lora(tmp_path / "lora.safetensors", names, expected=[])


# The real loader


def _predict(models: Models) -> dict[str, Tensor]:
    """Run fixed inputs through the UNet and both text encoders."""
    config = models["unet"].config
    pooled_width = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    generator = torch.Generator().manual_seed(3)
    token_ids = torch.randint(0, 99, (2, 7), generator=generator)
    sample, states = (
        torch.randn(2, 4, 8, 8, generator=generator),
        torch.randn(2, 7, config.cross_attention_dim, generator=generator),
    )
    conditions = {
        "text_embeds": torch.randn(2, pooled_width, generator=generator),
        "time_ids": torch.rand(2, 6, generator=generator) * 100,
    }
    with torch.no_grad():
        return {
            "unet": models["unet"](sample, 500, states, added_cond_kwargs=conditions).sample,
            "text_encoder": models["text_encoder"](token_ids).last_hidden_state,
            "text_encoder_2": models["text_encoder_2"](token_ids).text_embeds,
        }


@pytest.mark.parametrize("attention_at_all_levels", [False, True], ids=["sdxl", "embedded_base"])
def test_our_file_loads_completely_in_diffusers_and_acts_at_the_trained_strength(
    tmp_path, base, attention_at_all_levels
):
    if attention_at_all_levels:
        torch.manual_seed(0)
        base = {**base, "unet": build_unet().eval()}
    names = _make_names(base)
    # One alpha for all modules, as in every run: diffusers 0.42 loses alphas that differ from the
    # rest.
    adapted = _attach_adapters(base, alphas={})
    trained = _read_adapter_weights(adapted)
    models = copy.deepcopy(base)
    parts = {"vae": None, "tokenizer": None, "tokenizer_2": None, "scheduler": EulerDiscreteScheduler(), **models}
    pipeline = StableDiffusionXLPipeline(**parts, force_zeros_for_empty_prompt=False)
    pipeline.load_lora_weights(tmp_path, weight_name=_save(tmp_path, trained, names).name)
    assert set(_find_adapter_layers(models)) == set(trained)
    ours, theirs, without = _predict(adapted), _predict(models), _predict(base)
    for component in ours:
        torch.testing.assert_close(theirs[component], ours[component], rtol=0, atol=1e-5)
        effect = (ours[component] - without[component]).norm()
        assert effect > 0.01
        torch.testing.assert_close(
            (theirs[component] - without[component]).norm() / effect, torch.tensor(1.0), rtol=1e-4, atol=0
        )
