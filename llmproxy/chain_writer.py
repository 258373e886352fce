"""Writing the audit chain: links beside the rows of each batch, and checkpoints in the signed log."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, NamedTuple
from uuid import UUID, uuid4

from llmproxy.audit_chain import AuditKeys, Form, genesis, make_links, times_of
from llmproxy.audit_log import Kind
from llmproxy.audit_notary import Notary
from llmproxy.config import AuditConfig
from llmproxy.db import REJECTED
from llmproxy.errors import StorageError
from llmproxy.request import Document
from llmproxy.services import Clock, Connection, Database, Log

END_SECONDS: Final = 2.0
_TICK: Final = timedelta(microseconds=1)


class _Place(NamedTuple):
    """Where a chain has come to: its last link, and when its request was admitted."""

    number: int
    link_sha256: bytes
    recorded_at: datetime
    admitted_at: str


@dataclass(slots=True)
class _Chain:
    """A chain that this process writes; nobody knows of it before its first links are committed.

    Attributes:
        last: The last link that is known to be committed.
        written: The last link that was written; whether its transaction was committed may be in doubt.
        checkpoint: The number of the link that the log knows of.
    """

    id: UUID = field(default_factory=uuid4)
    last: _Place | None = None
    written: _Place | None = None
    checkpoint: int = 0

    @property
    def length(self) -> int:
        return self.last.number if self.last else 0


class ChainWriter:
    """The chain of one run of one worker, with a link for everything that it records.

    Batches come one at a time, each after the end of the transaction of the one before.

    Args:
        form: The columns that are recorded, by table.
    """

    def __init__(
        self,
        queries: Mapping[str, str],
        notary: Notary,
        keys: AuditKeys,
        form: Form,
        config: AuditConfig,
        *,
        clock: Clock,
        log: Log,
    ) -> None:
        self._queries = queries
        self._notary = notary
        self._keys = keys
        self._form = form
        self._config = config
        self._clock = clock
        self._log = log
        self._chain = _Chain()

    async def write(self, connection: Connection, recorded: Sequence[Document], stored: bytes) -> None:
        """Add a link for each record to what is being committed. Raises StorageError, after which to try again.

        Args:
            recorded: At least one.
            stored: What Postgres says was stored of each, as `make_links` takes it.
        """
        try:
            await self._write(connection, recorded, stored)
        except StorageError as error:
            if error.error_code != REJECTED or self._chain.written is None:
                raise
            # Maybe not the records' fault, so that they must not be put aside: let another chain try to take them.
            self._log.error("audit_chain_left", chain=str(self._chain.id), error=repr(error.__cause__ or error))
            self._chain = _Chain()
            raise StorageError("The audit chain cannot be continued; a new one is begun.") from error

    def committed(self) -> None:
        """Hear that the links written last are there to stay; the next ones go on from them."""
        self._chain.last = self._chain.written

    async def _write(self, connection: Connection, recorded: Sequence[Document], stored: bytes) -> None:
        chain = self._chain
        if chain.last is not chain.written:
            chain.last = chain.written = await self._committed(connection)
        chain.checkpoint = min(chain.checkpoint, chain.length)
        if chain.last is None:
            facts = {"chain": str(chain.id), "form": self._form, "key_id": self._keys.key_id}
            await self._notary.append(connection, Kind.CHAIN_BEGAN, **facts)
        chain.written = await self._insert(connection, recorded, stored)
        if chain.written.number >= chain.checkpoint + self._config.checkpoint_rows:
            await self._add_checkpoint(connection, Kind.CHECKPOINT, chain.written)
            chain.checkpoint = chain.written.number

    async def _insert(self, connection: Connection, recorded: Sequence[Document], stored: bytes) -> _Place:
        chain, recorded_at = self._chain, self._recorded_at()
        previous = chain.last.link_sha256 if chain.last else genesis(chain.id, self._form)
        links = make_links(chain.id, chain.length, previous, recorded_at, stored)
        ids = [record["request"]["id"] for record in recorded]
        columns = (ids, times_of(stored), stored, b"".join(links), self._keys.sign_link(links[-1]))
        await connection.execute(self._queries["insert_links"], chain.id, chain.length, recorded_at, *columns)
        return _Place(chain.length + len(links), links[-1], recorded_at, recorded[-1]["request"]["admitted_at"])

    def _recorded_at(self) -> datetime:
        now, last = self._clock.now(), self._chain.last
        # Which links went in together can be told by their time, and so which one has to be signed.
        return max(now, last.recorded_at + _TICK) if last else now

    # Checkpoints

    async def run(self, database: Database) -> None:
        """Say in the log from time to time how far the chain is, for ever."""
        while True:
            await self._clock.sleep(self._config.checkpoint_seconds)
            await self._try_to_add_checkpoint(database, Kind.CHECKPOINT)

    async def end(self, database: Database) -> None:
        """Say in the log that the chain ends here, if that can be done in time; nothing must be written afterwards."""
        try:
            async with asyncio.timeout(END_SECONDS):
                await self._try_to_add_checkpoint(database, Kind.CHAIN_ENDED)
        except TimeoutError:
            self._log.warning("audit_checkpoint_missed", error="The database did not answer in time.")

    async def _try_to_add_checkpoint(self, database: Database, kind: Kind) -> None:
        try:
            async with database.transaction() as connection:
                link = await self._committed(connection)
                if link is not None and (link.number > self._chain.checkpoint or kind is Kind.CHAIN_ENDED):
                    # What is in doubt may yet be committed, and the chain would go on behind its end.
                    is_certain = link is self._chain.written
                    await self._add_checkpoint(connection, kind if is_certain else Kind.CHECKPOINT, link)
                    self._chain.checkpoint = link.number
            await self._notary.remember(database)
        except StorageError as error:
            self._log.warning("audit_checkpoint_missed", error=error.message)

    async def _committed(self, connection: Connection) -> _Place | None:
        """The last link that is in the database, whatever became of the last transaction."""
        written, last = self._chain.written, self._chain.last
        if written is None:
            return None
        place = (self._chain.id, written.number, written.admitted_at)
        return last if await connection.fetch_row(self._queries["has_link"], *place) is None else written

    async def _add_checkpoint(self, connection: Connection, kind: Kind, link: _Place) -> None:
        facts = {"chain": str(self._chain.id), "length": link.number, "link": link.link_sha256.hex()}
        await self._notary.append(connection, kind, **facts)
