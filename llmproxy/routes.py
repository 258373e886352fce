"""Paths to handlers: a dictionary for fixed paths, and a short list for those with a parameter."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from llmproxy.errors import ConfigError, MethodNotAllowed, NotFound
from llmproxy.services import RouteHandler

_PARAMETER: Final = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class Route:
    """What serves a path, and whether the admin key is asked for first."""

    method: str
    path: str
    handler: RouteHandler
    admin: bool


class Routes:
    """The route table of one configuration; made at start, only read afterwards."""

    def __init__(self) -> None:
        self._fixed: dict[str, dict[str, Route]] = {}
        self._patterns: list[tuple[re.Pattern[str], dict[str, Route]]] = []
        self._by_path: dict[str, dict[str, Route]] = {}

    def add(self, method: str, path: str, handler: RouteHandler, *, admin: bool = True) -> None:
        """Serve `path` (`{name}` is a parameter of one segment). Raises ConfigError when it is taken."""
        methods = self._by_path.get(path)
        if methods is None:
            methods = self._by_path[path] = {}
            if "{" in path:
                self._patterns.append((_pattern(path), methods))
            else:
                self._fixed[path] = methods
        if method in methods:
            raise ConfigError(f"The route {method} {path} is already taken; choose another path.")
        methods[method] = Route(method, path, handler, admin)

    def find(self, method: str, path: str) -> tuple[Route, Mapping[str, str]]:
        """The route for a request, and its path parameters. Raises NotFound or MethodNotAllowed."""
        methods = self._fixed.get(path)
        parameters: Mapping[str, str] = {}
        if methods is None:
            methods, parameters = self._match(path)
        route = methods.get(method)
        if route is None:
            allowed = sorted(methods)
            raise MethodNotAllowed(
                f"{path[:200]} does not take {method[:20]}; use {', '.join(allowed)}.", allowed=allowed
            )
        return route, parameters

    def _match(self, path: str) -> tuple[dict[str, Route], Mapping[str, str]]:
        for pattern, methods in self._patterns:
            if match := pattern.fullmatch(path):
                return methods, match.groupdict()
        raise NotFound(f"There is nothing at {path[:200]}; the API is under /v1.")


def _pattern(path: str) -> re.Pattern[str]:
    """Parameters take one segment, the last one everything that is left, for model names hold slashes."""
    pieces = _PARAMETER.split(path)
    text = re.escape(pieces[0])
    for name, literal in zip(pieces[1::2], pieces[2::2], strict=True):
        is_last = not literal
        text += f"(?P<{name}>{'.+' if is_last else '[^/]+'})" + re.escape(literal)
    return re.compile(text)
