"""`python -m benchmarks.unchained serve …`: llmproxy as it is, but that its workers write no audit chain.

What the chain costs cannot be measured without a gateway that has none, and no gateway that is deployed can be told
to do without: it is put together here.
"""

from __future__ import annotations

from typing import Any

from llmproxy import app
from llmproxy.batch_writer import BatchWriter
from llmproxy.cli import main


# Whatever else a writer takes is handed on.
def _without_chain(*arguments: Any, **named: Any) -> BatchWriter:
    return BatchWriter(*arguments, **{**named, "chain": None})


if __name__ == "__main__":
    # Workers are forked, and so they find it replaced.
    vars(app)["BatchWriter"] = _without_chain
    main()
