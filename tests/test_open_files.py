"""How many files a gateway may have open, and so how many connections."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.test_supervisor import KEY, Serve


@pytest.fixture
def few_files() -> Iterator[None]:
    """What is started has a low soft limit, as a login shell or systemd would give it."""
    soft, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, most), most))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, most))


@pytest.mark.usefixtures("few_files")
def test_a_worker_may_have_as_many_files_open_as_the_system_allows(tmp_path: Path, database_url: str) -> None:
    """The soft limit it was started with does not count, only the hard one."""
    config = {
        "database": {"url": database_url},
        "providers": {"demo": {}},
        "workspaces": {"default": {"keys": [KEY]}},
    }
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Serve(tmp_path, config) as serve:
        (worker,) = serve.workers()
        assert worker.rlimit(psutil.RLIMIT_NOFILE) == (most, most)
        assert serve.stop() == 0
