"""The rules of replication, by number. Each is carried out in one place, which names its number.

The table stands apart from the code so that documents, coverage and people speak of the same
rules: ``docs/replication.md`` lists it, and the simulator counts which of them its worlds used
(``on_rule``). Where a rule decides, the code calls its hook with the number.
"""

from typing import NamedTuple

CRAQ = 'Terrace & Freedman, "Object Storage on CRAQ", USENIX ATC 2009'
CHAIN = 'van Renesse & Schneider, "Chain Replication", OSDI 2004'
THREEFS = "3FS, design notes and code at e2cef822"


class Rule(NamedTuple):
    """One rule: what holds, where it is carried out, and where it comes from."""

    sentence: str
    place: str
    """module of ``hillfire.storage``"""
    source: str


_CORE = "craq.replica"
_TABLE = "craq.table"
_LOCK = "craq.locking"
_ADMIT = "craq.admission"
_PASS = "craq.passing"
_HEAL = "craq.healing"
_LIFE = "lifecycle"
_SYNC = "recovery"

RULES: dict[int, Rule] = {
    # requests and the chain's version
    1: Rule(
        "A request that names another chain version than the target's is refused on arrival.",
        _CORE,
        THREEFS,
    ),
    2: Rule(
        "The chain version is compared again once the chunk's lock is held: the chain may have "
        "changed while the request stood in line.",
        _LOCK,
        THREEFS,
    ),
    3: Rule(
        "Writes enter at a serving head; forwards are taken by serving and syncing targets behind "
        "it only.",
        _CORE,
        CHAIN + ", 3.1",
    ),
    4: Rule(
        "The head gives an update the chunk's next version, u = v + 1. Versions never restart: a "
        "removed chunk keeps a tombstone with its version.",
        _ADMIT,
        CRAQ + ", 2.3",
    ),
    5: Rule(
        "A chunk has one update under way: its lock is held from before the update is prepared "
        "until it is committed here and the successor has it. Others wait in line, a bounded one.",
        _LOCK,
        THREEFS,
    ),
    6: Rule(
        "A write is taken, and acknowledged, only while as many replicas serve as the chain asks "
        "for (min_serving); a retry of what fewer replicas committed is told so until then.",
        _CORE,
        "design.md 5, States",
    ),
    # exactly once
    7: Rule(
        "An update whose tag is its channel's latest is answered with the result that it had.",
        _CORE,
        "design.md 5.5",
    ),
    8: Rule(
        "An update with a lower sequence than its channel's latest is refused: its client has "
        "gone on.",
        _CORE,
        "design.md 5.5",
    ),
    9: Rule("A retry of an update in flight waits for the same outcome.", _CORE, "design.md 5.5"),
    10: Rule(
        "Tags and results are kept with the versions, forwarded, carried by a resync, and dropped "
        "when their client's session ended.",
        _CORE,
        "design.md 5.5",
    ),
    # epochs
    11: Rule(
        "A write of an older epoch than the chunk's is refused: it came too late.",
        _ADMIT,
        "design.md 5, Truncate and remove",
    ),
    12: Rule(
        "Truncate and remove touch only what older epochs wrote; what carries their own epoch was "
        "written after them, and stays.",
        _ADMIT,
        "design.md 5, Truncate and remove",
    ),
    # on the way down and up the chain
    13: Rule("The tail commits an update as soon as it is prepared.", _PASS, CHAIN + ", 3.1"),
    14: Rule(
        "Every other target commits once its successor has acknowledged.", _PASS, CRAQ + ", 2.3"
    ),
    15: Rule(
        "A forwarded update names the image that the sender's chunk will have; a target whose own "
        "differs discards it, and one that serves stops.",
        _PASS,
        THREEFS,
    ),
    16: Rule(
        "An acknowledgement names the image that the successor's chunk has; a target whose own "
        "differs stops.",
        _PASS,
        THREEFS,
    ),
    17: Rule(
        "A forwarded update that is pending here with the same tag is answered with it.",
        _CORE,
        "design.md 5.4",
    ),
    18: Rule(
        "A forwarded version at or below the committed one is answered as done only if the tag "
        "stored for that version is the request's.",
        _ADMIT,
        "design.md 5.4",
    ),
    19: Rule(
        "A tag that differs means that the sender has diverged: it is told so, and stops.",
        _ADMIT,
        "design.md 5.4",
    ),
    20: Rule(
        "A forwarded version beyond committed + 1 is refused; a serving target stops over it, "
        "since it missed an update.",
        _ADMIT,
        "design.md 5.4",
    ),
    21: Rule(
        "A refusal by a serving successor that left nothing applied ends the update everywhere "
        "before it, and the client is told.",
        _PASS,
        THREEFS,
    ),
    22: Rule(
        "A forward that failed is sent again after a back-off, for as long as the chain names the "
        "successor.",
        _PASS,
        THREEFS,
    ),
    23: Rule(
        "On every change of the chain each target sends its pending updates on with their stored "
        "tags under the new version: a new tail commits, others forward again.",
        _CORE,
        CHAIN + ", 3.3",
    ),
    24: Rule(
        "An answer to an attempt that was overtaken by a change of the chain says nothing.",
        _PASS,
        CHAIN + ", 3.3",
    ),
    # reads
    25: Rule(
        "A read is answered by a serving target that acts on the chain version it names.",
        _TABLE,
        CRAQ + ", 2.3",
    ),
    26: Rule(
        "With a version pending that a later target may have committed a read is answered NOT "
        "COMMITTED; the client asks the tail.",
        _TABLE,
        CRAQ + ", 2.3",
    ),
    27: Rule(
        "A target that became the tail with an update pending does not show what was before it: "
        "the old tail may have shown what is after.",
        _TABLE,
        "found by the simulator",
    ),
    28: Rule("Relaxed reads are exempt from 26 and 27.", _TABLE, CRAQ + ", 2.4"),
    # damage
    29: Rule(
        "A target that finds its own bytes damaged under a chunk's lock fetches the same version "
        "from another target, verifies it against its own record, and stores it.",
        _HEAL,
        "design.md 5.3",
    ),
    30: Rule(
        "A successor whose bytes are damaged is sent the whole chunk as it is committed here.",
        _PASS,
        "design.md 5.3",
    ),
    31: Rule(
        "A serving target takes a whole chunk only as the repair of the very version that it has.",
        _ADMIT,
        "design.md 5.3",
    ),
    32: Rule(
        "Where no good copy is left the chunk is marked lost, said so loudly, and resynced as "
        "lost: it reads as damaged everywhere until it is overwritten, never as something older.",
        _HEAL,
        "design.md 6",
    ),
    # recovery
    33: Rule(
        "The predecessor compares both sides' records and sends what differs under the chunks' "
        "locks, naming version and chain version; removals likewise.",
        _SYNC,
        THREEFS,
    ),
    34: Rule("What is equal is not sent, however often a sync begins anew.", _SYNC, "design.md 5"),
    35: Rule(
        "A chunk that is newer at the returning target than at the serving one cannot be decided "
        "by a resync: the returning target stops, says why, and stays out.",
        _SYNC,
        THREEFS,
    ),
    36: Rule(
        "The last serving target commits without waiting for a syncing successor.",
        _PASS,
        "design.md 5, Recovery",
    ),
    37: Rule(
        "An ordinary write reaches a syncing successor as a forward if its base is right there, "
        "as the whole chunk if not.",
        _PASS,
        "design.md 5, Recovery",
    ),
    38: Rule(
        "A syncing successor counts from when all was compared: commits wait for it from then on, "
        "and it is told so once nothing is committed here that it lacks.",
        _CORE,
        "design.md 5, Recovery",
    ),
    39: Rule(
        "A target that begins to sync forgets what it had pending: recovery decides.",
        _CORE,
        "design.md 5, Recovery",
    ),
    # lives
    40: Rule(
        "A restarted node's target is not taken up until the routing shows it not serving.",
        _LIFE,
        "design.md 5, Leases",
    ),
    41: Rule(
        "A target that finds itself no longer serving, or no longer syncing, stops.",
        _CORE,
        "design.md 5, Leases",
    ),
    42: Rule(
        "A target is up to date only once its predecessor said so under the present chain "
        "version, or while it serves.",
        _LIFE,
        THREEFS,
    ),
    43: Rule(
        "A target whose store is missing although it serves does not come up.",
        _LIFE,
        "design.md 5.8",
    ),
    44: Rule(
        "A target whose disk failed or is full is offline until the disk is found good, and then "
        "comes back through a sync.",
        _LIFE,
        "design.md 6",
    ),
    45: Rule(
        "A target that is withdrawn by order stops at once and is offline while the order stands.",
        _LIFE,
        "design.md 5, Leases",
    ),
    46: Rule(
        "A defect of the program ends the target's life; after several the target stays out.",
        _LIFE,
        "design.md 10",
    ),
    # clones
    47: Rule(
        "A clone holds both chunks' locks, taken in the order of their ids, and is forwarded by "
        "name; the image that it makes is compared as any other.",
        _LOCK,
        "design.md 6",
    ),
    48: Rule(
        "Forwards are numbered. One that is no newer than the last refusal of 21 is sent again, "
        "not done: a late copy would commit what its client was told has failed.",
        _CORE,
        "found by the simulator, seeds 261 and 429",
    ),
}
"""All rules of the storage side; the manager's are the rows of ``meta/manager/chains.TABLE``."""

NUMBERS = tuple(RULES)
