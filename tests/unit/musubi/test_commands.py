"""The command lines for Musubi Tuner: its own parsers (recorded from v0.3.4) accept them, and a
golden file holds all of them.

To update the golden file: `LORA_TRAINER_UPDATE_GOLDEN=1 pytest tests/unit/musubi/test_commands.py`,
then read its diff.
"""

import argparse
import ast
import json
import os
import shlex
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pytest

from trainers.musubi.architectures import ARCHITECTURES, Architecture
from trainers.musubi.commands import (
    Command,
    TrainingFiles,
    build_base_weights_command,
    build_cache_arguments,
    build_cache_command,
    build_convert_command,
    build_train_command,
    format_number,
)
from trainers.musubi.config import MusubiConfig, Recipe, resolve, split_literal_arguments
from trainers.musubi.installation import Installation

DATA = Path(__file__).parents[2] / "data"
GOLDEN = DATA / "musubi_commands.txt"
SCRIPTS = "/musubi-tuner/src/musubi_tuner/"
FILES = TrainingFiles(Path("/run/dataset.toml"), Path("/run/musubi"), "my_lora")
TYPES = {"int": int, "float": float, "Path": Path, "_int_or_float": float, None: str}

FULL = MusubiConfig(
    rank=64,
    alpha=32.0,
    learning_rate=5e-5,
    max_train_steps=2000,
    train_batch_size=2,
    resolution=512,
    seed=42,
    fp8=True,
    blocks_to_swap=4,
    optimizer="Prodigy",
    optimizer_args="weight_decay=0.01 betas=(0.9,0.99)",
    lr_scheduler="cosine",
    lr_warmup_steps=0.05,
    gradient_accumulation_steps=2,
    max_grad_norm=0.5,
    network_dropout=0.1,
    loraplus_lr_ratio=4.0,
    exclude_patterns=r".*\.mlp\..* first",
    include_patterns=r".*blocks\.0\..*",
    mixed_precision="fp16",
    fp8_text_encoder=True,
    attention="xformers",
    timestep_sampling="shift",
    discrete_flow_shift=3.0,
    extra_resolutions="256",
    save_every_n_steps=100,
    keep_last_n_checkpoints=3,
    sample_every_n_steps=100,
    network_weights="/loras/before.safetensors",
    base_weights="/loras/adapter.safetensors",
    base_weights_multiplier=-0.00001,
)


INSTALLATION = Installation(Path("/musubi-tuner"), Path("/musubi-tuner/venv/bin/python"), "0.3.4")


def full_config(architecture: Architecture, options: dict[str, str]) -> MusubiConfig:
    """Return a config with everything on that this architecture has."""
    has_fp8_text_encoder = architecture.has_fp8_text_encoder(options)
    return replace(FULL, fp8=bool(architecture.fp8_arguments), fp8_text_encoder=has_fp8_text_encoder)


def make_recipe(
    architecture: Architecture,
    config: MusubiConfig,
    options: dict[str, str] | None = None,
    *,
    with_optional: bool = False,
) -> Recipe:
    models = {
        file.name: Path(f"/models/{file.folder}/{file.name}.safetensors")
        for file in architecture.models
        if file.required or with_optional
    }
    return Recipe(architecture, resolve(config, architecture), models, options or {})


def all_commands(
    recipe: Recipe, *, has_control: bool | None = None, files: TrainingFiles = FILES, steps_before: int = 0
) -> list[Command]:
    control = recipe.architecture.control_images == "required" if has_control is None else has_control
    toml = files.dataset_toml
    commands = [
        build_cache_command(recipe, "latents", dataset_toml=toml, installation=INSTALLATION),
        build_cache_command(recipe, "text", dataset_toml=toml, installation=INSTALLATION),
        build_train_command(recipe, files, has_control=control, steps_before=steps_before, installation=INSTALLATION),
    ]
    raw = files.output_dir / "my_lora.safetensors"
    converted = build_convert_command(
        recipe.architecture, raw, Path("/run/converted.safetensors"), installation=INSTALLATION
    )
    return [*commands, converted] if converted else commands


