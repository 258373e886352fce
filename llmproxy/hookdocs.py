"""`docs/hooks.md`, made from the hook specifications: `python -m llmproxy.hookdocs > docs/hooks.md`."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator

from llmproxy import hookspecs
from llmproxy.hookrules import RULES, Rule

# A docstring's part that starts with one of these becomes an item of a list.
_LABELS = re.compile(r"^(When|Returns|Failure|Order): ", re.MULTILINE)


def render() -> str:
    """The whole page: what holds for all hooks, a table of them, and the manual of each."""
    return "\n".join([*_head(), *_table(), *(line for hook in RULES for line in _section(hook))])


def _head() -> Iterator[str]:
    yield "# Hooks"
    yield ""
    yield "<!-- Made from llmproxy/hookspecs.py by `python -m llmproxy.hookdocs > docs/hooks.md`. -->"
    yield ""
    yield inspect.cleandoc(hookspecs.__doc__ or "")
    yield ""


def _table() -> Iterator[str]:
    yield "| Hook, in call order | kind | order | `async def` | failure |"
    yield "|---|---|---|---|---|"
    for hook, rule in RULES.items():
        yield f"| [`{hook}`](#{hook}) | {' | '.join(_cells(rule))} |"
    yield ""


def _cells(rule: Rule) -> tuple[str, ...]:
    return (
        rule.kind.value,
        "last plugin first" if rule.is_inside_out else "as configured",
        "no" if rule.is_plain else "yes",
        "isolated" if rule.is_isolated else "fails closed",
    )


def _section(hook: str) -> Iterator[str]:
    specification = getattr(hookspecs, hook)
    yield f"## {hook}"
    yield ""
    yield "```python"
    # Annotations are kept as text, which `signature` puts in quotes.
    yield f"def {hook}{inspect.signature(specification)}".replace("'", "")
    yield "```"
    yield ""
    yield _LABELS.sub(r"- **\1**: ", inspect.getdoc(specification) or "")
    yield ""


if __name__ == "__main__":
    sys.stdout.write(render())
