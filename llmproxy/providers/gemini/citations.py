"""Where an answer's words come from: Google counts bytes of a part, clients count characters of the whole text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from llmproxy.dialects.chat_answer import url_citation
from llmproxy.dialects.objects import objects_in
from llmproxy.request import Document


def citations_of(candidate: Document, texts: Sequence[str]) -> list[Document]:
    """The citations of a candidate.

    Args:
        texts: The text of each part, "" for those that clients do not see; a stream's is one text in all.
    """
    grounding, recitation = candidate.get("groundingMetadata"), candidate.get("citationMetadata")
    found: list[Document] = []
    if isinstance(grounding, dict):
        found.extend(_grounded(grounding, texts))
    if isinstance(recitation, dict):
        found.extend(_recited(recitation, "".join(texts)))
    return found


def _grounded(grounding: Document, texts: Sequence[str]) -> Iterator[Document]:
    chunks = grounding.get("groundingChunks")
    for support in objects_in(grounding.get("groundingSupports")):
        segment = support.get("segment")
        part = _number(segment, "partIndex")
        if not isinstance(segment, dict) or part >= len(texts):
            continue
        before = sum(map(len, texts[:part]))
        start, end = (before + _characters(texts[part], _number(segment, name)) for name in ("startIndex", "endIndex"))
        for title, url in _sources(chunks, support.get("groundingChunkIndices")):
            yield url_citation(start, end, title, url)


def _sources(chunks: object, indices: object) -> Iterator[tuple[str, str]]:
    if not isinstance(chunks, list) or not isinstance(indices, list):
        return
    for index in indices:
        chunk = chunks[index] if isinstance(index, int) and 0 <= index < len(chunks) else None
        web = chunk.get("web") or chunk.get("retrievedContext") if isinstance(chunk, dict) else None
        if isinstance(web, dict) and isinstance(web.get("uri"), str):
            yield _title(web), web["uri"]


def _recited(recitation: Document, text: str) -> Iterator[Document]:
    for citation in objects_in(recitation.get("citations") or recitation.get("citationSources")):
        if isinstance(citation.get("uri"), str):
            start, end = (_characters(text, _number(citation, name)) for name in ("startIndex", "endIndex"))
            yield url_citation(start, end, _title(citation), citation["uri"])


def _title(source: Document) -> str:
    title = source.get("title")
    return title if isinstance(title, str) and title else str(source["uri"])


def _characters(text: str, byte_count: int) -> int:
    """How many characters lie before an offset in bytes; one that is cut in the middle does not."""
    return len(text.encode(errors="replace")[:byte_count].decode(errors="ignore"))


def _number(holder: object, name: str) -> int:
    """An offset; Google leaves out zeros."""
    value = holder.get(name) if isinstance(holder, dict) else None
    return value if isinstance(value, int) and value > 0 else 0
