"""The desk's database, `desk.sqlite` in the data folder: links and sessions, every change as an event, and the present state.

Events are only added, also for an undo. The present state (`state`) follows from them and is written in the same transaction,
with write-ahead logging and a full sync, so what was acknowledged survives a killed process and a power cut.
"""

import hashlib
import json
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mi_llm import storage
from mi_llm.codebook.packets import COORDINATOR, Packet, Packets
from mi_llm.problem import Problem

Part = Literal["packets", "training"]
Own = Literal["settled", "reopened"]  # the coordinator's: what was settled, and the log of reopening
SETTLED: Own = "settled"
REOPENED: Own = "reopened"
SCHEMA = 1
SESSION_DAYS = 30
BREAK_S = 300.0  # a longer time between two changes is a break, and counts as this much work
_TABLES = """
CREATE TABLE link (person TEXT PRIMARY KEY, hash BLOB NOT NULL UNIQUE) STRICT;
CREATE TABLE session (hash BLOB PRIMARY KEY, person TEXT NOT NULL, made INTEGER NOT NULL) STRICT;
CREATE TABLE packet (part TEXT, packet TEXT, sha256 TEXT NOT NULL, PRIMARY KEY (part, packet)) STRICT;
CREATE TABLE event (
  number INTEGER PRIMARY KEY AUTOINCREMENT, made TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
  rater TEXT NOT NULL, part TEXT NOT NULL, packet TEXT NOT NULL, id TEXT NOT NULL, item TEXT NOT NULL,
  before TEXT NOT NULL, value TEXT NOT NULL, base TEXT NOT NULL, undoes TEXT,
  UNIQUE (rater, part, packet, id)
) STRICT;
CREATE TABLE state (
  rater TEXT, part TEXT, packet TEXT, item TEXT, value TEXT NOT NULL, version TEXT NOT NULL,
  PRIMARY KEY (rater, part, packet, item)
) STRICT, WITHOUT ROWID;
CREATE TRIGGER event_kept BEFORE DELETE ON event BEGIN SELECT RAISE(ABORT, 'events are kept'); END;
CREATE TRIGGER event_unchanged BEFORE UPDATE ON event BEGIN SELECT RAISE(ABORT, 'events are kept'); END;
"""


@dataclass(frozen=True)
class Desk:
    """One rater's coding of one packet; `part` is the study's packets or the training, or one of the coordinator's own."""

    rater: str
    part: Part | Own
    packet: str

    @property
    def key(self) -> tuple[str, str, str]:
        """The key of its rows in the database."""
        return self.rater, self.part, self.packet


@dataclass(frozen=True)
class Held:
    """An item's present value; the version is the id of the change that set it, empty where nothing was set yet."""

    value: Any = None
    version: str = ""


@dataclass(frozen=True)
class Work:
    """A rater's work on a packet: seconds between its changes, without breaks, and when the last one was made (UTC).

    What was read before the first change is not counted; changes that arrive together after an outage count as one moment.
    """

    seconds: float
    last: str


State = dict[str, Held]


