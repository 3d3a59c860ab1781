"""What determines the result of a run: two runs of one identity train the same LoRA."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .file_names import IDENTITY


@dataclass(frozen=True)
class RunIdentity:
    """Plain values by section and name: settings, dataset, model, machine."""

    sections: Mapping[str, Mapping[str, Any]]
    total_steps: int  # not part of the fingerprint: a longer run extends a shorter one

    @property
    def fingerprint(self) -> str:
        text = json.dumps(self.sections, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:40]

    def to_json(self) -> str:
        return json.dumps(
            {"fingerprint": self.fingerprint, "total_steps": self.total_steps, "sections": self.sections},
            indent=2,
            default=str,
        )

    def list_differences(self, other: "RunIdentity") -> list[str]:
        """Name what differs, as in "learning_rate 0.0001, now 0.0002". `other` is the earlier."""
        return [
            f"{name} {_shorten(old)}, now {_shorten(new)}" if section == "settings" else f"the {section}'s {name}"
            for section in self.sections
            for name, new in self.sections[section].items()
            if (old := other.sections.get(section, {}).get(name)) != as_json(new)
        ]


def as_json(value: Any) -> Any:
    """Return a value as JSON gives it back."""
    return json.loads(json.dumps(value, default=str))


def _shorten(value: Any) -> str:
    text = "nothing" if value in (None, "") else str(value)
    return text if len(text) <= 40 else text[:37] + "..."


def read_identity(folder: Path) -> RunIdentity | None:
    """Return None for a folder without one: of an earlier version, or of another program."""
    try:
        content = json.loads((folder / IDENTITY).read_text(encoding="utf-8"))
        identity = RunIdentity(content["sections"], int(content["total_steps"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return identity if identity.fingerprint == content.get("fingerprint") else None
