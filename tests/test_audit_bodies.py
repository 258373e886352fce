"""Kept bodies: encrypted before they are written anywhere, readable by who has the key, and nobody else."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmproxy.body_cipher import BodyCipher, is_encrypted
from llmproxy.testing import reply
from llmproxy.testing.running_proxy import StartProxy
from tests.test_admin import admin
from tests.test_cli import Run, configure, run

__all__ = ["run"]  # a fixture

CIPHER = BodyCipher("a key of the operator's")
ID = "0190b6f5-0000-7000-8000-000000000000"
OTHER_ID = "0190b6f5-0000-7000-8000-000000000001"


@given(body=st.binary(max_size=200))
@settings(deadline=None)
def test_a_body_comes_back_to_who_has_the_key(body: bytes) -> None:
    """Any body comes back as it was; two of the same look different, and neither shows anything of it."""
    kept = CIPHER.encrypt(ID, "request", body)
    assert is_encrypted(kept)
    assert CIPHER.decrypt(ID, "request", kept) == body
    assert kept != CIPHER.encrypt(ID, "request", body)


@pytest.mark.parametrize(
    ("cipher", "request_id", "name", "flipped"),
    [
        (BodyCipher("another key"), ID, "request", False),
        (CIPHER, OTHER_ID, "request", False),
        (CIPHER, ID, "response", False),
        (CIPHER, ID, "request", True),
    ],
)
def test_a_body_is_bound_to_its_key_and_its_request(
    cipher: BodyCipher, request_id: str, name: str, *, flipped: bool
) -> None:
    """With another key, as another request's, as the other body, or changed by a bit, there is nothing to read."""
    kept = CIPHER.encrypt(ID, "request", b"hello")
    changed = kept[:-1] + bytes([kept[-1] ^ flipped])
    assert cipher.decrypt(request_id, name, changed) is None


def journal_bytes(directory: Path) -> bytes:
    """Everything that stands in the files of a journal."""
    return b"".join(path.read_bytes() for path in directory.glob("*.log"))


async def test_a_gateway_keeps_bodies_encrypted(proxy: StartProxy) -> None:
    """Neither the database nor the journal has a word of what was said, and the admin API shows it."""
    config = {"audit": {"bodies": "all", "body_key": "a key of the operator's"}}
    async with proxy(upstream=[reply("the secret answer")], config=config) as client:
        answer = await client.chat("the secret question")
        journal = journal_bytes(client.app._state.journal)
        await client.rows()
        [row] = await client.app.services.database.fetch("SELECT * FROM request_bodies")
        request_id = answer.headers["x-llmproxy-request-id"]
        shown = (await admin(client, "GET", f"/requests/{request_id}")).document["bodies"]
    assert b"question" not in journal + row["request"]
    assert b"answer" not in journal + row["response"]
    assert "the secret question" in shown["request"]
    assert "the secret answer" in shown["response"]


def test_check_warns_of_bodies_in_clear(run: Run, tmp_path: Path) -> None:
    """Whoever keeps bodies is told when nothing encrypts them, and no longer when something does."""
    audit, workspaces = {"bodies": "all"}, {"acme": {"bodies": "requests"}, "other": {"bodies": "none"}}
    configure(tmp_path, audit=audit, workspaces=workspaces)
    warned = [each for each in run("check", "--json").document["warnings"] if "in clear" in each]
    assert [each.split(":")[0] for each in warned] == ["audit.bodies", "workspaces.acme.bodies"]
    configure(tmp_path, audit={**audit, "body_key": "a key of the operator's"}, workspaces=workspaces)
    assert not any("in clear" in each for each in run("check", "--json").document["warnings"])
