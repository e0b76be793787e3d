"""The verdict: plain sentences, each made from figures of the result and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from simulator.metrics.slo import SLO, TARGETS
from simulator.metrics.summary import Entry, per_gpu
from simulator.metrics.wording import figures, listed, percent, rate, seconds, target, within

Same = Callable[[float, float], bool]

#: How the parts of TTFT are called in a sentence.
PART_NAMES = {
    "queue": "queueing",
    "cache_load": "loading from caches",
    "prefill": "prefill",
    "kv_wait": "waiting for the KV transfer",
    "kv_transfer": "KV transfer",
    "decode_admission": "admission and first step at the decode worker",
    "host": "host work",
}

_LATENCIES = {"ttft": "TTFT", "tpot": "TPOT", "e2e": "E2E"}


def verdict(entries: Sequence[Entry], slo: SLO, same: Same) -> str:
    """What the figures say, as a short paragraph."""
    if not entries:
        return "Nothing was run."
    if len(entries) == 1:
        said = [_alone(entries[0], slo)]
    else:
        said = _with_targets(entries, slo, same) if slo else [_without_targets(entries, same)]
    # the caveat comes first where it holds for every figure that follows
    place = 0 if all(entry["saturated"] for entry in entries) else len(said)
    said.insert(place, _saturation(entries))
    said += [*(_faults(entry) for entry in entries), _model_errors(entries), *(_outside(entry) for entry in entries)]
    return " ".join(sentence for sentence in said if sentence)


def with_error(entry: Entry, key: str, spread: str) -> str:
    """A latency with the model's error, where there is one: ``412 ms (± 14 %)``."""
    value, error = entry[f"{key}_s"][spread], entry.get("model_error")
    if error is None or value is None or f"{key}_percent" not in error:
        return seconds(value)
    return f"{seconds(value)} ({within(error[f'{key}_percent'][spread])})"


def _model_errors(entries: Sequence[Entry]) -> str:
    """Where the intervals come from, once for each regime."""
    regimes: dict[str, list[str]] = {}
    for entry in entries:
        error = entry.get("model_error")
        if error is not None:
            words = [word for word in error["taken_from"].values() if word not in ("any", "measured")]
            text = (
                f"{percent(error['share'])} of {error['runs']:,} measured runs ({', '.join(words) or 'of all kinds'})"
            )
            regimes.setdefault(text, []).append(entry["name"])
    if not regimes:
        return ""
    if len(regimes) == 1:
        return f"Model error in brackets: it held for {next(iter(regimes))}."
    texts = [f"{text} for {listed(names)}" for text, names in regimes.items()]
    return f"Model error in brackets: it held for {'; '.join(texts)}."


def _faults(entry: Entry) -> str:
    """What died, and what became of the requests it had."""
    faults = entry.get("faults")
    if not faults or not faults["crashes"]:
        return ""
    times = "a worker died once" if faults["crashes"] == 1 else f"workers died {faults['crashes']:,} times"
    lost = entry["requests"] - entry["completed"]
    return (
        f"In {entry['name']} {times}: {faults['attempts_lost']:,} attempts at {faults['requests_hit']:,} requests were "
        f"lost, {lost:,} of {entry['requests']:,} requests have no answer."
    )


def _outside(entry: Entry) -> str:
    error = entry.get("model_error")
    if error is None or not error["outside"]:
        return ""
    return f"{entry['name']} is far from everything measured: {listed(error['outside'])}; its errors may be larger."


def _alone(entry: Entry, slo: SLO) -> str:
    if not entry["completed"]:
        return f"{entry['name']} completed none of {entry['requests']:,} requests."
    spread = ", ".join(f"{label} p99 {with_error(entry, key, 'p99')}" for key, label in _LATENCIES.items())
    if not slo:
        return f"{entry['name']}: {spread}; no targets were given (--slo), so none are judged."
    missed = _hardest(entry)
    because = ""
    if missed and entry["slo_attainment"] < 1:
        because = f"; most are lost on {TARGETS[missed]} ({percent(entry['slo_attainment_by_target'][missed])} meet it)"
    return (
        f"{entry['name']} meets the targets ({_targets(slo)}) for {percent(entry['slo_attainment'])} of requests, "
        f"{rate(entry['goodput_requests_per_s'])} good requests/s"
        f"{because}. {spread}."
    )


