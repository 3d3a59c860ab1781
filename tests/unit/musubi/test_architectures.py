"""The table of architectures: the values for MusubiConfig's open settings, and the names of the
modules in a file for ComfyUI.
"""

from dataclasses import fields, replace

import pytest

from trainers.config import check_ranges
from trainers.musubi.architectures import ARCHITECTURES, find_architecture
from trainers.musubi.config import MusubiConfig, resolve

# Counted in Musubi v0.3.4's own networks on its full-size models (on the meta device), under the
# names of the file for ComfyUI. N counts from 0.
FLUX_BLOCKS = {
    "lora_unet_double_blocks_N_img_attn_qkv": 19,
    "lora_unet_double_blocks_N_img_attn_proj": 19,
    "lora_unet_double_blocks_N_img_mlp_0": 19,
    "lora_unet_double_blocks_N_img_mlp_2": 19,
    "lora_unet_double_blocks_N_txt_attn_qkv": 19,
    "lora_unet_double_blocks_N_txt_attn_proj": 19,
    "lora_unet_double_blocks_N_txt_mlp_0": 19,
    "lora_unet_double_blocks_N_txt_mlp_2": 19,
    "lora_unet_single_blocks_N_linear1": 38,
    "lora_unet_single_blocks_N_linear2": 38,
}
QWEN = [
    f"attn_{part}"
    for part in ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "to_out_0", "to_add_out")
] + [f"{stream}_{part}" for stream in ("img", "txt") for part in ("mlp_net_0_proj", "mlp_net_2", "mod_1")]
QWEN_MODULES = {f"lora_unet_transformer_blocks_N_{part}": 60 for part in QWEN}
KREA_BLOCK = ["attn_wq", "attn_wk", "attn_wv", "attn_wo", "attn_gate", "mlp_down", "mlp_gate", "mlp_up"]
KREA_SINGLE = ["first", "last_linear", "tmlp_0", "tmlp_2", "tproj_1", "txtfusion_projector", "txtmlp_1", "txtmlp_3"]
LANGUAGE = [
    "self_attn_q_proj",
    "self_attn_k_proj",
    "self_attn_v_proj",
    "self_attn_o_proj",
    "mlp_down_proj",
    "mlp_gate_proj",
    "mlp_up_proj",
]
KANDINSKY = ["to_query", "to_key", "to_value", "out_layer"]
MODULES: dict[str, dict[str, int]] = {
    "z-image": {
        **{f"diffusion_model.layers.N.attention.{part}": 30 for part in ("to_q", "to_k", "to_v", "to_out.0")},
        **{f"diffusion_model.layers.N.feed_forward.{part}": 30 for part in ("w1", "w2", "w3")},
    },
    "krea-2": {
        **{f"lora_unet_blocks_N_{part}": 28 for part in KREA_BLOCK},
        **{
            f"lora_unet_txtfusion_{kind}_blocks_N_{part}": 2 for kind in ("layerwise", "refiner") for part in KREA_BLOCK
        },
        **{f"lora_unet_{part}": 1 for part in KREA_SINGLE},
    },
    "qwen-image": QWEN_MODULES,
    "qwen-image-edit": QWEN_MODULES,
    "flux-2": FLUX_BLOCKS,
    "flux-kontext": FLUX_BLOCKS,
    "hidream-o1": {
        **{f"lora_unet_language_model_layers_N_{part}": 36 for part in LANGUAGE},
        **{
            f"lora_unet_visual_blocks_N_{part}": 27
            for part in ("attn_qkv", "attn_proj", "mlp_linear_fc1", "mlp_linear_fc2")
        },
        **{
            f"lora_unet_{part}": 1
            for part in ("x_embedder_proj1", "x_embedder_proj2", "final_layer2_linear", "visual_merger_linear_fc1")
        },
    },
    "ideogram-4": {
        **{f"lora_unet_layers_N_attention_{part}": 34 for part in ("qkv", "o")},
        **{f"lora_unet_layers_N_feed_forward_{part}": 34 for part in ("w1", "w2", "w3")},
    },
    "wan": {
        **{f"lora_unet_blocks_N_{kind}_attn_{part}": 40 for kind in ("self", "cross") for part in "qkvo"},
        **{f"lora_unet_blocks_N_ffn_{part}": 40 for part in "02"},
    },
    "hunyuan-video": {
        **{
            f"diffusion_model.double_blocks.N.{stream}_{part}": 20
            for stream in ("img", "txt")
            for part in ("attn_qkv", "attn_proj", "mlp.fc1", "mlp.fc2")
        },
        **{f"diffusion_model.single_blocks.N.{part}": 40 for part in ("linear1", "linear2")},
    },
    "hunyuan-video-1.5": {
        f"lora_unet_double_blocks_N_{stream}_{part}": 54
        for stream in ("img", "txt")
        for part in ("attn_qkv", "attn_proj", "mlp_0", "mlp_2", "mod_lin")
    },
    "kandinsky-5": {
        **{
            f"lora_unet_visual_transformer_blocks_N_{kind}_attention_{part}": 60
            for kind in ("self", "cross")
            for part in KANDINSKY
        },
        **{f"lora_unet_visual_transformer_blocks_N_feed_forward_{part}": 60 for part in ("in_layer", "out_layer")},
        **{f"lora_unet_text_transformer_blocks_N_self_attention_{part}": 4 for part in KANDINSKY},
        **{f"lora_unet_text_transformer_blocks_N_feed_forward_{part}": 4 for part in ("in_layer", "out_layer")},
    },
}
TRAINED_AS_ONE = ("hunyuan-video-1.5",)  # its conversion joins q, k and v: 756 modules become 540


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_every_module_in_the_file_for_comfyui_fits_its_row(architecture):
    templates = MODULES[architecture.name]
    names = [template.replace("N", str(number), 1) for template, count in templates.items() for number in range(count)]
    assert all(architecture.fits(name) for name in names)
    if architecture.num_modules and architecture.name not in TRAINED_AS_ONE:
        assert len(names) == architecture.num_modules


