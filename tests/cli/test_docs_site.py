"""The documentation as a site: it builds without a warning, and every page can be reached and stands alone."""

from __future__ import annotations

import re
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest

import simulator

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.slow
def test_site_builds_and_holds_together(site):
    pages = {page.relative_to(site).as_posix(): page.read_text(encoding="utf-8") for page in site.rglob("*.html")}
    expected = {f"{page.stem}.html" for page in (ROOT / "docs").glob("*.md")}
    expected |= {f"notebooks/{path.stem}.html" for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert expected | {"reference/python.html", "reference/command.html", "readme.html"} <= set(pages)
    start = pages["index.html"]
    for name in expected - {"index.html"}:
        assert f'href="{name}"' in start, f"{name} cannot be reached from the start"
    for name, text in pages.items():
        if name == "404.html":
            continue
        for target in re.findall(r'(?:href|src)="(?!https?:|#|data:|mailto:)([^"#]+)', text):
            assert ((site / name).parent / unescape(target)).exists(), f"{name}: {target}"
        assert not re.findall(r'(?:src|<link[^>]*href)="https?:', text), f"{name} loads from elsewhere"


@pytest.mark.slow
def test_reference_is_made_from_the_code(site):
    python = (site / "reference" / "python.html").read_text(encoding="utf-8")
    documented = {name for name in simulator.__all__ if f"{name}</span>" in python or f".{name}" in python}
    assert documented == set(simulator.__all__) - {"__version__"}
    command = (site / "reference" / "command.html").read_text(encoding="utf-8")
    assert "--timeline-start" in command
    assert "simulate describe" in command
    tables = (site / "reference" / "tables.html").read_text(encoding="utf-8")
    assert "max_num_batched_tokens" in tables
    assert "h100_sxm" in tables