def _hardest(entry: Entry) -> str | None:
    """The target that fewest requests meet."""
    shares = entry["slo_attainment_by_target"]
    return min(shares, key=lambda name: shares[name]) if shares else None


def _targets(slo: SLO) -> str:
    return ", ".join(f"{TARGETS[name]} {target(value)}" for name, value in slo.targets().items())


def _with_targets(entries: Sequence[Entry], slo: SLO, same: Same) -> list[str]:
    # With different numbers of GPUs goodput alone says little: the lead goes by attainment, then goodput per GPU.
    key = "slo_attainment" if _gpus_differ(entries) else "goodput_requests_per_s"
    ranked = sorted(entries, key=lambda entry: -entry[key])
    if not ranked[0][key]:
        names = "Neither topology" if len(entries) == 2 else "None of the topologies"
        return [f"{names} meets the targets ({_targets(slo)}) for any request.", _without_targets(entries, same)]
    level = [entry for entry in ranked if same(entry[key], ranked[0][key])]
    if len(level) > 1:
        return [_tie(level, ranked, slo), _rates(ranked, same), _trade(level[0], level[1], same)]
    return [_win(ranked[0], ranked[1:], slo, same), _rates(ranked, same), _price(ranked[0], ranked[1], same)]


def _gpus_differ(entries: Sequence[Entry]) -> bool:
    return len({entry["gpus"] for entry in entries}) > 1


def _win(first: Entry, others: Sequence[Entry], slo: SLO, same: Same) -> str:
    if same(first["slo_attainment"], others[0]["slo_attainment"]):
        behind = listed([f"{rate(entry['goodput_requests_per_s'])} of {entry['name']}" for entry in others])
        return (
            f"{first['name']} gives {rate(first['goodput_requests_per_s'])} good requests/s against {behind}; "
            f"the targets ({_targets(slo)}) are met for {percent(first['slo_attainment'])} of its requests."
        )
    others_text = listed([f"{percent(entry['slo_attainment'])} of {entry['name']}" for entry in others])
    lead = (
        f"{first['name']} meets the targets ({_targets(slo)}) for {percent(first['slo_attainment'])} of requests "
        f"against {others_text}"
    )
    return f"{lead}{_because(first, others[0], slo)}."


def _because(first: Entry, other: Entry, slo: SLO) -> str:
    """The target that makes the difference, what became of it, and the mechanism where the figures show one."""
    gains = {
        name: share - other["slo_attainment_by_target"][name]
        for name, share in first["slo_attainment_by_target"].items()
    }
    name = max(gains, key=lambda key: gains[key])
    if gains[name] <= 0:
        return ""
    share, before = first["slo_attainment_by_target"][name], other["slo_attainment_by_target"][name]
    text = (
        f": {TARGETS[name]} stays within {target(slo.targets()[name])} for {percent(share)} against {percent(before)}"
    )
    if name in _LATENCIES and first[f"{name}_s"]["p99"] is not None and other[f"{name}_s"]["p99"] is not None:
        text += f" (p99 {seconds(first[f'{name}_s']['p99'])} against {seconds(other[f'{name}_s']['p99'])})"
    if name in ("tpot", "itl_p99") and _splits(first) and not _splits(other):
        return text + ", because decode steps are no longer stretched by prefill"
    if name == "ttft":
        return text + _largest_part(other, first, ", because {part} takes {less} less in the mean")
    return text


def _splits(entry: Entry) -> bool:
    """Whether prefill and decode run on pools of their own."""
    roles = {pool["role"] for pool in entry["pools"]}
    return roles == {"prefill", "decode"}


def _largest_part(more: Entry, less: Entry, template: str) -> str:
    """Fill ``{part}`` and ``{less}`` with the part of TTFT whose mean differs most; empty where nothing is known."""
    if more["ttft_s"]["mean"] is None or less["ttft_s"]["mean"] is None:
        return ""
    rises = {part: value - less["ttft_parts_s"][part] for part, value in more["ttft_parts_s"].items()}
    part = max(rises, key=lambda name: rises[name])
    return template.format(part=PART_NAMES[part], less=seconds(rises[part])) if rises[part] > 0 else ""


