"""The command ``simulate``: reads the words, calls the commands, turns errors into one line and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, CycloptsError, Parameter
from cyclopts.validators import Number

import simulator
from simulator.commands.calibrate import CalibrateOptions
from simulator.commands.check import CheckOptions
from simulator.commands.options import RunOptions
from simulator.commands.plan import PlanOptions
from simulator.commands.sweep import SweepOptions
from simulator.commands.validate_app import validate_app
from simulator.errors import InputError, RunInterruptedError, nearest

DONE, BAD_INPUT, INTERRUPTED = 0, 2, 130

_HELP = """Replay a trace of requests on serving topologies, and compare what clients see.

Example: simulate chat --topology colocated --topology 1p1d --slo ttft=2s,tpot=50ms

stdout is the result; progress, notes and warnings go to stderr.
Exit codes: 0 done, 1 a check failed, 2 bad input, 130 interrupted."""

app = App(
    name="simulate",
    help=_HELP,
    help_format="plaintext",
    version=simulator.__version__,
    version_flags=["--version"],
    suppress_keyboard_interrupt=False,
)
app.command(validate_app)


@app.default
def _replay(trace: str, /, *, options: Annotated[RunOptions, Parameter(name="*")] = RunOptions()) -> int:  # noqa: B008
    """Replay TRACE (a file, or the name of a shipped trace) on each topology."""
    from simulator.commands.replay import replay

    return replay(trace, options)


@app.command(name="describe")
def _describe(
    what: str,
    /,
    *,
    change: Annotated[tuple[str, ...], Parameter(name="--set", negative=(), show_default=False)] = (),
    columns: str | None = None,
    spec: Annotated[bool, Parameter(negative=())] = False,
    json: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
) -> int:
    """Say what a trace, topology, model or GPU is, as the program understands it: bytes, limits, sources.

    Parameters
    ----------
    what
        a file or a name: trace, topology (also MODEL/GPU/1p1d), model, GPU
    change
        change the topology: path.to.key=value; may be repeated
    columns
        columns of an unknown CSV: arrival_s=NAME,input_tokens=NAME,output_tokens=NAME
    spec
        print the trace's statistics as a spec for `simulate generate`
    json
        write it as JSON to a file, or - for stdout
    """
    from simulator.commands.describe import describe

    return describe(what, changes=change, columns=columns, spec=spec, json=json)


@app.command(name="step")
def _step(
    *,
    model: str,
    gpu: str,
    tp: int = 1,
    pp: int = 1,
    dp: int = 1,
    ep: int = 1,
    weights: str = "bf16",
    kv_cache: str = "bf16",
    engine: str = "vllm",
    prefill: Annotated[tuple[str, ...], Parameter(negative=(), show_default=False)] = (),
    decode: str | None = None,
    draft_tokens: Annotated[int, Parameter(validator=Number(gte=0, lte=64))] = 0,
    expert_placement: Literal["even", "static", "balanced"] | None = None,
    redundant_experts: Annotated[int | None, Parameter(validator=Number(gte=0, lte=4096))] = None,
    micro_batches: Literal[1, 2] | None = None,
    json: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
) -> int:
    """Print the cost of one step, operator by operator, and what bounds it.

    Parameters
    ----------
    model
        a model's name, or the path of a Hugging Face config.json
    gpu
        a GPU's name, or the path of a profile
    tp
        tensor-parallel degree
    pp
        pipeline-parallel degree
    dp
        data-parallel degree
    ep
        expert-parallel degree
    weights
        format of the weights: bf16, fp8, ...
    kv_cache
        format of the KV cache
    engine
        engine profile, for the host's share of a step
    prefill
        prompt tokens computed in the step, NEW or NEW+PAST (tokens computed before), as 2048, 2048+512 or
        4x2048; may be repeated
    decode
        decoding sequences and their mean context, as 64x1500
    draft_tokens
        drafts that each decoding sequence verifies (multi-token prediction)
    expert_placement
        where experts sit: even load, in order, or copied and dealt out by load; instead of the engine profile's
    redundant_experts
        copies of busy experts, instead of the engine profile's
    micro_batches
        2 hides what travels to experts behind the other half's computation; instead of the engine profile's
    json
        write it as JSON to a file, or - for stdout
    """
    from simulator.commands.step import StepRequest, step

    spread = (expert_placement, redundant_experts, micro_batches)
    work = (prefill, decode, draft_tokens)
    asked = StepRequest(model, gpu, tp, pp, dp, ep, weights, kv_cache, engine, *work, *spread)
    return step(asked, json=json)


@app.command(name="generate")
def _generate(spec: str, out: str, /, *, seed: int | None = None, requests: int | None = None) -> int:
    """Make a trace from stated statistics.

    Parameters
    ----------
    spec
        a YAML file; `simulate describe TRACE --spec` prints that of a trace
    out
        the trace to write: .jsonl, .jsonl.gz, .jsonl.zst or .parquet
    seed
        instead of the spec's
    requests
        how many, instead of the spec's
    """
    from simulator.commands.traces import generate

    return generate(spec, out, seed=seed, requests=requests)


@app.command(name="convert")
def _convert(
    trace: str,
    out: str,
    /,
    *,
    columns: str | None = None,
    limit: int | None = None,
    start: str | None = None,
    duration: str | None = None,
    rate_scale: float = 1.0,
    raw_arrivals: Annotated[bool, Parameter(negative=())] = False,
    seed: int = 0,
) -> int:
    """Write a trace of any known format as a native one.

    Parameters
    ----------
    trace
        the trace to read
    out
        the trace to write: .jsonl, .jsonl.gz, .jsonl.zst or .parquet
    columns
        columns of an unknown CSV: arrival_s=NAME,input_tokens=NAME,output_tokens=NAME
    limit
        only the first N requests
    start
        leave out what arrives in the trace's first S seconds
    duration
        only what arrives within S seconds from the start
    rate_scale
        divide the gaps by this
    raw_arrivals
        leave coarse time stamps as they are
    seed
        for ServeGen data, which are statistics
    """
    from simulator.commands.traces import convert

    window = {"limit": limit, "start": start, "duration": duration, "rate_scale": rate_scale}
    return convert(trace, out, columns=columns, raw_arrivals=raw_arrivals, seed=seed, window=window)


@app.command(name="sweep")
def _sweep(spec: str, /, *, options: Annotated[SweepOptions, Parameter(name="*")] = SweepOptions()) -> int:  # noqa: B008
    """Do many runs: any field of a topology or of the load varied, side by side, kept on disk; one tidy table.

    Parameters
    ----------
    spec
        a YAML file, see docs/planning.md
    """
    from simulator.commands.sweep import sweep

    return sweep(spec, options)


@app.command(name="plan")
def _plan(spec: str, /, *, options: Annotated[PlanOptions, Parameter(name="*")] = PlanOptions()) -> int:  # noqa: B008
    """Find the highest rate, the best split or the cheapest cluster for latency targets; does disaggregation pay?

    Parameters
    ----------
    spec
        a YAML file, see docs/planning.md
    """
    from simulator.commands.plan import plan

    return plan(spec, options)


@app.command(name="check")
def _check(file: str, /, *, options: Annotated[CheckOptions, Parameter(name="*")] = CheckOptions()) -> int:  # noqa: B008
    """Compare latency curves with a stored baseline; exit code 1 where a point moved beyond its tolerance.

    Parameters
    ----------
    file
        a YAML file of curves, see docs/ci.md
    """
    from simulator.commands.check import check

    return check(file, options)


@app.command(name="calibrate")
def _calibrate(*, options: Annotated[CalibrateOptions, Parameter(name="*")]) -> int:
    """Measure kernels, steps and copies on the GPU at hand, and write a hardware profile."""
    from simulator.commands.calibrate import calibrate

    return calibrate(options)


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``simulate`` with these words (the process's own by default); returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if not words:
            words = ["--help"]
        code = app(words, exit_on_error=False, print_error=False, result_action="return_value")
        return code if isinstance(code, int) else DONE
    except CycloptsError as problem:
        return _refuse(_unknown_command(words) or " ".join(str(problem).split()))
    except InputError as problem:
        return _refuse(_unknown_command(words) or str(problem))
    except (RunInterruptedError, KeyboardInterrupt) as problem:
        print(f"simulate: {str(problem) or 'interrupted; nothing was finished'}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of stdout has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except OSError as problem:  # a disk that is full, a folder that has gone
        what = problem.strerror or " ".join(str(problem).split())
        return _refuse(f"{problem.filename}: {what}" if problem.filename else what)
    except MemoryError:
        return _refuse(
            "there is not enough memory; take less of the trace (--limit), or stop in time (--max-memory-gb)"
        )


def _refuse(message: str) -> int:
    print(f"simulate: {message}", file=sys.stderr)
    return BAD_INPUT


def _unknown_command(words: Sequence[str]) -> str:
    """A line for a first word that is no trace, but close to a command; else empty."""
    word = words[0]
    commands = [name for name in app if not name.startswith("-")]
    near = nearest(word, commands)
    if word in commands or not near or Path(word).exists():
        return ""
    return f"unknown command '{word}'{near}; commands: {', '.join(commands)}"


if __name__ == "__main__":
    sys.exit(main())
