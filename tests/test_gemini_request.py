"""Chat requests in Google's format, judged by Google's own types."""

from __future__ import annotations

import base64
from typing import Any

import orjson
import pytest
from google.genai import types
from hypothesis import given
from hypothesis import strategies as st

from llmproxy.errors import BadRequest
from llmproxy.providers.gemini.request import generate_body
from llmproxy.providers.vendor import Omissions
from tests.gemini import MODELS, USER, WEATHER, dropped, translated

PNG = b"\x89PNG\r\n\x1a\n1234"
PNG_URL = "data:image/jpg;base64," + base64.urlsafe_b64encode(PNG).decode().rstrip("=")
SIGNED = {"google": {"thought_signature": "c2lnbmVk", "issuer": "gemini"}}


def call(call_id: str, name: str = "weather", arguments: str = '{"city":"Rome"}', **members: Any) -> dict[str, Any]:
    """A tool call of an assistant message."""
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}, **members}


def assistant(*calls: dict[str, Any], **members: Any) -> dict[str, Any]:
    """An assistant message that calls tools."""
    return {"role": "assistant", "content": None, "tool_calls": list(calls), **members}


def result(call_id: str, content: Any = "sunny") -> dict[str, Any]:
    """A tool's answer."""
    return {"role": "tool", "tool_call_id": call_id, "content": content}


def parts(body: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """The parts of each turn."""
    return [turn["parts"] for turn in body["contents"]]


# Messages


def test_system_and_developer_messages_lead_as_the_instruction() -> None:
    """Leading system messages become the system instruction, later ones part of the user's turn."""
    body = translated(
        {"role": "system", "content": "Be brief."},
        {"role": "developer", "content": "Be kind."},
        USER,
        {"role": "system", "content": "Now in French."},
    )
    assert body["systemInstruction"] == {"parts": [{"text": "Be brief."}, {"text": "Be kind."}]}
    assert body["contents"] == [{"role": "user", "parts": [{"text": "Hi"}, {"text": "Now in French."}]}]


def test_a_request_of_system_messages_alone_still_has_a_turn() -> None:
    """Google refuses a request without contents, so the instruction becomes the user's turn."""
    body = translated({"role": "system", "content": "Say hi."})
    assert body == {"contents": [{"role": "user", "parts": [{"text": "Say hi."}]}]}


def test_models_without_a_system_instruction_get_it_as_text() -> None:
    """Gemma 3 has no system instruction; it is said in the first user turn."""
    body = translated({"role": "system", "content": "Be brief."}, USER, model="gemma-3-27b-it")
    assert body == {"contents": [{"role": "user", "parts": [{"text": "Be brief."}, {"text": "Hi"}]}]}


def test_turns_of_one_role_are_merged_and_empty_ones_left_out() -> None:
    """Turns alternate, whatever the messages did, and no part is empty."""
    body = translated(
        USER,
        {"role": "user", "content": [{"type": "text", "text": "there"}, {"type": "text", "text": ""}]},
        {"role": "assistant", "content": ""},
        {"role": "assistant", "content": "Hello", "refusal": None},
        {"role": "user", "content": None},
        {"role": "assistant", "content": "!"},
        USER,
    )
    assert [turn["role"] for turn in body["contents"]] == ["user", "model", "user"]
    assert parts(body) == [[{"text": "Hi"}, {"text": "there"}], [{"text": "Hello"}, {"text": "!"}], [{"text": "Hi"}]]


def test_a_conversation_that_the_model_began_gets_a_first_turn() -> None:
    """Google refuses a conversation that the model begins."""
    body = translated({"role": "assistant", "content": "Welcome."}, USER)
    assert [turn["role"] for turn in body["contents"]] == ["user", "model", "user"]


@pytest.mark.parametrize("messages", [[{"role": "user", "content": ""}], [{"role": "assistant", "content": None}]])
def test_messages_without_any_content_are_refused(messages: list[dict[str, Any]]) -> None:
    """There is nothing to answer."""
    with pytest.raises(BadRequest, match="some content") as caught:
        translated(*messages)
    assert caught.value.param == "messages"


def test_an_answer_to_be_continued_is_refused_where_the_model_cannot() -> None:
    """Newer models refuse a last turn of their own; older ones go on with it."""
    messages = (USER, {"role": "assistant", "content": "Once upon"})
    assert translated(*messages, model="gemini-2.5-pro")["contents"][-1]["role"] == "model"
    with pytest.raises(BadRequest, match="end with a user message") as caught:
        translated(*messages, model="gemini-3.6-flash")
    assert caught.value.param == "messages[1]"


def test_a_sound_the_provider_does_not_have_is_refused() -> None:
    """An assistant message that names a sound at OpenAI cannot be replayed elsewhere."""
    with pytest.raises(BadRequest) as caught:
        translated(USER, {"role": "assistant", "audio": {"id": "audio_1"}}, USER)
    assert (caught.value.param, caught.value.error_code) == ("messages[1].audio", "unsupported_parameter")


# Media


def test_trap_36_an_image_goes_inline_as_what_it_is() -> None:
    """A data URL in url-safe unpadded base64 with a wrong type becomes standard base64 with the true one."""
    body = translated({"role": "user", "content": [{"type": "image_url", "image_url": {"url": PNG_URL}}]})
    [[part]] = parts(body)
    assert part == {"inlineData": {"mimeType": "image/png", "data": base64.b64encode(PNG).decode()}}
    assert types.Part.model_validate_json(orjson.dumps(part)).inline_data.data == PNG  # type: ignore[union-attr]


@pytest.mark.parametrize(("format_", "media_type"), [("mp3", "audio/mp3"), ("wav", "audio/wav")])
def test_sounds_go_inline_under_googles_names(format_: str, media_type: str) -> None:
    """An input_audio part is inline data of the type that Google knows."""
    data = base64.b64encode(b"sound").decode()
    body = translated(
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": data, "format": format_}}]}
    )
    assert parts(body) == [[{"inlineData": {"mimeType": media_type, "data": data}}]]


def test_a_document_goes_inline() -> None:
    """A PDF file part is inline data."""
    data = base64.b64encode(b"%PDF-1.7").decode()
    file = {"type": "file", "file": {"file_data": f"data:application/pdf;base64,{data}", "filename": "a.pdf"}}
    body = translated({"role": "user", "content": [file]})
    assert parts(body) == [[{"inlineData": {"mimeType": "application/pdf", "data": data}}]]


def image(url: str, **members: Any) -> dict[str, Any]:
    """A user message with an image."""
    return {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url, **members}}]}