def train_arguments(architecture: str = "z-image", **settings) -> list[str]:
    has_control = settings.pop("has_control", False)
    recipe = make_recipe(ARCHITECTURES[architecture], MusubiConfig(**settings))
    return list(all_commands(recipe, has_control=has_control)[2].argv[2:])


def get_value(arguments: list[str], flag: str) -> str:
    return arguments[arguments.index(flag) + 1]


def recorded_parser(script: str) -> argparse.ArgumentParser:
    recorded = json.loads((DATA / "musubi_parsers.json").read_text(encoding="utf-8"))
    parser = argparse.ArgumentParser(prog=script, exit_on_error=False, allow_abbrev=False)
    options = recorded["scripts"][script] + (recorded["training"] if script.endswith("train_network.py") else [])
    for option in options:
        settings = {name: option[name] for name in ("action", "choices", "nargs", "required") if name in option}
        if "action" not in option:
            settings["type"] = TYPES[option.get("type")]
        parser.add_argument(*option["flags"], **settings)
    return parser


def parse(command: Command) -> argparse.Namespace:
    python, script, *arguments = command.argv
    assert python == str(INSTALLATION.python)
    assert script.startswith(SCRIPTS)
    return recorded_parser(script.removeprefix(SCRIPTS)).parse_args(arguments)


def option_choices(architecture: Architecture) -> list[dict[str, str]]:
    """Return the defaults, and every other value of every option once."""
    return [
        {},
        *(
            {option.name: value}
            for option in architecture.options
            for value in option.choices
            if value != option.default
        ),
    ]


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)
@pytest.mark.parametrize("is_full", [False, True], ids=["default", "full"])
def test_musubis_parsers_accept_every_command(architecture, is_full):
    for options in option_choices(architecture):
        config = full_config(architecture, options) if is_full else MusubiConfig()
        files = replace(FILES, prompts=Path("/run/prompts.json")) if is_full else FILES
        recipe = make_recipe(architecture, config, options, with_optional=is_full)
        for has_control in {architecture.control_images != "none", architecture.control_images == "required"}:
            for command in all_commands(recipe, has_control=has_control, files=files):
                parse(command)


def test_the_recorded_parsers_refuse_wrong_arguments():
    parser = recorded_parser("zimage_train_network.py")
    for arguments in (["--no_such_flag"], ["--max_train_steps", "many"], ["--mixed_precision", "int8"], ["--dit"]):
        with pytest.raises((SystemExit, argparse.ArgumentError)):
            parser.parse_args(arguments)
    with pytest.raises((SystemExit, argparse.ArgumentError)):
        recorded_parser("zimage_cache_text_encoder_outputs.py").parse_args(["--dataset_config", "x"])


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_arguments_that_musubi_does_not_check_up_front_are_always_given(architecture):
    *_, train = [
        command for command in all_commands(make_recipe(architecture, MusubiConfig())) if command.stage == "train"
    ]
    parsed = parse(train)
    for name in (
        "dit",
        "dataset_config",
        "output_dir",
        "output_name",
        "optimizer_type",
        "network_module",
        "save_every_n_steps",
    ):
        assert getattr(parsed, name), name
    assert parsed.sdpa and parsed.save_precision == "bf16"
    assert parsed.network_alpha == parsed.network_dim == make_recipe(architecture, MusubiConfig()).config.rank
    assert not parsed.fp8_base and not vars(parsed).get("fp8_scaled")
    assert not parsed.dim_from_weights


def test_fp8_flags_are_combined_as_musubi_requires():
    for architecture in ARCHITECTURES.values():
        parsed = parse(all_commands(make_recipe(architecture, replace(MusubiConfig(), fp8=True)))[2])
        if vars(parsed).get("fp8_scaled"):
            assert parsed.fp8_base, architecture.name
    assert ARCHITECTURES["hunyuan-video"].fp8_arguments == ("--fp8_base",)
    assert ARCHITECTURES["ideogram-4"].fp8_arguments == ()


