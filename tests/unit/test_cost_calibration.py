"""Fitting kernels: known parameters come back, gaps and jumps are handled, the shipped profiles are what the tables give."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from simulator.calibration import measured_rows
from simulator.calibration.fit import fit_kernel, fit_measured, fit_parameters, held_back, predict
from simulator.calibration.fit_tables import MEASURED, STEPS, fit_tables, measured_here
from simulator.calibration.in_steps import as_in_steps, attention_in_steps, in_steps
from simulator.calibration.kernel_rows import (
    Parameter,
    Rows,
    decode_rows,
    gemm_rows,
    moe_rows,
)
from simulator.calibration.measured import Measured, read_measured
from simulator.calibration.row_repairs import (
    CHOICE_US,
    no_slower,
    with_engine_choice,
    without_jumps,
    without_slow_rows,
)
from simulator.cost.roofline import AttentionShape, decode_attention_time
from simulator.errors import InputError
from simulator.hardware.profiles import KERNELS_SUFFIX, load_gpu, read_kernels
from simulator.resources import shipped

pytest.importorskip("scipy")
DATA = os.environ.get("SIMULATOR_DATA")
TABLES = Path(DATA or "", "kernel_data", "aiconfigurator-0.12.0")
FIT = """
import sys
from pathlib import Path
from simulator.calibration.fit_tables import error_table, fit_tables
from simulator.hardware.profiles import KERNELS_SUFFIX, read_kernels
from simulator.resources import shipped
profiles = fit_tables(Path(sys.argv[1]), Path(sys.argv[2]))
print(*[profile.gpu for profile in profiles])
print(error_table(profiles).count("\\n"))
for profile in profiles:
    again, there = (
        read_kernels(Path(folder) / f"{profile.gpu}{KERNELS_SUFFIX}", profile.gpu).operators
        for folder in (sys.argv[2], shipped("hardware_profiles"))
    )
    for rows in (fitted.rows for fitted in profile.kernels):
        now, then = (rows.roofline(kernels[rows.name], rows.columns) for kernels in (again, there))
        print(profile.gpu, rows.name, abs(now / then - 1.0).max(), *rows.parameters)
