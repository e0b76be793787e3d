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


PROFILES = shipped("hardware_profiles")
#: name -> reader, suffix of its files, good files to start from
READERS: dict[str, tuple[Callable[[Path], None], str, list[bytes]]] = {
    "trace": (trace, ".any", [NATIVE * 2, MOONCAKE, AZURE]),
    "topology": (topology, ".yaml", [TOPOLOGY]),
    "engine": (engine, ".yaml", [(PROFILES / "engines" / "vllm-0.25.yaml").read_bytes()]),
    "gpu": (gpu, ".yaml", [(PROFILES / "rtx_4090.yaml").read_bytes()]),
    "model": (model, ".json", [CONFIG]),
    "spec": (spec, ".yaml", [SPEC]),
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