@pytest.mark.parametrize("name", [name for name, row in ARCHITECTURES.items() if row.conversion != "none"])
def test_names_from_before_the_conversion_do_not_fit(name):
    raw = {
        "z-image": "lora_unet_layers_0_attention_to_q",
        "hunyuan-video": "lora_unet_double_blocks_0_img_mlp_fc1",
        "hunyuan-video-1.5": "lora_unet_double_blocks_0_img_attn_q",
        "hidream-o1": "lora_unet_model_language_model_layers_0_mlp_up_proj",
    }
    assert not ARCHITECTURES[name].fits(raw[name])


def test_the_most_used_architectures_come_first():
    assert list(ARCHITECTURES)[:5] == ["z-image", "krea-2", "qwen-image", "qwen-image-edit", "flux-2"]
    assert len(ARCHITECTURES) == 12


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_every_row_fills_in_all_open_values(architecture):
    resolved = resolve(MusubiConfig(), architecture)
    check_ranges(resolved)
    assert "auto" not in [getattr(resolved, spec.name) for spec in fields(resolved)]
    assert resolved.rank > 0 and resolved.alpha == resolved.rank and resolved.learning_rate > 0
    assert resolved.resolution % architecture.resolution_step == 0 and resolved.resolution > 0
    assert resolved.timestep_sampling != "shift" or resolved.discrete_flow_shift > 0
    assert set(architecture.defaults) <= {spec.name for spec in fields(MusubiConfig)}


def test_values_that_are_set_are_kept():
    config = MusubiConfig(
        rank=8, alpha=4.0, learning_rate=1e-5, resolution=512, timestep_sampling="sigmoid", mixed_precision="fp16"
    )
    resolved = resolve(config, ARCHITECTURES["z-image"])
    assert resolved == replace(config, discrete_flow_shift=2.0)


def test_switches_that_are_off_are_not_open():
    resolved = resolve(MusubiConfig(gradient_checkpointing=False, save_state=False), ARCHITECTURES["qwen-image"])
    assert resolved.gradient_checkpointing is False and resolved.save_state is False
    assert resolved.blocks_to_swap == 0 and resolved.sample_every_n_steps == 0


@pytest.mark.parametrize(
    ("name", "dit_dtype", "precision"),
    [("wan", "F16", "fp16"), ("wan", "BF16", "bf16"), ("hunyuan-video-1.5", "F16", "fp16"), ("z-image", "F16", "bf16")],
)
def test_auto_precision_follows_the_file_if_the_architecture_needs_that(name, dit_dtype, precision):
    assert resolve(MusubiConfig(), ARCHITECTURES[name], dit_dtype=dit_dtype).mixed_precision == precision


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_rows_are_complete(architecture):
    for option in architecture.options:
        assert option.default in option.choices
        assert len(set(option.choices)) == len(option.choices)
    for file in architecture.models:
        assert file.help.endswith(".") and file.flag.startswith("--") and file.stages
        if file.only_with:
            name, value = file.only_with
            assert value in next(option for option in architecture.options if option.name == name).choices
    assert architecture.models[0].name == "dit"
    assert architecture.list_tokenizers({}), "every architecture downloads at least a tokenizer"
    assert 0 < architecture.find_swap_limit({}) <= architecture.max_blocks_to_swap


def test_the_version_decides_the_limits():
    flux = ARCHITECTURES["flux-2"]
    assert [
        flux.find_swap_limit({"model_version": version}) for version in ("klein-base-4b", "klein-base-9b", "dev")
    ] == [
        13,
        16,
        29,
    ]
    assert flux.has_fp8_text_encoder({}) and not flux.has_fp8_text_encoder({"model_version": "dev"})
    assert ARCHITECTURES["wan"].find_swap_limit({"task": "t2v-1.3B"}) == 29
    edit = ARCHITECTURES["qwen-image-edit"]
    assert (edit.find_control_limit({"model_version": "edit"}), edit.find_control_limit({})) == (1, 0)
    assert ARCHITECTURES["flux-kontext"].find_control_limit({}) == 1


def test_the_error_for_an_unknown_architecture_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"architecture must be one of z-image, krea-2, .*; got 'sdxl'"):
        find_architecture("sdxl")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": -1}, "rank must be between 0 and 1024"),
        ({"save_every_n_steps": 0}, "save_every_n_steps must be between 1 and"),
        ({"optimizer": "Lion"}, "optimizer must be one of AdamW8bit, AdamW, Adafactor, Prodigy"),
        ({"extra_resolutions": "512, x"}, "extra_resolutions must be numbers separated by commas"),
        ({"resolution": 512, "extra_resolutions": "512"}, "differ from each other and from resolution"),
        ({"network_weights": "/a", "resume": "/b"}, "network_weights and resume are both set"),
        ({"fp8": True, "mixed_precision": "no"}, "fp8 is on, but mixed_precision is no"),
        ({"exclude_patterns": "(["}, "exclude_patterns: .* is not a regular expression"),
        ({"include_patterns": "a=b"}, "include_patterns: 'a=b' contains ="),
    ],
)
def test_a_config_that_cannot_work_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        MusubiConfig(**settings)
