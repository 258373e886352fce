"""A detector of the operator's own, asked over HTTP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llmproxy.api import Log, Services, Unavailable, UpstreamError, UpstreamRequest
from llmproxy_plugins.redaction.config import WebhookConfig
from llmproxy_plugins.redaction.scanner import Found

_MAX_ANSWER_BYTES = 16_777_216


class _Span(BaseModel):
    """A value in a text, by its place in characters (Unicode code points)."""

    model_config = ConfigDict(strict=True)

    start: int = Field(ge=0)
    end: int = Field(ge=1)
    detector: str


class _Reply(BaseModel):
    """For each text that was sent, in order, the spans in it."""

    spans: list[list[_Span]]


class Webhook:
    """Asks for the values in a request's texts."""

    def __init__(self, config: WebhookConfig, services: Services) -> None:
        self._config = config
        self._http = services.http
        self._log: Log = services.log

    async def find(self, texts: Sequence[str]) -> Mapping[str, Sequence[Found]]:
        """What was found, by text.

        Raises Unavailable when nothing was told and `fail` is `closed`.
        """
        try:
            return _found(texts, await self._reply(texts), self._config.detectors)
        except (UpstreamError, ValueError) as error:
            # Not the error itself: a validation error quotes its input.
            self._log.warning("redaction_webhook_failed", error=type(error).__name__, fail=self._config.fail)
        if self._config.fail == "open":
            return {}
        raise Unavailable("The detector that must inspect every request does not answer; try again later.")

    async def _reply(self, texts: Sequence[str]) -> _Reply:
        headers = (("content-type", "application/json"), ("accept", "application/json"))
        request = UpstreamRequest("POST", self._config.url, headers, orjson.dumps({"texts": texts}))
        status, _, body = await self._http.request(
            request, timeout_seconds=self._config.timeout_seconds, max_body_bytes=_MAX_ANSWER_BYTES
        )
        if status != 200:
            raise ValueError(f"status {status}")
        try:
            return _Reply.model_validate_json(body)
        except ValidationError:
            raise ValueError("not the spans that were asked for") from None


def _found(texts: Sequence[str], reply: _Reply, known: Mapping[str, object]) -> Mapping[str, Sequence[Found]]:
    if len(reply.spans) != len(texts):
        raise ValueError("not one list of spans for each text")
    found: dict[str, list[Found]] = {}
    for text, spans in zip(texts, reply.spans, strict=True):
        if any(not span.start < span.end <= len(text) or span.detector not in known for span in spans):
            raise ValueError("a span that is outside of its text, or of a detector that is not configured")
        found[text] = [Found(span.start, span.end, span.detector) for span in spans]
    return found
