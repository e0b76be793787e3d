"""Fits the kernel profiles from measured tables and prints their error on rows held back.

    python benchmarks/fit_kernel_tables.py DIR [--out DIR] [--errors]

DIR holds the extract of AIConfigurator 0.12.0 (``<gpu>_gemm.csv`` and so on). Takes half a minute on one core.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from simulator.calibration.fit_tables import error_table, fit_tables


def main() -> None:
    """Fit, write, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", type=Path, help="folder of CSV tables")
    parser.add_argument("--out", type=Path, help="folder to write to (default: the shipped hardware_profiles)")
    parser.add_argument("--errors", action="store_true", help="also measure the error on rows held back")
    given = parser.parse_args()
    profiles = fit_tables(given.tables, given.out, errors=given.errors)
    for profile in profiles:
        rows = sum(len(fitted.rows) for fitted in profile.kernels)
        print(f"{profile.gpu}: {len(profile.kernels)} kernels from {rows} rows")
    if given.errors:
        print(error_table(profiles, by_operator=True))
        print()
        print(error_table(profiles))


if __name__ == "__main__":
    main()
