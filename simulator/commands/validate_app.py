"""The words of ``simulate validate``. Light to import: ``--help`` waits for it."""

from __future__ import annotations

from typing import Annotated

from cyclopts import App, Parameter

validate_app = App(name="validate", help="Compare the simulator with what real systems did.", help_format="plaintext")


@validate_app.command(name="scheduler")
def _scheduler(
    *folders: str,
    steps: Annotated[bool, Parameter(negative=())] = False,
    json: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
) -> int:
    """Check exact cases of real engines' schedulers: every token's time must agree.

    Parameters
    ----------
    folders
        folders of cases
    steps
        compare step by step, and say where a case first differs
    json
        write the outcome as JSON to a file, or - for stdout
    """
    from simulator.commands.validate import scheduler

    return scheduler(folders, steps=steps, json=json)


@validate_app.command(name="serving")
def _serving(
    file: str,
    /,
    *,
    sample: int | None = None,
    seed: int = 0,
    jobs: int = 1,
    json: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
) -> int:
    """Rebuild and simulate measured closed-loop serving runs, and compare mean TTFT and TPOT.

    Parameters
    ----------
    file
        a CSV table of runs, one row a run
    sample
        only so many runs, spread over engines, models and GPUs
    seed
        of the sample
    jobs
        processes to use
    json
        write the outcome as JSON to a file, or - for stdout
    """
    from simulator.commands.measured import serving

    return serving(file, sample=sample, seed=seed, jobs=jobs, json=json)


@validate_app.command(name="published")
def _published(
    *,
    only: Annotated[tuple[str, ...], Parameter(negative=(), show_default=False)] = (),
    json: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
) -> int:
    """Simulate what authors of serving systems published about them, and compare; exit code 1 where a figure is missed.

    Parameters
    ----------
    only
        a system, or how the ids of figures begin; may be repeated
    json
        write the outcome as JSON to a file, or - for stdout
    """
    from simulator.commands.published import published

    return published(only, json=json)


@validate_app.command(name="run")
def _run(
    *measured: str,
    topology: str,
    change: Annotated[tuple[str, ...], Parameter(name="--set", negative=(), show_default=False)] = (),
    prefixes: str | None = None,
    block_tokens: int | None = None,
    fit: str | None = None,
    out: str | None = None,
    json: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    seed: int = 0,
) -> int:
    """Replay what your own benchmark client measured, and compare TTFT, TPOT and end-to-end latency.

    Parameters
    ----------
    measured
        detailed result files of vllm bench serve, AIPerf, GuideLLM or SGLang bench_serving, or an engine's request log
    topology
        the deployment that was measured: a YAML file, a shipped name, or MODEL/GPU/1p1d
    change
        change the topology: path.to.key=value; may be repeated
    prefixes
        the trace whose prompts were sent, where they begin alike
    block_tokens
        tokens of one of its prefix blocks (hash_ids), where the file does not say
    fit
        first fit the host times of the engine (or an explicit step time) to the files; write them to this YAML file
    out
        folder for comparison.json and a picture of each run
    json
        write the comparison as JSON to a file, or - for stdout
    seed
        of arrivals that have to be drawn
    """
    from simulator.commands.measured_run import MeasuredOptions, run

    return run(measured, MeasuredOptions(topology, change, prefixes, block_tokens, fit, out, json, seed))


@validate_app.command(name="steps")
def _steps(
    folder: str,
    /,
    *,
    change: Annotated[tuple[str, ...], Parameter(name="--set", negative=(), show_default=False)] = (),
    json: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
) -> int:
    """Compare lone prompts, decode steps and prompts added to a batch with those of a real engine.

    Parameters
    ----------
    folder
        a folder with sweep.csv, and workloads.csv for the engine's settings
    change
        change the topology: path.to.key=value; may be repeated
    json
        write the outcome as JSON to a file, or - for stdout
    """
    from simulator.commands.measured import engine_steps

    return engine_steps(folder, change=change, json=json)


@validate_app.command(name="errors")
def _errors(rows: str, /, *, workloads: str | None = None, out: str | None = None) -> int:
    """Build the table of model errors from residuals of measured serving runs.

    Parameters
    ----------
    rows
        the JSON of `simulate validate serving`
    workloads
        the JSON of `simulate validate workloads`, for the errors of percentiles
    out
        the YAML file to write, as hardware_profiles/validation/model_error.yaml; without it, it is printed
    """
    from simulator.commands.measured import errors

    return errors(rows, workloads=workloads, out=out)


@validate_app.command(name="workloads")
def _workloads(
    folder: str,
    /,
    *,
    change: Annotated[tuple[str, ...], Parameter(name="--set", negative=(), show_default=False)] = (),
    draws: int = 25,
    json: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
) -> int:
    """Replay workloads measured on a real engine, and compare percentiles of TTFT and TPOT.

    Parameters
    ----------
    folder
        a folder with workloads.csv and the requests of each run
    change
        change the topology: path.to.key=value; may be repeated
    draws
        simulate each run so many times, where how long launches take is left to chance; figures are the means
    json
        write the outcome as JSON to a file, or - for stdout
    """
    from simulator.commands.measured import workloads

    return workloads(folder, change=change, draws=draws, json=json)
