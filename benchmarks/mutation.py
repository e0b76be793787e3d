"""Tests of the tests: change one thing in the code, and see whether a test of its room notices.

    python3 -m venv .mutation && .mutation/bin/pip install mutmut==2.5.1
    python benchmarks/mutation.py --mutmut .mutation/bin/python --rooms kv network metrics engine --sample 400 --seed 0

mutmut 2 says what can be changed; a seeded sample of it is tried, each in a copy of the tree, with plain Python in
place of compiled code (which is what ``RuntimeWarning`` is ignored for). A mutant is killed when a test fails or runs
into the time limit. Outcomes are written to ``--out`` one by one, so that a stopped run goes on; survivors are printed
at the end, with their change.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
#: room -> folders of its code, the tests that must notice (fast ones first)
ROOMS: dict[str, tuple[list[str], list[str]]] = {
    "kv": (
        ["simulator/kv"],
        [
            "tests/unit/test_kv_radix.py",
            "tests/oracle/test_kv_unshared.py",
            "tests/oracle/test_engine_vllm.py",
            "tests/oracle/test_engine_sglang.py",
        ],
    ),
    "network": (
        ["simulator/network"],
        ["tests/unit/test_network_fabric.py", "tests/unit/test_network_layout.py", "tests/laws/test_network_laws.py"],
    ),
    "metrics": (
        ["simulator/metrics"],
        [
            "tests/unit/test_metrics_latency.py",
            "tests/unit/test_metrics_slo.py",
            "tests/unit/test_metrics_compare.py",
            "tests/unit/test_metrics_saturation.py",
            "tests/unit/test_report_document.py",
            "tests/cli",
        ],
    ),
    "engine": (["simulator/engine"], ["tests/oracle", "tests/unit/test_engine_policies.py"]),
}

_LIST = """
import json, sys
from mutmut import Context, list_mutations, mutate
found = []
for name in sys.argv[1:]:
    source = open(name).read()
    for change in list_mutations(Context(source=source, filename=name)):
        text = change.line.strip()
        if text.startswith(("@", "from ", "import ", '\"\"\"', "#")):
            continue
        mutant, count = mutate(Context(source=source, filename=name, mutation_id=change))
        if count and mutant != source:
            found.append({"file": name, "line": change.line_number + 1, "index": change.index, "mutant": mutant})
json.dump(found, sys.stdout)
"""


def mutants(python: str, folders: list[str]) -> list[dict[str, Any]]:
    """Every mutant of a room: file, line, and the file's text with the change."""
    files = sorted(str(p.relative_to(ROOT)) for folder in folders for p in (ROOT / folder).rglob("*.py"))
    run = subprocess.run([python, "-c", _LIST, *files], cwd=ROOT, check=True, capture_output=True, text=True)
    found: list[dict[str, Any]] = json.loads(run.stdout)
    return found


def copy_of_tree() -> Path:
    """A copy that tests can run in."""
    target = Path(tempfile.mkdtemp(prefix="mutation-"))
    for name in ("simulator", "tests", "hardware_profiles", "traces"):
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", target)
    return target


def tested(tree: Path, tests: list[str], limit_s: float) -> tuple[bool, float]:
    """Whether all tests pass in time, and the seconds they took."""
    environment = os.environ | {"NUMBA_DISABLE_JIT": "1", "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        "-W",
        "ignore::RuntimeWarning",
        "-m",
        "not slow",
        *tests,
    ]
    began = time.monotonic()
    try:
        run = subprocess.run(command, cwd=tree, env=environment, capture_output=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired:
        return False, limit_s
    return run.returncode == 0, time.monotonic() - began


def change_of(mutant: dict[str, Any]) -> str:
    """The changed line, before and after."""
    before = (ROOT / mutant["file"]).read_text().splitlines()
    after = mutant["mutant"].splitlines()
    for old, new in zip(before, after, strict=False):
        if old != new:
            return f"{old.strip()}  ->  {new.strip()}"
    return "?"


def try_room(room: str, given: argparse.Namespace, done: dict[str, bool]) -> None:
    """Try a sample of a room's mutants, and write each outcome down."""
    folders, tests = ROOMS[room]
    found = mutants(given.mutmut, folders)
    chosen = random.Random(given.seed).sample(found, min(given.sample, len(found)))
    trees = [copy_of_tree() for _ in range(given.jobs)]
    passes, seconds = tested(trees[0], tests, 3600)
    if not passes:
        raise SystemExit(f"{room}: tests fail without any change")
    limit_s = 3 * seconds + 20
    print(f"{room}: {len(found):,} mutants, {len(chosen)} of them tried; tests take {seconds:.0f} s", flush=True)

    def attempt(mutant: dict[str, Any]) -> None:
        key = f"{mutant['file']}:{mutant['line']}:{mutant['index']}"
        if key in done:
            return
        tree = trees.pop()
        target = tree / mutant["file"]
        good = target.read_text()
        try:
            target.write_text(mutant["mutant"])
            survived, _ = tested(tree, tests, limit_s)
        finally:
            target.write_text(good)
            trees.append(tree)
        done[key] = not survived
        row = {"room": room, "key": key, "killed": not survived, "change": change_of(mutant)}
        with Path(given.out).open("a") as out:
            out.write(json.dumps(row) + "\n")

    with ThreadPoolExecutor(given.jobs) as pool:
        list(pool.map(attempt, chosen))
    for tree in trees:
        shutil.rmtree(tree)


def main() -> int:
    """Exit code 1 if fewer than 85 % are killed in a room."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutmut", required=True, help="a Python that has mutmut 2.5")
    parser.add_argument("--rooms", nargs="+", choices=sorted(ROOMS), default=sorted(ROOMS))
    parser.add_argument("--sample", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", default="mutation.jsonl")
    given = parser.parse_args()
    out = Path(given.out)
    rows = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    for room in given.rooms:
        try_room(room, given, {row["key"]: row["killed"] for row in rows})
    rows = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    low = False
    for room in given.rooms:
        own = [row for row in rows if row["room"] == room]
        killed = sum(row["killed"] for row in own)
        print(f"{room}: {killed} of {len(own)} killed ({100 * killed / max(1, len(own)):.0f} %)")
        low |= killed < 0.85 * len(own)
        for row in own:
            if not row["killed"]:
                print(f"  {row['key']}  {row['change']}")
    return int(low)


if __name__ == "__main__":
    sys.exit(main())
