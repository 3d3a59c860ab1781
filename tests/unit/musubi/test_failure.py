"""Causes of failures in the user's words, from the last lines of Musubi's programs."""

from pathlib import Path

import pytest

from trainers.musubi.failure import describe_failure, explain


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        (
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
            "the GPU ran out of memory. Turn on fp8, raise blocks_to_swap",
        ),
        (
            "RuntimeError: [enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory",
            "the computer's memory is not enough",
        ),
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        (
            "ValueError: Cannot use chat template functions because tokenizer.chat_template is not set",
            "a tokenizer is not in the Hugging Face cache",
        ),
        (
            "TypeError: expected str, bytes or os.PathLike object, not NoneType",
            "a tokenizer is not in the Hugging Face cache",
        ),
        ("ModuleNotFoundError: No module named 'musubi_tuner'", "Musubi Tuner's own package cannot be imported"),
        ("ModuleNotFoundError: No module named 'easydict'", "easydict is not installed in Musubi Tuner's Python"),
        (
            "ImportError: No bitsandbytes / bitsandbytesがインストールされていないようです",
            "bitsandbytes is not installed",
        ),
        ('\tMissing key(s) in state_dict: "x". ', "a model file is not the kind that the architecture needs"),
        ("RuntimeError: No training items found in the dataset", "Musubi Tuner found nothing in its caches"),
        (
            "x.py: error: unrecognized arguments: --fp8_llm",
            "this version of Musubi Tuner does not know --fp8_llm. Use v0.3.4",
        ),
        ("x.py: error: argument --sampler: invalid choice: 'a'", "takes other arguments (argument --sampler"),
        (
            "AssertionError: DiT weights are in fp16, mixed precision must be fp16 or no",
            "mixed_precision must be fp16 or no. Set it to auto",
        ),
        ("ZeroDivisionError: division by zero", "ZeroDivisionError: division by zero"),
        ("goodbye", "it ended with status 1 and did not say why"),
    ],
)
def test_a_failure_is_explained(line: str, cause: str):
    assert cause in explain([line], returncode=1)
    assert cause in explain(
        ["Failed to load: No module named 'kernels'", "Traceback (most recent call last):", line], returncode=1
    )


def test_the_needed_tokenizers_are_named():
    assert "(needed: a/b, c/d)" in explain(["OfflineModeIsEnabled: x"], returncode=1, tokenizers=["a/b", "c/d"])


def test_a_signal_explains_the_end_whatever_was_written_before():
    warning = ["WARNING: No module named 'kernels'"]
    assert "killed (SIGKILL)" in explain(warning, returncode=-9) and "memory runs out" in explain([], returncode=-9)
    assert explain(warning, returncode=-15) == "the process was ended by SIGTERM"
    assert "memory is not enough" in explain(
        ["terminate called after throwing an instance of 'std::bad_alloc'"], returncode=-6
    )
    assert explain([], returncode=-11) == "the process was ended by SIGSEGV"


def test_the_message_has_the_stage_the_cause_the_last_twenty_lines_and_the_log():
    lines = [f"line {number}" for number in range(50)] + ["ValueError: nothing works."]
    message = str(describe_failure("latents", lines, returncode=1, log=Path("/run/musubi.log")))
    assert message.startswith(
        "Musubi Tuner failed at encoding images: ValueError: nothing works.\nIts last lines (/run/musubi.log has all):"
    )
    assert "line 31" in message and "line 30" not in message
    assert str(describe_failure("train", [], returncode=1, log=Path("x"))).endswith("(it wrote nothing)")
