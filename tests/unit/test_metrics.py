"""Histograms tell the truth within their buckets, can be added and subtracted, and travel."""

import random
import re
import statistics
import subprocess
import sys
import timeit
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from hillfire import metrics
from hillfire.cli.exposition import expose
from hillfire.cli.figures import duration, plain_sample, rate, stages
from hillfire.cli.gather import Look, Looks
from hillfire.errors import Error
from hillfire.metrics import Histogram, Kind, Registry, Sample, Times
from hillfire.proto import convert
from hillfire.proto import process_pb2 as pb


def times_of(*ns: int) -> Times:
    registry = Registry()
    histogram = registry.histogram("x_seconds", "")
    for each in ns:
        histogram.observe(each)
    (sample,) = registry.collect()
    return sample.times


@given(st.integers(0, 2**63 - 1))
def test_a_time_falls_into_its_bucket(ns: int) -> None:
    bucket = metrics.bucket_of(ns)
    low, high = metrics.lower_ns(bucket), metrics.lower_ns(bucket + 1)
    assert low <= ns < high
    assert high - low <= max(1, (low + 4) / 4)
    histogram = Histogram()
    histogram.observe(ns)
    assert histogram.counts[bucket] == 1


def test_percentiles_are_near_the_truth() -> None:
    chance = random.Random(0)
    ns = sorted(int(chance.lognormvariate(11, 1)) for _ in range(20_000))
    times = times_of(*ns)
    for part in (0.5, 0.9, 0.99, 0.999):
        exact = ns[int(part * (len(ns) - 1))]
        assert times.percentile_ns(part) == pytest.approx(exact, rel=0.06), part
    assert times.mean_ns == pytest.approx(statistics.fmean(ns))
    assert times.most_ns / 1.25 <= ns[-1] < times.most_ns
    assert metrics.NOTHING.percentile_ns(0.5) == metrics.NOTHING.mean_ns == 0


def test_an_observation_is_cheap() -> None:
    observe, nothing = Histogram().observe, lambda ns: None
    times = [
        [timeit.timeit(partial(each, 123_456), number=1000) for each in (observe, nothing)]
        for _ in range(20)
    ]
    took, least = (min(column) for column in zip(*times, strict=True))
    assert took < 10 * least  # some 3: a loop over buckets, or a lock, is more


def test_what_was_done_between_two_looks() -> None:
    registry = Registry()
    histogram = registry.histogram("hillfire_stage_seconds", "", operation="read", stage="disk")
    counter = registry.counter("hillfire_bytes_total", "", operation="read")
    level = 3.0
    registry.gauge("hillfire_level", "", lambda: level)
    histogram.observe(100)
    counter.value += 10
    before = registry.collect()
    assert {s.name for s in metrics.since(registry.collect(), before)} == {"hillfire_level"}
    histogram.observe(100)
    histogram.observe(5000)
    counter.value += 5
    level = 4.0
    done = {sample.name: sample for sample in metrics.since(registry.collect(), before)}
    assert done["hillfire_stage_seconds"].times == times_of(100, 5000)
    assert done["hillfire_bytes_total"].value == 5
    assert done["hillfire_level"].value == 4.0
    both = metrics.together(before, "hillfire_stage_seconds", stage="disk").plus(times_of(7))
    assert both == times_of(100, 7)
    assert metrics.total(before, "hillfire_bytes_total", operation="write") == 0


def test_a_process_that_was_started_anew_counts_from_its_start() -> None:
    old = [Sample("x_seconds", Kind.HISTOGRAM, (), "", times=times_of(10, 20, 3000))]
    new = [Sample("x_seconds", Kind.HISTOGRAM, (), "", times=times_of(20, 99))]
    assert metrics.since(new, old) == new


def test_a_registry_keeps_names_apart() -> None:
    registry = Registry()
    assert registry.counter("a_total", "") is registry.counter("a_total", "")
    assert registry.counter("a_total", "", of="x") is not registry.counter("a_total", "", of="y")
    with pytest.raises(AssertionError):
        registry.histogram("a_total", "")
    assert registry.collect() == []  # nothing was counted
    registry.counter("a_total", "").value += 2
    histogram = registry.histogram("b_seconds", "")
    histogram.observe(5)
    registry.reset()
    assert registry.collect() == []
    assert histogram.total_ns == 0


