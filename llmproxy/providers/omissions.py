"""What a translation leaves out of a request: named where it is harmless, refused where it is not."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Set as AbstractSet

from llmproxy.errors import BadRequest
from llmproxy.request import Document


class Omissions:
    """The parameters of one request that its translation leaves out.

    Args:
        drop_params: Leave out also what changes the meaning of the answer.
    """

    __slots__ = ("_drop_params", "_names")

    def __init__(self, *, drop_params: bool = False) -> None:
        self._drop_params = drop_params
        self._names: dict[str, None] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Each parameter once, in the order they were met: what `UpstreamRequest.dropped` takes."""
        return tuple(self._names)

    def hint(self, name: str) -> None:
        """Leave out what only would have been nice."""
        self._names[name] = None

    def meaning(self, name: str, sentence: str | None = None) -> None:
        """Leave out what changes the meaning, where the operator allows it. Raises BadRequest where not.

        Args:
            sentence: What the client is told; left out, that the model does not support it.
        """
        if not self._drop_params:
            raise BadRequest(
                sentence or f"This model does not support '{name}'; leave it out or use another model.",
                code="unsupported_parameter",
                param=name,
            )
        self._names[name] = None

    def hint_all_but(self, document: Document, known: AbstractSet[str]) -> None:
        """Leave out every member that is not known, as far as it asks for anything."""
        if document.keys() <= known:
            return
        for name, value in document.items():
            # False, null and an empty collection ask for nothing.
            if value and name not in known:
                self.hint(name)

    def all_but_one_text(self, document: Document, meaningful: Iterable[str]) -> None:
        """Leave out these members, further choices and audio, as far as a request asks for them. Raises BadRequest."""
        for name in meaningful:
            if document.get(name):
                self.meaning(name)
        if document.get("n") not in (None, 1):
            self.meaning("n", "This model gives one choice for a request; leave 'n' out or ask several times.")
        modalities = document.get("modalities")
        if isinstance(modalities, list) and "audio" in modalities:
            self.meaning("modalities", "This model answers in text only.")
