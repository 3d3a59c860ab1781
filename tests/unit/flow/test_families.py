import re
from dataclasses import fields

import pytest

from trainers.flow.families import FAMILIES, FlowFamilyRow, find_family

NAMES = [row.name for row in FAMILIES]


def test_names_and_classes_are_unique():
    classes = [config for row in FAMILIES for config in row.configs]
    assert len(set(NAMES)) == len(NAMES)
    assert len(set(classes)) == len(classes)


@pytest.mark.parametrize("row", FAMILIES, ids=NAMES)
def test_a_row_is_complete(row: FlowFamilyRow):
    may_be_empty = {
        "variants",
        "discrete_flow_shift",
        "needs_guidance",
        "caption_tokens",
        "undistilled_markers",
        "control_images",
    }
    empty = [spec.name for spec in fields(row) if getattr(row, spec.name) in ("", (), None)]
    assert set(empty) <= may_be_empty
    assert row.base_model
    assert row.timestep_sampling in ("uniform", "sigmoid", "logit_normal")
    assert row.resolution_step % 16 == 0
    assert 0 < row.learning_rate < 1e-3
    assert row.rank in (8, 16, 32)
    assert row.discrete_flow_shift is None or row.discrete_flow_shift >= 1
    assert row.remedy.endswith(".") and row.remedy.count(". ") == 0


@pytest.mark.parametrize("row", FAMILIES, ids=NAMES)
def test_layers_are_inside_of_a_numbered_block(row: FlowFamilyRow):
    re.compile(row.target_modules)
    assert r"\.\d+" in row.target_modules or r"_blocks\.\d+" in row.target_modules
    assert not re.search(r"mod|norm|embed|final", row.target_modules)


@pytest.mark.parametrize("row", FAMILIES, ids=NAMES)
def test_markers_are_compared_as_file_names_are(row: FlowFamilyRow):
    markers = [*row.distilled_markers, *row.undistilled_markers, *(variant.marker for variant in row.variants)]
    assert all(re.fullmatch(r"[a-z0-9-]+", marker) for marker in markers)
    assert all(row.for_file(f"some_{variant.marker}.safetensors") for variant in row.variants)


@pytest.mark.parametrize("row", FAMILIES, ids=NAMES)
def test_the_architecture_says_that_the_file_is_a_lora(row: FlowFamilyRow):
    architectures = [row.modelspec_architecture, *(variant.modelspec_architecture for variant in row.variants)]
    assert all(architecture.endswith("/lora") for architecture in architectures)


def test_a_class_finds_its_row():
    assert find_family("ZImage").name == "Z-Image"
    assert find_family("StableAudio") is None


@pytest.mark.parametrize(
    ("config", "file_name", "base_model"),
    [
        ("ZImage", "z_image_bf16.safetensors", "ZImageBase"),
        ("ZImage", "z_image_turbo_bf16.safetensors", "ZImageTurbo"),
        ("Flux", "flux1-dev.safetensors", "Flux.1 D"),
        ("Flux", "flux1-dev-kontext_fp8_scaled.safetensors", "Flux.1 Kontext"),
        ("Flux2", "flux2_dev_fp8mixed.safetensors", "Flux.2 D"),
        ("Flux2", "flux-2-klein-base-4b.safetensors", "Flux.2 Klein 4B-base"),
        ("Flux2", "flux-2-klein-9b.safetensors", "Flux.2 Klein 9B"),
        ("WAN21_T2V", "wan2.1_t2v_14B_fp16.safetensors", "Wan Video 14B t2v"),
        ("WAN21_T2V", "wan2.1_t2v_1.3B_fp16.safetensors", "Wan Video 1.3B t2v"),
        ("WAN21_T2V", "wan2.2_t2v_high_noise_14B_fp16.safetensors", "Wan Video 2.2 T2V-A14B"),
        ("SD3", "sd3.5_medium.safetensors", "SD 3.5 Medium"),
        ("SD3", "sd3.5_large_turbo.safetensors", "SD 3.5 Large Turbo"),
        ("SD15", "dreamshaper_8LCM.safetensors", "SD 1.5 LCM"),
    ],
)
def test_the_file_name_tells_the_variant(config: str, file_name: str, base_model: str):
    assert find_family(config).for_file(file_name).base_model == base_model


# As Civitai and ComfyUI-Lora-Manager 1.2 (static/js/utils/constants.js) name them
CIVITAI_NAMES = {
    "Anima",
    "Chroma",
    "Ernie",
    "Ernie Turbo",
    "Flux.1 D",
    "Flux.1 Kontext",
    "Flux.1 Krea",
    "Flux.1 S",
    "Flux.2 D",
    "Flux.2 Klein 4B",
    "Flux.2 Klein 4B-base",
    "Flux.2 Klein 9B",
    "Flux.2 Klein 9B-base",
    "HiDream",
    "Hunyuan Video",
    "Ideogram 4.0",
    "Krea 2",
    "Lumina",
    "Other",
    "Qwen",
    "SD 1.5",
    "SD 1.5 Hyper",
    "SD 1.5 LCM",
    "SD 2.0",
    "SD 2.1",
    "SD 3",
    "SD 3.5",
    "SD 3.5 Large",
    "SD 3.5 Large Turbo",
    "SD 3.5 Medium",
    "Wan Video 1.3B t2v",
    "Wan Video 14B t2v",
    "Wan Video 2.2 T2V-A14B",
    "Wan Video 2.2 TI2V-5B",
    "ZImageBase",
    "ZImageTurbo",
}


def test_lora_managers_know_the_names_of_all_base_models():
    names = {part.base_model for row in FAMILIES for part in (row, *row.variants)}
    assert names == CIVITAI_NAMES
    unknown = {row.name for row in FAMILIES if row.base_model == "Other"}
    assert unknown == {"Cosmos-Predict2", "HunyuanImage 2.1"}  # they have no name there


@pytest.mark.parametrize(
    ("config", "file_name", "is_distilled"),
    [
        ("ZImage", "z_image_turbo_bf16.safetensors", True),
        ("ZImage", "z_image_de_turbo_v1_bf16.safetensors", False),
        ("ZImage", "Z-Image-DeTurbo.safetensors", False),
        ("ZImage", "z_image_bf16.safetensors", False),
        ("Flux2", "flux-2-klein-4b.safetensors", True),
        ("Flux2", "flux-2-klein-base-4b.safetensors", False),
        ("Flux2", "flux2_dev_fp8mixed.safetensors", False),
        ("Krea2", "Krea-2-Turbo.safetensors", True),
        ("HunyuanVideo", "hunyuan_video_720_cfgdistill_fp8_e4m3fn.safetensors", False),
        ("HiDream", "hidream_i1_dev_fp8.safetensors", True),
        ("HiDream", "hidream_i1_full_fp8.safetensors", False),
        ("WAN21_T2V", "wan2.1_t2v_14B_self_forcing.safetensors", True),
    ],
)
def test_distilled_models_are_told_by_their_name(config: str, file_name: str, is_distilled: bool):
    assert find_family(config).is_distilled(file_name) is is_distilled
