"""Checks that stop a training by Musubi Tuner before it starts, and the plan of one that passes."""

import json
import shutil
import struct
from pathlib import Path

import pytest
from PIL import Image

from trainers import patterns
from trainers.dataset.config import DatasetConfig
from trainers.dataset.dataset import Dataset
from trainers.dataset.scan import scan_folder
from trainers.musubi import checks
from trainers.musubi.architectures import ARCHITECTURES
from trainers.musubi.config import MusubiConfig
from trainers.musubi.dataset_toml import write_toml
from trainers.musubi.installation import Installation
from trainers.musubi.plan import MusubiJob, Plan, make_plan
from trainers.musubi.safetensors_header import main_dtype, read_header
from trainers.musubi.state_folder import read_steps_done

SIZES = {"BF16": 2, "F16": 2, "F32": 4, "F8_E4M3": 1, "U8": 1}


INSTALLATION = Installation(Path("/musubi-tuner"), Path("/musubi-tuner/venv/bin/python"), "0.3.4")


def write_safetensors(
    path: Path, dtype: str = "BF16", *, names: tuple[str, ...] = ("blocks.0.weight",), shape: tuple[int, int] = (8, 8)
) -> Path:
    """Write a complete file of zeros, with one tensor of `dtype` per name."""
    header, offset = {}, 0
    for name in names:
        end = offset + shape[0] * shape[1] * SIZES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(offset))
    return path


def models_for(architecture: str, folder: Path, **dtypes: str) -> dict[str, Path]:
    """Write the row's model files, each once."""
    models = {}
    for file in ARCHITECTURES[architecture].models:
        path = folder / f"{file.name}.safetensors"
        if file.required:
            models[file.name] = (
                path
                if path.is_file() and not dtypes
                else write_safetensors(path, dtypes.get(file.name, file.weight_dtypes[0]))
            )
    return models


def images(folder: Path, names: tuple[str, ...] = ("a.png", "b.png")) -> Dataset:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        Image.new("RGB", (64, 48), (number, 7, len(str(folder)) % 256)).save(folder / name)
        (folder / name).with_suffix(".txt").write_text(f"image {name} --w 9", encoding="utf-8")
    return scan_folder(DatasetConfig(images=str(folder)))


