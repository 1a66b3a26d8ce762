"""A manager as a process: ``manager_child.py DIRECTORY LISTEN LEASE_MS [TOML]``.

Prints its address. TOML: further keys of its configuration.
"""

import asyncio
import logging
import signal
import sys
from typing import cast

from hillfire import config
from hillfire.meta.manager.server import ManagerServer


async def main() -> None:
    directory, listen, lease_ms, *more = sys.argv[1:]
    logging.basicConfig(level=logging.INFO, format="manager %(asctime)s %(message)s")
    text = f'directory = "{directory}"\nlisten = "{listen}"\nlease_ms = {lease_ms}\n'
    text += f"heartbeat_interval_ms = {min(250, int(lease_ms) // 4)}\n"
    settings = config.parse("manager", text + "\n".join(more))
    server = ManagerServer(cast(config.ManagerConfig, settings))
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await server.start()
    print(server.address, flush=True)
    await ended.wait()
    await server.stop()


asyncio.run(main())
