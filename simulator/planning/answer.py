"""A plan's answer in words, made from its figures alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from simulator.metrics.slo import TARGETS
from simulator.metrics.wording import figures, percent, target

_FACTORS = {
    "input_tokens": "prompts",
    "output_tokens": "outputs",
    "bandwidth": "network bandwidth",
    "rate": "rate",
    **{name: f"the {label} target" for name, label in TARGETS.items()},
}


def verdict(document: Mapping[str, Any]) -> str:
    """Which cluster; does disaggregation pay, by how much, how sure; what would turn it."""
    parts = (_answer(document), _pays(document), _turns(document), _model_error(document["answer"]))
    return " ".join(part for part in parts if part)


def _answer(document: Mapping[str, Any]) -> str:
    answer, slo = document["answer"], document["slo"]
    targets = ", ".join(f"{TARGETS[k]} {target(slo[f'{k}_s'])}" for k in TARGETS if slo[f"{k}_s"] is not None)
    within = f"{targets} for {percent(slo['attainment'])} of requests"
    carries = f"{figures(answer['max_rate_requests_per_s'])} requests/s{_range(answer['interval'])}"
    if document["find"] == "cheapest":
        rate = figures(document["rate_requests_per_s"])
        price = f"{answer['usd_per_hour']:,.2f} USD/h"
        return f"Cheapest for {rate} requests/s within {within}: {answer['name']}, {price}; it carries {carries}."
    return f"{answer['name']} carries {carries} within {within}, on {answer['gpus']} GPUs."


def _range(interval: list[float] | None) -> str:
    if interval is None or any(math.isnan(value) for value in interval):
        return ""
    return f" ({figures(interval[0])} to {figures(interval[1])})"


def _pays(document: Mapping[str, Any]) -> str:
    one, other = document["colocated"], document["disaggregated"]
    if one is None or other is None:
        missing = "colocated" if one is None else "disaggregated"
        return f"No {missing} cluster was found to compare with." if document["find"] != "max_rate" else ""
    ratio, per = document["ratio"], "dollar" if document["ratio_per"] == "usd" else "GPU"
    sure = "; the interval holds 1, so this may be luck" if not document["sure"] else ""
    how = f"{figures(ratio)} times the requests per {per} of {one['name']}{_range(document['interval'])}{sure}"
    prices = ""
    if document["find"] == "cheapest":
        prices = f" ({other['usd_per_hour']:,.2f} against {one['usd_per_hour']:,.2f} USD/h)"
    word = "pays" if document["pays"] else "does not pay"
    return f"Disaggregation {word} here{prices}: {other['name']} carries {how}."


def _turns(document: Mapping[str, Any]) -> str:
    turned = [row for row in document["sensitivity"] if row["pays"] is not None and row["pays"] != document["pays"]]
    if not document["sensitivity"]:
        return ""
    if not turned:
        return "Nothing in the sensitivity table turns this."
    told = [f"{_FACTORS[row['factor']]} x {row['times']:g} ({_shown(row['ratio'])})" for row in turned]
    return f"This would turn with: {', '.join(told)}."


def _model_error(answer: Mapping[str, Any]) -> str:
    """How far such forecasts were off where they could be checked: not part of any interval above."""
    error = answer["model_error"]
    if not error:
        return ""
    ttft, tpot = (error[f"{name}_percent"]["p50"] for name in ("ttft", "tpot"))
    return (
        "Intervals are sampling alone; the simulator itself was off by "
        f"{figures(ttft)} % in TTFT and {figures(tpot)} % in TPOT (medians) where such runs were measured."
    )


def _shown(ratio: float | None) -> str:
    return "only one can" if ratio is None else figures(ratio)
