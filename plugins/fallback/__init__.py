"""Retries, fallbacks, circuit breakers, hedges and continuations: one owner, one budget of attempts, one deadline."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from random import Random
from typing import Final

from llmproxy.api import (
    Answer,
    AnswerStream,
    Attempt,
    Commands,
    Exchange,
    Failure,
    Hedge,
    Resume,
    Retry,
    Router,
    Services,
    StateKey,
    Target,
    UpstreamError,
    UpstreamTimeout,
    hookimpl,
)
from llmproxy_plugins.fallback.choosing import Chooser
from llmproxy_plugins.fallback.config import FallbackConfig, Rules
from llmproxy_plugins.fallback.continuation import FirstLeg, LaterLeg
from llmproxy_plugins.fallback.health import Health, Result, key_of
from llmproxy_plugins.fallback.hedging import Hedging
from llmproxy_plugins.fallback.operating import TargetRoutes, targets_command
from llmproxy_plugins.fallback.sharing import SharedHealth
from llmproxy_plugins.fallback.slowness import fast_enough
from llmproxy_plugins.fallback.story import Story, ask_for_the_rest, asks_for_reasoning, can_be_told_in_parts, instruct

# The request's own fault, or nobody's: they say nothing about the target.
_NOT_THE_TARGETS: Final = frozenset(
    {
        *(Failure.INVALID_REQUEST, Failure.UNSUPPORTED, Failure.CONTEXT_LENGTH, Failure.CONTENT_POLICY),
        *(Failure.WITHHELD, Failure.SUPERSEDED),
    }
)
_NEXT: Final = StateKey[Target | None]("fallback.next")
# By the numbers of the attempts that tell them: of two that race, only one will be heard.
_STORIES: Final = StateKey[dict[int, Story]]("fallback.stories")
# The one that was cut, and is to be told to its end.
_CUT_STORY: Final = StateKey[Story]("fallback.cut_story")
# The attempts, by their numbers, that try out whether a target is back.
_PROBES: Final = StateKey[set[int]]("fallback.probes")
# The targets that were passed over already, which is said only once.
_PASSED_OVER: Final = StateKey[set[Target]]("fallback.passed_over")


class Fallback:
    """The plugin."""

    name = "fallback"
    Config = FallbackConfig
    migrations = Path(__file__).parent / "migrations"
    commands = ("targets",)

    def __init__(self, config: FallbackConfig, services: Services) -> None:
        self._config = config
        self._clock = services.clock
        self._health = Health(config.health)
        self._shared = SharedHealth(self._health, services)
        self._chooser = Chooser(config, self._health, Random())  # noqa: S311 - jitter is no secret
        self._hedging = Hedging(lambda: services.clock.now().date()) if config.has_hedges else None
        self.unused_hooks = {
            *(() if config.has_hedges else ("hedge",)),
            *(() if config.has_continuations else ("on_stream_error",)),
        }

    # Starting and stopping

    @hookimpl
    def register_routes(self, router: Router) -> None:
        """Serve what is known of the targets."""
        TargetRoutes(self._health, self._shared, self._clock).register(router)

    @hookimpl
    def register_commands(self, cli: Commands) -> None:
        """Add `llmproxy targets`."""
        cli.add_command(targets_command(cli.gateway))

    @hookimpl
    def startup(self) -> None:
        """Share health with the other workers."""
        self._shared.start()

    @hookimpl
    def shutdown(self) -> None:
        """Share it no more."""
        self._shared.stop()

    # Choosing

    @hookimpl
    def pre_request(self, exchange: Exchange) -> None:
        """Say until when there must be an answer."""
        own = exchange.started_monotonic + self._config.deadline_seconds
        exchange.deadline_monotonic = min(exchange.deadline_monotonic, own)

    @hookimpl
    def choose_provider(self, exchange: Exchange) -> Target:
        """The target that a failure led to, else the first that is well."""
        now = self._clock.monotonic()
        planned = exchange.state.get(_NEXT)
        exchange.state[_NEXT] = None
        chosen = planned or self._chooser.first_choice(exchange, now)
        self._explain(exchange, chosen, now)
        return chosen

    @hookimpl
    def pre_attempt(self, exchange: Exchange, attempt: Attempt) -> None:
        """Hold the attempt to its time, and tell a model what to do with the beginning of an answer."""
        now = self._clock.monotonic()
        if self._health.begin(key_of(attempt.target), now):
            exchange.state[_PROBES] = {*(exchange.state.get(_PROBES) or ()), attempt.number}
        rules = self._config.rules(exchange.request.model)
        seconds = rules.first_byte_seconds if attempt.request.is_stream else rules.answer_seconds
        if seconds is not None and self._chooser.alternative(exchange, attempt, now):
            attempt.timeout_seconds = min(seconds, attempt.timeout_seconds or seconds)
        takes_prefill = attempt.target.takes_prefill and not asks_for_reasoning(attempt.request)
        if _CUT_STORY in exchange.state and not takes_prefill:
            instruct(attempt.request)

    @hookimpl
    def hedge(self, exchange: Exchange, attempt: Attempt) -> Hedge | None:
        """A second attempt beside one that turns out to be slow, where the operator wants that."""
        rules = self._config.rules(exchange.request.model).hedge if self._hedging else None
        if rules is None or self._hedging is None:
            return None
        return self._hedging.hedge(exchange, attempt, rules, partial(self._elsewhere, exchange, attempt))

    @hookimpl
    def on_error(self, exchange: Exchange, attempt: Attempt, error: UpstreamError) -> Retry:
        """Another attempt, as long as there are any left and one can help. Raises the most telling error when not."""
        now = self._clock.monotonic()
        following = self._chooser.after(exchange, attempt, error, now)
        if following is None:
            raise self._chooser.most_telling(exchange, now)
        exchange.state[_NEXT] = following.target
        exchange.decide(self.name, f"next is {following.target.name}", f"attempt {attempt.number}: {error.failure}")
        return Retry(following.after_seconds)

    # Answers

    @hookimpl
    async def on_answer(self, exchange: Exchange, attempt: Attempt, answer: Answer) -> Answer | None:
        """See whether a stream is fast enough, and keep what another attempt would have to know to go on with it."""
        if _is_probe(exchange, attempt):
            self._learn(attempt, None)
        if answer.stream is None:
            return None
        rules = self._config.rules(exchange.request.model)
        answer.stream = await self._held(exchange, attempt, answer.stream, rules)
        if rules.stream_failure == "continue" and can_be_told_in_parts(exchange.request):
            answer.stream = _kept(exchange, attempt, answer.stream)
        return answer

    @hookimpl
    def on_stream_error(self, exchange: Exchange, attempt: Attempt, error: UpstreamError) -> Resume | None:
        """Have another attempt tell the rest, where the operator wants that and it can be done without a seam."""
        story = (exchange.state.get(_STORIES) or {}).get(attempt.number)
        if story is None:
            return None
        if why_not := self._obstacle(exchange, story, error):
            exchange.decide(self.name, "did not continue the stream", why_not)
            return None
        story.cut(attempt.usage)
        exchange.state[_CUT_STORY] = story
        # What comes now is waited for anew; only the client's own patience is an end that nothing moves.
        own = self._clock.monotonic() + self._config.deadline_seconds
        exchange.deadline_monotonic = min(exchange.expires_monotonic, own)
        exchange.decide(self.name, "continues the stream", f"{error.failure} after {len(story.text)} characters")
        return ask_for_the_rest(exchange, story)

    # Health

    @hookimpl
    def post_attempt(self, exchange: Exchange, attempt: Attempt) -> None:
        """Learn from how an attempt ended."""
        if _is_probe(exchange, attempt):
            self._health.end_probe(key_of(attempt.target))
        error = attempt.error
        if self._says_something(exchange, attempt):
            self._learn(attempt, error if isinstance(error, UpstreamError) else None)
        rules = self._config.rules(exchange.request.model).hedge if self._hedging else None
        if self._hedging is not None and rules is not None:
            self._hedging.learn(exchange, attempt, rules)

    # Small print

    def _elsewhere(self, exchange: Exchange, attempt: Attempt) -> Target | None:
        return self._chooser.alternative(exchange, attempt, self._clock.monotonic())

    def _explain(self, exchange: Exchange, chosen: Target, now: float) -> None:
        said = exchange.state.get(_PASSED_OVER) or set()
        for target in self._chooser.cooling_before(exchange, chosen, now):
            cool_down = self._health.cool_down(key_of(target))
            if target not in said and cool_down is not None:
                left_seconds = max(cool_down.until - now, 0)
                exchange.decide(
                    self.name, f"skipped {key_of(target).name}", f"{left_seconds:.0f} s left: {cool_down.reason}"
                )
                exchange.state[_PASSED_OVER] = said = {*said, target}

    async def _held(self, exchange: Exchange, attempt: Attempt, stream: AnswerStream, rules: Rules) -> AnswerStream:
        """The stream, once it is known not to crawl; at once where nobody asks, or no other target could do better."""
        if rules.min_tokens_per_second is None or attempt.progress is None:
            return stream
        if self._elsewhere(exchange, attempt) is None:
            return stream
        return await fast_enough(
            stream,
            attempt.progress,
            self._clock,
            tokens_per_second=rules.min_tokens_per_second,
            window_seconds=rules.slow_stream_window_seconds,
        )

    def _obstacle(self, exchange: Exchange, story: Story, error: UpstreamError) -> str | None:
        if len(exchange.attempts) >= self._config.attempts:
            return "all attempts were made"
        if error.failure not in self._config.fallback_on:
            return f"nothing follows on {error.failure}"
        if self._clock.monotonic() >= exchange.expires_monotonic:
            return "the client's time is over"
        return story.obstacle

    def _says_something(self, exchange: Exchange, attempt: Attempt) -> bool:
        """Whether how an attempt ended says anything about its target."""
        error = attempt.error
        if error is None:
            # Without an answer it was given up before anything was sent.
            return attempt.first_chunk_seconds is not None
        if not isinstance(error, UpstreamError) or error.failure in _NOT_THE_TARGETS:
            return False
        is_out_of_time = self._clock.monotonic() >= exchange.deadline_monotonic
        # It had what the attempts before it had left, or what the client allowed: not a fair trial.
        return not (is_out_of_time and isinstance(error, UpstreamTimeout) and error.phase == "total")

    def _learn(self, attempt: Attempt, error: UpstreamError | None) -> None:
        key = key_of(attempt.target)
        result = Result(
            attempt.started_monotonic,
            self._clock.monotonic(),
            error.failure if error else None,
            error.retry_after_seconds if error else None,
        )
        if self._health.learn(key, result):
            self._shared.changed(key)


def _kept(exchange: Exchange, attempt: Attempt, stream: AnswerStream) -> AnswerStream:
    """The stream, and what it says is kept as long as another attempt may have to go on with it."""
    cut = exchange.state.get(_CUT_STORY)
    story = cut or Story()
    stories = exchange.state.get(_STORIES) or {}
    exchange.state[_STORIES] = {**stories, attempt.number: story}
    return LaterLeg(stream, cut) if cut else FirstLeg(stream, story)


def _is_probe(exchange: Exchange, attempt: Attempt) -> bool:
    return attempt.number in (exchange.state.get(_PROBES) or ())
