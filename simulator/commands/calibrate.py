"""``simulate calibrate``: measure the GPU at hand, and write a profile of it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

_FLAG = Parameter(negative=(), show_default=False)


@dataclass(frozen=True)
class CalibrateOptions:
    """What to measure, where, and for how long."""

    out: Annotated[Path, Parameter(help="profile to write, NAME.yaml; its kernels and rows are put beside it")]
    tiny: Annotated[
        bool, _FLAG, Parameter(help="a few small cases, on a CPU too: shows that it works, says nothing about a GPU")
    ] = False
    device: Annotated[
        Literal["cuda", "cpu", "numpy"] | None, Parameter(help="cuda, cpu (torch) or numpy; with --tiny what there is")
    ] = None
    rows: Annotated[Path | None, Parameter(help="fit the rows in this folder in place of measuring")] = None
    like: Annotated[
        str | None, Parameter(help="the GPU whose datasheet to take, where the device's name does not say")
    ] = None
    groups: Annotated[tuple[str, ...], _FLAG, Parameter(help="measure these groups only")] = ()
    minutes: Annotated[float, Parameter(help="at most so long a group; a later run takes up where this one left")] = 2.5
    total_minutes: Annotated[float, Parameter(help="at most so long in all")] = 60.0
    flash_attention: Annotated[
        str | None, Parameter(help="vLLM's _vllm_fa3_C library, where vLLM is not installed")
    ] = None
    quiet: Annotated[bool, _FLAG, Parameter(help="no progress on stderr")] = False


def calibrate(options: CalibrateOptions) -> int:
    """Measure, fit, write, and print how well the rooflines fit. Raises InputError."""
    from simulator.calibration.calibrate import Calibration
    from simulator.calibration.calibrate import calibrate as fit
    from simulator.calibration.measured_fit import fit_errors

    def tell(line: str) -> None:
        if not options.quiet:
            print(line, file=sys.stderr, flush=True)

    asked = Calibration(
        options.out,
        options.tiny,
        options.device,
        options.rows,
        options.like,
        options.groups,
        options.minutes,
        options.total_minutes,
        options.flash_attention,
    )
    _print(options.out, fit_errors(fit(asked, tell)))
    return 0


def _print(out: Path, errors: dict[str, tuple[int, float, float]]) -> None:
    from rich.console import Console
    from rich.text import Text

    from simulator.metrics.wording import count
    from simulator.report.terminal import plain_table, show_table

    table = plain_table()
    table.add_column("kernel", no_wrap=True)
    for name in ("rows", "median", "90 %"):
        table.add_column(name, justify="right", no_wrap=True)
    for kernel, (rows, median, high) in errors.items():
        table.add_row(kernel, count(rows), f"{100 * median:.1f} %", f"{100 * high:.1f} %")
    console = Console(file=sys.stdout, highlight=False, emoji=False)
    words = "Error of the fitted rooflines on their rows; the table beside the profile holds what is left:"
    console.print(Text(words), soft_wrap=True)
    show_table(console, table)
    words = f"{out}: use it as gpu: {out} in a topology, or with --set pools.0.gpu={out}"
    console.print(Text(words), soft_wrap=True)
