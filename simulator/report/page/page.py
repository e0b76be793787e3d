"""Puts the page together: one HTML file with its style, its script and plotly.js inside, which works offline.

Everything that comes from outside goes through the template's escaping, or into the page as JSON whose ``<`` is
written as ``\\u003c``, so that no name can end a script or begin one.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import simulator
from simulator.cluster.result import TTFT_PARTS
from simulator.files import plain, write_text
from simulator.metrics.slo import TARGETS
from simulator.metrics.summary import per_gpu
from simulator.metrics.verdict import with_error
from simulator.metrics.wording import count, figures, percent, rate, seconds
from simulator.report.page import sources, words
from simulator.report.page.charts import TAIL, chart_data, tail_parts
from simulator.report.page.material import Material
from simulator.report.page.slowest import slowest
from simulator.report.rows import SHORT_PARTS, best_of_rows, rows

_STATIC = Path(__file__).parent / "static"
_LIBRARIES = ("numba", "numpy", "pandas", "plotly", "simpy")


def write_page(path: Path, material: Material) -> None:
    """Write the page to ``path``, whole or not at all."""
    write_text(path, page_text(material))


def page_text(material: Material) -> str:
    """The page as HTML."""
    environment = Environment(
        loader=FileSystemLoader(_STATIC),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "seconds": seconds, "percent": percent, "count": count, "rate": rate, "figures": figures,
    }  # fmt: skip
    data = {
        **chart_data(material),
        "parts": list(TTFT_PARTS),
        "partNames": list(SHORT_PARTS.values()),
        "requests": [slowest(run, material.slo, material.warmup_s) for run in material.runs],
    }
    return environment.get_template("page.html").render(
        **_head(material), **_sections(material), **_ending(material),
        data=_script_json(data), style=Markup(_read("page.css")), script=Markup(_read("page.js")),
        plotly=Markup(_plotly()),
    )  # fmt: skip


def _read(name: str) -> str:
    return (_STATIC / name).read_text(encoding="utf-8")


def _plotly() -> str:
    import plotly

    text = (Path(plotly.__file__).parent / "package_data" / "plotly.min.js").read_text(encoding="utf-8")
    return text.replace("</script", "<\\/script")


def _script_json(value: object) -> Markup:
    """JSON that may stand in a script element: no ``<`` in it can be taken for markup."""
    text = json.dumps(plain(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)


def _head(material: Material) -> Mapping[str, Any]:
    trace = material.document["trace"]
    models = list(dict.fromkeys(entry["model"] for entry in material.entries if entry["model"]))
    return {
        "title": f"{' against '.join(material.names)} on {trace['name']}",
        "models": models,
        "trace_name": trace["name"],
        "names": material.names,
        "subtitle": words.subtitle(material),
        "verdict": material.document["comparison"].get("verdict", ""),
        "interrupted": material.document.get("interrupted", False),
        "cards": [_card(material, entry) for entry in material.entries],
    }


def _card(material: Material, entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """The figures that a reader looks for first."""
    has_targets = entry["slo_attainment"] is not None
    knee = None if material.curve is None else material.curve.knee(entry["name"])
    gpus = ", ".join(f"{number} × {gpu}" for gpu, number in entry["gpu_counts"].items())
    plain_entry = dict(entry)
    facts = [(f"{label} p99", with_error(plain_entry, label.lower(), "p99")) for label in ("TTFT", "TPOT")]
    if has_targets:
        facts.append(("good requests/s per GPU", rate(per_gpu(plain_entry, "goodput_requests_per_s"))))
    if knee is not None and material.curve is not None:
        below = material.curve.points and knee == 0.0
        facts.append(("holds up to", "less than tried" if below else words.level(material.curve, knee)))
    return {
        "name": entry["name"],
        "gpus": gpus or f"{entry['gpus']} GPUs",
        "lead": percent(entry["slo_attainment"]) if has_targets else seconds(entry["e2e_s"]["p50"]),
        "lead_label": "of requests meet all targets" if has_targets else "from request to last token, median",
        "facts": facts,
        "saturated": entry["saturated"],
    }


def _sections(material: Material) -> Mapping[str, Any]:
    entries = [dict(entry) for entry in material.entries]
    best = best_of_rows(entries)
    table = [
        {"label": row.label, "opens": row.opens, "cells": [row.cell(entry).split("\n") for entry in entries],
         "best": [entry["name"] in best.get(row.metric, ()) for entry in entries]}
        for row in rows(entries)
    ]  # fmt: skip
    kinds = {
        "ttft": "Time to first token",
        "tpot": "Time per output token",
        "e2e": "End to end",
        "itl": "Between two tokens",
    }
    parts = _part_rows(material)
    return {
        "table": table,
        "entries": entries,
        "kinds": {name: (title, words.distribution(material, name)) for name, title in kinds.items()},
        "percentiles": ("mean", "p50", "p90", "p95", "p99", "max"),
        "curve": material.curve,
        "curve_rows": _curve_rows(material),
        "knee_words": words.knees(material),
        "part_names": {name: label for name, label in SHORT_PARTS.items() if any(row["parts"][name] for row in parts)},
        "part_rows": parts,
        "parts_words": words.parts(material),
        "load_rows": _load_rows(material),
        "map": material.map,
        "map_words": words.map_words(material.map),
        "model_errors": words.model_errors(material),
        "targets": {TARGETS[name]: value for name, value in material.slo.targets().items()},
    }


def _curve_rows(material: Material) -> list[tuple[str, str, list[str]]]:
    if material.curve is None:
        return []
    found = []
    for name in material.names:
        for point in material.curve.of(name):
            entry = point.figures
            cells = ["–"] * 4
            if entry is not None:
                cells = [
                    percent(entry["slo_attainment"]),
                    *(seconds(entry[f"{k}_s"]["p90"]) for k in ("ttft", "tpot", "e2e")),
                ]
            found.append((name, figures(point.level), cells))
    return found


def _part_rows(material: Material) -> list[dict[str, Any]]:
    """Two bars a topology: all requests, and the slowest hundredth."""
    found: list[dict[str, Any]] = []
    for entry, run in zip(material.entries, material.runs, strict=True):
        tail = tail_parts(run, material.warmup_s)
        if tail is None:
            continue
        found.append({"name": entry["name"], "who": "all requests", "parts": dict(entry["ttft_parts_s"])})
        found.append({"name": entry["name"], "who": f"slowest {percent(TAIL)}", "parts": tail})
    longest = max((sum(row["parts"].values()) for row in found), default=0.0) or 1.0
    for row in found:
        total = sum(row["parts"].values())
        row |= {"total": total, "shares": {name: 100 * value / longest for name, value in row["parts"].items()}}
    return found


def _load_rows(material: Material) -> list[tuple[str, str, list[str]]]:
    found = []
    for entry, run in zip(material.entries, material.runs, strict=True):
        for series in run.series:
            if not series.time_s.size:
                continue
            top = [figures(float(values.max())) for values in (series.running, series.waiting)]
            found.append((entry["name"], series.name, [*top, percent(float(series.kv_fraction.max()))]))
    return found


def _ending(material: Material) -> Mapping[str, Any]:
    plans = material.plans
    warnings = [(entry["name"], text) for entry in material.entries for text in entry["warnings"]]
    return {
        "topologies": [(name, sources.topology_facts(plan)) for name, plan in plans.items()],
        "gpus": [(gpu.name, sources.gpu_facts(gpu)) for gpu in sources.gpus_of(plans)],
        "engines": [(name, sources.engine_facts(name)) for name in sources.engines_of(plans)],
        "warnings": warnings,
        "trace": material.document["trace"],
        "notes": list(material.runs[0].trace.notes) if material.runs else [],
        "changes": list(material.document.get("set", [])),
        "seed": material.document["seed"],
        "command": material.command,
        "versions": [("pd-simulator", simulator.__version__), ("Python", platform.python_version()), *_versions()],
    }


def _versions() -> list[tuple[str, str]]:
    found = []
    for name in _LIBRARIES:
        try:
            found.append((name, version(name)))
        except PackageNotFoundError:  # pragma: no cover
            continue
    return found
