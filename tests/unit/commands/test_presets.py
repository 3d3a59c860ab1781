"""--goal and --memory on the command line fill what was not given, as the node's do."""

import pytest
from PIL import Image

from trainers.commands.settings import check_base_dtype, check_presets, resolve_presets
from trainers.dataset.bucket_config import BucketConfig
from trainers.dataset.config import DatasetConfig
from trainers.dataset.scan import scan_folder
from trainers.sdxl.check.family_check import SDXLCheck
from trainers.sdxl.config import SDXLConfig
from trainers.training.plan import plan_training
from trainers.training.run_settings import RunSettings


@pytest.fixture
def dataset(tmp_path):
    for number in range(20):
        Image.new("RGB", (64, 64), (number, 0, 0)).save(tmp_path / f"{number}.png")
    return scan_folder(DatasetConfig(images=str(tmp_path), trigger_word="zwx"))


def test_presets_fill_what_was_not_given(dataset):
    given = {"goal": "style", "memory": "8 GB", "learning_rate": 5e-5, "base": "x", "output": "y"}
    config = resolve_presets(given, dataset).training
    assert (config.rank, config.alpha, config.learning_rate) == (32, 16.0, 5e-5)
    assert (config.train_batch_size, config.gradient_accumulation_steps, config.max_train_steps) == (1, 2, 750)


def test_without_presets_nothing_changes(dataset):
    config = resolve_presets({"rank": 4}, dataset).training
    assert (config.rank, config.max_train_steps, config.train_batch_size, config.optimizer) == (4, 1500, 1, "AdamW")


def test_a_goal_alone_leaves_the_memory_settings(dataset):
    config = resolve_presets({"goal": "object", "train_batch_size": 4}, dataset).training
    assert (config.max_train_steps, config.optimizer) == (400, "AdamW")


def test_several_processes_share_the_samples_of_the_goal(dataset):
    given = {"goal": "object", "train_batch_size": 4}
    assert resolve_presets(given, dataset, num_processes=2).training.max_train_steps == 200


@pytest.mark.parametrize(
    ("name", "message"),
    [("goal", "goal must be one of person, style, object; got"), ("memory", "memory must be one of auto, 4 GB")],
)
def test_an_unknown_preset_is_named(name, message):
    with pytest.raises(ValueError, match=message):
        check_presets({name: "dragon"})


def test_an_unknown_base_dtype_is_refused_with_those_that_there_are():
    check_base_dtype({})
    check_base_dtype({"base_dtype": "nf4"})
    with pytest.raises(ValueError, match="base_dtype must be one of fp8, int8, nf4; got 'int4'"):
        check_base_dtype({"base_dtype": "int4"})


def test_the_check_counts_the_weights_in_fewer_bits(dataset):
    plan = plan_training(dataset, RunSettings(SDXLConfig(), BucketConfig(resolution=64)))
    totals = [SDXLCheck("bf16", base_dtype=kind).estimate(plan).memory.weights_bytes for kind in ("", "fp8", "nf4")]
    assert totals == sorted(totals, reverse=True) and totals[2] < 0.4 * totals[0] < totals[1] < 0.6 * totals[0]
