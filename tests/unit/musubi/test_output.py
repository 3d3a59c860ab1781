"""Reading the output of Musubi's programs, however it is cut into chunks."""

from pathlib import Path

import pytest

from trainers.musubi.output import (
    MAX_LINES_KEPT,
    Bar,
    BatchCount,
    Epoch,
    Fact,
    Merging,
    OutputReader,
    Saving,
    StatedCount,
    WeightsLoaded,
)

# Recorded from v0.3.4: prints on stdout, logging and tqdm on stderr, in one stream.
TRAINING = (
    "INFO:musubi_tuner.dataset.datasources:found 3 images\n"
    "import network module: networks.lora_zimage\n"
    "merging module: /loras/adapter.safetensors with multiplier 1.0\n"
    "INFO:musubi_tuner.networks.lora:create LoRA for U-Net/DiT: 14 modules.\n"
    "Loading z_image.safetensors:  50%|█████     | 1/2 [00:00<00:00, 12.00it/s]\r"
    "Loading z_image.safetensors: 100%|██████████| 2/2 [00:00<00:00, 24.00it/s]\n"
    "  num train items / 学習画像、動画数: 6\n"
    "  total optimization steps / 学習ステップ数: 8\n"
    "steps:   0%|          | 0/8 [00:00<?, ?it/s]\n"
    "epoch 1/2\n"
    "\rsteps:  12%|█▎        | 1/8 [00:00<00:01,  4.05it/s]\rsteps:  12%|█▎        | 1/8 [00:00<00:01,  4.05it/s, "
    "avr_loss=1.32]"
    "\rsteps:  25%|██▌       | 2/8 [00:02<00:07,  1.25s/it, avr_loss=1.32]\rsteps:  25%|██▌       | 2/8 "
    "[00:02<00:07,  1.25s/it, avr_loss=1.22]"
    "INFO:x:a line behind it\n"
    "\nsaving checkpoint: /runs/été [1]/disc-step00000002.safetensors\n"
    "\rsteps:  38%|███▊      | 3/8 [1:01:05<1 day, 2:00:01,  1.25s/it, avr_loss=nan]"
).encode()


def read_facts(output: bytes, *, size: int) -> tuple[list[Fact], OutputReader]:
    facts: list[Fact] = []
    reader = OutputReader(facts.append)
    for start in range(0, len(output), size):
        reader.feed(output[start : start + size])
    reader.finish()
    return facts, reader


@pytest.mark.parametrize("size", [1, 7, 64, 100_000])
def test_the_output_of_a_training_is_read_completely_however_it_is_cut(size: int):
    facts, reader = read_facts(TRAINING, size=size)
    bars = [fact for fact in facts if isinstance(fact, Bar) and fact.description == "steps"]
    assert [(bar.step, bar.total) for bar in bars] == [(0, 8), (1, 8), (1, 8), (2, 8), (2, 8), (3, 8)]
    assert [bar.loss for bar in bars[:5]] == [None, None, 1.32, 1.32, 1.22] and bars[5].loss != bars[5].loss
    assert [bar.steps_per_second for bar in bars[1:4]] == [4.05, 4.05, pytest.approx(0.8)]
    assert [bar.eta_seconds for bar in bars] == [0, 1, 1, 7, 7, 86400 + 2 * 3600 + 1]
    others = [fact for fact in facts if not isinstance(fact, Bar)]
    assert others == [
        StatedCount("images", 3),
        Merging(),
        StatedCount("modules", 14),
        StatedCount("items", 6),
        Epoch(1),
        Saving(Path("/runs/été [1]/disc-step00000002.safetensors")),
    ]
    assert "INFO:x:a line behind it" in reader.lines


def test_bars_of_other_stages_have_their_own_names():
    facts, _ = read_facts(TRAINING, size=100)
    assert [
        fact.step for fact in facts if isinstance(fact, Bar) and fact.description == "Loading z_image.safetensors"
    ] == [1, 2]


def test_scaled_bars_count_in_percent():
    facts, _ = read_facts(
        "\rmodel.safetensors:  12%|█▏        | 1.20G/9.90G [00:10<01:20, 110MB/s]\r  5%|▌  | 52.0/1.0k [00:01<?, "
        "?it/s]".encode(),
        size=100,
    )
    assert facts == [Bar("model.safetensors", 12, 100, 110.0, 80.0), Bar("", 5, 100)]


def test_a_bar_without_a_total_counts():
    facts, reader = read_facts(
        b"\r0it [00:00, ?it/s]\r1it [00:00,  5.96it/s]\r3it [00:00,  5.96it/s]INFO:__main__:Done!", size=9
    )
    assert facts == [BatchCount(0), BatchCount(1), BatchCount(3)] and list(reader.lines) == ["INFO:__main__:Done!"]


def test_a_pause_ends_a_bar_but_not_half_a_line():
    facts: list[Fact] = []
    reader = OutputReader(facts.append)
    reader.feed(b"\rsteps:  12%|#2        | 1/8 [00:00<00:01,  4.05it/s, avr_loss=0.5]")
    assert facts == []
    reader.idle()
    assert [fact.loss for fact in facts if isinstance(fact, Bar)] == [0.5]
    reader.feed(b"\n  num train items / images: 1")
    reader.idle()
    reader.feed(b"2\n")
    assert facts[1:] == [StatedCount("items", 12)]


@pytest.mark.parametrize(
    ("said", "unexpected", "missing"),
    [
        ("<All keys matched successfully>", 0, 0),
        ("_IncompatibleKeys(missing_keys=['a.b', 'c.d'], unexpected_keys=[])", 0, 2),
        ("_IncompatibleKeys(missing_keys=['a'], unexpected_keys=['x', 'y', 'z'])", 3, 1),
    ],
)
def test_partly_loaded_weights_are_counted(said: str, unexpected: int, missing: int):
    facts, _ = read_facts(f"load network weights from /a b/été.safetensors: {said}\n".encode(), size=50)
    assert facts == [WeightsLoaded(num_unexpected=unexpected, num_missing=missing)]


def test_images_with_control_images_are_not_counted_twice():
    facts, _ = read_facts(
        b"INFO:d:loaded 4 images\nINFO:d:found 4 images with 1 control images per image in JSONL data\n", size=1000
    )
    assert facts == [StatedCount("images", 4)]


def test_bytes_in_another_encoding_are_replaced():
    facts, reader = read_facts("é".encode("cp1252") + b"\nfound 2 images\n" + "学".encode("cp932"), size=3)
    assert facts == [StatedCount("images", 2)] and reader.lines[0] == "\ufffd"


def test_only_the_last_lines_are_kept_without_bars():
    _, reader = read_facts(b"".join(b"line %d\n" % number for number in range(1000)) + TRAINING, size=4096)
    assert len(reader.lines) == MAX_LINES_KEPT and not any("steps:" in line for line in reader.lines)
