"""CLIP's tokenizer for SDXL: turns captions into chunks of 77 token ids, as ComfyUI feeds them to
the text encoders.

The vocabulary is CLIP's (clip_vocabulary/merges.txt, from OpenAI CLIP, MIT licence) and the same
for every SDXL model, so nothing is downloaded and a model folder's tokenizer files are not needed.
"""

from functools import cache
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

START_TOKEN = 49406
END_TOKEN = 49407
CHUNK_LENGTH = 77
TOKENS_PER_CHUNK = CHUNK_LENGTH - 2
MERGES_FILE = Path(__file__).parent / "clip_vocabulary" / "merges.txt"
# CLIP's splitting rule, as published with OpenAI CLIP and used by transformers and ComfyUI.
_WORDS = r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


def tokenize(captions: list[str], *, pad_token: int) -> list[torch.Tensor]:
    """Return the token ids of each caption, int64 [num_chunks, 77].

    Every chunk is START + 75 tokens + END, as in ComfyUI, so a long caption is used to its last
    word. A chunk that is not full ends with END and is padded with `pad_token`: END for text
    encoder 1, and 0 (the token "!") for text encoder 2.
    """
    return [split_into_chunks(ids, pad_token=pad_token) for ids in token_ids(captions)]


def token_ids(captions: list[str]) -> list[list[int]]:
    """Return the token ids of each caption, without START, END and padding."""
    return [encoding.ids for encoding in _build_tokenizer().encode_batch(captions, add_special_tokens=False)]


def count_chunks(num_tokens: int) -> int:
    """Count the chunks of a caption with `num_tokens` tokens; an empty caption has one."""
    return max(1, -(-num_tokens // TOKENS_PER_CHUNK))


def vocabulary() -> dict[str, int]:
    """Return all 49408 tokens with their ids."""
    return _build_tokenizer().get_vocab()


def split_into_chunks(ids: list[int], *, pad_token: int) -> torch.Tensor:
    """Return the ids as tokenize does, int64 [num_chunks, 77]."""
    rows = []
    for start in range(0, max(len(ids), 1), TOKENS_PER_CHUNK):
        row = [START_TOKEN, *ids[start : start + TOKENS_PER_CHUNK], END_TOKEN]
        rows.append(row + [pad_token] * (CHUNK_LENGTH - len(row)))
    return torch.tensor(rows, dtype=torch.int64)


@cache
def _build_tokenizer() -> Tokenizer:
    merges: list[tuple[str, str]] = [
        (first, second)
        for first, second in (line.split() for line in MERGES_FILE.read_text(encoding="utf-8").splitlines()[1:])
    ]
    tokenizer = Tokenizer(
        models.BPE(vocab=_build_vocabulary(merges), merges=merges, end_of_word_suffix="</w>", fuse_unk=False)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    split = pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _build_vocabulary(merges: list[tuple[str, str]]) -> dict[str, int]:
    """Build CLIP's vocabulary: its 256 bytes, the same with an end-of-word mark, one token per
    merge, and two marks.
    """
    byte_symbols = _list_byte_symbols()
    tokens = [*byte_symbols, *(symbol + "</w>" for symbol in byte_symbols), *("".join(pair) for pair in merges)]
    return {token: index for index, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}


def _list_byte_symbols() -> list[str]:
    """List printable symbols for the 256 bytes, in the order that GPT-2 and CLIP number them."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    num_others = 256 - len(printable)
    return [chr(code) for code in printable] + [chr(256 + i) for i in range(num_others)]
