"""Each format from a few rows written here, and the public files where they are at hand."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from simulator.errors import TraceError
from simulator.resources import shipped
from simulator.workload import Trace, load_trace, same_requests, sources

NATIVE = [
    {"arrival_s": 0, "input_tokens": 600, "output_tokens": 3, "request_id": "a", "hash_ids": [1, 2], "tenant": "x"},
    {"arrival_s": 0.25, "input_tokens": 12.0, "output_tokens": 1, "request_id": 7, "max_output_tokens": 9},
    {
        "arrival_s": 2,
        "input_tokens": 5,
        "output_tokens": 2,
        "request_id": "c",
        "session_id": 4,
        "turn": 0,
        "priority": -3,
    },
    {
        "arrival_s": 9,
        "input_tokens": 50,
        "output_tokens": 2,
        "request_id": "d",
        "session_id": 4,
        "turn": 1,
        "think_s": 1.5,
    },
]


def lines(rows: list[dict[str, object]]) -> bytes:
    return b"".join(json.dumps(r).encode() + b"\n" for r in rows)


def read(tmp_path: Path, content: bytes, name: str = "trace", **options: object) -> Trace:
    file = tmp_path / name
    file.write_bytes(content)
    return load_trace(file, **options)  # type: ignore[arg-type]


def check_native(trace: Trace) -> None:
    assert trace.arrival_s.tolist() == [0, 0.25, 2, 9]
    assert trace.input_tokens.tolist() == [600, 12, 5, 50]
    assert trace.output_tokens.tolist() == [3, 1, 2, 2]
    assert trace.max_output_tokens.tolist() == [-1, 9, -1, -1]
    assert trace.request_id == ("a", "7", "c", "d")
    assert trace.hashes(0).tolist() == [1, 2]
    assert [len(trace.hashes(i)) for i in range(4)] == [2, 0, 0, 0]
    assert trace.session is not None
    assert trace.session.tolist() == [-1, -1, 0, 0]
    assert trace.session_names == ("4",)
    assert trace.turn is not None
    assert trace.turn.tolist() == [-1, -1, 0, 1]
    assert trace.think_s is not None
    np.testing.assert_array_equal(trace.think_s, [np.nan, np.nan, np.nan, 1.5])
    assert trace.tenant is not None
    assert trace.tenant.tolist() == [0, -1, -1, -1]
    assert trace.tenant_names == ("x",)
    assert trace.priority is not None
    assert trace.priority.tolist() == [0, 0, -3, 0]
    assert trace.follows_session().tolist() == [False, False, False, True]


@pytest.mark.parametrize(
    "pack",
    [bytes, gzip.compress, zstandard.compress, lambda b: gzip.compress(b[:90]) + gzip.compress(b[90:])],
    ids=["plain", "gzip", "zstd", "gzip in two members"],
)
def test_native_jsonl(pack: object, tmp_path: Path) -> None:
    check_native(read(tmp_path, pack(lines(NATIVE))))  # type: ignore[operator]


@pytest.mark.parametrize(
    "change",
    [
        lambda b: b"\xef\xbb\xbf" + b,
        lambda b: b.replace(b"\n", b"\r\n"),
        lambda b: b"\n  \n" + b.replace(b"\n", b"\n\n"),
        lambda b: b[:-1],
    ],
    ids=["byte order mark", "CRLF", "blank lines", "no last newline"],
)
def test_native_jsonl_layouts(change: object, tmp_path: Path) -> None:
    check_native(read(tmp_path, change(lines(NATIVE))))  # type: ignore[operator]


@pytest.mark.parametrize("block", [1, 130, 400])
def test_blocks_do_not_show(block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "BLOCK_BYTES", block)
    check_native(read(tmp_path, lines(NATIVE)))


def test_slow_and_fast_parsers_agree(tmp_path: Path) -> None:
    rows = [
        {"arrival_s": i / 8, "input_tokens": i + 1, "output_tokens": 2, "session_id": f"s{i % 7}"} for i in range(500)
    ]
    fast = read(tmp_path, lines(rows))
    # A field of several types is skipped; a name that is a number sends the block to the careful parser.
    skipped = read(tmp_path, lines([{**r, "extra": "x" if i else {"inner": 1}} for i, r in enumerate(rows)]))
    assert same_requests(fast, skipped)
    assert skipped.notes == ("fields not read: extra, inner",)
    slow = read(tmp_path, lines([{**r, "tenant": "7" if i else 7} for i, r in enumerate(rows)]))
    assert same_requests(fast, slow.with_(tenant=None, tenant_names=None))
    assert slow.tenant_names == ("7",)


def test_misspelt_fields_are_found_beside_fields_of_several_types(tmp_path: Path) -> None:
    row = {"arrival_s": 0, "input_tokens": 1, "output_tokens": 1}
    with pytest.raises(TraceError, match=r":3: unknown field 'priorty' \(did you mean 'priority'"):
        read(tmp_path, lines([{**row, "x": 1}, {**row, "x": "y"}, {**row, "priorty": 3}]))


def test_dates_as_names_stay_as_written(tmp_path: Path) -> None:
    rows = [{"arrival_s": 0, "input_tokens": 1, "output_tokens": 1, "session_id": "2023-01-01"}]
    assert read(tmp_path, lines(rows)).session_names == ("2023-01-01",)


def test_turns_are_numbered_when_only_think_times_are_given(tmp_path: Path) -> None:
    rows = [
        {"arrival_s": i, "input_tokens": 9, "output_tokens": 1, "session_id": s, "think_s": 2.0}
        for i, s in enumerate("abaab")
    ]
    trace = read(tmp_path, lines(rows))
    assert trace.turn is not None
    assert trace.turn.tolist() == [0, 0, 1, 2, 1]
    assert "numbered in order" in trace.notes[0]


def test_epoch_seconds_are_rebased_with_a_note(tmp_path: Path) -> None:
    rows = [{"arrival_s": 1.7e9 + i, "input_tokens": 1, "output_tokens": 1} for i in range(3)]
    trace = read(tmp_path, lines(rows))
    assert trace.arrival_s.tolist() == [0, 1, 2]
    assert "taken for a date" in trace.notes[0]


def test_native_csv(tmp_path: Path) -> None:
    trace = read(tmp_path, b"output_tokens,arrival_s,input_tokens,tenant\n3,0.5,7,\n4,1,8.0,acme\n")
    assert trace.arrival_s.tolist() == [0.5, 1]
    assert trace.input_tokens.tolist() == [7, 8]
    assert trace.tenant_names == ("acme",)


def mooncake(stamps: list[int]) -> bytes:
    return lines(
        [
            {"timestamp": t, "input_length": 513, "output_length": 4, "hash_ids": [0, i + 1]}
            for i, t in enumerate(stamps)
        ]
    )


def test_mooncake(tmp_path: Path) -> None:
    trace = read(tmp_path, mooncake([27000, 27040, 28500]))
    assert trace.arrival_s.tolist() == pytest.approx([0, 0.04, 1.5])
    assert trace.block_tokens == 512
    assert trace.hashes(2).tolist() == [0, 3]
    assert trace.notes[0] == "read as Mooncake trace"


def test_mooncake_bins_are_spread_evenly(tmp_path: Path) -> None:
    stamps = [0, 0, 2999, 2999, 2999, 6001, 9000, 9000, 9000, 9000, 15000, 15000]
    trace = read(tmp_path, mooncake(stamps))
    bins = np.array([0, 0, 2.999, 2.999, 2.999, 6.001, 9, 9, 9, 9, 15, 15])
    assert (np.diff(trace.arrival_s) > 0).all()
    assert ((trace.arrival_s >= bins) & (trace.arrival_s < bins + 3.001)).all()
    assert trace.arrival_s[:2].tolist() == pytest.approx([0, 2.999 / 2])
    assert np.diff(trace.arrival_s[6:10]).tolist() == pytest.approx([0.75] * 3, rel=1e-3)
    assert "bins of 3 s (2.4 requests each): spread evenly" in trace.notes[1]
    raw = read(tmp_path, mooncake(stamps), raw_arrivals=True)
    assert raw.arrival_s.tolist() == pytest.approx(bins)
    assert "kept as they are" in raw.notes[1]


def test_fine_stamps_are_left_alone(tmp_path: Path) -> None:
    stamps = sorted(np.random.default_rng(0).integers(0, 60_000, 600).tolist())
    assert read(tmp_path, mooncake(stamps)).arrival_s.tolist() == pytest.approx((np.array(stamps) - stamps[0]) / 1000)


def test_bailian_is_in_seconds_with_small_blocks(tmp_path: Path) -> None:
    row = {
        "chat_id": 1,
        "parent_chat_id": -1,
        "timestamp": 61.114,
        "input_length": 33,
        "output_length": 9,
        "type": "text",
    }
    trace = read(tmp_path, lines([{**row, "turn": 1, "hash_ids": [4, 5, 6]}, {**row, "timestamp": 62.114}]))
    assert trace.arrival_s.tolist() == pytest.approx([0, 1])
    assert trace.block_tokens == 16
    assert trace.turn is None


@pytest.mark.parametrize("zone", ["", "+00:00", "Z", "+02:00"])
def test_azure(zone: str, tmp_path: Path) -> None:
    text = (
        "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
        f"2023-11-16 18:17:03.9799600{zone},4808,10\r\n2023-11-16 18:17:04.0319600{zone},3180,8\r\n"
        f"2023-11-16 18:17:05{zone},10,0\r\n2023-11-17 00:17:03.979960{zone},1,1"
    )
    trace = read(tmp_path, text.encode())
    assert trace.arrival_s.tolist() == pytest.approx([0, 0.052, 21600], abs=1e-9)
    assert trace.input_tokens.tolist() == [4808, 3180, 1]
    assert trace.notes == ("read as Azure trace", "left out 1 of 4 rows with 0 output tokens (first: line 4)")


def test_burstgpt(tmp_path: Path) -> None:
    text = (
        b"Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        b"5,12,3.1,ChatGPT,472,18,490,Conversation log\n45,,1.0,GPT-4,10,0,10,API log\n118.5,13,2,ChatGPT,1087,230,1317,API log\n"
    )
    trace = read(tmp_path, text)
    assert trace.arrival_s.tolist() == [0, 113.5]
    assert trace.output_tokens.tolist() == [18, 230]
    assert trace.session_names == ("12", "13")
    assert trace.turn is None
    assert not trace.follows_session().any()
    assert "1 of 3 rows with 0 output tokens (first: line 3)" in trace.notes[1]


def test_burstgpt_without_sessions(tmp_path: Path) -> None:
    trace = read(tmp_path, b"Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,M,4,1,5,API log\n")
    assert trace.session is None


def test_vidur(tmp_path: Path) -> None:
    trace = read(tmp_path, b"arrived_at,num_prefill_tokens,num_decode_tokens\n0.0,374,44\n4.314579,396,109\n")
    assert trace.arrival_s.tolist() == [0, 4.314579]
    lengths = read(tmp_path, b"num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio\n3772,54,3826,69.8\n")
    assert lengths.arrival_s.tolist() == [0]
    assert "has no arrival times" in lengths.notes[1]


def test_any_csv_with_columns(tmp_path: Path) -> None:
    names = {"arrival_s": "when", "input_tokens": "prompt", "output_tokens": "answer", "tenant": "who"}
    trace = read(tmp_path, b"who;when;x;prompt;answer\nme;10;?;3;4\nyou;11.5;?;5;6\n", columns=names)
    assert trace.arrival_s.tolist() == [10, 11.5]
    assert trace.tenant_names == ("me", "you")
    dated = read(
        tmp_path,
        b"when,prompt,answer\n2024-05-10T00:00:01Z,3,4\n2024-05-10T00:00:02.5Z,3,4\n",
        columns={**names, "tenant": "when"},
    )
    assert dated.arrival_s.tolist() == [0, 1.5]


def test_jsonl_and_parquet_with_columns(tmp_path: Path) -> None:
    names = {"arrival_s": "arrival_time", "input_tokens": "input_toks", "output_tokens": "output_toks"}
    row = {"input_toks": 21, "output_toks": 5, "arrival_time": 0.5, "queued_ts": 1.0}
    assert read(tmp_path, lines([row]), columns=names).input_tokens.tolist() == [21]
    pq.write_table(pa.table({k: [v] for k, v in row.items()}), tmp_path / "p")
    assert load_trace(tmp_path / "p", columns=names).arrival_s.tolist() == [0.5]


def test_parquet(tmp_path: Path) -> None:
    rows = [{**r, "request_id": str(r["request_id"])} for r in NATIVE]
    keys = [
        "arrival_s",
        "input_tokens",
        "output_tokens",
        "request_id",
        "hash_ids",
        "max_output_tokens",
        "session_id",
        "turn",
    ]
    keys += ["think_s", "priority", "tenant"]
    pq.write_table(
        pa.table({k: [r.get(k) for r in rows] for k in keys}), tmp_path / "t.csv"
    )  # the ending is not looked at
    check_native(load_trace(tmp_path / "t.csv"))
    stamps = pa.array([10**18, 10**18 + 250_000_000], pa.timestamp("ns"))
    pq.write_table(pa.table({"arrival_s": stamps, "input_tokens": [1, 2], "output_tokens": [1, 2]}), tmp_path / "d")
    assert load_trace(tmp_path / "d").arrival_s.tolist() == [0, 0.25]


RATES = b"0,2,1,Gamma,1,0.5\n600,4,3,Weibull,0.5,0.1\n1200,0,0,,0,0\n1800,1,0,,0,0\n"
TOKENS = {
    "0": {"input_tokens": "{10: 0.5, 20: 0.5}", "output_tokens": "{3: 1.0}"},
    "21600": {"input_tokens": "{}", "output_tokens": "{}"},
}


def servegen_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "language" / "m-small"
    folder.mkdir(parents=True)
    (folder / "chunk-3-trace.csv").write_bytes(RATES)
    (folder / "chunk-3-dataset.json").write_text(json.dumps(TOKENS))
    (folder / "chunk-4-trace.csv").write_bytes(b"0,6,1,Gamma,1,1\n")
    return tmp_path / "language"


def test_servegen_folder(tmp_path: Path) -> None:
    folder = servegen_folder(tmp_path)
    trace = load_trace(folder, duration_s=2400.0)
    per_window = np.histogram(trace.arrival_s, [0, 600, 1200, 1800, 2400])[0]
    assert per_window.tolist() == [1200, 2400, 0, 600]
    assert set(trace.input_tokens.tolist()) == {10, 20}
    assert set(trace.output_tokens.tolist()) == {3}
    assert trace.tenant_names == ("client-3",)
    assert "1 clients without lengths left out" in trace.notes[-1]
    assert same_requests(trace, load_trace(folder, duration_s=2400.0))
    assert not same_requests(trace, load_trace(folder, duration_s=2400.0, seed=1))
    part = load_trace(folder, start_s=500.0, duration_s=200.0, rate_scale=0.5, limit=1000)
    assert len(part) == 100 + 200
    assert part.arrival_s[-1] < 200


def test_servegen_archive_is_as_the_folder(tmp_path: Path) -> None:
    folder = servegen_folder(tmp_path)
    for mode, name in (("w:gz", "a.tar.gz"), ("w", "b")):
        with tarfile.open(tmp_path / name, mode) as tar:  # type: ignore[call-overload]
            tar.add(folder, "language")
        assert same_requests(load_trace(tmp_path / name, duration_s=900.0), load_trace(folder, duration_s=900.0))


def test_servegen_families_have_the_stated_burstiness(tmp_path: Path) -> None:
    folder = servegen_folder(tmp_path)
    trace = load_trace(folder, duration_s=1200.0)
    gaps = [np.diff(trace.arrival_s[trace.arrival_s < 600]), np.diff(trace.arrival_s[trace.arrival_s >= 600])]
    assert [g.std() / g.mean() for g in gaps] == pytest.approx([1, 3], rel=0.2)


def test_gzip_of_something_else_is_not_servegen(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        tar.addfile(tarfile.TarInfo("readme"))
    with pytest.raises(TraceError, match="holds no chunk-N-trace"):
        read(tmp_path, buffer.getvalue(), duration_s=1.0)


@pytest.mark.parametrize("name", ["chat", "code", "long_context", "agentic"])
def test_shipped_traces_by_short_name(name: str) -> None:
    trace = load_trace(name)
    assert trace.name == name
    assert 1000 <= len(trace) <= 2000
    assert sum(f.stat().st_size for f in shipped("traces").glob("*.gz")) < 1_000_000


def test_window(tmp_path: Path) -> None:
    content = lines([{"arrival_s": float(i), "input_tokens": i + 1, "output_tokens": 1} for i in range(10)])
    assert read(tmp_path, content, start_s=2.0, duration_s=3.0).input_tokens.tolist() == [3, 4, 5]
    assert read(tmp_path, content, start_s=2.0, duration_s=3.0).arrival_s.tolist() == [0, 1, 2]
    assert read(tmp_path, content, limit=2, start_s=7.5, rate_scale=2.0).arrival_s.tolist() == [0.25, 0.75]
    assert read(tmp_path, content, duration_s=2.0).arrival_s.tolist() == [0, 1]
    assert len(read(tmp_path, content, limit=99)) == 10


def test_sessions_cut_by_the_window_are_noted(tmp_path: Path) -> None:
    rows = [
        {"arrival_s": i, "input_tokens": 9, "output_tokens": 1, "session_id": "a", "turn": i, "think_s": 1}
        for i in range(4)
    ]
    trace = read(tmp_path, lines(rows), start_s=2.0)
    assert trace.follows_session().tolist() == [False, True]
    assert "1 sessions had begun before 2 s" in trace.notes[-1]


def test_limit_stops_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "BLOCK_BYTES", 1000)
    good = b'{"arrival_s": 1, "input_tokens": 1, "output_tokens": 1}\n'
    trace = read(tmp_path, good * 20_000 + b"rubbish\n", limit=5)
    assert len(trace) == 5


public = pytest.mark.skipif("SIMULATOR_DATA" not in os.environ, reason="needs the public traces")


@public
@pytest.mark.parametrize(
    ("file", "rows", "mean_in", "mean_out", "rate"),
    [
        ("azure_llm_2023/AzureLLMInferenceTrace_code.csv.gz", 8819, 2048, 28, 2.567),
        ("azure_llm_2023/AzureLLMInferenceTrace_conv.csv.gz", 19366, 1155, 211, 5.530),
        ("vidur_lengths/splitwise_code.csv.gz", 8819, 2048, 28, 2.567),
        ("vidur_lengths/splitwise_conv.csv.gz", 19366, 1155, 211, 5.530),
        ("mooncake_fast25/conversation_trace.jsonl.gz", 12031, 12035, 343, 3.40),
        ("mooncake_fast25/synthetic_trace.jsonl.gz", 3993, 15325, 149, 3.907),
    ],
)
def test_public_traces(file: str, rows: int, mean_in: float, mean_out: float, rate: float) -> None:
    trace = load_trace(Path(os.environ["SIMULATOR_DATA"]) / "traces" / file)
    stats = trace.stats()
    assert len(trace) == rows
    assert stats["input_tokens"]["mean"] == pytest.approx(mean_in, abs=0.6)
    assert stats["output_tokens"]["mean"] == pytest.approx(mean_out, abs=0.6)
    assert stats["requests_per_s"] == pytest.approx(rate, rel=2e-3)


@public
def test_public_prefix_reuse_and_bins() -> None:
    folder = Path(os.environ["SIMULATOR_DATA"]) / "traces" / "mooncake_fast25"
    found = {n: load_trace(folder / f"{n}_trace.jsonl.gz") for n in ("conversation", "synthetic")}
    ratios = [found[n].stats()["prefix"][f"repeated_{k}_ratio"] for n in found for k in ("block", "token")]
    assert ratios == pytest.approx([0.366, 0.374, 0.640, 0.651], abs=6e-4)
    assert any("bins of 3 s (10.2 requests each)" in note for note in found["conversation"].notes)
    assert not any("bins" in note for note in found["synthetic"].notes)


@public
def test_public_servegen() -> None:
    folder = Path(os.environ["SIMULATOR_DATA"]) / "traces" / "servegen"
    trace = load_trace(folder / "reason_deepseek-r1.tar.gz", duration_s=600.0, start_s=30_000.0)
    assert len(trace) == 4657
    with pytest.raises(TraceError, match="no token lengths"):
        load_trace(folder / "language_m-mid_rates.tar.gz", duration_s=600.0)
