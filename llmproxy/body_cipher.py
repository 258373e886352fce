"""Kept bodies, encrypted: AES-256-GCM under a key of the operator's, bound to the request that they belong to.

A body is encrypted before it is first written anywhere, so that the journal has no clear text either.
"""

from __future__ import annotations

import hashlib
import os
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

from llmproxy.config import AuditConfig
from llmproxy.errors import ConfigError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

# No body of a client or a provider begins so: it would not be JSON.
_MARK: Final = b"\0llmproxy aes-256-gcm\0"
_NONCE_BYTES: Final = 12


class BodyCipher:
    """Encrypts bodies under one key, and decrypts what was encrypted under it.

    Args:
        key: A secret of at least 128 bits of chance; it is hashed, not stretched.
    """

    def __init__(self, key: str) -> None:
        self._aead = _aes_gcm(hashlib.sha256(b"llmproxy bodies " + key.encode()).digest())

    def encrypt(self, request_id: str, name: str, body: bytes) -> bytes:
        """What to keep instead of a body, `request` or `response`, of a request."""
        nonce = os.urandom(_NONCE_BYTES)
        return _MARK + nonce + self._aead.encrypt(nonce, body, _context(request_id, name))

    def decrypt(self, request_id: str, name: str, kept: bytes) -> bytes | None:
        """The body again; None when it was encrypted under another key, for another request, or was changed."""
        # An optional dependency, which is there when there is a cipher.
        from cryptography.exceptions import InvalidTag  # noqa: PLC0415 - see above

        data = kept.removeprefix(_MARK)
        try:
            return self._aead.decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], _context(request_id, name))
        except InvalidTag:
            return None


def body_cipher(config: AuditConfig) -> BodyCipher | None:
    """What bodies are encrypted with; None when they are kept in clear. Raises ConfigError when it cannot be had."""
    if config.body_key is None:
        return None
    if find_spec("cryptography") is None:
        raise ConfigError("audit.body_key: encrypting bodies takes another package; install 'llmproxy[audit]'.")
    return BodyCipher(config.body_key.get_secret_value())


def is_encrypted(kept: bytes) -> bool:
    """Whether a kept body is one that was encrypted."""
    return kept.startswith(_MARK)


def _aes_gcm(key: bytes) -> AESGCM:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415 - an optional dependency

    return AESGCM(key)


def _context(request_id: str, name: str) -> bytes:
    return f"{request_id} {name}".encode()
