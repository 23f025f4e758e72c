"""Opens the results database: connection settings, transactions, migrations, and clear errors for what goes wrong below."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import ARRAY, Connection, Engine, Select, Text, create_engine, event, func, inspect, literal, select, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, IntegrityError, NoSuchModuleError, OperationalError
from sqlalchemy.orm import Session, SessionTransaction
from sqlalchemy.pool import ConnectionPoolEntry

from hub.errors import BadDocument, ModelPressError, OutOfDisk, StoreError
from hub.tables import HEAD

BUSY_SECONDS = 30
LOG_PAGES = 8000
"""A job's result touches some 60 pages. SQLite would copy its log to the file, and sync both, every 1000: now every 32 MiB."""
WRITE_LOCK = 0x6D707265
_migrating = threading.Lock()


class Database:
    """Sessions on one database, migrated to this program's revision; usable from several threads.

    Writers come one at a time, across processes too: SQLite takes its write lock when a transaction begins, PostgreSQL an advisory
    lock. So a write may look first and insert then, and no transaction fails half-way because another one was faster.
    """

    def __init__(self, where: str | Path) -> None:
        self.url = URL.create("sqlite", database=str(where)) if isinstance(where, Path) else _parse(where)
        self.name = self.url.database if self.url.get_backend_name() == "sqlite" else self.url.render_as_string(hide_password=True)
        self._engine = self._connectable()
        self._reader = self._engine.execution_options(isolation_level="REPEATABLE READ") if self._postgresql else self._engine
        self._writer = self._engine.execution_options(writes=True)
        self._claimer = self._engine if self._postgresql else self._engine.execution_options(writes=True, hasty=True)
        try:
            with self._explained():
                self._open()
        except BaseException:
            self.close()
            raise

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """Open a transaction that sees one state of the database and changes nothing."""
        with self._begun(self._reader) as session:
            yield session

    @contextmanager
    def writing(self, *, alone: bool = False) -> Iterator[Session]:
        """Open a transaction that is kept whole, or not at all when the block raises.

        `alone`: for one that changes many jobs, and decides by their states: no claim or renewal comes between, on PostgreSQL neither.
        """
        with self._begun(self._writer) as session:
            if alone and self._postgresql:
                session.execute(text("LOCK TABLE jobs IN EXCLUSIVE MODE"))
            yield session

    @contextmanager
    def claiming(self) -> Iterator[Session]:
        """Open a transaction that changes rows which it locks one by one: on PostgreSQL it waits for no other writer.

        On SQLite it is not waited for until the disk has it: a claim that a power cut takes away is one whose dispatcher is gone, too.
        """
        with self._begun(self._claimer) as session:
            yield session

    @contextmanager
    def _begun(self, engine: Engine) -> Iterator[Session]:
        with self._explained():
            session, transaction = self._opened(engine)
            with session, transaction:
                yield session

    def _opened(self, engine: Engine) -> tuple[Session, SessionTransaction]:
        """Begin a transaction. A PostgreSQL that is being started anew is waited for: nothing was done yet, so nothing is done twice."""
        patience = time.monotonic() + BUSY_SECONDS
        while True:
            session = Session(engine)
            try:
                transaction = session.begin()
                session.connection()
                return session, transaction
            except BaseException as error:
                session.close()
                gone = self._postgresql and isinstance(error, OperationalError) and not isinstance(error.orig, _held())
                if not gone or time.monotonic() > patience:
                    raise
                time.sleep(0.5)

    @property
    def _postgresql(self) -> bool:
        return self.url.get_backend_name() == "postgresql"

    def clock(self, session: Session) -> float:
        """Return the present in epoch seconds by the clock of all who share the database: its server's; for SQLite this machine's."""
        if self.url.get_backend_name() == "sqlite":
            return time.time()
        return float(session.scalar(text("SELECT extract(epoch FROM clock_timestamp())")) or 0.0)

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def _connectable(self) -> Engine:
        try:
            engine = create_engine(self.url, pool_pre_ping=self._postgresql)
        except NoSuchModuleError as error:
            raise StoreError(
                f"no database of the kind {self.url.drivername!r} is known", hint="use sqlite:///FILE or postgresql://…"
            ) from error
        except ModuleNotFoundError as error:
            raise StoreError(f"the driver {error.name} for {self.name} is not installed", hint=f"pip install {error.name}") from error
        if self.url.get_backend_name() == "sqlite":
            event.listen(engine, "connect", _configure_sqlite)
        elif self._postgresql:
            event.listen(engine, "connect", _configure_postgresql)
        event.listen(engine, "begin", _begin)
        return engine

    def _open(self) -> None:
        with self._engine.connect() as connection:
            if _revision(connection) == HEAD:
                return
        with _migrating:
            if self.url.get_backend_name() == "sqlite":
                self._use_wal()
            with self._writer.begin() as connection:
                self._migrate(connection)

    def _use_wal(self) -> None:
        """Switch the file to write-ahead logging (it remembers). SQLite does not wait for other openers here, so this does."""
        patience = time.monotonic() + BUSY_SECONDS
        while True:
            connection = self._engine.raw_connection()
            try:
                connection.cursor().execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > patience:
                    raise _known(str(error), str(self.name)) or _refused(str(error), str(self.name)) from error
                time.sleep(0.05)
            finally:
                connection.close()

    def _migrate(self, connection: Connection) -> None:
        revision = _revision(connection)
        if revision == HEAD:
            return
        from alembic import command
        from alembic.config import Config
        from alembic.script import ScriptDirectory
        from alembic.util import CommandError

        if revision is None and inspect(connection).get_table_names():
            raise StoreError(f"{self.name} holds tables, but not those of ModelPress", hint="name another database, or an empty one")
        config = Config(attributes={"connection": connection})
        config.set_main_option("script_location", "hub:migrations")
        try:
            if revision is not None:
                ScriptDirectory.from_config(config).get_revision(revision)
        except CommandError as error:
            raise StoreError(
                f"{self.name} is of revision {revision}, which this program (revision {HEAD}) does not know: a newer ModelPress made it",
                hint="upgrade modelpress, or use another work folder with --work-dir",
            ) from error
        command.upgrade(config, "head")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            if self._postgresql and isinstance(error, OperationalError) and not isinstance(error.orig, _held()):
                raise StoreError(
                    f"the database {self.name} cannot be reached: {_first_line(str(error.orig))}",
                    hint="check its address and that it runs, then run the same command again: no write is half there",
                ) from error
            known = _known(str(error.orig), str(self.name))
            if known is None and isinstance(error, IntegrityError | DataError):
                raise _senseless(str(error.orig)) from error
            raise known or _refused(str(error.orig), str(self.name)) from error
        except (OverflowError, UnicodeEncodeError) as error:  # SQLite's driver: integers of more than 64 bits, halves of characters
            raise _senseless(str(error)) from error


