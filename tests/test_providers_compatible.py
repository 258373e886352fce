"""The OpenAI-compatible vendors: each row of the data, and each quirk that a row can have."""

from __future__ import annotations

import pytest
from genai_prices.data_snapshot import get_snapshot
from multidict import CIMultiDict
from pydantic import ValidationError

from llmproxy.errors import BadRequest, UpstreamError
from llmproxy.exchange import Target
from llmproxy.providers.builtin import every_kind
from llmproxy.request import Operation
from tests.providers import KINDS, header, prepare, provider, request

# Prefix, base URL, the first key variable: one line for each row of the data.
ROWS = """
groq https://api.groq.com/openai/v1 GROQ_API_KEY
together https://api.together.xyz/v1 TOGETHER_API_KEY
fireworks https://api.fireworks.ai/inference/v1 FIREWORKS_API_KEY
deepseek https://api.deepseek.com DEEPSEEK_API_KEY
xai https://api.x.ai/v1 XAI_API_KEY
perplexity https://api.perplexity.ai PERPLEXITY_API_KEY
cerebras https://api.cerebras.ai/v1 CEREBRAS_API_KEY
sambanova https://api.sambanova.ai/v1 SAMBANOVA_API_KEY
nvidia_nim https://integrate.api.nvidia.com/v1 NVIDIA_NIM_API_KEY
openrouter https://openrouter.ai/api/v1 OPENROUTER_API_KEY
huggingface https://router.huggingface.co/v1 HF_TOKEN
deepinfra https://api.deepinfra.com/v1/openai DEEPINFRA_API_KEY
novita https://api.novita.ai/v3/openai NOVITA_API_KEY
moonshot https://api.moonshot.ai/v1 MOONSHOT_API_KEY
zai https://api.z.ai/api/paas/v4 ZAI_API_KEY
minimax https://api.minimax.io/v1 MINIMAX_API_KEY
dashscope https://dashscope-intl.aliyuncs.com/compatible-mode/v1 DASHSCOPE_API_KEY
volcengine https://ark.cn-beijing.volces.com/api/v3 ARK_API_KEY
siliconflow https://api.siliconflow.cn/v1 SILICONFLOW_API_KEY
nebius https://api.tokenfactory.nebius.com/v1 NEBIUS_API_KEY
hyperbolic https://api.hyperbolic.xyz/v1 HYPERBOLIC_API_KEY
lambda https://api.lambda.ai/v1 LAMBDA_API_KEY
featherless https://api.featherless.ai/v1 FEATHERLESS_AI_API_KEY
nscale https://inference.api.nscale.com/v1 NSCALE_API_KEY
ovhcloud https://oai.endpoints.kepler.ai.cloud.ovh.net/v1 OVHCLOUD_API_KEY
scaleway https://api.scaleway.ai/v1 SCW_SECRET_KEY
baseten https://inference.baseten.co/v1 BASETEN_API_KEY
friendli https://api.friendli.ai/serverless/v1 FRIENDLI_TOKEN
parasail https://api.parasail.io/v1 PARASAIL_API_KEY
gmi https://api.gmi-serving.com/v1 GMI_API_KEY
crusoe https://api.inference.crusoecloud.com/v1 CRUSOE_API_KEY
meta https://api.meta.ai/v1 META_API_KEY
ai21 https://api.ai21.com/studio/v1 AI21_API_KEY
upstage https://api.upstage.ai/v1/solar UPSTAGE_API_KEY
reka https://api.reka.ai/v1 REKA_API_KEY
wandb https://api.inference.wandb.ai/v1 WANDB_API_KEY
chutes https://llm.chutes.ai/v1 CHUTES_API_KEY
venice https://api.venice.ai/api/v1 VENICE_API_KEY
poe https://api.poe.com/v1 POE_API_KEY
aiml https://api.aimlapi.com/v1 AIML_API_KEY
morph https://api.morphllm.com/v1 MORPH_API_KEY
inception https://api.inceptionlabs.ai/v1 INCEPTION_API_KEY
v0 https://api.v0.dev/v1 V0_API_KEY
heroku https://us.inference.heroku.com/v1 HEROKU_API_KEY
digitalocean https://inference.do-ai.run/v1 DIGITALOCEAN_API_KEY
tencent https://tokenhub-intl.tencentcloudmaas.com/v1 TENCENT_API_KEY
xiaomi https://api.xiaomimimo.com/v1 XIAOMI_API_KEY
vercel https://ai-gateway.vercel.sh/v1 AI_GATEWAY_API_KEY
voyage https://api.voyageai.com/v1 VOYAGE_API_KEY
jina https://api.jina.ai/v1 JINA_API_KEY
azure_ai https://acme.services.ai.azure.com/openai/v1 -
cloudflare https://api.cloudflare.com/client/v4/accounts/abc123/ai/v1 -
databricks https://adb-1.2.azuredatabricks.net/serving-endpoints -
snowflake https://acme-eu.snowflakecomputing.com/api/v2/cortex/v1 -
vllm http://localhost:8000/v1 VLLM_API_KEY
sglang http://localhost:30000/v1 -
ollama http://localhost:11434/v1 OLLAMA_API_KEY
lm_studio http://localhost:1234/v1 -
llamafile http://127.0.0.1:8080/v1 -
llamacpp http://localhost:8080/v1 -
tgi http://localhost:8080/v1 -
localai http://localhost:8080/v1 -
"""
LINES = [line.split() for line in ROWS.strip().splitlines()]
LOCAL = {"vllm", "sglang", "ollama", "lm_studio", "llamafile", "llamacpp", "tgi", "localai"}


