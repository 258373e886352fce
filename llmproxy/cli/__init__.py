"""The `llmproxy` command line: one module for each command, imported only when it is asked for."""

from llmproxy.cli.commands import main

__all__ = ["main"]
