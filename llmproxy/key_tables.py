"""Keys and workspaces as Postgres has them, in memory: read whole at first, then row by row as they change."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from llmproxy.errors import StorageError
from llmproxy.key_snapshot import Change, KeyRows, KeySnapshot
from llmproxy.queries import Queries
from llmproxy.services import Clock, Database, Log, Tasks

RETRY_SECONDS: Final = 1.0
# How long a start waits until it hears of changes; when it takes longer, everything is read once more then.
LISTENING_SECONDS: Final = 1.0
# What is read at once, so that no request waits long while a great many keys are read.
PAGE_ROWS: Final = 2_000


class KeyTables:
    """The rows, kept current by notifications that name those that have changed.

    However many come while rows are read, one reading follows for all of them. When some may have been missed,
    everything is read again, so that a revoked key stays revoked.

    Args:
        snapshot: Where what was last read outlives the process.
        on_change: Told the hashes of keys whose rows have changed; None when anything may have.

    Attributes:
        is_behind: Not everything could be read that has changed.
        is_blind: What the tables hold has never been known.
    """

    def __init__(
        self,
        queries: Queries,
        clock: Clock,
        log: Log,
        snapshot: KeySnapshot | None,
        on_change: Callable[[set[str] | None], None],
    ) -> None:
        self._queries = queries
        self._keys_after = queries["stored_keys"].format(which=queries["stored_keys_after"])
        self._keys_named = queries["stored_keys"].format(which=queries["stored_keys_named"])
        self._clock = clock
        self._log = log
        self._snapshot = snapshot
        self._on_change = on_change
        self._changed_keys: set[str] = set()
        self._changed_workspaces: set[str] = set()
        self._is_missed = True
        self._stale = asyncio.Event()
        # What was read last; None when it was everything.
        self._unremembered: Change | None = None
        self.rows = KeyRows()
        self.is_behind = False
        self.is_blind = False

    async def start(self, database: Database, tasks: Tasks) -> None:
        """Read everything, or the snapshot when there is no database, then keep up with changes."""
        # Listening first: what changes after the reading is heard of, and nothing has to be read twice.
        heard = [
            self._listen(database, "llmproxy_keys", self._changed_keys),
            self._listen(database, "llmproxy_workspaces", self._changed_workspaces),
        ]
        with suppress(TimeoutError):
            async with asyncio.timeout(LISTENING_SECONDS):
                for channel in heard:
                    await channel.wait()
        await self._try_to_read(database)
        if self.is_behind:
            await self._recall()
        tasks.start("keys", self._keep_current(database))

    def _listen(self, database: Database, channel: str, changed: set[str]) -> asyncio.Event:
        heard = asyncio.Event()

        def on_notify(row_id: str) -> None:
            changed.add(row_id)
            self._stale.set()

        def on_gap() -> None:
            self._is_missed = True
            self._stale.set()
            heard.set()

        database.listen(channel, on_notify, on_gap)
        return heard

    async def _keep_current(self, database: Database) -> None:
        while True:
            if self.is_behind:
                # The notification is spent, and the listening connection may never have been lost.
                await self._clock.sleep(RETRY_SECONDS)
            else:
                await self._remember()
                await self._stale.wait()
            await self._try_to_read(database)

    # Reading

    async def _try_to_read(self, database: Database) -> None:
        self._stale.clear()
        try:
            await self._read(database)
        except StorageError as error:
            self.is_behind = self._is_missed = True
            self._log.warning("keys_not_read", error=str(error))
            return
        self.is_behind = self.is_blind = False

    async def _read(self, database: Database) -> None:
        """Read what has changed, or everything."""
        key_ids, workspace_ids = list(self._changed_keys), list(self._changed_workspaces)
        is_missed = self._is_missed or len(key_ids) > PAGE_ROWS
        self._is_missed = False
        self._changed_keys.clear()
        self._changed_workspaces.clear()
        if is_missed:
            self.rows, self._unremembered = await self._read_everything(database), None
            return self._on_change(None)
        named_workspaces = self._queries["stored_workspaces_named"]
        workspaces = await database.fetch(named_workspaces, workspace_ids) if workspace_ids else ()
        keys = await database.fetch(self._keys_named, key_ids) if key_ids else ()
        self._unremembered = Change(workspace_ids, workspaces, key_ids, keys)
        touched = self.rows.take(self._unremembered)
        return self._on_change(None if workspace_ids else touched)

    async def _read_everything(self, database: Database) -> KeyRows:
        rows, last_id = KeyRows(), ""
        rows.take(Change(workspaces=await database.fetch(self._queries["stored_workspaces"])))
        while keys := await database.fetch(self._keys_after, last_id, PAGE_ROWS):
            rows.take(Change(keys=keys))
            last_id = keys[-1]["id"]
        return rows

    # Remembering

    async def _remember(self) -> None:
        if self._snapshot is None:
            return
        try:
            if self._unremembered is None:
                await asyncio.to_thread(self._snapshot.save, self.rows)
            else:
                await asyncio.to_thread(self._snapshot.add, self._unremembered, self.rows)
        except (OSError, ValueError, TypeError) as error:
            self._log.warning("keys_not_remembered", error=str(error))

    async def _recall(self) -> None:
        try:
            if self._snapshot is None:
                raise FileNotFoundError
            self.rows = await asyncio.to_thread(self._snapshot.load)
        except (OSError, ValueError) as error:
            self.is_blind = True
            self._log.warning("keys_not_recalled", error=repr(error))
        self._on_change(None)
