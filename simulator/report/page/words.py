"""What the charts say, in sentences made from their figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from simulator.metrics.slo import TARGETS
from simulator.metrics.verdict import PART_NAMES
from simulator.metrics.wording import count, figures, listed, percent, seconds, target, within
from simulator.planning.crossover import LOST, TIE, Crossover
from simulator.planning.rate_curve import KNEE_ATTAINMENT, RateCurve
from simulator.report.page.material import Material

_LATENCIES = {"ttft": "TTFT", "tpot": "TPOT", "e2e": "E2E"}


def subtitle(material: Material) -> str:
    """What was offered, on what terms."""
    trace = material.document["trace"]
    said = [f"{count(trace['requests'])} requests"]
    arrivals = trace.get("arrivals", "trace")
    if arrivals.startswith(("closed", "at-once")):
        said.append(f"arrivals {arrivals}")
    elif trace["rate_requests_per_s"]:
        said.append(f"{figures(trace['rate_requests_per_s'])} requests/s")
    said.append(f"prompts of {count(round(trace['input_tokens']['p50']))} tokens (median)")
    said.append(f"answers of {count(round(trace['output_tokens']['p50']))}")
    wanted = [f"{TARGETS[name]} within {target(value)}" for name, value in material.slo.targets().items()]
    return ", ".join(said) + (f". Targets: {listed(wanted)}." if wanted else ". No targets were given.")


def level(curve: RateCurve, value: float) -> str:
    """A level with its unit."""
    return f"{figures(value)} clients" if curve.closed else f"{figures(value)} requests/s"


def knees(material: Material) -> str:
    """Up to what rate each topology holds."""
    curve = material.curve
    if curve is None:
        return ""
    if curve.closed and not curve.has_targets:
        return "Clients that wait for their answers cannot swamp a cluster: without targets there is no knee to mark."
    said = []
    for name in material.names:
        knee, levels = curve.knee(name), [point.level for point in curve.of(name)]
        if knee is None:
            said.append(f"{name} holds to the highest level tried, {level(curve, levels[-1])}")
        elif knee == 0.0:
            said.append(f"{name} does not hold even {level(curve, levels[0])}")
        else:
            said.append(f"{name} holds up to {level(curve, knee)}")
    share = percent(KNEE_ATTAINMENT)
    rule = f"{share} of requests meet all targets" if curve.has_targets else "its queue does not grow to the end"
    return f"{listed(said)}. A topology holds as long as {rule}."


def distribution(material: Material, name: str) -> str:
    """One kind of latency in a sentence, for those who cannot see the chart."""
    label = {"ttft": "TTFT", "tpot": "TPOT", "e2e": "E2E", "itl": "ITL"}[name]
    said = []
    for entry in material.entries:
        spread = entry[f"{name}_s"]
        said.append(f"{entry['name']} {seconds(spread['p50'])} in the median and {seconds(spread['p99'])} at p99")
    return f"{label}: {listed(said)}."


def parts(material: Material) -> str:
    """The largest part of each topology's mean TTFT."""
    said = []
    for entry in material.entries:
        mean = entry["ttft_s"]["mean"]
        if not mean:
            continue
        name, value = max(entry["ttft_parts_s"].items(), key=lambda item: item[1])
        said.append(f"{entry['name']} spends {percent(value / mean)} of its mean TTFT on {PART_NAMES[name]}")
    return f"{listed(said)}." if said else "No request completed."


def map_words(found: Crossover | None) -> str:
    """How much of the map each side takes, and from where on disaggregation wins."""
    if found is None:
        return ""
    numbers = {kind: sum(cell.winner == kind for cell in found.cells) for kind in ("disaggregated", "colocated", "tie")}
    said = (
        f"{found.disaggregated} (disaggregated) serves more requests well per GPU in {numbers['disaggregated']} of "
        f"{len(found.cells)} loads, {found.colocated} (colocated) in {numbers['colocated']}; "
        f"{numbers['tie']} are level within {percent(TIE)}, and in the others neither serves {percent(LOST)}."
    )
    wins = [cell for cell in found.cells if cell.winner == "disaggregated"]
    if wins:
        first = max(wins, key=lambda cell: cell.gain)
        share = {"colocated": _share(first.colocated), "disaggregated": _share(first.disaggregated)}
        said += (
            f" It gains most at {figures(first.rate_requests_per_s)} requests/s with prompts of "
            f"{count(round(first.prompt_tokens))} tokens: {share['disaggregated']} of requests are served well "
            f"against {share['colocated']}."
        )
    return said


def model_errors(material: Material) -> list[tuple[str, str]]:
    """How far off such forecasts were where they could be checked, by topology; empty where nobody knows."""
    found = []
    for entry in material.entries:
        error = entry.get("model_error")
        if not error:
            continue
        medians = [f"{label} {within(error[f'{key}_percent']['p50'])}" for key, label in _LATENCIES.items()]
        kinds = [word for word in error["taken_from"].values() if word not in ("any", "measured")]
        runs = (
            f"{percent(error['share'])} of {count(error['runs'])} measured runs ({', '.join(kinds) or 'of all kinds'})"
        )
        outside = f" Far from everything measured: {listed(error['outside'])}." if error["outside"] else ""
        found.append((entry["name"], f"medians of {listed(medians)}, which held for {runs}.{outside}"))
    return found


def _share(entry: Mapping[str, Any] | None) -> str:
    return percent(0.0 if entry is None else entry["slo_attainment"])
