"""Review Captions: lets the user see and edit the dataset's captions before the training."""

from typing import Any

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..trainers.captions.edits import EditedCaptions, apply_edits, inspect_caption, parse_edits
from ..trainers.dataset.dataset import Dataset
from ..trainers.wording import pluralize
from .host.caption_review import keep_review
from .sockets import CATEGORY, ID_PREFIX, TrainingDataset

# The widget in web/ shows and writes these inputs. Programs may set them too.
_WRITTEN_BY_WIDGET = {"hidden": True}


class ReviewCaptions(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=ID_PREFIX + "ReviewCaptions",
            display_name="Review Captions",
            category=CATEGORY,
            description="Shows every image with its caption, to search and edit one by one or all at once, between "
            "captioning and training. Run once to see the captions; the edits are kept in the workflow, "
            "and the caption files stay as they are.",
            search_aliases=["ReviewCaptions", "edit captions", "caption editor", "tag editor", "dataset tags"],
            has_intermediate_output=True,
            hidden=[io.Hidden.extra_pnginfo],
            inputs=[
                TrainingDataset.Input("dataset", tooltip="From Load Images, or from a captioning node after it."),
                io.String.Input(
                    "edits",
                    default="",
                    optional=True,
                    socketless=True,
                    extra_dict=_WRITTEN_BY_WIDGET,
                    tooltip="The edited captions as a JSON object: each image's caption under the sha256 of its file "
                    "or its name in the dataset.",
                ),
                io.Boolean.Input(
                    "wait_for_review",
                    default=False,
                    optional=True,
                    tooltip="Stop everything after this node until you press Use these captions and run. New captions "
                    "or images need another review.",
                ),
                io.String.Input(
                    "reviewed",
                    default="",
                    optional=True,
                    socketless=True,
                    extra_dict=_WRITTEN_BY_WIDGET,
                    tooltip="Key of the reviewed captions: 64 hexadecimal digits. The message that asks for the review "
                    "shows it.",
                ),
            ],
            outputs=[
                TrainingDataset.Output("dataset", tooltip="The dataset with the edited captions, for Train LoRA."),
                io.String.Output(
                    "captions",
                    is_output_list=True,
                    tooltip="The captions, one per image, in the order of the dataset.",
                ),
                io.String.Output(
                    "report",
                    tooltip="How many captions were edited, are empty or are too long for one chunk of 75 tokens, as "
                    "text.",
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(
        cls, wait_for_review: bool | None = None, reviewed: str | None = None, **_: Any
    ) -> float | str:
        """Return NaN, which never equals itself, until something is reviewed: a run that only waits
        must ask again the next time.
        """
        return float("nan") if wait_for_review and not reviewed else ""

    @classmethod
    def validate_inputs(cls, edits: str | None = None) -> bool | str:
        """`edits` is None if it comes from a link, or is not given."""
        try:
            parse_edits(edits or "")
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls, dataset: Dataset, edits: str = "", wait_for_review: bool = False, reviewed: str = ""
    ) -> io.NodeOutput:
        key = keep_review(dataset)
        edited = apply_edits(dataset.images, parse_edits(edits))
        outgoing = dataset.with_captions(edited.captions)
        request = _ask_for_review(len(edited.captions), key) if wait_for_review and reviewed != key else ""
        report = "\n".join([*_write_report(outgoing, edited), request]).rstrip()
        ui = {"text": [report], "lora_trainer_review": [{"key": key, "waits": bool(request)}]}
        if request:
            blocker = ExecutionBlocker(None if cls._is_run_in_editor() else request)
            return io.NodeOutput(blocker, [blocker], report, ui=ui)
        return io.NodeOutput(outgoing, [image.caption for image in outgoing.images], report, ui=ui)

    @classmethod
    def _is_run_in_editor(cls) -> bool:
        """In the editor, the widget asks for the review: a blocker's message would appear as an
        error of the nodes after it.

        Only the editor sends the workflow along. Programs do not, so they get the error.
        """
        return "workflow" in (cls.hidden.extra_pnginfo or {})


def _ask_for_review(num_captions: int, key: str) -> str:
    return (
        f"{pluralize(num_captions, 'caption')} wait for your review. Press Use these captions and run on Review "
        "Captions, "
        f"or turn wait_for_review off. From a program, set reviewed to {key}"
    )


def _write_report(outgoing: Dataset, edited: EditedCaptions) -> list[str]:
    captions = [image.caption for image in outgoing.images]
    num_long = sum(inspect_caption(caption, "").num_chunks > 1 for caption in captions)
    counts = [
        (len(edited.edited), "edited"),
        (sum(not caption for caption in captions), "empty"),
        (num_long, "longer than 75 tokens"),
    ]
    lines = [
        ", ".join([pluralize(len(captions), "caption"), *(f"{number} {what}" for number, what in counts if number)])
    ]
    if edited.outdated:
        lines.append(f"The incoming caption changed after the edit, which is still used: {', '.join(edited.outdated)}")
    if edited.unknown:
        lines.append(f"Unused edits, for images that are not in this dataset: {', '.join(edited.unknown)}")
    return lines