@pytest.mark.parametrize(
    ("url", "media_type"),
    [
        ("https://generativelanguage.googleapis.com/v1beta/files/abc", None),
        ("gs://bucket/cat.png", "image/png"),
        ("https://www.youtube.com/watch?v=1", None),
    ],
)
def test_files_that_google_has_go_by_address(url: str, media_type: str | None) -> None:
    """The Gemini API reads its own File API, Cloud Storage and YouTube."""
    named = {"mimeType": media_type} if media_type else {}
    assert parts(translated(image(url))) == [[{"fileData": {**named, "fileUri": url}}]]


def test_a_file_id_of_the_file_api_goes_by_its_address() -> None:
    """A file part may name a file that was uploaded to the Gemini API; another vendor's file is refused."""
    body = translated({"role": "user", "content": [{"type": "file", "file": {"file_id": "files/abc"}}]})
    assert parts(body) == [[{"fileData": {"fileUri": "https://generativelanguage.googleapis.com/v1beta/files/abc"}}]]
    with pytest.raises(BadRequest):
        translated({"role": "user", "content": [{"type": "file", "file": {"file_id": "file-abc"}}]})


@pytest.mark.parametrize("url", ["https://example.com/cat.png", "http://169.254.169.254/", "ftp://x/cat.png"])
def test_an_image_elsewhere_is_refused_by_the_gemini_api(url: str) -> None:
    """The Gemini API fetches nothing, and the error names the part and says what to do."""
    with pytest.raises(BadRequest, match="data URL") as caught:
        translated(image(url))
    assert caught.value.param == "messages[0].content[0]"


