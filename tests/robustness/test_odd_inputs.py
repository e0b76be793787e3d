"""Absurd numbers in model configs, odd places to write to, and words that would break a message into lines."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from simulator.cli import BAD_INPUT, main
from simulator.errors import InputError

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 1024,
    "num_hidden_layers": 8,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "intermediate_size": 4096,
    "vocab_size": 32000,
    "max_position_embeddings": 8192,
}
MIXTRAL = LLAMA | {
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}
DEEPSEEK = LLAMA | {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "q_lora_rank": 512,
    "kv_lora_rank": 256,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 32,
    "v_head_dim": 64,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 512,
    "moe_layer_freq": 1,
}
ABSURD = (0, 7, 10**9, 2**63, 10**40, 1e308, 0.5)


@pytest.mark.parametrize("config", [LLAMA, MIXTRAL, DEEPSEEK], ids=["llama", "mixtral", "deepseek"])
def test_absurd_numbers_are_refused_or_worked_out(
    config: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each number of a config in turn: described with finite figures, or refused in one line; never a traceback."""
    monkeypatch.chdir(tmp_path)
    file = Path("config.json")
    for key in [key for key, value in config.items() if isinstance(value, int)]:
        for number in ABSURD:
            file.write_text(json.dumps(config | {key: number}))
            code = main(["describe", str(file)])
            out, err = capsys.readouterr()
            told = f"{key} = {number!r}: {code} {err}"
            if code == BAD_INPUT:
                assert not out and err.count("\n") == 1 and str(file) in err and len(err) < 600, told
            else:
                assert code == 0 and not err, told
                assert not {"nan", "inf", "NaN", "Infinity"} & set(out.replace(",", " ").split()), told


@pytest.mark.parametrize("place", ["file", "file/inside", "/dev/null", "/dev/null/inside", "/proc/inside", "n" * 300])
def test_places_that_are_no_folder_are_refused_and_left_alone(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("kept")
    assert main(["chat", "--limit", "3", "--quiet", "--topology", "colocated", "--out", place]) == BAD_INPUT
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and err.startswith("simulate: ") and place in err
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and Path("file").read_text() == "kept"


def test_names_inside_files_never_become_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    Path("evil.yaml").write_text(
        'name: "../../evil/../x"\nengine: vllm\npools: [{name: a, role: colocated}]\n'
        "step_time: {kind: affine, base_s: 0.005}\nkv_blocks: 20000\n"
    )
    assert main(["chat", "--limit", "3", "--quiet", "--topology", "evil.yaml", "--out", "in/side"]) == 0
    capsys.readouterr()
    written = {path.relative_to(tmp_path).parts[:2] for path in tmp_path.rglob("*") if path.is_file()}
    assert written == {("work", "evil.yaml"), ("work", "in")}
    Path("evil.yaml").write_text(Path("evil.yaml").read_text().replace("name: a,", "name: ../a,"))
    assert main(["chat", "--limit", "3", "--quiet", "--topology", "evil.yaml"]) == BAD_INPUT
    assert "pools.../a.name" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["chat", "--set", "poo\nx|.rs=6"],
        ["chat", "--set", "name=\x1b[31mred\x1b[0m\n", "--set", "mo\x1b[2Jdel=3"],
        ["no\nsuch\x07trace"],
        ["chat", "--topology", "no\u2028such.yaml"],
        ["chat", "--arrivals", "pois\rson:3"],
        ["chat", "--slo", "ttft=1s\n;\x00=2s"],
    ],
)
def test_messages_stay_on_one_line_and_send_no_terminal_codes(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--quiet"]) == BAD_INPUT
    _, err = capsys.readouterr()
    assert err.endswith("\n") and err[:-1].isprintable()


def test_what_is_quoted_is_spelt_out() -> None:
    assert str(InputError("a\nb\x1b[1m\u2028c: é, 日本, '…'")) == "a\\nb\\x1b[1m\\u2028c: é, 日本, '…'"
    assert str(InputError()) == ""


@pytest.mark.parametrize("scale", ["A2", [1], True, 0, -1, math.inf])
def test_a_sweep_tells_which_factor_it_cannot_use(
    scale: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = {math.inf: ".inf"}.get(scale, json.dumps(scale)) if isinstance(scale, float) else json.dumps(scale)
    Path("s.yaml").write_text(f"trace: chat\nlimit: 3\ntopologies: [1p1d]\ngrid: {{rate_scale: [1, {text}]}}\n")
    assert main(["sweep", "s.yaml", "--out", "o", "--quiet"]) == BAD_INPUT
    _, err = capsys.readouterr()
    assert err.startswith("simulate: s.yaml: ") and "rate_scale" in err and err.count("\n") == 1
