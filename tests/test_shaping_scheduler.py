"""Whose turn it is: fair shares, bounded queues and the vendor's limits, simulated in a time that is only counted."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from math import inf
from random import Random
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmproxy_plugins.shaping.capacity import Capacity
from llmproxy_plugins.shaping.scheduler import HEAD_START_REQUESTS, Scheduler, Ticket


class Arrival(NamedTuple):
    """A request that comes."""

    at: float
    workspace: str
    feature: str = ""
    tokens: float = 0
    weight: float = 1
    priority: int = 0


@dataclass
class Run:
    """What came of requests: when each workspace's were started, how long they had waited, who was pushed out."""

    waits: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    starts: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))
    pushed_out: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    most_running: int = 0

    def p95(self, workspace: str) -> float:
        """The wait that one request in twenty exceeds."""
        waits = sorted(self.waits[workspace])
        return waits[int(0.95 * len(waits))]


def simulate(
    arrivals: Sequence[Arrival], capacity: Capacity, *, lasts: float = 0.0, until: float = inf, max_queue: int = 1000
) -> Run:
    """Play requests against a scheduler, each of which lasts so long once it has started."""
    scheduler, run, number = Scheduler(capacity, max_queue), Run(), count()
    events: list[tuple[float, int, Arrival | Ticket | None]] = [(each.at, next(number), each) for each in arrivals]
    heapq.heapify(events)
    alarm = inf
    while events:
        now, _, event = heapq.heappop(events)
        if now > until:
            break
        if isinstance(event, Arrival):
            at, workspace, feature, tokens, weight, priority = event
            ticket = Ticket(workspace, feature, tokens, at, weight=weight, priority=priority)
            if (victim := scheduler.enqueue(ticket)) is not None:
                run.pushed_out[victim.workspace] += 1
        elif event is not None:
            scheduler.finish(event, event.tokens, now)
        for ticket in scheduler.start(now):
            run.waits[ticket.workspace].append(now - ticket.arrived_at)
            run.starts[ticket.workspace].append((now, ticket.tokens))
            heapq.heappush(events, (now + lasts, next(number), ticket))
        run.most_running = max(run.most_running, capacity.running)
        if event is None:
            alarm = inf
        if (wakes_at := scheduler.next_at(now)) < alarm:
            alarm = wakes_at
            heapq.heappush(events, (wakes_at, next(number), None))
    return run


def flood(per_second: float, seconds: float, workspace: str = "noisy") -> list[Arrival]:
    """One workspace that sends at a steady pace."""
    return [Arrival(number / per_second, workspace) for number in range(int(per_second * seconds))]


def bursts(size: int, every_seconds: float, seconds: float) -> list[Arrival]:
    """A workspace that sends some requests at once, again and again."""
    times = [number * every_seconds + 0.013 for number in range(int(seconds / every_seconds))]
    return [Arrival(at, "quiet") for at in times for _ in range(size)]


def poisson(per_second: float, seconds: float, seed: int) -> list[Arrival]:
    """A workspace that sends by chance."""
    random, at, found = Random(seed), 0.0, []  # noqa: S311 - chance for a test, not for a secret
    while (at := at + random.expovariate(per_second)) < seconds:
        found.append(Arrival(at, "quiet"))
    return found


def paced() -> Capacity:
    """Ten requests a second, of which each of two gets five."""
    return Capacity(600, None, None, 0.1)


def slots() -> Capacity:
    """Four at the same time; when each lasts 0.4 seconds, ten a second as well."""
    return Capacity(None, None, 4, 1)


@pytest.mark.parametrize(
    "quiet",
    [bursts(5, 2, 60), bursts(10, 4, 60), bursts(20, 8, 120)],
    ids=["bursts of 5", "bursts of 10", "bursts of 20"],
)
@pytest.mark.parametrize(("make", "lasts"), [(paced, 0.0), (slots, 0.4)], ids=["pace", "slots"])
def test_a_flood_delays_only_itself(quiet: list[Arrival], make: Callable[[], Capacity], lasts: float) -> None:
    """Beside one that sends fifty times its share, another's p95 wait is at most twice what it is alone."""
    seconds = quiet[-1].at + 5
    alone = simulate(quiet, make(), lasts=lasts).p95("quiet")
    beside = simulate([*quiet, *flood(50 * 5, seconds)], make(), lasts=lasts, until=seconds)
    assert len(beside.waits["quiet"]) == len(quiet)
    assert 0 < beside.p95("quiet") <= 2 * alone
    assert beside.pushed_out.keys() == {"noisy"}
    # And nothing of the account lies idle for it.
    assert sum(map(len, beside.waits.values())) >= 0.98 * 10 * seconds


@pytest.mark.parametrize(
    ("make", "turn_seconds", "lasts"), [(paced, 0.1, 0.0), (slots, 0.4, 0.4)], ids=["pace", "slots"]
)
def test_who_never_waits_alone_waits_for_one_turn(
    make: Callable[[], Capacity], turn_seconds: float, lasts: float
) -> None:
    """Where there is hardly any wait alone, it is for the request that has just begun."""
    quiet = poisson(2.5, 120, seed=2)
    alone = simulate(quiet, make(), lasts=lasts).p95("quiet")
    beside = simulate([*quiet, *flood(50 * 5, 120)], make(), lasts=lasts, until=125).p95("quiet")
    assert beside <= 2 * alone + turn_seconds


def test_weights_divide_the_account() -> None:
    """Those who always want more get what their weights say."""
    crowd = [
        each._replace(workspace=name, weight=weight) for name, weight in (("a", 1), ("b", 3)) for each in flood(40, 30)
    ]
    run = simulate(crowd, paced(), until=20)
    assert len(run.waits["b"]) == pytest.approx(3 * len(run.waits["a"]), rel=0.1)


