"""What a process counts and times, by name: histograms in fixed buckets, counters and gauges.

One registry a process, because what is measured belongs to the process, as its log does
(``observe.py``). Whoever has something to measure declares it at the head of its module and
observes once a *request*, never once an item of a batch::

    from hillfire import metrics

    began = time.monotonic_ns()
    ...
    metrics.READ.disk.observe(time.monotonic_ns() - began)   # 0.2 µs
    metrics.READ.bytes.value += filled

Pure: times are handed in, as whole nanoseconds. A histogram is 256 numbers whatever it has seen,
so that histograms of several processes and moments can be added and subtracted; its buckets are
a quarter of a power of two wide, which puts a percentile within some 6 % of the truth. An
observation takes no lock: none of its steps lets another thread of CPython in between.
"""

from collections.abc import Callable, Iterable, Mapping
from enum import IntEnum
from typing import NamedTuple, TypeVar

BUCKETS = 256
"""Enough for any 64-bit number of nanoseconds."""


class Kind(IntEnum):
    """What a metric is."""

    COUNTER = 1
    """only grows while its process lives"""
    GAUGE = 2
    """goes up and down"""
    HISTOGRAM = 3
    """how long things took"""


Labels = tuple[tuple[str, str], ...]
"""Name and value, in the order of names."""


def bucket_of(ns: int) -> int:
    """Return the bucket that a time falls into; ``Histogram.observe`` says the same in place."""
    ns += 4
    shift = ns.bit_length() - 3
    return (shift << 2) + (ns >> shift)


def lower_ns(bucket: int) -> int:
    """Return the least time of a bucket; that of the next one is the first above it."""
    shift, step = divmod(bucket - 4, 4)
    return max(0, ((step + 4) << shift) - 4) if bucket >= 4 else 0


_ZERO = bucket_of(0)


class Histogram:
    """How long something took, each time."""

    __slots__ = ("counts", "total_ns")

    def __init__(self) -> None:
        """Nothing seen yet."""
        self.counts = [0] * BUCKETS
        self.total_ns = 0

    def observe(self, ns: int) -> None:
        """Count a time, not negative."""
        self.total_ns += ns
        ns += 4
        shift = ns.bit_length() - 3
        self.counts[(shift << 2) + (ns >> shift)] += 1


class Counter:
    """How often, or how much: ``counter.value += 1``. Its unit is in its name."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        """Begin at 0."""
        self.value = 0


class Times(NamedTuple):
    """What a histogram had seen at some moment, or between two."""

    counts: Mapping[int, int]
    """by bucket, those that are not empty"""
    total_ns: int

    @property
    def observed(self) -> int:
        """How many there were."""
        return sum(self.counts.values())

    @property
    def mean_ns(self) -> float:
        """The mean, exact; 0 if there was nothing."""
        return self.total_ns / self.observed if self.observed else 0.0

    def percentile_ns(self, part: float) -> float:
        """Return what ``part`` (0 to 1) of the times stay below; 0 if there was nothing."""
        rank, seen = part * self.observed, 0
        for bucket in sorted(self.counts):
            here = self.counts[bucket]
            if seen + here >= rank:
                low, high = lower_ns(bucket), lower_ns(bucket + 1)
                return low + (high - low) * (rank - seen) / here if here else float(low)
            seen += here
        return 0.0

    @property
    def most_ns(self) -> int:
        """What no time reached: the upper end of the last bucket."""
        return lower_ns(max(self.counts) + 1) if self.counts else 0

    def plus(self, other: "Times") -> "Times":
        """Return both together."""
        counts = dict(self.counts)
        for bucket, count in other.counts.items():
            counts[bucket] = counts.get(bucket, 0) + count
        return Times(counts, self.total_ns + other.total_ns)

    def minus(self, earlier: "Times") -> "Times":
        """Return what came after ``earlier``, which is of the same process.

        If the process was started anew since, that is all there is.
        """
        counts = {b: n - earlier.counts.get(b, 0) for b, n in self.counts.items()}
        known = set(self.counts) >= set(earlier.counts)
        if not known or any(n < 0 for n in counts.values()):
            return self
        return Times({b: n for b, n in counts.items() if n}, self.total_ns - earlier.total_ns)


NOTHING = Times({}, 0)


class Sample(NamedTuple):
    """One metric of one process at some moment."""

    name: str
    kind: Kind
    labels: Labels
    help: str
    value: float = 0.0
    """of a counter or gauge"""
    times: Times = NOTHING
    """of a histogram"""

    @property
    def key(self) -> tuple[str, Labels]:
        """What makes it the same metric in another sample of the same process."""
        return self.name, self.labels

    def label(self, name: str) -> str:
        """Return the value of a label, empty if it has none."""
        return dict(self.labels).get(name, "")


M = TypeVar("M", Histogram, Counter)


class Registry:
    """Everything that a process measures."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._entries: dict[tuple[str, Labels], tuple[Kind, str, object]] = {}
        self._gauges: dict[str, tuple[Kind, str, Callable[[], Mapping[Labels, float]]]] = {}

    def histogram(self, name: str, help: str, **labels: str) -> Histogram:
        """Return the histogram of a name (which ends in ``_seconds``) and labels, made if new."""
        assert name.endswith("_seconds"), name
        return self._get(Kind.HISTOGRAM, Histogram, name, help, labels)

    def counter(self, name: str, help: str, **labels: str) -> Counter:
        """Return the counter of a name (which ends in ``_total``) and labels, made if new."""
        assert name.endswith("_total"), name
        return self._get(Kind.COUNTER, Counter, name, help, labels)

    def gauge(
        self, name: str, help: str, read: Callable[[], float], kind: Kind = Kind.GAUGE
    ) -> None:
        """Have ``read`` called whenever somebody looks; a later one replaces it."""
        self.gauges(name, help, lambda: {(): read()}, kind)

    def gauges(
        self,
        name: str,
        help: str,
        read: Callable[[], Mapping[Labels, float]],
        kind: Kind = Kind.GAUGE,
    ) -> None:
        """Have ``read`` tell values by labels whenever somebody looks."""
        self._gauges[name] = kind, help, read

    def _get(self, kind: Kind, make: type[M], name: str, help: str, labels: Mapping[str, str]) -> M:
        key = name, tuple(sorted(labels.items()))
        found = self._entries.get(key)
        if found is None:
            found = self._entries[key] = kind, help, make()
        assert isinstance(found[2], make), f"{name} is a {found[0].name.lower()}"
        return found[2]

    def collect(self) -> list[Sample]:
        """Return all that there is to see now; histograms and counters never used are left out."""
        samples = []
        for (name, labels), (kind, text, entry) in list(self._entries.items()):
            if isinstance(entry, Histogram):
                if entry.total_ns or entry.counts[_ZERO]:  # else unused, as most of them are
                    times = Times({b: n for b, n in enumerate(entry.counts) if n}, entry.total_ns)
                    samples.append(Sample(name, kind, labels, text, times=times))
            elif isinstance(entry, Counter) and entry.value:
                samples.append(Sample(name, kind, labels, text, float(entry.value)))
        for name, (kind, text, read) in list(self._gauges.items()):
            samples += [Sample(name, kind, labels, text, float(v)) for labels, v in read().items()]
        return samples

    def reset(self) -> None:
        """Begin anew, in a forked child: what the parent did is the parent's."""
        for _, _, entry in self._entries.values():
            if isinstance(entry, Histogram):
                entry.counts[:] = [0] * BUCKETS
                entry.total_ns = 0
            elif isinstance(entry, Counter):
                entry.value = 0


