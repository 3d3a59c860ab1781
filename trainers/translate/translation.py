"""A configuration of another program in our settings, with what became of each of its settings."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from ..config import check_value, list_field_names
from ..similar_names import name_here
from .values import Reader, is_off, show

NOTHING: Any = object()  # in place of a default: the setting is left to ours
# Settings of the command, not of a config class.
COMMAND_SETTINGS = ("base", "output", "output_dir", "base_dtype")


@dataclass(frozen=True)
class Note:
    """name: theirs, with its value where that matters. text: what became of it, or why nothing."""

    name: str
    text: str


@dataclass(frozen=True)
class Translation:
    """settings: by our names, with tables of DatasetConfig under `datasets`. same: what is so here
    anyway. lost: what changes the LoRA and is not here. without_effect: the rest that is not here.
    """

    program: str
    settings: dict[str, Any]
    taken: list[Note] = field(default_factory=list)
    same: list[Note] = field(default_factory=list)
    lost: list[Note] = field(default_factory=list)
    without_effect: list[Note] = field(default_factory=list)

    def text(self, file: str) -> str:
        """All notes, with the losses last: that is where a terminal is read first."""
        parts = (
            ("Taken:", " -> ", self.taken),
            ("So here anyway:", ": ", _by_text(self.same)),
            ("Not taken, without effect on the LoRA:", ": ", _by_text(self.without_effect)),
            ("NOT TAKEN, SO THE LORA WILL DIFFER:", ": ", self.lost),
        )
        lines = [f"{file}: a configuration of {self.program}"]
        for title, sign, notes in parts:
            lines += [title] * bool(notes)
            lines += [f"  {note.name}{sign}{note.text}" for note in notes]
        return "\n".join(lines)


def _by_text(notes: Iterable[Note]) -> list[Note]:
    """Put settings with the same reason on one line."""
    names: dict[str, list[str]] = {}
    for note in notes:
        names.setdefault(note.text, []).append(note.name)
    return [Note(", ".join(together), text) for text, together in names.items()]


@dataclass(frozen=True)
class Row:
    """One setting of another program that has a counterpart here.

    ours: its name here, if similar_names.py does not tell. default: what their program does where
    the file does not say; NOTHING leaves it to ours. off: values that turn it off, besides nothing,
    false and 0; only these can be left out where the setting does not exist here.
    """

    name: str
    read: Reader
    default: Any = NOTHING
    ours: str = ""
    off: tuple[Any, ...] = ()

    @property
    def our_name(self) -> str:
        return self.ours or name_here(self.name)


class Translator:
    """Moves settings one by one from theirs to ours, and notes what became of each.

    `labels` are the names to show, where the file calls a setting otherwise than this code.
    """

    def __init__(
        self, program: str, given: Mapping[str, Any], configs: Sequence[type], labels: Mapping[str, str] | None = None
    ) -> None:
        self.given = dict(given)
        self.settings: dict[str, Any] = {}
        self._configs = configs
        self._labels = labels or {}
        self._read: set[str] = set()
        self._parts: set[str] = set()
        self._result = Translation(program, self.settings)

    @property
    def program(self) -> str:
        return self._result.program

    def is_given(self, name: str) -> bool:
        """True if the file gives a value: neither nothing nor an empty text."""
        return name in self._parts or self.given.get(name) not in (None, "")

    def name_part(self, shown: str) -> str:
        """Return a name to take or lose a part of a setting by, such as one of its arguments. It is
        shown as it is.
        """
        self._parts.add(shown)
        return shown

    def get(self, name: str, read: Reader, default: Any = None) -> Any:
        """Return their value. It counts as read: the caller says what became of it.

        Raises:
            ValueError: it is of the wrong kind.
        """
        self._read.add(name)
        if not self.is_given(name):
            return default
        try:
            return read(self.given[name])
        except ValueError as error:
            raise ValueError(f"{self.label(name)} {error}, got {self.given[name]!r}") from None

    def take_rows(self, rows: Iterable[Row]) -> None:
        for row in rows:
            value = self.get(row.name, row.read, row.default)
            if value is not NOTHING:
                self.take(row.name, value, ours=row.our_name, off=row.off)

    def take(self, name: str, value: Any, *, ours: str, off: tuple[Any, ...] = (), remark: str = "") -> None:
        """Set ours to the value that comes from their setting, or note why that cannot be."""
        self._read.add(name)
        config = self._find_config(ours)
        label = self.describe(name)
        if config is None and (ours not in COMMAND_SETTINGS or is_off(value)):
            if not (is_off(value) or value in off):
                self.lose(name, "there is no such setting here")
            return
        if config is not None:
            try:
                value = check_value(config, ours, value, source=ours)
            except ValueError as error:
                self.lose(name, str(error))
                return
        if self.is_given(name):
            self._result.taken.append(Note(label, f"{ours} {show(value)}{remark and f' ({remark})'}"))
        elif config is None or value != _find_default(config, ours):
            self._result.taken.append(Note(f"{self.label(name)} (not given)", f"{ours} {show(value)}"))
        self.settings[ours] = value

    def take_table(self, name: str, text: str) -> None:
        """Note that a setting went into a table of a dataset."""
        self._read.add(name)
        if self.is_given(name):
            self.add_taken(Note(self.describe(name), text))

    def add_taken(self, note: Note) -> None:
        self._result.taken.append(note)

    def same(self, name: str, reason: str) -> None:
        self._note(self._result.same, self.describe(name), name, reason)

    def lose(self, name: str, reason: str) -> None:
        self._note(self._result.lost, self.describe(name), name, reason)

    def without_effect(self, name: str, reason: str) -> None:
        self._note(self._result.without_effect, self.label(name), name, reason)

    def note_table(self, reasons: Mapping[str, str], note: Any) -> None:
        """Note every given setting of the table that is not off."""
        for name, reason in reasons.items():
            if name in self.given and name not in self._read:
                self._read.add(name)
                if not is_off(self.given[name]):
                    note(name, reason)

    def finish(self, is_of_another_model: Any) -> Translation:
        """Note what nobody has read: an unknown setting counts as a loss unless it is off."""
        rest = [name for name, value in self.given.items() if name not in self._read and not is_off(value)]
        others = [name for name in rest if is_of_another_model(name)]
        for name in rest:
            if name not in others:
                self.lose(name, "is not known here")
        for name in others:
            self.without_effect(name, "belongs to other models, or counts only with other settings")
        return self._result

    def label(self, name: str) -> str:
        return self._labels.get(name, name)

    def describe(self, name: str) -> str:
        """Return the name with its value, unless that is just true."""
        if name in self._parts or not self.is_given(name) or self.given[name] is True:
            return self.label(name)
        return f"{self.label(name)} {show(self.given[name])}"

    def _note(self, notes: list[Note], shown: str, name: str, reason: str) -> None:
        self._read.add(name)
        notes.append(Note(shown, reason))

    def _find_config(self, ours: str) -> type | None:
        return next((config for config in self._configs if ours in list_field_names(config)), None)


def _find_default(config: type, ours: str) -> Any:
    return next(spec.default for spec in fields(config) if spec.name == ours)
