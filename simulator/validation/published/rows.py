"""One published figure: where it stands, what it was measured on, how it is simulated, and how far off it may be."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Kind = Literal["fitted", "predicted"]
#: Environment variable that names the folder with public data (``traces``).
DATA = "SIMULATOR_DATA"


class MissingDataError(Exception):
    """Data that a figure needs are not on this machine; the message says which."""


@dataclass(frozen=True)
class Row:
    """A published figure to be met.

    ``kind``: fitted where the figure itself, or one of the same measurement, went into a parameter; ``note`` then names
    it. ``unit`` of both figures; errors are in per cent of the published figure, or in points where ``in_points`` (for
    shares). ``tolerance``: the largest error, in per cent or points, that counts as met. ``simulate`` gives the figure,
    and may raise MissingDataError.
    """

    id: str
    system: str
    source: str
    setup: str
    kind: Kind
    unit: str
    published: float
    tolerance: float
    simulate: Callable[[], float]
    in_points: bool = False
    note: str = ""

    def check(self) -> Check:
        """Simulate and compare."""
        try:
            return Check(self, float(self.simulate()))
        except MissingDataError as missing:
            return Check(self, None, str(missing))


@dataclass(frozen=True)
class Check:
    """One figure, published and simulated; ``simulated`` None where ``skipped`` says why not."""

    row: Row
    simulated: float | None
    skipped: str = ""

    @property
    def error(self) -> float | None:
        """Simulated less published, in per cent of the published figure, or in points."""
        if self.simulated is None:
            return None
        if self.row.in_points:
            return 100.0 * (self.simulated - self.row.published)
        return 100.0 * (self.simulated / self.row.published - 1.0)

    @property
    def ok(self) -> bool | None:
        """Whether the error is within its tolerance; None if skipped."""
        error = self.error
        return None if error is None else math.isfinite(error) and abs(error) <= self.row.tolerance

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON. Shares have their error in percentage points, under ``error_percent`` all the same."""
        row = self.row
        return {
            "id": row.id,
            "system": row.system,
            "source": row.source,
            "setup": row.setup,
            "kind": row.kind,
            "unit": row.unit,
            "published": row.published,
            "simulated": self.simulated,
            "error_percent": self.error,
            "tolerance_percent": row.tolerance,
            "points": row.in_points,
            "ok": self.ok,
            "skipped": self.skipped,
            "note": row.note,
        }


def public_data(*parts: str) -> Path:
    """A file of the public data folder; MissingDataError where it is not there."""
    folder = os.environ.get(DATA)
    path = Path(folder or ".", *parts)
    if not folder or not path.is_file():
        raise MissingDataError(f"{'/'.join(parts)} is not here: set {DATA} to the folder that holds it")
    return path
