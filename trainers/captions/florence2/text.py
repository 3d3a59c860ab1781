"""Turns Florence-2's prompts into token ids and its answers into text, with the tokenizer in the
model's folder.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

# Florence-2's marks for regions between words, and BART's own marks. Legacy folders do not define
# the region marks as tokens.
_MARKS = re.compile(
    r"<loc_\d+>|<image>|</?(?:s|pad|unk|mask|od|ocr|cap|ncap|dcap|grounding|seg|sep|region_cap|region_to_desciption|proposal|poly|and)>"
)


class PromptTokenizer:
    """BART's byte-level tokenizer alone. Padding is never needed, as all images of a batch have the
    same prompt.
    """

    def __init__(self, folder: Path) -> None:
        self._tokenizer = _read_tokenizer(folder)

    def encode(self, sentence: str) -> list[int]:
        """Encode the sentence without the marks for start and end."""
        return self._tokenizer.encode(sentence, add_special_tokens=False).ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """Decode to plain text, without marks, padding or spaces at the ends."""
        return _MARKS.sub(" ", self._tokenizer.decode(list(token_ids), skip_special_tokens=True)).strip()


def _read_tokenizer(folder: Path) -> Tokenizer:
    if (folder / "tokenizer.json").is_file():
        try:
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # tokenizers raises nothing more specific
            raise ValueError(f"{folder / 'tokenizer.json'}: cannot be read ({error}). Download it again") from error
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
