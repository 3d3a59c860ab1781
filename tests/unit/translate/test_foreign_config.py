"""Whole configurations of sd-scripts, kohya_ss and OneTrainer: what their training becomes here."""

import argparse
import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from trainers.__main__ import main
from trainers.commands import flow
from trainers.commands.sdxl import CONFIGS, REQUIRED, add_arguments
from trainers.commands.settings import read_dataset_configs, read_settings, resolve_presets, scan_datasets
from trainers.training.plan import TrainingPlan, plan_training
from trainers.training.sample_prompts import read_sample_prompts

SAMPLES = Path(__file__).parents[2] / "data" / "foreign_configs"


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    """A project folder as kohya's users have it: 4 images of a toy, 3 times each, and 5 others."""
    for source in SAMPLES.iterdir():
        shutil.copy(source, tmp_path)
    for folder, count, size in (("img/3_zwx toy", 4, (1100, 1100)), ("reg/1_toy", 5, (1200, 900))):
        (tmp_path / folder).mkdir(parents=True)
        for number in range(count):
            path = tmp_path / folder / f"{number}.png"
            Image.new("RGB", size, (number * 40, size[1] % 250, 0)).save(path)
            path.with_suffix(".txt").write_text("zwx, toy, red" if count == 4 else "toy, blue", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(*flags: str, required=REQUIRED) -> dict:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return read_settings(parser.parse_args(list(flags)), configs=CONFIGS, required=required)


def plan(settings: dict) -> TrainingPlan:
    dataset = scan_datasets(read_dataset_configs(settings))
    return plan_training(dataset, resolve_presets(settings, dataset))


def test_a_training_of_sd_scripts_is_planned_as_there():
    planned = plan(read("--config", "sd_scripts.toml"))
    config = planned.settings.training
    # 4 images x 3 repeats and as many regularization samples, in batches of 2 by their shape: 6 + 6
    assert (planned.schedule.num_samples, planned.schedule.steps_per_epoch) == (24, 12)
    assert planned.schedule.total_steps == 120
    assert {item.crop.target_hw for item in planned.crops.items} == {(1024, 1024), (864, 1184)}  # steps of 32
    assert (config.learning_rate, config.text_encoder_learning_rate, config.text_encoder_2_learning_rate) == (
        2e-4,
        5e-5,
        5e-5,
    )
    assert (config.optimizer, config.optimizer_args, config.weight_decay) == ("AdamW8bit", "betas=(0.9,0.99)", 0.1)
    assert {image.loss_weight for image in planned.dataset.images if image.is_regularization} == {0.5}
    prompts = read_sample_prompts(config, first_caption="", trigger_word="")
    assert [(prompt.prompt, prompt.seeds, prompt.size_hw) for prompt in prompts] == [
        ("zwx toy on a beach", (1,), (1216, 832)),
        ("zwx toy", (2,), None),
    ]


@pytest.mark.parametrize("flags", [(), ("--dataset-config", "sd_scripts_datasets.toml")])
def test_datasets_of_sd_scripts_are_read_with_its_training_or_alone(project, flags):
    text = (project / "sd_scripts.toml").read_text(encoding="utf-8")
    if not flags:
        text = text.replace("[dataset_arguments]", '[dataset_arguments]\ndataset_config = "sd_scripts_datasets.toml"')
    Path("training.toml").write_text(text, encoding="utf-8")
    planned = plan(read("--config", "training.toml", *flags))
    config, buckets = planned.settings.training, planned.settings.buckets
    assert (buckets.resolution, buckets.max_bucket_reso, config.train_batch_size) == (768, 1280, 4)
    # 12 samples of the toy in 3 batches of 768 x 768, and 12 others in 3 of 896 x 640
    assert (planned.schedule.num_samples, planned.schedule.steps_per_epoch) == (24, 6)
    assert {image.num_repeats for image in planned.dataset.images if not image.is_regularization} == {3}
    assert config.rank == 32


def test_datasets_alone_leave_the_training_to_our_defaults_and_flags():
    settings = read("--dataset-config", "sd_scripts_datasets.toml", "--base", "x", "--output", "y", "--rank", "8")
    config = plan(settings).settings.training
    assert (config.rank, config.learning_rate, config.train_batch_size) == (8, 1e-4, 4)
    assert read("--config", "sd_scripts_datasets.toml", "--base", "x", "--output", "y", "--rank", "8") == settings


def test_a_training_of_kohya_ss_is_planned_as_there():
    planned = plan(read("--config", "kohya_ss.json"))
    config = planned.settings.training
    # 12 samples, batches of 1, 2 accumulated, 5 epochs
    assert (planned.schedule.steps_per_epoch, planned.schedule.total_steps) == (6, 30)
    assert (config.optimizer, config.learning_rate, config.train_text_encoders) == ("Prodigy", 1.0, False)
    assert config.optimizer_args == "use_bias_correction=False decouple=True betas=(0.9,0.99)"
    assert (config.lr_warmup_steps, config.noise_offset, config.min_snr_gamma) == (0.1, 0.05, 0.0)
    assert config.zero_terminal_snr == "on"  # of additional_parameters
    assert {item.crop.target_hw for item in planned.crops.items} == {(1024, 1024)}


def test_a_training_of_onetrainer_is_planned_as_there():
    planned = plan(read("--config", "onetrainer.json"))
    config = planned.settings.training
    # 4 images x 5, batches of 4, 2 accumulated: 5 batches, 3 steps; the other concept validates
    assert (planned.schedule.num_samples, planned.schedule.steps_per_epoch, planned.schedule.total_steps) == (20, 3, 24)
    assert {image.name.split("/")[0] for image in planned.dataset.images} == {"3_zwx toy"}
    assert len(planned.validation.held_out) == 5
    # rates times the root of the batch
    assert (config.learning_rate, config.text_encoder_learning_rate, config.text_encoder_2_learning_rate) == (
        4e-4,
        2e-4,
        0.0,
    )
    assert (config.rank, config.alpha, config.target_modules) == (24, 12.0, "attention")
    assert (config.ema_decay, config.min_snr_gamma, config.caption_dropout) == (0.99, 4.0, 0.1)
    assert {item.crop.target_hw for item in planned.crops.items} == {(768, 768)}
    assert config.sample_prompt == "zwx toy --n blurry --w 1024 --h 768 --d 42 --s 30 --l 7.0"


def test_concepts_may_be_in_the_file_itself(project):
    content = json.loads((project / "onetrainer.json").read_text(encoding="utf-8"))
    content["concepts"] = json.loads((project / "onetrainer_concepts.json").read_text(encoding="utf-8"))
    content["concept_file_name"] = "gone.json"
    Path("inline.json").write_text(json.dumps(content), encoding="utf-8")
    assert read("--config", "inline.json")["datasets"] == read("--config", "onetrainer.json")["datasets"]


def test_flags_win_over_the_file_with_what_would_hide_them():
    settings = read("--config", "kohya_ss.json", "--max-train-steps", "7", "--rank", "2")
    assert plan(settings).schedule.total_steps == 7 and settings["rank"] == 2
    assert plan(read("--config", "onetrainer.json", "--images", "reg/1_toy")).schedule.num_samples == 5


def test_the_terminal_says_what_became_of_each_setting(caplog):
    read("--config", "sd_scripts.toml")
    said = caplog.text
    for line in (
        "sd_scripts.toml: a configuration of sd-scripts",
        "  network_dim 32 -> rank 32",
        "  max_bucket_reso 1536 -> max_bucket_reso 1536",
        "  optimizer_args weight_decay=0.1 -> weight_decay 0.1",
        "  alpha_mask (not given) -> mask_source off",
        "  xformers: attention is always PyTorch's own, which is as fast",
        "  huber_c, huber_schedule: counts only where loss_type is huber or smooth_l1",
        "  max_data_loader_n_workers, persistent_data_loader_workers: speed and memory only",
        "  sample_prompts: the options --ss are not known for samples here",
    ):
        assert line + "\n" in said, line
    assert said.endswith(
        "NOT TAKEN, SO THE LORA WILL DIFFER:\n  adaptive_noise_scale 0.00357: the noise offset does not follow the "
        "image's mean\n"
    )


def test_no_setting_of_a_file_is_passed_over_in_silence(caplog):
    """Unless it is off: nothing, false or 0."""
    content = json.loads(Path("onetrainer.json").read_text(encoding="utf-8"))
    content |= {"xyzzy": 3, "nothing": 0, "optimizer": {**content["optimizer"], "beta3": 0.5, "xi": 0}}
    Path("run.json").write_text(json.dumps(content), encoding="utf-8")
    read("--config", "run.json")
    assert "  xyzzy 3: is not known here\n" in caplog.text
    assert "  optimizer.beta3 0.5: it is no argument that AdamW has here\n" in caplog.text
    assert "nothing" not in caplog.text and "optimizer.xi" not in caplog.text
    given = {name for name, value in content.items() if value and not isinstance(value, dict)}
    given -= {"training_method", "model_type", "layer_filter", "loss_weight_strength", "mse_strength", "__version"}
    given -= {"ema_decay", "ema_update_step_interval", "max_noising_strength", "timestep_distribution"}
    given -= {"loss_scaler", "timestep_shift", "concept_file_name", "save_every_unit", "sample_after_unit"}
    given -= {"learning_rate"}  # the UNet has its own, and the text encoder is named with it
    assert [name for name in given if name not in caplog.text] == []


def test_subsets_that_differ_in_what_all_images_share_are_a_loss(caplog):
    text = Path("sd_scripts_datasets.toml").read_text(encoding="utf-8").replace("flip_aug = true", "", 1)
    Path("sets.toml").write_text(text, encoding="utf-8")
    settings = read("--dataset-config", "sets.toml", required=())
    assert settings["random_flip"] is True
    assert "flip_aug of the subsets (not given, true): all images share one value here: true is taken" in caplog.text


def test_the_same_subsets_at_several_resolutions_are_one_dataset():
    text = "".join(
        f"[[datasets]]\nresolution = {side}\nenable_bucket = true\n[[datasets.subsets]]\nimage_dir = 'img/3_zwx toy'\n"
        for side in (1024, 768, 512)
    )
    Path("sets.toml").write_text(text, encoding="utf-8")
    settings = read("--dataset-config", "sets.toml", required=())
    assert (settings["resolution"], settings["extra_resolutions"], len(settings["datasets"])) == (1024, "768, 512", 1)
    assert plan(settings).schedule.num_samples == 12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": "DAdaptAdam"}, "optimizer DAdaptAdam: there is no such optimizer here, and its learning rate"),
        ({"optimizer": "Adafactor", "optimizer_args": ""}, "Adafactor with relative_step finds its own learning rate"),
        ({"optimizer_args": "betas"}, "optimizer_args must be name=value pairs with spaces between them, got 'betas'"),
        ({"optimizer_args": "eps=x"}, "optimizer_args has 'x', which is no value of Python"),
        ({"LoRA_type": "LyCORIS/GLoRA"}, "LyCORIS/GLoRA = lycoris.kohya with algo=glora: no such adapter is trained"),
        ({"LoRA_type": "LoRA-FA"}, "LoRA_type LoRA-FA = networks.lora_fa: no such adapter is trained here"),
        ({"LoRA_type": "Flux1"}, "LoRA_type Flux1 = Flux1: no such adapter is trained here"),
        ({"flux1_checkbox": True}, "is not for SDXL (flux1_checkbox), and only SDXL's are translated"),
        ({"sdxl": False}, "is not for SDXL (sdxl off)"),
        ({"LoRA_type": None}, "trains no LoRA (it has no LoRA_type)"),
        ({"unet_lr": 0, "text_encoder_lr": 1}, "only the text encoders are trained, which is not done here"),
        ({"network_dim": "many"}, "network_dim must be a number, got 'many'"),
        ({"train_batch_size": 1.5}, "train_batch_size must be a whole number, got 1.5"),
        ({"flip_aug": "maybe"}, "flip_aug must be true or false, got 'maybe'"),
        ({"max_resolution": "big"}, "max_resolution must be one or two whole numbers, got big"),
        ({"additional_parameters": "--x 'y"}, "additional_parameters --x 'y: No closing quotation"),
    ],
)
def test_what_would_train_something_else_is_refused(change, message):
    content = json.loads(Path("kohya_ss.json").read_text(encoding="utf-8")) | change
    content = {name: value for name, value in content.items() if value is not None}
    Path("run.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        read("--config", "run.json")
    assert str(error.value).startswith("run.json: ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"training_method": "FINE_TUNE"}, "training_method is FINE_TUNE, and only LORA of OneTrainer is translated"),
        ({"training_method": "LORA", "model_type": "FLUX_DEV_1"}, "model_type is FLUX_DEV_1"),
        ({"peft_type": "OFT_2"}, "peft_type OFT_2: no such adapter is trained here"),
        ({"optimizer": {"optimizer": "TIGER"}}, "optimizer.optimizer TIGER: there is no such optimizer here"),
        ({"unet": {"train": False}}, "unet.train is off: only the text encoders are trained"),
        ({"concepts": "x"}, "concepts must be a list of tables, got 'x'"),
        ({"concepts": [{"name": "toy"}]}, "concept toy has no path"),
        ({"learning_rate_scaler": "X"}, "learning_rate_scaler must be one of NONE, BATCH"),
        ({"network_module": "networks.lora_flux"}, "network_module networks.lora_flux: no such adapter"),
        ({"network_module": "networks.lora", "v2": True}, "this configuration is for Stable Diffusion 2"),
        ({"datasets": [{"subsets": []}]}, "has no [[datasets.subsets]] table, so there are no images"),
        ({"datasets": [{"subsets": [{"is_reg": True}]}]}, "[[datasets.subsets]] table 1 has no image_dir"),
        ([{"path": "x"}], "no configuration, but a list, such as OneTrainer's concepts"),
    ],
)
def test_other_trainings_and_broken_files_are_refused(content, message):
    is_onetrainer = isinstance(content, dict) and not {"network_module", "datasets"} & set(content)
    usual = {"training_method": "LORA", "model_type": "STABLE_DIFFUSION_XL_10_BASE"} if is_onetrainer else {}
    Path("run.json").write_text(json.dumps({**usual, **content} if usual else content), encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(message)):
        read("--config", "run.json")