def test_a_forked_client_counts_from_nothing() -> None:
    script = (
        "import os, hillfire.client.sync\n"
        "from hillfire import metrics\n"
        "metrics.READ.disk.observe(5)\n"
        "pid = os.fork()\n"
        "seen = metrics.together(metrics.REGISTRY.collect(), 'hillfire_stage_seconds').observed\n"
        "if pid == 0: os._exit(seen)\n"
        "print(seen, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "1 0\n", done.stderr


def test_every_stage_is_declared_and_explained() -> None:
    registry = Registry()
    operation = metrics.Operation(registry, "read")
    for stage in metrics.STAGES:
        getattr(operation, stage).observe(1)
    found = stages(registry.collect())
    assert [(each, stage) for each, stage, _ in found] == [("read", s) for s in metrics.STAGES]


def test_a_metric_travels() -> None:
    labels = (("operation", "read"), ("stage", "disk"))
    sample = Sample("x_seconds", Kind.HISTOGRAM, labels, "How long.", times=times_of(1, 10**9))
    gauge = Sample("level", Kind.GAUGE, (), "", -2.5)
    for each in (sample, gauge):
        message = pb.Metric.FromString(convert.metric_to_message(each).SerializeToString())
        assert convert.metric_from_message(message) == each


@pytest.mark.parametrize(
    "message",
    [
        pb.Metric(name="x", kind=pb.COUNTER, labels=["odd"]),
        pb.Metric(name="x", kind=pb.HISTOGRAM, buckets=[1], counts=[1, 2]),
        pb.Metric(name="x", kind=pb.HISTOGRAM, buckets=[metrics.BUCKETS], counts=[1]),
        pb.Metric(name="x"),
    ],
)
def test_what_is_no_metric_is_refused(message: pb.Metric) -> None:
    with pytest.raises(Error):
        convert.metric_from_message(message)


def test_prometheus_reads_what_is_told() -> None:
    times = times_of(100, 3_000, 3_000, 2_000_000, 10**13)
    samples = [
        Sample(
            "hillfire_x_seconds", Kind.HISTOGRAM, (("stage", "disk"),), "How long.", times=times
        ),
        Sample("hillfire_bytes_total", Kind.COUNTER, (("operation", "read"),), "Bytes.", 12.0),
        Sample("process_open_fds", Kind.GAUGE, (), "Files.", 7.0),
        Sample("level", Kind.GAUGE, (("side", "server"),), "Labels may differ.", 1.0),
        Sample("level", Kind.GAUGE, (("peer", "x"), ("side", "client")), "", 2.0),
    ]
    looks = Looks(0.0, {"storage-1": Look("storage-1", 9, 1.0, samples)}, {"storage-2": "dead"})
    families = {f.name: f for f in text_string_to_metric_families(expose(looks))}
    assert {(s.labels["process"], s.value) for s in families["hillfire_up"].samples} == {
        ("storage-1", 1),
        ("storage-2", 0),
    }
    assert families["hillfire_bytes"].type == "counter"
    levels = {tuple(sorted(s.labels)): s.value for s in families["level"].samples}
    assert levels == {("process", "side"): 1, ("peer", "process", "side"): 2}
    (fds,) = families["process_open_fds"].samples
    assert fds.value == 7
    assert fds.labels == {"process": "storage-1"}
    told = families["hillfire_x_seconds"].samples
    buckets = [(float(s.labels["le"]), s.value) for s in told if s.name.endswith("_bucket")]
    assert buckets == sorted(buckets)
    for bound, below in buckets:
        ns = [100, 3_000, 3_000, 2_000_000, 10**13]
        assert below == sum(each / 1e9 < bound for each in ns), bound
    (count,) = (s.value for s in told if s.name.endswith("_count"))
    (total,) = (s.value for s in told if s.name.endswith("_sum"))
    assert count == 5
    assert total == pytest.approx(10_000.002006100)


def test_figures_are_readable() -> None:
    shown = [duration(ns) for ns in (0, 12, 999.6, 1234, 99_960, 1.5e6, 2e9)]
    assert shown == ["0", "12 ns", "1.00 µs", "1.23 µs", "100 µs", "1.50 ms", "2.00 s"]
    assert [rate(each) for each in (0, 5.2, 9_999, 85_300, 2e6)] == [
        "", "5.20", "9,999", "85.3 k", "2.00 M",
    ]  # fmt: skip
    plain = plain_sample(Sample("x_seconds", Kind.HISTOGRAM, (), "", times=times_of(1000)))
    assert plain["count"] == 1
    assert plain["p50_s"] == pytest.approx(1e-6, rel=0.25)


def test_every_metric_is_documented() -> None:
    root = Path(__file__).resolve().parents[2]
    told = (root / "docs" / "operating.md").read_text()
    names = set()
    for folder in ("client", "fuse", "meta", "proto", "storage", "src/hillfire"):
        for path in sorted((root / folder).rglob("*.py")):
            found = re.findall(
                r'"((?:hillfire|process)_[a-z_]+_(?:total|seconds|bytes)|hillfire_connections)"',
                path.read_text(),
            )
            names |= set(found)
    names |= {f"hillfire_{what}_total" for what in ("items", "bytes", "errors")}
    assert len(names) > 10
    assert not [name for name in sorted(names) if f"`{name}" not in told]