def test_vertex_fetches_addresses_whose_type_it_is_told() -> None:
    """Vertex AI takes any address with a type; without one the error says what is missing."""
    body = translated(image("https://example.com/a/cat.JPG?size=1#x"), issuer="vertex")
    assert parts(body) == [
        [{"fileData": {"mimeType": "image/jpeg", "fileUri": "https://example.com/a/cat.JPG?size=1#x"}}]
    ]
    for url in ("https://example.com/cat", "ftp://example.com/cat.png"):
        with pytest.raises(BadRequest):
            translated(image(url), issuer="vertex")


def test_image_detail_is_a_resolution_where_the_model_has_one() -> None:
    """`detail` becomes a media resolution on Gemini 3, and is named as left out before that."""
    [[part]] = parts(translated(image(PNG_URL, detail="high"), model="gemini-3-flash-preview"))
    assert part["mediaResolution"] == {"level": "MEDIA_RESOLUTION_HIGH"}
    omissions = Omissions()
    [[part]] = parts(translated(image(PNG_URL, detail="high"), omissions=omissions))
    assert "mediaResolution" not in part
    assert omissions.names == ("messages.image_url.detail",)
    [[part]] = parts(translated(image(PNG_URL, detail="auto"), model="gemini-3-flash-preview"))
    assert "mediaResolution" not in part


# Tools in the conversation


def test_trap_6_results_return_in_the_order_of_their_calls() -> None:
    """Two calls to one function in one turn: results that arrive the other way round are put right."""
    body = translated(
        USER,
        assistant(call("a", arguments='{"city":"Rome"}'), call("b", arguments='{"city":"Oslo"}')),
        result("b", "snow"),
        result("a", [{"type": "text", "text": "sun"}]),
        {"role": "user", "content": "So?"},
    )
    _, calls, results = parts(body)
    assert [part["functionCall"]["id"] for part in calls] == ["a", "b"]
    assert [part["functionCall"]["args"] for part in calls] == [{"city": "Rome"}, {"city": "Oslo"}]
    assert results == [
        {"functionResponse": {"id": "a", "name": "weather", "response": {"output": "sun"}}},
        {"functionResponse": {"id": "b", "name": "weather", "response": {"output": "snow"}}},
        {"text": "So?"},
    ]


def test_an_image_in_a_result_follows_all_results() -> None:
    """Media in tool results stands after the last of them."""
    body = translated(
        USER,
        assistant(call("a"), call("b")),
        result("a", [{"type": "text", "text": "see"}, {"type": "image_url", "image_url": {"url": PNG_URL}}]),
        result("b"),
    )
    assert [next(iter(part)) for part in parts(body)[2]] == ["functionResponse", "functionResponse", "inlineData"]


def test_a_result_of_no_call_is_refused() -> None:
    """A result whose call is unknown has no function name, which Google needs."""
    with pytest.raises(BadRequest, match="'zzz' is the id of no call"):
        translated(USER, assistant(call("a")), result("zzz"))


def test_legacy_function_messages_are_calls_and_results() -> None:
    """The deprecated function_call and role function work as calls do."""
    body = translated(
        USER,
        {"role": "assistant", "content": None, "function_call": {"name": "weather", "arguments": '{"city":"Rome"}'}},
        {"role": "function", "name": "weather", "content": "sunny"},
    )
    _, [called], [answered] = parts(body)
    assert called["functionCall"]["name"] == answered["functionResponse"]["name"] == "weather"
    assert called["functionCall"]["id"] == answered["functionResponse"]["id"]


@pytest.mark.parametrize("arguments", ["", "{", "[1]", '"x"', "null"])
def test_broken_arguments_of_an_earlier_turn_do_not_break_this_one(arguments: str) -> None:
    """What a model once wrote as arguments becomes an object."""
    [_, [part], _] = parts(translated(USER, assistant(call("a", arguments=arguments)), result("a")))
    assert isinstance(part["functionCall"]["args"], dict)


def test_trap_34_numbers_in_arguments_are_kept() -> None:
    """64-bit integers, 1.0 and non-ASCII survive."""
    arguments = '{"n":9223372036854775807,"x":1.0,"s":"é"}'
    document = {"model": "gemini-2.5-pro", "messages": [USER, assistant(call("a", arguments=arguments)), result("a")]}
    assert arguments.encode() in generate_body(document, MODELS, "gemini", Omissions())


# Thought signatures


