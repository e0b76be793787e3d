"""``simulate validate``: the simulator against what real systems did."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass
from typing import Any

from simulator.commands.options import json_target
from simulator.errors import InputError
from simulator.report.document import dumps
from simulator.report.files import output_file, write_text


def scheduler(folders: Sequence[str], *, steps: bool, json: str | None) -> int:
    """Exact cases of engines' schedulers; exit code 1 where one differs."""
    from simulator.validation.scheduler import validate

    target = json_target(json)
    if not folders:
        raise InputError("validate scheduler: name at least one folder of cases")
    report = validate(list(folders), steps=steps)
    if target not in (None, "-"):
        write_text(output_file(str(target), "--json"), dumps(_plain(report)))
    if target == "-":
        sys.stdout.write(dumps(_plain(report)))
    else:
        print(report)
    return 0 if report.ok else 1


def _plain(report: Any) -> dict[str, Any]:
    cases = [asdict(case) if is_dataclass(case) and not isinstance(case, type) else case for case in report.cases]
    return {"schema": 1, "ok": bool(report.ok), "cases": cases}
