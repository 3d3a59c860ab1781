"""The settings of the tools for finished LoRAs."""

from dataclasses import dataclass

from ...config import check_ranges, param

SAVE_DTYPES = ("auto", "fp32", "fp16", "bf16")
_SHARE = (
    "Keep only as many singular values of each module as this share of its Frobenius norm needs, at most rank. "
    "Usually 0.9 to 0.99; 1: all."
)
_SAVE_DTYPE = "Number format of the file. auto: that of the weights that came in, fp32 if they differ."


@dataclass(frozen=True)
class ResizeConfig:
    rank: int = param(16, "Highest rank of a module. 0: as high as norm_share needs.", min=0, max=4096)
    norm_share: float = param(1.0, _SHARE, min=0.01, max=1.0)
    save_dtype: str = param("auto", _SAVE_DTYPE, choices=SAVE_DTYPES)

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class MergeConfig(ResizeConfig):
    rank: int = param(
        0,
        "Highest rank of a module, by singular values. 0: as high as norm_share needs; with a norm_share of 1 nothing "
        "is lost, and ranks add up.",
        min=0,
        max=4096,
    )


@dataclass(frozen=True)
class ExtractConfig(ResizeConfig):
    rank: int = param(32, "Highest rank of a module. Usually 16 to 128; the file grows with it.", min=1, max=4096)
    save_dtype: str = param("fp16", "Number format of the file.", choices=SAVE_DTYPES[1:])
