"""Reads the output of Musubi's programs as facts: progress bars, counts, checkpoints."""

import codecs
import re
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

MAX_LINES_KEPT = 200
TRAINING_BAR = "steps"


@dataclass(frozen=True)
class Bar:
    """A progress bar as drawn. A scaled one (1.2G of 9.9G) counts in percent. `loss` is that of the
    training bar.
    """

    description: str
    step: int
    total: int
    steps_per_second: float = 0.0  # 0: not known yet
    eta_seconds: float = 0.0
    loss: float | None = None


@dataclass(frozen=True)
class BatchCount:
    """A bar without a total, as the cache scripts draw it: the number of batches done."""

    number: int


@dataclass(frozen=True)
class Epoch:
    number: int


@dataclass(frozen=True)
class Saving:
    """A checkpoint is being written. It is complete when the next fact arrives."""

    path: Path


@dataclass(frozen=True)
class Merging:
    """base_weights are being merged. The next count of modules is theirs."""


@dataclass(frozen=True)
class StatedCount:
    """A number that Musubi states: "images" of one [[datasets]], training "items" per epoch, or
    "modules" that get or have a LoRA.
    """

    what: str
    number: int


@dataclass(frozen=True)
class WeightsLoaded:
    """PyTorch's report on network_weights: the number of names in the file that the model does not
    have, and of names in the model that the file does not have.
    """

    num_unexpected: int
    num_missing: int


Fact = Bar | BatchCount | Epoch | Saving | Merging | StatedCount | WeightsLoaded

_LINE_END = re.compile(r"[\r\n]")
_CURSOR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")  # tqdm moves it for a bar below another one
_BAR = re.compile(
    r"(?P<description>[^:|]*?):?\s*(?P<percent>\d{1,3})%\|[^|]*\|\s*(?P<step>[\d.]+)(?P<scale>[kMGT]?B?)/(?P<total>[\d.]+)[kMGT]?B?\s*"
    r"\[[\d:?]+<(?P<eta>[^\]]*?),\s*(?P<rate>[\d.?]+\s*\S+?/\S+?)(?P<rest>,[^\]]*)?\]"
)
_COUNT = re.compile(r"(?<!\d)(\d+)it \[[\d:]+,\s*[^\]]+\]")
_LOSS = re.compile(r"avr_loss=([-+]?(?:\d+\.?\d*(?:e[-+]?\d+)?|nan|inf))", re.IGNORECASE)
_RATE = re.compile(r"([\d.]+)\s*(\S+)/(\S+)")
_PHRASES: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], Fact]], ...] = (
    (re.compile(r"^epoch (\d+)/\d+$"), lambda match: Epoch(int(match[1]))),
    (re.compile(r"^saving checkpoint: (.+)$"), lambda match: Saving(Path(match[1]))),
    (re.compile(r"^merging module: "), lambda match: Merging()),
    (re.compile(r"\b(?:found|loaded) (\d+) images$"), lambda match: StatedCount("images", int(match[1]))),
    (re.compile(r"^num train items.*: (\d+)$"), lambda match: StatedCount("items", int(match[1]))),
    (re.compile(r"create LoRA for U-Net/DiT: (\d+) modules"), lambda match: StatedCount("modules", int(match[1]))),
    (
        re.compile(r"^load network weights from .*: (<All keys matched|_IncompatibleKeys\().*$"),
        lambda match: _read_weights_loaded(match[0]),
    ),
)


class OutputReader:
    """Takes the output in chunks, calls `on_fact` with each fact, and keeps the last lines without
    their bars. tqdm overwrites a line with carriage returns, so these end lines too.
    """

    def __init__(self, on_fact: Callable[[Fact], None]) -> None:
        self.lines: deque[str] = deque(maxlen=MAX_LINES_KEPT)
        self._on_fact = on_fact
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""

    def feed(self, output: bytes) -> None:
        *lines, self._rest = _LINE_END.split(self._rest + self._decoder.decode(output))
        for line in lines:
            self._read_line(line)

    def idle(self) -> None:
        """Read a waiting bar after a pause: tqdm ends a bar's line only when it redraws the bar."""
        if _BAR.search(self._rest) or _COUNT.search(self._rest):
            line, self._rest = self._rest, ""
            self._read_line(line)

    def finish(self) -> None:
        line, self._rest = self._rest + self._decoder.decode(b"", final=True), ""
        self._read_line(line)

    def _read_line(self, line: str) -> None:
        bars, counts = list(_BAR.finditer(line)), list(_COUNT.finditer(line))
        if bars:
            self._on_fact(_read_bar(bars[-1]))
        elif counts:
            self._on_fact(BatchCount(int(counts[-1][1])))
        drawn = bars or counts
        self._read_text(line[drawn[-1].end() :] if drawn else line)  # a log line may follow a bar

    def _read_text(self, text: str) -> None:
        text = _CURSOR.sub("", text)
        if not text.strip():
            return
        self.lines.append(text.rstrip())
        for fact in _find_facts(text.strip()):
            self._on_fact(fact)


def _read_bar(match: re.Match[str]) -> Bar:
    is_scaled = match["scale"] != "" or "." in match["step"]
    step, total = (int(match["percent"]), 100) if is_scaled else (int(match["step"]), int(float(match["total"])))
    loss = _LOSS.search(match["rest"] or "")
    return Bar(
        match["description"].strip(),
        step,
        total,
        _read_rate(match["rate"]),
        _read_clock(match["eta"]),
        float(loss[1]) if loss else None,
    )


def _find_facts(text: str) -> Iterator[Fact]:
    for pattern, fact_of in _PHRASES:
        match = pattern.search(text)
        if match:
            yield fact_of(match)


def _read_weights_loaded(text: str) -> WeightsLoaded:
    missing, _, unexpected = text.partition("unexpected_keys=")
    return WeightsLoaded(
        num_unexpected=unexpected.count("'") // 2, num_missing=missing.partition("missing_keys=")[2].count("'") // 2
    )


def _read_rate(rate: str) -> float:
    """Return steps per second; 0 while tqdm does not know it yet ("?it/s")."""
    match = _RATE.match(rate)
    if match is None or not float(match[1]):
        return 0.0
    return 1 / float(match[1]) if match[2] == "s" else float(match[1])


def _read_clock(clock: str) -> float:
    """Read the seconds of 05, 01:05, 2:01:05 or 1 day, 2:01:05; 0 for "?"."""
    parts = [int(part) for part in re.findall(r"\d+", clock)]
    return float(sum(number * unit for number, unit in zip(reversed(parts), (1, 60, 3600, 86400), strict=False)))