@pytest.mark.parametrize(
    ("name", "script"),
    [
        ("z-image", "convert_lora.py"),
        ("hunyuan-video", "convert_lora.py"),
        ("hunyuan-video-1.5", "networks/convert_hunyuan_video_1_5_lora_to_comfy.py"),
    ],
)
def test_musubis_scripts_convert_only_these_architectures(name, script):
    commands = {row.name: all_commands(make_recipe(row, MusubiConfig())) for row in ARCHITECTURES.values()}
    stages = {row: [command.argv[1] for command in own if command.stage == "convert"] for row, own in commands.items()}
    assert stages[name] == [SCRIPTS + script]
    converted = {row for row, scripts in stages.items() if scripts}
    assert converted == {"z-image", "hunyuan-video", "hunyuan-video-1.5"}


def test_the_default_target_gives_an_adapter_musubis_names():
    command = build_base_weights_command(Path("/a.safetensors"), Path("/b.safetensors"), installation=INSTALLATION)
    parsed = parse(command)
    assert (parsed.input, parsed.output, parsed.target) == ("/a.safetensors", "/b.safetensors", "default")


def test_adafactor_keeps_the_given_learning_rate():
    arguments = train_arguments(optimizer="Adafactor", optimizer_args="warmup_init=True")
    start = arguments.index("--optimizer_args") + 1
    assert arguments[start : start + 3] == ["relative_step=False", "scale_parameter=False", "warmup_init=True"]


def test_constant_with_a_warm_up_becomes_constant_with_warmup():
    assert get_value(train_arguments(), "--lr_scheduler") == "constant"
    warm = train_arguments(lr_warmup_steps=0.1, max_train_steps=200)
    assert (get_value(warm, "--lr_scheduler"), get_value(warm, "--lr_warmup_steps")) == ("constant_with_warmup", "20")
    assert get_value(train_arguments(lr_scheduler="cosine", lr_warmup_steps=30), "--lr_scheduler") == "cosine"


def test_a_resumed_run_passes_the_remaining_steps_and_the_whole_warm_up():
    recipe = make_recipe(
        ARCHITECTURES["z-image"],
        MusubiConfig(max_train_steps=1000, lr_warmup_steps=0.1, resume="/run/my_lora-step00000250-state"),
    )
    arguments = list(all_commands(recipe, steps_before=250)[2].argv)
    assert get_value(arguments, "--max_train_steps") == "750"
    assert get_value(arguments, "--lr_warmup_steps") == "100"
    assert get_value(arguments, "--resume") == "/run/my_lora-step00000250-state"


@pytest.mark.parametrize(("keep", "steps"), [(1, "0"), (2, "250"), (3, "500")])
def test_keep_last_n_checkpoints_is_passed_in_steps(keep, steps):
    arguments = train_arguments(keep_last_n_checkpoints=keep)
    assert get_value(arguments, "--save_last_n_steps") == steps
    assert get_value(arguments, "--save_last_n_steps_state") == "250"


def test_persistent_workers_need_workers():
    assert "--persistent_data_loader_workers" not in train_arguments(max_data_loader_n_workers=0)
    assert "--persistent_data_loader_workers" in train_arguments()


def test_attention_other_than_sdpa_is_split():
    assert "--split_attn" in train_arguments(attention="xformers")
    assert "--split_attn" not in train_arguments()


def test_a_shift_is_only_given_if_musubi_uses_it():
    assert get_value(train_arguments(), "--discrete_flow_shift") == "2.0"
    assert "--discrete_flow_shift" not in train_arguments(timestep_sampling="sigmoid")
    assert "--discrete_flow_shift" not in train_arguments("flux-kontext")


def test_own_patterns_do_not_bring_back_layers_that_musubi_leaves_out_by_default():
    arguments = train_arguments("flux-kontext", exclude_patterns=r".*img_mlp.* .*linear2")
    patterns = ast.literal_eval(arguments[arguments.index("--network_args") + 1].removeprefix("exclude_patterns="))
    assert patterns == [r".*img_mlp.*", ".*linear2", r".*(img_mod\.lin|txt_mod\.lin|modulation\.lin).*"]


