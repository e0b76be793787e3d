"""Pages of the site that are not written under docs/: the README and its kin, the notebooks, and what the code tells.

Called by mkdocs (``hooks`` in mkdocs.yml). Nothing is written to disk: pages are handed over as texts.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
#: Files beside docs/ that are pages of the site, and what they are called there.
BESIDE = {"README.md": "readme.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
#: Sections of pages that the navigation does not name, and that of all others.
SECTIONS = {
    "Results": ("ci", "planning", "sweeps"),
    "Can it be trusted": ("bring_your_own", "model_error", "reliability", "validation", "published"),
}
REST = "How it works"


def on_config(config: Any) -> Any:
    """Notebooks into the navigation, and pages that are missing there."""
    for section in config.nav:
        if "Notebooks" in section:
            section["Notebooks"] = [f"notebooks/{path.stem}.md" for path in notebooks()]
    listed = {page for section in config.nav for pages in section.values() for page in pages}
    rest = sorted(path.name for path in (ROOT / "docs").glob("*.md") if path.name not in listed)
    sections = {name: pages for section in config.nav for name, pages in section.items()}
    for page in rest:
        home = next((name for name, words in SECTIONS.items() if page.startswith(words)), REST)
        sections[home].append(page)
    return config


def on_files(files: Files, config: Any) -> Files:
    """The pages that lie elsewhere or are made from the code."""
    made = {name: (ROOT / source).read_text(encoding="utf-8") for source, name in BESIDE.items()}
    made |= {f"notebooks/{path.stem}.md": notebook_page(path) for path in notebooks()}
    made |= {
        "reference/python.md": python_page(),
        "reference/command.md": command_page(),
        "reference/tables.md": tables_page(),
    }
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links of the repository, turned into those of the site; what is not in the site is named, not linked."""
    up = "../" * page.file.src_uri.count("/")
    return re.sub(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)", lambda found: _link(found, up), markdown)


def _link(found: re.Match[str], up: str) -> str:
    image, text, target = found.groups()
    if re.match(r"[a-z]+:|#", target):
        return found.group(0)
    path, _, anchor = target.partition("#")
    path = re.sub(r"^(\.\./)*(docs/)?", "", path)
    path = BESIDE.get(path, path)
    if path.startswith("notebooks/"):
        path = path.replace(".ipynb", ".md")
    if not (image or path.endswith(".md")) or path.startswith("traces/"):
        return str(text)
    return f"{image}[{text}]({up}{path}{'#' + anchor if anchor else ''})"


def notebooks() -> list[Path]:
    """The notebooks, in order."""
    return sorted((ROOT / "notebooks").glob("*.ipynb"))


def notebook_page(path: Path) -> str:
    """Text and code of a notebook; pictures and tables appear when it is run."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    note = f"*A notebook: run `notebooks/{path.name}` to see its tables and pictures.*"
    return "\n\n".join([parts[0], note, *parts[1:]])


def python_page() -> str:
    """The public names, each with its docstring."""
    import simulator

    homes = [f"::: {home}.{name}" for name, home in simulator._HOMES.items()]
    said = "`from simulator import ...`: the names below, and no others, are the public interface."
    return "\n\n".join(["# Python", said, *homes])


def command_page() -> str:
    """The command's own help."""
    from simulator.cli import app

    text = re.sub(r"(?ms)^## Table of Contents.*?(?=^\*\*Commands)", "", app.generate_docs())
    return text.replace("# simulate", "# Command", 1)


def tables_page() -> str:
    """What ships with the package: settings of engines, GPUs, links, models, each with its figures."""
    from simulator.cluster.profiles import load_profile, profile_names
    from simulator.cluster.settings import FAMILIES, markdown_table

    parts = ["# Tables", "Made from the code and the profiles that ship with it.", "## Settings of engines"]
    for family in FAMILIES.values():
        parts += [f"### {family.name}", markdown_table(family)]
    profiles = [load_profile(name) for name in profile_names()]
    rows = [[f"`{p.name}`", p.family.name, f"`{p.policy}`", p.version or "–"] for p in profiles]
    parts += ["## Engine profiles", table(["profile", "family", "policy", "version"], rows)]
    parts += ["## GPUs", _gpus(), "## Links", _links(), "## Models", _models()]
    return "\n\n".join(parts)


def _gpus() -> str:
    from simulator.hardware.profiles import list_gpus, load_gpu

    rows = []
    for gpu in map(load_gpu, list_gpus()):
        peak = gpu.peak_flops.get("bf16", 0.0)
        row = [f"`{gpu.name}`", gpu.memory_bytes / 1e9, gpu.memory_bandwidth_bytes_per_s / 1e12, peak / 1e12]
        kernels = "none" if gpu.kernels is None else "its own" if gpu.derived_from is None else gpu.derived_from
        rows.append([*(f"{cell:,.4g}" if isinstance(cell, float) else cell for cell in row), kernels])
    return table(["GPU", "memory, GB", "bandwidth, TB/s", "bf16, TFLOP/s", "measured kernels"], rows)


def _links() -> str:
    from simulator.hardware.links import list_links, load_link

    rows = []
    for link in map(load_link, list_links()):
        speed = f"{link.bandwidth_bytes_per_s / 1e9:,.4g}"
        rows.append([f"`{link.name}`", link.kind, speed, f"{link.efficiency:.3g}", f"{link.setup_s * 1e3:.3g}"])
    return table(["link", "kind", "line rate, GB/s", "efficiency", "setup, ms"], rows)


def _models() -> str:
    from simulator.models.catalogue import list_models, load_model

    rows = []
    for model in map(load_model, list_models()):
        kv = model.kv_bytes_per_token("bf16") / 1024
        size, active = model.parameters() / 1e9, model.active_parameters() / 1e9
        rows.append([f"`{model.name}`", str(model.layers), f"{size:,.3g}", f"{active:,.3g}", f"{kv:,.4g}"])
    return table(["model", "layers", "parameters, 10⁹", "active, 10⁹", "KV of a token (bf16), KiB"], rows)


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; columns after the first two are numbers where they look like it."""
    numbers = [all(re.fullmatch(r"[\d,.e+–-]+", row[i]) for row in rows) for i in range(len(head))]
    rule = ["---:" if number else "---" for number in numbers]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *rows])
