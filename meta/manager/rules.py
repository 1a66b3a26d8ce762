"""The manager's rules, by number, beside the rows of its state table (``chains.TABLE``).

They go on where those of the storage side end (``storage/craq/rules.py``); what is said there of
hooks and documents holds here. Pure.
"""

from typing import NamedTuple

LEASES = "design.md 5, Leases"
GRAY = 'Gray & Cheriton, "Leases", SOSP 1989'


class Rule(NamedTuple):
    """One rule: what holds, where it is carried out, and where it comes from."""

    sentence: str
    place: str
    """module of ``hillfire.meta.manager``"""
    source: str


RULES: dict[int, Rule] = {
    60: Rule(
        "A node is declared dead no earlier than a full lease after it was last heard of, or when "
        "its end is attested.",
        "core",
        LEASES,
    ),
    61: Rule(
        "Between the decision that a node is dead and its publication none of its heartbeats is "
        "answered.",
        "core",
        GRAY,
    ),
    62: Rule(
        "A later incarnation counts as the death of the one before; what an ended process left in "
        "the network is refused.",
        "core",
        LEASES,
    ),
    63: Rule(
        "A new leader declares nobody dead before it has heard of all, or for a full lease.",
        "core",
        LEASES,
    ),
    64: Rule(
        "A manager that was paused starts every running lease anew: heartbeats wait unread.",
        "lease",
        LEASES,
    ),
    65: Rule(
        "A leader answers nobody past its own lease; when it regains it, every node has a full "
        "lease from then.",
        "core",
        "design.md 7",
    ),
    66: Rule(
        "A routing is durable, and no newer epoch claimed, before anybody sees it.",
        "core",
        LEASES,
    ),
    67: Rule(
        "A live target that has to leave is taken out when it is reported offline, or a full lease "
        "after its order was published.",
        "core",
        LEASES,
    ),
    68: Rule(
        "No order takes a chain's last serving target, and one that would keep a chain from "
        "serving is void.",
        "orders",
        "design.md 5, States",
    ),
    69: Rule(
        "The order among targets that serve never changes: a head leaves, and comes back at the "
        "tail through a sync.",
        "orders",
        "van Renesse & Schneider, OSDI 2004: each has what its successors have",
    ),
    70: Rule(
        "Only an operator gives up a last-serving target, and it is recorded who, when and why.",
        "commands",
        "design.md 5, States",
    ),
    71: Rule(
        "A client's session is over when it says so or was silent for its length; a new leader "
        "ends none before that length has passed.",
        "sessions",
        "design.md 5, rule 5; 3FS",
    ),
}
"""All of them."""
