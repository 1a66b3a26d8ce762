"""The model's table: ``python -m tests.model``, with ``--short`` a small cluster in seconds.

Prints what 180 storage nodes with two ports of 200 Gb/s deliver to 500 clients with one each, all
reading at random: with everything that the client schedules by, and without each of it.
"""

import argparse
import json
import time
from dataclasses import asdict, replace

from tests.model.cluster import Choice, Cluster, Figures, Setting

SHORT = Setting(nodes=24, clients=67, files=400)
LONG = Setting()
WARM_S, END_S = 0.008, 0.020
LEARNED_S = 0.032
"""Later, where nodes differ: a client must have met a slow node to know it."""

ALL = Choice()
ROWS = (
    ("all of it", ALL),
    ("replicas in turn, not by load", replace(ALL, by_load=False)),
    ("without request-to-send", replace(ALL, granted_bytes=0)),
    ("without the window either", replace(ALL, granted_bytes=0, window_bytes=1 << 40)),
    ("none of it", Choice(by_load=False, granted_bytes=0, window_bytes=1 << 40, hedged=False)),
)
SLOW = (
    ("one node in 30 at a quarter of its rate", replace(ALL, slow_every=30)),
    ("the same, replicas in turn", replace(ALL, slow_every=30, by_load=False)),
    (
        "the same, in turn and not hedged",
        replace(ALL, slow_every=30, by_load=False, hedged=False),
    ),
)


def show(name: str, found: Figures, took_s: float) -> None:
    """Print one row."""
    print(
        f"{name:42s} {found.share:6.1%} {found.worst_node:7.1%} {found.blocked:8.1%} "
        f"{found.client_rate / 1e9:9.1f} {found.request_p50_s * 1e3:7.2f} "
        f"{found.request_p99_s * 1e3:7.2f} {found.batch_p99_s * 1e3:9.2f} {took_s:6.0f}",
        flush=True,
    )


def main() -> None:
    """Run every row."""
    parser = argparse.ArgumentParser(prog="python -m tests.model", description=__doc__)
    parser.add_argument("--short", action="store_true", help="24 nodes, 67 clients")
    parser.add_argument("--rows", type=int, default=99, help="only so many")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    options = parser.parse_args()
    setting = SHORT if options.short else LONG
    print(
        f"{setting.nodes} nodes x {setting.disks} disks, {setting.replicas} replicas, "
        f"{setting.clients} clients x {setting.depth} batches of {setting.entries} x "
        f"{setting.entry_bytes >> 20} MiB at random; {(END_S - WARM_S) * 1e3:.0f} ms of virtual "
        "time after the warm-up"
    )
    print(
        f"{'':42s} {'NICs':>6s} {'worst':>7s} {'blocked':>8s} {'client':>9s} "
        f"{'p50':>7s} {'p99':>7s} {'batch p99':>9s} {'cpu':>6s}\n"
        f"{'':42s} {'':6s} {'node':>7s} {'':8s} {'GB/s':>9s} {'ms':>7s} {'ms':>7s} "
        f"{'ms':>9s} {'s':>6s}"
    )
    rows = {}
    for name, choice in (ROWS + SLOW)[: options.rows]:
        began = time.process_time()
        later_s = LEARNED_S if choice.slow_every else 0.0
        found = Cluster(setting, choice).run(WARM_S + later_s, END_S + later_s)
        rows[name] = asdict(found)
        show(name, found, time.process_time() - began)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
