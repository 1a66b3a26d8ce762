"""A storage node as a process: ``storage_child.py NODE DIRECTORY MANAGER``. Prints its address."""

import asyncio
import logging
import signal
import sys
from pathlib import Path

from hillfire.config import StorageConfig
from hillfire.storage.server import StorageServer


async def main() -> None:
    logging.basicConfig(level=logging.INFO, format=f"{sys.argv[1]} %(asctime)s %(message)s")
    server = StorageServer(
        StorageConfig(
            node=int(sys.argv[1]),
            directory=Path(sys.argv[2]),
            manager=sys.argv[3],
            pool_bytes=32 << 20,
        )
    )
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await server.start()
    print(server.tcp_address, flush=True)
    await ended.wait()
    await server.stop()


asyncio.run(main())