def test_hidream_is_told_whether_there_are_control_images():
    plain, with_control = train_arguments("hidream-o1"), train_arguments("hidream-o1", has_control=True)
    assert get_value(plain, "--task") == "t2i" and "--skip_t2i_visual_dummy" in plain
    assert get_value(with_control, "--task") == "i2i" and "--skip_t2i_visual_dummy" not in with_control


def test_wan_2_2_trains_the_noise_levels_of_its_model():
    recipe = make_recipe(ARCHITECTURES["wan"], MusubiConfig(), {"task": "t2v-A14B-high"})
    arguments = list(all_commands(recipe)[2].argv)
    assert get_value(arguments, "--task") == "t2v-A14B"
    assert (get_value(arguments, "--min_timestep"), get_value(arguments, "--max_timestep")) == ("875", "1000")
    assert "--preserve_distribution_shape" in arguments


def test_names_with_shell_characters_stay_one_argument():
    name = "-rf; $(rm) `x` & 'a' \"b\""
    recipe = make_recipe(ARCHITECTURES["z-image"], MusubiConfig())
    nasty = replace(recipe, models={**recipe.models, "dit": Path("/models/$(touch x);'é.safetensors")})
    command = all_commands(nasty, files=replace(FILES, output_name=name))[2]
    parsed = parse(command)
    assert parsed.dit == "/models/$(touch x);'é.safetensors"
    assert parsed.output_name == name
    assert shlex.split(command.text()) == list(command.argv)


@pytest.mark.parametrize("value", [1e-4, 5e-5, 4e-5, 1.0, 32.0, 0.0, -1e-5, 2e-12])
def test_numbers_are_exact_and_have_no_exponent(value):
    text = format_number(value)
    assert "e" not in text
    assert float(text) == value


def test_cache_arguments_do_not_include_the_dataset():
    recipe = make_recipe(ARCHITECTURES["z-image"], MusubiConfig(fp8_text_encoder=True))
    assert build_cache_arguments(recipe, "latents") == ("--vae", "/models/vae/vae.safetensors", "--batch_size", "1")
    assert build_cache_arguments(recipe, "text") == (
        "--text_encoder",
        "/models/text_encoders/text_encoder.safetensors",
        "--fp8_llm",
        "--batch_size",
        "1",
    )


@pytest.mark.parametrize(
    "text", ["betas=(0.9, 0.99)", "import os", "a=__import__('os')", "=1", "a=b=1", "weight_decay"]
)
def test_optimizer_args_that_musubi_cannot_read_are_refused(text):
    with pytest.raises(ValueError, match="optimizer_args: cannot read"):
        MusubiConfig(optimizer_args=text)
    assert split_literal_arguments("weight_decay=0.01 betas=(0.9,0.99)") == ["weight_decay=0.01", "betas=(0.9,0.99)"]


def make_golden_text() -> str:
    parts = []
    for architecture in ARCHITECTURES.values():
        for title, config in (("default", MusubiConfig()), ("full", full_config(architecture, {}))):
            files = replace(FILES, prompts=Path("/run/prompts.json")) if title == "full" else FILES
            parts.append(f"## {architecture.name}, {title}")
            parts += [
                f"# {command.stage}\n{_format_lines(command)}"
                for command in all_commands(make_recipe(architecture, config), files=files)
            ]
    return "\n".join(parts) + "\n"


def _format_lines(command: Command) -> str:
    """Format the script, then one flag with its values per line."""
    _, script, *arguments = command.argv
    lines = [PurePosixPath(script).relative_to(SCRIPTS).as_posix()]
    for argument in arguments:
        if argument.startswith("--"):
            lines.append(argument)
        else:
            lines[-1] += " " + shlex.quote(argument)
    return "\n  ".join(lines)


def test_the_command_lines_match_the_golden_file():
    if os.environ.get("LORA_TRAINER_UPDATE_GOLDEN"):
        GOLDEN.write_text(make_golden_text(), encoding="utf-8")
    assert make_golden_text() == GOLDEN.read_text(encoding="utf-8")
