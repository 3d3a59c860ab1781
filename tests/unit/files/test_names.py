"""File names that every system allows."""

import pytest

from trainers.files.names import check_output_name
from trainers.training.run_folder import RunFolder


@pytest.mark.parametrize(
    "name",
    ["../evil", "a/b", "a\\b", "C:", "what?", "nul", "COM1.x", "", " ", ".", "..", "name.", " name", "x" * 300, "a\nb"],
)
def test_a_name_with_a_folder_or_forbidden_characters_is_refused(name, tmp_path):
    with pytest.raises(ValueError, match="output name"):
        RunFolder(tmp_path, name)
    assert list(tmp_path.iterdir()) == []


def test_a_good_name_is_unchanged():
    assert check_output_name("my LoRA v2 (final).safetensors") == "my LoRA v2 (final)"
    assert check_output_name("模型") == "模型"
