"""What every test may use."""

from __future__ import annotations

import pytest
from hypothesis import settings

from llmproxy.testing import pytest_plugin

pytest_plugins = ["tests.postgres", "tests.http1", "tests.quota_workers"]

# How long an example takes says more about the machine than about the code.
settings.register_profile("llmproxy", deadline=None)
settings.load_profile("llmproxy")


def pytest_configure(config: pytest.Config) -> None:
    """Bring the fixtures of the kit also where the checkout is not installed, and so has no entry points."""
    if not config.pluginmanager.has_plugin("llmproxy"):
        config.pluginmanager.register(pytest_plugin, "llmproxy")
