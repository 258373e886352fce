"""What must not be reached from other machines: a gateway that a guessed key opens."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator

from llmproxy.config import Config
from llmproxy.keys import MIN_DISTINCT_CHARACTERS, MIN_KEY_CHARACTERS, is_weak


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to what listens on `host`; a name that is not known is not."""
    try:
        found = socket.getaddrinfo(host or None, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError:
        return False
    return all(ipaddress.ip_address(str(address[0])).is_loopback for *_, address in found)


def exposures(host: str, config: Config, admin_key: str | None) -> Iterator[str]:
    """Why it must not listen on `host`: one sentence for each key that is too weak for it."""
    if is_loopback(host):
        return
    advice = f"use at least {MIN_KEY_CHARACTERS} characters, {MIN_DISTINCT_CHARACTERS} of them different"
    for name, workspace in config.workspaces.items():
        for number, key in enumerate(workspace.keys):
            if is_weak(key.get_secret_value()):
                yield f"workspaces.{name}.keys.{number}: this key is too weak to listen on {host}; {advice}"
    if admin_key is not None and is_weak(admin_key):
        yield f"LLMPROXY_ADMIN_KEY: the admin key is too weak to listen on {host}; {advice}"