def _tie(level: Sequence[Entry], ranked: Sequence[Entry], slo: SLO) -> str:
    names, shares = listed([entry["name"] for entry in level]), [percent(entry["slo_attainment"]) for entry in level]
    met = listed(shares) if len(set(shares)) > 1 else shares[0]
    text = f"{names} tie: the targets ({_targets(slo)}) are met for {met} of requests"
    behind = [entry for entry in ranked if entry not in level]
    if behind:
        text += ", against " + listed([f"{percent(entry['slo_attainment'])} of {entry['name']}" for entry in behind])
    return text + "."


def _rates(ranked: Sequence[Entry], same: Same) -> str:
    if not _gpus_differ(ranked):
        rates = [f"{rate(entry['goodput_requests_per_s'])} ({entry['name']})" for entry in ranked]
        return f"Good requests/s: {listed(rates)}."
    by_gpu = sorted(ranked, key=lambda entry: -per_gpu(entry, "goodput_requests_per_s"))
    values = [per_gpu(entry, "goodput_requests_per_s") for entry in by_gpu]
    rates = [
        f"{rate(value)} ({entry['name']}, {_gpus(entry['gpus'])})" for entry, value in zip(by_gpu, values, strict=True)
    ]
    text = f"The numbers of GPUs differ; good requests/s per GPU: {listed(rates)}"
    if same(values[0], values[1]):
        return text + ", a tie."
    if values[1] <= 0:
        return text + "."
    return f"{text}; {by_gpu[0]['name']} has {figures(values[0] / values[1])} times that of {by_gpu[1]['name']}."


def _gpus(number: int) -> str:
    return f"{number} GPU" if number == 1 else f"{number} GPUs"


def _price(first: Entry, other: Entry, same: Same) -> str:
    """What the winner pays: the latencies in which it is worse, and where the added TTFT goes."""
    worse = []
    for name, label in _LATENCIES.items():
        mine, theirs = first[f"{name}_s"]["mean"], other[f"{name}_s"]["mean"]
        if mine is None or theirs is None or mine <= theirs or same(mine, theirs):
            continue
        text = f"mean {label} is higher by {seconds(mine - theirs)} ({seconds(mine)} against {seconds(theirs)})"
        if name == "ttft":
            text += _largest_part(first, other, ", of which {part} adds {less}")
        worse.append(text)
    return f"The price: its {listed(worse)}." if worse else ""


def _trade(one: Entry, two: Entry, same: Same) -> str:
    """Where two that tie differ: tail latencies."""
    found = []
    for name, label in _LATENCIES.items():
        a, b = one[f"{name}_s"]["p99"], two[f"{name}_s"]["p99"]
        if a is None or b is None or same(a, b):
            continue
        low = one if a < b else two
        found.append(f"{label} p99 is lower with {low['name']} ({seconds(min(a, b))} against {seconds(max(a, b))})")
    return f"{listed(found)}." if found else "Their TTFT, TPOT and E2E p99 are level too."


def _without_targets(entries: Sequence[Entry], same: Same) -> str:
    """Who has the lowest tails; no winner is named without targets."""
    found = []
    for name, label in _LATENCIES.items():
        known = [entry for entry in entries if entry[f"{name}_s"]["p99"] is not None]
        if not known:
            continue
        ranked = sorted(known, key=lambda entry: entry[f"{name}_s"]["p99"])
        low = ranked[0][f"{name}_s"]["p99"]
        level = [entry["name"] for entry in ranked if same(entry[f"{name}_s"]["p99"], low)]
        rest = [
            f"{seconds(entry[f'{name}_s']['p99'])} of {entry['name']}" for entry in ranked if entry["name"] not in level
        ]
        against = f" against {listed(rest)}" if rest else ""
        verb = "tie for" if len(level) > 1 else "has"
        found.append(f"{listed(level)} {verb} the lowest {label} p99, {seconds(low)}{against}")
    if not found:
        return "No topology completed a request."
    text = "; ".join(found) + "."
    if _gpus_differ(entries):
        text += " The numbers of GPUs differ: " + listed([f"{e['name']} has {e['gpus']}" for e in entries]) + "."
    return text


def _saturation(entries: Sequence[Entry]) -> str:
    names = [entry["name"] for entry in entries if entry["saturated"]]
    if not names:
        return ""
    verb, its = ("are", "their queues grow") if len(names) > 1 else ("is", "its queue grows")
    return (
        f"{listed(names)} {verb} saturated: {its} to the end, so the latencies there tell the length of the trace "
        "as much as the topology."
    )
