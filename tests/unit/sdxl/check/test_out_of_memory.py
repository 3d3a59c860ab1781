"""When memory runs out on the command line, the error says what to change."""

import pytest
import torch
from PIL import Image

from trainers.dataset.config import DatasetConfig
from trainers.dataset.scan import scan_folder
from trainers.sdxl.check.out_of_memory import explaining_out_of_memory
from trainers.sdxl.config import SDXLConfig
from trainers.training.plan import TrainingPlan, plan_training
from trainers.training.run_settings import RunSettings

CPU = torch.device("cpu")


@pytest.fixture
def plan(tmp_path) -> TrainingPlan[SDXLConfig]:
    Image.new("RGB", (1024, 1024)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a")
    config = SDXLConfig(train_batch_size=2, gradient_checkpointing=False, mixed_precision="bf16")
    return plan_training(scan_folder(DatasetConfig(images=str(tmp_path))), RunSettings(config))


def test_the_error_names_the_need_and_the_next_settings_to_try(plan):
    with (
        pytest.raises(RuntimeError, match="the device ran out of memory") as caught,
        explaining_out_of_memory(plan, CPU),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 MiB")
    text = str(caught.value)
    assert "The run needs about 19." in text and "Next, try gradient_checkpointing on (about 7." in text
    assert "base_dtype fp8 or int8 or nf4" in text
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)


def test_a_base_of_fewer_bits_is_counted_and_not_proposed_again(plan):
    with pytest.raises(RuntimeError) as caught, explaining_out_of_memory(plan, CPU, base_dtype="nf4"):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
    assert "The run needs about 16." in str(caught.value) and "base_dtype" not in str(caught.value)


def test_other_errors_pass(plan):
    with pytest.raises(RuntimeError, match=r"^shapes differ$"), explaining_out_of_memory(plan, CPU):
        raise RuntimeError("shapes differ")
