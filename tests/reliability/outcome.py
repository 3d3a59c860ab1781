"""What came of a kind of fault: how often it was tried, what failed, and facts for the table."""

from dataclasses import dataclass, field


@dataclass
class Outcome:
    name: str
    num_tried: int = 0
    failures: list[str] = field(default_factory=list)
    facts: dict[str, float | str] = field(default_factory=dict)

    def add(self, problems: list[str], what: str) -> None:
        self.num_tried += 1
        self.failures += [f"{what}: {problem}" for problem in problems]

    def row(self) -> str:
        facts = ", ".join(
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in self.facts.items()
        )
        return f"{self.name:<44} {self.num_tried:>6} {len(self.failures):>7}  {facts}"
