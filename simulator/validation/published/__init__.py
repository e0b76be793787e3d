"""Published figures of the systems that are modelled, simulated and compared: one file a system."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from simulator.errors import InputError, nearest
from simulator.validation.published import (
    cachegen,
    deepep,
    deepseek,
    distserve,
    dynamo,
    mooncake,
    splitwise,
    tensorrt_llm,
)
from simulator.validation.published.rows import Check, Row

__all__ = ["Check", "PublishedReport", "Row", "all_rows", "chosen_rows", "validate_published"]

_SYSTEMS = (deepep, deepseek, splitwise, distserve, cachegen, tensorrt_llm, dynamo, mooncake)


@dataclass(frozen=True)
class PublishedReport:
    """All figures compared."""

    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether no figure misses its tolerance."""
        return all(check.ok is not False for check in self.checks)

    def counted(self, kind: str) -> tuple[int, int, int]:
        """Figures of a kind that were met, that were missed, and that were skipped."""
        found = [check.ok for check in self.checks if check.row.kind == kind]
        return found.count(True), found.count(False), found.count(None)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        summary = {}
        for kind in ("predicted", "fitted"):
            met, missed, skipped = self.counted(kind)
            summary[kind] = {"met": met, "missed": missed, "skipped": skipped}
        return {"ok": self.ok, "summary": summary, "checks": [check.to_dict() for check in self.checks]}


def all_rows() -> Iterator[Row]:
    """Every published figure."""
    for system in _SYSTEMS:
        yield from system.rows()


def chosen_rows(only: Sequence[str] = ()) -> list[Row]:
    """Rows of the named systems, or whose ids begin so; all without a name. Raises InputError for a name of neither."""
    rows = list(all_rows())
    names = sorted({row.system for row in rows})
    chosen: list[Row] = []
    for name in only:
        found = [row for row in rows if row.system == name or row.id.startswith(name)]
        if not found:
            near = nearest(name, [*names, *(row.id for row in rows)])
            allowed = f"allowed: {', '.join(names)}, or how an id begins"
            raise InputError(f"--only: unknown system or figure '{name}'{near}; {allowed}")
        chosen += [row for row in found if row not in chosen]
    return chosen if only else rows


def validate_published(only: Sequence[str] = (), progress: Callable[[int, int], None] | None = None) -> PublishedReport:
    """Simulate the figures and compare. Raises InputError for an unknown name."""
    rows = chosen_rows(only)
    checks = []
    for row in rows:
        checks.append(row.check())
        if progress is not None:
            progress(len(checks), len(rows))
    return PublishedReport(tuple(checks))
