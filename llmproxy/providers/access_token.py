"""Access tokens that run out: renewed in the background before they do, so that no request waits for one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from llmproxy.errors import Failure, UpstreamError
from llmproxy.services import Services

# How long before its end a token is replaced. Some libraries hand out the old one until five minutes before.
_EARLY_SECONDS: Final = 240.0
_RETRY_SECONDS: Final = 15.0
# How long a start may wait for the first token before it goes on without.
_START_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class AccessToken:
    """A token and the Unix time at which it runs out."""

    value: str = field(repr=False)
    expires_at: float


class RenewedToken:
    """The current token of one provider; a single task renews it, so that no two renewals ever overlap.

    Args:
        provider: The provider's name, for messages.
        fetch: Gets a new token; whatever it raises is logged and tried again.
    """

    def __init__(self, provider: str, fetch: Callable[[], Awaitable[AccessToken]], services: Services) -> None:
        self._provider = provider
        self._fetch = fetch
        self._services = services
        self._token: AccessToken | None = None
        self._tried = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def value(self) -> str:
        """The token. Raises UpstreamError when there is none that is still good."""
        token = self._token
        if token is None or token.expires_at <= self._now():
            raise UpstreamError(
                f"The provider '{self._provider}' has no valid access token; ask the gateway's operator to check it.",
                failure=Failure.AUTH,
                code="upstream_auth_error",
            )
        return token.value

    async def start(self) -> None:
        """Begin to renew, and wait a short while for the first token."""
        self._task = self._services.tasks.start(f"{self._provider}_access_token", self._keep())
        with suppress(TimeoutError):
            async with asyncio.timeout(_START_SECONDS):
                await self._tried.wait()

    async def stop(self) -> None:
        """Renew no more."""
        if self._task is not None:
            self._task.cancel()

    async def _keep(self) -> None:
        while True:
            await self._services.clock.sleep(await self._renew())

    async def _renew(self) -> float:
        """Seconds until the next renewal."""
        try:
            self._token = await self._fetch()
        except Exception as error:  # noqa: BLE001 - whatever a credential library raises, there is a next try
            self._services.log.warning("access_token_not_renewed", provider=self._provider, error=repr(error))
            return _RETRY_SECONDS
        finally:
            self._tried.set()
        return max(self._token.expires_at - self._now() - _EARLY_SECONDS, _RETRY_SECONDS)

    def _now(self) -> float:
        return self._services.clock.now().timestamp()