"""
needs_tables = pytest.mark.skipif(not DATA, reason="SIMULATOR_DATA is not set")


def rows(noise: float = 0.0) -> Rows:
    """A memory-bound kernel whose efficiency depends on its shape by up to 20 %."""
    rng = np.random.default_rng(0)
    n, k, m = (a.ravel() for a in np.meshgrid([1024.0, 2048, 4096, 8192], [1024.0, 4096], 2.0 ** np.arange(9)))
    seconds = (3e-6 + n * k * 2 / 2e12) * (1 + 0.2 * np.sin(np.log(n) + np.log(m)))
    measured = seconds * np.exp(rng.normal(0, noise, seconds.size))
    return Rows(
        "gemm/x/bf16",
        {"n": n, "k": k, "m": m},
        measured,
        {"n": 1.0, "k": 1.0},
        "m",
        None,
        lambda p, c: p["t0_s"] + c["n"] * c["k"] * 2 / (p["memory"] * 1e12),
        {"t0_s": Parameter(1e-6, 1e-7, 1e-4), "memory": Parameter(1.0, 0.1, 10.0)},
        {"fixed": 7.0},
        "made up",
    )


def test_parameters_come_back_from_rows_made_of_them() -> None:
    given = rows()
    exact = 5e-6 + given.columns["n"] * given.columns["k"] * 2 / 3e12
    made = Rows(**{**given.__dict__, "measured_s": exact})
    found = fit_parameters(made)
    assert found["t0_s"] == pytest.approx(5e-6, rel=1e-3)
    assert found["memory"] == pytest.approx(3.0, rel=1e-3)
    assert found["fixed"] == 7.0


def test_roofline_and_table_together_give_back_what_was_measured() -> None:
    given = rows(0.3)
    assert predict(fit_kernel(given), given) == pytest.approx(given.measured_s, rel=1e-9)


def test_rows_held_back_are_foretold_better_with_the_table_than_without() -> None:
    error = held_back(rows())
    assert np.median(error.table_rows) < 0.5 * np.median(error.roofline)
    assert error.rows == 72


def test_random_jumps_are_brought_down_and_honest_growth_is_kept() -> None:
    frame = pd.DataFrame({"m": [1, 4, 16, 64], "n": 8, "k": 8, "latency_us": [9.0, 25.0, 10.0, 40.0]})
    assert without_jumps(frame)["latency_us"].tolist() == [9.0, 10.0, 10.0, 40.0]


def test_large_products_are_no_slower_than_on_another_gpu_of_the_same_chip() -> None:
    rows = pd.DataFrame({"m": [64, 512, 1024, 2048], "n": 1, "k": 1, "latency_us": [9.0, 9.0, 9.0, 9.0]})
    other = pd.DataFrame({"m": [64, 512, 1024], "n": 1, "k": 1, "other": [5.0, 8.0, 10.0]})
    assert no_slower(rows, other)["latency_us"].tolist() == [9.0, 8.0, 9.0, 9.0]


def test_rows_slower_than_their_weights_usually_are_are_brought_down_where_it_is_sure() -> None:
    few, many = [1, 2, 4, 8, 16, 48], [1, 4, 8, 16, 64, 256]
    wide = pd.DataFrame({"m": few, "n": 8192, "k": 4096, "latency_us": [9.0, 9.0, 9.0, 11.0, 9.1, 11.0]})
    steady = pd.DataFrame({"m": many, "n": 8192, "k": 4096, "latency_us": [10.0, 10.0, 10.0, 10.0, 10.0, 30.0]})
    assert without_slow_rows(wide, steady)["latency_us"].tolist() == pytest.approx([9.0, 9.0, 9.0, 9.05, 9.1, 9.05])
    # of few columns: between two counts of rows tiles decide; of few numbers: not weights
    assert without_slow_rows(wide.assign(n=4096, k=8192), steady.assign(n=4096, k=8192))["latency_us"].tolist() == (
        pytest.approx([9.0, 9.0, 9.0, 9.05, 9.1, 11.0])
    )
    small = wide.assign(k=1024)
    assert without_slow_rows(small, steady.assign(k=1024))["latency_us"].tolist() == small["latency_us"].tolist()
    # where the steady rows jump as well it is the library's doing, and beyond 128 rows arithmetic's
    alike = steady.assign(latency_us=[10.0, 10.0, 12.4, 10.0, 10.0, 30.0])
    assert without_slow_rows(wide, alike)["latency_us"].tolist()[3] == 11.0
    large = pd.DataFrame({"m": [1, 256], "n": 8192, "k": 4096, "latency_us": [9.0, 60.0]})
    assert without_slow_rows(large, steady)["latency_us"].tolist() == [9.0, 60.0]


def test_rows_of_experts_keep_a_choice_as_long_as_an_engine_s() -> None:
    assert with_engine_choice(pd.DataFrame({"latency_us": [40.0, 300.0]}))["latency_us"].tolist() == (
        pytest.approx([40.0 - CHOICE_US, 300.0 - CHOICE_US])
    )


def test_decode_attention_is_fitted_to_what_it_takes_in_steps() -> None:
    place = shipped("hardware_profiles") / "measured"
    steps = attention_in_steps(read_measured(place / STEPS))
    assert set(steps["kv_heads"]) == {4, 8}, "the MLA model has kernels of its own"
    one = steps[(steps["kv_heads"] == 8) & (steps["batch"] == 64) & (steps["context"] == 1051)]
    assert one["median_us"].tolist() == [pytest.approx(80.99 + 3.04)]
    bare = replace(load_gpu("h200_sxm"), kernels=None)
    rows = next(r for r in measured_rows.decode_rows(read_measured(place / "h200_sxm"), bare) if "vllm" in r.name)
    alone = fit_measured(rows)
    more = in_steps(alone, steps, bare)
    assert 1.02 < more.share < 1.09 and 1e-6 < more.launch_s < 3e-6
    (found,) = measured_rows.decode_rows(Measured({"decode_attention": steps}, {}), bare)
    errors = predict(as_in_steps(alone, steps, bare), found) / found.measured_s - 1.0
    assert np.abs(errors).max() < 0.09 and np.abs(errors).mean() < 0.03
    assert (predict(alone, found) / found.measured_s).max() < 1.0, "alone it is quicker every time"


def test_the_h100_takes_decode_attention_of_the_same_chip_with_other_memory() -> None:
    (there,), (here,) = measured_here("h200_sxm"), measured_here("h100_sxm")
    assert measured_here("b200_sxm") == []
    assert here.rows.source == f"{there.rows.source}; carried over: one chip, other memory"
    assert here.parameters == there.parameters
    # what is shipped: bound by memory it takes as much longer as the H100's is slower, short contexts as long
    shape = AttentionShape(32.0, 8.0, 128.0, 128.0, 4096.0, "bf16")
    cases = {"long": (64.0, 8192.0), "short": (1.0, 128.0)}
    seconds = {}
    for gpu in map(load_gpu, ("h100_sxm", "h200_sxm")):
        assert gpu.kernels is not None
        for name, case in cases.items():
            parameters = gpu.kernels.operators[here.rows.name]
            found = decode_attention_time(gpu, parameters, shape, tuple(map(np.asarray, case)), warm=False)
            seconds[gpu.name, name] = float(found.seconds)
    assert seconds["h100_sxm", "long"] / seconds["h200_sxm", "long"] == pytest.approx(4.8 / 3.35, rel=0.03)
    assert seconds["h100_sxm", "short"] / seconds["h200_sxm", "short"] == pytest.approx(1.0, rel=0.03)


def test_a_missing_table_is_named() -> None:
    with pytest.raises(InputError, match="no such folder"):
        fit_tables(Path("nowhere"))
    with pytest.raises(InputError, match=r"h100_sxm_gemm\.csv"):
        list(gemm_rows(Path(), load_gpu("h100_sxm")))


@needs_tables
def test_decode_attention_is_foretold_within_five_per_cent_at_ninety_per_cent_of_rows() -> None:
    found = next(r for r in decode_rows(TABLES, load_gpu("h100_sxm")) if r.name == "decode_attention/vllm/bf16")
    error = held_back(found)
    assert np.median(error.table_rows) < 0.025
    assert np.quantile(error.table_rows, 0.9) < 0.06


@needs_tables
def test_balanced_rows_that_outrun_the_memory_are_taken_for_half_of_the_experts() -> None:
    kernels = {r.name: r for r in moe_rows(TABLES, load_gpu("h200_sxm"))}
    odd = kernels["moe/sglang/fp8_block-balanced"].columns
    assert set(odd["dealt"][(odd["experts"] == 256) & (odd["local"] == 256) & (odd["width"] == 2048)]) == {0.5}
    assert set(odd["dealt"][odd["experts"] == 128]) == {1.0}
    assert set(kernels["moe/trtllm/fp8_block-balanced"].columns["dealt"]) == {1.0}


@needs_tables
@pytest.mark.slow
def test_the_shipped_profiles_are_what_the_tables_give(tmp_path: Path) -> None:
    # Parameters that rows hold loosely, alone or together, follow the last bit of sums, which differs between OpenBLAS's
    # kernels (one is named) and between processors. What they make of the rows does not.
    command = [sys.executable, "-c", FIT, str(TABLES), str(tmp_path)]
    pinned = os.environ | {"OPENBLAS_CORETYPE": "Haswell"}
    told = subprocess.run(command, env=pinned, check=True, capture_output=True, text=True).stdout.splitlines()
    assert told[0].split() == list(MEASURED)
    assert int(told[1]) == 1
    lines = [line.split() for line in told[2:]]
    moved = {(gpu, kernel): float(most) for gpu, kernel, most, *_ in lines}
    assert max(moved.values()) < 0.01, max(moved, key=lambda place: moved[place])
    fitted = {(gpu, kernel): names for gpu, kernel, _, *names in lines}
    for gpu in MEASURED:
        again = read_kernels(tmp_path / f"{gpu}{KERNELS_SUFFIX}", gpu)
        there = read_kernels(shipped("hardware_profiles") / f"{gpu}{KERNELS_SUFFIX}", gpu)
        assert again.sources == there.sources
        for kernel, values in again.operators.items():
            given = values.keys() - fitted[gpu, kernel]
            assert {name: values[name] for name in given} == {name: there.operators[kernel][name] for name in given}
