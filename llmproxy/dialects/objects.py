"""What is an object in a list that somebody else wrote."""

from __future__ import annotations

from collections.abc import Sequence

from llmproxy.request import Document


def objects_in(value: object) -> Sequence[Document]:
    """The objects in a list; none where it is anything else."""
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []
