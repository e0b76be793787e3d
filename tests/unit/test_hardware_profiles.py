"""GPU and link profiles: every number has a source, bad files are refused in one line."""

import pytest
import yaml

from simulator.errors import TopologyError
from simulator.hardware import list_gpus, list_links, load_gpu, load_link
from simulator.hardware.profiles import read_kernels
from simulator.resources import shipped

NAMES = {
    "a100_80gb_sxm", "a800_80gb_sxm", "h100_sxm", "h800_sxm", "h200_sxm", "h20", "h20_3e", "b200_sxm", "b300_sxm",
    "gb200", "gb300", "l40s", "mi300x", "rtx_pro_6000", "rtx_4090", "a40",
}  # fmt: skip


def test_all_gpus_are_there():
    assert set(list_gpus()) >= NAMES


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_number_has_a_source(name):
    gpu = load_gpu(name)
    fields = [f for f in vars(gpu) if f not in ("name", "sources", "kernels", "derived_from")]
    for field in fields:
        if getattr(gpu, field) is not None:
            assert gpu.sources.get(field), field
    assert gpu.idle_power_watts < gpu.power_watts


@pytest.mark.parametrize(
    ("name", "memory_gib", "terabytes_per_s", "bf16"),
    [
        ("a100_80gb_sxm", 79.15, 2.039, 312),
        ("h100_sxm", 79.19, 3.35, 989),
        ("h200_sxm", 139.8, 4.8, 989),
        ("h20", 95.1, 4.0, 148),
        ("b200_sxm", 178.35, 7.7, 2250),
        ("gb200", 184.31, 8.0, 2500),
        ("mi300x", 191.98, 5.3, 1307.4),
        ("rtx_4090", 23.64, 1.008, 165.2),
    ],
)
def test_datasheet_numbers(name, memory_gib, terabytes_per_s, bf16):
    gpu = load_gpu(name)
    assert gpu.memory_bytes / 2**30 == pytest.approx(memory_gib)
    assert gpu.memory_bandwidth_bytes_per_s == pytest.approx(terabytes_per_s * 1e12)
    assert gpu.peak_flops["bf16"] == pytest.approx(bf16 * 1e12)


def test_peaks_are_dense():
    for name in list_gpus():
        peaks = load_gpu(name).peak_flops
        assert peaks.get("fp8", 0) <= 2.1 * peaks["bf16"]
        assert peaks.get("nvfp4", 0) <= 6.5 * peaks["bf16"]


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("H100", "h100_sxm"),
        ("H100 SXM", "h100_sxm"),
        ("h100-sxm", "h100_sxm"),
        ("A100", "a100_80gb_sxm"),
        ("B200", "b200_sxm"),
    ],
)
def test_aliases(alias, name):
    assert load_gpu(alias).name == name


def test_unknown_gpu():
    with pytest.raises(TopologyError, match=r"did you mean 'h100_sxm'") as e:
        load_gpu("h100_smx")
    assert "\n" not in str(e.value)


def _copy(tmp_path, **changes):
    data = yaml.safe_load((shipped("hardware_profiles") / "h100_sxm.yaml").read_text())
    data.update(name="mine", aliases=[], **changes)
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in data.items() if v is not ...}))
    return path


def test_own_profile_by_path(tmp_path):
    gpu = load_gpu(_copy(tmp_path, sms=100))
    assert (gpu.name, gpu.sms, gpu.kernels, gpu.derived_from) == ("mine", 100, None, None)
    assert load_gpu(_copy(tmp_path, sources={"all": "my bench"})).sources == {"all": "my bench"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"memory_byte": 1}, "unknown key 'memory_byte' .did you mean 'memory_bytes'"),
        ({"memory_bytes": ...}, "key 'memory_bytes' is missing"),
        ({"memory_bytes": 80}, "memory_bytes: found 80"),
        ({"peak_flops": {"bf16": 989}}, "not between"),
        ({"peak_flops": {"bf61": 989e12}}, "did you mean 'bf16'"),
        ({"peak_flops": {"fp8": 1e15}}, "needs at least bf16"),
        ({"memory_bandwidth_bytes_per_s": float("nan")}, "memory_bandwidth_bytes_per_s"),
        ({"sources": {"sms": "x"}}, "key 'sources.memory_bytes' is missing"),
        ({"sources": {"all": "x", "smss": "y"}}, "did you mean 'sms'"),
        ({"kernels_from": "h101_sxm"}, "did you mean 'h100_sxm'"),
    ],
)
def test_bad_profile(tmp_path, changes, message):
    with pytest.raises(TopologyError, match=message) as e:
        load_gpu(_copy(tmp_path, **changes))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", r"line \d: not valid YAML"),
        ("a: " + "[" * 5000, "nested|not valid"),
        ("- 1", "found list"),
        ("", "found NoneType"),
        ("a: 1\na: 2", "twice"),
        ("1: 2", "not text"),
    ],
)
def test_bad_yaml(tmp_path, text, message):
    path = tmp_path / "g.yaml"
    path.write_text(text)
    with pytest.raises(TopologyError, match=message):
        load_gpu(path)


