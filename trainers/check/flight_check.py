"""The flight check: what a training will do with a dataset and what it will cost, before any model
is loaded.

It plans the training as the trainer does, looks at every image once, and judges both. report.py
holds what was found, and drawing/ draws it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Generic

from ..dataset.bucket_sizes import Size
from ..dataset.crop_plan import CropPlan
from ..dataset.dataset import Dataset
from ..dataset.image import TrainingImage
from ..dataset.report import DatasetReport
from ..training.config import TrainingConfig
from ..training.plan import TrainingPlan, plan_training
from ..training.run_settings import RunSettings
from .caption_findings import judge_alternatives, judge_sameness, judge_trigger_words, list_variants
from .check_finding import LEVELS, CheckFinding
from .config import FlightCheckConfig
from .cost import Cost, Surroundings, estimate_cost
from .cost_findings import judge_machine, judge_schedule
from .family_check import ConfigT, FamilyCheck
from .image_findings import (
    describe_changes,
    gather_remarks,
    group_duplicates,
    judge_crops,
    judge_duplicates,
    judge_left_out,
    judge_masks,
)
from .image_looks import ImageLook, look_at_images
from .report import FlightReport, ImageUse


def check_flight(
    dataset: Dataset,
    settings: RunSettings[ConfigT],
    family: FamilyCheck[ConfigT],
    check: FlightCheckConfig,
    surroundings: Surroundings,
    *,
    check_interrupted: Callable[[], None] = lambda: None,
    on_progress: Callable[[int, int, str], None] = lambda *_: None,
) -> FlightReport:
    """Plan the training as the trainer does, look at every image, and judge both. A dataset with
    nothing to train on is a finding, not an error.

    Raises:
        RuntimeError: the file of an image has changed since the folder was scanned.
        ModuleNotFoundError: find_near_duplicates is on, and ImageHash is not installed.
    """
    plan, refusals = _plan_if_possible(dataset, settings)
    looks = look_at_images(
        dataset.images,
        take_fingerprints=check.find_near_duplicates,
        check_interrupted=check_interrupted,
        on_progress=on_progress,
    )
    refused_by_family = _judge_settings(family, settings, plan, surroundings)
    # a family cannot count what it refuses, such as layers that the model does not have
    cost = estimate_cost(plan, family, surroundings) if plan and not refused_by_family else Cost()
    checked = _Checked(dataset, settings, plan, looks, cost, check_interrupted)
    if not any(image.caption for image in dataset.images):
        refusals = []  # judge_left_out says the same
    findings = [
        *refusals,
        *refused_by_family,
        *family.judge_model(),
        *_judge_images(checked),
        *family.judge_lengths(list_variants(dataset.images, settings.captions, seed=settings.training.seed)),
        *_judge_captions(checked),
        *judge_schedule(checked.trained, checked.cost.schedule, settings.training),
        *judge_machine(checked.cost, surroundings, settings.training),
    ]
    findings += gather_remarks(checked.crops, findings)
    return _make_report(checked, findings, model=family.title, stop_at=check.stop_at)


@dataclass(frozen=True)
class _Checked(Generic[ConfigT]):
    """A training as it is planned (plan: None if it cannot be), and what its images look like."""

    dataset: Dataset
    settings: RunSettings[ConfigT]
    plan: TrainingPlan[ConfigT] | None
    looks: dict[str, ImageLook]
    cost: Cost
    check_interrupted: Callable[[], None]

    @cached_property
    def crops(self) -> CropPlan:
        return self.plan.crops if self.plan else _make_empty_crops(self.dataset)

    @cached_property
    def uses(self) -> list[ImageUse]:
        return _collect_uses(self.crops)

    @cached_property
    def learned(self) -> list[TrainingImage]:
        """The images that are no regularization, those that are held out too."""
        return [image for image in self.dataset.images if not image.is_regularization]

    @cached_property
    def duplicate_groups(self) -> list[list[str]]:
        return group_duplicates(self.learned, self.looks, check_interrupted=self.check_interrupted)

    @cached_property
    def left_out(self) -> set[str]:
        return {finding.name for finding in self.crops.report.left_out}

    @cached_property
    def held_out(self) -> set[str]:
        return {item.image.name for item in self.plan.validation.held_out} if self.plan else set()

    @property
    def trained(self) -> list[TrainingImage]:
        return [image for image in self.learned if image.name not in self.left_out | self.held_out]


def _judge_images(checked: _Checked) -> Iterator[CheckFinding]:
    yield from judge_left_out(checked.dataset, checked.crops)
    yield from judge_crops(checked.uses, checked.settings.buckets)
    yield from judge_duplicates(checked.duplicate_groups)
    yield from judge_masks(checked.dataset.images, checked.looks)


def _judge_captions(checked: _Checked) -> Iterator[CheckFinding]:
    dataset, captions, learned = checked.dataset, checked.settings.captions, checked.learned
    yield from judge_trigger_words([(image, dataset.get_trigger_word(image)) for image in learned if image.caption])
    yield from judge_alternatives(dataset.images, captions)
    yield from judge_sameness(learned)


def _make_report(checked: _Checked, findings: Sequence[CheckFinding], *, model: str, stop_at: str) -> FlightReport:
    dataset, looks = checked.dataset, checked.looks
    regularization = [image for image in dataset.images if image.is_regularization]
    return FlightReport(
        name=dataset.folder_name,
        model=model,
        stop_at=stop_at,
        uses=checked.uses,
        num_images=len(checked.trained),
        num_regularization=sum(image.name not in checked.left_out for image in regularization),
        num_held_out=len(checked.held_out),
        num_left_out=len(checked.left_out),
        summary=[*dataset.report.summary, *describe_changes(checked.settings.buckets)],
        num_masks=sum(look.mask_share is not None for look in looks.values()),
        cost=checked.cost,
        findings=sorted(findings, key=lambda finding: -LEVELS.index(finding.level)),
        duplicate_groups=checked.duplicate_groups,
        thumbnails={name: look.thumbnail for name, look in looks.items()},
    )


def _judge_settings(
    family: FamilyCheck[ConfigT],
    settings: RunSettings[ConfigT],
    plan: TrainingPlan[ConfigT] | None,
    surroundings: Surroundings,
) -> list[CheckFinding]:
    """Find what the trainer would refuse of the settings on this device, and of the plan for this
    family.
    """
    config = settings.training
    try:
        family.check_settings(config)
        if plan:
            family.check_plan(plan)
        if surroundings.device:
            _require_step(config, surroundings.device)
    except (ValueError, ImportError) as error:
        return [CheckFinding("error", "refused_by_trainer", f"the trainer would stop: {error}")]
    return []


def _require_step(config: TrainingConfig, device: str) -> None:
    import torch  # takes a second to import

    from ..training.optimizers import require_step

    require_step(
        config.optimizer, torch.device(device), weight_decay=config.weight_decay, extra_args=config.optimizer_args
    )


def _plan_if_possible(
    dataset: Dataset, settings: RunSettings[ConfigT]
) -> tuple[TrainingPlan[ConfigT] | None, list[CheckFinding]]:
    """Plan as the trainer does. If it would refuse, return its message as a finding, and if
    possible the plan of a training that is less strict or has no prior preservation.
    """
    try:
        return plan_training(dataset, settings), []
    except ValueError as error:
        refusal = CheckFinding("error", "refused_by_trainer", f"the trainer would stop: {error}")
    if dataset.strict:
        plan, further = _plan_if_possible(replace(dataset, strict=False), settings)
    elif settings.training.prior_loss_weight:
        without_prior = replace(settings.training, prior_loss_weight=0.0)
        plan, further = _plan_if_possible(dataset, replace(settings, training=without_prior))
    else:
        return None, [refusal]
    return (replace(plan, settings=settings), [refusal, *further]) if plan else (None, [refusal])


def _make_empty_crops(dataset: Dataset) -> CropPlan:
    return CropPlan([], DatasetReport(0, dataset.report.left_out, dataset.report.notes), {})


def _collect_uses(crops: CropPlan) -> list[ImageUse]:
    """Collect every image once per size. Random crops differ in each repeat: take the first."""
    uses: dict[tuple[str, Size], ImageUse] = {}
    for item in crops.items:
        key = item.image.name, item.crop.target_hw
        known = uses.get(key)
        uses[key] = replace(known, num_samples=known.num_samples + 1) if known else ImageUse(item.image, item.crop, 1)
    return list(uses.values())
