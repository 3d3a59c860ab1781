"""The embedded Z-Image: its size, its three files, and their names in diffusers."""

import pytest
import torch
from safetensors.torch import load_file

from trainers.embedded_base import write_embedded_z_image
from trainers.embedded_base.z_image import SHIPPED_WEIGHTS, TOKEN_TABLE
from trainers.embedded_base.z_image.architecture import (
    TEXT_WIDTH,
    VOCABULARY_SIZE,
    build_text_encoder,
    build_transformer,
    build_vae,
    make_token_table,
)
from trainers.embedded_base.z_image.layout import (
    text_encoder_from_original,
    transformer_from_original,
    transformer_to_original,
    vae_from_original,
    vae_to_original,
)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_embedded_z_image(tmp_path_factory.mktemp("models"))


def test_the_shipped_weights_stay_under_12_mebibytes():
    assert SHIPPED_WEIGHTS.stat().st_size < 12 * 2**20


def test_the_files_lie_where_users_of_z_image_have_them(files):
    models = files.model.parents[1]
    found = sorted(path.relative_to(models).as_posix() for path in models.rglob("*.safetensors"))
    assert found == [
        "diffusion_models/embedded_z_image.safetensors",
        "text_encoders/embedded_qwen_3.safetensors",
        "vae/embedded_z_image_vae.safetensors",
    ]


def test_files_are_never_overwritten(files):
    with pytest.raises(FileExistsError, match="embedded_z_image"):
        write_embedded_z_image(files.model.parents[1])


def test_the_classes_of_diffusers_and_transformers_load_every_weight(files):
    transformer = load_file(files.model)
    build_transformer().load_state_dict(transformer_from_original(transformer))
    build_text_encoder().load_state_dict(text_encoder_from_original(load_file(files.text_encoder)))
    vae = load_file(files.vae)
    build_vae().load_state_dict(vae_from_original(vae))
    assert_same(transformer_to_original(transformer_from_original(transformer)), transformer)
    assert_same(vae_to_original(vae_from_original(vae)), vae)


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_original_layout_has_one_matrix_for_query_key_and_value(files):
    names = set(load_file(files.model))
    assert "layers.0.attention.qkv.weight" in names and "final_layer.linear.weight" in names
    assert not any("to_q" in name or "2-1" in name for name in names)


def test_the_text_encoder_has_all_tokens_of_qwen(files):
    table = load_file(files.text_encoder)[TOKEN_TABLE]
    assert table.shape == (VOCABULARY_SIZE, TEXT_WIDTH)
    assert torch.equal(table.float(), make_token_table())
    assert table.float().std().item() == pytest.approx(0.5, rel=0.01)
