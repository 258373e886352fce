"""Usage as each vendor writes it, and what the vendor charges for it by its published prices.

The prices are those of genai-prices at `AT`, which names each vendor's price page; a row's `charged` is the sum done
by hand, as (how many, dollars per million) pairs, and `usd` what it comes to. Searches stand in it with dollars per
million too: ten dollars per thousand are 10,000.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

AT: Final = datetime(2026, 11, 22, 12, 30, tzinfo=UTC)
_SEARCH: Final = "10000"


@dataclass(frozen=True, slots=True)
class Case:
    """One answer and its price. `usage` stands where the vendor puts it; `also` are other members of the answer."""

    name: str
    kind: str
    model: str
    usage: Mapping[str, Any]
    charged: Sequence[tuple[int, str]]
    usd: str
    also: Mapping[str, Any] = field(default_factory=dict)
    section: Mapping[str, Any] = field(default_factory=dict)
    at: datetime = AT


def _openai(prompt: int, completion: int, cached: int = 0, reasoning: int = 0, **more: Any) -> dict[str, Any]:
    """Usage as chat completions write it since 2025."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": 0, **more.pop("inside_prompt", {})},
        "completion_tokens_details": {
            "reasoning_tokens": reasoning,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
            **more.pop("inside_completion", {}),
        },
        **more,
    }


def _claude(
    fresh: int, output: int, read: int = 0, five_minutes: int = 0, hour: int = 0, **more: Any
) -> dict[str, Any]:
    """Usage as the Messages API writes it."""
    return {
        "input_tokens": fresh,
        "cache_creation_input_tokens": five_minutes + hour,
        "cache_read_input_tokens": read,
        "cache_creation": {"ephemeral_5m_input_tokens": five_minutes, "ephemeral_1h_input_tokens": hour},
        "output_tokens": output,
        "service_tier": "standard",
        "inference_geo": "global",
        **more,
    }


def _google(**counts: Any) -> dict[str, Any]:
    return counts


def _modality(name: str, tokens: int) -> dict[str, Any]:
    return {"modality": name, "tokenCount": tokens}


# https://developers.openai.com/api/docs/pricing
OPENAI: Final = (
    Case("plain", "openai", "gpt-4o", _openai(1000, 500), [(1000, "2.5"), (500, "10")], "0.0075"),
    Case(
        "cached read", "openai", "gpt-4o", _openai(1000, 100, 800), [(200, "2.5"), (800, "1.25"), (100, "10")], "0.0025"
    ),
    Case("a dated name", "openai", "gpt-4o-2024-11-20", _openai(1000, 0), [(1000, "2.5")], "0.0025"),
    Case(
        "fine-tuned",
        "openai",
        "ft:gpt-4o-2024-08-06:acme::x",
        _openai(1000, 10),
        [(1000, "3.75"), (10, "15")],
        "0.0039",
    ),
    Case(
        # Reasoning is inside the completion, and costs as much.
        *("reasoning", "openai", "gpt-5", _openai(1200, 900, 1024, 640)),
        *([(176, "1.25"), (1024, "0.125"), (260, "10"), (640, "10")], "0.009348"),
    ),
    Case(
        *("priority", "openai", "gpt-5", _openai(1000, 100), [(1000, "2.5"), (100, "20")], "0.0045"),
        also={"service_tier": "priority"},
    ),
    Case(
        *("flex", "openai", "gpt-5", _openai(1000, 100, 400)),
        *([(600, "0.625"), (400, "0.0625"), (100, "5")], "0.0009"),
        also={"service_tier": "flex"},
    ),
    Case(
        *("the usual tier, said so", "openai", "gpt-5", _openai(1000, 100), [(1000, "1.25"), (100, "10")], "0.00225"),
        also={"service_tier": "default"},
    ),
    Case(
        *("batch", "openai", "gpt-4.1", _openai(1000, 100), [(1000, "1"), (100, "4")], "0.0014"),
        also={"service_tier": "batch"},
    ),
    Case(
        *("just short of a long context", "openai", "gpt-5.4", _openai(272_000, 1000)),
        *([(272_000, "2.5"), (1000, "15")], "0.695"),
    ),
    Case(
        *("long context", "openai", "gpt-5.4", _openai(272_001, 1000), [(272_001, "5"), (1000, "22.5")], "1.382505"),
    ),
    Case(
        *("long context in flex", "openai", "gpt-5.4", _openai(300_000, 1000, 100_000)),
        *([(200_000, "2.5"), (100_000, "0.25"), (1000, "11.25")], "0.53625"),
        also={"service_tier": "flex"},
    ),
    Case(
        *("cache writes", "openai", "gpt-6-sol", _openai(2000, 10, 500, inside_prompt={"cache_write_tokens": 1000})),
        *([(500, "2"), (500, "0.2"), (1000, "2.5"), (10, "10")], "0.0037"),
    ),
    Case(
        *("data residency", "openai", "gpt-6-sol", _openai(1000, 100), [(1000, "2.2"), (100, "11")], "0.0033"),
        section={"base_url": "https://eu.api.openai.com/v1"},
    ),
    Case(
        *("audio", "openai", "gpt-audio"),
        _openai(300, 200, inside_prompt={"audio_tokens": 250}, inside_completion={"audio_tokens": 150}),
        [(50, "2.5"), (250, "32"), (50, "10"), (150, "64")],
        "0.018225",
    ),
    Case(
        "embeddings",
        *("openai", "text-embedding-3-small", {"prompt_tokens": 500, "total_tokens": 500}, [(500, "0.02")], "0.00001"),
    ),
    Case(
        "on Azure", "azure", "gpt-4o", _openai(1000, 100, 500), [(500, "2.5"), (500, "1.25"), (100, "10")], "0.002875"
    ),
)

