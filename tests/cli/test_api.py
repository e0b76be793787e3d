"""The Python API: plain values in, plain tables out."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from cli_inputs import COLOCATED, run, write_inputs

import simulator
from simulator import SLO, InputError, compare, load_topology, load_trace, simulate


@pytest.fixture
def inputs(tmp_path):
    return write_inputs(tmp_path)


def test_public_names():
    assert set(simulator.__all__) >= {"simulate", "compare", "load_trace", "load_topology", "SLO", "Result"}
    assert all(getattr(simulator, name) is not None for name in simulator.__all__)
    assert dir(simulator) == sorted(simulator.__all__)
    with pytest.raises(AttributeError, match="no attribute 'simulat'"):
        _ = simulator.simulat


def test_simulate_and_the_command_agree(inputs, capsys):
    trace, one, _ = inputs
    result = simulate(trace, one, slo="ttft=50ms", seed=5)
    out = run(capsys, trace, "--topology", one, "--slo", "ttft=50ms", "--seed", 5, "--json", "-")[1]
    assert json.loads(out)["topologies"][0] == json.loads(result.to_json())["topologies"][0]


def test_inputs_come_in_any_form(inputs):
    trace, one, _ = inputs
    wanted = simulate(trace, one, slo="ttft=50ms").summary()
    frame = pd.read_json(trace, lines=True)
    loaded = load_topology(one)
    for offered, topology, slo in (
        (load_trace(trace), loaded, SLO(ttft_s=0.05)),
        (frame, loaded.to_dict(), {"ttft": "50ms"}),
    ):
        assert simulate(offered, topology, slo=slo).summary() == wanted


def test_result_tables(inputs, tmp_path):
    result = simulate(inputs[0], inputs[2], slo=SLO(ttft_s=0.05))
    requests = result.requests
    assert len(requests) == 20
    assert (requests["ttft_s"] == requests["first_token_s"] - requests["arrival_s"]).all()
    assert requests["good"].all()
    assert set(requests["decode_worker"]) == {"decode-0"}
    assert requests["tenant"].tolist()[:2] == ["a", "b"]
    summary = result.summary()
    summary["name"] = "changed"
    assert result.summary()["name"] == "split"
    assert json.loads(result.to_json(tmp_path / "r.json")) == json.loads((tmp_path / "r.json").read_text())
    assert result.plot(tmp_path / "p.png") is not None
    assert "TTFT p50" in repr(result)


def test_compare(inputs):
    trace, one, split = inputs
    found = compare(trace, [one, split], slo="ttft=50ms")
    assert list(found.summary().index) == ["one", "split"]
    assert found["split"].name == "split"
    assert found.summary().loc["one", "ttft_mean_s"] == found["one"].summary()["ttft_s"]["mean"]
    assert found.requests.groupby("topology", observed=True).size().to_dict() == {"one": 20, "split": 20}
    assert found.verdict in repr(found).replace("\n", " ")
    with pytest.raises(KeyError, match="there are one, split"):
        _ = found["none"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"seed": -1}, "seed: -1"),
        ({"seed": 1.5}, "seed: 1.5"),
        ({"warmup_s": -1}, "warmup: -1"),
        ({"warmup_s": 99}, "warmup: 99 s leaves no request to count; the last one arrives at 1.9 s"),
        ({"arrivals": "now"}, "arrivals: unknown arrivals 'now'"),
        ({"slo": {"ttft": 2}}, "slo: ttft: '2' is not a duration"),
        ({"overrides": ["pools.0.workers=none"]}, ""),
    ],
)
def test_refuses(inputs, options, says):
    with pytest.raises(InputError) as caught:
        simulate(inputs[0], inputs[1], **options)
    assert str(caught.value).startswith(says)


def test_compare_wants_a_list(inputs):
    with pytest.raises(InputError, match="is a list"):
        compare(inputs[0], inputs[1])
    with pytest.raises(InputError, match="is empty"):
        compare(inputs[0], [])


def test_mapping_is_not_changed(inputs):
    import yaml

    values = yaml.safe_load(COLOCATED)
    before = json.dumps(values)
    simulate(inputs[0], values, overrides=["pools.0.workers=2"])
    assert json.dumps(values) == before
