"""Result files of benchmark clients: read by content, replayed, fitted to; bad ones refused in one line."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest

from simulator import simulate, validate_run
from simulator.cli import main
from simulator.cluster.topology import load_topology
from simulator.errors import InputError
from simulator.validation.clients.openers import read_measured
from simulator.validation.clients.prefixes import read_prefixes
from simulator.validation.fit_run import fit_runs
from simulator.workload.trace import Trace

DATA = os.environ.get("SIMULATOR_DATA")
needs_data = pytest.mark.skipif(DATA is None, reason="SIMULATOR_DATA is not set")
SERVER = {
    "name": "server",
    "engine": {"profile": "vllm", "max_num_batched_tokens": 256, "async_scheduling": False, "prefix_caching": False},
    "pools": [{"name": "one", "role": "colocated"}],
    "step_time": {"base_s": 5e-3, "per_token_s": 2e-4, "per_context_token_s": 5e-7, "per_sequence_s": 1e-4},
    "frontend": {"before_s": 4e-3},
    "kv_blocks": 4000,
}


def requests(count: int = 40, seed: int = 0) -> Trace:
    draw = np.random.default_rng(seed)
    return Trace.from_columns(
        np.cumsum(draw.exponential(0.15, count)), draw.integers(20, 300, count), draw.integers(2, 40, count)
    )


def vllm_file(path: Path, trace: Trace, *, clients: int | None = None, topology: object = SERVER) -> Path:
    """What ``vllm bench serve`` would have kept of a run of the simulator."""
    rows = simulate(trace, topology, arrivals=f"closed:{clients}" if clients else "trace").requests
    gaps = (rows["last_token_s"] - rows["first_token_s"]) / (rows["output_tokens"] - 1)
    document = {
        "request_rate": "inf" if clients else 6.7,
        "burstiness": 1.0,
        "max_concurrency": clients,
        "input_lens": rows["input_tokens"].tolist(),
        "output_lens": rows["output_tokens"].tolist(),
        "ttfts": rows["ttft_s"].tolist(),
        "itls": [[gap] * (n - 1) for gap, n in zip(gaps, rows["output_tokens"], strict=True)],
        "start_times": (1234.5 + rows["arrival_s"]).tolist(),
        "errors": [""] * len(rows),
    }
    with gzip.open(path, "wt") as file:
        json.dump(document, file)
    return path


@pytest.mark.parametrize("clients", [None, 3])
def test_a_replay_of_the_simulators_own_run_is_exact(tmp_path: Path, clients: int | None) -> None:
    found = validate_run(vllm_file(tmp_path / "run.json.gz", requests(), clients=clients), SERVER)
    assert found.measured.load == ("closed" if clients else "timed")
    assert all(abs(figure.error_percent) < 1e-6 for figure in found.figures)
    assert {figure.metric for figure in found.figures} == {"ttft", "tpot", "e2e"}


def aiperf_lines(run: list[tuple[float, int, int, float, float]]) -> str:
    """Requests (sent, input, output, ttft, e2e) as AIPerf writes them: in order of completion."""
    lines = []
    for sent, tokens, out, ttft, e2e in sorted(run, key=lambda one: one[0] + one[4]):
        metrics = {
            "input_sequence_length": {"value": tokens, "unit": "tokens"},
            "output_sequence_length": {"value": out, "unit": "tokens"},
            "time_to_first_token": {"value": ttft * 1e3, "unit": "ms"},
            "request_latency": {"value": e2e, "unit": "s"},
        }
        meta = {"request_start_ns": int((1.7e9 + sent) * 1e9), "benchmark_phase": "profiling"}
        lines.append(json.dumps({"metadata": meta, "metrics": metrics, "error": None}))
    return "\n".join(lines)


RUN = [(0.0, 100, 20, 0.05, 0.9), (0.5, 60, 5, 0.02, 0.1), (0.75, 30, 1, 0.01, 0.01)]


def guidellm(run: list[tuple[float, int, int, float, float]], **strategy: object) -> str:
    rows = [
        {
            "prompt_tokens": tokens,
            "output_tokens": out,
            "time_to_first_token_ms": ttft * 1e3,
            "request_latency": e2e,
            "request_start_time": 1.7e9 + sent,
        }
        for sent, tokens, out, ttft, e2e in run
    ]
    one = {"requests": {"successful": rows, "errored": [{}], "incomplete": []}, "config": {"strategy": strategy}}
    return json.dumps({"benchmarks": [one]})


def sglang(run: list[tuple[float, int, int, float, float]], rate: float, clients: int | None) -> str:
    columns = {
        "input_lens": [one[1] for one in run],
        "output_lens": [one[2] for one in run],
        "ttfts": [one[3] for one in run],
        "itls": [[(one[4] - one[3]) / max(one[2] - 1, 1)] * (one[2] - 1) for one in run],
        "errors": [""] * len(run),
    }
    return json.dumps({"request_rate": rate, "max_concurrency": clients, **columns})


def engine_log(run: list[tuple[float, int, int, float, float]]) -> str:
    rows = [
        {
            "input_toks": t,
            "output_toks": o,
            "queued_ts": 9.0 + s,
            "first_token_ts": 9.0 + s + f,
            "last_token_ts": 9.0 + s + e,
        }
        for s, t, o, f, e in run
    ]
    return "\n".join(map(json.dumps, rows))


@pytest.mark.parametrize(
    ("client", "text", "load"),
    [
        ("AIPerf", aiperf_lines(RUN), "timed"),
        ("GuideLLM", guidellm(RUN, type_="poisson", rate=2.0), "timed"),
        ("GuideLLM", guidellm(RUN, type_="concurrent", streams=2), "closed"),
        ("SGLang bench_serving", sglang(RUN, 4.0, None), "rate"),
        ("SGLang bench_serving", sglang(RUN, float("inf"), 2), "closed"),
        ("request log of the engine", engine_log(RUN), "timed"),
    ],
)
def test_each_client_is_told_by_content(tmp_path: Path, client: str, text: str, load: str) -> None:
    path = tmp_path / "anything.dat"
    path.write_text(text)
    run = read_measured(path)
    assert (run.client, run.load) == (client, load)
    assert run.input_tokens.tolist() == [100, 60, 30]
    assert run.output_tokens.tolist() == [20, 5, 1]
    assert run.ttft_s == pytest.approx([0.05, 0.02, 0.01], abs=1e-6)
    assert run.e2e_s == pytest.approx([0.9, 0.1, 0.01], abs=1e-6)
    assert run.latencies("tpot") == pytest.approx([0.85 / 19, 0.02], abs=1e-6)
    if load == "timed":
        assert run.sent_s == pytest.approx([0.0, 0.5, 0.75], abs=1e-6)
    assert validate_run(run, SERVER).figure("ttft", "p50") is not None


GOOD = json.loads(sglang(RUN, 4.0, None))


@pytest.mark.parametrize(
    ("said", "tokens"),
    [
        ({"dataset_name": "random-ids", "total_output_tokens_retokenized": 30}, [120, 72, 36]),
        ({"dataset_name": "random-ids", "total_output_tokens_retokenized": 24}, [100, 60, 30]),
        ({"dataset_name": "random-ids"}, [100, 60, 30]),
        ({"dataset_name": "random-ids", "total_output_tokens_retokenized": float("nan")}, [100, 60, 30]),
        ({"dataset_name": "sharegpt", "total_output_tokens_retokenized": 30}, [100, 60, 30]),
    ],
)
def test_text_of_random_ids_is_tokenized_anew_by_the_server(tmp_path: Path, said: dict, tokens: list[int]) -> None:
    path = tmp_path / "run.jsonl"
    path.write_text(json.dumps({**GOOD, "total_output_tokens": 25, **said}))
    run = read_measured(path)
    assert run.input_tokens.tolist() == tokens
    assert any("tokenizes anew: 1.2 tokens" in note for note in run.notes) == (tokens[0] == 120)


def test_lengths_that_are_no_numbers_are_named_also_where_they_would_be_scaled(tmp_path: Path) -> None:
    said = {"dataset_name": "random-ids", "total_output_tokens": 25, "total_output_tokens_retokenized": 30}
    path = tmp_path / "run.jsonl"
    path.write_text(json.dumps({**GOOD, **said, "input_lens": [1, "x", 2]}))
    with pytest.raises(InputError, match="request 2: input_tokens: found 'x'"):
        read_measured(path)


def test_aiperf_says_in_its_summary_that_the_loop_was_closed(tmp_path: Path) -> None:
    (tmp_path / "profile_export.jsonl").write_text(aiperf_lines(RUN))
    summary = {"input_config": {"phases": [{"type": "concurrency", "concurrency": 2}]}}
    (tmp_path / "profile_export_aiperf.json").write_text(json.dumps(summary))
    run = read_measured(tmp_path)
    assert (run.load, run.clients) == ("closed", 2)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("a,b\n1,2\n", "not JSON"),
        ('{"hello": 1}', "no result file of a known client"),
        ("[1, 2]", "JSON objects are expected"),
        (json.dumps({**GOOD, "ttfts": None}), "'ttfts' is missing; run the client with --output-details"),
        (json.dumps({**GOOD, "ttfts": [0.1]}), "lists of different lengths"),
        (json.dumps({**GOOD, "ttfts": [0.1, "x", 0.1]}), "itls: a list of seconds"),
        (json.dumps({**GOOD, "input_lens": [1, 0, 2]}), "request 2: input_tokens: found 0"),
        (json.dumps({**GOOD, "errors": ["no"] * 3}), "no request that succeeded"),
        (json.dumps({**GOOD, "request_rate": 0}), "request_rate"),
        (aiperf_lines(RUN).replace('"ms"', '"weeks"'), "unit 'weeks'"),
        (engine_log(RUN).replace('"queued_ts": 9.5', '"queued_ts": "x"'), ":2: queued_ts: found 'x'"),
        (guidellm(RUN).replace("prompt_tokens", "tokens"), "'prompt_tokens' is missing"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(tmp_path: Path, capsys, text: str, words: str) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "bad.json"
    path.write_text(text)
    assert main(["validate", "run", str(path), "--topology", "colocated"]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


def test_prefixes_are_those_of_the_trace_sent(tmp_path: Path) -> None:
    rows = [{"input_length": n, "output_length": 2, "hash_ids": [1, 2, i + 9]} for i, n in enumerate((40, 44, 48))]
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    trace = read_prefixes(str(path), 16)
    run = read_measured(vllm_file(tmp_path / "run.json", Trace.from_columns([0.0, 1.0, 2.0], [40, 44, 48], [2, 2, 2])))
    caching = {**SERVER, "engine": {**SERVER["engine"], "prefix_caching": True, "block_size": 16}}
    bare, shared = validate_run(run, caching), validate_run(run.with_prefixes(trace), caching)
    assert shared.simulated["ttft"][1] < bare.simulated["ttft"][1]
    with pytest.raises(InputError, match="request 1 has 40 prompt tokens"):
        read_measured(vllm_file(tmp_path / "other.json", requests(3))).with_prefixes(trace)


def test_a_fit_finds_the_step_time_that_made_the_runs(tmp_path: Path) -> None:
    lone = Trace.from_columns(np.arange(12) * 2.0, np.repeat([16, 64, 128, 256], 3), np.full(12, 8))
    files = [vllm_file(tmp_path / "lone.json.gz", lone), vllm_file(tmp_path / "busy.json.gz", requests(), clients=6)]
    start = {**SERVER, "step_time": {"base_s": 0.0}, "frontend": {}}
    fit = fit_runs([read_measured(file) for file in files], load_topology(start), name="mine")
    assert fit.after_s["base_s"] == pytest.approx(5e-3, rel=0.1)
    assert fit.after_s["per_token_s"] == pytest.approx(2e-4, rel=0.1)
    assert all(abs(error) < 5 for run in fit.runs for error in run.after_percent.values())


def test_a_fit_tells_reading_the_weights_from_other_time_of_a_step(tmp_path: Path) -> None:
    """Few tokens hide behind 8 ms of reading, many do not: a straight line would be far off in between."""
    bends = {"base_s": 1e-3, "per_token_s": 5e-4, "weights_s": 8e-3}
    lone = Trace.from_columns(np.arange(12) * 2.0, np.repeat([8, 32, 64, 256], 3), np.full(12, 8))
    files = [vllm_file(tmp_path / "lone.json.gz", lone, topology={**SERVER, "step_time": bends, "frontend": {}})]
    for clients in (4, 12, 24):
        short = Trace.from_columns(np.zeros(48), np.full(48, 20), np.full(48, 30))
        path = tmp_path / f"{clients}.json.gz"
        files.append(vllm_file(path, short, clients=clients, topology={**SERVER, "step_time": bends, "frontend": {}}))
    start = {**SERVER, "step_time": {"base_s": 0.0}, "frontend": {}}
    fit = fit_runs([read_measured(file) for file in files], load_topology(start), name="mine")
    assert fit.after_s["weights_s"] == pytest.approx(8e-3, rel=0.15)
    assert fit.after_s["per_token_s"] == pytest.approx(5e-4, rel=0.1)


@pytest.mark.slow
def test_a_fit_finds_the_host_times_of_an_engine(tmp_path: Path) -> None:
    """Runs of a slower host, fitted from the shipped profile; the file written is one that --set can use.

    At a rate that leaves the engine idle a longer front end and longer steps with prompts are the same to within 1 %: half
    of the requests at once tell them apart, where prompts wait for one another's steps.
    """
    slow = tmp_path / "slow.yaml"
    slow.write_text("extends: vllm-0.19\nname: slow\ncosts: {frontend_s: 30.0e-3, step_gap_s: 3.0e-3}\n")
    topology = {
        "name": "one",
        "model": "llama-3.1-8b",
        "engine": {"profile": str(slow), "max_model_len": 4096},
        "pools": [{"name": "engine", "role": "colocated", "gpu": "h100_sxm"}],
    }
    file = vllm_file(tmp_path / "run.json.gz", requests(), topology=topology)
    burst = vllm_file(tmp_path / "burst.json.gz", requests(), clients=20, topology=topology)
    shipped, fitted = tmp_path / "shipped.yaml", tmp_path / "fitted.yaml"
    shipped.write_text(json.dumps({**topology, "engine": {"profile": "vllm-0.19", "max_model_len": 4096}}))
    words = ["validate", "run", str(file), str(burst), "--topology", str(shipped)]
    assert main([*words, "--fit", str(fitted), "--json", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["fit"]["after_s"]["frontend_s"] == pytest.approx(30e-3, rel=0.15)
    assert found["fit"]["after_s"]["step_gap_s"] == pytest.approx(3e-3, rel=0.15)
    again = validate_run(file, shipped, overrides=[f"engine.profile={fitted}"])
    assert abs(again.figure("tpot", "p50").error_percent) < 3  # type: ignore[union-attr]


def test_the_command_prints_and_writes(tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    file = vllm_file(tmp_path / "run.json.gz", requests())
    server = tmp_path / "server.yaml"
    server.write_text(json.dumps(SERVER))
    out = tmp_path / "out"
    assert main(["validate", "run", str(file), "--topology", str(server), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "TTFT measured" in said and "+0.0 %" in said
    assert (out / "run.png").stat().st_size > 10_000
    document = json.loads((out / "comparison.json").read_text())
    assert document["runs"][0]["client"] == "vllm bench serve"
    assert len(document["runs"][0]["figures"]) == 15
    assert main(["validate", "run", str(file), str(file), "--topology", str(server), "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["mean_absolute_error_percent"]["ttft"]["p50"] < 1e-6


@needs_data
@pytest.mark.slow
def test_quiet_runs_of_a_real_server_after_a_fit_on_its_calibration() -> None:
    place = Path(str(DATA)) / "measurements" / "client_files"
    calibration = [p for p in sorted((place / "calibration").glob("*.json.gz")) if "repeat" not in p.name]
    server = {**SERVER, "step_time": {"base_s": 0.0}, "frontend": {}, "kv_blocks": 4095}
    server["engine"] = {**SERVER["engine"], "max_num_seqs": 32, "max_model_len": 2048, "block_size": 32}
    fit = fit_runs([read_measured(path) for path in calibration], load_topology(server), name="cpu")
    files = [f"vllm_bench/A_{name}.json.gz" for name in ("rate6", "conc8", "rate25_saturated")]
    files += [f"sglang_bench_serving/A_{name}.jsonl.gz" for name in ("rate5", "conc8")]
    for name in (*files, "aiperf/A_rate5"):
        found = validate_run(place / name, dict(fit.document))
        for metric in ("ttft", "tpot"):
            assert abs(found.figure(metric, "p50").error_percent) < 10, (name, metric)  # type: ignore[union-attr]