REGISTRY = Registry()
"""This process's."""

histogram = REGISTRY.histogram
counter = REGISTRY.counter
gauge = REGISTRY.gauge
gauges = REGISTRY.gauges


STAGES: Mapping[str, str] = {
    "client_queue": "in the client, until its request was sent",
    "client": "in the client: the whole operation as its caller sees it",
    "wire": "between client and server, both ways: what the server did not account for",
    "server_queue": "in the server, from the request's arrival until work on it began",
    "server": "in the server, from the request's arrival until its answer was there",
    "memory": "writes: waiting for room in the server's memory, where there was too little",
    "disk": "at the store: reading, or writing and logging, page cache included",
    "checksum": "computing or verifying CRC32C",
    "forward": "writes: at the successor, and the way there and back",
    "sync": "making durable: fsync, and waiting for a group's",
}
"""Where the time of an operation goes, in the order of its way. A read's time at the server is
queue + disk + checksum and little else; ``client`` holds all the others."""


class Operation:
    """The stages of one kind of operation in this process, and how much of it was done."""

    __slots__ = (
        "bytes",
        "checksum",
        "client",
        "client_queue",
        "disk",
        "errors",
        "forward",
        "items",
        "memory",
        "server",
        "server_queue",
        "sync",
        "wire",
    )

    def __init__(self, registry: Registry, name: str) -> None:
        """Declare them all; those that stay unused are not shown."""

        def stage(stage: str) -> Histogram:
            text = "Where the time of requests goes, by operation and stage."
            return registry.histogram("hillfire_stage_seconds", text, operation=name, stage=stage)

        def count(what: str, text: str) -> Counter:
            return registry.counter(f"hillfire_{what}_total", text, operation=name)

        self.client_queue = stage("client_queue")
        self.client = stage("client")
        self.wire = stage("wire")
        self.server_queue = stage("server_queue")
        self.server = stage("server")
        self.memory = stage("memory")
        self.disk = stage("disk")
        self.checksum = stage("checksum")
        self.forward = stage("forward")
        self.sync = stage("sync")
        self.items = count("items", "Items of batches: ranges of one chunk each.")
        self.bytes = count("bytes", "Bytes of user data moved.")
        self.errors = count("errors", "Clients: items that failed for good; servers: requests.")


READ = Operation(REGISTRY, "read")
WRITE = Operation(REGISTRY, "write")
"""At a chain's head, and in the client."""
FORWARD = Operation(REGISTRY, "forward")
"""At every other member of a chain."""
CALL = Operation(REGISTRY, "call")
"""Everything else: metadata and coordination."""


def total(samples: Iterable[Sample], name: str, **labels: str) -> float:
    """Return the sum of counters or gauges of a name that have all these labels."""
    wanted = set(labels.items())
    return sum(s.value for s in samples if s.name == name and wanted <= set(s.labels))


def together(samples: Iterable[Sample], name: str, **labels: str) -> Times:
    """Return all histograms of a name that have all these labels, as one."""
    wanted, found = set(labels.items()), NOTHING
    for sample in samples:
        if sample.name == name and wanted <= set(sample.labels):
            found = found.plus(sample.times)
    return found


def since(now: Iterable[Sample], before: Iterable[Sample]) -> list[Sample]:
    """Return what one process did between two looks; gauges are those of now."""
    known = {sample.key: sample for sample in before}
    changed = []
    for sample in now:
        earlier = known.get(sample.key)
        if earlier is None or sample.kind is Kind.GAUGE:
            changed.append(sample)
        elif sample.kind is Kind.HISTOGRAM:
            times = sample.times.minus(earlier.times)
            if times.counts:
                changed.append(sample._replace(times=times))
        elif sample.value != earlier.value:
            grown = sample.value - earlier.value
            changed.append(sample._replace(value=grown if grown > 0 else sample.value))
    return changed
