"""Facts as ``name: value`` lines; the unit at the end of a name decides how its value is written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from simulator.metrics.wording import figures, percent, seconds

_INDENT = "  "


def facts_text(facts: Mapping[str, Any]) -> str:
    """The facts, one a line, nested ones indented; lists of mappings get a heading each."""
    return "\n".join(_lines(facts, "")) + "\n"


#: Below these keys names are somebody else's, and stay as they are typed.
VERBATIM = ("settings", "sources")


def _lines(facts: Mapping[str, Any], indent: str, verbatim: bool = False) -> Iterator[str]:
    call = str if verbatim else title
    plain = [key for key, value in facts.items() if not _nested(value)]
    width = max((len(call(key)) for key in plain), default=0) + 2
    for key, value in facts.items():
        if isinstance(value, Mapping):
            if value:
                yield f"{indent}{title(key)}"
                yield from _lines(value, indent + _INDENT, key in VERBATIM)
        elif _nested(value):
            for item in value:
                name = item.get("name", "")
                yield f"{indent}{title(key)} {name}".rstrip()
                yield from _lines({k: v for k, v in item.items() if k != "name"}, indent + _INDENT)
        else:
            yield f"{indent}{call(key):<{width}}{written(key, value)}".rstrip()


def _nested(value: object) -> bool:
    return isinstance(value, Mapping) or (isinstance(value, list) and bool(value) and isinstance(value[0], Mapping))


_ENDINGS = ("_bytes_per_s", "_bytes", "_flops", "_watts", "_ratio", "_fraction", "_per_s", "_s")


def title(key: str) -> str:
    """A name without its unit, in words: ``kv_bytes_per_token`` -> ``kv bytes per token``."""
    if key in ("requests_per_s", "tokens_per_s"):
        return key.replace("_per_s", "/s")
    for ending in _ENDINGS:
        if key.endswith(ending) and len(key) > len(ending):
            key = key.removesuffix(ending)
            break
    return key.replace("_", " ")


def written(key: str, value: Any) -> str:
    """One value as people read it."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(written(key, item) for item in value) or "none"
    if isinstance(value, str):
        return value
    return _number(key, value)


def _number(key: str, value: float) -> str:
    if key.endswith("_bytes_per_s"):
        return f"{figures(value / 1e12)} TB/s" if value >= 1e12 else f"{figures(value / 1e9)} GB/s"
    if key.endswith("_bytes"):
        return _bytes(value)
    if key.endswith("_flops"):
        return f"{value / 1e12:,.6g} TFLOP/s"
    if key.endswith("_watts"):
        return f"{value:,.6g} W"
    if key.endswith(("_ratio", "_fraction")):
        return percent(value)
    if key.endswith("_s") and not key.endswith("_per_s"):
        return seconds(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.6g}"


def _bytes(value: float) -> str:
    for scale, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= scale:
            return (
                f"{value / scale:,.4g} {unit} ({value:,.0f} bytes)"
                if scale < 1e9
                else f"{value / scale:,.2f} {unit} ({value:,.0f} bytes)"
            )
    return f"{value:,.6g} bytes"
