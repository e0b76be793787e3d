"""The house's own rules, where a machine can hold them."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import simulator

ROOT = Path(__file__).resolve().parents[2]
LONGEST_FILE = 400
MEASURED = {"validation.md", "performance.md"}  # pages of figures, written once there is something to measure
INSTALL = "python3 -m venv .venv && .venv/bin/pip install -c constraints.txt -e '.[dev]'"

PACKAGE = sorted((ROOT / "simulator").rglob("*.py"))
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "traces").glob("*.md")])
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def text_files() -> list[Path]:
    """Everything people wrote: code, pages, profiles, notebooks."""
    folders = ("simulator", "tests", "docs", "notebooks", "benchmarks", "hardware_profiles", "traces")
    endings = {".py", ".md", ".toml", ".yaml", ".yml", ".ipynb", ".txt", ".json"}
    found = [p for folder in folders for p in (ROOT / folder).rglob("*") if p.suffix in endings]
    top = [p for p in ROOT.iterdir() if p.is_file() and (p.suffix in endings or p.name in ("Makefile", "NOTICE"))]
    return sorted(p for p in found + top if "__pycache__" not in p.parts and ".ipynb_checkpoints" not in p.parts)


def imports(path: Path) -> set[str]:
    """Modules that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def shell_lines(page: Path) -> list[str]:
    """Command lines in a page's code blocks, fenced or indented, prompts taken off, continued lines joined."""
    lines, fenced = [], False
    for line in page.read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            lines.append(line.strip().removeprefix("$ ").split("   #")[0].removeprefix(".venv/bin/"))
    return lines


def test_arrows_point_one_way():
    found = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout[-3000:]


def test_every_room_has_its_place_in_the_layers():
    layers = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]["layers"]
    placed = {room.strip() for layer in layers for room in layer.split("|")}
    rooms = {p.stem for p in (ROOT / "simulator").glob("*.py")} - {"__init__"}
    rooms |= {p.parent.name for p in (ROOT / "simulator").glob("*/__init__.py")}
    assert placed == rooms


def test_simpy_lives_in_one_file():
    users = [p.relative_to(ROOT) for p in PACKAGE if any(name.split(".")[0] == "simpy" for name in imports(p))]
    assert users == [Path("simulator/cluster/processes.py")]


def test_files_stay_small():
    lengths = {str(p.relative_to(ROOT)): len(p.read_text(encoding="utf-8").splitlines()) for p in PACKAGE}
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST_FILE} == {}


def test_no_file_names_places_of_one_machine():
    places = re.compile(r"(^|[^a-z.\w])/(work|farm|tmp|home|root)/|\.\./" + "shared")
    named = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}"
        for path in text_files()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if places.search(line)
    ]
    assert not named


def test_public_names_are_there():
    for name in simulator.__all__:
        assert getattr(simulator, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'simulte'"):
        simulator.simulte  # noqa: B018


def test_version_is_told_once():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == simulator.__version__
    assert re.search(
        r"^## \[(Unreleased|" + re.escape(simulator.__version__) + r")\]", (ROOT / "CHANGELOG.md").read_text(), re.M
    )


def test_constraints_cover_every_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = project["dependencies"] + extras["dev"] + extras["dask"] + extras["docs"] + extras["browser"]
    names = {re.split(r"[<>=!~ \[]", line)[0].lower().replace("_", "-") for line in wanted} - {project["name"]}
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().split()}
    assert names <= pinned, names - pinned


def test_the_wheel_holds_what_the_package_reads():
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    read = {name for path in PACKAGE for name in re.findall(r'shipped\("([^"]+)"\)', path.read_text(encoding="utf-8"))}
    assert read == set(build["force-include"])
    assert all(inside == f"simulator/_data/{folder}" for folder, inside in build["force-include"].items())


def test_the_index_names_every_page():
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    assert [p.name for p in (ROOT / "docs").glob("*.md") if p.name != "index.md" and f"({p.name})" not in index] == []


def test_one_install_command():
    for name in ("README.md", ".ci/run"):
        assert INSTALL in (ROOT / name).read_text(), name
    assert INSTALL.removeprefix("python3 ") in (ROOT / "Makefile").read_text()


def test_ci_calls_the_test_command():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    lines = script.read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert "set -euo pipefail" in lines
    assert lines[-1] == "make test"


def test_makefile_targets_named_in_pages_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    named = {
        word
        for page in PAGES
        for line in shell_lines(page)
        if line.startswith("make ")
        for word in shlex.split(line)[1:]
        if "=" not in word
    }
    assert {"demo", "test"} <= named <= targets


COMMANDS = [(page, line) for page in PAGES for line in shell_lines(page) if re.match(r"simulate [a-z/]", line)]


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=[f"{p.name}: {line}" for p, line in COMMANDS])
def test_commands_in_pages_can_be_parsed(page, line):
    from simulator.cli import app

    words = shlex.split(line.split(" | ")[0].split(" > ")[0])[1:]
    app.parse_args(words, print_error=False, exit_on_error=False)


def test_readme_shows_the_commands():
    assert sum(page.name == "README.md" for page, _ in COMMANDS) >= 5


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", page.read_text(encoding="utf-8"))
    assert [t for t in targets if not (page.parent / t).exists() and Path(t).name not in MEASURED] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_notebooks_are_kept_without_outputs(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert len(cells) - len(code) >= len(code) // 2, "a notebook teaches: text between the code"