def test_features_share_what_their_workspace_gets() -> None:
    """A workspace gets no more for calling what it does by many names."""
    many = [each._replace(feature=str(number % 50)) for number, each in enumerate(flood(40, 30, "many"))]
    run = simulate([*many, *flood(40, 30, "one")], paced(), until=20)
    assert len(run.waits["many"]) == pytest.approx(len(run.waits["one"]), rel=0.1)


def test_a_higher_priority_goes_first() -> None:
    """Whatever the weights, who has a higher priority does not wait for who has a lower one."""
    urgent = [each._replace(workspace="urgent", priority=1) for each in bursts(3, 2, 20)]
    run = simulate([*urgent, *[each._replace(weight=100) for each in flood(250, 20)]], paced(), until=20)
    assert max(run.waits["urgent"]) < 0.31


def test_costly_requests_use_up_more_of_a_share() -> None:
    """Where tokens are what is short, who sends long requests gets fewer of them through."""
    capacity = Capacity(None, 60_000, None, 1)
    long = [each._replace(tokens=400) for each in flood(20, 60, "long")]
    short = [each._replace(tokens=100) for each in flood(20, 60, "short")]
    run = simulate([*long, *short], capacity, until=40)
    tokens = {name: sum(amount for _, amount in starts) for name, starts in run.starts.items()}
    assert tokens["long"] == pytest.approx(tokens["short"], rel=0.1)


def test_nothing_is_saved_up_in_a_pause() -> None:
    """Who comes late has a small head start, and no claim on the time before."""
    late = [each._replace(at=each.at + 20) for each in flood(40, 10, "late")]
    run = simulate([*flood(40, 30), *late], paced(), until=30)
    assert len(run.waits["late"]) <= 50 + HEAD_START_REQUESTS + 1


def test_the_longest_queue_of_a_workspace_gives_way() -> None:
    """When a workspace's queue is full, the feature that filled it loses its last, not whoever comes then."""
    scheduler = Scheduler(Capacity(None, None, 1, 1), 3)
    tickets = [Ticket("a", "batch", 0, 0.0) for _ in range(4)]
    assert [scheduler.enqueue(each) for each in tickets[:3]] == [None] * 3
    assert scheduler.enqueue(tickets[3]) is tickets[3]
    chat = Ticket("a", "chat", 0, 0.0)
    assert scheduler.enqueue(chat) is tickets[2]
    assert scheduler.enqueue(Ticket("b", "", 0, 0.0)) is None
    assert scheduler.waiting == 4


def test_who_has_waited_as_long_as_they_may_leaves() -> None:
    """A deadline is kept while nothing else happens, and takes nothing with it."""
    scheduler = Scheduler(Capacity(None, None, 1, 1), 10)
    first, second, third = (Ticket("a", "", 0, 0.0, deadline=deadline) for deadline in (inf, 5.0, 9.0))
    for ticket in (first, second, third):
        scheduler.enqueue(ticket)
    assert scheduler.start(0) == [first]
    assert scheduler.next_at(0) == 5
    assert scheduler.expire(5) == [second]
    scheduler.finish(first, 0, 6)
    assert scheduler.start(6) == [third]
    assert scheduler.next_at(6) == inf


def test_the_wait_is_foreseen() -> None:
    """What stands before one of one's own kind, by the share one has of the account."""
    scheduler = Scheduler(paced(), 100)
    tickets = [Ticket(workspace, "", 0, 0.0) for workspace in "ab" for _ in range(10)]
    for ticket in tickets:
        scheduler.enqueue(ticket)
    assert scheduler.expected_wait_seconds(tickets[-1]) == pytest.approx(2.0)


def test_workers_divide_an_account() -> None:
    """The parts of all workers are the whole, as long as each can have one request at a time."""
    parts = []
    for rank in range(3):
        capacity = Capacity(600, 60_000, 8, 1)
        capacity.divide(3, rank)
        scheduler = Scheduler(capacity, 100)
        for _ in range(20):
            scheduler.enqueue(Ticket("a", "", 1, 0.0))
        parts.append(len([*scheduler.start(0), *scheduler.start(60)]))
    assert parts == [3, 3, 2]


ARRIVALS = st.lists(
    st.builds(
        Arrival,
        at=st.floats(0, 100),
        workspace=st.sampled_from("abc"),
        feature=st.sampled_from("xy"),
        tokens=st.integers(0, 3000),
        weight=st.sampled_from([0.5, 1, 4]),
        priority=st.sampled_from([0, 1]),
    ),
    max_size=80,
)


@settings(max_examples=60, deadline=None)
@given(arrivals=ARRIVALS, lasts=st.floats(0, 30), max_queue=st.sampled_from([2, 1000]))
def test_never_more_than_the_account_allows(arrivals: list[Arrival], lasts: float, max_queue: int) -> None:
    """Whoever comes when: pace, tokens and slots hold, and everybody is let go on or pushed out, once."""
    capacity = Capacity(60, 60_000, 5, 2)
    run = simulate(arrivals, capacity, lasts=lasts, max_queue=max_queue)
    assert sum(map(len, run.waits.values())) + sum(run.pushed_out.values()) == len(arrivals)
    assert run.most_running <= 5
    assert capacity.running == 0
    starts = sorted(start for each in run.starts.values() for start in each)
    for first, (since, _) in enumerate(starts):
        for last in range(first, len(starts)):
            seconds = starts[last][0] - since
            assert last - first + 1 <= 2 + seconds + 1e-6
            # The last may be larger than what is left, and leaves a debt.
            assert sum(tokens for _, tokens in starts[first:last]) <= 2000 + 1000 * seconds + 1e-3
