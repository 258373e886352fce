"""A chat completions request as one to the Responses API of the same vendor: what both know stays as it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import orjson

from llmproxy.dialects.chat_request import read_response_format
from llmproxy.errors import BadRequest
from llmproxy.providers.omissions import Omissions
from llmproxy.providers.responses.messages import input_items
from llmproxy.providers.responses.tools import tool_choice, tools
from llmproxy.request import Document

# The same in both, by name and meaning.
_SAME: Final = (
    *("metadata", "moderation", "parallel_tool_calls", "safety_identifier", "service_tier", "user"),
    *("prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"),
    *("temperature", "top_logprobs", "top_p"),
)
# Members of the Responses API that clients may add. Those that reach into the vendor's store are not among them:
# what is there belongs to everybody who shares the gateway's key.
_NATIVE: Final = ("access_programs", "image", "instructions", "max_tool_calls", "truncation")
_TRANSLATED: Final = frozenset(
    {
        *("model", "messages", "stream", "stream_options", "max_completion_tokens", "max_tokens", "n", "modalities"),
        *("tools", "functions", "tool_choice", "function_call", "web_search_options"),
        *("reasoning", "reasoning_effort", "text", "verbosity", "response_format", "include", "logprobs"),
    }
)
# What cannot be left out without changing the answer, when it asks for anything.
_MEANINGFUL: Final = ("audio", "frequency_penalty", "logit_bias", "presence_penalty", "stop")


@dataclass(frozen=True, slots=True)
class ResponsesRequest:
    """A request to the Responses API, and the client's parameters that have no place in it."""

    body: Document
    dropped: tuple[str, ...]

    def encode(self) -> bytes:
        """The body. Raises BadRequest when it is nested too deep."""
        try:
            return orjson.dumps(self.body)
        except orjson.JSONEncodeError as error:
            raise BadRequest("The request is nested too deep for this model; keep it within 200 levels.") from error


def responses_request(document: Document, issuer: str, *, reasons: bool) -> ResponsesRequest:
    """Translate a chat completions request.

    Args:
        issuer: Whose reasoning in the history may be sent back.
        reasons: Whether the model is one that reasons.

    Raises BadRequest when the Responses API cannot do what is asked.
    """
    omissions = Omissions()
    omissions.all_but_one_text(document, _MEANINGFUL)
    members = {
        "model": document["model"],
        "instructions": document.get("instructions"),
        "input": input_items(document.get("messages"), issuer, omissions),
        "tools": tools(document, omissions),
        "tool_choice": tool_choice(document),
        "text": _text(document),
        "reasoning": _reasoning(document),
        "include": list(_include(document, reasons=reasons)),
        "max_output_tokens": document.get("max_completion_tokens", document.get("max_tokens")),
        "stream_options": _stream_options(document),
        **{name: document.get(name) for name in (*_SAME, *_NATIVE)},
    }
    body = {name: value for name, value in members.items() if value not in (None, [], {})}
    # Nothing is left with the vendor: whoever shares the gateway's key could read it there.
    body |= {"store": False, "stream": document.get("stream") is True}
    _leave_out_the_rest(document, omissions)
    return ResponsesRequest(body, omissions.names)


def _leave_out_the_rest(document: Document, omissions: Omissions) -> None:
    for name, value in document.items():
        # False, null and an empty collection ask for nothing.
        if value and name not in _TRANSLATED and name not in _SAME and name not in _NATIVE:
            omissions.hint(name)


def _text(document: Document) -> Document:
    text = dict(_object(document, "text"))
    wanted = read_response_format(document)
    if wanted is not None and wanted.kind == "json_object":
        text["format"] = {"type": "json_object"}
    elif wanted is not None:
        description = document["response_format"]["json_schema"].get("description")
        described = {"description": description} if isinstance(description, str) else {}
        # Left out, this API may take it for true.
        strict = wanted.strict or False
        text["format"] = {"type": "json_schema", "name": wanted.name, "schema": wanted.schema, "strict": strict}
        text["format"] |= described
    if document.get("verbosity") is not None:
        text["verbosity"] = document["verbosity"]
    return text


def _reasoning(document: Document) -> Document:
    effort = document.get("reasoning_effort")
    return {**_object(document, "reasoning"), **({} if effort is None else {"effort": effort})}


def _include(document: Document, *, reasons: bool) -> Iterator[str]:
    given = document.get("include")
    own = {
        # Nothing is stored, so that the client has to carry it to the next turn.
        "reasoning.encrypted_content": reasons or bool(_reasoning(document)),
        "message.output_text.logprobs": bool(document.get("logprobs")),
    }
    others = given if isinstance(given, list) else []
    yield from (each for each in others if isinstance(each, str) and each not in own)
    yield from (name for name, is_wanted in own.items() if is_wanted)


def _stream_options(document: Document) -> Document:
    """The one option that is known there: usage comes without being asked for."""
    options = _object(document, "stream_options")
    wanted = options.get("include_obfuscation")
    return {} if wanted is None or document.get("stream") is not True else {"include_obfuscation": wanted}


def _object(document: Document, name: str) -> Document:
    value = document.get(name)
    return value if isinstance(value, dict) else {}