class Store:
    """The database, opened once per process and used by one thread at a time; other processes wait for their turn."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "desk.sqlite"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.path.touch(mode=0o600)  # codes before they are released, and hashes: nobody else's business
            self._database = sqlite3.connect(self.path, timeout=30, isolation_level=None, check_same_thread=False)
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = FULL")
            self._turn = threading.Lock()
            with self.writing() as database:
                self._prepare(database)
        except (OSError, sqlite3.Error) as error:
            raise Problem(
                str(self.path), f"cannot be opened ({error})", "a writable folder", "correct --data or its permissions"
            ) from None

    def _prepare(self, database: sqlite3.Connection) -> None:
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version == 0:
            for statement in _statements(_TABLES):
                database.execute(statement)
            database.execute(f"PRAGMA user_version = {SCHEMA}")
        elif version != SCHEMA:
            raise Problem(str(self.path), f"schema {version}", f"schema {SCHEMA}", "open it with the version that made it")

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that is on the disk when the block is left, or has left no trace where the block raised."""
        with self._turn:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A consistent view of the database."""
        with self._turn:
            self._database.execute("BEGIN")
            try:
                yield self._database
            finally:
                self._database.execute("ROLLBACK")

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def link(self, person: str, *, renew: bool) -> str | None:
        """A new personal token; None where the person has one already. Renewing ends the old link and its sessions."""
        token = secrets.token_urlsafe(24)  # 192 bits
        with self.writing() as database:
            if renew:
                database.execute("DELETE FROM link WHERE person = ?", (person,))
                database.execute("DELETE FROM session WHERE person = ?", (person,))
            made = database.execute("INSERT OR IGNORE INTO link VALUES (?, ?)", (person, _hash(token))).rowcount
        return token if made else None

    def enter(self, token: str) -> str | None:
        """Exchange a link's token for a session's; None where no link has it."""
        session = secrets.token_urlsafe(24)
        with self.writing() as database:
            row = database.execute("SELECT person FROM link WHERE hash = ?", (_hash(token),)).fetchone()
            if row is None:
                return None
            database.execute("DELETE FROM session WHERE made < ?", (int(time.time()) - SESSION_DAYS * 86400,))
            database.execute("INSERT INTO session VALUES (?, ?, ?)", (_hash(session), row[0], int(time.time())))
        return session

    def person(self, session: str) -> str | None:
        """Whose session a token is, if it is one and not too old."""
        oldest = int(time.time()) - SESSION_DAYS * 86400
        with self.reading() as database:
            row = database.execute("SELECT person FROM session WHERE hash = ? AND made >= ?", (_hash(session), oldest)).fetchone()
        return str(row[0]) if row else None

    def pin(self, packets: Packets) -> None:
        """Store each packet's hash; raises Problem where a packet was changed after somebody had coded it."""
        parts: dict[Part, Any] = {"packets": packets.study, "training": packets.training}
        with self.writing() as database:
            coded = {(part, packet) for part, packet in database.execute("SELECT DISTINCT part, packet FROM event")}
            known = {(part, packet): sha for part, packet, sha in database.execute("SELECT * FROM packet")}
            for part, contents in parts.items():
                for name, packet in contents.items():
                    sha256 = _content(packet)
                    if (part, name) in coded and known[part, name] != sha256:
                        raise Problem(
                            f"packet {name}", "not the transcript that was coded", f"the one of {self.path}",
                            "restore the packets, or start with another --data",
                        )  # fmt: skip
                    database.execute("INSERT OR REPLACE INTO packet VALUES (?, ?, ?)", (part, name, sha256))

    def state(self, desk: Desk) -> State:
        """The items of one packet for one rater."""
        with self.reading() as database:
            return state(database, desk)

    def states(self) -> dict[Desk, State]:
        """The items of all packets and raters."""
        states: dict[Desk, State] = {}
        with self.reading() as database:
            for rater, part, packet, item, value, version in database.execute("SELECT * FROM state"):
                states.setdefault(Desk(rater, part, packet), {})[item] = Held(json.loads(value), version)
        return states

    def settle(self, packet: str, item: str, value: Any) -> None:
        """Write what the coordinator settled for an item of a packet; what was settled before stays among the events."""
        desk = Desk(COORDINATOR, SETTLED, packet)
        with self.writing() as database:
            before = state(database, desk).get(item, Held())
            write(database, desk, item, value, before=before, base=before.version, change=secrets.token_hex(16), undoes=None)

    def reopen(self, packet: str, rater: str, reason: str) -> None:
        """Open a rater's finished packet again, and write who did so and why."""
        desk, log = Desk(rater, "packets", packet), Desk(COORDINATOR, REOPENED, packet)
        with self.writing() as database:
            done = state(database, desk).get("done", Held())
            write(database, desk, "done", None, before=done, base=done.version, change=secrets.token_hex(16), undoes=None)
            before = state(database, log).get(rater, Held())
            write(database, log, rater, reason, before=before, base=before.version, change=secrets.token_hex(16), undoes=None)

    def reopenings(self) -> list[tuple[str, str, str, str]]:
        """The log of reopened packets, oldest first: time (UTC), packet, rater, reason."""
        with self.reading() as database:
            rows = database.execute("SELECT made, packet, item, value FROM event WHERE part = ? ORDER BY number", (REOPENED,))
            return [(made, packet, rater, json.loads(reason)) for made, packet, rater, reason in rows]

    def finished(self) -> dict[tuple[str, str], str]:
        """When each rater finished each packet, for the last time: UTC, by rater and packet."""
        with self.reading() as database:
            rows = database.execute(
                "SELECT rater, packet, MAX(made) FROM event WHERE part = 'packets' AND item = 'done' AND value = 'true'"
                " GROUP BY rater, packet"
            )
            return {(rater, packet): made for rater, packet, made in rows}

    def work(self) -> dict[Desk, Work]:
        """How long each rater has worked on each packet."""
        with self.reading() as database:
            rows = database.execute(
                "SELECT rater, part, packet, SUM(MIN(?, COALESCE(gap, 0))), MAX(made) FROM (SELECT rater, part, packet, made,"
                " (julianday(made) - julianday(LAG(made) OVER (PARTITION BY rater, part, packet ORDER BY number))) * 86400 AS gap"
                " FROM event WHERE part IN ('packets', 'training')) GROUP BY rater, part, packet",
                (BREAK_S,),
            )
            return {Desk(rater, part, packet): Work(seconds, last) for rater, part, packet, seconds, last in rows}

    def history(self, desk: Desk) -> list[dict[str, Any]]:
        """The changes that can still be undone, oldest first: id, item, and the value before."""
        with self.reading() as database:
            rows = database.execute(
                "SELECT id, item, before FROM event AS done WHERE rater = ? AND part = ? AND packet = ? AND undoes IS NULL"
                " AND NOT EXISTS (SELECT 1 FROM event WHERE undoes = done.id AND rater = done.rater AND part = done.part"
                " AND packet = done.packet) ORDER BY number",
                desk.key,
            ).fetchall()
        return [{"id": change, "item": item, "before": json.loads(before)} for change, item, before in rows]


