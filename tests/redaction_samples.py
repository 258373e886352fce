"""Values for every detector of the plugin redaction; made up, or the published examples of their kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from llmproxy.testing import make_services
from llmproxy_plugins.redaction import Redaction, RedactionConfig

TOKEN: Final = "A1b2C3d4E5f6G7h8I9j0K1l2M3n4O5p6Q7r8S9t0U1v2W3x4"

PEM: Final = (
    "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\n"
    "MIIEowIBAAKCAQEAx5bB7q\nQ2xhc3NpZmllZCBpbmZv+/==\n-----END RSA PRIVATE KEY-----"
)

# Put together here, so that no scanner of repositories takes them for real ones.
SECRETS: Final = {
    "openai": f"sk-proj-{TOKEN}",
    "anthropic": f"sk-ant-api03-{TOKEN}-AA",
    "aws": "AKIA" + "IOSFODNN7EXAMPLE",
    "github": "ghp_" + TOKEN[:36],
    "github_fine": "github_pat_" + TOKEN,
    "gitlab": "glpat-" + TOKEN[:20],
    "slack": "xoxb-" + "123456789012-" + TOKEN[:24],
    "slack_hook": "hooks.slack.com/services/" + "T00000000/B00000000/" + TOKEN[:24],
    "google": "AIza" + TOKEN[:35],
    "google_oauth": "ya29." + TOKEN,
    "stripe": "sk_live_" + TOKEN[:24],
    "stripe_hook": "whsec_" + TOKEN[:32],
    "hugging_face": "hf_" + TOKEN[:34],
    "groq": "gsk_" + TOKEN,
    "npm": "npm_" + TOKEN[:36],
    "pypi": "pypi-" + TOKEN + TOKEN,
    "sendgrid": f"SG.{TOKEN[:22]}.{TOKEN[:43]}",
    "azure": f"AccountKey={TOKEN}==",
    "jwt": f"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NSJ9.{TOKEN}",
    "postgres": "postgresql://app:" + "s3cr3t@db.example.com:5432/app",
    "mongo": "mongodb+srv://root:" + "hunter2@cluster0.example.net/db?w=majority",
    "pem": PEM,
    "openssh": PEM.replace("RSA ", "OPENSSH "),
}

NATIONAL_IDS: Final = {
    "at": "1237 010180",
    "au": "123 456 782",
    "be": "85.07.30-033.28",
    "bg": "7523169263",
    "br": "390.533.447-05",
    "ca": "123-456-782",
    "ch": "756.9217.0769.85",
    "cl": "12.531.909-2",
    "cn": "360426199101010071",
    "cz": "710319/2745",
    "de": "36574261809",
    "dk": "211062-5629",
    "ee": "36805280109",
    "es": "54362315K",
    "fi": "131052-308T",
    "fr": "2 95 10 99 126 111 93",
    "gb": "943-476-5870",
    "gr": "010130-99997",
    "ie": "6433435F",
    "in": "2341 2341 2346",
    "is": "120174-3399",
    "it": "RCCMNL83S18D969H",
    "kr": "971013-9019902",
    "lt": "33309240064",
    "mx": "BOXW310820HNERXN09",
    "nl": "1112.22.333",
    "no": "151086 95088",
    "pl": "44051401359",
    "pt": "00000000 0 ZZ4",
    "ro": "1630615123457",
    "se": "880320-0016",
    "th": "1-2345-45678-78-1",
    "tr": "17291716060",
    "us": "536-90-4399",
    "za": "750330 5044 089",
}

VALUES: Final = {
    "email": (
        "john.smith+news@mail.example.com",
        "o'neill@example.co.uk",
        "jörg@müller.de",
        "иван@пример.рф",
        "x@163.com",
    ),
    "phone": (
        "+47 22 33 44 55",
        "+4722334455",
        "+1 (212) 555-0187",
        "(212) 555-0187",
        "212-555-0187",
        "+44 (0)20 7946 0958",
        "0049 30 901820",
        "+86 138 0013 8000",
    ),
    "card": (
        "4111 1111 1111 1111",
        "4111111111111111",
        "5555-5555-5555-4444",
        "378282246310005",
        "3782 822463 10005",
        "6011111111111117",
        "30569309025904",
        "2223003122003222",
    ),
    "iban": (
        "DE89 3704 0044 0532 0130 00",
        "GB82WEST12345698765432",
        "NO93 8601 1117 947",
        "FR14 2004 1010 0505 0001 3M02 606",
    ),
    "ip": (
        "203.0.113.7",
        "10.20.30.40",
        "2001:db8::8a2e:370:7334",
        "fe80::1",
        "2001:0db8:85a3:0000:0000:8a2e:0370:7334",
    ),
    "national_id": tuple(NATIONAL_IDS.values()),
    "secret": tuple(SECRETS.values()),
}

# One of each, for tests that multiply detectors by something else.
ONE_OF_EACH: Final = {
    "email": "jörg.smith@mail.example.com",
    "phone": "+47 22 33 44 55",
    "card": "4111 1111 1111 1111",
    "iban": "DE89 3704 0044 0532 0130 00",
    "ip": "203.0.113.7",
    "national_id": "536-90-4399",
    "secret": PEM,
    "staff": "E-123456",
    "note": 'said "so \\ there"',
    "customers": "Übel & Sons",
}

# A section of a configuration: whatever YAML can say.
SETTINGS: Final[Mapping[str, Any]] = {
    "detectors": dict.fromkeys(("email", "phone", "card", "iban", "ip", "national_id", "secret"), "placeholder"),
    "patterns": {
        "staff": {"pattern": r"\bE-[0-9]{6}\b", "action": "placeholder"},
        "note": {"pattern": r'said "[^"]*"', "action": "placeholder", "max_characters": 40},
    },
    "dictionaries": {"customers": {"words": ["Übel & Sons", "Acme"], "action": "placeholder"}},
    "hash_key": "a key for these tests alone",
}


def redaction(**changed: object) -> Redaction:
    """The plugin with these settings, some of them changed."""
    return Redaction(RedactionConfig.model_validate({**SETTINGS, **changed}), make_services())
