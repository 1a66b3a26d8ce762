"""``hillfire create-chains``: the one step that services started one by one cannot do themselves.

Which nodes belong to a cluster from the start is a person's decision: a manager that placed chains
over the first node that came would place them over that one alone.
"""

import time

from hillfire.cli.status import connect_manager, last_cluster
from hillfire.errors import Code, Error
from hillfire.meta.manager.decide import describe
from hillfire.proto.convert import routing_from_message
from hillfire.proto.manager_pb2 import CreateChainsRequest
from hillfire.proto.service import decode, encode, method

CALL_TIMEOUT_S = 30.0
PAUSE_S = 0.5
_CREATE_CHAINS = method("Manager", "CreateChains")


def run_create_chains(
    address: str | None, nodes: int, replicas: int, targets_per_node: int, wait_s: float
) -> None:
    """Place chains over ``nodes`` storage nodes, for which it waits up to ``wait_s``."""
    where = address or last_cluster()
    request = CreateChainsRequest(nodes=nodes, replicas=replicas, targets_per_node=targets_per_node)
    deadline = time.monotonic() + wait_s
    connection = connect_manager(where)
    try:
        while True:
            ticket = connection.start(encode(_CREATE_CHAINS, request), CALL_TIMEOUT_S)
            try:
                reply = connection.finish(ticket, CALL_TIMEOUT_S)
                break
            except Error as error:
                if error.code is not Code.UNAVAILABLE or time.monotonic() > deadline:
                    raise
            time.sleep(PAUSE_S)
    finally:
        connection.close()
    print(f"{describe(routing_from_message(decode(_CREATE_CHAINS, reply)))}, in routing of {where}")
    print(f"  next  hillfire status --address {where} --wait 60")
