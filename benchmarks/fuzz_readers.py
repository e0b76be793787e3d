"""Feed arbitrary bytes to every reader, with coverage as the guide: anything but a one-line InputError is a bug.

    pip install atheris
    python benchmarks/fuzz_readers.py --runs 20000                 all readers, each in a process of its own
    python benchmarks/fuzz_readers.py --only trace --runs 200000

Each reader starts from good files and is told when a file is refused or taken; a traceback, a message of more than one
line, a hang of 20 s or more than 1 GB stops it, and the bytes are left in ``crash-*``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from simulator.errors import InputError
from simulator.resources import shipped

TOPOLOGY = b"""name: pair
model: llama-3.1-8b
pools:
  - {name: prefill, role: prefill, gpu: h100_sxm}
  - {name: decode, role: decode, gpu: h100_sxm, workers: 2, parallel: {tp: 2}}
network: {kind: rdma, nic_gbit_per_s: 400}
"""
SPEC = b"""name: drawn
requests: 5
arrivals: {rate_per_s: 5.0}
input_tokens: {quantiles: {0.0: 10, 0.5: 200, 1.0: 3000}}
output_tokens: {constant: 20}
"""
CONFIG = (
    b'{"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, '
    b'"intermediate_size": 128, "vocab_size": 99, "max_position_embeddings": 512}'
)
NATIVE = b'{"arrival_s": 0, "input_tokens": 5, "output_tokens": 3, "hash_ids": [1]}\n'
MOONCAKE = b'{"timestamp": 0, "input_length": 700, "output_length": 2, "hash_ids": [1, 2]}\n'
SWEEP = b"trace: chat\ntopologies: [1p1d]\ngrid: {rate_scale: [1, 2], pools.decode.workers: [1, 2]}\nseeds: [0, 1]\n"
PLAN = b"""find: max_rate
trace: chat
limit: 10
slo: {ttft: 2s, tpot: 50ms, attainment: 0.9}
arrivals: poisson
topologies: [1p1d]
"""
CURVES = b"""baseline: baseline.json
curves:
  - {name: one, trace: chat, topologies: [1p1d], rates: [1, 2], metrics: [ttft_p99], slo: {ttft: 2s}, limit: 10}
"""
LINK = b"""fast:
  kind: nvlink
  aliases: [quick]
  bandwidth_bytes_per_s: 300e9
  efficiency: 0.91
  setup_s: 1.0e-5
  per_descriptor_s: 3.75e-6
  sources: {bandwidth_bytes_per_s: a, efficiency: b, setup_s: c, per_descriptor_s: d}
