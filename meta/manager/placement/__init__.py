"""Which targets make up which chain: chain tables for any number of nodes, disks and replicas.

Pure, and the same table for the same input. Each step is a module:

1. ``shares``: how many chains there can be, and what each node gives to them;
2. ``problem``: which nodes stand together, posed as a balanced incomplete block design;
   ``designs`` knows perfect ones, ``search`` finds nearly all others, and where it stops short of
   the optimum ``orbits`` poses an integer program to ``solver`` (only a person's own process does
   that, never the manager);
3. ``disks``: on which disk of a node each chain lies;
4. ``order``: who is head, who is tail;
5. ``evenness``: how well the load of a dead node, disk or host spreads, and what was possible.
"""

from hillfire.meta.manager.placement.homes import (
    MAX_NODES,
    MAX_REPLICAS,
    MAX_TARGETS,
    MAX_TARGETS_PER_NODE,
    Domain,
    Home,
    Place,
    require,
)
from hillfire.meta.manager.placement.plan import Plan, check, make_plan, place

__all__ = [
    "MAX_NODES",
    "MAX_REPLICAS",
    "MAX_TARGETS",
    "MAX_TARGETS_PER_NODE",
    "Domain",
    "Home",
    "Place",
    "Plan",
    "check",
    "make_plan",
    "place",
    "require",
]
