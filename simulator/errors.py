"""One tree of errors. Every message is one line: where (file, line or key), what was found, what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SimulatorError(Exception):
    """Base of every error this package raises on purpose."""

    def __str__(self) -> str:
        """One line, whatever the words quoted in it hold: line ends and terminal codes are spelt out."""
        return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in super().__str__())


class InputError(SimulatorError):
    """Something the user wrote cannot be used. The command exits with code 2."""


class TraceError(InputError):
    """A request trace cannot be read."""


class TopologyError(InputError):
    """A topology, or a model, GPU or link it names, cannot be used."""


class RunInterruptedError(SimulatorError):
    """The run was stopped from outside; what was finished is kept. The command exits with code 130."""


def nearest(name: object, allowed: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the allowed name closest to ``name``, or an empty string."""
    names = {a.lower(): a for a in allowed}
    found = difflib.get_close_matches(str(name).lower(), list(names), n=1, cutoff=0.6)
    return f" (did you mean '{names[found[0]]}'?)" if found else ""


def unknown(place: str, what: str, name: object, allowed: Iterable[str]) -> str:
    """One line for a name that is not known: the place, the name, the nearest one, and all that are allowed."""
    names = sorted(allowed)
    shown = ", ".join(names[:12]) + (f", ... ({len(names)} in all)" if len(names) > 12 else "")
    return f"{place}: unknown {what} '{name}'{nearest(name, names)}; allowed: {shown}"
