"""Every hook, in life-cycle order. The docstring of each is its manual; `docs/hooks.md` is made from it.

Plugins run in the order of `plugins:` in the configuration; on the way back (`on_stream_chunk`,
`post_response`, `on_complete`) and in `shutdown` inside-out, the last plugin first. `tryfirst=True` and
`trylast=True` move a plugin's part ahead of, or behind, all that do not ask for it; use them only where any
other place would be a bug.

A hook may leave out arguments that it does not need. It may be `def` or `async def`, except where its manual
says plain `def`. With `wrapper=True` it is a plain generator around all the others, with one `yield` that gives
their result or raises their error; hooks of kind "all" and "first result" take wrappers, unless they must be a
plain `def`. A cancelled request stays cancelled, whatever a wrapper does.

Failing closed means: what a plugin raises ends the request. An LLMProxyError is the plugin's own word to the
client and is answered as it is; anything else, and a result that the hook does not allow, is answered with 500
naming the plugin.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from datetime import datetime

    from llmproxy.claims import Claim
    from llmproxy.config import Config
    from llmproxy.errors import UpstreamError
    from llmproxy.exchange import Answer, Attempt, Chunk, Exchange, Hedge, Principal, Resume, Retry, Target
    from llmproxy.providers import Provider
    from llmproxy.services import Commands, Router, Services

hookspec = pluggy.HookspecMarker("llmproxy")
hookimpl = pluggy.HookimplMarker("llmproxy")


# Starting and stopping


@hookspec
def register_providers(config: Config) -> Sequence[type[Provider]] | None:
    """Add provider kinds, by returning their classes.

    When: once at start and at each reload, before provider sections are validated. Must be a plain `def`.
    Returns: the classes, or None for none. Two plugins that bring the same kind are an error.
    Failure: the start, or the reload, is refused.
    """
    raise AssertionError


@hookspec
def register_routes(router: Router) -> None:
    """Add HTTP routes under `/plugins/<name>/` or of the plugin's own, through `router.add`.

    When: once at start and at each reload. Must be a plain `def`.
    Failure: the start, or the reload, is refused; so is a path that core or another plugin has.
    """
    raise AssertionError


@hookspec
def register_commands(cli: Commands) -> None:
    """Add commands to the `llmproxy` command line, through `cli.add_command` (a click group).

    When: when the command line starts and a configuration enables the plugin; nothing else is running then.
    Must be a plain `def`. A command that has to ask the gateway that serves does so with `cli.gateway.ask`. Name the
    commands in the class attribute `commands`, so that people learn what to enable.
    Failure: the command line stops with the error.
    """
    raise AssertionError


@hookspec
def startup(services: Services) -> None:
    """Open what the plugin needs: load state, start background work.

    When: in each worker, once its event loop and database are there, before the first request.
    Failure: the start, or the reload, is refused, and the plugins that had started are shut down.
    """
    raise AssertionError


@hookspec
def shutdown(services: Services) -> None:
    """Close what `startup` opened.

    When: in each worker, after its last exchange has ended; after a reload, once the old plugin has none left.
    Failure: isolated: logged and counted, the others still run.
    Order: inside-out, the last plugin of the configuration first.
    """
    raise AssertionError


# The way in


@hookspec(firstresult=True)
def authenticate(exchange: Exchange) -> Principal | None:
    """Say who is asking, from `exchange.headers`.

    When: first, before the body has been read: `principal`, `attribution` and `request` are unset.
    Returns: the Principal, which stops the search; None leaves it to the next plugin, and at last to core's
    virtual keys. Refuse by raising Unauthenticated.
    Failure: fails closed: the request is answered with 500.
    """
    raise AssertionError


@hookspec
def claims(exchange: Exchange, target: Target | None, at: datetime) -> Claim | None:
    """Say what a request is held to, or with a target what an attempt there is: a Claim on allowances.

    When: before `pre_request` for a client's request, without a target, and after `pre_attempt` for every attempt; but
    only once for all that are alike in the plugin's `claim_scopes`, as long as the Claim holds. `at` is now; the
    request was let in at `exchange.admitted_at`. Must be a plain `def`. After `services.quotas.renew_claims()` it is
    asked anew.
    Returns: the Claim; None for none. What all plugins claim is reserved together, or not at all, before it goes on,
    and settled when the attempt, or the exchange, has ended.
    Failure: fails closed: the request is answered with 500.
    """
    raise AssertionError


@hookspec(firstresult=True)
def pre_request(exchange: Exchange) -> Answer | None:
    """Look at the request, edit it (`exchange.request.set`), refuse it by raising, or answer it.

    When: once, after the request was let in; `request`, `principal`, `attribution` and `candidates` are filled.
    Returns: an Answer, which skips later plugins and every upstream; None to go on.
    Failure: fails closed: the request is answered with 500.
    Order: guards and budgets stand before caches, for an early answer skips what comes later.
    """
    raise AssertionError


@hookspec
def narrow_targets(exchange: Exchange, targets: Sequence[Target]) -> Sequence[Target] | None:
    """Say which of `targets` may be used. Core never goes outside what is left, whatever fails.

    When: once, after `pre_request`; each plugin gets what the one before it left.
    Returns: the remaining targets, in order of preference; None leaves them as they are. When none is left, the
    request is refused. A target that was not handed in is an error.
    Failure: fails closed: the request is answered with 500.
    """
    raise AssertionError


@hookspec(firstresult=True)
def choose_provider(exchange: Exchange) -> Target | None:
    """Choose the target of the next attempt from `exchange.targets`.

    When: before every attempt but a hedge's; earlier ones stand in `exchange.attempts`.
    Returns: one of the remaining targets; None leaves it to the next plugin, and at last to core, which takes
    the first target in order that has not been tried.
    Failure: fails closed: the request is answered with 500.
    """
    raise AssertionError


@hookspec
def pre_attempt(exchange: Exchange, attempt: Attempt) -> None:
    """See, and if need be edit, what one attempt will send (`attempt.request.set`).

    When: before every attempt. `attempt.request` is rebuilt from the client's request each time. What waits here waits
    within the exchange's deadline. An UpstreamError raised here is the attempt's failure.
    Failure: fails closed: the request is answered with 500.
    """
    raise AssertionError


@hookspec(firstresult=True)
def hedge(exchange: Exchange, attempt: Attempt) -> Hedge | None:
    """Have a second attempt begin elsewhere when this one is slow: the first answer wins, the other is given up.

    When: as an attempt begins, unless it is a hedge itself. Must be a plain `def`.
    Returns: a Hedge with one of `exchange.targets`; None for none.
    Failure: fails closed: the request is answered with 500.
    """
    raise AssertionError


@hookspec
def on_answer(exchange: Exchange, attempt: Attempt, answer: Answer) -> Answer | None:
    """See a provider's answer before any of it goes out; replace it, or put a stream of your own around its stream.

    When: once for each attempt that brought an answer, whole or, for a stream, with its first content.
    `on_stream_chunk` and `post_response` come later. A stream that is put around another passes bytes on: nothing is
    decoded for it.
    Returns: the Answer to go on with; None leaves it as it is. Each plugin gets what the one before it made of it.
    Failure: fails closed; but an UpstreamError is the attempt's failure, as if the provider had sent no answer.
    Order: inside-out, the last plugin of the configuration first.
    """
    raise AssertionError


@hookspec
def post_attempt(exchange: Exchange, attempt: Attempt) -> None:
    """Take note of how an attempt ended: whole, as a stream that has ended, failed, given up or cut off.

    When: exactly once for every attempt, when nothing more comes of it. `attempt.error`, `usage`, `cost` and
    `duration_seconds` are filled. Must be a plain `def`.
    Failure: isolated: logged and counted, the others still run.
    Order: inside-out, the last plugin of the configuration first.
    """
    raise AssertionError


@hookspec(firstresult=True)
def on_error(exchange: Exchange, attempt: Attempt, error: UpstreamError) -> Retry | Answer | None:
    """Say what follows when an attempt failed before anything reached the client.

    When: after each failed attempt; `error.failure` classifies it.
    Returns: Retry to try again (after `after_seconds`), an Answer to serve instead, None to give up with this error;
    raise another attempt's error to give up with that one. The loop, its limit of attempts and its deadline are core's.
    Failure: fails closed: the request is answered with 500.
    """
    raise AssertionError


# The way back


@hookspec
def on_stream_chunk(exchange: Exchange, chunk: Chunk) -> Sequence[Chunk] | None:
    """See, change, multiply or swallow one event of a streamed answer.

    When: for each event, and once more after the last with `chunk.last` set, to flush what was held back.
    Must be a plain `def`: no I/O here. A stream that no plugin listens to is not decoded.
    Returns: None leaves the chunk as it is; chunks replace it; an empty sequence swallows it. The next plugin gets
    each chunk that this one let out, and its own last call after all of them.
    Failure: fails closed: the stream ends with an error event.
    Order: inside-out, the last plugin of the configuration first.
    """
    raise AssertionError


@hookspec(firstresult=True)
def on_stream_error(exchange: Exchange, attempt: Attempt, error: UpstreamError) -> Resume | None:
    """Say how a stream goes on that was cut after the client had part of it.

    When: when a provider's stream fails after its first content.
    Returns: a Resume, whose request core makes attempts with as with the client's own; what their stream brings follows
    what the client has. None ends the stream with an error event.
    Failure: fails closed: the stream ends with an error event.
    """
    raise AssertionError


@hookspec
def post_response(exchange: Exchange) -> None:
    """See a complete answer; a non-streamed one may still be replaced (`exchange.answer`).

    When: once per complete answer: before a non-streamed one is sent, after a streamed one has ended. `usage`
    is filled.
    Failure: fails closed: a non-streamed answer is replaced by a 500; after a stream it is logged.
    Order: inside-out, the last plugin of the configuration first.
    """
    raise AssertionError


@hookspec
def on_response_head(exchange: Exchange) -> None:
    """Have the head of the response say something (`exchange.response_headers`).

    When: once for every exchange that was let in and whose client is still there, right before the head of its response
    goes out, be it an answer's, a stream's or a refusal's; of a whole answer everything is known by then. Must be a
    plain `def`.
    Failure: isolated: logged and counted, the others still run.
    Order: inside-out, the last plugin of the configuration first.
    """
    raise AssertionError


@hookspec
def on_complete(exchange: Exchange) -> None:
    """Take note of how it ended: success, refusal, failure or hang-up.

    When: exactly once for every exchange that was let in, after its record was written; the client may already
    be gone. Everything is filled.
    Failure: isolated: logged and counted, the others still run.
    Order: inside-out, the last plugin of the configuration first.
    """
    raise AssertionError