def test_a_model_on_hugging_face_is_not_downloaded(caplog):
    text = Path("sd_scripts.toml").read_text(encoding="utf-8")
    text = text.replace("models/sdxl.safetensors", "stabilityai/stable-diffusion-xl-base-1.0")
    Path("run.toml").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="missing --base"):
        read("--config", "run.toml")
    assert "nothing is downloaded: give the file or folder of the model with --base" in caplog.text
    assert read("--config", "run.toml", "--base", "x.safetensors")["base"] == "x.safetensors"


def test_files_that_a_configuration_names_are_found_next_to_it(project, monkeypatch, caplog):
    (project / "elsewhere").mkdir()
    monkeypatch.chdir(project / "elsewhere")
    settings = read("--config", str(project / "onetrainer.json"))
    assert len(settings["datasets"]) == 2 and "zwx toy" in settings["sample_prompt"]
    (project / "onetrainer_samples.json").unlink()
    (project / "onetrainer_concepts.json").unlink()
    read("--config", str(project / "onetrainer.json"), required=())
    assert "there is no such file; the first caption is drawn" in caplog.text
    assert "concept_file_name onetrainer_concepts.json: there is no such file: give the images" in caplog.text


def test_our_own_file_with_one_of_their_words_is_still_ours():
    Path("run.toml").write_text("base = 'x'\noutput = 'y'\nimages = 'img'\noutput_name = 'z'", encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape("unknown setting output_name (did you mean output?)")):
        read("--config", "run.toml")


