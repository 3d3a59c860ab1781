"""SDXL is no edit model."""

import pytest

from tests.unit.dataset.folders import scan, write_photo
from trainers.dataset.bucket_config import BucketConfig
from trainers.sdxl.config import SDXLConfig
from trainers.sdxl.family import SDXLFamily
from trainers.training.console_host import ConsoleHost
from trainers.training.plan import plan_training
from trainers.training.run_settings import RunSettings


def test_control_images_are_refused_before_a_model_is_loaded(tmp_path):
    def load(_):
        raise AssertionError("loaded")

    write_photo(tmp_path / "images" / "a.png")
    write_photo(tmp_path / "seen" / "a.png", caption=None)
    dataset = scan(tmp_path / "images", control_images=str(tmp_path / "seen"))
    plan = plan_training(dataset, RunSettings(SDXLConfig(), BucketConfig(resolution=64)))
    message = "1 image with control images, but SDXL does not look at control images. Choose Qwen-Image-Edit, FLUX.1"
    with ConsoleHost() as host, pytest.raises(ValueError, match=message):
        SDXLFamily(load).identify(plan, host)
