"""Explains why one of Musubi's programs failed, from the last lines that it wrote."""

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

# The first pattern that matches is the cause. Its groups and {tokenizers} are filled into its
# advice.
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
        "a tokenizer is not in the Hugging Face cache and could not be downloaded{tokenizers}. "
        "Go online for the first run with this architecture, and leave HF_HUB_OFFLINE unset",
    ),
    (
        r"GatedRepoError|Access to model \S+ is restricted",
        "Hugging Face gives the tokenizer only to logged-in users{tokenizers}: run `hf auth login`",
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
        "a model file is not the kind that the architecture needs. Check which file is chosen for each model input",
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
# Signals from outside: the lines written before do not explain them.
_LAST_WORDS = (
    "SIGKILL",
    "SIGTERM",
    "SIGINT",
    "SIGHUP",
)


class MusubiFailed(RuntimeError):
    """One of Musubi's programs failed. The message has the cause, its last lines and the path of
    its log.
    """


def describe_failure(
    stage: str, lines: Sequence[str], *, returncode: int, log: Path, tokenizers: Sequence[str] = ()
) -> MusubiFailed:
    """Return the error for a failed program. `lines` are its last lines, oldest first; a negative
    `returncode` is the signal that ended it.
    """
    cause = explain(lines, returncode=returncode, tokenizers=tokenizers)
    return MusubiFailed(f"Musubi Tuner failed at {STAGES[stage]}: {cause}.\n{format_last_lines(lines, log)}")


def format_last_lines(lines: Sequence[str], log: Path) -> str:
    last = [f"  {line}" for line in lines[-NUM_LINES_SHOWN:]] or ["  (it wrote nothing)"]
    return "\n".join([f"Its last lines ({log} has all):", *last])


def explain(lines: Sequence[str], *, returncode: int, tokenizers: Sequence[str] = ()) -> str:
    """Return the cause and its remedy; if the cause is unknown, the last error in the output, or
    how the process ended.
    """
    signal_name = _name_signal(-returncode) if returncode < 0 else ""
    if signal_name in _LAST_WORDS:
        return _explain_signal(signal_name)
    traceback = _find_traceback(lines)
    known = _find_known_cause(traceback, tokenizers)
    if known:
        return known
    if signal_name:
        return _explain_signal(signal_name)
    named = next((line.strip().rstrip(".") for line in reversed(traceback) if _ERROR_LINE.fullmatch(line.strip())), "")
    return named or f"it ended with status {returncode} and did not say why"


def _find_traceback(lines: Sequence[str]) -> Sequence[str]:
    """Return the lines from the first traceback on, or all if there is none. Warnings above a
    traceback may name packages that are not needed.
    """
    start = next(
        (number for number, line in enumerate(lines) if line.startswith("Traceback (most recent call last)")), 0
    )
    return lines[start:]


def _find_known_cause(lines: Sequence[str], tokenizers: Sequence[str]) -> str:
    text = "\n".join(lines)
    for pattern, advice in _CAUSES:
        match = re.search(pattern, text, re.IGNORECASE)
        if match:
            needed = f" (needed: {', '.join(tokenizers)})" if tokenizers else ""
            return advice.format(
                **{name: value.strip() for name, value in match.groupdict(default="").items()}, tokenizers=needed
            )
    return ""


def _name_signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _explain_signal(name: str) -> str:
    if name == "SIGKILL":
        return (
            "the process was killed (SIGKILL). The system does so when the computer's memory runs out: lower "
            "blocks_to_swap, or close other programs"
        )
    return f"the process was ended by {name}"