def among(session: Session, texts: Collection[str]) -> Select[str]:
    """Return a query of these texts, for `IN`: one parameter, where databases take some ten thousands of parameters at the most."""
    if session.get_bind().dialect.name == "sqlite":
        return select(func.json_each(json.dumps(list(texts))).table_valued("value").c.value)
    return select(func.unnest(literal(list(texts), ARRAY(Text))).column_valued("value"))


def _parse(url: str) -> URL:
    try:
        return make_url(url)
    except ArgumentError as error:
        raise StoreError("the database address cannot be read", hint="write it as sqlite:///FILE or postgresql://USER@HOST/NAME") from error


def _configure_sqlite(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
    """Set what SQLite forgets with each connection.

    synchronous=FULL (set again as each transaction begins), not NORMAL: under WAL, NORMAL may lose the last commits at a power cut. A job's
    result costs minutes and a release is public, while an fsync costs milliseconds and comes once per job.
    """
    connection.isolation_level = None  # Python must not begin transactions by itself: _begin does
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000}")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute(f"PRAGMA wal_autocheckpoint = {LOG_PAGES}")
    cursor.execute("PRAGMA cache_size = -65536")  # KiB
    cursor.close()


def _configure_postgresql(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
    """Have a lock waited for no longer than on SQLite, and a host that vanished while it held one noticed within two minutes."""
    connection.autocommit = True
    cursor = connection.cursor()
    for name, value in {"lock_timeout": BUSY_SECONDS * 1000, "tcp_keepalives_idle": 60, "tcp_keepalives_interval": 15}.items():
        cursor.execute(f"SET {name} = {value}")
    cursor.execute("SET tcp_keepalives_count = 4")
    cursor.close()
    connection.autocommit = False


def _held() -> tuple[type[Exception], ...]:
    """Return the errors of PostgreSQL that another client causes, though they are of the class of those of a lost connection."""
    from psycopg import errors

    return (errors.LockNotAvailable, errors.DeadlockDetected, errors.SerializationFailure, errors.DiskFull)


def _begin(connection: Connection) -> None:
    options = connection.get_execution_options()
    writes = options.get("writes", False)
    if connection.dialect.name == "sqlite":
        if writes:
            connection.exec_driver_sql(f"PRAGMA synchronous = {'NORMAL' if options.get('hasty') else 'FULL'}")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
    elif connection.dialect.name == "postgresql" and writes:
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITE_LOCK})")


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return revision


def _first_line(problem: str) -> str:
    return problem.strip().splitlines()[0] if problem.strip() else "no reason given"


def _known(problem: str, name: str) -> ModelPressError | None:
    """Return the error for what the database driver said, where it is the disk, the file, or another program; else None."""
    said = _first_line(problem)
    if "disk is full" in said or "No space left on device" in said:
        return OutOfDisk(f"no room left on the disk for {name}", hint="free some space and run the same command again")
    if "disk I/O error" in said:
        return StoreError(
            f"the disk of {name} refused to read or write", hint="check that it has room and is sound, then run the command again"
        )
    if "not a database" in said or "malformed" in said:
        hint = "move the file away (a new one is made), or restore a copy of it"
        return StoreError(f"{name} is not a ModelPress database, or it is damaged: {said}", hint=hint)
    if "unable to open" in said:
        return StoreError(f"cannot open {name}: {said}", hint="check that its folder exists and that you may write there")
    if "readonly" in said:
        return StoreError(f"cannot write to {name}: {said}", hint="check the permissions of the file and of its folder")
    if "locked" in said or "lock timeout" in said:
        hint = "close the program that holds it, then run the same command again"
        return StoreError(f"{name} was held by another program for more than {BUSY_SECONDS} seconds", hint=hint)
    return None


def _refused(problem: str, name: str) -> StoreError:
    return StoreError(f"the database {name} refused: {_first_line(problem)}", hint="run modelpress doctor; if this comes again, report it")


def _senseless(problem: str) -> BadDocument:
    """Return the error for values that a database takes at no time: none where there must be one, numbers or texts it cannot hold."""
    return BadDocument(f"the database cannot take this: {_first_line(problem)}", hint="no other try can help: report what gave it")
