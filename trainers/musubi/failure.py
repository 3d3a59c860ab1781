"""Why one of Musubi's programs failed, in the user's words, from the last lines that it wrote."""

import re
import signal
from collections.abc import Sequence
from pathlib import Path

NUM_LINES_SHOWN = 20
STAGES = {
    "base_weights": "converting base_weights",
    "latents": "encoding images",
    "text": "encoding captions",
    "train": "training",
    "convert": "converting the LoRA",
}

# The first that fits is the cause. Its groups and {tokenizers} stand in its advice.
_CAUSES: tuple[tuple[str, str], ...] = (
    (
        r"CUDA out of memory|torch\.(cuda\.)?OutOfMemoryError|CUBLAS_STATUS_ALLOC_FAILED",
        "the GPU ran out of memory. Turn on fp8, raise blocks_to_swap, or lower train_batch_size or resolution, in "
        "this order",
    ),
    (
        r"DefaultCPUAllocator: (can't|not enough)|\bMemoryError\b|std::bad_alloc",
        "the computer's memory is not enough. Lower blocks_to_swap, or close other programs",
    ),
    (
        r"No space left on device|os error 28|errno 28|disk full",
        "the disk is full. Free some space, or keep fewer checkpoints (keep_last_n_checkpoints)",
    ),
    (
        r"expected str, bytes or os\.PathLike object, not NoneType|LocalEntryNotFoundError|couldn't connect to "
        r"'https://huggingface\.co'"
        r"|We have no connection|outgoing traffic has been disabled|OfflineModeIsEnabled|Can't load tokenizer for"
        r"|tokenizer\.chat_template is not set",
        "a tokenizer is not in the Hugging Face cache, and could not be fetched{tokenizers}. "
        "Go online for the first run with this architecture, and leave HF_HUB_OFFLINE unset",
    ),
    (
        r"GatedRepoError|Access to model \S+ is restricted",
        "Hugging Face gives the tokenizer only to users who are logged in{tokenizers}: run `hf auth login`",
    ),
    (
        r"No module named 'musubi_tuner",
        "Musubi Tuner's own package cannot be imported. Is its folder whole? Run Musubi Doctor",
    ),
    (
        r"No module named '(?P<module>[\w.]+)'|No (?P<package>bitsandbytes|xformers|prodigyopt|flash_attn)\b",
        "{module}{package} is not installed in Musubi Tuner's Python. Install it there; Musubi Doctor names the "
        "command",
    ),
    (
        r"(Missing|Unexpected) key\(s\) in state_dict|size mismatch for |KeyError: '[\w.]*(weight|bias)'|Cannot "
        r"copy out of meta tensor",
        "a model file is not of the kind that the architecture needs. Check which file is chosen for each model input",
    ),
    (
        r"mixed precision must be (?P<precision>.+)",
        "the model file has another number format: mixed_precision must be {precision}. Set it to auto",
    ),
    (
        r"No training items found",
        "Musubi Tuner found nothing in its caches. Delete the cache folder that its log names, and start again",
    ),
    (
        r"unrecognized arguments?: (?P<argument>.*)",
        "this version of Musubi Tuner does not know {argument}. Use v0.3.4 or newer",
    ),
    (
        r"error: (?P<usage>(argument|the following arguments) .*)",
        "this version of Musubi Tuner takes other arguments ({usage}). Use v0.3.4 or newer",
    ),
    (
        r"CUDA driver version is insufficient|no kernel image is available|not compiled with CUDA",
        "Musubi Tuner's torch does not fit the GPU or its driver. Run Musubi Doctor",
    ),
)
_ERROR_LINE = re.compile(r"[\w.]*(Error|Exception|Invalid|Interrupt|Exit)\b.*")
# signals from outside: what was written before is not the reason
_LAST_WORDS = (
    "SIGKILL",
    "SIGTERM",
    "SIGINT",
    "SIGHUP",
)


class MusubiFailed(RuntimeError):
    """One of Musubi's programs did not do its work; the message has the cause, its last lines, and
    the path of its log.
    """


def failure_of(
    stage: str, lines: Sequence[str], *, returncode: int, log: Path, tokenizers: Sequence[str] = ()
) -> MusubiFailed:
    """`lines` are the last that were written, oldest first; `returncode` below 0 is the signal that
    ended it.
    """
    cause = explain(lines, returncode=returncode, tokenizers=tokenizers)
    return MusubiFailed(f"Musubi Tuner failed at {STAGES[stage]}: {cause}.\n{shown(lines, log)}")


def shown(lines: Sequence[str], log: Path) -> str:
    last = [f"  {line}" for line in lines[-NUM_LINES_SHOWN:]] or ["  (it wrote nothing)"]
    return "\n".join([f"Its last lines ({log} has all):", *last])


def explain(lines: Sequence[str], *, returncode: int, tokenizers: Sequence[str] = ()) -> str:
    """The cause and its remedy; without a known one the last error that was named, or how the
    process ended.
    """
    signal_name = _signal_name(-returncode) if returncode < 0 else ""
    if signal_name in _LAST_WORDS:
        return _ended_by(signal_name)
    traceback = _traceback(lines)
    known = _known_cause(traceback, tokenizers)
    if known:
        return known
    if signal_name:
        return _ended_by(signal_name)
    named = next((line.strip().rstrip(".") for line in reversed(traceback) if _ERROR_LINE.fullmatch(line.strip())), "")
    return named or f"it ended with status {returncode} and did not say why"


def _traceback(lines: Sequence[str]) -> Sequence[str]:
    """From the first traceback on: warnings above it may name packages that are not needed. All
    lines where there is none.
    """
    start = next(
        (number for number, line in enumerate(lines) if line.startswith("Traceback (most recent call last)")), 0
    )
    return lines[start:]


def _known_cause(lines: Sequence[str], tokenizers: Sequence[str]) -> str:
    text = "\n".join(lines)
    for pattern, advice in _CAUSES:
        match = re.search(pattern, text, re.IGNORECASE)
        if match:
            needed = f" (needed: {', '.join(tokenizers)})" if tokenizers else ""
            return advice.format(
                **{name: value.strip() for name, value in match.groupdict(default="").items()}, tokenizers=needed
            )
    return ""


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _ended_by(name: str) -> str:
    if name == "SIGKILL":
        return (
            "the process was killed (SIGKILL). The system does so when the computer's memory runs out: lower "
            "blocks_to_swap, or close other programs"
        )
    return f"the process was ended by {name}"
