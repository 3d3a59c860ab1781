"""The names of SDXL's weights in both layouts and the configs inferred from them, at full size on
the meta device.
"""

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from trainers.embedded_base.sdxl import architecture
from trainers.sdxl.model.inspect_weights import text_encoder_config, unet_config, vae_config
from trainers.sdxl.model.layout import (
    bare_text_name,
    ldm_to_text_encoder_2,
    ldm_to_unet,
    ldm_to_vae,
    modern_vae_names,
    text_encoder_2_to_ldm,
    text_encoder_to_ldm,
    unet_to_ldm,
    vae_to_ldm,
)

Shapes = dict[str, tuple[int, ...]]

# From the published unet/config.json of stabilityai/stable-diffusion-xl-base-1.0: everything about
# the architecture.
SDXL_BASE: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "reverse_transformer_layers_per_block": None,
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SSD_1B = SDXL_BASE | {
    "mid_block_type": "UNetMidBlock2D",
    "transformer_layers_per_block": (1, (2, 2), (4, 4)),
    "reverse_transformer_layers_per_block": ((4, 4, 10), (2, 1, 1), 1),
}
VEGA = SDXL_BASE | {"mid_block_type": "UNetMidBlock2D", "transformer_layers_per_block": (1, 1, 2)}
KOALA_1B = SDXL_BASE | {"layers_per_block": 1, "transformer_layers_per_block": (1, 2, 6)}
KOALA_700M = SDXL_BASE | {"layers_per_block": 1, "transformer_layers_per_block": (1, 2, 5), "mid_block_type": None}
NO_ATTENTION_ON_THE_WAY_UP = KOALA_700M | {"up_block_types": ("UpBlock2D",) * 3}

UNETS = [
    pytest.param(SDXL_BASE, 1680, 2_567_463_684, id="SDXL base"),
    pytest.param(SSD_1B, 944, 1_331_334_404, id="SSD-1B"),
    pytest.param(VEGA, 564, 745_225_604, id="Segmind Vega"),
    pytest.param(KOALA_1B, 790, 1_161_184_324, id="KOALA-1B"),
    pytest.param(KOALA_700M, 584, 782_822_724, id="KOALA-700M"),
    pytest.param(NO_ATTENTION_ON_THE_WAY_UP, 280, None, id="no attention on the way up"),
]


def make_unet_shapes(config: dict[str, Any]) -> Shapes:
    with torch.device("meta"):
        return get_shapes(UNet2DConditionModel(**config))


@pytest.fixture(scope="module")
def base_shapes() -> Shapes:
    return make_unet_shapes(SDXL_BASE)


