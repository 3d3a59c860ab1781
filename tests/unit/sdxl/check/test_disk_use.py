"""How many bytes a training writes."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.dataset.imagined import imagine_dataset
from trainers.dataset.bucket_config import BucketConfig
from trainers.dataset.crop_plan import plan_crops
from trainers.sdxl.check.disk_use import estimate_disk_use
from trainers.sdxl.config import SDXLConfig
from trainers.training.schedule import plan_schedule


def test_latents_bytes_match_what_the_cache_writes(tmp_path: Path) -> None:
    from safetensors.torch import save
    from torch import zeros

    plan = plan_crops(imagine_dataset(3), BucketConfig(resolution=1024), seed=0)
    disk = estimate_disk_use(
        plan.items,
        SDXLConfig(),
        plan_schedule(plan, SDXLConfig()),
        chunks_by_text=[1, 2],
        random_flip=True,
        num_parameters=1000,
    )
    file_bytes = len(save({"latents": zeros(4, 128, 128)}))
    assert disk.latents_bytes == pytest.approx(2 * 3 * file_bytes, rel=0.01)
    embeddings = sum(
        len(save({"prompt_embeds": zeros(1, 77 * n, 2048).half(), "pooled_prompt_embeds": zeros(1, 1280).half()}))
        for n in (1, 2)
    )
    assert disk.captions_bytes == pytest.approx(embeddings, rel=0.01)
    assert disk.lora_bytes == 2000


def test_masks_count_once_even_if_images_are_flipped() -> None:
    from safetensors.torch import save
    from torch import zeros

    dataset = imagine_dataset(3)
    masked = replace(
        dataset, images=[replace(image, mask_sha256=image.sha256) for image in dataset.images[:2]] + dataset.images[2:]
    )
    sizes = []
    for each in (dataset, masked):
        plan = plan_crops(each, BucketConfig(resolution=1024), seed=0)
        disk = estimate_disk_use(
            plan.items,
            SDXLConfig(),
            plan_schedule(plan, SDXLConfig()),
            chunks_by_text=[],
            random_flip=True,
            num_parameters=1,
        )
        sizes.append(disk.latents_bytes)
    assert sizes[1] - sizes[0] == pytest.approx(2 * len(save({"mask": zeros(1, 128, 128)})), rel=0.02)


@pytest.mark.parametrize(
    ("settings", "number"), [({}, 0), ({"save_every_n_steps": 500}, 2), ({"save_every_n_epochs": 100}, 4)]
)
def test_checkpoints_are_counted_without_the_finished_lora(settings: dict, number: int) -> None:
    plan = plan_crops(imagine_dataset(3), BucketConfig(resolution=128), seed=0)
    config = SDXLConfig(max_train_steps=1500, **settings)
    assert (
        estimate_disk_use(
            plan.items, config, plan_schedule(plan, config), chunks_by_text=[], random_flip=False, num_parameters=1
        ).num_checkpoints
        == number
    )
