"""The only transaction retry loop: run, commit, and again on a conflict, a bounded number of times.

Bodies must be safe to run again: they change nothing but the transaction.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from hillfire.errors import Code, Error
from hillfire.meta.engine.base import Engine, Transaction

ATTEMPTS = 16
FIRST_BACKOFF_S = 0.001
MAX_BACKOFF_S = 0.1

T = TypeVar("T")


def transact(engine: Engine, body: Callable[[Transaction], T], *, sync: bool = False) -> T:
    """Run a body that never awaits in one transaction and return what it returned.

    Nobody else can run between its snapshot and its commit, so it cannot meet a conflict.
    ``sync`` blocks until the disk has it: for rare decisions; else await ``engine.sync()``.

    Raises:
        Error: whatever the body raises; then nothing was written.
    """
    transaction = engine.transaction()
    try:
        result = body(transaction)
        transaction.commit(sync=sync)
    finally:
        transaction.close()
    return result


async def transact_async(
    engine: Engine, body: Callable[[Transaction], Awaitable[T]], *, attempts: int = ATTEMPTS
) -> T:
    """Run a body that awaits, with other transactions beside it, until it commits.

    Waits between attempts, doubling from 1 ms to 100 ms; the delay differs between tasks by the
    order in which the loop wakes them, which is enough on one loop.

    Raises:
        Error: whatever the body raises; CONFLICT after ``attempts`` conflicts.
    """
    backoff_s = FIRST_BACKOFF_S
    for attempt in range(attempts):
        with engine.transaction() as transaction:
            try:
                result = await body(transaction)
                transaction.commit()
                return result
            except Error as error:
                if error.code is not Code.CONFLICT or attempt + 1 == attempts:
                    raise
        await asyncio.sleep(backoff_s)
        backoff_s = min(backoff_s * 2, MAX_BACKOFF_S)
    raise AssertionError("unreachable: the last attempt returns or raises")
