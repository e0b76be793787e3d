"""Two GPUs: copies from one to the other by size, pieces and streams, alone and beside other work."""

from __future__ import annotations

from simulator.calibration.measure.cases import Group, numbers, paged_caches
from simulator.calibration.measure.ops import Ops, Work
from simulator.calibration.measure.plan import Plan
from simulator.calibration.measure.store import Case

#: range: all bytes in one piece; blocks: pieces of one KV block of a layer (16 tokens, 8 heads of 128, K or V in bf16),
#: scattered; layers: the same pieces, those of a layer together.
PIECE_BYTES = 32 * 2**10
LAYOUTS = ("range", "blocks", "layers")
METHODS = ("calls", "graph", "kernel")
STREAMS = (1, 4)
MOST_PIECES = 2**13
LAYERS = 32
#: What runs beside a copy, on which side of it; how the copy is made: its bytes bound one range and a kernel, starting
#: its pieces bounds the other.
BESIDE, SIDES = ("product", "decode"), ("sender", "receiver")
WAYS = (("graph", "blocks"), ("graph", "range"), ("kernel", "blocks"))
#: Rows and columns of the product, sequences and context of the decode attention that run beside.
PRODUCT, SEQUENCES, CONTEXT = 4096, 64, 1024


def _cases(plan: Plan, ops: Ops) -> list[Case]:
    if ops.gpus() < 2:
        return []
    found: list[Case] = []
    for size in plan.peer_bytes:
        piece = min(PIECE_BYTES, size)
        for layout in LAYOUTS:
            count = 1 if layout == "range" else size // piece
            if count > MOST_PIECES or (layout != "range" and count < 2):
                continue
            for method in METHODS:
                streams = STREAMS if method != "kernel" and layout != "range" else (1,)
                about = {"layout": layout, "method": method, "piece_bytes": size // count, "pieces": count}
                found += [{**about, "streams": s} for s in streams]
    return found


def places(order: list[int], layout: str) -> list[int]:
    """Where each piece lies at its source: anywhere, or anywhere within its layer."""
    if layout == "range":
        return [0]
    if layout == "blocks":
        return order
    return sorted(order, key=lambda place: place * LAYERS // (2 * len(order)))


def _copy(ops: Ops, case: Case) -> Work:
    piece, count, streams = numbers(case, "piece_bytes", "pieces", "streams")
    source, target = ops.device_buffer(2 * piece * count), ops.peer(1).device_buffer(piece * count)
    order = ops.permutation(2 * count)[:count]
    at = places([int(p) for p in order.tolist()], str(case["layout"]))
    if case["method"] == "kernel":
        chosen = ops.integers(at)
        return Work(lambda i: ops.gather_bytes(source, target, piece, chosen))
    moves = [(p * piece, i * piece, piece) for i, p in enumerate(at)]
    return Work(lambda i: ops.copy_bytes(source, target, moves, streams), eager=case["method"] == "calls")


def _beside_cases(plan: Plan, ops: Ops) -> list[Case]:
    if ops.gpus() < 2:
        return []
    size = plan.peer_bytes[-1]
    found: list[Case] = []
    for method, layout in WAYS:
        for beside in BESIDE:
            for side in SIDES:
                for timed in ("copy", "work"):
                    for loaded in (False, True):
                        about = {"method": method, "layout": layout, "bytes": size, "beside": beside, "side": side}
                        found.append({**about, "timed": timed, "loaded": loaded})
    return found


def _work(ops: Ops, name: str) -> Work:
    if name == "product":
        size = min(PRODUCT, 2 ** (ops.memory_bytes().bit_length() // 3) if ops.kind == "cuda" else 64)
        x, w, out = ops.random((size, size)), ops.weights((size, size), "bf16", 0), ops.empty((size, size))
        return Work(lambda i: ops.matmul(x, w, out))
    small = ops.kind != "cuda"
    seqs, context = (2, 16) if small else (SEQUENCES, CONTEXT)
    cache = paged_caches(ops, (2, 16) if small else (8, 128), [context] * seqs, 1)[0]
    heads, width = (4, 16) if small else (32, 128)
    qkv, out = ops.random((seqs, (heads + 2 * cache.k.shape[2]) * width)), ops.empty((seqs, heads * width))
    return Work(lambda i: ops.decode_attention(qkv, heads, cache, out))


def _beside(ops: Ops, case: Case) -> Work:
    """The timed one of copy and work; the other runs all the while if ``loaded``."""
    size = int(case["bytes"])  # type: ignore[call-overload]
    piece = size if case["layout"] == "range" else min(PIECE_BYTES, size)
    about = {"layout": case["layout"], "piece_bytes": piece, "pieces": size // piece, "streams": 1}
    copy = _copy(ops, {**about, "method": case["method"]})
    host = ops if case["side"] == "sender" else ops.peer(1)
    work = _work(host, str(case["beside"]))
    timed, other = ((ops, copy), (host, work)) if case["timed"] == "copy" else ((host, work), (ops, copy))
    if case["loaded"]:
        return Work(timed[1].run, beside=other, on=timed[0])
    return Work(timed[1].run, on=timed[0])


PEERS = Group("peers", _cases, lambda plan, ops, case: _copy(ops, case))
INTERFERENCE = Group("interference", _beside_cases, lambda plan, ops, case: _beside(ops, case))