@pytest.mark.parametrize(("kind", "base_url", "variable"), LINES, ids=[line[0] for line in LINES])
def test_each_vendor_is_reached_with_its_key(kind: str, base_url: str, variable: str) -> None:
    """A vendor's row gives its address, the header for its key and the variable that usually holds it."""
    operation = Operation.CHAT if Operation.CHAT in KINDS[kind].operations else Operation.EMBEDDINGS
    prepared = prepare(kind, {"model": "m"}, operation)
    path = "/chat/completions" if operation is Operation.CHAT else "/embeddings"
    assert prepared.url == base_url + path
    assert KINDS[kind].key_variables[:1] == ((variable,) if variable != "-" else ())
    name, value = ("api-key", "key-1") if kind == "azure_ai" else ("authorization", "Bearer key-1")
    assert header(prepared, name) == value


def test_every_row_is_tested() -> None:
    """The test above has a line for each row, and every kind is registered once."""
    assert [line[0] for line in LINES] == list(KINDS)
    registered = [kind.kind for kind in every_kind()]
    assert len(registered) == len(set(registered))
    assert {"openai", "demo", *KINDS} <= set(registered)


@pytest.mark.parametrize("kind", [line[0] for line in LINES])
def test_only_servers_of_ones_own_need_no_key(kind: str) -> None:
    """Without a key a vendor's own address is not asked; a server of one's own is."""
    asked = request({"model": "m"}, min(KINDS[kind].operations))
    unlocked = provider(kind, api_key=None)
    if kind in LOCAL:
        assert header(unlocked.prepare(asked, Target(kind, "m"), CIMultiDict()), "authorization") is None
        return
    with pytest.raises(UpstreamError, match=f"providers.{kind}.api_key"):
        unlocked.prepare(asked, Target(kind, "m"), CIMultiDict())


@pytest.mark.parametrize("kind", [line[0] for line in LINES if line[2] != "-"])
def test_a_key_in_the_environment_is_all_it_takes(kind: str) -> None:
    """A vendor that is served because its key variable is set needs nothing but that key."""
    assert KINDS[kind].Config.model_validate({"api_key": "k"}).base_url is None


def test_every_price_provider_is_in_the_price_data() -> None:
    """A vendor's name in the price data is one that the data has."""
    listed = {vendor.id for vendor in get_snapshot().providers}
    assert {kind.price_provider for kind in KINDS.values()} - {None} <= listed


def test_an_address_with_parts_needs_them() -> None:
    """A vendor whose address differs by customer asks for that part by name, unless the whole address is given."""
    config = KINDS["cloudflare"].Config
    with pytest.raises(ValidationError, match="set account, or base_url"):
        config.model_validate({"api_key": "k"})
    assert config.model_validate({"api_key": "k", "base_url": "https://gateway.internal/v1"}).base_url


@pytest.mark.parametrize("account", ["evil.com/x", "a@b", "a?b", "a#b", "../x", "a b", ""])
def test_a_part_cannot_lead_elsewhere(account: str) -> None:
    """A part of an address cannot bring another host, path or query with it."""
    with pytest.raises(ValidationError):
        KINDS["snowflake"].Config.model_validate({"api_key": "k", "account": account})


def test_a_kind_has_no_keys_of_other_kinds() -> None:
    """A key that means nothing to a vendor is a mistake."""
    with pytest.raises(ValidationError):
        KINDS["groq"].Config.model_validate({"account": "x"})


def test_snowflake_says_what_its_token_is() -> None:
    """Snowflake's token type goes out as a header, with a default that the section can change."""
    name = "x-snowflake-authorization-token-type"
    asked, target = request({"model": "m"}), Target("snowflake", "m")
    assert header(provider("snowflake").prepare(asked, target, CIMultiDict()), name) == "KEYPAIR_JWT"
    other = provider("snowflake", token_type="PROGRAMMATIC_ACCESS_TOKEN")
    assert header(other.prepare(asked, target, CIMultiDict()), name) == "PROGRAMMATIC_ACCESS_TOKEN"


def test_a_vendor_for_embeddings_is_asked_for_nothing_else() -> None:
    """A chat sent to a vendor that only embeds is refused before it leaves."""
    with pytest.raises(BadRequest, match="does not offer chat"):
        prepare("voyage", {"model": "m", "messages": []})