def test_trap_5_a_kept_signature_returns_on_its_call() -> None:
    """What the answer gave in extra_content goes back on the same part, and on no other."""
    body = translated(
        USER,
        assistant(call("a", extra_content=SIGNED), call("b")),
        result("a"),
        result("b"),
        model="gemini-3-pro-preview",
    )
    first, second = parts(body)[1]
    assert first["thoughtSignature"] == "c2lnbmVk"
    assert "thoughtSignature" not in second


def test_trap_5_a_lost_signature_is_replaced_by_what_google_accepts() -> None:
    """A client that kept id, name and arguments alone gets no error on the next turn of a Gemini 3 model."""
    messages = (USER, assistant(call("a"), call("b")), result("a"), result("b"))
    first, second = parts(translated(*messages, model="gemini-3.8-flash"))[1]
    assert first["thoughtSignature"] == "skip_thought_signature_validator"
    assert "thoughtSignature" not in second
    assert "thoughtSignature" not in parts(translated(*messages, model="gemini-2.5-flash"))[1][0]


def test_trap_8_a_signature_of_the_other_endpoint_is_not_replayed() -> None:
    """Vertex AI and the Gemini API refuse each other's signatures; after a fallback they count as lost."""
    messages = (USER, assistant(call("a", extra_content=SIGNED)), result("a"))
    [part] = parts(translated(*messages, model="gemini-3-pro-preview", issuer="vertex"))[1]
    assert part["thoughtSignature"] == "skip_thought_signature_validator"


def test_a_signature_from_googles_own_compatible_endpoint_is_taken() -> None:
    """Clients that talked to Google's OpenAI-compatible endpoint before have signatures without an issuer."""
    extra = {"google": {"thought_signature": "c2ln"}}
    messages = (USER, assistant(call("a", extra_content=extra)), result("a"))
    for issuer in ("gemini", "vertex"):
        body = translated(*messages, model="gemini-3-pro-preview", issuer=issuer)
        assert parts(body)[1][0]["thoughtSignature"] == "c2ln"


def test_a_signature_of_a_text_returns_on_the_text() -> None:
    """A message without calls may have a signature too, even one without text."""
    body = translated(USER, {"role": "assistant", "content": "Hello", "extra_content": SIGNED}, USER)
    assert parts(body)[1] == [{"text": "Hello", "thoughtSignature": "c2lnbmVk"}]
    body = translated(USER, {"role": "assistant", "content": None, "extra_content": SIGNED}, USER)
    assert parts(body)[1] == [{"text": "", "thoughtSignature": "c2lnbmVk"}]


def test_thinking_of_other_vendors_is_left_out() -> None:
    """Reasoning text and thinking blocks of a Claude model say nothing to Google."""
    thinking = {"thinking_blocks": [{"type": "thinking", "thinking": "…", "signature": "x"}], "reasoning_content": "…"}
    assert parts(translated(USER, {"role": "assistant", "content": "Hello", **thinking}, USER))[1] == [
        {"text": "Hello"}
    ]


# Tools


def test_tools_are_declared_with_their_own_schema() -> None:
    """The parameters go as JSON Schema, untouched."""
    body = translated(tools=[WEATHER])
    assert body["tools"] == [
        {
            "functionDeclarations": [
                {
                    "name": "weather",
                    "description": "The weather somewhere.",
                    "parametersJsonSchema": WEATHER["function"]["parameters"],  # type: ignore[index]
                }
            ]
        }
    ]
    assert "toolConfig" not in body


