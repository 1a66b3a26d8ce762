"""A metadata service as a process: ``meta_child.py DIRECTORY MANAGER LEASE_MS``; says where."""

import asyncio
import logging
import signal
import sys
from pathlib import Path

from hillfire.config import MetaConfig
from hillfire.meta.server import MetaServer


async def main() -> None:
    logging.basicConfig(level=logging.INFO, format="meta %(asctime)s %(message)s")
    server = MetaServer(
        MetaConfig(
            directory=Path(sys.argv[1]), manager=sys.argv[2], session_lease_ms=int(sys.argv[3])
        )
    )
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await server.start()
    print(server.address, flush=True)
    await ended.wait()
    await server.stop()


asyncio.run(main())
