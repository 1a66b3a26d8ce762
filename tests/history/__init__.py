"""Histories of what clients saw, and a checker that judges whether a correct chunk could do it.

The simulator and the tests with real processes record operations (``Recorder``), ``judge`` decides
whether each chunk's history is linearizable, ``dump`` and ``load`` keep histories as JSON lines so
that a failing one can be judged again: ``python -m tests.history FILE``.

Source: Herlihy & Wing, "Linearizability", TOPLAS 1990 (locality: each chunk may be judged apart);
Wing & Gong, "Testing and Verifying Concurrent Objects", JPDC 1993; Lowe, "Testing for
linearizability", Concurrency and Computation 2017 (just-in-time order, remembered states).
"""

from tests.history.judge import Undecided, Verdict, Violation, check_versions, judge
from tests.history.operation import Extent, Kind, Operation, Recorder, dump, load, raw
from tests.history.pattern import decode, labelled, pattern

__all__ = [
    "Extent",
    "Kind",
    "Operation",
    "Recorder",
    "Undecided",
    "Verdict",
    "Violation",
    "check_versions",
    "decode",
    "dump",
    "judge",
    "labelled",
    "load",
    "pattern",
    "raw",
]
