"""Rows on disk, one JSON object a line: written as they come, read again after a kill."""

from __future__ import annotations

import json
from pathlib import Path

Case = dict[str, object]
Row = dict[str, object]


def key_of(group: str, case: Case) -> str:
    """What tells one case from another."""
    return group + json.dumps(case, sort_keys=True)


class Store:
    """Rows of one run in ``path``. A last line cut off by a kill is dropped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = _read(path)
        self._done = {key_of(str(row["group"]), row["case"]) for row in self.rows}  # type: ignore[arg-type]
        path.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(row) + "\n" for row in self.rows)
        partial = path.with_name(path.name + ".partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)

    def done(self, group: str, case: Case) -> bool:
        """Whether the case has been measured."""
        return key_of(group, case) in self._done

    def add(self, group: str, case: Case, values: dict[str, object]) -> None:
        """Append one row."""
        row: Row = {"group": group, "case": case, **values}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.rows.append(row)
        self._done.add(key_of(group, case))


def _read(path: Path) -> list[Row]:
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("case"), dict) and "group" in row:
            rows.append(row)
    return rows


def read_rows(path: Path) -> list[Row]:
    """All whole rows of a file."""
    return _read(path)
