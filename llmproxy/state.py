"""The state directory: generated keys, the journal, and the embedded database, for their owner's eyes only."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Final

from llmproxy.audit_chain import AuditKeys
from llmproxy.audit_notary import Anchor
from llmproxy.config import AuditConfig
from llmproxy.errors import StorageError
from llmproxy.keys import new_key

_ADMIN_KEY: Final = "admin-key"
_AUDIT_KEY: Final = "audit-key"


class StateDirectory:
    """A directory of mode 0700 and what core keeps in it. Raises StorageError when it cannot be used."""

    def __init__(self, path: Path) -> None:
        self.path: Final = path.resolve()
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.path.chmod(0o700)
        except OSError as error:
            raise StorageError(f"The state directory {path} cannot be used: {error.strerror}.") from error

    @property
    def journal(self) -> Path:
        """Where workers write what they let in."""
        return self.path / "journal"

    @property
    def admin_key_file(self) -> Path:
        """Where the admin key is kept that was made at the first start."""
        return self.path / _ADMIN_KEY

    def admin_key(self, environ: Mapping[str, str]) -> str:
        """`LLMPROXY_ADMIN_KEY`, or the key made at the first start."""
        return environ.get("LLMPROXY_ADMIN_KEY") or self._generated(_ADMIN_KEY)

    def default_key(self) -> str:
        """The key of the workspace that is served when the configuration names none, made at the first start."""
        return self._generated("default-key")

    def audit_keys(self, config: AuditConfig) -> AuditKeys:
        """The keys of the audit chain: as configured, or one made at the first start."""
        current = config.signing_key.get_secret_value() if config.signing_key else self._generated(_AUDIT_KEY)
        return AuditKeys(current, [key.get_secret_value() for key in config.former_keys])

    @property
    def audit_anchor(self) -> Anchor:
        """What this machine knows of the audit's signed log."""
        return Anchor(self.path / "audit-anchor.json")

    def _generated(self, name: str) -> str:
        file = self.path / name
        try:
            if not file.exists():
                _make_key(file)
        except OSError as error:
            raise StorageError(f"The key file {file} cannot be written: {error.strerror}.") from error
        return self._read(file)

    def _read(self, file: Path) -> str:
        try:
            key = file.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise StorageError(f"The key file {file} cannot be read.") from error
        if not key:
            raise StorageError(f"The key file {file} is empty; remove it and start again.")
        return key


def kept_admin_key(directory: Path, environ: Mapping[str, str]) -> str | None:
    """`LLMPROXY_ADMIN_KEY`, or the key that a gateway has made in its state directory; None when there is neither."""
    if key := environ.get("LLMPROXY_ADMIN_KEY"):
        return key
    try:
        return (directory / _ADMIN_KEY).read_text("ascii").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def _make_key(file: Path) -> None:
    """Make a file with a new key in it, for its owner's eyes only, or leave the one that another made first."""
    with NamedTemporaryFile("w", dir=file.parent, prefix=f"{file.name}.", encoding="ascii") as draft:
        draft.write(new_key())
        draft.flush()
        os.fsync(draft.fileno())
        # Under its name there is never less than a whole key, and never a second one.
        with suppress(FileExistsError):
            os.link(draft.name, file)
