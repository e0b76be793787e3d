"""Long tests first: two workers that share the rest end together."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Stable, so that tests of one file stay together otherwise. Notebooks run for long as well."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None and item.path.suffix != ".ipynb")
