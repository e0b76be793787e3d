"""Reads a Hugging Face config.json."""

from __future__ import annotations

from pathlib import Path

from simulator.errors import TopologyError
from simulator.models.model import Model


def read_config(path: Path) -> Model:
    raise TopologyError(f"{path}: not yet")
