"""Ending a stream that grows past what was reserved for it."""

from __future__ import annotations

from llmproxy.api import AnswerStream, BudgetExceeded, StreamProgress


class CutStream:
    """A stream that ends with an error once about so many tokens have passed."""

    def __init__(self, stream: AnswerStream, progress: StreamProgress, most_tokens: int) -> None:
        self._stream = stream
        self._progress = progress
        self._most_tokens = most_tokens

    async def read(self) -> bytes:
        """The next bytes. Raises BudgetExceeded where the reservation ends, and what the stream itself raises."""
        data = await self._stream.read()
        if data and self._progress.estimated_tokens > self._most_tokens:
            self.close()
            raise BudgetExceeded(
                f"The answer was cut off at the {self._most_tokens} tokens that the budget allowed for it; "
                "set max_tokens to have more reserved."
            )
        return data

    def close(self) -> None:
        """Stop reading."""
        self._stream.close()
