"""Google Cloud's access tokens, through `google-auth`, which is an optional dependency."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, cast

from llmproxy.errors import UpstreamError
from llmproxy.providers.access_token import AccessToken
from llmproxy.request import Document
from llmproxy.services import HTTPClient, UpstreamRequest

if TYPE_CHECKING:
    from google.auth.credentials import Credentials
    from google.auth.transport import Request as Transport

_SCOPES: Final = ("https://www.googleapis.com/auth/cloud-platform",)
_TIMEOUT_SECONDS: Final = 10.0


class GoogleTokens:
    """Gets tokens. Works in a thread, for the library blocks; what it sends goes through the gateway's own client.

    Args:
        account: A service account's key, as Google's console gives it; None takes what the machine offers: the file
            that GOOGLE_APPLICATION_CREDENTIALS names, gcloud's own login, or the metadata server.

    Attributes:
        project: The project the credentials belong to; None until they were found, or when they name none.
    """

    def __init__(self, account: Document | None, http: HTTPClient) -> None:
        self._account = account
        self._http = http
        self._credentials: Credentials | None = None
        self.project: str | None = None

    async def fetch(self) -> AccessToken:
        """A token. Raises whatever the library raises."""
        return await asyncio.to_thread(self._fetch, _Sender(self._http, asyncio.get_running_loop()))

    def _fetch(self, sender: _Sender) -> AccessToken:
        # The library asks for any function that sends a request; the class it names is only its interface.
        transport = cast("Transport", sender)
        if self._credentials is None:
            self._credentials, self.project = _found(self._account, transport)
        credentials = self._credentials
        credentials.refresh(transport)
        if credentials.expiry is None:
            raise ValueError("the credentials hold a token that never runs out, which none of Google's does")
        # The library's times are in UTC and do not say so.
        return AccessToken(str(credentials.token), credentials.expiry.replace(tzinfo=UTC).timestamp())


def is_installed() -> bool:
    """Whether `google-auth` is there."""
    return find_spec("google") is not None and find_spec("google.auth") is not None


def _found(account: Document | None, transport: Transport) -> tuple[Credentials, str | None]:
    # Slow to import, which only those pay who use it, and not on the event loop.
    import google.auth  # noqa: PLC0415 - see above
    from google.oauth2 import service_account  # noqa: PLC0415 - see above

    if account is None:
        return google.auth.default(scopes=_SCOPES, request=transport)
    credentials = service_account.Credentials.from_service_account_info(account, scopes=_SCOPES)
    return credentials, credentials.project_id


@dataclass(frozen=True, slots=True)
class _Reply:
    """A response as the library reads it."""

    status: int
    headers: Mapping[str, str]
    data: bytes


class _Sender:
    """What the library sends its requests with, from a thread of its own."""

    def __init__(self, http: HTTPClient, loop: asyncio.AbstractEventLoop) -> None:
        self._http = http
        self._loop = loop

    def __call__(
        self,
        url: str,
        method: str = "GET",
        body: bytes | str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
        **_: Any,  # options of other transports
    ) -> _Reply:
        """Send, and wait. Raises the library's TransportError."""
        from google.auth.exceptions import TransportError  # noqa: PLC0415 - an optional dependency

        data = body.encode() if isinstance(body, str) else body or b""
        request = UpstreamRequest(method, url, tuple((headers or {}).items()), data)
        seconds = timeout or _TIMEOUT_SECONDS
        sending = self._http.request(request, timeout_seconds=seconds)
        try:
            return _Reply(*asyncio.run_coroutine_threadsafe(sending, self._loop).result(seconds * 2))
        except (UpstreamError, TimeoutError) as error:
            raise TransportError(str(error)) from error
