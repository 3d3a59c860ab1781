"""The header of a LoRA file, compared with the formulas and with sd-scripts' results for the same
tensors.
"""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import safe_open

from trainers.files.hashes import file_sha256, legacy_file_hash
from trainers.lora.file import save_lora
from trainers.lora.header import ImageFolder, TrainingRecord, build_metadata, hash_tensors, tag_frequency

RECORD = TrainingRecord(
    output_name="my cat",
    rank=8,
    alpha=4.0,
    resolution=1024,
    base_model_version="sdxl_base_v1-0",
    architecture="stable-diffusion-xl-v1-base/lora",
    implementation="https://github.com/Stability-AI/generative-models",
    prediction_type="epsilon",
    zero_terminal_snr=False,
    started_at=1_700_000_000.25,
    finished_at=1_700_000_600.75,
    base_model_name="base.safetensors",
    folders=[ImageFolder("photos", ["sks cat, Sofa,  night", "sks cat,sofa,", ""], num_repeats=10)],
    bucket_counts={(832, 1216): 20, (1024, 1024): 10},
    trigger_word="sks cat",
    steps=100,
    max_train_steps=200,
    epoch=4,
    batch_size=2,
    gradient_accumulation_steps=4,
    num_processes=2,
    unet_learning_rate=1e-4,
    seed=7,
)


def test_every_value_is_a_string_and_inapplicable_keys_are_left_out():
    metadata = build_metadata(RECORD)
    assert all(isinstance(value, str) for value in metadata.values())
    assert "None" not in metadata.values()
    absent = {
        "ss_text_encoder_lr",
        "ss_noise_offset",
        "ss_min_snr_gamma",
        "ss_sd_model_hash",
        "ss_new_sd_model_hash",
        "ss_training_comment",
        "modelspec.tags",
    }
    assert not absent & set(metadata)


def test_network_keys_are_those_that_sd_scripts_needs_to_load_the_file():
    metadata = build_metadata(RECORD)
    expected = {
        "ss_v2": "False",
        "ss_base_model_version": "sdxl_base_v1-0",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "8",
        "ss_network_alpha": "4.0",
        "ss_network_args": "{}",
        "ss_output_name": "my cat",
        "ss_sd_model_name": "base.safetensors",
    }
    assert {name: metadata[name] for name in expected} == expected


def test_tags_are_counted_between_commas_in_lower_case_most_frequent_first():
    counts = tag_frequency(RECORD.folders[0].captions)
    assert counts == {"sks cat": 2, "sofa": 2, "night": 1}
    assert list(counts) == ["sks cat", "sofa", "night"]
    assert json.loads(build_metadata(RECORD)["ss_tag_frequency"]) == {"photos": counts}


def test_dataset_keys_count_repeats_and_give_sizes_as_width_and_height():
    metadata = build_metadata(RECORD)
    assert (metadata["ss_num_train_images"], metadata["ss_num_reg_images"], metadata["ss_reg_dataset_dirs"]) == (
        "30",
        "0",
        "{}",
    )
    assert metadata["ss_resolution"] == "(1024, 1024)"
    assert json.loads(metadata["ss_dataset_dirs"]) == {"photos": {"n_repeats": 10, "img_count": 3}}
    buckets = json.loads(metadata["ss_bucket_info"])["buckets"]
    assert buckets == {"0": {"resolution": [1216, 832], "count": 20}, "1": {"resolution": [1024, 1024], "count": 10}}
    assert metadata["ss_enable_bucket"] == "True"


def test_folders_with_one_name_are_told_apart_and_regularization_is_separate():
    folders = [
        ImageFolder("10_dog", ["a, b"], 10),
        ImageFolder("10_dog", ["b"], 10),
        ImageFolder("1_dog", ["c", "d"], 1, is_regularization=True),
    ]
    metadata = build_metadata(
        replace(RECORD, folders=folders, bucket_counts={(1024, 1024): 40}, num_regularization_samples=20)
    )
    assert json.loads(metadata["ss_dataset_dirs"]) == {
        "10_dog": {"n_repeats": 10, "img_count": 1},
        "10_dog (2)": {"n_repeats": 10, "img_count": 1},
    }
    assert json.loads(metadata["ss_reg_dataset_dirs"]) == {"1_dog": {"n_repeats": 1, "img_count": 2}}
    assert json.loads(metadata["ss_tag_frequency"]) == {"10_dog": {"a": 1, "b": 1}, "10_dog (2)": {"b": 1}}
    assert (metadata["ss_num_train_images"], metadata["ss_num_reg_images"]) == ("20", "20")


