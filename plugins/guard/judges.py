"""Who is asked for a verdict: a webhook of the operator's own, or OpenAI's moderation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Final, Literal, Protocol, TypeVar

import orjson
from pydantic import BaseModel, ValidationError

from llmproxy.api import Document, Exchange, HTTPClient, UpstreamRequest
from llmproxy_plugins.guard.config import ModerationConfig, WebhookConfig

Model = TypeVar("Model", bound=BaseModel)

_MAX_ANSWER_BYTES: Final = 16_777_216
_JSON: Final = (("content-type", "application/json"), ("accept", "application/json"))


@dataclass(frozen=True, slots=True)
class Inquiry:
    """What is to be judged.

    Attributes:
        subject: A request, a whole answer, or what has come of a stream.
        texts: What may not go on without a verdict.
        before: Of a stream, for each text, the end of what has gone out before it.
    """

    exchange: Exchange
    subject: Literal["request", "answer", "stream"]
    texts: Sequence[str] = field(repr=False)
    before: Sequence[str] = field(default=(), repr=False)


class Verdict(BaseModel):
    """A judge's word.

    `texts` are what `replace` puts in the place of those that were judged. `reason` may quote them.
    """

    verdict: Literal["allow", "deny", "replace", "flag"]
    reason: str = ""
    texts: tuple[str, ...] = ()


class Judge(Protocol):
    """Gives verdicts."""

    async def verdict(self, inquiry: Inquiry) -> Verdict:
        """The verdict. Raises UpstreamError or ValueError when there is none, with no text in its message."""


class Webhook:
    """Asks the operator's own service."""

    def __init__(self, config: WebhookConfig, http: HTTPClient) -> None:
        self._config = config
        self._http = http
        self._headers = (*_JSON, *((name, value.get_secret_value()) for name, value in config.headers.items()))

    async def verdict(self, inquiry: Inquiry) -> Verdict:
        """What the service says."""
        exchange = inquiry.exchange
        question = {
            "subject": inquiry.subject,
            "request_id": exchange.id,
            "workspace": exchange.principal.workspace,
            "model": exchange.request.model,
            "texts": inquiry.texts,
            "before": inquiry.before,
        }
        request = UpstreamRequest("POST", self._config.url, self._headers, orjson.dumps(question))
        verdict = _validated(Verdict, await _answer(self._http, request, self._config.timeout_seconds))
        if verdict.verdict == "replace" and len(verdict.texts) != len(inquiry.texts):
            raise ValueError("not one text for each that was sent")
        return verdict


class _Result(BaseModel):
    categories: dict[str, bool | None]


class _Moderated(BaseModel):
    results: list[_Result]


class Moderation:
    """Asks OpenAI's moderation endpoint; of a stream, with what has gone out before."""

    def __init__(self, config: ModerationConfig, http: HTTPClient) -> None:
        self._config = config
        self._http = http
        self._url = f"{config.base_url.rstrip('/')}/moderations"
        self._headers = (*_JSON, ("authorization", f"Bearer {config.api_key.get_secret_value()}"))

    async def verdict(self, inquiry: Inquiry) -> Verdict:
        """Allow, or the configured action with the categories for a reason."""
        before = inquiry.before or [""] * len(inquiry.texts)
        texts = [earlier + text for earlier, text in zip(before, inquiry.texts, strict=True)]
        question: Document = {"model": self._config.model, "input": texts}
        request = UpstreamRequest("POST", self._url, self._headers, orjson.dumps(question))
        moderated = _validated(_Moderated, await _answer(self._http, request, self._config.timeout_seconds))
        if len(moderated.results) != len(texts):
            raise ValueError("not one result for each text that was sent")
        found = sorted({category for result in moderated.results for category in self._counting(result)})
        return Verdict(verdict=self._config.action, reason=", ".join(found)) if found else Verdict(verdict="allow")

    def _counting(self, result: _Result) -> Iterator[str]:
        for category, is_flagged in result.categories.items():
            if is_flagged and any(fnmatchcase(category, pattern) for pattern in self._config.categories):
                yield category


async def _answer(http: HTTPClient, request: UpstreamRequest, timeout_seconds: float) -> bytes:
    status, _, body = await http.request(request, timeout_seconds=timeout_seconds, max_body_bytes=_MAX_ANSWER_BYTES)
    if status != 200:
        raise ValueError(f"status {status}")
    return body


def _validated(model: type[Model], body: bytes) -> Model:
    try:
        return model.model_validate_json(body)
    except ValidationError:
        # Not the cause: it quotes its input.
        raise ValueError("not a verdict as it was asked for") from None