def test_missing_file():
    with pytest.raises(TopologyError, match="cannot be read"):
        load_gpu("no/such/gpu.yaml")


def test_own_kernels_beside_the_profile(tmp_path):
    path = _copy(tmp_path)
    (tmp_path / "mine.kernels.yaml").write_text("gemm_bf16: {t0_us: 3.46, ec: 8.09e-1, source: a test}\n")
    gpu = load_gpu(path)
    assert gpu.kernels is not None and gpu.derived_from is None
    assert gpu.kernels.operators == {"gemm_bf16": {"t0_us": 3.46, "ec": 0.809}}
    assert gpu.kernels.sources == {"gemm_bf16": "a test"}


def test_borrowed_kernels_say_so():
    donors = [n for n in list_gpus() if (shipped("hardware_profiles") / f"{n}.kernels.yaml").is_file()]
    for name in list_gpus():
        gpu = load_gpu(name)
        if gpu.kernels is None:
            continue
        assert gpu.kernels.gpu == name
        assert gpu.derived_from == gpu.kernels.derived_from
        assert (gpu.derived_from is None) == (name in donors)
        assert name in donors or gpu.derived_from in donors


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gemm: 3", "gemm: found 3"),
        ("gemm: {a: x, source: s}", "gemm.a: found 'x'"),
        ("gemm: {a: 1}", "'source' is missing"),
    ],
)
def test_bad_kernels(tmp_path, text, message):
    path = tmp_path / "k.kernels.yaml"
    path.write_text(text)
    with pytest.raises(TopologyError, match=message):
        read_kernels(path, "k")


def test_links():
    assert {"nvlink3", "nvlink4", "nvlink5", "nvl72", "pcie_gen4", "pcie_gen5", "pcie_gen6", "rdma_25", "rdma_50",
            "rdma_100", "rdma_200", "rdma_400", "ethernet_100"} <= set(list_links())  # fmt: skip
    for name in list_links():
        link = load_link(name)
        numbers = {"bandwidth_bytes_per_s", "efficiency", "setup_s", "per_descriptor_s"}
        more = {"ethernet": {"cpu_s_per_byte"}, "nvlink": {"posting"}}.get(link.kind, set())
        assert set(link.sources) == numbers | more
        assert all(link.sources.values()) and link.source


def test_link_numbers():
    assert load_link("RDMA 400G").bandwidth_bytes_per_s == 50e9
    assert load_link("nvlink_h100").bandwidth_bytes_per_s == load_gpu("h100_sxm").nvlink_bandwidth_bytes_per_s
    # eight 200 Gbit/s cards reach 146 GB/s (vLLM with Mooncake)
    assert 8 * load_link("rdma_200").effective_bandwidth_bytes_per_s == pytest.approx(146e9)


def test_own_link(tmp_path):
    path = tmp_path / "l.yaml"
    numbers = {"bandwidth_bytes_per_s": 1e9, "efficiency": 1.0, "setup_s": 0, "per_descriptor_s": 0}
    entry = {"kind": "rdma", **numbers, "sources": dict.fromkeys(numbers, "me")}
    path.write_text(yaml.safe_dump({"mine": entry}))
    assert load_link(path).effective_bandwidth_bytes_per_s == 1e9
    path.write_text(yaml.safe_dump({"mine": {**entry, "efficiency": 1.5}}))
    with pytest.raises(TopologyError, match=r"mine: efficiency: found 1.5"):
        load_link(path)
    path.write_text(yaml.safe_dump({"mine": {**entry, "sources": {}}}))
    with pytest.raises(TopologyError, match=r"sources.bandwidth_bytes_per_s' is missing"):
        load_link(path)
    path.write_text(yaml.safe_dump({"a": entry, "b": entry}))
    with pytest.raises(TopologyError, match="2 links"):
        load_link(path)


def test_unknown_link():
    with pytest.raises(TopologyError, match="unknown link 'nvlink9'"):
        load_link("nvlink9")
