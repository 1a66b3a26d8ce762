"""What operators have decided, as the manager keeps it: fetched, and put into lines."""

from datetime import datetime
from typing import Any

from hillfire.proto import convert
from hillfire.proto import manager_pb2 as pb
from hillfire.proto.service import decode, encode, method
from hillfire.proto.wire.base import BlockingConnection

CALL_TIMEOUT_S = 5.0
MAX_DECISIONS = 1000

_DESCRIBE = method("Manager", "Describe")


def fetch_decisions(connection: BlockingConnection, count: int) -> list[dict[str, Any]]:
    """Return the latest decisions as ``--json`` shows them, oldest first.

    Raises:
        Error: if the manager does not answer.
    """
    request = encode(_DESCRIBE, pb.DescribeRequest(decisions=count))
    reply = connection.finish(connection.start(request, CALL_TIMEOUT_S), CALL_TIMEOUT_S)
    return [_shown(each) for each in decode(_DESCRIBE, reply).decisions]


def fetch_losses(connection: BlockingConnection) -> list[dict[str, Any]]:
    """Return the decisions that gave up data."""
    return [each for each in fetch_decisions(connection, MAX_DECISIONS) if each["loss"]]


def line(decision: dict[str, Any]) -> str:
    """Return a decision as people read it."""
    why = f"  ({decision['why']})" if decision["why"] else ""
    loss = "  DATA GIVEN UP" if decision["loss"] else ""
    return f"{decision['when']}  {decision['who']}  {decision['what']}{why}{loss}"


def _shown(message: pb.Decision) -> dict[str, Any]:
    decision = convert.decision_from_message(message)
    when = datetime.fromtimestamp(decision.wall_ms / 1000).astimezone()
    return {
        "number": decision.number,
        "when": when.isoformat(timespec="seconds"),
        "who": decision.who,
        "what": decision.what,
        "why": decision.why,
        "loss": decision.loss,
        "chain": decision.chain,
        "target": decision.target,
        "node": decision.node,
        "version": decision.version,
    }
