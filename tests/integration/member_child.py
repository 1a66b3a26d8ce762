"""A node that answers a byte on its input with its lease, asked before any other task runs."""

import asyncio
import sys

from hillfire.cluster import Endpoint, NodeKind
from hillfire.proto.membership import Membership
from hillfire.types import NodeId


async def main() -> None:
    endpoint = Endpoint("127.0.0.1:1", "127.0.0.1:1", "", "host")
    member = Membership(
        manager=sys.argv[1],
        node=NodeId(199),
        kind=NodeKind.STORAGE,
        endpoint=endpoint,
        incarnation=1,
        cluster="",
        report=lambda: [],
        on_routing=lambda routing: None,
    )
    await member.start()
    await member.leased(5)
    print(member.lease_valid(), flush=True)
    sys.stdin.read(1)  # blocks the event loop: the next thing after waking is the question
    print(member.lease_valid(), flush=True)
    await member.stop()


asyncio.run(main())
