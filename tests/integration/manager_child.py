"""A manager as a process: ``manager_child.py DIRECTORY LISTEN LEASE_MS``. Prints its address."""

import asyncio
import signal
import sys
from pathlib import Path

from hillfire.config import ManagerConfig
from hillfire.meta.manager.server import ManagerServer


async def main() -> None:
    lease_ms = int(sys.argv[3])
    server = ManagerServer(
        ManagerConfig(
            directory=Path(sys.argv[1]),
            listen=sys.argv[2],
            lease_ms=lease_ms,
            heartbeat_interval_ms=min(250, lease_ms // 4),
        )
    )
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await server.start()
    print(server.address, flush=True)
    await ended.wait()
    await server.stop()


asyncio.run(main())
