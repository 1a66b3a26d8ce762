"""A storage node as a process: ``storage_child.py NODE DIRECTORY MANAGER [TOML]``.

Prints its address. TOML: further keys of its configuration.
"""

import asyncio
import logging
import signal
import sys
from typing import cast

from hillfire import config
from hillfire.storage.server import StorageServer


async def main() -> None:
    node, directory, manager, *more = sys.argv[1:]
    logging.basicConfig(level=logging.INFO, format=f"{node} %(asctime)s %(message)s")
    text = f'node = {node}\ndirectory = "{directory}"\nmanager = "{manager}"\n'
    if "pool_bytes" not in "".join(more):
        text += 'pool_bytes = "32 MiB"\n'
    settings = config.parse("storage", text + "\n".join(more))
    server = StorageServer(cast(config.StorageConfig, settings))
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await server.start()
    print(server.tcp_address, flush=True)
    await ended.wait()
    await server.stop()


asyncio.run(main())
