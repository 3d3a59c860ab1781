"""Florence-2's prompts as token ids, and its answers as text, by the tokenizer of the model's own
folder.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

# What Florence-2 writes between words for regions, and BART's own marks. Legacy folders do not know
# the former as tokens.
_MARKS = re.compile(
    r"<loc_\d+>|<image>|</?(?:s|pad|unk|mask|od|ocr|cap|ncap|dcap|grounding|seg|sep|region_cap|region_to_desciption|proposal|poly|and)>"
)


class PromptTokenizer:
    """BART's byte-level tokenizer without anything around it: padding is never needed, for all
    images of a batch have the same prompt.
    """

    def __init__(self, folder: Path) -> None:
        self._tokenizer = _read_tokenizer(folder)

    def encode(self, sentence: str) -> list[int]:
        """Without the marks for start and end."""
        return self._tokenizer.encode(sentence, add_special_tokens=False).ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """Plain text: no marks, no padding, ends trimmed."""
        return _MARKS.sub(" ", self._tokenizer.decode(list(token_ids), skip_special_tokens=True)).strip()


def _read_tokenizer(folder: Path) -> Tokenizer:
    if (folder / "tokenizer.json").is_file():
        try:
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the only class that tokenizers raises
            raise ValueError(f"{folder / 'tokenizer.json'}: it cannot be read ({error}). Download it again") from error
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer
    tokenizer = Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [mark for mark in ("<s>", "<pad>", "</s>", "<unk>", "<mask>") if tokenizer.token_to_id(mark) is not None]
    )
    return tokenizer
