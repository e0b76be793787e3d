"""``simulate check``: latency curves against a stored baseline, for CI."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from simulator.commands.options import json_target
from simulator.commands.talk import Talk

MOVED = 1


@dataclass(frozen=True)
class CheckOptions:
    """Everything but the file; see ``docs/ci.md``."""

    update: Annotated[bool, Parameter(help="write the baseline instead of comparing with it", negative=())] = False
    junit: Annotated[str | None, Parameter(help="write the outcome as JUnit XML to a file")] = None
    json: Annotated[
        str | None, Parameter(help="write the outcome as JSON to a file, or - for stdout", allow_leading_hyphen=True)
    ] = None
    out: Annotated[str | None, Parameter(help="folder for the picture, curves.png (made where missing)")] = None
    jobs: Annotated[int, Parameter(help="processes on this machine; 0: one a core")] = 1
    quiet: Annotated[bool, Parameter(help="nothing on stderr", negative=())] = False


def check(file: str, options: CheckOptions) -> int:
    """Do the check, print and write the outcome; 1 where a point moved."""
    from simulator.files import output_file, output_folder
    from simulator.planning.check import check as run_check
    from simulator.planning.check import describe

    target = json_target(options.json)
    for path, option in ((options.junit, "--junit"), (None if target == "-" else target, "--json")):
        if path is not None:
            output_file(path, option)
    if options.out is not None:
        output_folder(options.out)
    talk = Talk(options.quiet)
    with talk.counting("runs") as progress:
        found = run_check(file, update=options.update, jobs=options.jobs, progress=progress)
    if options.junit is not None:
        found.to_junit(options.junit)
    if target not in (None, "-"):
        found.to_json(target)
    if options.out is not None:
        from simulator.report.curves import write_curves

        talk.notes([f"wrote {write_curves(found.document['points'], Path(options.out) / 'curves.png')}"])
    count = len(found.document["points"])
    if target == "-":
        sys.stdout.write(found.to_json())
    elif found.updated:
        print(f"{found.document['baseline']}: {count} points written")
    else:
        for point in found.moved:
            print(describe(point))
        print(f"{count - len(found.moved)} of {count} points are where they were")
    sys.stdout.flush()
    return 0 if found.ok else MOVED