@pytest.mark.parametrize(
    "parameters",
    [
        None,
        {},
        {"type": "object", "properties": {}},
        {"type": "object", "properties": {}, "required": [], "additionalProperties": False},
    ],
)
def test_trap_42_a_function_without_parameters_declares_none(parameters: dict[str, Any] | None) -> None:
    """Google refuses an object schema without properties; leaving it out means the same."""
    function = {"name": "now"} if parameters is None else {"name": "now", "parameters": parameters}
    body = translated(tools=[{"type": "function", "function": function}])
    assert body["tools"] == [{"functionDeclarations": [{"name": "now"}]}]


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"next": {"$ref": "#"}}},
        {"$ref": "#/$defs/node", "$defs": {"node": {"type": "object", "properties": {"n": {"$ref": "#/$defs/node"}}}}},
        {"type": "object", "properties": {"x": {"anyOf": [{"type": "string"}, {"type": "null"}]}}},
        {"type": "object", "additionalProperties": {"type": "integer"}},
    ],
)
def test_trap_42_schemas_travel_as_they_are(schema: dict[str, Any]) -> None:
    """Recursion, nullable unions and open objects are Google's to judge: nothing is rewritten, so nothing is lost."""
    [tool] = translated(tools=[{"type": "function", "function": {"name": "f", "parameters": schema}}])["tools"]
    assert tool["functionDeclarations"][0]["parametersJsonSchema"] == schema
    format_ = {"type": "json_schema", "json_schema": {"name": "r", "schema": schema, "strict": True}}
    config = translated(response_format=format_)["generationConfig"]
    assert config == {"responseMimeType": "application/json", "responseJsonSchema": schema}


@pytest.mark.parametrize(
    ("choice", "config"),
    [
        ("auto", {"mode": "AUTO"}),
        ("none", {"mode": "NONE"}),
        ("required", {"mode": "ANY"}),
        ({"type": "function", "function": {"name": "weather"}}, {"mode": "ANY", "allowedFunctionNames": ["weather"]}),
        (
            {
                "type": "allowed_tools",
                "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "weather"}}]},
            },
            {"mode": "VALIDATED", "allowedFunctionNames": ["weather"]},
        ),
        (
            {
                "type": "allowed_tools",
                "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "weather"}}]},
            },
            {"mode": "ANY", "allowedFunctionNames": ["weather"]},
        ),
    ],
)
def test_tool_choice(choice: Any, config: dict[str, Any]) -> None:
    """Every form of tool_choice has its mode."""
    assert translated(tools=[WEATHER], tool_choice=choice)["toolConfig"] == {"functionCallingConfig": config}


@pytest.mark.parametrize("tools", [{}, {"tools": []}])
def test_a_tool_choice_without_tools_is_not_sent(tools: dict[str, Any]) -> None:
    """Google refuses a calling mode without declarations."""
    assert translated(tool_choice="auto", **tools).keys() == {"contents"}


def test_a_custom_tool_is_a_function_with_one_text() -> None:
    """Free-form tools become functions; their earlier calls too."""
    custom = {"type": "custom", "custom": {"name": "shell", "description": "Runs it."}}
    called = {"id": "a", "type": "custom", "custom": {"name": "shell", "input": "ls"}}
    body = translated(USER, assistant(called), result("a"), tools=[custom])
    [declaration] = body["tools"][0]["functionDeclarations"]
    assert declaration["parametersJsonSchema"]["required"] == ["input"]
    assert parts(body)[1][0]["functionCall"]["args"] == {"input": "ls"}


def test_web_search_is_googles_own() -> None:
    """web_search_options switch Google's search on; what it cannot be told is named."""
    omissions = Omissions()
    body = translated(web_search_options={"search_context_size": "low"}, omissions=omissions)
    assert body["tools"] == [{"googleSearch": {}}]
    assert omissions.names == ("web_search_options.search_context_size",)


def test_web_search_beside_functions_is_refused_or_left_out() -> None:
    """Both at once would need parts of the answer that OpenAI's format has no place for."""
    with pytest.raises(BadRequest) as caught:
        translated(web_search_options={}, tools=[WEATHER])
    assert caught.value.param == "web_search_options"
    omissions = Omissions(drop_params=True)
    body = translated(web_search_options={}, tools=[WEATHER], omissions=omissions)
    assert [tool.keys() for tool in body["tools"]] == [{"functionDeclarations"}]
    assert omissions.names == ("web_search_options",)


# Everything else


