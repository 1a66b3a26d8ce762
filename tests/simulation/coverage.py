"""Coverage: what the worlds went through, added up over seeds."""

from collections import Counter

from hillfire.meta.manager.chains import TABLE
from hillfire.meta.manager.rules import RULES as MANAGER_RULES
from hillfire.storage.craq.rules import RULES

Counts = Counter[str]


class Coverage:
    """Counters of one world."""

    def __init__(self) -> None:
        self.counts: Counts = Counter()
        self.rules: Counter[int] = Counter()
        self.rows: Counter[int] = Counter()
        self.events = 0

    def rule(self, number: int) -> None:
        """A numbered rule of the protocol was carried out."""
        self.rules[number] += 1

    def row(self, number: int) -> None:
        """A row of the state table decided."""
        self.rows[number] += 1

    def count(self, what: str) -> None:
        """Something else that is worth counting happened."""
        self.counts[what] += 1

    def fault(self, kind: str) -> None:
        """A fault was injected."""
        self.counts[f"fault {kind}"] += 1

    @property
    def faults(self) -> int:
        return sum(n for what, n in self.counts.items() if what.startswith("fault "))

    def add(self, other: "Coverage") -> None:
        """Take in what another world went through."""
        self.counts += other.counts
        self.rules += other.rules
        self.rows += other.rows
        self.events += other.events

    def sums(self) -> dict[str, object]:
        """Return everything as plain data."""
        return {
            "operations": self.counts["operations"],
            "faults": self.faults,
            "events": self.events,
            "counts": dict(sorted(self.counts.items())),
            "rules": {f"R{n}": self.rules[n] for n in (*RULES, *MANAGER_RULES)},
            "rows": dict(enumerate(self.rows[n] for n in range(len(TABLE)))),
        }

    def table(self, seeds: int, cpu_s: float, elapsed_s: float) -> str:
        """Say it to a person."""
        each_s = cpu_s / max(1, seeds)
        lines = [
            f"{seeds} seeds in {elapsed_s:.0f} s, {each_s:.2f} s of CPU each: "
            f"{self.counts['operations']} operations, {self.faults} faults"
        ]
        lines += [f"  {what:<24} {count}" for what, count in sorted(self.counts.items())]
        rules = " ".join(f"R{n}:{self.rules[n]}" for n in (*RULES, *MANAGER_RULES))
        rows = " ".join(f"{n}:{self.rows[n]}" for n in range(len(TABLE)))
        lines += [f"  rules  {rules}", f"  rows   {rows}"]
        return "\n".join(lines)
