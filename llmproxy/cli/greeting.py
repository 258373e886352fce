"""What `llmproxy serve` says once it serves: where, with which keys, and a command to try it with."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from shlex import quote

import click

from llmproxy import __version__
from llmproxy.cli.output import print_json
from llmproxy.cli.running_gateway import listens_everywhere, own_url
from llmproxy.config import ServerConfig
from llmproxy.gateway import Configuration
from llmproxy.providers.demo import Demo
from llmproxy.state import StateDirectory


class Greeting:
    """Everything in it is true, and the command works as it stands.

    Args:
        port: The real one, where 0 was asked for.
    """

    def __init__(
        self, configuration: Configuration, server: ServerConfig, state: StateDirectory, port: int, *, is_json: bool
    ) -> None:
        self._url = own_url(server, port)
        self._server = server
        # A key that the configuration names is its owner's to show.
        self._key = None if configuration.config.workspaces else state.default_key()
        self._demo = next((name for name, each in configuration.providers.items() if isinstance(each, Demo)), None)
        self._admin_key_file = None if os.environ.get("LLMPROXY_ADMIN_KEY") else state.admin_key_file
        self._is_json = is_json

    def print(self) -> None:
        """Print it."""
        # Whoever started it may no longer listen; it serves all the same.
        with suppress(OSError):
            if self._is_json:
                print_json(self._document(), is_line=True)
            else:
                click.echo("\n".join(self._lines()))

    def _document(self) -> dict[str, str | int | Path | None]:
        return {"url": self._url, "key": self._key, "admin_key_file": self._admin_key_file, "pid": os.getpid()}

    def _lines(self) -> Iterator[str]:
        where = f" (listening on {self._server.host})" if listens_everywhere(self._server) else ""
        yield f"llmproxy {__version__} serves on {self._url}{where}"
        if self._key is not None:
            yield f"Key:        {self._key}"
        yield f"Admin key:  in {self._admin_key_file or 'LLMPROXY_ADMIN_KEY'}"
        yield ""
        yield "Try it:"
        yield f"  {self._example()}"

    def _example(self) -> str:
        if self._key is None or self._demo is None:
            return f"curl {self._url}/health/ready"
        body = f'{{"model": "{self._demo}/story", "stream": true, "messages": [{{"role": "user", "content": "Hi"}}]}}'
        headers = f"-H 'authorization: Bearer {self._key}' -H 'content-type: application/json'"
        return f"curl -N {self._url}/v1/chat/completions {headers} -d {quote(body)}"
