"""``simulate validate run``: runs that users measured with their own clients, replayed, compared and fitted to."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulator.cluster.topology import load_topology
from simulator.commands.options import json_target
from simulator.commands.talk import Talk
from simulator.errors import InputError
from simulator.files import dumps, output_file, output_folder, write_text
from simulator.validation.clients.measured import Measured
from simulator.validation.clients.prefixes import read_prefixes
from simulator.validation.fit_run import Fit, fit_runs
from simulator.validation.measured_run import RunComparison, mean_errors, read_all, validate_run


@dataclass(frozen=True)
class MeasuredOptions:
    """Everything but the files."""

    topology: str
    change: Sequence[str] = ()
    prefixes: str | None = None
    block_tokens: int | None = None
    fit: str | None = None
    out: str | None = None
    json: str | None = None
    seed: int = 0


def run(files: Sequence[str], options: MeasuredOptions) -> int:
    """Replay and compare, after a fit where one is asked for. Raises InputError for anything that cannot be used."""
    target = _checked(files, options)
    measured = _with_prefixes(read_all(files), options)
    topology: Any = load_topology(options.topology, options.change)
    fit = None
    if options.fit is not None:
        fit = fit_runs(measured, topology, name=Path(options.fit).stem, seed=options.seed, progress=_count)
        write_text(output_file(options.fit, "--fit"), fit.text())
        topology = _with_fit(topology, fit, options.fit)
    found = [validate_run(one, topology, seed=options.seed) for one in measured]
    document = _document(found, fit, topology.name, options)
    if options.out is not None:
        _write(found, document, options.out)
    if target is not None and target != "-":
        write_text(output_file(target, "--json"), dumps(document))
    if target == "-":
        sys.stdout.write(dumps(document))
    else:
        _print(found, fit, options)
    return 0


def _checked(files: Sequence[str], options: MeasuredOptions) -> str | None:
    if not files:
        raise InputError("validate run: name at least one result file of a client")
    target = json_target(options.json)
    if target not in (None, "-"):
        output_file(str(target), "--json")
    if options.fit is not None:
        if not options.fit.endswith((".yaml", ".yml")):
            raise InputError(f"--fit: {options.fit}: name a file that ends in .yaml")
        output_file(options.fit, "--fit")
    if options.out is not None:
        output_folder(options.out)
    if options.seed < 0:
        raise InputError(f"--seed: {options.seed}; allowed: whole numbers from 0")
    return target


def _with_prefixes(runs: list[Measured], options: MeasuredOptions) -> list[Measured]:
    if options.prefixes is None:
        return runs
    trace = read_prefixes(options.prefixes, options.block_tokens)
    return [one.with_prefixes(trace) for one in runs]


def _with_fit(topology: Any, fit: Fit, file: str) -> Any:
    """The topology with what was fitted in it."""
    if fit.kind == "step_time":
        return load_topology(file)
    plain = topology.to_dict()
    plain["engine"] = {**topology.engine_settings, "profile": file}
    return load_topology(plain)


def _document(
    found: Sequence[RunComparison], fit: Fit | None, topology: str, options: MeasuredOptions
) -> dict[str, Any]:
    return {
        "schema": 1,
        "topology": topology,
        "set": list(options.change),
        "seed": options.seed,
        "runs": [one.to_dict() for one in found],
        "mean_absolute_error_percent": mean_errors(found),
        "fit": None if fit is None else fit.to_dict(),
    }


def _write(found: Sequence[RunComparison], document: dict[str, Any], out: str) -> None:
    from simulator.report.measured import write_comparison

    folder = output_folder(out)
    write_text(folder / "comparison.json", dumps(document))
    names = [write_comparison(one, folder).name for one in found]
    print(f"note: wrote comparison.json, {', '.join(names)} to {out}", file=sys.stderr)


def _print(found: Sequence[RunComparison], fit: Fit | None, options: MeasuredOptions) -> None:
    from rich.console import Console
    from rich.text import Text

    from simulator.report.measured import figures_table, fit_table, headline, runs_table
    from simulator.report.terminal import show_table

    console = Console(file=sys.stdout, highlight=False, emoji=False)
    if fit is not None:
        show_table(console, fit_table(fit))
        use = f"--topology {options.fit}" if fit.kind == "step_time" else f"--set engine.profile={options.fit}"
        if fit.left_out:
            console.print(
                Text(f"repeats, of which the quickest counts; left out: {', '.join(fit.left_out)}"), soft_wrap=True
            )
        console.print(Text(f"written to {options.fit}; use it with {use}"), soft_wrap=True)
        console.print()
    if len(found) == 1:
        console.print(Text(headline(found[0]), style="bold"), soft_wrap=True)
        show_table(console, figures_table(found[0]))
    else:
        show_table(console, runs_table(found))
    Talk(quiet=False).notes(dict.fromkeys(note for one in found for note in one.notes))


def _count(done: int) -> None:
    """Progress on a terminal; it vanishes in a pipe."""
    if sys.stderr.isatty():
        print(f"\rfit: {done} evaluations", end="", file=sys.stderr, flush=True)