def test_total_batch_size_counts_processes_and_accumulation():
    metadata = build_metadata(RECORD)
    assert (metadata["ss_batch_size_per_device"], metadata["ss_total_batch_size"]) == ("2", "16")


def test_text_encoder_learning_rates_are_listed_for_both_encoders():
    assert (
        build_metadata(replace(RECORD, text_encoder_learning_rates=(5e-5, None)))["ss_text_encoder_lr"]
        == "[5e-05, None]"
    )


def test_modelspec_names_architecture_prediction_and_trigger():
    metadata = build_metadata(replace(RECORD, prediction_type="v", tags=["cat", "photo"]))
    assert {name: value for name, value in metadata.items() if name.startswith("modelspec.")} == {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.title": "my cat",
        "modelspec.date": "2023-11-14T22:23:20+00:00",
        "modelspec.resolution": "1024x1024",
        "modelspec.prediction_type": "v",
        "modelspec.trigger_phrase": "sks cat",
        "modelspec.tags": "cat, photo",
    }


def test_settings_are_kept_without_the_users_folders():
    settings = {
        "images": Path("/home/ann/photos"),
        "base": "/models/base.safetensors",
        "out": r"C:\Users\Ann\x",
        "rank": 8,
        "parts": [{"path": "/a/b"}],
    }
    kept = json.loads(build_metadata(replace(RECORD, settings=settings))["lora_trainer_config"])
    assert kept == {"images": "photos", "base": "base.safetensors", "out": "x", "rank": 8, "parts": [{"path": "b"}]}


def _make_tensors() -> dict[str, torch.Tensor]:
    """Make tensors of more than 1 MiB, where the legacy hash begins."""
    return {
        "lora_unet_a.lora_down.weight": torch.arange(320_000, dtype=torch.float32).reshape(4, -1) / 7,
        "lora_unet_a.lora_up.weight": torch.arange(-40, 40, dtype=torch.float16).reshape(20, 4),
        "lora_unet_a.alpha": torch.tensor(2.0),
    }


METADATA = {"ss_network_dim": "4", "ss_training_comment": 'café "quoted"\n日本語 \x01', "modelspec.title": "x"}


def test_hashes_are_those_of_sd_scripts():
    # What precalculate_safetensors_hashes (sd-scripts 48d368f, library/train_util.py) returns for
    # these tensors and this metadata.
    assert hash_tensors(_make_tensors(), METADATA) == {
        "sshs_model_hash": "b1abad703de212d867925cd6a777e23a58cb0de155559a20595b623fffba215e",
        "sshs_legacy_hash": "7d629213",
        "modelspec.hash_sha256": "0xb1abad703de212d867925cd6a777e23a58cb0de155559a20595b623fffba215e",
    }


def test_the_model_hash_covers_the_tensors_and_not_the_metadata(tmp_path):
    save_lora(tmp_path / "a.safetensors", _make_tensors(), METADATA)
    content = (tmp_path / "a.safetensors").read_bytes()
    data = content[8 + int.from_bytes(content[:8], "little") :]
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        header = file.metadata()
    assert header["sshs_model_hash"] == hashlib.sha256(data).hexdigest()
    assert hash_tensors(_make_tensors(), {})["sshs_model_hash"] == header["sshs_model_hash"]
    assert {name: header[name] for name in METADATA} == METADATA


def test_file_hashes_are_a1111s_old_and_new_model_hash(tmp_path):
    content = bytes(range(256)) * (5 << 10)  # 1.25 MiB
    path = tmp_path / "base.safetensors"
    path.write_bytes(content)
    assert file_sha256(path) == hashlib.sha256(content).hexdigest()
    assert legacy_file_hash(path) == hashlib.sha256(content[0x100000:0x110000]).hexdigest()[:8]
