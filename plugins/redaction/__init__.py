"""Keeps personal data and secrets from reaching a provider, and puts back into answers what placeholders stood for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

from llmproxy.api import (
    Attempt,
    Chunk,
    ConfigError,
    Document,
    Exchange,
    LLMProxyError,
    Operation,
    PluginError,
    Refused,
    Request,
    Services,
    StateKey,
    hookimpl,
)
from llmproxy.api import (
    Config as GatewayConfig,
)
from llmproxy_plugins.redaction.answers import StreamedAnswer, WholeAnswer, asks_for_json
from llmproxy_plugins.redaction.config import RedactionConfig
from llmproxy_plugins.redaction.document import Inspection, require_single_members
from llmproxy_plugins.redaction.lenses import AnswerLens, Collector, Lens, RequestLens
from llmproxy_plugins.redaction.rewriting import rewrite
from llmproxy_plugins.redaction.scanner import Found, Scanner
from llmproxy_plugins.redaction.vault import Form, Marks, Vault, hashed, masked
from llmproxy_plugins.redaction.webhook import Webhook

__all__ = ["Redaction", "RedactionConfig"]


@dataclass(slots=True)
class _Session:
    """What inspecting a request leaves for its attempts and its answer.

    Attributes:
        inspected: The request as it may be sent.
        lens: For the answer; None when there is nothing to do in it.
    """

    vault: Vault
    inspected: Document = field(default_factory=dict)
    lens: AnswerLens | None = None
    stream: StreamedAnswer | None = None


_SESSION = StateKey[_Session]("redaction.session")
# What core sets for every attempt, and no text is in.
_CORES_OWN: Final = frozenset({"model", "stream_options"})


class Redaction:
    """The plugin: requests on their way in, answers on their way back."""

    name = "redaction"
    Config = RedactionConfig
    # Masked prompts look alike: whoever looks for repeated ones has to see them as they came.
    after = ("runaway",)

    def __init__(self, config: RedactionConfig, services: Services) -> None:
        self._config = config
        self._actions = config.actions
        self._scanner = Scanner(config.rules(self._actions))
        self._answer_scanner = Scanner(config.rules(config.answers)) if config.answers else None
        # Tokens spell out a text: where something may be hidden in it, they have to go.
        self._hides_tokens = "mask" in config.answers.values() or "block" in config.answers.values()
        reversible = [name for name, action in self._actions.items() if action == "placeholder"]
        self._marks = Marks(reversible) if reversible else None
        self._hash_key = config.hash_key.get_secret_value().encode() if config.hash_key else b""
        self._webhook = Webhook(config.webhook, services) if config.webhook else None

    @hookimpl
    def register_providers(self, config: GatewayConfig) -> None:
        """Bring none; this is where the whole configuration is told.

        Raises ConfigError when answers would be kept as the client gets them, with values put back.
        """
        kept = [config.audit.bodies, *(workspace.bodies for workspace in config.workspaces.values())]
        if self._marks is not None and any(each in ("responses", "all") for each in kept):
            raise ConfigError(
                "The plugin 'redaction' puts values back into answers, and kept bodies would hold them; set the action "
                "placeholder to mask or hash, or bodies to requests or none."
            )

    # The way in

    @hookimpl
    async def pre_request(self, exchange: Exchange) -> None:
        """Replace what is found in the request, or refuse it. Raises Refused, BadRequest or Unavailable."""
        with _sealed():
            request = exchange.request
            require_single_members(request.encode(), request.document)
            session = exchange.state[_SESSION] = _Session(Vault())
            # The marks in a request of the gateway's own are those of the exchange that it is made for.
            marks = self._marks if exchange.origin is None else None
            await self._redact(exchange, session, request, request.document, marks)
            session.inspected = request.document

    @hookimpl
    async def pre_attempt(self, exchange: Exchange, attempt: Attempt) -> None:
        """Do the same to what has been added since, such as the beginning of an answer that is to be continued."""
        session = exchange.state.get(_SESSION) or _Session(Vault())
        inspected, request = session.inspected, attempt.request
        added = {
            name: value
            for name, value in request.document.items()
            if value is not inspected.get(name) and name not in _CORES_OWN
        }
        if added:
            with _sealed():
                # No mark is the client's own by now: they are those of this exchange.
                await self._redact(exchange, session, request, added, None)

    async def _redact(
        self, exchange: Exchange, session: _Session, request: Request, members: Document, marks: Marks | None
    ) -> None:
        told = await self._told(members) if self._webhook else {}
        lens = RequestLens(
            lambda text: [*self._scanner.find(text), *told.get(text, ())],
            self._actions,
            partial(self._replacement, session.vault),
            marks,
            minds_bounds=bool(told) or self._scanner.minds_bounds,
        )
        inspection = Inspection(partial(_rewritten, lens), self._config.uninspectable)
        changed = inspection.request(members)
        self._decide(exchange, lens.counts, self._actions, "in the request")
        for kind in inspection.uninspected:
            exchange.decide(self.name, f"{kind}: {self._config.uninspectable}", "cannot be inspected")
        self._refuse_blocked(lens.counts, self._actions, "request")
        for name, value in changed.items():
            request.set(name, value)
        has_answer = exchange.operation is not Operation.EMBEDDINGS
        if session.lens is None and has_answer and (session.vault or self._answer_scanner is not None):
            session.lens = AnswerLens(self._marks, session.vault, self._answer_scanner, self._config.answers, _masked)

    async def _told(self, members: Document) -> Mapping[str, Sequence[Found]]:
        collector = Collector()
        Inspection(partial(_rewritten, collector), self._config.uninspectable).request(members)
        return await self._webhook.find(list(collector.texts)) if self._webhook and collector.texts else {}

    def _replacement(self, vault: Vault, detector: str, value: str) -> str:
        action = self._actions.get(detector, "placeholder")
        if action == "placeholder":
            return vault.placeholder(detector, value)
        return hashed(detector, value, self._hash_key) if action == "hash" else masked(detector)

    # The way back

    @hookimpl
    def on_stream_chunk(self, exchange: Exchange, chunk: Chunk) -> Sequence[Chunk] | None:
        """Put values back, and deal with what the model makes up. Raises Refused."""
        session = exchange.state.get(_SESSION)
        if session is None or session.lens is None:
            return None
        with _sealed():
            stream = session.stream or StreamedAnswer(
                session.lens, hides_tokens=self._hides_tokens, is_json=asks_for_json(exchange.request.document)
            )
            session.stream = stream
            chunks = stream.chunks(chunk)
            self._judge(exchange, session.lens.counts, is_over=chunk.last)
            return chunks

    @hookimpl
    def post_response(self, exchange: Exchange) -> None:
        """Put values back, and deal with what the model made up. Raises Refused."""
        session, answer = exchange.state.get(_SESSION), exchange.answer
        if session is None or session.lens is None or answer is None or answer.stream is not None or not answer.body:
            return
        with _sealed():
            body = WholeAnswer(session.lens, hides_tokens=self._hides_tokens).body(answer.body)
            # Another answer, not this one edited: a cache may have kept it.
            exchange.answer = replace(answer, body=body)
            self._judge(exchange, session.lens.counts, is_over=True)

    def _judge(self, exchange: Exchange, counts: Counter[str], *, is_over: bool) -> None:
        is_blocked = bool(counts) and any(self._config.answers[name] == "block" for name in counts)
        if is_over or is_blocked:
            self._decide(exchange, counts, self._config.answers, "in the answer")
        self._refuse_blocked(counts, self._config.answers, "answer")

    # Both ways

    def _decide(self, exchange: Exchange, counts: Counter[str], actions: Mapping[str, str], where: str) -> None:
        for detector, count in counts.items():
            exchange.decide(self.name, f"found {detector} \N{MULTIPLICATION SIGN}{count}: {actions[detector]}", where)

    def _refuse_blocked(self, counts: Counter[str], actions: Mapping[str, str], what: str) -> None:
        blocked = [detector for detector in counts if actions[detector] == "block"]
        if not blocked:
            return
        found = ", ".join(blocked)
        remedy = "remove it and try again" if what == "request" else "ask for something else"
        raise Refused(f"The {what} holds what may not pass this gateway ({found}); {remedy}.", code="redaction_blocked")


def _rewritten(lens: Lens, text: str, form: Form, _path: object) -> str:
    return rewrite(lens, text, form)


def _masked(detector: str, _value: str) -> str:
    return masked(detector)


@contextmanager
def _sealed() -> Iterator[None]:
    """A failure without its cause: a cause may quote the text it failed on, and would be logged."""
    try:
        yield
    except LLMProxyError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever failed, the exchange ends here
        what = type(error).__name__
    else:
        return
    raise PluginError(f"The plugin 'redaction' could not inspect this and refuses it ({what}).")