def state(database: sqlite3.Connection, desk: Desk) -> State:
    """The items of one packet for one rater, inside a transaction."""
    rows = database.execute("SELECT item, value, version FROM state WHERE rater = ? AND part = ? AND packet = ?", desk.key)
    return {item: Held(json.loads(value), version) for item, value, version in rows}


def known(database: sqlite3.Connection, desk: Desk, change: str) -> bool:
    """Whether a change was written before."""
    rows = database.execute("SELECT 1 FROM event WHERE rater = ? AND part = ? AND packet = ? AND id = ?", (*desk.key, change))
    return rows.fetchone() is not None


def write(
    database: sqlite3.Connection, desk: Desk, item: str, value: Any, *, before: Held, base: str, change: str, undoes: str | None
) -> None:
    """Add an event, and set the item to its value."""
    new = storage.dump(value)
    database.execute(
        "INSERT INTO event (rater, part, packet, id, item, before, value, base, undoes) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (*desk.key, change, item, storage.dump(before.value), new, base, undoes),
    )
    database.execute("INSERT OR REPLACE INTO state VALUES (?, ?, ?, ?, ?, ?)", (*desk.key, item, new, change))


def _hash(token: str) -> bytes:
    # a plain hash will do: tokens are random, so there is nothing to guess from
    return hashlib.sha256(token.encode()).digest()


def _content(packet: Packet) -> str:
    return hashlib.sha256(storage.dump(packet.model_dump()).encode()).hexdigest()


def _statements(script: str) -> Iterator[str]:
    """Cut a script into statements; `executescript` would commit halfway."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
