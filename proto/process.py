"""What every process of hillfire tells of itself: its metrics, by the Process service.

Besides what modules observe (``hillfire.metrics``) there are figures of the process as such, under
the names that Prometheus gives them everywhere, and two that explain long tails: how late the
event loop is, and how long garbage collections held everything up.
"""

import asyncio
import gc
import os
import threading
import time
from collections.abc import Mapping
from typing import Any

from hillfire import metrics
from hillfire.proto import convert
from hillfire.proto import process_pb2 as pb
from hillfire.proto.dispatch import CallContext

LAG_INTERVAL_S = 0.1
"""How often the event loop is tried. Costs some 3 ms of processor time a minute."""

_LAG = metrics.histogram(
    "hillfire_loop_lag_seconds", "How late the event loop ran what was due: the wait for its turn."
)
_COLLECTIONS = metrics.histogram(
    "hillfire_gc_pause_seconds", "Garbage collections, which hold every thread of a process up."
)
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_NS = 1_000_000_000


class ProcessService:
    """Answers for this process; the same whatever else it serves."""

    def get_metrics(self, request: pb.GetMetricsRequest, context: CallContext) -> Any:
        """Tell everything that was counted and timed."""
        return snapshot()


def snapshot() -> pb.GetMetricsReply:
    """Return this process's metrics of now, as they travel."""
    return pb.GetMetricsReply(
        pid=os.getpid(),
        age_ns=_age_ns(),
        metrics=map(convert.metric_to_message, metrics.REGISTRY.collect()),
    )


def declare() -> None:
    """Have the process itself among its metrics. Idempotent."""
    for name, text, kind, read in (
        ("process_cpu_seconds_total", "Processor time, user and system.", metrics.Kind.COUNTER,
         lambda: time.process_time_ns() / _NS),
        ("process_resident_memory_bytes", "Memory, shared memory included.", metrics.Kind.GAUGE,
         _resident_bytes),
        ("process_open_fds", "Open files and sockets.", metrics.Kind.GAUGE,
         lambda: len(os.listdir("/proc/self/fd"))),
        ("process_start_time_seconds", "Start of the process, since 1970.", metrics.Kind.GAUGE,
         lambda: time.time() - _age_ns() / _NS),
        ("process_threads", "Python's threads.", metrics.Kind.GAUGE, threading.active_count),
    ):  # fmt: skip
        metrics.gauge(name, text, read, kind)


def watch() -> None:
    """Begin to time the running event loop's lateness and garbage collections, for good."""
    declare()
    if _time_collection not in gc.callbacks:
        gc.callbacks.append(_time_collection)
    loop = asyncio.get_running_loop()

    def look(due: float) -> None:
        now = loop.time()
        _LAG.observe(max(0, int((now - due) * _NS)))
        loop.call_at(now + LAG_INTERVAL_S, look, now + LAG_INTERVAL_S)

    look(loop.time())


_began_ns = 0


def _time_collection(phase: str, info: Mapping[str, int]) -> None:
    """Take the time of a garbage collection; the interpreter calls it before and after each."""
    global _began_ns
    if phase == "start":
        _began_ns = time.monotonic_ns()
    elif _began_ns:
        _COLLECTIONS.observe(time.monotonic_ns() - _began_ns)


def _resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * _PAGE_BYTES


def _age_ns() -> int:
    with open("/proc/self/stat", encoding="ascii") as stat:
        ticks = int(stat.read().rpartition(")")[2].split()[19])
    started_ns = ticks * _NS // os.sysconf("SC_CLK_TCK")
    return max(0, time.clock_gettime_ns(time.CLOCK_BOOTTIME) - started_ns)