def get_shapes(module: torch.nn.Module) -> Shapes:
    return {bare_text_name(name): tuple(tensor.shape) for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize(("config", "num_keys", "num_parameters"), UNETS)
def test_every_unet_survives_the_round_trip_to_ldm_names(
    config: dict[str, Any], num_keys: int, num_parameters: int | None
) -> None:
    shapes = make_unet_shapes(config)
    to_ldm = unet_to_ldm(shapes)
    assert len(shapes) == len(set(to_ldm.values())) == num_keys
    ldm_shapes = {to_ldm[name]: shape for name, shape in shapes.items()}
    from_ldm = ldm_to_unet(reversed(list(ldm_shapes)))
    restored = {from_ldm[name]: shape for name, shape in ldm_shapes.items()}
    assert restored == shapes
    assert make_unet_shapes(unet_config(restored)) == shapes
    if num_parameters:
        assert sum(torch.Size(shape).numel() for shape in restored.values()) == num_parameters


def test_the_inferred_config_of_sdxl_base_is_the_published_one(base_shapes: Shapes) -> None:
    assert unet_config(base_shapes) == SDXL_BASE


def test_different_depths_within_one_block_are_inferred() -> None:
    config = unet_config(make_unet_shapes(SSD_1B))
    assert config["transformer_layers_per_block"] == (1, 2, 4)
    assert config["reverse_transformer_layers_per_block"] == ((4, 4, 10), (2, 1, 1), 1)
    assert config["mid_block_type"] == "UNetMidBlock2D"


def test_the_inferred_config_of_the_embedded_base_is_its_own() -> None:
    with torch.device("meta"):
        unet, vae = architecture.build_unet(), architecture.build_vae()
    assert unet_config(get_shapes(unet)).items() <= {name: unet.config[name] for name in unet.config}.items()
    stated = {name: value for name, value in vae_config(get_shapes(vae)).items() if name != "sample_size"}
    assert stated.items() <= {name: vae.config[name] for name in vae.config}.items()


@pytest.mark.parametrize(
    ("diffusers_name", "ldm_name"),
    [
        ("conv_in.weight", "input_blocks.0.0.weight"),
        ("time_embedding.linear_2.bias", "time_embed.2.bias"),
        ("add_embedding.linear_1.weight", "label_emb.0.0.weight"),
        ("down_blocks.0.resnets.1.conv1.weight", "input_blocks.2.0.in_layers.2.weight"),
        ("down_blocks.0.downsamplers.0.conv.weight", "input_blocks.3.0.op.weight"),
        ("down_blocks.1.resnets.0.conv_shortcut.weight", "input_blocks.4.0.skip_connection.weight"),
        ("down_blocks.1.attentions.0.proj_in.weight", "input_blocks.4.1.proj_in.weight"),
        (
            "down_blocks.2.attentions.1.transformer_blocks.9.attn2.to_k.weight",
            "input_blocks.8.1.transformer_blocks.9.attn2.to_k.weight",
        ),
        ("mid_block.resnets.1.time_emb_proj.weight", "middle_block.2.emb_layers.1.weight"),
        ("mid_block.attentions.0.norm.weight", "middle_block.1.norm.weight"),
        ("up_blocks.0.attentions.2.proj_out.bias", "output_blocks.2.1.proj_out.bias"),
        ("up_blocks.0.upsamplers.0.conv.weight", "output_blocks.2.2.conv.weight"),
        ("up_blocks.1.upsamplers.0.conv.bias", "output_blocks.5.2.conv.bias"),
        ("up_blocks.2.resnets.2.norm2.weight", "output_blocks.8.0.out_layers.0.weight"),
        ("up_blocks.2.resnets.2.conv2.weight", "output_blocks.8.0.out_layers.3.weight"),
        ("conv_norm_out.weight", "out.0.weight"),
        ("conv_out.bias", "out.2.bias"),
    ],
)
def test_known_names_of_sdxl_base(base_shapes: Shapes, diffusers_name: str, ldm_name: str) -> None:
    assert unet_to_ldm(base_shapes)[diffusers_name] == ldm_name


def test_an_upsampler_after_a_block_without_attention_comes_second() -> None:
    assert (
        unet_to_ldm(make_unet_shapes(NO_ATTENTION_ON_THE_WAY_UP))["up_blocks.0.upsamplers.0.conv.weight"]
        == "output_blocks.1.1.conv.weight"
    )


def test_module_names_map_like_the_names_of_their_weights(base_shapes: Shapes) -> None:
    names = [name.removesuffix(".weight") for name in base_shapes if name.endswith(".weight")]
    mapped = unet_to_ldm(names)
    assert {f"{name}.weight": f"{ldm}.weight" for name, ldm in mapped.items()} == unet_to_ldm(
        f"{name}.weight" for name in names
    )


@pytest.mark.parametrize(
    "convert", [unet_to_ldm, ldm_to_unet, vae_to_ldm, ldm_to_vae, text_encoder_2_to_ldm, ldm_to_text_encoder_2]
)
def test_an_unknown_name_is_an_error(convert: Any) -> None:
    with pytest.raises(ValueError, match=r"SDXL has no place for double_blocks\.0\.img_attn\.qkv\.weight"):
        convert(["double_blocks.0.img_attn.qkv.weight"])


@pytest.mark.parametrize(("widths", "num_layers"), [((128, 256, 512, 512), 2), ((32, 32, 64, 64), 1), ((32, 64), 3)])
def test_every_vae_survives_the_round_trip_to_ldm_names(widths: tuple[int, ...], num_layers: int) -> None:
    vae: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * len(widths),
        "up_block_types": ("UpDecoderBlock2D",) * len(widths),
    }
    vae["block_out_channels"] = widths
    with torch.device("meta"):
        shapes = get_shapes(AutoencoderKL(layers_per_block=num_layers, latent_channels=4, **vae))
    to_ldm = vae_to_ldm(shapes)
    assert len(set(to_ldm.values())) == len(shapes)
    from_ldm = ldm_to_vae(to_ldm.values())
    assert {from_ldm[to_ldm[name]]: shape for name, shape in shapes.items()} == shapes
    with torch.device("meta"):
        assert get_shapes(AutoencoderKL(**vae_config(shapes))) == shapes


