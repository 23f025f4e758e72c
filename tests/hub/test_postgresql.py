"""What PostgreSQL alone has: claims that wait for nobody, a server that restarts, locks that are held too long."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from hub import database
from hub.errors import StoreError
from hub.scheduling import Plan
from hub.store import Store

pytestmark = pytest.mark.integration
KINDS = ("press", "measure")


@pytest.fixture
def url(postgresql: Any) -> str:
    return str(postgresql.migrated())


@pytest.fixture
def planned(store: Store, words: Any) -> Plan:
    """Three jobs that need nothing."""
    plan = Plan(jobs=tuple(words.measure(words.model(f"m{n}")) for n in range(3)), refusals=(), done=0)
    store.record_plan(plan)
    return plan


def test_a_claim_skips_what_another_transaction_holds_and_waits_for_no_writer(store: Store, planned: Plan, url: str) -> None:
    engine = create_engine(url)
    with engine.connect() as other:
        other.execute(text("SET lock_timeout = 1"))
        held = other.execute(text("SELECT id FROM jobs ORDER BY position LIMIT 1 FOR UPDATE")).scalar()
        other.execute(text(f"SELECT pg_advisory_xact_lock({database.WRITE_LOCK})"))  # as a writer has it
        claims = []
        thread = threading.Thread(target=lambda: claims.append(store.queue.claim("me", kinds=KINDS)), daemon=True)
        thread.start()
        thread.join(120)
        assert held == planned.jobs[0].id
        assert [claim.job for claim in claims if claim] == [planned.jobs[1]]
        renewed = store.queue.renew("me", [planned.jobs[1].id])
        assert renewed.lost == frozenset()
    engine.dispose()
    claim = store.queue.claim("me", kinds=KINDS)
    assert claim is not None
    assert claim.job == planned.jobs[0]


def test_a_plan_waits_for_a_claim_that_is_being_made_and_sees_it(store: Store, words: Any, planned: Plan, url: str) -> None:
    engine = create_engine(url)
    with engine.connect() as other:
        other.execute(text("UPDATE jobs SET state = 'running', owner = 'elsewhere:1:0' WHERE position = 1"))
        thread = threading.Thread(target=lambda: store.record_plan(Plan(jobs=(), refusals=(), done=0)), daemon=True)
        thread.start()
        thread.join(0.5)
        assert thread.is_alive()
        other.commit()
        thread.join(120)
    engine.dispose()
    assert [(record.job, record.state) for record in store.jobs()] == [(planned.jobs[0], "running")]


def test_a_lock_that_is_held_for_long_is_an_error_that_says_so(
    store: Store, planned: Plan, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.2)
    engine = create_engine(url)
    with engine.connect() as other, Store(url) as impatient:
        other.execute(text(f"SELECT pg_advisory_xact_lock({database.WRITE_LOCK})"))
        with pytest.raises(StoreError, match="held by another program"):
            impatient.queue.pause("no")
    engine.dispose()
    assert store.queue.paused() is None


def test_a_server_that_restarts_is_waited_for_and_a_write_cut_off_is_not_there(
    postgresql: Any, store: Store, farm: Any, planned: Plan
) -> None:
    claim = store.queue.claim("me", kinds=KINDS)
    assert claim is not None
    postgresql.stop()
    with ThreadPoolExecutor(1) as pool:  # the thread that starts the server must outlive it, so the other one writes
        finished = pool.submit(store.finish, claim.job, farm.run(claim.job), owner="me")
        time.sleep(0.5)
        assert not finished.done()
        postgresql.start()
        assert finished.result(60)
    with pytest.raises(StoreError, match="cannot be reached") as caught:
        cut_off(store, postgresql)
    assert "run the same command again" in caught.value.hint
    assert store.queue.counts() == {"done": 1, "planned": 2}


def cut_off(store: Store, server: Any) -> None:
    with store._database.writing() as session:
        session.execute(text("DELETE FROM jobs WHERE state = 'planned'"))
        server.stop()
        server.start()
        session.execute(text("SELECT 1"))


def test_an_address_where_nothing_listens_is_refused_at_once() -> None:
    with pytest.raises(StoreError, match="cannot be reached") as caught:
        Store("postgresql+psycopg://user:secret-word@127.0.0.1:1/modelpress")
    assert "secret-word" not in caught.value.message
