"""How code is compiled: kept machine code is not used once a file it draws on has changed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from numba import config
from numba.core import caching

from simulator import compiled
from simulator.engine.engine import POLICIES
from simulator.engine.steps import pulse

jit = pytest.mark.skipif(bool(config.DISABLE_JIT), reason="compiling is switched off")


def changed(module, tmp_path, monkeypatch):
    """Let ``module`` have another source."""
    source = sys.modules[module]
    copy = tmp_path / "copy.py"
    copy.write_bytes(Path(source.__file__).read_bytes() + b"\n# changed\n")
    monkeypatch.setattr(source, "__file__", str(copy))
    compiled._source.cache_clear()


@pytest.mark.parametrize("module", ["simulator.engine.blocks", "simulator.kv.pool", "simulator.cost.table"])
def test_a_change_in_an_imported_file_changes_the_stamp(module, tmp_path, monkeypatch):
    before = compiled.source_stamp("simulator.engine.steps")
    try:
        changed(module, tmp_path, monkeypatch)
        assert compiled.source_stamp("simulator.engine.steps") != before
    finally:
        monkeypatch.undo()
        compiled._source.cache_clear()
    assert compiled.source_stamp("simulator.engine.steps") == before


def test_a_change_in_a_file_that_is_not_imported_does_not(tmp_path, monkeypatch):
    before = compiled.source_stamp("simulator.cost.table")
    try:
        changed("simulator.engine.steps", tmp_path, monkeypatch)
        assert compiled.source_stamp("simulator.cost.table") == before
    finally:
        monkeypatch.undo()
        compiled._source.cache_clear()


@jit
def test_kept_code_carries_the_stamp():
    assert pulse._cache._cache_file._source_stamp == compiled.source_stamp("simulator.engine.steps")
    index = pulse._cache._cache_file._load_index
    kept = pulse._cache._cache_file._source_stamp
    try:
        pulse._cache._cache_file._source_stamp = "another"
        assert index() == {}
    finally:
        pulse._cache._cache_file._source_stamp = kept


@jit
def test_a_function_knows_whether_it_is_compiled(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path))

    @compiled.compiled
    def twice(x):
        return 2 * x

    assert not compiled.is_compiled(twice)
    assert twice(4) == 8
    assert compiled.is_compiled(twice)


def test_every_policy_has_a_pulse_to_ask():
    for policy in POLICIES.values():
        assert compiled.is_compiled(policy.pulse) in (True, False)


@pytest.mark.slow
def test_plain_python_gives_the_same_bytes():
    """The compiled engine and the same functions as plain Python, down to the last digit."""
    command = [sys.executable, "-m", "simulator.cli", "chat", "--limit", "25", "--topology", "1p1d", "--json", "-"]
    results = [
        subprocess.run(
            command, env=os.environ | {"NUMBA_DISABLE_JIT": off}, capture_output=True, text=True, check=True
        ).stdout
        for off in ("0", "1")
    ]
    assert json.loads(results[0])["topologies"][0]["completed"] == 25
    assert results[0] == results[1]


def plus_one(value):
    return value + 1


@jit
def test_where_nothing_may_be_written_code_is_kept_among_temporary_files(tmp_path, monkeypatch):
    """A package installed read-only, and a home that is read-only, too."""
    for locator in caching.CacheImpl._locator_classes:
        if locator is not caching.UserProvidedCacheLocator:
            monkeypatch.setattr(locator, "from_function", classmethod(lambda cls, function, file: None))
    monkeypatch.setattr(config, "CACHE_DIR", "")
    monkeypatch.setattr(compiled.tempfile, "gettempdir", lambda: str(tmp_path))
    function = compiled.compiled(plus_one)
    assert function(1) == 2
    assert list(tmp_path.rglob("*.nbi"))


@jit
def test_a_full_disk_keeps_no_code_and_stops_nothing(monkeypatch):
    def full(*given):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(caching.IndexDataCacheFile, "save", full)
    assert compiled.compiled(plus_one)(1) == 2
