"""Tests of the tests: change one thing in the code, and see whether a test of its room notices.

    pip install mutmut==2.5.1 coverage
    python benchmarks/mutation.py --rooms metrics network kv engine --sample 400 --seed 0

mutmut 2 says what can be changed (decorators, imports, docstrings and annotations are left alone); a seeded sample of
it is tried, in plain Python instead of compiled code. Each room's tests run once under coverage, which tells what each
of them executes, how long it takes, and the branches covered. A mutant then meets the tests that execute its statement:
quick ones first, then the others in the order in which ``ROOMS`` names them, for 20 s of CPU in all. It is killed when
one of them fails, raises, or takes ten times its usual CPU time. Outcomes are appended one by one to ``--out``, so that
a stopped run goes on; survivors are printed at the end. ``mutation_server.py`` does the work.
"""

from __future__ import annotations

import argparse
import ast
import csv
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SERVER = ROOT / "benchmarks" / "mutation_server.py"
#: room (folder of ``simulator``) -> the tests that must notice, strong ones first
ROOMS: dict[str, list[str]] = {
    "metrics": ["tests/unit/test_metrics_*.py"],
    "network": ["tests/unit/test_network_*.py", "tests/laws/test_network_laws.py", "tests/laws/test_streaming_laws.py"],
    "kv": ["tests/unit/test_kv_*.py", "tests/oracle/test_kv_unshared.py", "tests/laws/test_cache_laws.py"],
    "engine": [
        "tests/unit/test_engine_*.py",
        "tests/oracle/test_engine_tight*.py",
        "tests/oracle/test_engine_ranks.py",
        "tests/laws/test_launch_laws.py",
        "tests/unit/test_routers.py",
        "tests/oracle/test_kv_unshared.py",
    ],
}


class _Plain(ast.NodeTransformer):
    """Leaves out what no run can tell: docstrings, and annotations (those of pydantic's classes do tell).

    The meaning of a column in ``columns.py`` is a docstring, too, though it stands in a mapping.
    """

    def __init__(self, meanings: bool) -> None:
        self.meanings = meanings

    def visit_Dict(self, node: ast.Dict) -> ast.Dict:
        if self.meanings:
            node.values = [ast.Constant(None) for _ in node.values]
        return node

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        node.returns = None
        self.generic_visit(node)
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AnnAssign:
        node.annotation = ast.Constant(None)
        self.generic_visit(node)
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        if not any("Schema" in ast.dump(base) for base in node.bases):
            self.generic_visit(node)
        return node

    def visit_Expr(self, node: ast.Expr) -> ast.Expr:
        return ast.Expr(ast.Constant(None)) if isinstance(node.value, ast.Constant) else node


def behaviour(source: str, name: str) -> str:
    """What of a file's text can change a run."""
    return ast.dump(_Plain(name.endswith("columns.py")).visit(ast.parse(source)))


def drawn(room: str, seed: int, most: int, only: list[str] | None) -> tuple[list[dict[str, Any]], int]:
    """A seeded sample of a room's mutants, and of how many: file, line, number on the line, and the changed text."""
    from mutmut import Context, list_mutations, mutate

    files = [str(path.relative_to(ROOT)) for path in sorted((ROOT / "simulator" / room).rglob("*.py"))]
    sources = {name: (ROOT / name).read_text() for name in files}
    good = {name: behaviour(source, name) for name, source in sources.items()}
    places = [
        (name, place)
        for name, source in sources.items()
        for place in list_mutations(Context(source=source, filename=name))
        if not place.line.strip().startswith(("@", "from ", "import ", '"""', "#"))
    ]
    order, found = random.Random(seed).sample(places, len(places)), []
    for name, place in order:
        key = f"{name}:{place.line_number + 1}:{place.index}"
        if len(found) == most or (only and key not in only):
            continue
        mutant, count = mutate(Context(source=sources[name], filename=name, mutation_id=place))
        try:
            changed = count and behaviour(mutant, name) != good[name]
        except SyntaxError:
            continue
        if changed:
            row = {"key": key, "file": name, "line": place.line_number + 1, "mutant": mutant}
            found.append(row | {"change": told(sources[name], mutant)})
    return found, len(places)


def told(source: str, mutant: str) -> str:
    """The changed line, before and after."""
    for old, new in zip(source.splitlines(), mutant.splitlines(), strict=False):
        if old != new:
            return f"{old.strip()}  ->  {new.strip()}"
    return "?"


