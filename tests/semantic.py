"""For the tests of the semantic cache: an embedding that is made up, and an upstream that answers questions by it."""

from __future__ import annotations

import asyncio
import json
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final, NamedTuple

from llmproxy.migrate import Component, core_component
from llmproxy.services import Row
from llmproxy.testing import ProxyClient, ProxyResponse, Reply, document, reply
from llmproxy.testing.database import TestDatabases
from llmproxy.testing.messages import RecordedRequest, Script
from llmproxy_plugins.semantic_cache import SemanticCache

DIMENSIONS: Final = 512
DEADLINE_SECONDS: Final = 10
# Words without a meaning of their own.
_EMPTY: Final = frozenset(
    {
        *(
            "a",
            "about",
            "accepted",
            "after",
            "also",
            "an",
            "are",
            "as",
            "at",
            "by",
            "can",
            "could",
            "do",
            "does",
            "for",
        ),
        *("from", "has", "have", "how", "i", "in", "is", "it", "like", "long", "many", "me", "mean", "my", "need"),
        *("needs", "of", "on", "one", "or", "possible", "s", "take", "takes", "tall", "that", "the", "there", "to"),
        *("want", "was", "what", "when", "where", "which", "who", "will", "with", "work", "would", "you", "your"),
    }
)
_ENDING: Final = re.compile(r"(?:ing|es|ed|s|e)$")


@contextmanager
def prepared_databases(server_url: str) -> Iterator[TestDatabases]:
    """Databases that have the plugin's tables already: making the extension anew takes longer than a test."""
    components = [core_component(), Component(SemanticCache.name, SemanticCache.migrations)]
    databases = TestDatabases(server_url, components)
    yield databases
    asyncio.run(databases.close())


class Pair(NamedTuple):
    """Two questions, and whether they ask the same."""

    first: str
    second: str
    is_same: bool


PAIRS: Final = [Pair(**each) for each in json.loads((Path(__file__).parent / "data/semantic_pairs.json").read_text())]


def embedded(text: str) -> list[float]:
    """A vector with a direction for each word that means something, whatever their order and endings."""
    vector = [0.0] * DIMENSIONS
    for word in re.findall(r"[a-z0-9]+", text.lower()):
        if word not in _EMPTY:
            digest = blake2b(_ENDING.sub("", word).encode(), digest_size=4).digest()
            vector[int.from_bytes(digest) % DIMENSIONS] += 1
    length = math.hypot(*vector)
    return [number / length for number in vector] if length else [1.0, *vector[1:]]


def embeddings_of(request: RecordedRequest) -> Reply:
    """The vectors that are asked for."""
    given = request.document["input"]
    texts = given if isinstance(given, list) else [given]
    data = [{"object": "embedding", "index": index, "embedding": embedded(text)} for index, text in enumerate(texts)]
    usage = {"prompt_tokens": 3, "total_tokens": 3}
    return document({"object": "list", "data": data, "model": "embedder", "usage": usage})


def playing(answers: Mapping[str, str] | None = None, chat: Reply | None = None) -> Script:
    """An upstream that embeds, judges whether two answers are equal, and answers questions.

    Args:
        answers: What it says, by question; to others it says the question.
        chat: What it replies to every question instead.
    """

    def play(request: RecordedRequest) -> Reply:
        if request.path.endswith("/embeddings"):
            return embeddings_of(request)
        if request.document["model"] == "judge":
            asked = json.loads(request.document["messages"][-1]["content"])["answers"]
            return reply("SAME" if asked["one"].lower() == asked["other"].lower() else "different.")
        question = request.document["messages"][-1]["content"]
        return chat or reply((answers or {}).get(str(question), str(question)))

    return play


def answering(**settings: object) -> Mapping[str, Any]:
    """A configuration that serves."""
    return {"embeddings": "upstream/embedder", "mode": "serve", "threshold": 0.9, **settings}


async def table(client: ProxyClient, name: str, count: int) -> Sequence[Row]:
    """The rows of one of the plugin's tables, once there are so many. Raises TimeoutError when there are not."""
    return await rows_where(client, name, lambda rows: len(rows) >= count)


async def rows_where(client: ProxyClient, name: str, is_meant: Callable[[Sequence[Row]], bool]) -> Sequence[Row]:
    """The rows of one of the plugin's tables, as soon as they are as meant. Raises TimeoutError when they never are."""
    query = {
        "entries": "SELECT * FROM semantic_cache_entries ORDER BY id",
        "trials": "SELECT * FROM semantic_cache_trials ORDER BY id",
    }[name]
    give_up_at = time.monotonic() + DEADLINE_SECONDS
    while not is_meant(rows := await client.app.services.database.fetch(query)):
        if time.monotonic() > give_up_at:
            raise TimeoutError(f"There are {len(rows)} {name}, and not those that were meant.")
    return rows


async def ask(client: ProxyClient, text: str, count: int, *, stream: bool = False) -> ProxyResponse:
    """The answer to a question, once there are so many entries."""
    response = await client.chat(text, stream=stream)
    await table(client, "entries", count)
    return response
