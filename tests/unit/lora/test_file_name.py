"""Names of LoRA files: ComfyUI's date tokens, subfolders, no way out of the loras folder."""

import time
from pathlib import PurePosixPath

import pytest

from trainers.lora.file_name import check_lora_file_name, expand_date_tokens

NOW = time.struct_time((2026, 8, 2, 3, 4, 59, 6, 214, 0))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("my_lora", "my_lora"),
        ("my_lora_%date:yyyy-MM-dd%", "my_lora_2026-08-02"),
        ("%date:yyyyMMdd_hh-mm-ss%", "20260802_03-04-59"),
        ("%date:yy-M-d h.m.s%", "26-8-2 3.4.59"),
        ("%date%_x", "2026-08-02_x"),
        ("%year%%month%%day%-%hour%%minute%%second%", "20260802-030459"),
        ("50%_strength", "50%_strength"),
    ],
)
def test_date_tokens_are_replaced_as_in_comfyui(text, expected):
    assert expand_date_tokens(text, NOW) == expected


@pytest.mark.parametrize("text", ["%KSampler.seed%", "a%%b", "%year:yyyy%", "%Date%"])
def test_an_unknown_token_is_named_with_the_known_ones(text):
    with pytest.raises(
        ValueError, match=r"filename has %.*% in it\. Allowed are %date:yyyy-MM-dd_hh-mm-ss%, %date%, %year%, %month%"
    ):
        expand_date_tokens(text, NOW)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("anna", "anna"),
        (" anna ", "anna"),
        ("anna.safetensors", "anna"),
        ("people/anna v1.5", "people/anna v1.5"),
        ("people\\anna", "people/anna"),
        ("%year%/%date:MM-dd%/anna", "2026/08-02/anna"),
    ],
)
def test_a_name_can_have_subfolders_and_an_extension(text, expected):
    assert check_lora_file_name(text, NOW) == PurePosixPath(expected)


@pytest.mark.parametrize(
    "text", ["../x", "a/../../x", "..\\x", "C:\\x", "c:x", "/etc/x", "\\\\server\\x", "%year%/../.."]
)
def test_a_name_cannot_lead_out_of_the_folder(text):
    with pytest.raises(
        ValueError, match=r"leads out of the loras folder\. Give a name below it, such as my_lora or people/my_lora"
    ):
        check_lora_file_name(text, NOW)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("   ", "is empty"),
        ("a//b", "is empty"),
        ("people/", "is empty"),
        (".", "is empty"),
        ("a?", r"has '\?' in it"),
        ("%date:hh:mm%", "has ':' in it"),
        ("people/con", "reserved on Windows"),
        ("x" * 201, "too long"),
    ],
)
def test_a_name_that_some_system_forbids_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        check_lora_file_name(text, NOW)


def test_the_default_time_is_now():
    assert check_lora_file_name("%year%") in (
        PurePosixPath(str(time.localtime().tm_year)),
        PurePosixPath(str(time.localtime().tm_year - 1)),
    )