def serve(task: dict[str, Any]) -> None:
    """Run the server on a task in a process of its own, with nothing compiled."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(task, file)
        file.flush()
        known = {name: value for name, value in os.environ.items() if name != "SIMULATOR_DATA"}  # as in a bare clone
        environment = known | {
            "NUMBA_DISABLE_JIT": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        }
        subprocess.run([sys.executable, "-P", str(SERVER), file.name], cwd=ROOT, env=environment, check=True)


def tests_of(room: str) -> list[str]:
    """Paths of the room's test files."""
    found = [str(path.relative_to(ROOT)) for given in ROOMS[room] for path in sorted(ROOT.glob(given))]
    return list(dict.fromkeys(found))


def read_rows(out: Path) -> list[dict[str, Any]]:
    """Outcomes so far."""
    return [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []


def try_room(room: str, given: argparse.Namespace) -> None:
    """Record what the room's tests execute, and try a sample of its mutants."""
    chosen, found = drawn(room, given.seed, given.sample, given.only)
    recorded = Path(given.work) / f"{room}.recorded.json"
    common = {"room": room, "tests": tests_of(room), "recorded": str(recorded)}
    if not recorded.exists():
        partly = Path(f"{recorded}.partly")
        serve({"do": "record", **common, "recorded": str(partly)})
        serve({"do": "clock", **common, "recorded": str(partly)})
        partly.rename(recorded)
    record = json.loads(recorded.read_text())
    print(f"{room}: {found:,} mutants, {len(chosen)} of them tried; {record['told']}", flush=True)
    if given.missing:
        print("\n".join(f"  {name}: {what}" for name, what in record["missing"].items()))
    done = {row["key"] for row in read_rows(Path(given.out))}
    todo = [mutant for mutant in chosen if mutant["key"] not in done]
    if todo:
        serve({"do": "try", **common, "mutants": todo, "jobs": given.jobs, "out": str(Path(given.out).resolve())})


def write_survivors(path: Path, rows: list[dict[str, Any]]) -> None:
    """A CSV of survivors; what it already says of why a change does no harm is kept, and of other rooms all."""
    known: dict[tuple[str, str], list[str]] = {}
    lines: list[list[str]] = []
    if path.exists():
        with path.open(newline="") as file:
            there = list(csv.DictReader(file))
        known = {(row["file"], row["change"]): [row["kind"], row["why"]] for row in there}
        lines = [list(row.values()) for row in there if row["room"] not in {row["room"] for row in rows}]
    for row in (row for row in rows if not row["killed"]):
        name, line, _ = row["key"].split(":")
        why = known.get((name, row["change"]), ["open", row["how"]])
        lines.append([row["room"], name, line, row["change"], *why])
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["room", "file", "line", "change", "kind", "why"])
        writer.writerows(sorted(lines, key=lambda line: (line[0], line[1], int(line[2]))))


def main() -> int:
    """Exit code 1 if fewer than 85 % are killed in a room."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rooms", nargs="+", choices=sorted(ROOMS), default=sorted(ROOMS))
    parser.add_argument("--sample", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--again", action="store_true", help="try survivors in --out again: after tests were added")
    parser.add_argument("--only", nargs="+", help="keys of mutants to try again, of whatever sample")
    parser.add_argument("--missing", action="store_true", help="print the lines and branches that no test takes")
    parser.add_argument("--out", default="mutation.jsonl")
    parser.add_argument("--survivors", help="CSV to write survivors to; reasons that stand in it are kept")
    parser.add_argument("--work", help="folder that keeps what the tests of a room execute; drop it when they change")
    given = parser.parse_args()
    out = Path(given.out)
    if given.again and out.exists():
        out.write_text("".join(json.dumps(row) + "\n" for row in read_rows(out) if row["killed"]))
    with tempfile.TemporaryDirectory() as temporary:
        given.work = given.work or temporary
        Path(given.work).mkdir(parents=True, exist_ok=True)
        for room in given.rooms:
            try_room(room, given)
    rows, low = read_rows(out), False
    if given.survivors:
        write_survivors(Path(given.survivors), rows)
    for room in given.rooms:
        own = [row for row in rows if row["room"] == room]
        killed, cpu_s = sum(row["killed"] for row in own), sum(row["cpu_s"] for row in own)
        print(f"{room}: {killed} of {len(own)} killed ({100 * killed / max(1, len(own)):.1f} %), {cpu_s:.0f} s of CPU")
        low |= killed < 0.85 * len(own)
        for row in own:
            if not row["killed"]:
                print(f"  {row['key']}  {row['how']}  {row['change']}")
    return int(low)


if __name__ == "__main__":
    sys.exit(main())
