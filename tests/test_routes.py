"""The route table: fixed paths, parameters, and what is said when nothing fits."""

from __future__ import annotations

import pytest

from llmproxy.errors import ConfigError, MethodNotAllowed, NotFound
from llmproxy.exchange import Answer
from llmproxy.routes import Routes
from llmproxy.services import RouteRequest


async def handler(request: RouteRequest) -> Answer:
    """Answers."""
    return Answer()


def table(*routes: str) -> Routes:
    """A table of `METHOD /path` routes."""
    made = Routes()
    for route in routes:
        method, path = route.split()
        made.add(method, path, handler)
    return made


@pytest.mark.parametrize(
    ("method", "path", "route", "parameters"),
    [
        ("GET", "/keys", "/keys", {}),
        ("GET", "/keys/key_1", "/keys/{id}", {"id": "key_1"}),
        ("GET", "/requests/1/explain", "/requests/{id}/explain", {"id": "1"}),
        ("GET", "/models/openai/ft:gpt/x", "/models/{model}", {"model": "openai/ft:gpt/x"}),
    ],
)
def test_a_path_finds_its_route(method: str, path: str, route: str, parameters: dict[str, str]) -> None:
    """A parameter takes one segment, and the last one everything that is left, for model names hold slashes."""
    routes = table("GET /keys", "POST /keys", "GET /requests/{id}/explain", "GET /keys/{id}", "GET /models/{model}")
    found, given = routes.find(method, path)
    assert (found.path, given) == (route, parameters)


@pytest.mark.parametrize("path", ["", "/", "/key", "/keys/", "/KEYS", "/requests//explain"])
def test_a_path_without_a_route_is_not_found(path: str) -> None:
    """Paths are exact."""
    with pytest.raises(NotFound):
        table("GET /keys", "GET /keys/{id}", "GET /requests/{id}/explain").find("GET", path)


def test_another_method_is_refused_with_those_there_are() -> None:
    """The error says what the path takes."""
    with pytest.raises(MethodNotAllowed, match="use GET, POST"):
        table("POST /keys", "GET /keys").find("DELETE", "/keys")


def test_a_taken_route_is_refused() -> None:
    """Two plugins cannot both serve one path."""
    with pytest.raises(ConfigError, match="GET /keys is already taken"):
        table("GET /keys", "GET /keys")


def test_literal_text_in_a_path_is_no_pattern() -> None:
    """A dot is a dot."""
    with pytest.raises(NotFound):
        table("GET /v1.0/{id}").find("GET", "/v1x0/1")
