"""Killed at any moment, on a full disk, or out of memory: what is on disk is whole, and a rerun finishes."""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

WORDS = ["chat", "--topology", "1p1d", "--topology", "colocated", "--quiet", "--out"]
FILES = {"result.json", "requests.parquet"}


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "simulator.cli", *words]


def assert_whole(folder: Path) -> set[str]:
    """Every file with a name of its own can be read to its end; returns the names."""
    found = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    for name in found:
        path = folder / name
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".parquet":
            pq.read_table(path)
        else:
            with Image.open(path) as picture:
                picture.load()
    return found


@pytest.mark.slow
def test_killed_at_any_moment(tmp_path: Path) -> None:
    began = time.monotonic()
    subprocess.run(command(*WORDS, str(tmp_path / "whole")), check=True, capture_output=True)
    takes_s = time.monotonic() - began
    whole = assert_whole(tmp_path / "whole")
    assert whole >= FILES
    draw, folder = random.Random(0), tmp_path / "killed"
    for _ in range(4):
        run = subprocess.Popen(command(*WORDS, str(folder)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(draw.uniform(0.3, 1.0) * takes_s)
        run.kill()
        run.wait()
        if folder.exists():
            assert_whole(folder)
    subprocess.run(command(*WORDS, str(folder)), check=True, capture_output=True)
    assert assert_whole(folder) == whole
    for name in FILES:
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def limited(kind: int, most: int):
    def limit() -> None:
        resource.setrlimit(kind, (most, most))

    return limit


def test_full_disk(tmp_path: Path) -> None:
    """No file may grow beyond a few kB: one line, exit code 2, and nothing half-written."""
    run = subprocess.run(
        command(*WORDS, str(tmp_path / "out")),
        preexec_fn=limited(resource.RLIMIT_FSIZE, 4_000),
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1
    assert run.stderr.startswith("simulate: ")
    assert "File too large" in run.stderr
    assert_whole(tmp_path / "out")


def test_interrupted_run_keeps_what_was_finished(tmp_path: Path) -> None:
    """Ctrl-C after the first topology: its result is told and written, exit code 130."""
    words = ["chat", "--topology", "colocated", "--topology", "1p1d", "--rate-scale", "3", "--out", str(tmp_path)]
    script = (
        "import sys, os, signal\n"
        "from simulator import api, cli\n"
        "first = api.run_cluster\n"
        "def second(*given):\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    return first(*given)\n"
        "def one(*given):\n"
        "    api.run_cluster = second\n"
        "    return first(*given)\n"
        "api.run_cluster = one\n"
        f"sys.exit(cli.main({words!r}))\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert run.returncode == 130, run.stderr
    assert "1 of 2 topologies finished and kept" in run.stderr
    document = json.loads((tmp_path / "result.json").read_text())
    assert document["interrupted"] is True
    assert [entry["name"] for entry in document["topologies"]] == ["colocated"]
