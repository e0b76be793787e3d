"""Some six hundred broken files: each is refused with exit code 2 and one line that names it. None is run."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from mutations import Broken, broken_json, broken_lines, broken_yaml

from simulator.cli import BAD_INPUT, main
from simulator.resources import shipped

WORDS = frozenset({"name", "source", "sources", "aliases", "version"})  # any text will do there
PAIR = """
name: pair
model: llama-3.1-8b
precision: {weights: bf16, kv_cache: bf16}
engine: vllm-0.25
max_output_tokens: 500
pools:
  - {name: prefill, role: prefill, gpu: h100_sxm, workers: 1, parallel: {tp: 1}}
  - {name: decode, role: decode, gpu: h100_sxm, workers: 2, engine: {max_num_seqs: 128, prefix_caching: true}}
network: {kind: rdma, nic_gbit_per_s: 400, oversubscription: 1.0}
kv_transfer: {mode: pull, compression: none}
routing: {prefill: least_pending_tokens, decode: most_free_blocks}
"""
EXPLICIT = """
name: explicit
engine: vllm
pools: [{name: all, role: colocated, workers: 2}]
step_time: {kind: affine, base_s: 0.005, per_token_s: 2.0e-5, per_context_token_s: 4.0e-8}
kv_blocks: 2000
"""
SPEC = """
name: drawn
requests: 20
seed: 3
arrivals: {rate_per_s: 5.0, cv: 1.2}
input_tokens: {quantiles: {0.0: 10, 0.5: 200, 1.0: 3000}}
output_tokens: {lognormal: [{weight: 1, median: 100, sigma: 0.6}], min: 1, max: 2000}
rank_correlation: 0.2
prefixes: {count: 4, zipf: 1.0, share: 0.5, tokens: {constant: 512}, common_tokens: 100, block_tokens: 16}
"""
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 1024,
    "num_hidden_layers": 8,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "vocab_size": 32000,
    "max_position_embeddings": 8192,
}
LINES = [
    {
        "arrival_s": 0.5 * i,
        "input_tokens": 40,
        "output_tokens": 8,
        "request_id": f"r{i}",
        "max_output_tokens": 20,
        "hash_ids": [1, 2 + i, 9],
        "block_tokens": 16,
        "session_id": "s",
        "turn": i,
        "think_s": 1.0,
        "tenant": "a",
    }
    for i in range(3)
]
GPU = (shipped("hardware_profiles") / "rtx_4090.yaml").read_text()
ENGINE = (shipped("hardware_profiles") / "engines" / "vllm-0.25.yaml").read_text()
RUN = ["chat", "--limit", "3", "--quiet", "--topology"]

#: kind -> (broken files, suffix, the words of a command with FILE in them)
CORPUS: dict[str, tuple[list[Broken], str, list[str]]] = {
    "topology": (broken_yaml(PAIR, WORDS), ".yaml", [*RUN, "FILE"]),
    "explicit topology": (broken_yaml(EXPLICIT, WORDS), ".yaml", [*RUN, "FILE"]),
    "GPU": (broken_yaml(GPU, WORDS), ".yaml", ["describe", "FILE"]),
    "engine": (
        broken_yaml(ENGINE, WORDS | {"but_not", "decode_graph_sizes"}),
        ".yaml",
        [*RUN, "llama-3.1-8b/h100_sxm/1c", "--set", "engine=FILE"],
    ),
    "spec": (broken_yaml(SPEC, WORDS), ".yaml", ["generate", "FILE", "made.jsonl"]),
    "model": (
        broken_json(json.dumps(CONFIG), frozenset({"architectures", "model_type"})),
        ".json",
        ["describe", "FILE"],
    ),
    "trace": (broken_lines(LINES), ".jsonl", ["FILE", "--quiet", "--topology", "colocated"]),
}


def test_there_are_enough() -> None:
    assert sum(len(files) for files, _, _ in CORPUS.values()) > 500


@pytest.mark.parametrize("kind", CORPUS)
def test_every_broken_file_is_refused(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    files, suffix, words = CORPUS[kind]
    accepted = []
    for i, broken in enumerate(files):
        file = tmp_path / f"broken-{i}{suffix}"
        file.write_bytes(broken.content)
        began = time.monotonic()
        code = main([word.replace("FILE", str(file)) for word in words])
        out, err = capsys.readouterr()
        assert time.monotonic() - began < 30, f"{broken.what}: hangs"
        if code != BAD_INPUT or out or err.count("\n") != 1 or file.name not in err or len(err) > 1000:
            accepted.append((broken.what, code, err))
    assert not accepted
    assert not (tmp_path / "made.jsonl").exists()
