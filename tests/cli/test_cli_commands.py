"""The other commands, help, versions and words nobody knows."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from cli_inputs import refused, run, write_inputs

import simulator


@pytest.mark.parametrize("words", [["--help"], ["-h"], []])
def test_help(capsys, words):
    code, out, err = run(capsys, *words)
    assert (code, err) == (0, "")
    options = (
        "topology",
        "arrivals",
        "rate-scale",
        "limit",
        "start",
        "duration",
        "warmup",
        "seed",
        "slo",
        "set",
        "out",
    )
    for option in (*options, "json", "columns", "quiet"):
        assert f"--{option}" in out
    for command in ("describe", "step", "generate", "convert", "validate"):
        assert command in out


def test_help_needs_no_heavy_module():
    program = (
        "import sys; from simulator.cli import main; main(['--help']); "
        "print([m for m in ('numpy', 'numba', 'pandas', 'matplotlib', 'simpy', 'pyarrow', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]"


def test_version(capsys):
    assert run(capsys, "--version")[:2] == (0, simulator.__version__ + "\n")


@pytest.mark.parametrize(
    "command", ["describe", "step", "generate", "convert", "sweep", "plan", "check", "validate", "validate scheduler"]
)
def test_every_command_has_help(capsys, command):
    code, out, _ = run(capsys, *command.split(), "--help")
    assert code == 0
    assert "Usage: simulate" in out


def test_unknown_commands_name_the_nearest(capsys):
    assert refused(capsys, "descrbe", "x").startswith("unknown command 'descrbe' (did you mean 'describe'?)")
    assert refused(capsys, "convrt").startswith("unknown command 'convrt' (did you mean 'convert'?)")
    assert 'Did you mean "scheduler"?' in refused(capsys, "validate", "schedulr")


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("llama-3.1-70b", "70,553,706,496"),
        ("h100", "h100_sxm"),
        ("1p1d", "kv blocks per worker"),
        ("llama-3.1-8b/h100_sxm/2c", "llama-3.1-8b"),
    ],
)
def test_describe_names(capsys, what, says):
    code, out, _ = run(capsys, "describe", what)
    assert code == 0
    assert says in out


def test_describe_files(tmp_path, capsys):
    trace, one, split = write_inputs(tmp_path)
    assert "requests" in run(capsys, "describe", trace)[1]
    assert json.loads(run(capsys, "describe", trace, "--json", "-")[1])["requests"] == 20
    facts = json.loads(run(capsys, "describe", split, "--set", "pools.0.workers=2", "--json", "-")[1])
    assert [pool["workers"] for pool in facts["pool"]] == [2, 1]
    assert facts["kv_transfer"]["setup_s"] == 0.002
    assert facts["kv_transfer"]["explicit_times"] is True
    assert "one.yaml" in run(capsys, "describe", one)[1]


def test_describe_refuses(tmp_path, capsys):
    assert "(did you mean 'llama-3.1-8b'?)" in refused(capsys, "describe", "lama-3.1-8b")
    assert "--spec is for a trace" in refused(capsys, "describe", "h100", "--spec")
    (tmp_path / "x.yaml").write_text("name: [")
    assert "x.yaml" in refused(capsys, "describe", tmp_path / "x.yaml")


def test_spec_of_a_trace_generates_its_like(tmp_path, capsys):
    trace = write_inputs(tmp_path, requests=300)[0]
    (tmp_path / "spec.yaml").write_text(run(capsys, "describe", trace, "--spec")[1])
    code, out, err = run(capsys, "generate", tmp_path / "spec.yaml", tmp_path / "g.jsonl.gz", "--requests", 50)
    assert code == 0
    assert "50 requests" in out
    assert "note: generated" in err
    assert json.loads(run(capsys, "describe", tmp_path / "g.jsonl.gz", "--json", "-")[1])["requests"] == 50


def test_convert(tmp_path, capsys):
    trace = write_inputs(tmp_path)[0]
    code, out, _ = run(capsys, "convert", trace, tmp_path / "c.parquet", "--limit", 7, "--start", "0.5s")
    assert code == 0
    assert "7 requests" in out
    facts = json.loads(run(capsys, "describe", tmp_path / "c.parquet", "--json", "-")[1])
    assert (facts["requests"], facts["input_tokens"]["min"]) == (7, 105.0)
    assert "unknown ending" in refused(capsys, "convert", trace, tmp_path / "c.txt")
    assert "requires an argument" in refused(capsys, "convert", trace)


def test_step_adds_up(capsys):
    words = ("step", "--model", "llama-3.1-8b", "--gpu", "h100_sxm", "--prefill", "2048+512", "--decode", "64x1500")
    result = json.loads(run(capsys, *words, "--json", "-")[1])
    assert result["seconds"] == pytest.approx(sum(line["seconds"] for line in result["operators"]))
    assert {"prefill attention", "decode attention"} <= {line["operator"] for line in result["operators"]}
    out = run(capsys, *words)[1]
    assert "2,048 prompt tokens after 512, 64 decoding over 1,500 tokens each" in out
    assert "…" not in out
    assert all(line["operator"] in out for line in result["operators"])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "--prefill and --decode are both missing"),
        (["--prefill", "2k"], "--prefill: '2k' is not NEW or NEW+PAST"),
        (["--prefill", "0"], "--prefill: '0' is not NEW or NEW+PAST"),
        (["--decode", "64"], "--decode: '64' is not SEQUENCESxCONTEXT"),
        (["--decode", "8x100", "--tp", "3"], ""),
        (["--decode", "8x100", "--weights", "fp9"], ""),
        (["--decode", "8x100", "--engine", "vlm"], ""),
    ],
)
def test_step_refuses(capsys, words, says):
    assert refused(capsys, "step", "--model", "llama-3.1-8b", "--gpu", "h100_sxm", *words).startswith(says)


def test_step_needs_model_and_gpu(capsys):
    assert "--model" in refused(capsys, "step", "--gpu", "h100_sxm", "--decode", "1x1")
    assert "did you mean 'h100_sxm'?" in refused(
        capsys, "step", "--model", "llama-3.1-8b", "--gpu", "h100_sxn", "--decode", "1x1"
    )


def test_validate_scheduler_needs_cases(tmp_path, capsys):
    assert "name at least one folder" in refused(capsys, "validate", "scheduler")
    assert str(tmp_path) in refused(capsys, "validate", "scheduler", tmp_path)