# The Responses API says the same under other names; searches are to be counted in its output.
RESPONSES: Final = (
    Case(
        "through the Responses API, with two searches",
        *("responses", "gpt-5.4"),
        {
            "input_tokens": 1000,
            "input_tokens_details": {"cached_tokens": 200},
            "output_tokens": 300,
            "output_tokens_details": {"reasoning_tokens": 100},
            "total_tokens": 1300,
        },
        [(800, "2.5"), (200, "0.25"), (200, "15"), (100, "15"), (2, _SEARCH)],
        "0.02655",
        also={
            "search": [
                {"type": "web_search_call", "status": "completed", "action": {"type": "search", "query": "a"}},
                {"type": "web_search_call", "status": "completed", "action": {"type": "open_page", "url": "b"}},
                {"type": "web_search_call", "status": "completed"},
            ]
        },
    ),
)

# https://www.anthropic.com/pricing#api, https://platform.claude.com/docs/en/build-with-claude/prompt-caching#pricing
ANTHROPIC: Final = (
    Case("plain", "anthropic", "claude-opus-5", _claude(1000, 500), [(1000, "5"), (500, "25")], "0.0175"),
    Case(
        *("cache", "anthropic", "claude-sonnet-4-5-20250929", _claude(21, 393, 188_086, 456, 100)),
        # Reads, five-minute writes at 1.25 times and one-hour writes at twice the input.
        [(21, "3"), (188_086, "0.3"), (456, "3.75"), (100, "6"), (393, "15")],
        "0.0646938",
    ),
    Case(
        *("long context", "anthropic", "claude-haiku-5-5", _claude(90_000, 100, 10_001)),
        # Above 100,000 tokens, cached ones included, everything is five times as dear.
        [(90_000, "0.5"), (10_001, "0.05"), (100, "2.5")],
        "0.04575005",
    ),
    Case(
        *("batch", "anthropic", "claude-sonnet-5", _claude(1000, 100, 500, 0, 200, service_tier="batch")),
        *([(1000, "1"), (500, "0.1"), (200, "2"), (100, "5")], "0.00195"),
    ),
    Case(
        *("fast", "anthropic", "claude-opus-5", _claude(1000, 100, speed="fast"), [(1000, "10"), (100, "50")], "0.015"),
    ),
    Case(
        *("in the US", "anthropic", "claude-opus-5", _claude(1000, 100, inference_geo="us")),
        *([(1000, "5.5"), (100, "27.5")], "0.00825"),
    ),
    Case(
        "thinking and three searches",
        *("anthropic", "claude-sonnet-5"),
        _claude(
            4000,
            800,
            output_tokens_details={"thinking_tokens": 500},
            server_tool_use={"web_search_requests": 3, "web_fetch_requests": 1},
        ),
        [(4000, "2"), (300, "10"), (500, "10"), (3, _SEARCH)],
        "0.046",
    ),
    Case(
        "on Vertex AI, in a region",
        *("vertex", "claude-sonnet-4-5", _claude(1000, 100), [(1000, "3.3"), (100, "16.5")], "0.00495"),
        section={"api_key": "k", "project": "acme", "location": "europe-west1"},
    ),
    Case(
        *("on Vertex AI, anywhere", "vertex", "claude-sonnet-4-5", _claude(1000, 100)),
        *([(1000, "3"), (100, "15")], "0.0045"),
        section={"api_key": "k", "project": "acme", "location": "global"},
    ),
)

