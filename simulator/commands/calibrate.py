"""``simulate calibrate``: measure the GPU at hand, and write a profile of it."""

from __future__ import annotations

import sys

from simulator.calibration.calibrate import Calibration, calibrate
from simulator.calibration.measured_fit import fit_errors
from simulator.metrics.wording import count
from simulator.report.terminal import plain_table, show_table


def run(asked: Calibration, *, quiet: bool) -> int:
    """Measure, fit, write, and print how well the rooflines fit. Raises InputError."""

    def tell(line: str) -> None:
        if not quiet:
            print(line, file=sys.stderr, flush=True)

    kernels = calibrate(asked, tell)
    from rich.console import Console
    from rich.text import Text

    table = plain_table()
    table.add_column("kernel", no_wrap=True)
    for name in ("rows", "median", "90 %"):
        table.add_column(name, justify="right", no_wrap=True)
    for kernel, (rows, median, high) in fit_errors(kernels).items():
        table.add_row(kernel, count(rows), f"{100 * median:.1f} %", f"{100 * high:.1f} %")
    console = Console(file=sys.stdout, highlight=False, emoji=False)
    console.print(Text("Error of the fitted rooflines on their rows; the table beside the profile holds what is left:"))
    show_table(console, table)
    console.print(Text(f"{asked.out}: use it as gpu: {asked.out} in a topology, or --set pools.0.gpu={asked.out}"))
    return 0
