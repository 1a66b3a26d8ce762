"""The client's copy of the routing, prepared for the per-I/O path, and the nodes it mistrusts.

Pure: time is passed in. Chains are prepared once a routing version or a change of mistrust, not
once an I/O.
"""

from dataclasses import replace

from hillfire.client.plan import Line, make_lines
from hillfire.cluster import Endpoint, Node, NodeKind, Routing
from hillfire.errors import Code, Error

SUSPECT_S = 2.0
"""How long a node that failed is not asked for reads: about a lease, after which routing knows."""


class RoutingCache:
    """The newest routing seen, and what follows from it."""

    def __init__(self, manager: Endpoint, host: str) -> None:
        """Take where the user said the ``manager`` is, and the id of this ``host``.

        Of several managers, one of which leads, the endpoint lists the addresses with commas.
        """
        self.routing: Routing | None = None
        self.lines: dict[int, Line] = {}
        self._managers = [replace(manager, tcp=each) for each in manager.tcp.split(",")]
        self._host = host
        self._suspects: dict[int, float] = {}
        self._turn = 0

    @property
    def version(self) -> int:
        """Of the routing; 0 before the first."""
        return self.routing.version if self.routing else 0

    def manager(self) -> Endpoint:
        """Return the manager's endpoint: what routing says and what the user said, in turn."""
        known = self.routing.manager if self.routing else None
        candidates = [known] if known is not None and known.tcp else []
        candidates += self._managers
        self._turn += 1
        return candidates[(self._turn - 1) % len(candidates)]

    @property
    def managers(self) -> int:
        """How many addresses of managers the user named."""
        return len(self._managers)

    def meta(self) -> Node:
        """Return the metadata service.

        A dead one is returned when none is known to live: it may be back before routing says so.

        Raises:
            Error: UNAVAILABLE if there never was one.
        """
        if self.routing is None:
            raise Error(Code.UNAVAILABLE, "no routing yet: is the manager up?")
        try:
            return self.routing.meta()
        except Error:
            for node in self.routing.nodes.values():
                if node.kind is NodeKind.META:
                    return node
            raise

    def take(self, routing: Routing) -> bool:
        """Take over a routing if it is newer; mistrust ends with it.

        Raises:
            Error: WRONG_CLUSTER if it speaks of another cluster than before.
        """
        known = self.routing
        if known is not None and routing.cluster != known.cluster:
            text = (
                f"cluster {known.cluster} was expected at this address, {routing.cluster} answers"
            )
            raise Error(Code.WRONG_CLUSTER, text)
        if known is not None and routing.version <= known.version:
            return False
        self._suspects = {}
        self.routing = routing
        self.lines = make_lines(routing, self._host)
        return True

    def suspect(self, node: int, now: float) -> None:
        """Ask a node that just failed for reads only if nobody else serves."""
        self._suspects = {**self._suspects, node: now + SUSPECT_S}
        self._rebuild()

    def expire(self, now: float) -> None:
        """End mistrust that is old enough."""
        if self._suspects and min(self._suspects.values()) <= now:
            self._suspects = {n: end for n, end in self._suspects.items() if end > now}
            self._rebuild()

    def _rebuild(self) -> None:
        if self.routing is not None:
            self.lines = make_lines(self.routing, self._host, self._suspects)