# https://ai.google.dev/gemini-api/docs/pricing
GOOGLE: Final = (
    Case(
        "thoughts and a cached prefix",
        *("gemini", "gemini-2.5-pro"),
        _google(
            promptTokenCount=5000,
            cachedContentTokenCount=4000,
            candidatesTokenCount=100,
            thoughtsTokenCount=400,
            totalTokenCount=5500,
        ),
        [(1000, "1.25"), (4000, "0.125"), (100, "10"), (400, "10")],
        "0.00675",
    ),
    Case(
        "long context",
        *("gemini", "gemini-2.5-pro"),
        _google(promptTokenCount=200_001, candidatesTokenCount=1000, totalTokenCount=201_001),
        [(200_001, "2.5"), (1000, "15")],
        "0.5150025",
    ),
    Case(
        "audio, some of it cached",
        *("gemini", "gemini-2.5-flash"),
        _google(
            promptTokenCount=1100,
            promptTokensDetails=[_modality("TEXT", 100), _modality("AUDIO", 1000)],
            cachedContentTokenCount=300,
            cacheTokensDetails=[_modality("AUDIO", 300)],
            candidatesTokenCount=50,
            totalTokenCount=1150,
        ),
        [(100, "0.3"), (700, "1"), (300, "0.1"), (50, "2.5")],
        "0.000885",
    ),
    Case(
        "an image drawn",
        *("gemini", "gemini-2.5-flash-image"),
        _google(
            promptTokenCount=20,
            candidatesTokenCount=1310,
            candidatesTokensDetails=[_modality("IMAGE", 1290)],
            totalTokenCount=1330,
        ),
        [(20, "0.3"), (20, "2.5"), (1290, "30")],
        "0.038756",
    ),
    Case(
        "two queries with Gemini 3",
        *("gemini", "gemini-3.1-pro-preview"),
        _google(promptTokenCount=100, candidatesTokenCount=100, totalTokenCount=200),
        [(100, "2"), (100, "12"), (2, "14000")],
        "0.0294",
        also={"groundingMetadata": {"webSearchQueries": ["a", "b"]}},
    ),
    Case(
        "two queries with Gemini 2.5 are one grounded prompt",
        *("gemini", "gemini-2.5-flash"),
        _google(promptTokenCount=100, candidatesTokenCount=100, totalTokenCount=200),
        [(100, "0.3"), (100, "2.5"), (1, "35000")],
        "0.03528",
        also={"groundingMetadata": {"webSearchQueries": ["a", "b"]}},
    ),
)

# https://aws.amazon.com/bedrock/pricing/
BEDROCK: Final = (
    Case(
        "regional, ten per cent above global",
        *("bedrock", "eu.anthropic.claude-sonnet-4-5-20250929-v1:0"),
        {"inputTokens": 1000, "outputTokens": 100, "totalTokens": 1100},
        [(1000, "3.3"), (100, "16.5")],
        "0.00495",
    ),
    Case(
        "global, with cache",
        *("bedrock", "global.anthropic.claude-sonnet-4-5-20250929-v1:0"),
        {
            "inputTokens": 10,
            "outputTokens": 100,
            "totalTokens": 4110,
            "cacheReadInputTokens": 1000,
            "cacheWriteInputTokens": 3000,
            "cacheDetails": [{"ttl": "1h", "inputTokens": 2000}, {"ttl": "5m", "inputTokens": 1000}],
        },
        [(10, "3"), (1000, "0.3"), (1000, "3.75"), (2000, "6"), (100, "15")],
        "0.01758",
    ),
    Case(
        "Nova",
        *("bedrock", "us.amazon.nova-lite-v1:0"),
        {"inputTokens": 1000, "outputTokens": 1000, "totalTokens": 2000, "cacheReadInputTokens": 400},
        [(1000, "0.06"), (400, "0.015"), (1000, "0.24")],
        "0.000306",
    ),
)

