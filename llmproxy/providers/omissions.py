"""What a translation leaves out of a request: named where it is harmless, refused where it is not."""

from __future__ import annotations

from llmproxy.errors import BadRequest


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