def test_scalars_have_googles_names() -> None:
    """Each parameter that Google has goes under its name, with its value as the client wrote it."""
    config = translated(
        temperature=1,
        top_p=0.5,
        top_k=40,
        stop=["a", "b"],
        seed=7,
        n=2,
        max_tokens=5,
        max_completion_tokens=10,
        logprobs=True,
        top_logprobs=3,
    )["generationConfig"]
    assert config == {
        "temperature": 1,
        "topP": 0.5,
        "topK": 40,
        "stopSequences": ["a", "b"],
        "seed": 7,
        "candidateCount": 2,
        "maxOutputTokens": 10,
        "responseLogprobs": True,
        "logprobs": 3,
    }


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("temperature", "hot"),
        ("max_tokens", 0),
        ("stop", 3),
        ("n", 9),
        ("n", "two"),
        ("seed", []),
        ("modalities", "text"),
        ("reasoning_effort", "enormous"),
        ("reasoning_effort", 3),
        ("response_format", {"type": "xml"}),
        ("tools", {"a": 1}),
    ],
)
def test_a_malformed_member_is_named(member: str, value: Any) -> None:
    """A value of the wrong kind is the client's mistake, and the error names it."""
    with pytest.raises(BadRequest) as caught:
        translated(**{member: value})
    assert caught.value.param == member


def test_newer_models_have_their_sampling_fixed() -> None:
    """Where sampling parameters are deprecated they are left out and named, even at their default."""
    members = {"temperature": 0, "top_p": 1, "top_k": 5}
    assert dropped("gemini-3.6-flash", **members) == ("temperature", "top_p", "top_k")
    assert dropped("gemini-3.5-flash-lite", **members) == ("temperature", "top_p", "top_k")
    assert dropped("gemini-9-future", **members) == ("temperature", "top_p", "top_k")
    assert dropped("gemini-3.5-flash", **members) == ()


def test_penalties_go_to_the_models_that_have_them() -> None:
    """Only Gemini 2.0 takes penalties; elsewhere a real one is named and a zero is nothing."""
    assert translated(model="gemini-2.0-flash", presence_penalty=0.5)["generationConfig"] == {"presencePenalty": 0.5}
    assert dropped(presence_penalty=0.5, frequency_penalty=0) == ("presence_penalty",)


def test_hints_without_a_counterpart_are_named() -> None:
    """What Google does not have, and does not change the meaning, is left out and named; nothings are not."""
    assert dropped(
        user="u",
        logit_bias={"1": 2},
        store=False,
        verbosity="low",
        metadata={},
        parallel_tool_calls=False,
        tools=[WEATHER],
        stream=True,
        stream_options={"include_usage": True},
    ) == ("parallel_tool_calls", "user", "logit_bias", "verbosity")


def test_spoken_answers_are_refused_and_images_asked_for() -> None:
    """Sound out is not translated, which changes the meaning; images are."""
    with pytest.raises(BadRequest) as caught:
        translated(modalities=["text", "audio"], audio={"voice": "alloy", "format": "wav"})
    assert (caught.value.param, caught.value.error_code) == ("modalities", "unsupported_parameter")
    config = translated(modalities=["text", "image"], model="gemini-3.1-flash-image-preview")["generationConfig"]
    assert config == {"responseModalities": ["TEXT", "IMAGE"]}
    assert "generationConfig" not in translated(modalities=["text"])


@pytest.mark.parametrize(
    ("tier", "theirs"), [("flex", "flex"), ("priority", "priority"), ("default", "standard"), ("auto", None)]
)
def test_service_tiers(tier: str, theirs: str | None) -> None:
    """The tiers that Google has go on under its names."""
    assert translated(service_tier=tier).get("serviceTier") == theirs


def test_an_unknown_service_tier_is_a_hint() -> None:
    """A tier that Google does not have is left out and named."""
    assert dropped(service_tier="scale") == ("service_tier",)