OTHERS: Final = (
    # https://mistral.ai/pricing/api
    Case(
        *("Mistral", "mistral", "mistral-medium-latest", _openai(1000, 100), [(1000, "1.5"), (100, "7.5")], "0.00225"),
    ),
    Case(
        *("Mistral in the EU", "mistral", "mistral-medium-latest", _openai(1000, 100)),
        *([(1000, "1.65"), (100, "8.25")], "0.002475"),
        section={"base_url": "https://api.eu.mistral.ai/v1"},
    ),
    # https://cohere.com/pricing: what is billed, not what was counted.
    Case(
        "Cohere",
        *("cohere", "command-a-03-2025"),
        {
            "billed_units": {"input_tokens": 5, "output_tokens": 418},
            "tokens": {"input_tokens": 71, "output_tokens": 418},
        },
        [(5, "2.5"), (418, "10")],
        "0.0041925",
    ),
    # https://api-docs.deepseek.com/quick_start/pricing: peak hours, and the rest of the day.
    Case(
        "DeepSeek, off-peak",
        *("deepseek", "deepseek-v4-pro"),
        {
            "prompt_tokens": 1000,
            "completion_tokens": 100,
            "total_tokens": 1100,
            "prompt_cache_hit_tokens": 640,
            "prompt_cache_miss_tokens": 360,
        },
        [(360, "0.66"), (640, "0.022"), (100, "1.98")],
        "0.00044968",
    ),
    Case(
        *("DeepSeek at its peak", "deepseek", "deepseek-v4-pro", _openai(1000, 100), [(1000, "1.32"), (100, "3.96")]),
        "0.001716",
        at=datetime(2026, 11, 23, 7, 0, tzinfo=UTC),
    ),
    # https://docs.x.ai/docs/models: reasoning is counted beside the completion, and the long context begins at 200,000.
    Case(
        "xAI",
        *("xai", "grok-4.20"),
        {
            "prompt_tokens": 1000,
            "completion_tokens": 100,
            "total_tokens": 1500,
            "prompt_tokens_details": {"text_tokens": 1000, "audio_tokens": 0, "image_tokens": 0, "cached_tokens": 600},
            "completion_tokens_details": {"reasoning_tokens": 400, "audio_tokens": 0},
        },
        [(400, "1.25"), (600, "0.2"), (100, "2.5"), (400, "2.5")],
        "0.00187",
    ),
    Case(
        "xAI, long context",
        *("xai", "grok-4.20", _openai(200_000, 100), [(200_000, "2.5"), (100, "5")], "0.5005"),
    ),
    # https://console.groq.com/docs/models
    Case(
        *("Groq", "groq", "openai/gpt-oss-120b", _openai(1000, 100, 256)),
        *([(744, "0.15"), (256, "0.075"), (100, "0.6")], "0.0001908"),
        also={"service_tier": "on_demand"},
    ),
    # https://www.together.ai/pricing, and a quarter more where inference stays in one country.
    Case(
        *("Together", "together", "meta-llama/Llama-3.3-70B-Instruct-Turbo", _openai(1000, 100)),
        *([(1000, "0.88"), (100, "0.88")], "0.000968"),
    ),
    Case(
        *("Together in the US", "together", "meta-llama/Llama-3.3-70B-Instruct-Turbo", _openai(1000, 100)),
        *([(1000, "1.1"), (100, "1.1")], "0.00121"),
        section={"base_url": "https://us-api.together.ai/v1"},
    ),
    # https://openrouter.ai/openai/gpt-4o
    Case(
        *("OpenRouter", "openrouter", "openai/gpt-4o", _openai(1000, 100, 600, cost=0.0027, is_byok=False)),
        *([(400, "2.5"), (600, "1.25"), (100, "10")], "0.00275"),
    ),
    # https://platform.moonshot.ai/docs/pricing: the count of cached tokens stands beside the others.
    Case(
        "Moonshot",
        *("moonshot", "kimi-k2-0905-preview"),
        {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100, "cached_tokens": 400},
        [(600, "0.6"), (400, "0.15"), (100, "2.5")],
        "0.00067",
    ),
    # https://docs.perplexity.ai/docs/getting-started/pricing: with a price for each request.
    Case("Perplexity", "perplexity", "sonar", _openai(100, 100), [(100, "1"), (100, "1"), (1, "12000")], "0.0122"),
)

CASES: Final = (*OPENAI, *RESPONSES, *ANTHROPIC, *GOOGLE, *BEDROCK, *OTHERS)