def test_other_models_do_not_read_a_configuration_for_sdxl():
    parser = argparse.ArgumentParser()
    flow.add_arguments(parser)
    options = parser.parse_args(["--config", "kohya_ss.json"])
    with pytest.raises(ValueError, match=r"a configuration of kohya_ss for SDXL\. Give it to the command sdxl"):
        read_settings(options, configs=flow.CONFIGS, required=())


@pytest.mark.parametrize("name", ["sd_scripts.toml", "kohya_ss.json", "onetrainer.json"])
def test_the_converted_file_trains_the_same_and_has_the_notes(name, capsys, caplog):
    assert main(["convert-config", name, "-o", "ours.toml"]) == 0
    said = capsys.readouterr().out
    assert said.endswith("Written to ours.toml\n") and f"{name}: a configuration of" in said
    text = Path("ours.toml").read_text(encoding="utf-8")
    assert text.startswith(f"# {name}: a configuration of")
    notes = said.splitlines()[:-1]
    assert [line[2:] for line in text.splitlines()[: len(notes)]] == notes
    assert read("--config", "ours.toml") == read("--config", name)
    assert main(["convert-config", "ours.toml"]) == 1
    assert "Settings of this trainer need no translation" in capsys.readouterr().err
    assert main(["convert-config", name, "-o", "ours.toml"]) == 1
    assert "ours.toml exists already" in capsys.readouterr().err


def test_without_an_output_the_converted_file_is_printed(capsys):
    assert main(["convert-config", "sd_scripts.toml", "--dataset-config", "sd_scripts_datasets.toml"]) == 0
    printed = capsys.readouterr().out
    Path("ours.toml").write_text(printed, encoding="utf-8")
    assert read("--config", "ours.toml")["resolution"] == 768
