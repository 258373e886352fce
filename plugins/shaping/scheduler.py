"""Whose turn it is at a vendor's account: fair queueing, without I/O or a clock of its own.

Start-time fair queueing on two levels: workspaces share an account by their weights, and features share what their
workspace gets. Whoever sends more than that waits for itself: a burst delays nobody else by more than a request.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from math import inf
from typing import Final, Generic, TypeVar

from llmproxy_plugins.shaping.capacity import Capacity

K = TypeVar("K")

# Who comes after a pause may be so many requests ahead of their share.
HEAD_START_REQUESTS: Final = 4
_REMEMBERED: Final = 1000


@dataclass(slots=True, eq=False)
class Ticket:
    """One request's place in the queue.

    Attributes:
        cost_seconds: For how long the whole account would be busy with it.
        position: How many of its own feature's requests, it included, waited when it came.
        started_at: When it was let go on; None as long as it waits.
    """

    workspace: str
    feature: str
    tokens: float
    arrived_at: float
    deadline: float = inf
    weight: float = 1.0
    feature_weight: float = 1.0
    priority: int = 0
    cost_seconds: float = 0.0
    position: int = 0
    started_at: float | None = None
    is_over: bool = False


class Turns(Generic[K]):
    """Among those who wait, the one that has had least of its share."""

    def __init__(self) -> None:
        self._virtual = 0.0
        self._starts: dict[K, float] = {}
        self._finishes: dict[K, float] = {}

    def __contains__(self, key: K) -> bool:
        return key in self._starts

    def __bool__(self) -> bool:
        return bool(self._starts)

    def join(self, key: K, head_start: float) -> None:
        """Begin to wait. Nothing is saved up in a pause but the head start."""
        if key not in self._starts:
            self._starts[key] = max(self._finishes.get(key, -inf), self._virtual - head_start)
            if len(self._finishes) > _REMEMBERED:
                earliest = self._virtual - head_start
                self._finishes = {each: finish for each, finish in self._finishes.items() if finish > earliest}

    def leave(self, key: K) -> None:
        """Cease to wait."""
        del self._starts[key]

    def next(self) -> K:
        """Whose turn it is."""
        return min(self._starts, key=self._starts.__getitem__)

    def charge(self, key: K, cost: float) -> None:
        """Have somebody who waits pay for their turn: their cost, divided by their weight."""
        start = self._starts[key]
        self._virtual = max(self._virtual, start)
        self._starts[key] = self._finishes[key] = start + cost

    def correct(self, key: K, difference: float) -> None:
        """Have somebody pay so much more, or less, for a turn they have had."""
        if key in self._finishes:
            self._finishes[key] += difference
        if key in self._starts:
            self._starts[key] += difference


@dataclass(slots=True)
class _Lane:
    """The requests of one feature that wait."""

    weight: float
    waiting: deque[Ticket] = field(default_factory=deque)
    cost_seconds: float = 0.0


@dataclass(slots=True)
class _Tenant:
    """The features of one workspace that have requests waiting."""

    weight: float
    turns: Turns[str] = field(default_factory=Turns)
    lanes: dict[str, _Lane] = field(default_factory=dict)

    @property
    def length(self) -> int:
        return sum(len(lane.waiting) for lane in self.lanes.values())


@dataclass(slots=True)
class _Tier:
    """The workspaces that have requests of one priority waiting; those that had some are remembered for their turns."""

    turns: Turns[str] = field(default_factory=Turns)
    tenants: dict[str, _Tenant] = field(default_factory=dict)


class Scheduler:
    """The queue at one account.

    Args:
        max_queue: How many requests of one workspace may wait.
    """

    def __init__(self, capacity: Capacity, max_queue: int) -> None:
        self.capacity: Final = capacity
        self._max_queue = max_queue
        self._tiers: dict[int, _Tier] = {}
        self._deadlines: list[tuple[float, int, Ticket]] = []
        self._arrivals = count()
        self._mean_cost_seconds = 0.0
        self.waiting = 0

    def enqueue(self, ticket: Ticket) -> Ticket | None:
        """Have a request wait, and say whom there is no room for any more: of the longest queue of the workspace."""
        ticket.cost_seconds = self.capacity.cost_seconds(ticket.tokens)
        self._mean_cost_seconds += (ticket.cost_seconds - self._mean_cost_seconds) / 16
        tier = self._tiers.setdefault(ticket.priority, _Tier())
        tenant = tier.tenants.setdefault(ticket.workspace, _Tenant(ticket.weight))
        tenant.weight = ticket.weight
        lane = tenant.lanes.setdefault(ticket.feature, _Lane(ticket.feature_weight))
        head_start = HEAD_START_REQUESTS * self._mean_cost_seconds
        tier.turns.join(ticket.workspace, head_start / ticket.weight)
        tenant.turns.join(ticket.feature, head_start / ticket.feature_weight)
        lane.waiting.append(ticket)
        lane.cost_seconds += ticket.cost_seconds
        ticket.position = len(lane.waiting)
        self.waiting += 1
        if ticket.deadline < inf:
            heapq.heappush(self._deadlines, (ticket.deadline, next(self._arrivals), ticket))
        if tenant.length <= self._max_queue:
            return None
        longest = max(tenant.lanes.values(), key=lambda each: len(each.waiting)).waiting
        # The one that came last, if it is among the longest itself.
        victim = ticket if len(lane.waiting) == len(longest) else longest[-1]
        self._remove(victim)
        return victim

    def start(self, now: float) -> Sequence[Ticket]:
        """Those who may go on now, in their order."""
        started = []
        while (found := self._next()) is not None:
            tier, ticket = found
            if self.capacity.ready_at(ticket.tokens, now) > now:
                break
            tenant = tier.tenants[ticket.workspace]
            tier.turns.charge(ticket.workspace, ticket.cost_seconds / ticket.weight)
            tenant.turns.charge(ticket.feature, ticket.cost_seconds / ticket.feature_weight)
            ticket.started_at = now
            self._remove(ticket)
            self.capacity.take(ticket.tokens, now)
            started.append(ticket)
        return started

    def withdraw(self, ticket: Ticket) -> None:
        """Have a request not wait any longer."""
        if ticket.started_at is None and not ticket.is_over:
            self._remove(ticket)

    def finish(self, ticket: Ticket, tokens: float, now: float) -> None:
        """A request that had started is over, and has taken so many tokens."""
        if ticket.is_over or ticket.started_at is None:
            return
        ticket.is_over = True
        self.capacity.give_back(ticket.tokens - tokens, now - ticket.started_at, now)
        tier = self._tiers[ticket.priority]
        difference = self.capacity.cost_seconds(tokens) - self.capacity.cost_seconds(ticket.tokens)
        tier.turns.correct(ticket.workspace, difference / ticket.weight)
        tier.tenants[ticket.workspace].turns.correct(ticket.feature, difference / ticket.feature_weight)

    def expire(self, now: float) -> Sequence[Ticket]:
        """Those who have waited as long as they may, and do not wait any longer."""
        expired = []
        while self._deadlines and self._deadlines[0][0] <= now:
            ticket = heapq.heappop(self._deadlines)[-1]
            if ticket.started_at is None and not ticket.is_over:
                self._remove(ticket)
                expired.append(ticket)
        return expired

    def next_at(self, now: float) -> float:
        """When somebody may go on, or has waited too long, if nothing happens before; infinity for never."""
        while self._deadlines and (self._deadlines[0][-1].is_over or self._deadlines[0][-1].started_at is not None):
            heapq.heappop(self._deadlines)
        deadline = self._deadlines[0][0] if self._deadlines else inf
        found = self._next()
        return min(deadline, self.capacity.ready_at(found[1].tokens, now)) if found else inf

    def expected_wait_seconds(self, ticket: Ticket) -> float:
        """About how long a request that waits will wait, as those stand that wait now."""
        tier = self._tiers[ticket.priority]
        tenant = tier.tenants[ticket.workspace]
        lane = tenant.lanes[ticket.feature]
        tenants = sum(each.weight for name, each in tier.tenants.items() if name in tier.turns)
        lanes = sum(each.weight for each in tenant.lanes.values())
        return lane.cost_seconds * (tenants / tenant.weight) * (lanes / lane.weight)

    def _next(self) -> tuple[_Tier, Ticket] | None:
        waiting = [priority for priority, tier in self._tiers.items() if tier.turns]
        if not waiting:
            return None
        tier = self._tiers[max(waiting)]
        tenant = tier.tenants[tier.turns.next()]
        return tier, tenant.lanes[tenant.turns.next()].waiting[0]

    def _remove(self, ticket: Ticket) -> None:
        tier = self._tiers[ticket.priority]
        tenant = tier.tenants[ticket.workspace]
        lane = tenant.lanes[ticket.feature]
        if lane.waiting[0] is ticket:
            lane.waiting.popleft()
        elif lane.waiting[-1] is ticket:
            lane.waiting.pop()
        else:
            lane.waiting.remove(ticket)
        lane.cost_seconds -= ticket.cost_seconds
        self.waiting -= 1
        if not lane.waiting:
            tenant.turns.leave(ticket.feature)
            del tenant.lanes[ticket.feature]
        if not tenant.lanes:
            tier.turns.leave(ticket.workspace)
        if ticket.started_at is None:
            ticket.is_over = True
