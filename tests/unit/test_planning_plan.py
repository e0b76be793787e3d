"""Plans: what is asked, what comes back, and the commands that start the answer."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest
import yaml

from simulator.cli import main
from simulator.cluster.topology import load_topology
from simulator.errors import InputError
from simulator.planning.launch import launch_files
from simulator.planning.plan import plan
from simulator.planning.runs import plan_of, topology_text

STEP = {"kind": "affine", "base_s": 0.01, "per_token_s": 5e-5}
WHOLE = {
    "name": "whole",
    "engine": {"profile": "vllm", "max_num_seqs": 32},
    "pools": [{"name": "only", "role": "colocated", "workers": 2, "usd_per_hour": 2.0}],
    "step_time": STEP,
    "kv_blocks": 20_000,
}
APART = {
    **WHOLE,
    "name": "apart",
    "pools": [
        {"name": "p", "role": "prefill", "usd_per_hour": 2.0},
        {"name": "d", "role": "decode", "usd_per_hour": 2.0},
    ],
    "kv_transfer": {"setup_s": 0.002, "per_block_s": 1e-5},
}
SPEC = {
    "find": "max_rate",
    "trace": "chat",
    "slo": {"ttft": "1s", "tpot": "40ms", "attainment": 0.9},
    "topologies": [WHOLE, APART],
    "arrivals": "poisson",
    "requests": 80,
    "replications": 3,
}


def test_the_document_has_what_the_interface_names_and_figures_that_agree():
    found = plan(SPEC)
    document = json.loads(found.to_json())
    for key in ("find", "answer", "colocated", "disaggregated", "pays", "ratio", "interval", "candidates", "pruned"):
        assert key in document
    one, other = document["colocated"], document["disaggregated"]
    assert document["ratio"] == pytest.approx(other["max_rate_requests_per_s"] / one["max_rate_requests_per_s"])
    assert document["pays"] == (document["ratio"] > 1)
    assert document["interval"][0] <= document["ratio"] <= document["interval"][1]
    assert document["answer"]["name"] == ("apart" if document["pays"] else "whole")
    for row in document["candidates"]:
        assert row["interval"][0] <= row["max_rate_requests_per_s"] <= row["interval"][1]
        assert row["attainment"] >= 0.9
        assert row["usd_per_hour"] == 4.0
    factors = [(row["factor"], row["times"]) for row in document["sensitivity"]]
    assert ("input_tokens", 2.0) in factors
    assert ("ttft", 0.5) in factors
    assert not [f for f in factors if f[0] == "bandwidth"]  # explicit transfers have none
    assert document["launch"] == {}  # explicit step times name no model
    assert found.verdict.startswith(f"{document['answer']['name']} carries")


def test_the_same_spec_gives_the_same_bytes_and_other_seeds_other_figures():
    spec = {**SPEC, "sensitivity": False}
    once = plan(spec)
    assert plan(spec).to_json() == once.to_json()
    assert plan({**spec, "seed": 5}).answer["max_rate_requests_per_s"] != once.answer["max_rate_requests_per_s"]


@pytest.mark.slow
def test_two_processes_give_the_bytes_of_one():
    spec = {**SPEC, "sensitivity": False}
    assert plan(spec, jobs=2).to_json() == plan(spec).to_json()


def test_requests_that_share_prefixes_and_are_too_few_are_warned_of():
    shared = {**SPEC, "trace": "long_context", "limit": 70, "slo": {"e2e": "60s"}, "sensitivity": False}
    found = plan({**shared, "topologies": ["1p1d"], "requests": 40, "replications": 2})
    assert "overlap, so the intervals are too narrow" in found.document["warnings"][0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"find": "best_rate"}, "find: found 'best_rate'"),
        ({"find": "cheapest"}, "find: cheapest needs the key 'model'"),
        ({"slo": {"attainment": 0.9}}, "slo: no latency target"),
        ({"slo": {"ttft": "1s", "attainment": 2}}, "slo.attainment: found 2"),
        ({"slo": {"ttfft": "1s"}}, "unknown target 'ttfft'.*did you mean 'ttft'"),
        ({"topologies": [WHOLE, WHOLE]}, "two have the same name"),
        ({"arrivals": "closed:4"}, "has no rate to search over"),
        ({"replications": 1}, "replications: found 1"),
        ({"trase": "chat"}, "unknown key 'trase'"),
        ({"slo": {"tpot": "1us"}}, "nothing meets the targets"),
        ({"find": "best_split", "model": "llama-3.1-8b", "gpus": {"h100_sxm": {}}}, "needs 'count'"),
        ({"find": "best_split", "model": "llama-3.1-8b", "gpus": {"h101": {"count": 2}}}, "unknown GPU 'h101'"),
        (
            {"find": "best_split", "model": "llama-3.1-70b", "gpus": {"l40s": {"count": 1}}},
            "no engine fits.*does not fit",
        ),
    ],
)
def test_bad_specs_are_refused_in_one_line(change, message):
    with pytest.raises(InputError, match=message) as caught:
        plan({**SPEC, **change})
    assert "\n" not in str(caught.value)


def test_the_command_prints_the_answer_and_writes_what_starts_it(tmp_path, capsys):
    spec = tmp_path / "plan.yaml"
    topologies = ["colocated", "1p1d"]
    spec.write_text(yaml.safe_dump({**SPEC, "topologies": topologies, "replications": 2, "sensitivity": False}))
    words = ["--jobs", "1", "--quiet", "--json", str(tmp_path / "plan.json"), "--out", str(tmp_path / "out")]
    assert main(["plan", str(spec), *words]) == 0
    text = capsys.readouterr().out
    assert "Disaggregation" in text
    assert "vllm serve meta-llama/Llama-3.1-8B-Instruct" in text
    assert json.loads((tmp_path / "plan.json").read_text()) == json.loads((tmp_path / "out" / "plan.json").read_text())
    assert (tmp_path / "out" / "start.sh").read_text().startswith("#!/usr/bin/env bash")


def files_of(name, *changes):
    return launch_files(plan_of(topology_text(load_topology(name, changes))))


def parses(script):
    shell = shutil.which("bash")
    assert shell is not None
    subprocess.run([shell, "-n"], input=script, text=True, check=True)
    return script


def test_vllm_is_started_with_its_connector_on_its_gpus():
    script = parses(files_of("llama-3.1-70b@fp8/b200_sxm:tp2+h100_sxm:tp4/2p3d")["start.sh"])
    assert script.count("vllm serve meta-llama/Llama-3.1-70B-Instruct") == 5
    assert script.count("--quantization fp8") == 5
    transfers = [line.split("'")[1] for line in script.splitlines() if "--kv-transfer-config" in line]
    roles = [json.loads(text) for text in transfers]
    assert [r["kv_role"] for r in roles] == ["kv_producer"] * 2 + ["kv_consumer"] * 3
    assert {r["kv_connector"] for r in roles} == {"NixlConnector"}
    devices = [line.split()[0] for line in script.splitlines() if line.startswith("CUDA_VISIBLE_DEVICES")]
    assert devices == [f"CUDA_VISIBLE_DEVICES={gpus}" for gpus in ("0,1", "2,3", "0,1,2,3", "4,5,6,7", "0,1,2,3")]
    assert "NODE2=localhost  # address of a node of h100_sxm" in script
    assert "--prefiller-hosts $NODE0 $NODE0" in script
    assert "--decoder-ports 8102 8103 8104" in script


def test_sglang_is_started_with_its_modes_and_a_router():
    script = parses(files_of("llama-3.1-8b/h100_sxm/1p2d/sglang")["start.sh"])
    assert script.count("--disaggregation-mode prefill") == 1
    assert script.count("--disaggregation-mode decode") == 2
    assert "--pd-disaggregation" in script
    assert "--prefill http://$NODE0:30000 8998" in script
    assert "kv-transfer" not in script
    assert "--worker-urls" in parses(files_of("llama-3.1-8b/h100_sxm/2c/sglang")["start.sh"])


def test_tensorrt_llm_gets_a_file_for_each_pool_and_one_for_the_front_end():
    files = files_of("llama-3.1-8b/h100_sxm:tp2/1p2d/tensorrt-llm")
    parses(files["start.sh"])
    servers = yaml.safe_load(files["disaggregated.yaml"])
    assert servers["context_servers"] == {"num_instances": 1, "urls": ["NODE0:8001"]}
    assert servers["generation_servers"]["num_instances"] == 2
    context, generation = (yaml.safe_load(files[f"{pool}.yaml"]) for pool in ("prefill", "decode"))
    assert context["tensor_parallel_size"] == 2
    assert (context["disable_overlap_scheduler"], generation["disable_overlap_scheduler"]) == (True, False)
    assert context["cache_transceiver_config"] == {"backend": "UCX"}
    assert "trtllm-serve disaggregated" in files["start.sh"]
