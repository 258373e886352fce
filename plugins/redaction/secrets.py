"""Keys, tokens and passwords by the forms that their vendors give them, so that no entropy has to be guessed."""

from __future__ import annotations

from typing import Final

from llmproxy_plugins.redaction.detectors import Rule

_LONG: Final = 8192

_TOKENS: Final = (
    r"\bsk-[A-Za-z0-9_\-]{20,}",  # OpenAI, Anthropic, DeepSeek, OpenRouter, and gateways that issue keys of this form
    r"\b(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}\b",  # AWS access key id
    r"\bABSK[A-Za-z0-9+/]{60,}=*",  # Amazon Bedrock
    r"\bgh[opsur]_[A-Za-z0-9]{36,}",  # GitHub
    r"\bgithub_pat_[A-Za-z0-9_]{22,}",
    r"\bglpat-[A-Za-z0-9_\-]{20,}",  # GitLab
    r"\bxox[abeprs]-[A-Za-z0-9\-]{10,}",  # Slack
    r"\bxapp-[0-9]-[A-Za-z0-9\-]{10,}",
    r"\bhooks\.slack\.com/services/[A-Za-z0-9/]{20,}",
    r"\bAIza[A-Za-z0-9_\-]{35}",  # Google
    r"\bya29\.[A-Za-z0-9_\-]{20,}",
    r"\bGOCSPX-[A-Za-z0-9_\-]{20,}",
    r"\b[rs]k_(?:live|test)_[A-Za-z0-9]{16,}",  # Stripe
    r"\bwhsec_[A-Za-z0-9+/=]{20,}",
    r"\bhf_[A-Za-z0-9]{30,}",  # Hugging Face
    r"\bgsk_[A-Za-z0-9]{40,}",  # Groq
    r"\bxai-[A-Za-z0-9]{40,}",
    r"\bpplx-[A-Za-z0-9]{40,}",  # Perplexity
    r"\br8_[A-Za-z0-9]{30,}",  # Replicate
    r"\bnpm_[A-Za-z0-9]{36}",
    r"\bpypi-[A-Za-z0-9_\-]{50,}",
    r"\bdop_v1_[a-f0-9]{64}",  # DigitalOcean
    r"\bSG\.[A-Za-z0-9_\-]{16,}\.[A-Za-z0-9_\-]{30,}",  # SendGrid
    r"\bshp(?:at|ca|pa|ss)_[a-fA-F0-9]{32}",  # Shopify
    r"\bAccountKey=[A-Za-z0-9+/=]{40,}",  # Azure storage
    r"\bsig=[A-Za-z0-9%]{40,}",  # Azure shared access signature
    r"\beyJ[A-Za-z0-9_\-]{8,}\.eyJ[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]*",  # JSON web token
)

_KEY_NAME: Final = r"(?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----"
_PEM_OPENING: Final = r"-----BEGIN"
_HEADER_OPENING: Final = r"(?i)\b(?:aws_?secret|authorization)"

SECRET: Final = (
    *(Rule(pattern, longest=1024) for pattern in _TOKENS),
    # A password within an address; the whole address goes, for it says where the password opens what.
    Rule(
        r"\b[A-Za-z][A-Za-z0-9+.\-]{1,20}://[^\s:/@\"'<>`]*:[^\s/@\"'<>`]+@"
        r"[A-Za-z0-9._~:/?#\[\]@!$&*+,;=%\-]*[A-Za-z0-9_~/#&*+=%\-]",
        longest=1024,
    ),
    Rule(rf"(?s)-----BEGIN {_KEY_NAME}.*?-----END {_KEY_NAME}", longest=_LONG, opening=_PEM_OPENING),
    # One that was cut off.
    Rule(rf"-----BEGIN {_KEY_NAME}[A-Za-z0-9+/=\s\\]*", longest=_LONG, opening=_PEM_OPENING),
    # These have no form of their own and are known by their names.
    Rule(
        r"(?i)\baws_?secret(?:_?access)?(?:_?key)?[\"']?\s{0,3}[:=]\s{0,3}[\"']?([A-Za-z0-9/+=]{40})",
        longest=96,
        opening=_HEADER_OPENING,
    ),
    Rule(
        r"(?i)\bauthorization[\"']?\s{0,3}[:=]\s{0,3}[\"']?(?:bearer|basic|token)\s+([A-Za-z0-9._~+/=\-]{16,})",
        longest=1024,
        opening=_HEADER_OPENING,
    ),
)
