"""Every broken trace is one line of TraceError that says where; a traceback or a silent guess is a failure."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from simulator.errors import TraceError
from simulator.workload import load_trace, sources


def row(**changes: str) -> bytes:
    """A native line; values are JSON text, None leaves the field out."""
    fields = {"arrival_s": "0", "input_tokens": "5", "output_tokens": "3", **changes}
    return ("{" + ", ".join(f'"{k}": {v}' for k, v in fields.items() if v is not None) + "}\n").encode()


GOOD = row()
HEADER = b"arrival_s,input_tokens,output_tokens\n"
AZURE = b"TIMESTAMP,ContextTokens,GeneratedTokens\n"

BAD = {
    "empty file": (b"", "is empty"),
    "blank lines": (b"\n \n\n", "is empty"),
    "cut line": (GOOD[:-6], ":1: not valid JSON"),
    "cut second line": (GOOD + b'{"arrival_s": 1,\n', ":2: not valid JSON"),
    "two objects a line": (GOOD[:-1] + GOOD, ":1: not valid JSON: Extra data"),
    "a list": (b'[{"arrival_s": 0}]\n', ":1: holds a JSON list"),
    "a number among objects": (GOOD + b"7\n", ":2: holds '7'"),
    "deep nesting": (b'{"a":' + b"[" * 100_000 + b"\n", ":1: not usable JSON"),
    "zero length": (row(input_tokens="0"), ":1: field 'input_tokens' is 0"),
    "negative length": (GOOD + row(output_tokens="-3"), ":2: field 'output_tokens' is -3"),
    "fraction": (row(input_tokens="5.5"), "field 'input_tokens' is 5.5"),
    "NaN length": (row(input_tokens="NaN"), "field 'input_tokens' is nan"),
    "infinite length": (row(output_tokens="Infinity"), "field 'output_tokens' is inf"),
    "text length": (row(input_tokens='"5"'), "field 'input_tokens' is '5'"),
    "boolean length": (row(output_tokens="true"), "field 'output_tokens' is true"),
    "null length": (row(output_tokens="null"), "field 'output_tokens' is missing or null"),
    "null in one of many": (GOOD * 3 + row(input_tokens="null"), ":4: field 'input_tokens' is missing or null"),
    "list length": (row(output_tokens="[1]"), "field 'output_tokens' is [1]"),
    "absurd length": (row(input_tokens="1000000001"), "field 'input_tokens' is 1000000001"),
    "beyond 64 bits": (row(input_tokens="9" * 30), "field 'input_tokens' is 99999"),
    "5000 digits": (row(input_tokens="9" * 5000), "too many digits"),
    "missing field": (row(output_tokens=None), ":1: field 'output_tokens' is missing"),
    "misspelt field": (row(output_tokens=None, ouput_tokens="3"), "did you mean 'ouput_tokens'"),
    "missing later": (GOOD + row(input_tokens=None, input_token="1"), ":2: field 'input_tokens' is missing (did you"),
    "misspelt optional": (GOOD + row(max_output_token="9"), ":2: unknown field 'max_output_token' (did you mean"),
    "field twice": (row()[:-2] + b', "arrival_s": 2}\n', ":1: field 'arrival_s' is given twice"),
    "NaN arrival": (row(arrival_s="NaN"), "field 'arrival_s' is nan"),
    "infinite arrival": (row(arrival_s="Infinity"), "field 'arrival_s' is inf"),
    "negative arrival": (row(arrival_s="-1"), "field 'arrival_s' is -1"),
    "text arrival": (row(arrival_s='"0"'), "field 'arrival_s' is '0'"),
    "arrival in milliseconds since 1970": (row(arrival_s="1.7e12"), "is it in milliseconds?"),
    "out of order": (row(arrival_s="5") + b"\n" + GOOD, ":3: field 'arrival_s' is 0, before the 5 of "),
    "too few blocks": (row(input_tokens="1025", hash_ids="[1, 2]"), "2 ids, but 1025 input tokens are 3 blocks"),
    "too many blocks": (row(hash_ids="[1, 2]"), "2 ids, but 5 input tokens are 1 blocks"),
    "fractional id": (row(hash_ids="[1.5]"), "field 'hash_ids' is [1.5]"),
    "negative id": (row(hash_ids="[-1]"), "field 'hash_ids' is [-1]"),
    "null id": (row(hash_ids="[null]"), "field 'hash_ids' is [None]"),
    "id of 64 bits": (row(hash_ids=f"[{2**63}]"), "below 2^63"),
    "two block sizes": (
        row(hash_ids="[1]", block_tokens="16") + row(hash_ids="[1]", block_tokens="32"),
        ":2: field 'block_tokens' changes",
    ),
    "client allows less": (row(max_output_tokens="2"), "more than the client's 'max_output_tokens' of 2"),
    "think time alone": (row(think_s="2"), "needs 'session_id'"),
    "negative think time": (row(session_id='"a"', turn="0", think_s="-2"), "field 'think_s' is -2"),
    "turn twice": (row(session_id='"a"', turn="0") * 2, ":2: field 'turn' is 0, not after turn 0"),
    "negative turn": (row(session_id='"a"', turn="-4"), "field 'turn' is -4"),
    "turn missing": (row(session_id='"a"', turn="0") + row(session_id='"b"'), ":2: field 'turn' is missing"),
    "fractional priority": (row(priority="1.5"), "field 'priority' is 1.5"),
    "id twice": (row(request_id='"a"') * 2, ":2: field 'request_id' is 'a', already used at "),
    "id missing": (row(request_id='"a"') + GOOD, ":2: field 'request_id' is missing"),
    "id is a list": (row(request_id="[1]"), "field 'request_id' is [1]"),
    "unknown keys": (
        b'{"time": 1, "prompt": 5}\n',
        "unknown trace format with JSON fields 'time', 'prompt'; known: native",
    ),
    "no keys": (b"{}\n", "unknown trace format"),
    "prose": (b"hello world\n", "unknown trace format with CSV fields"),
    "UTF-16": ("{}".encode("utf-16"), ":1: is not UTF-8"),
    "not UTF-8 later": (GOOD + b'{"\xff": 1}\n', ":2: is not UTF-8 text (byte 0xff)"),
    "zero byte": (GOOD + b"\0\n", ":2: holds a zero byte"),
    "CSV without rows": (HEADER, "holds no requests"),
    "CSV short row": (HEADER + b"1,2,3\n1,2\n", ":3: has 2 values, but the header names 3"),
    "CSV long row": (HEADER + b"1,2,3,4\n", ":2: has 4 values"),
    "CSV text": (HEADER + b"0,1,x\n", ":2: field 'output_tokens' is 'x'"),
    "CSV empty value": (HEADER + b"0,,3\n", ":2: field 'input_tokens' is missing"),
    "CSV underscores": (HEADER + b"0,1_000,3\n", "field 'input_tokens' is '1_000'"),
    "CSV open quotation": (HEADER + b'0,1,"3\n', ":2: not a CSV line"),
    "CSV column twice": (b"arrival_s,arrival_s,input_tokens,output_tokens\n0,0,1,1\n", "'arrival_s' is named 2 times"),
    "CSV without input": (b"arrival_s,output_tokens\n0,1\n", ":1: field 'input_tokens' is missing"),
    "Azure month 13": (AZURE + b"2023-13-16 18:17:03,4,5\n", ":2: field 'TIMESTAMP' is '2023-13-16"),
    "Azure out of order": (
        AZURE + b"2023-11-16 18:17:03.5,4,5\n2023-11-16 18:17:02.5,4,5\n",
        ":3: field 'arrival_s' is 0, before the 1",
    ),
    "Azure all failed": (AZURE + b"2023-11-16 18:17:03,4,0\n", "all 1 rows have 0"),
    "Mooncake negative": (
        b'{"timestamp": 0, "input_length": -4, "output_length": 1, "hash_ids": [1]}\n',
        ":1: field 'input_length' is -4",
    ),
    "zip": (b"PK\x03\x04rest", "is a zip archive"),
    "xz": (b"\xfd7zXZ\0\0", "is xz"),
    "broken Parquet": (b"PAR1xx", "not a readable Parquet file"),
    "broken zstd": (b"\x28\xb5\x2f\xfdxxxxxxx", "compressed data is damaged"),
    "cut gzip": (gzip.compress(GOOD * 1000)[:-40], "the file is cut"),
    "damaged gzip": (gzip.compress(GOOD * 1000)[:-8] + b"\1" * 8, "compressed data is damaged"),
    "gzip then rubbish": (gzip.compress(GOOD) + b"rubbish", "compressed data is damaged"),
    "cut zstd": (zstandard.compress(GOOD * 1000)[:-3], "the file is cut"),
}


def refused(path: object, **options: object) -> str:
    with pytest.raises(TraceError) as caught:
        load_trace(path, **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 900
    assert message.startswith(str(path)) or options or not isinstance(path, Path)
    return message


@pytest.mark.parametrize("name", BAD)
def test_bad_file_is_one_line(name: str, tmp_path: Path) -> None:
    content, expected = BAD[name]
    file = tmp_path / "trace.any"
    file.write_bytes(content)
    assert expected in refused(file)


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress], ids=["gzip", "zstd"])
def test_line_numbers_survive_packing(pack: object, tmp_path: Path) -> None:
    file = tmp_path / "t"
    file.write_bytes(pack(GOOD * 5000 + row(output_tokens="-1")))  # type: ignore[operator]
    assert ":5001: field 'output_tokens' is -1" in refused(file)


def test_line_numbers_survive_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "BLOCK_BYTES", 200)
    file = tmp_path / "t"
    file.write_bytes(GOOD * 100 + b"\n" + row(arrival_s="2") + row(arrival_s="1"))
    assert ":103: field 'arrival_s' is 1, before the 2 of " in refused(file)


def test_paths(tmp_path: Path) -> None:
    (tmp_path / "conv.jsonl").write_bytes(GOOD)
    assert "no such file (did you mean 'conv.jsonl'?)" in refused(tmp_path / "conv.jsn")
    assert "is a directory" in refused(tmp_path)
    assert "no such file (did you mean 'chat'?); shipped traces: agentic, chat, code" in refused("chatt")
    for path in ("", None, 7, "a\0b"):
        assert "trace path is" in refused(path)
    assert "cannot be read: File name too long" in refused("x" * 500)


def test_devices_are_refused() -> None:
    assert "is not a regular file" in refused("/dev/zero")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"limit": 0}, "limit: 0"),
        ({"limit": -1}, "limit: -1"),
        ({"limit": 1.5}, "limit: 1.5"),
        ({"limit": True}, "limit: True"),
        ({"start_s": -1.0}, "start: -1.0"),
        ({"start_s": float("nan")}, "start: nan"),
        ({"duration_s": 0}, "duration: 0"),
        ({"duration_s": float("inf")}, "duration: inf"),
        ({"rate_scale": 0}, "rate scale: 0"),
        ({"rate_scale": -2.0}, "rate scale: -2.0"),
        ({"rate_scale": "2"}, "rate scale: '2'"),
        ({"start_s": 50.0}, "no request arrives from 50 s to inf s; arrivals run from 0 s to 0 s"),
        ({"columns": {"arrival": "arrival_s"}}, "unknown field 'arrival' (did you mean 'arrival_s'?)"),
        ({"columns": {"arrival_s": "arrivals"}}, "unknown column 'arrivals' (did you mean 'arrival_s'?)"),
    ],
)
def test_options(options: dict[str, object], expected: str, tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    file.write_bytes(GOOD)
    assert expected in refused(file, **options)


def test_columns_must_name_all(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_bytes(b"when,ins,outs\n0,1,2\n")
    message = refused(file, columns={"arrival_s": "when", "input_tokens": "ins"})
    assert "--columns: field 'output_tokens' is not given" in message


def test_bombs_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_LINE_BYTES", 1 << 20)
    monkeypatch.setattr(sources, "RATIO_FROM_BYTES", 1 << 20)
    monkeypatch.setattr(sources, "MAX_RATIO", 100)
    file = tmp_path / "bomb"
    file.write_bytes(zstandard.compress(b" " * (60 << 20)))
    assert "unpacks to more than 100 times its size; reading stopped" in refused(file)
    monkeypatch.setattr(sources, "MAX_RATIO", 10**9)
    assert "a line of more than 1,048,576 bytes; reading stopped" in refused(file)
    monkeypatch.setattr(sources, "MAX_UNPACKED_BYTES", 1 << 20)
    assert "more than 1,048,576 bytes unpacked; reading stopped" in refused(file)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (
            {"arrival_s": [0.0, 1.0], "input_tokens": [1, 0], "output_tokens": [1, 1]},
            "row 2: field 'input_tokens' is 0",
        ),
        ({"arrival_s": [0.0], "input_tokens": [None], "output_tokens": [1]}, "row 1: field 'input_tokens' is missing"),
        ({"arrival_s": [1.0, 0.5], "input_tokens": [1, 1], "output_tokens": [1, 1]}, ":2: field 'arrival_s' is 0.5"),
        ({"arrival_s": ["a"], "input_tokens": [1], "output_tokens": [1]}, "row 1: field 'arrival_s' is 'a'"),
        ({"arrival_s": [0.0], "input_tokens": [1]}, "field 'output_tokens' is missing"),
    ],
)
def test_parquet(columns: dict[str, list[object]], expected: str, tmp_path: Path) -> None:
    file = tmp_path / "t.parquet"
    pq.write_table(pa.table(columns), file)
    assert expected in refused(file)


def archive(tmp_path: Path, members: dict[str, bytes]) -> Path:
    file = tmp_path / "servegen.tar.gz"
    with tarfile.open(file, "w:gz") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file


LENGTHS = b'{"0": {"input_tokens": "{10: 1.0}", "output_tokens": "{5: 1.0}"}}'


@pytest.mark.parametrize(
    ("rates", "lengths", "expected"),
    [
        (b"0,1,1,Gamma,1,1\n", None, "no token lengths"),
        (b"0,1,1,Cauchy,1,1\n", LENGTHS, "chunk-0-trace.csv:1: family of gaps 'Cauchy'"),
        (b"0,x,1,Gamma,1,1\n", LENGTHS, "chunk-0-trace.csv:1: allowed: start_s, rate"),
        (b"0,-1,1,Gamma,1,1\n", LENGTHS, "out of range"),
        (b"600,1,1,Gamma,1,1\n0,1,1,Gamma,1,1\n", LENGTHS, ":2: window start 0 is not after 600"),
        (b"0,1,1,Gamma,1,1\n", b"[]", "not a JSON object of windows"),
        (b"0,1,1,Gamma,1,1\n", b'{"0": {"text_tokens": "{}", "image_tokens": "{}"}}', "images, audio or video"),
        (b"0,1,1,Gamma,1,1\n", LENGTHS.replace(b"10:", b"1.5:"), "lengths must be whole numbers"),
        (b"0,1,1,Gamma,1,1\n", LENGTHS.replace(b"5: 1.0", b"5: -1.0"), "probabilities must be finite"),
        (b"0,0,0,,0,0\n", LENGTHS, "no request arrives from 0 s to 60 s"),
        (b"0,9999999,1,Gamma,1,1\n", LENGTHS, "at most 50,000,000 are allowed"),
    ],
)
def test_servegen(rates: bytes, lengths: bytes | None, expected: str, tmp_path: Path) -> None:
    members = {"m/chunk-0-trace.csv": rates, **({"m/chunk-0-dataset.json": lengths} if lengths else {})}
    assert expected in refused(archive(tmp_path, members), duration_s=60.0)


def test_servegen_needs_a_duration(tmp_path: Path) -> None:
    file = archive(tmp_path, {"m/chunk-0-trace.csv": b"0,1,1,Gamma,1,1\n", "m/chunk-0-dataset.json": LENGTHS})
    assert "say how long with --duration" in refused(file)
    assert "--columns does not apply" in refused(file, duration_s=1.0, columns={"arrival_s": "a"})
    for kept in (len(file.read_bytes()) // 2, 20):
        file.write_bytes(file.read_bytes()[:kept])
        assert "cut" in refused(file, duration_s=1.0)
