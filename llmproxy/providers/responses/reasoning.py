"""Items of reasoning on their way to the client and back: opaque, bound to who made them and to their place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llmproxy.request import Document


def thinking_block(item: Document, issuer: str, position: int) -> Document | None:
    """What a client keeps and sends back of an item; None when it holds nothing that could be sent back.

    Args:
        issuer: Who can read it again.
        position: How many items of the answer stand before it.
    """
    encrypted = item.get("encrypted_content")
    if not isinstance(encrypted, str) or not encrypted:
        return None
    kept = {name: item[name] for name in ("id", "summary", "content") if item.get(name) is not None}
    return {"type": "reasoning", **kept, "encrypted_content": encrypted, "issuer": issuer, "position": position}


# The block is whatever the client sent.
def reasoning_item(block: Any, issuer: str) -> tuple[int, Document] | None:
    """The item and its place in the turn; None when another made it, who alone could read it."""
    match block:
        case {"type": "reasoning", "id": str(name), "encrypted_content": str(encrypted), "issuer": str(maker)}:
            if maker != issuer:
                return None
        case _:
            return None
    position, summary, content = block.get("position"), block.get("summary"), block.get("content")
    item: Document = {"type": "reasoning", "id": name, "summary": summary if isinstance(summary, list) else []}
    if isinstance(content, list):
        item["content"] = content
    is_place = isinstance(position, int) and position >= 0
    return position if is_place else 0, {**item, "encrypted_content": encrypted}


def reasoning_texts(item: Document) -> Iterator[tuple[str, int, str]]:
    """What an item says in plain text: the member it stands in, its place there, and the text."""
    for member in ("summary", "content"):
        parts = item.get(member)
        for number, part in enumerate(parts if isinstance(parts, list) else []):
            text = part.get("text") if isinstance(part, dict) else None
            if isinstance(text, str) and text:
                yield member, number, text