"""
BANDWIDTH = b"time_s,gbit_per_s\n0,8\n2.5,0\n4,16\n"
VLLM_BENCH = (
    b'{"request_rate": "inf", "burstiness": 1.0, "input_lens": [5], "output_lens": [3], "ttfts": [0.1], '
    b'"itls": [[0.01, 0.01]], '
    b'"start_times": [1.0], "errors": [""], "generated_texts": ["x"], "max_concurrency": 1}'
)
ENGINE_LOG = b'{"input_toks": 5, "output_toks": 3, "queued_ts": 1.0, "first_token_ts": 1.5, "last_token_ts": 2.0}\n'
AIPERF = (
    b'{"metadata": {"request_start_ns": 1, "request_end_ns": 9, "benchmark_phase": "profiling"}, '
    b'"metrics": {"time_to_first_token": {"value": 5, "unit": "ms"}, "input_sequence_length": {"value": 5, '
    b'"unit": "tokens"}, "output_sequence_length": {"value": 3, "unit": "tokens"}, '
    b'"request_latency": {"value": 9, "unit": "ms"}}, "error": null}\n'
)
AZURE = b"TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.97,4808,10\n"


def trace(path: Path) -> None:
    from simulator.workload.load import load_trace

    load_trace(path)


def topology(path: Path) -> None:
    from simulator.cluster.assembly import assemble
    from simulator.cluster.topology import load_topology

    assemble(load_topology(str(path)))


def engine(path: Path) -> None:
    from simulator.cluster.profiles import load_profile
    from simulator.cost.engine_costs import load_engine_costs

    load_profile.__wrapped__(str(path))
    load_engine_costs(str(path))


def gpu(path: Path) -> None:
    from simulator.hardware.profiles import load_gpu

    load_gpu(str(path))


def model(path: Path) -> None:
    from simulator.models import load_model

    load_model(str(path))


def spec(path: Path) -> None:
    from simulator.workload.spec import read_spec

    read_spec(path)


def link(path: Path) -> None:
    from simulator.hardware.links import load_link

    load_link(str(path))


def bandwidth(path: Path) -> None:
    from simulator.network.bandwidth import read_bandwidth_trace

    read_bandwidth_trace(path)


def sweep(path: Path) -> None:
    from simulator.planning.sweep_spec import plan_runs, points, read_sweep

    read = read_sweep(path)
    if sum(1 for _ in points(read)) < 20:
        plan_runs(read)


def plan(path: Path) -> None:
    from simulator.planning.plan_spec import read_plan

    read_plan(path)


def curves(path: Path) -> None:
    from simulator.planning.curves import read_curves

    read_curves(path)


def client(path: Path) -> None:
    from simulator.validation.clients.openers import read_measured

    read_measured(path)


def prefixes(path: Path) -> None:
    from simulator.validation.clients.prefixes import read_prefixes

    read_prefixes(str(path), 16)


def options(path: Path) -> None:
    """Texts of the command line."""
    from simulator.cluster.topology import load_topology
    from simulator.commands.options import parse_columns, parse_levels, parse_seconds
    from simulator.metrics.slo import SLO
    from simulator.workload.arrivals import parse_arrivals

    kind, _, text = path.read_text("utf-8", "replace").partition(" ")
    readers = {
        "slo": SLO.parse,
        "arrivals": parse_arrivals,
        "topology": load_topology,
        "set": lambda text: load_topology("1p1d", [text]),
        "seconds": lambda text: parse_seconds(text, "--warmup"),
        "columns": parse_columns,
        "levels": parse_levels,
    }
    readers.get(kind, SLO.parse)(text)


PROFILES = shipped("hardware_profiles")
#: name -> reader, suffix of its files, good files to start from
READERS: dict[str, tuple[Callable[[Path], None], str, list[bytes]]] = {
    "trace": (trace, ".any", [NATIVE * 2, MOONCAKE, AZURE]),
    "topology": (topology, ".yaml", [TOPOLOGY]),
    "engine": (engine, ".yaml", [(PROFILES / "engines" / "vllm-0.25.yaml").read_bytes()]),
    "gpu": (gpu, ".yaml", [(PROFILES / "rtx_4090.yaml").read_bytes()]),
    "model": (model, ".json", [CONFIG]),
    "spec": (spec, ".yaml", [SPEC]),
    "link": (link, ".yaml", [LINK]),
    "bandwidth": (bandwidth, ".csv", [BANDWIDTH]),
    "sweep": (sweep, ".yaml", [SWEEP]),
    "plan": (plan, ".yaml", [PLAN]),
    "curves": (curves, ".yaml", [CURVES]),
    "client": (client, ".json", [VLLM_BENCH, ENGINE_LOG, AIPERF]),
    "prefixes": (prefixes, ".jsonl", [NATIVE]),
    "options": (
        options,
        ".txt",
        [
            b"slo ttft=2s,tpot=50ms;gold:ttft=1s",
            b"arrivals poisson:3",
            b"arrivals gamma:3:0.5",
            b"arrivals closed:16",
            b"topology 1p2d",
            b"topology llama-3.1-8b/h100_sxm/1p1d/vllm",
            b"set pools.decode.workers=3",
            b"set network={kind: rdma, nic_gbit_per_s: 100}",
            b"seconds 1.5min",
            b"columns arrival_s=a,input_tokens=b",
            b"levels 1,2,3",
        ],
    ),
}


def fuzz(name: str, runs: int) -> None:
    """Fuzz one reader in this process; atheris ends it."""
    import atheris

    reader, suffix, good = READERS[name]
    folder = Path(tempfile.mkdtemp())
    file, corpus = folder / f"input{suffix}", folder / "corpus"
    corpus.mkdir()
    for i, content in enumerate(good):
        (corpus / str(i)).write_bytes(content)
    told = {"taken": 0, "refused": 0}

    def once(data: bytes) -> None:
        file.write_bytes(data)
        try:
            reader(file)
            told["taken"] += 1
        except InputError as problem:
            told["refused"] += 1
            if "\n" in str(problem) or len(str(problem)) > 1000:
                raise AssertionError(f"not one short line: {problem!r}") from problem
        if sum(told.values()) == runs:
            print(json.dumps({"reader": name, **told}), flush=True)

    atheris.instrument_all()
    options = [f"-runs={runs}", "-timeout=20", "-rss_limit_mb=1024", "-max_len=4096", "-print_final_stats=0"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], once)
    atheris.Fuzz()


def main() -> int:
    """Exit code 1 if a reader failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20_000)
    parser.add_argument("--only", nargs="+", choices=sorted(READERS), default=sorted(READERS))
    parser.add_argument("--one", choices=sorted(READERS), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        fuzz(given.one, given.runs)
    failed = 0
    for name in given.only:
        command = [sys.executable, __file__, "--one", name, "--runs", str(given.runs)]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        lines = [line for line in run.stdout.splitlines() if line.startswith("{")]
        print(lines[0] if lines else f"{name}: failed\n{run.stderr[-3000:]}", flush=True)
        failed += run.returncode != 0
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