class Case:
    """A job that passes all checks; the arguments of `plan` change it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def plan(
        self,
        architecture: str = "z-image",
        *,
        models: dict | None = None,
        options: dict | None = None,
        dtypes: dict | None = None,
        **given,
    ) -> Plan:
        config = MusubiConfig(
            **{name: given.pop(name) for name in list(given) if name in MusubiConfig.__dataclass_fields__}
        )
        files = {**models_for(architecture, self.folder / "models", **(dtypes or {})), **(models or {})}
        files = {name: path for name, path in files.items() if path is not None}
        dataset = given.pop("dataset") if "dataset" in given else images(self.folder / "in")
        settings = {"run_path": self.folder / "run", "cache_root": self.folder / "cache", "name": "my_lora", **given}
        installation = settings.pop("installation", INSTALLATION)
        return make_plan(MusubiJob(architecture, config, files, options or {}), dataset, installation, **settings)


@pytest.fixture
def case(tmp_path) -> Case:
    return Case(tmp_path)


def test_a_plan_writes_no_file_before_write_is_called(case):
    before = set(case.folder.rglob("*"))
    plan = case.plan()
    made = {
        path
        for path in set(case.folder.rglob("*")) - before
        if path.parts[len(case.folder.parts)] not in ("in", "models")
    }
    assert made == set()
    plan.write()
    assert plan.toml_path.read_text(encoding="utf-8") == plan.toml_text
    assert (case.folder / "run" / "dataset" / "1-repeats-1" / "0001.png").is_file()


def test_a_plan_lists_everything_that_will_happen(case):
    plan = case.plan(max_train_steps=300)
    assert [command.stage for command in plan.commands] == ["latents", "text", "train", "convert"]
    assert (plan.num_images, plan.num_items, plan.num_steps, plan.steps_before) == (2, 2, 300, 0)
    assert plan.raw_path == case.folder / "run" / "musubi" / "my_lora.safetensors"
    assert plan.config.rank == 32
    text = plan.text()
    assert plan.toml_text in text
    for command in plan.commands:
        assert command.text() in text


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_can_be_planned(case, architecture):
    control = images(case.folder / "control") if ARCHITECTURES[architecture].control_images == "required" else None
    plan = case.plan(architecture, control=control)
    train = plan.find_command("train")
    assert train is not None and str(plan.toml_path) in train.argv


def test_the_caches_of_an_earlier_run_are_reused(case):
    plan = case.plan()
    plan.write()
    for number in (1, 2):
        for name in (f"{number:04}_0064x0048_zi.safetensors", f"{number:04}_zi_te.safetensors"):
            path = plan.staged.caches[0].path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    plan.staged.confirm_caches()
    again = case.plan(learning_rate=1.0)
    assert again.cache_is_complete
    assert "# latents: not needed" in again.text()
    assert not case.plan(fp8_text_encoder=True).cache_is_complete
    write_safetensors(case.folder / "models" / "vae.safetensors", shape=(16, 8))
    assert not case.plan().cache_is_complete


def test_all_problems_with_settings_are_reported_at_once(case):
    with pytest.raises(ValueError) as caught:
        case.plan(
            blocks_to_swap=29,
            resolution=1000,
            timestep_sampling="sigmoid",
            discrete_flow_shift=0.0,
            cache_root=case.folder / "cache [1]",
            dataset=None,
        )
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    assert any(line.startswith("blocks_to_swap must be 28 or less for Z-Image, got 29") for line in lines)
    assert any(
        line == "resolution must be a multiple of 16 for Z-Image, got 1000. The nearest are 992 and 1008"
        for line in lines
    )
    assert any("in its name, Musubi Tuner would not find its caches" in line for line in lines)
    assert any(line.startswith("no images") for line in lines)


@pytest.mark.parametrize(
    ("architecture", "given", "message"),
    [
        ("hidream-o1", {"resolution": 1008}, "resolution must be a multiple of 32 for HiDream-O1"),
        ("z-image", {"extra_resolutions": "500"}, "resolution must be a multiple of 16 for Z-Image, got 500"),
        ("ideogram-4", {"fp8": True}, "fp8 is on, but Ideogram 4 is trained from a file that is fp8 already"),
        ("krea-2", {"fp8_text_encoder": True}, "fp8_text_encoder is on, but Krea 2 has no 8-bit text encoder"),
        (
            "flux-2",
            {"fp8_text_encoder": True, "options": {"model_version": "dev"}},
            "fp8_text_encoder is on, but FLUX.2 has no",
        ),
        ("flux-2", {"blocks_to_swap": 14}, "blocks_to_swap must be 13 or less for FLUX.2, got 14"),
        ("ideogram-4", {"weighting_scheme": "mode"}, "weighting_scheme must be none for Ideogram 4, got mode"),
        ("flux-2", {"timestep_sampling": "shift"}, "timestep_sampling is shift, but discrete_flow_shift is 0"),
        (
            "wan",
            {"mixed_precision": "bf16", "dtypes": {"dit": "F16"}},
            "mixed_precision is bf16, but the model file is in fp16",
        ),
        (
            "hidream-o1",
            {"blocks_to_swap": 20, "train_batch_size": 2, "attention": "flash_attn"},
            "HiDream-O1 swaps blocks with control images or flash_attn only at train_batch_size 1, got 2",
        ),
        (
            "flux-2",
            {"options": {"model_version": "klein"}},
            "model_version must be one of klein-base-4b, .*; got 'klein'",
        ),
        ("z-image", {"options": {"task": "t2v"}}, "Z-Image has no option 'task'. Known: none"),
        ("wan", {"options": {"task": "t2v-A14B-both"}}, "dit_high_noise is missing. Choose a file in diffusion_models"),
        ("z-image", {"control": "control"}, "Z-Image takes no control images"),
        ("flux-kontext", {}, "FLUX.1 Kontext needs control images"),
        (
            "z-image",
            {"sample_every_n_steps": 10, "sample_prompts": "x --ci /etc/passwd"},
            "sample_prompts: unknown option --ci",
        ),
        (
            "z-image",
            {"sample_every_n_steps": 10, "sample_prompts": "x --w wide"},
            "--w must be a whole number, got 'wide'",
        ),
        (
            "z-image",
            {"base_weights": "/no.safetensors"},
            "base_weights: /no.safetensors is not an existing .safetensors file",
        ),
    ],
)
def test_settings_that_cannot_work_are_reported(case, architecture, given, message):
    if given.get("control"):
        given = {**given, "control": images(case.folder / "control")}
    with pytest.raises(ValueError, match=message):
        case.plan(architecture, **given)


def test_relative_paths_start_at_the_callers_folder_not_at_musubis(case, monkeypatch):
    monkeypatch.chdir(case.folder)
    dit, lora = write_safetensors(Path("here.safetensors")), raw_lora(Path("raw.safetensors"))
    train = case.plan(models={"dit": dit}, network_weights=str(lora), run_path=Path("run")).find_command("train")
    assert train is not None
    for path in ("here.safetensors", "raw.safetensors", "run/dataset.toml"):
        assert str(case.folder / path) in train.argv


def test_an_fp16_wan_is_trained_in_fp16(case):
    assert case.plan("wan", dtypes={"dit": "F16"}).config.mixed_precision == "fp16"


def test_an_unused_model_file_is_reported(case):
    extra = write_safetensors(case.folder / "high.safetensors")
    with pytest.raises(
        ValueError, match=r"dit_high_noise is only used with task t2v-A14B-both, but task is t2v-14B\. Leave out"
    ):
        case.plan("wan", models={"dit_high_noise": extra})
    with pytest.raises(ValueError, match="Z-Image has no model file 'clip'"):
        case.plan(models={"clip": extra})


def test_a_missing_model_file_is_reported_with_its_folder(case):
    with pytest.raises(ValueError, match=r"text_encoder is missing\. Choose a file in text_encoders: Qwen3 4B"):
        case.plan(models={"text_encoder": None})
    with pytest.raises(ValueError, match=r"vae: /no/vae\.safetensors: there is no such file\. Choose one in vae"):
        case.plan(models={"vae": Path("/no/vae.safetensors")})


@pytest.mark.parametrize(
    ("dtype", "names", "message"),
    [
        (
            "F8_E4M3",
            ("blocks.0.weight",),
            "dit: the weights of .* are F8_E4M3. Musubi Tuner needs the file in bf16 or fp16 or fp32",
        ),
        ("BF16", ("blocks.0.weight", "blocks.0.scale_weight"), r"is quantized for inference \(blocks.0.scale_weight\)"),
        ("BF16", ("blocks.0.weight", "blocks.0.comfy_quant"), "is quantized for inference"),
        ("BF16", ("blocks.0.weight", "scaled_fp8"), "is quantized for inference"),
        ("BF16", (), "the weights of .* are empty"),
    ],
)
def test_files_made_for_inference_are_refused(case, dtype, names, message):
    dit = write_safetensors(case.folder / "wrong.safetensors", dtype, names=names)
    with pytest.raises(ValueError, match=message):
        case.plan(models={"dit": dit})


def test_ideogram_takes_only_its_fp8_file(case):
    quantized = write_safetensors(
        case.folder / "fp8.safetensors", "F8_E4M3", names=("blocks.0.weight", "blocks.0.weight_scale")
    )
    assert case.plan("ideogram-4", models={"dit": quantized}).config.rank == 32
    with pytest.raises(ValueError, match="needs the file in fp8"):
        case.plan("ideogram-4", dtypes={"dit": "BF16"})


@pytest.mark.parametrize("name", ["model.gguf", "model.pth", "model.ckpt"])
def test_other_file_formats_are_refused(case, name):
    path = case.folder / name
    path.write_bytes(b"x")
    with pytest.raises(ValueError, match=f"dit: .*{name} is not a .safetensors file"):
        case.plan(models={"dit": path})


def test_pickles_are_read_only_where_musubi_reads_them_without_running_code(case):
    path = case.folder / "Wan2.1_VAE.pth"
    path.write_bytes(b"x")
    assert case.plan("wan", models={"vae": path}).find_command("latents")
    with pytest.raises(ValueError, match=r"vae: .*Wan2\.1_VAE\.pth is not a \.safetensors file"):
        case.plan("z-image", models={"vae": path})


@pytest.mark.parametrize(
    ("name", "is_reported"),
    [("z_image_turbo_bf16", True), ("z_image_de_turbo_v1_bf16", False), ("z_image_bf16", False)],
)
def test_training_a_distilled_model_is_reported(case, name, is_reported):
    plan = case.plan(models={"dit": write_safetensors(case.folder / f"{name}.safetensors")})
    assert any("seems to be a distilled model" in notice for notice in plan.notices) == is_reported
    adapter = raw_lora(case.folder / "adapter.safetensors")
    assert not case.plan(models={"dit": case.folder / f"{name}.safetensors"}, base_weights=str(adapter)).notices


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"1234567",
        struct.pack("<Q", 10**15) + b"{}",
        struct.pack("<Q", 2) + b"{]",
        struct.pack("<Q", 6) + b'{"a":1}',
    ],
)
def test_damaged_files_are_reported(case, content):
    path = case.folder / "damaged.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"dit: .*damaged\.safetensors: not a complete \.safetensors file"):
        case.plan(models={"dit": path})


def test_an_incomplete_download_is_reported(case):
    path = write_safetensors(case.folder / "half.safetensors")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="the file ends too early"):
        case.plan(models={"dit": path})


def test_missing_parts_of_a_split_file_are_reported(case):
    path = write_safetensors(case.folder / "model-00001-of-00003.safetensors")
    write_safetensors(case.folder / "model-00002-of-00003.safetensors")
    with pytest.raises(ValueError, match=r"model-00003-of-00003\.safetensors is missing. The model has 3 parts"):
        case.plan(models={"dit": path})


def test_the_number_format_is_that_of_most_bytes(tmp_path):
    header = read_header(write_safetensors(tmp_path / "a.safetensors", "BF16"))
    small = read_header(write_safetensors(tmp_path / "b.safetensors", "F32", names=("norm",), shape=(1, 1)))
    assert main_dtype({**header, **small}) == "BF16"
    assert main_dtype({}) == ""


def raw_lora(path: Path, *, rank: int = 32, prefix: str = "lora_unet_") -> Path:
    return write_safetensors(path, names=(f"{prefix}layers_0.lora_down.weight",), shape=(rank, 8))


def test_network_weights_must_be_a_raw_file_of_the_same_rank(case):
    assert case.plan(network_weights=str(raw_lora(case.folder / "raw.safetensors"))).config.network_weights
    with pytest.raises(ValueError, match="does not have Musubi Tuner's own names: it was converted"):
        case.plan(network_weights=str(raw_lora(case.folder / "converted.safetensors", prefix="diffusion_model.")))
    with pytest.raises(ValueError, match=r"has rank 8, but rank is 32\. Set rank to that of the file"):
        case.plan(network_weights=str(raw_lora(case.folder / "small.safetensors", rank=8)))


def test_an_adapter_with_other_names_is_converted_first(case):
    foreign = raw_lora(case.folder / "adapter.safetensors", prefix="diffusion_model.")
    plan = case.plan(base_weights=str(foreign))
    assert plan.commands[0].stage == "base_weights" and str(foreign) in plan.commands[0].argv
    train = plan.find_command("train")
    assert train is not None and train.argv[train.argv.index("--base_weights") + 1] == str(plan.base_weights_path)
    own = raw_lora(case.folder / "own.safetensors")
    kept = case.plan(base_weights=str(own)).find_command("train")
    assert kept is not None and kept.argv[kept.argv.index("--base_weights") + 1] == str(own)


@pytest.mark.parametrize(("architecture", "fp8"), [("z-image", True), ("ideogram-4", False)])
def test_an_adapter_is_not_merged_into_8_bit_weights(case, architecture, fp8):
    adapter = raw_lora(case.folder / "adapter.safetensors")
    with pytest.raises(ValueError, match="base_weights cannot be merged into 8-bit weights"):
        case.plan(architecture, base_weights=str(adapter), fp8=fp8)


def save_state(folder: Path, name: str) -> Path:
    state = folder / name
    state.mkdir(parents=True)
    for file in ("model.safetensors", "optimizer.bin", "random_states_0.pkl"):
        (state / file).touch()
    return state


def test_a_resumed_run_has_a_new_name_and_the_remaining_steps(case):
    plan = case.plan(resume=str(save_state(case.folder, "my_lora-step00000250-state")), max_train_steps=1000)
    assert (plan.steps_before, plan.num_steps, plan.output_name) == (250, 750, "my_lora-after00000250")
    again = case.plan(
        resume=str(save_state(case.folder, "my_lora-after00000250-step00000100-state")), max_train_steps=1000
    )
    assert (again.steps_before, again.num_steps, again.output_name) == (350, 650, "my_lora-after00000350")
    assert read_steps_done(Path("my_lora-state")) is None


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("my_lora-state", {}, "does not say how many steps were done"),
        ("my_lora-step00001500-state", {}, "1500 steps are done already. Set max_train_steps above that, got 1500"),
        ("my_lora-step00000250-state", {"lr_scheduler": "cosine"}, "cannot continue lr_scheduler cosine"),
    ],
)
def test_a_state_that_cannot_be_resumed_is_reported(case, name, settings, message):
    with pytest.raises(ValueError, match=message):
        case.plan(resume=str(save_state(case.folder, name)), **settings)


def test_an_incomplete_state_is_reported(case):
    state = save_state(case.folder, "my_lora-step00000250-state")
    (state / "optimizer.bin").unlink()
    with pytest.raises(ValueError, match=r"resume: .* optimizer\.bin is missing"):
        case.plan(resume=str(state))


def test_settings_without_effect_are_reported(case):
    plan = case.plan("flux-2", discrete_flow_shift=3.0, sample_prompts="a dog", base_weights_multiplier=0.5)
    assert plan.notices == (
        "discrete_flow_shift 3 changes nothing with timestep_sampling flux2_shift",
        "sample_prompts has no effect: sample_every_n_steps is 0",
        "base_weights_multiplier changes nothing without base_weights",
    )
    assert "# Note: sample_prompts has no effect" in plan.text()


def test_the_recommended_shift_causes_no_notice(case):
    assert case.plan(discrete_flow_shift=2.0, timestep_sampling="sigmoid").notices == ()


def test_another_version_of_musubi_is_reported(case):
    other = Installation(INSTALLATION.folder, INSTALLATION.python, "0.4.0")
    assert case.plan(installation=other).notices == (
        "Musubi Tuner 0.4.0 is installed. This pack was made for 0.3.4; other versions may work differently",
    )


def test_a_full_disk_is_reported_before_the_start(case, monkeypatch):
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 5 << 20))
    with pytest.raises(ValueError, match=r"caches and checkpoints need about 1\.1 GB, but 0\.0 GB are free"):
        case.plan()


def test_sample_prompts_have_the_size_and_seed_of_the_training(case):
    plan = case.plan(
        sample_every_n_steps=50,
        sample_prompts="# mine\na dog --no-op --w 512 --l 1 --n bad, ugly\n\na cat",
        seed=7,
        resolution=256,
    )
    assert json.loads(plan.prompts_text) == [
        {
            "width": 512,
            "height": 256,
            "seed": 7,
            "prompt": "a dog --no-op",
            "cfg_scale": 1.0,
            "negative_prompt": "bad, ugly",
        },
        {"width": 256, "height": 256, "seed": 7, "prompt": "a cat"},
    ]
    train = plan.find_command("train")
    assert train is not None and train.argv[train.argv.index("--sample_prompts") + 1] == str(plan.prompts_path)


def test_without_prompts_the_first_caption_is_used_word_for_word(case):
    plan = case.plan("flux-kontext", sample_every_n_steps=50, control=images(case.folder / "control"))
    (prompt,) = json.loads(plan.prompts_text)
    assert prompt["prompt"] == "image a.png --w 9"
    plan.write()
    assert [Path(path).is_file() for path in prompt["control_image_path"]] == [True]


def test_an_own_toml_replaces_the_dataset(case):
    folder = case.folder / "in"
    images(folder)
    text = write_toml(
        {},
        [{"image_directory": folder.as_posix(), "caption_extension": ".txt", "resolution": 64, "enable_bucket": True}],
    )
    plan = case.plan(dataset=None, dataset_toml=text)
    assert (plan.num_images, plan.staged.groups) == (2, ())
    with pytest.raises(ValueError, match="give either a dataset or a dataset_toml, not both"):
        case.plan(dataset_toml=text)
    with pytest.raises(ValueError, match="sample_every_n_steps is set, but sample_prompts is empty"):
        case.plan(dataset=None, dataset_toml=text, sample_every_n_steps=10)


def test_a_run_folder_may_have_spaces_accents_and_brackets_in_its_name(case):
    plan = case.plan(run_path=case.folder / "été [1] 'x'")
    plan.write()
    assert plan.toml_path.is_file()
    train = plan.find_command("train")
    assert train is not None and str(plan.toml_path) in train.argv


@pytest.mark.parametrize("setting", ["exclude_patterns", "include_patterns"])
def test_a_pattern_that_would_run_forever_is_found_before_musubi_starts(case, monkeypatch, setting):
    monkeypatch.setattr(patterns, "MAX_MATCH_SECONDS", 2)
    names = ("model.diffusion_model.layers.0.feed_forward.with_a_long_name.weight",)
    models = {"dit": write_safetensors(case.folder / "dit.safetensors", names=names)}
    with pytest.raises(ValueError, match=rf"{setting}: '\(\[a-z0-9_\.\]\+\)\+!' took more than 2 seconds to match"):
        case.plan(models=models, **{setting: ".*attention.* ([a-z0-9_.]+)+!"})
    assert case.plan(models=models, **{setting: ".*attention.*"})


@pytest.mark.parametrize("pattern", ["(" * 10_000, "a{99999999999}"])
def test_a_pattern_that_python_cannot_compile_is_an_error(pattern):
    with pytest.raises(ValueError, match=r"exclude_patterns: .* is not a regular expression"):
        MusubiConfig(exclude_patterns=pattern)
