"""Ending a TCP connection one way or the other, and waiting for a state without sleeping through it."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Final

POLL_SECONDS: Final = 0.005


def reset(writer: asyncio.StreamWriter) -> None:
    """Drop the connection so that the other side reads a reset (RST), not an end."""
    connection = writer.get_extra_info("socket")
    # A socket that is already gone cannot be told to linger, and need not be.
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def close(writer: asyncio.StreamWriter) -> None:
    """Close the connection now, whether or not the other side reads what is still buffered here."""
    writer.transport.abort()
    with suppress(OSError):
        await writer.wait_closed()


async def wait_until(predicate: Callable[[], bool], seconds: float = 5) -> None:
    """Return as soon as `predicate()` holds. Raises TimeoutError when it does not within `seconds`."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while not predicate():
        if loop.time() > deadline:
            raise TimeoutError(f"What was waited for did not happen within {seconds} seconds.")
        await asyncio.sleep(POLL_SECONDS)
