"""`python -m benchmarks.out_of_step serve …`: llmproxy as it is, but that no request waits for others to keep step."""

from __future__ import annotations

from llmproxy import lockstep
from llmproxy.cli import main

if __name__ == "__main__":
    # Workers are forked, and so they find it replaced: nothing that is ready is ever seen.
    vars(lockstep)["_ready"] = tuple
    main()
