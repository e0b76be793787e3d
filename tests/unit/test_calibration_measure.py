"""Measuring the machine at hand: the whole program on NumPy, what it keeps after a kill, and the rows that ship."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from simulator.calibration import calibrate as calibrate_module
from simulator.calibration.fit import fit_measured, fit_parameters
from simulator.calibration.measure.moe import choices
from simulator.calibration.measure.numpy_ops import NumpyOps
from simulator.calibration.measure.ops import Paged, Work
from simulator.calibration.measure.plan import read_plan, tiny_plan
from simulator.calibration.measure.run import GROUPS, Budget, measure, store_at
from simulator.calibration.measured import read_measured
from simulator.calibration.measured_fit import base_of
from simulator.calibration.measured_rows import element_rows, prefill_rows
from simulator.calibration.plans import catalogue_plan, step_plan
from simulator.cli import main
from simulator.errors import InputError
from simulator.hardware.links import load_link
from simulator.hardware.profiles import load_gpu
from simulator.resources import shipped

pytest.importorskip("scipy")
MEASURED = shipped("hardware_profiles") / "measured"
H200 = MEASURED / "h200_sxm"


def cache(ops: NumpyOps, lengths: list[int]) -> tuple[Paged, np.ndarray, np.ndarray]:
    """Keys and values of a few sequences, scattered over pages."""
    k, v = ops.random((len(lengths), max(lengths), 2, 8)), ops.random((len(lengths), max(lengths), 2, 8))
    pages = -(-max(lengths) // ops.page)
    table = ops.permutation(pages * len(lengths)).reshape(len(lengths), pages)
    store = [np.zeros((pages * len(lengths), ops.page, 2, 8), dtype=np.float32) for _ in range(2)]
    for b, length in enumerate(lengths):
        for t in range(length):
            for target, source in zip(store, (k, v), strict=True):
                target[table[b, t // ops.page], t % ops.page] = source[b, t]
    return Paged(store[0], store[1], table, ops.integers(lengths), max(lengths)), k, v


def test_a_chunk_after_a_past_attends_as_the_end_of_the_whole_prompt() -> None:
    ops = NumpyOps()
    paged, k, v = cache(ops, [11])
    qkv = ops.random((11, (4 + 4) * 8))
    q = qkv[:, :32].reshape(1, 11, 4, 8).transpose(0, 2, 1, 3)
    whole = ops.dense_attention(q, k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3), "numpy")
    out = ops.empty((4, 32))
    ops.prefill_attention(qkv[7:], ops.integers([0, 4]), 4, paged, out)
    assert out == pytest.approx(whole[0].transpose(1, 0, 2).reshape(11, 32)[7:], abs=1e-5)


def test_decode_attends_as_a_chunk_of_one_token() -> None:
    ops = NumpyOps()
    paged, _, _ = cache(ops, [5, 9])
    qkv = ops.random((2, 8 * 8))
    decode, chunk = ops.empty((2, 32)), ops.empty((2, 32))
    ops.decode_attention(qkv, 4, paged, decode)
    ops.prefill_attention(qkv, ops.integers([0, 1, 2]), 1, paged, chunk)
    assert decode == pytest.approx(chunk, abs=1e-6)


def test_experts_of_equal_weights_are_one_gated_product() -> None:
    ops = NumpyOps()
    one = (ops.random((1, 6, 5)), ops.random((1, 5, 3)))
    weights = tuple(np.repeat(w, 4, axis=0) for w in one)
    x, ids = ops.random((7, 5)), ops.integers(np.argsort(ops.random((7, 4)), axis=1)[:, :2].tolist())
    shares, out = np.full((7, 2), 0.5, dtype=np.float32), ops.empty((7, 5))
    ops.experts(x, ids, shares, (weights[0], weights[1]), out)
    gate, up = np.split(x @ one[0][0].T, 2, axis=1)
    assert out == pytest.approx(gate / (1 + np.exp(-gate)) * up @ one[1][0].T, abs=1e-5)


def test_tokens_choose_distinct_experts_and_skew_favours_few() -> None:
    even = choices(2000, 16, 4, 0.0, np.random.default_rng(0))
    skewed = choices(2000, 16, 4, 1.2, np.random.default_rng(0))
    assert all(len(set(row)) == 4 for row in skewed)
    loads = [np.sort(np.bincount(c.ravel(), minlength=16)) for c in (even, skewed)]
    assert loads[0][-1] < 1.15 * loads[0].mean()
    assert loads[1][-1] > 2.0 * loads[1].mean()


def test_the_command_measures_fits_and_writes_a_profile_that_a_step_can_use(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "here.yaml"
    words = ["calibrate", "--tiny", "--device", "numpy", "--out", str(out)]
    assert main(words) == 0
    assert "gemm/torch/bf16" in capsys.readouterr().out
    gpu = load_gpu(out)
    assert gpu.kernels is not None
    assert "decode_attention/torch/bf16" in gpu.kernels.operators
    machine = json.loads((tmp_path / "here.measured" / "machine.json").read_text())
    assert machine["command"] == "simulate calibrate --out here.yaml --tiny"
    rows = (tmp_path / "here.measured" / "rows.jsonl").read_text()
    groups = {json.loads(line)["group"] for line in rows.splitlines()}
    assert groups == {g.name for g in GROUPS} - {"power"} | {"group"}
    for kind in ("pcie", "nvlink"):
        link = load_link(tmp_path / f"here.{kind}.yaml")
        assert link.kind == kind
        assert link.effective_bandwidth_bytes_per_s > 0
    assert '"error"' not in rows
    assert main(words) == 0  # nothing is left to measure
    assert (tmp_path / "here.measured" / "rows.jsonl").read_text() == rows
    capsys.readouterr()
    assert main(["step", "--model", "llama-3.1-8b", "--gpu", str(out), "--decode", "8x1000"]) == 0
    assert "gemm/torch/bf16" in capsys.readouterr().out
    again = tmp_path / "again.yaml"
    like = ["--like", "h100_sxm", "--out", str(again)]
    assert main(["calibrate", "--rows", str(tmp_path / "here.measured"), *like]) == 0
    assert load_gpu(again).kernels.operators == gpu.kernels.operators  # type: ignore[union-attr]


def test_a_killed_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    store, plan, ops = store_at(tmp_path), tiny_plan(), NumpyOps()
    budget = Budget(60.0, 60.0)
    measure(ops, plan, store, budget, lambda line: None, ["elements"])
    done = store.path.read_text().splitlines()
    store.path.write_text("\n".join(done[:5]) + "\n" + done[5][:20])
    told: list[str] = []
    again = store_at(tmp_path)
    measure(ops, plan, again, budget, told.append, ["elements"])
    assert len(again.rows) == len(done)
    assert told[0].startswith(f"elements: {len(done) - 6} of {len(done) - 6} cases")


def test_a_spent_budget_leaves_cases_for_the_next_run(tmp_path: Path) -> None:
    store, told = store_at(tmp_path), list[str]()
    measure(NumpyOps(), tiny_plan(), store, Budget(0.0, 60.0), told.append, ["gemm_bf16"])
    assert told[0].startswith("gemm_bf16: 0 of")


def test_a_case_that_fails_is_kept_with_its_reason_and_the_run_goes_on(tmp_path: Path) -> None:
    class Broken(NumpyOps):
        def activate(self, x: object, out: object) -> None:
            raise RuntimeError("no such kernel")

    store, told = store_at(tmp_path), list[str]()
    measure(Broken(), tiny_plan(), store, Budget(60.0, 60.0), told.append, ["elements"])
    failed = [row for row in store.rows if "error" in row]
    assert {row["error"] for row in failed} == {"RuntimeError: no such kernel"}
    assert {row["case"]["op"] for row in failed} == {"activate"}  # type: ignore[index]
    assert told[0].endswith(f"{len(failed)} failed")


def test_wall_clock_times_are_of_the_work_alone() -> None:
    import time

    timing = NumpyOps().time(Work(lambda i: time.sleep(0.002)), 0.0)
    assert timing.samples >= 3
    assert timing.q25_s <= timing.median_s <= timing.q75_s
    assert timing.median_s >= 0.002


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--out", "x.json", "--tiny"], "ends in .yaml"),
        (["--out", "x.yaml", "--tiny", "--groups", "gem_bf16"], "did you mean 'gemm_bf16'"),
        (["--out", "x.yaml", "--tiny", "--minutes", "0"], "--minutes: found 0"),
        (["--out", "x.yaml", "--rows", "nowhere"], "nowhere/machine.json"),
    ],
)
def test_bad_words_are_refused_in_one_line(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["calibrate", *words]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_without_torch_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(calibrate_module, "_has_torch", lambda: False)
    assert main(["calibrate", "--out", str(tmp_path / "x.yaml")]) == 2
    assert "torch is not installed" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_datasheet_is_found_by_the_devices_name() -> None:
    measured = read_measured(H200)
    assert base_of(measured, None).stem == "h200_sxm"
    named = type(measured)(measured.tables, {"gpu": "NVIDIA H100 80GB HBM3"})
    assert base_of(named, None).stem == "h100_sxm"
    unknown = type(measured)(measured.tables, {"gpu": "Quadro 42"})
    with pytest.raises(InputError, match="--like"):
        base_of(unknown, None)
    assert base_of(unknown, "b200_sxm").stem == "b200_sxm"


def test_the_shipped_plan_is_what_the_catalogue_asks_for() -> None:
    assert read_plan(MEASURED / "plan.json") == catalogue_plan()
    assert read_plan(MEASURED / "plan_steps.json") == step_plan()


def test_the_plan_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(tiny_plan().to_json())
    assert read_plan(path) == tiny_plan()
    path.write_text(path.read_text().replace('"peak_size"', '"peek_size"'))
    with pytest.raises(ValueError, match="peak_size"):
        read_plan(path)


def test_flash_attention_reads_earlier_pages_as_fast_as_its_own() -> None:
    gpu, measured = load_gpu("h200_sxm"), read_measured(H200)
    (rows,) = [r for r in prefill_rows(measured, gpu) if "/vllm/" in r.name]
    assert 0.97 < fit_parameters(rows)["past"] < 1.08
    fitted = fit_measured(rows)
    assert len(fitted.rows) < len(rows)  # the table has prompts without a past
    (small,) = element_rows(measured, gpu)
    assert fit_measured(small).table is None


@pytest.mark.slow
def test_the_whole_program_runs_on_torch(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    words = [
        "calibrate",
        "--tiny",
        "--device",
        "cpu",
        *(w for name in ("gemm_bf16", "step", "copies") for w in ("--groups", name)),
    ]
    assert main([*words, "--out", str(tmp_path / "here.yaml")]) == 0
    assert '"error"' not in (tmp_path / "here.measured" / "rows.jsonl").read_text()