@pytest.mark.parametrize(
    ("diffusers_name", "ldm_name"),
    [
        ("encoder.down_blocks.0.downsamplers.0.conv.weight", "encoder.down.0.downsample.conv.weight"),
        ("encoder.down_blocks.2.resnets.0.conv_shortcut.weight", "encoder.down.2.block.0.nin_shortcut.weight"),
        ("encoder.mid_block.attentions.0.to_out.0.weight", "encoder.mid.attn_1.proj_out.weight"),
        ("decoder.mid_block.attentions.0.group_norm.bias", "decoder.mid.attn_1.norm.bias"),
        ("decoder.mid_block.resnets.1.norm2.bias", "decoder.mid.block_2.norm2.bias"),
        ("decoder.up_blocks.0.resnets.2.conv1.weight", "decoder.up.3.block.2.conv1.weight"),
        ("decoder.up_blocks.2.upsamplers.0.conv.weight", "decoder.up.1.upsample.conv.weight"),
        ("encoder.conv_norm_out.weight", "encoder.norm_out.weight"),
        ("post_quant_conv.weight", "post_quant_conv.weight"),
    ],
)
def test_known_names_of_the_vae(diffusers_name: str, ldm_name: str) -> None:
    vae: dict[str, Any] = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae["block_out_channels"] = (128, 256, 512, 512)
    with torch.device("meta"):
        names = AutoencoderKL(layers_per_block=2, **vae).state_dict()
    assert vae_to_ldm(names)[diffusers_name] == ldm_name


def test_ldm_numbers_the_levels_of_the_decoder_from_the_finest() -> None:
    names = {
        "decoder.up.0.block.0.conv1": "decoder.up_blocks.1.resnets.0.conv1",
        "decoder.up.0.block.1.conv1": "decoder.up_blocks.1.resnets.1.conv1",
        "decoder.up.1.block.0.conv1": "decoder.up_blocks.0.resnets.0.conv1",
    }
    assert ldm_to_vae(names) == names


def test_old_diffusers_names_of_the_vae_attention_are_updated() -> None:
    old = [
        "encoder.mid_block.attentions.0.query.weight",
        "decoder.mid_block.attentions.0.proj_attn.bias",
        "encoder.conv_in.weight",
    ]
    new = [
        "encoder.mid_block.attentions.0.to_q.weight",
        "decoder.mid_block.attentions.0.to_out.0.bias",
        "encoder.conv_in.weight",
    ]
    assert list(modern_vae_names(old).values()) == new


def test_text_encoder_2_of_sdxl_maps_to_open_clip_and_back() -> None:
    config = CLIPTextConfig(
        hidden_size=1280,
        intermediate_size=5120,
        num_hidden_layers=32,
        num_attention_heads=20,
        projection_dim=1280,
        hidden_act="gelu",
    )
    with torch.device("meta"):
        shapes = get_shapes(CLIPTextModelWithProjection(config))
    assert len(shapes) == 517
    to_ldm = text_encoder_2_to_ldm(shapes)
    assert to_ldm["encoder.layers.31.mlp.fc1.weight"] == "transformer.resblocks.31.mlp.c_fc.weight"
    assert to_ldm["embeddings.position_embedding.weight"] == "positional_embedding"
    from_ldm = ldm_to_text_encoder_2(dict.fromkeys(to_ldm.values()))
    assert sorted(name for names in from_ldm.values() for name in names) == sorted(shapes)
    heads = [f"encoder.layers.0.self_attn.{matrix}_proj.bias" for matrix in "qkv"]
    assert from_ldm["transformer.resblocks.0.attn.in_proj_bias"] == heads
    stated = {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 20,
        "projection_dim": 1280,
    }
    assert (stated | {"hidden_act": "gelu", "eos_token_id": 49407, "pad_token_id": 0}).items() <= text_encoder_config(
        shapes, "text_encoder_2"
    ).items()


def test_text_encoder_1_keeps_its_names_below_text_model() -> None:
    assert text_encoder_to_ldm(["final_layer_norm.weight"]) == {
        "final_layer_norm.weight": "text_model.final_layer_norm.weight"
    }
    assert text_encoder_to_ldm(["text_model.final_layer_norm.weight"]) == {
        "text_model.final_layer_norm.weight": "text_model.final_layer_norm.weight"
    }