@pytest.mark.parametrize(
    ("model", "effort", "config"),
    [
        ("gemini-2.5-flash", "none", {"thinkingBudget": 0}),
        ("gemini-2.5-flash", "low", {"includeThoughts": True, "thinkingBudget": 1024}),
        ("gemini-2.5-flash", "max", {"includeThoughts": True, "thinkingBudget": 24576}),
        ("gemini-2.5-flash-lite", "minimal", {"includeThoughts": True, "thinkingBudget": 512}),
        ("gemini-2.5-pro", "none", {"thinkingBudget": 128}),
        ("gemini-2.5-pro-preview-06-05", "max", {"includeThoughts": True, "thinkingBudget": 32768}),
        ("models/gemini-2.5-pro", "none", {"thinkingBudget": 128}),
        ("gemini-3-pro-preview", "none", {"thinkingLevel": "LOW"}),
        ("gemini-3-pro-preview", "medium", {"includeThoughts": True, "thinkingLevel": "HIGH"}),
        ("gemini-3.1-pro-preview", "medium", {"includeThoughts": True, "thinkingLevel": "MEDIUM"}),
        ("gemini-3-flash-preview", "minimal", {"includeThoughts": True, "thinkingLevel": "MINIMAL"}),
        ("gemini-3.1-flash-lite", "none", {"thinkingLevel": "MINIMAL"}),
        ("gemini-3.6-flash", "none", {"thinkingLevel": "MINIMAL"}),
        ("gemini-3.7-flash", "none", {"thinkingLevel": "LOW"}),
        ("gemini-3.8-flash", "minimal", {"includeThoughts": True, "thinkingLevel": "LOW"}),
        ("gemini-4-argon", "xhigh", {"includeThoughts": True, "thinkingLevel": "HIGH"}),
    ],
)
def test_reasoning_effort_is_a_level_or_a_budget(model: str, effort: str, config: dict[str, Any]) -> None:
    """Each family is told how much to think in its own way, never in two, and only what it knows."""
    assert translated(model=model, reasoning_effort=effort)["generationConfig"] == {"thinkingConfig": config}


@pytest.mark.parametrize(
    "model",
    ["gemini-2.0-flash", "gemini-1.5-pro", "gemma-4-31b-it", "gemini-2.5-flash-image", "gemini-3-pro-image-preview"],
)
def test_models_that_cannot_be_told_how_to_think(model: str) -> None:
    """Effort is a hint: left out and named, and not even named when it asks for none."""
    assert dropped(model, reasoning_effort="high") == ("reasoning_effort",)
    assert dropped(model, reasoning_effort="none") == ()


def test_googles_own_extras_are_passed_on() -> None:
    """`extra_body.google`, as Google's OpenAI-compatible endpoint takes it, reaches the body; its thinking wins."""
    extra = {
        "google": {
            "thinking_config": {"thinking_budget": 99},
            "cached_content": "cachedContents/1",
            "safety_settings": [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"}],
        }
    }
    body = translated(extra_body=extra, reasoning_effort="high")
    assert body["generationConfig"] == {"thinkingConfig": {"thinking_budget": 99}}
    assert body["cachedContent"] == "cachedContents/1"
    assert body["safetySettings"] == extra["google"]["safety_settings"]


def test_the_same_request_gives_the_same_bytes() -> None:
    """Prompt caches at the provider depend on it."""
    document = {
        "model": "gemini-3-pro-preview",
        "messages": [USER, assistant(call("a")), result("a")],
        "tools": [WEATHER],
    }
    assert generate_body(document, MODELS, "gemini", Omissions()) == generate_body(
        orjson.loads(orjson.dumps(document)), MODELS, "gemini", Omissions()
    )


@pytest.mark.parametrize("member", ["messages", "tools", "response_format"])
def test_a_request_nested_too_deep_is_refused(member: str) -> None:
    """What cannot be written again is the client's mistake."""
    deep = orjson.loads(b'{"x":' * 300 + b"1" + b"}" * 300)
    members: dict[str, Any] = {
        "messages": [USER, assistant({"id": "a", "function": {"name": "f", "arguments": deep}}), result("a")],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": deep}}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "r", "schema": deep}},
    }
    document = {"model": "gemini-2.5-pro", "messages": [USER], member: members[member]}
    with pytest.raises(BadRequest, match="too deep"):
        generate_body(document, MODELS, "gemini", Omissions())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(
    st.sampled_from(
        [
            *("messages", "tools", "tool_choice", "functions", "response_format", "extra_body", "web_search_options"),
            *("stop", "n", "modalities", "reasoning_effort", "service_tier", "logprobs", "temperature"),
        ]
    ),
    JSON,
)
def test_whatever_a_member_holds_it_is_translated_or_refused(member: str, value: Any) -> None:
    """No client can make the translation fail in any other way."""
    document = {"model": "gemini-2.5-pro", "messages": [USER], member: value}
    try:
        assert orjson.loads(generate_body(document, MODELS, "gemini", Omissions()))["contents"]
    except BadRequest as error:
        assert error.message  # noqa: PT017 - either way is fine
