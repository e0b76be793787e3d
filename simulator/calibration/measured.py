"""Measured rows as tables: one CSV a group, small enough to ship, and what machine they are from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from simulator.calibration.measure.store import Row, read_rows
from simulator.errors import InputError

MACHINE, ROWS = "machine.json", "rows.jsonl"
_US = 1e6
_TIMES = {"median_s": "median_us", "q25_s": "q25_us", "q75_s": "q75_us", "steady_s": "steady_us"}


@dataclass(frozen=True)
class Measured:
    """Rows of one run. ``tables``: group -> a line a case: its columns, then microseconds and the number of samples;
    ``machine``: what it was measured on, and how."""

    tables: dict[str, pd.DataFrame]
    machine: dict[str, object]

    def table(self, group: str) -> pd.DataFrame:
        """The rows of a group; empty if it was not measured."""
        return self.tables.get(group, pd.DataFrame())

    @property
    def about(self) -> str:
        """One line of provenance."""
        m = self.machine
        device = m.get("gpu", m.get("host", "an unknown machine"))
        driver = m.get("driver")
        words = [f"measured on {device}"]
        if isinstance(driver, list) and driver:
            words.append(f"driver {driver[0]}")
        words += [f"{name} {m[name]}" for name in ("torch", "numpy") if name in m]
        return ", ".join([*words, str(m.get("date", "undated"))])


def _tables(rows: list[Row]) -> dict[str, pd.DataFrame]:
    groups: dict[str, list[dict[str, object]]] = {}
    for row in rows:
        case = row["case"]
        if "median_s" not in row or not isinstance(case, dict):
            continue
        times = {us: round(float(row[s]) * _US, 3) for s, us in _TIMES.items() if s in row}  # type: ignore[arg-type]
        readings = {k: json.dumps(v) for k, v in row.items() if str(k).endswith("_readings")}
        groups.setdefault(str(row["group"]), []).append({**case, **times, "samples": row["samples"], **readings})
    return {name: pd.DataFrame(lines) for name, lines in groups.items()}


def read_measured(folder: Path) -> Measured:
    """What a run left in ``folder``, or the tables that ``write_tables`` made of it. Raises InputError."""
    about = folder / MACHINE
    try:
        machine = json.loads(about.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise InputError(f"{about}: cannot be read ({e}); expected a folder that `simulate calibrate` wrote") from e
    if (folder / ROWS).is_file():
        tables = _tables(read_rows(folder / ROWS))
    else:
        tables = {path.stem: pd.read_csv(path) for path in sorted(folder.glob("*.csv"))}
    if not tables:
        raise InputError(f"{folder}: no measured rows; expected {ROWS} or CSV tables")
    return Measured(tables, machine)


def write_tables(measured: Measured, folder: Path) -> None:
    """One CSV a group, and the machine."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in measured.tables.items():
        table.to_csv(folder / f"{name}.csv", index=False, lineterminator="\n")
    (folder / MACHINE).write_text(json.dumps(measured.machine, indent=1) + "\n", encoding="utf-8")
