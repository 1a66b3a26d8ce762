"""Every interleaving of a small world, over the production replica, lifecycle, resync and table.

One chain of three targets, two clients that write to one chunk, one crash with a restart at any
moment, one target that loses its lease and is removed while it lives. Messages arrive in any
order; a state that was met before, up to names of requests and the like, is not gone into again.

Readers read everywhere in every state: what any target would answer is held against the newest
version that any target has answered on the way here, and against what was acknowledged. So a
state's *floor* is part of it.

    python -m tests.simulation.exhaustive --bound 4

"""

# mypy: ignore-errors

import argparse
import gc
import pickle
import random
import sys
import time
from collections import Counter, deque
from typing import NamedTuple

from hillfire.cluster import PublicState
from hillfire.errors import Code, Error
from hillfire.meta.manager.chains import LOST, Report, new_chain, next_chain
from hillfire.meta.manager.chains import check as check_chain
from hillfire.proto.wire.chunks import ForwardItem, Kind, WriteItem
from hillfire.storage import comparison, lifecycle, recovery
from hillfire.storage.craq import events
from hillfire.storage.craq.check import check
from hillfire.storage.craq.operation import Link
from hillfire.storage.craq.replica import Replica
from hillfire.storage.lifecycle import Lifecycle
from hillfire.storage.store.base import Image, Update
from hillfire.storage.store.checksum import crc32c
from hillfire.storage.store.memory import MemoryStore
from hillfire.types import ChainId, TargetId, chunk_id

CHUNK = chunk_id(7, 0)
CHUNK_BYTES = 65536
SERVING = PublicState.SERVING


class Bound(NamedTuple):
    """How much happens in a world."""

    updates: int = 1
    """a client"""
    copies: int = 1
    """of one update under way at once: a retry after a time-out beside the first"""
    crashes: int = 1
    changes: int = 1
    slow_store: bool = False
    """the store's answers are messages of their own, which others overtake"""
    removals: bool = False
    lag: int = 1
    """chain versions that a node may be behind the manager; more than 1: any number"""


BOUNDS = {
    1: Bound(changes=0),
    2: Bound(crashes=0),
    3: Bound(),
    4: Bound(copies=2),
    5: Bound(slow_store=True),
    6: Bound(updates=2, removals=True),
    7: Bound(updates=2, copies=2, slow_store=True, removals=True),
}


class Wrong(AssertionError):
    """The world is as it must never be."""


class World:
    """One state; changed in place by ``do(action)``."""

    def __init__(self, bound):
        self.bound = bound
        self.chain = new_chain(ChainId(1), tuple(TargetId(n) for n in (1, 2, 3)))
        self.messages = []
        self.requests = 0
        self.crashes, self.changes = bound.crashes, bound.changes
        self.begun = bound.removals
        """whether the first client's first update has arrived"""
        self.floor = 0
        self.acked = 0
        self.tags = {}
        self.clients = [Client(c, bound.updates, bound.removals and c == 2) for c in (1, 2)]
        self.nodes = [Node(self, TargetId(n)) for n in (1, 2, 3)]
        while following := self._following():
            self.chain = following
        for node in self.nodes:
            self.do(("route", node.id))

    def node(self, target):
        return self.nodes[target - 1]

    # ------------------------------------------------------------------ what may happen next

    def actions(self):
        found = [("deliver", n) for n, m in enumerate(self.messages) if self._ready(n, m)]
        current = all(n.routed == self.chain.version for n in self.nodes if n.up and n.leased)
        if (current or self.bound.lag > 1) and self._following() is not None:
            found.append(("decide",))
        for node in self.nodes:
            if not node.up:
                found.append(("restart", node.id))
                continue
            if node.routed < self.chain.version:
                found.append(("route", node.id))
            if self.crashes:
                found.append(("crash", node.id))
            if self.changes and node.leased and self.chain.state_of(node.id) is SERVING:
                found.append(("unlease", node.id))
        for client in self.clients:
            again = client.flying and client.sent_at < self.chain.version
            if client.left and self.chain.serving and again and client.flying < self.bound.copies:
                found.append(("send", client.number))
        return found

    def _ready(self, position, message):
        if message in self.messages[:position]:
            return False
        if message[0] == "drain":
            return not any(m[0] == "job" and m[1] == message[1] for m in self.messages)
        if message[0] == "write" and message[2].client == 2 and not self.begun:
            return False  # the clients are alike: this is as if they had changed names
        if message[0] in ("write", "forward", "list", "tell"):
            # Without a lease nothing is handled. What names a version that the receiver has not
            # heard of waits: refused, it would be sent again until the receiver has.
            node = self.node(message[1])
            replica = node.replica
            return (
                node.up
                and node.leased
                and replica is not None
                and replica.version >= self._version(message)
            )
        return True

    def _version(self, message):
        """Return the chain version that a request names."""
        if message[0] == "write":
            return message[2].chain_version
        if message[0] == "forward":
            return message[2][0].chain_version
        return message[4].chain_version

    def _settle(self):
        """Do at once what can be done at any time with the same effect: what comes too late."""
        while position := next((n for n, m in enumerate(self.messages, 1) if self._late(m)), 0):
            self._deliver(position - 1)

    def _late(self, message):
        kind, target = message[:2]
        if kind in ("write", "forward"):
            node = self.node(target)
            replica = node.replica
            version = self._version(message)
            if not node.up and kind == "write":
                return self.chain.version > version  # its client hears of it, and asks again
            here = node.up and node.leased and replica is not None
            return here and replica.version > version
        if kind in ("list", "tell", "synced"):
            mine = message[2:5] if kind != "synced" else message[1:4]
            return self._mine(*mine) is None
        if kind == "answer":
            _, _, life, outcomes = message
            return not any(self.pairs(target, life, [(o, n) for o, n, _ in outcomes]))
        if kind == "retry":
            node = self.node(target)
            return message[2] != node.lives or not node.stalled()
        return False

    def do(self, action):
        kind, *arguments = action
        getattr(self, "_" + kind)(*arguments)
        self._settle()
        for client in self.clients:
            # Sent at once: what matters is when it arrives.
            if client.left and not client.flying and self.chain.serving:
                self._send(client.number)
        self._look()

    def _deliver(self, position):
        message = self.messages.pop(position)
        getattr(self, "_on_" + message[0])(*message[1:])

    # ------------------------------------------------------------------ the manager

    def _following(self):
        reports = {}
        for node in self.nodes:
            if node.lost or not node.leased:
                reports[node.id] = LOST
            elif node.life.settled:
                reports[node.id] = Report(node.life.local, node.life.said_at)
        return next_chain(self.chain, reports)

    def _decide(self):
        following = self._following()
        if following is not None:
            self.chain = following
            check_chain(following)

    def _route(self, target):
        node = self.node(target)
        node.routed = self.chain.version
        node.live(lifecycle.Routed(self.chain))
        node.leased = True  # the routing is acted on before the lease that comes with it counts

    # ------------------------------------------------------------------ faults

    def _crash(self, target):
        self.crashes -= 1
        self.node(target).crash()

    def _restart(self, target):
        self._decide()  # a new incarnation counts as a death, at once
        self.node(target).start()

    def _unlease(self, target):
        self.changes -= 1
        self.node(target).leased = False

    # ------------------------------------------------------------------ clients

    def _send(self, number):
        client = self.clients[number - 1]
        client.flying += 1
        client.sent_at = self.chain.version
        head = self.chain.serving[0]
        self.messages.append(("write", head, client.item(self.chain.version)))

    def _on_write(self, target, item):
        node = self.node(target)
        waits = ("client", item.client, item.sequence)
        self.begun = True
        if not node.up or node.replica is None:
            self._answered(waits, [events.Outcome(Code.NOT_SERVING)])
        else:
            payload = item_payload(item)
            node.ask(waits, 1, lambda n: events.WritesArrived(n, [item], [payload]))

    def _reply(self, number, sequence, code, version):
        client = self.clients[number - 1]
        if sequence != client.sequence or not client.left:
            return
        client.flying -= 1
        if code == Code.OK:
            if version:
                tag = (number, sequence)
                if self.tags.setdefault(tag, version) != version:
                    raise Wrong(f"{tag} is version {self.tags[tag]} and {version}")
            self.acked = max(self.acked, version)
            self.floor = max(self.floor, version)
            client.advance()
        elif code == Code.STALE_EPOCH:
            client.advance()
        elif not Error(Code(code)).retry:
            raise Wrong(f"client {number} is told {Code(code).name}")

    # ------------------------------------------------------------------ between the targets

    def _on_forward(self, target, items, payloads, sender, life, pairs):
        node = self.node(target)
        waits = ("forward", sender, life, pairs)
        if not node.up or node.replica is None:
            code = Code.CONNECTION if not node.up else Code.NOT_SERVING
            self._answered(waits, [events.Outcome(code)] * len(items))
        else:
            node.ask(waits, len(items), lambda n: events.ForwardsArrived(n, items, payloads))

    def _answered(self, waits, outcomes):
        if waits[0] == "client":
            # Told at once: the sooner it is acknowledged, the more is asked of the rest.
            self._reply(waits[1], waits[2], outcomes[0].code, outcomes[0].version)
        elif waits[0] == "forward":
            _, sender, life, pairs = waits
            made = [(o, n, each) for (o, n), each in zip(pairs, outcomes, strict=True)]
            self.messages.append(("answer", sender, life, made))
        else:
            node = self.node(waits[1])
            if node.lives == waits[2] and node.sync is waits[3]:
                codes = [each.code for each in outcomes]
                done = waits[4]
                event = (
                    recovery.Completed(codes[0])
                    if isinstance(done, recovery.Complete)
                    else recovery.BatchDone(done.number, codes)
                )
                node.carry_sync(node.sync.handle(event))

    def _on_answer(self, target, life, outcomes):
        node = self.node(target)
        if node.lives == life and node.replica is not None:
            node.handle(events.Forwarded(outcomes))

    def _on_job(self, target, life, kind, operations, chain_version):
        self.node(target).job(life, kind, operations, chain_version)

    def _on_retry(self, target, life):
        node = self.node(target)
        if node.lives == life and node.replica is not None:
            node.handle(events.RetryDue())

    def _on_drain(self, target):
        if self.node(target).up:
            self.node(target).live(lifecycle.Drained())

    def _on_look(self, target):
        if self.node(target).up:
            self.node(target).live(lifecycle.LookDue())

    # ------------------------------------------------------------------ the resync

    def _mine(self, target, life, sync):
        node = self.node(target)
        return node if node.lives == life and node.sync is sync else None

    def _on_synced(self, target, life, sync, event):
        node = self._mine(target, life, sync)
        if node is not None:
            node.carry_sync(sync.handle(event))

    def _on_list(self, peer, target, life, sync):
        node, other = self._mine(target, life, sync), self.node(peer)
        if node is None:
            return
        replica = other.replica
        if replica is None or replica.stopped or replica.version != sync.chain_version:
            event = recovery.StepFailed(Code.WRONG_CHAIN_VERSION, "")
        else:
            pending = {name: each.version for name, each in other.store.pending()}
            records = {
                name: comparison.Remote(
                    m.version, pending.get(name, 0), m.length, m.checksum, m.chain_version,
                    m.epoch, m.removed,
                )
                for name, m in other.store.scan()
            }  # fmt: skip
            event = recovery.Listed(records, None)
        node.carry_sync(sync.handle(event))

    def _on_tell(self, peer, target, life, sync):
        node, other = self._mine(target, life, sync), self.node(peer)
        if node is None:
            return
        replica = other.replica
        if replica is None or replica.stopped or replica.version != sync.chain_version:
            node.carry_sync(sync.handle(recovery.StepFailed(Code.WRONG_CHAIN_VERSION, "")))
            return
        if replica.state is PublicState.SYNCING:
            tags = list(node.store.tags())
            other.store.remember(tags)
            other.handle(events.TagsArrived(tags))
        other.live(lifecycle.Synced(sync.chain_version))
        node.carry_sync(sync.handle(recovery.Told()))

    # ------------------------------------------------------------------ what must always hold

    def _look(self):
        shown = [self._read(node) for node in self.nodes]
        versions = [version for version in shown if version is not None]
        if versions and min(versions) < self.floor:
            raise Wrong(
                f"a read shows {min(versions)} after {self.floor} was shown or acknowledged"
            )
        self.floor = max(versions, default=self.floor)
        for node in self.nodes:
            meta = node.store.get(CHUNK)
            version = 0 if meta is None else meta.version
            if self.chain.state_of(node.id) is SERVING and version < self.acked:
                raise Wrong(f"target {node.id} serves {version}, {self.acked} was acknowledged")
            if meta is not None and meta.tag.client:
                first = self.tags.setdefault(meta.tag[:3:2], version)
                if first != version:
                    raise Wrong(f"{meta.tag} is version {first} and {version}: applied twice")
        at = {version: tag for tag, version in self.tags.items()}
        if len(at) != len(self.tags):
            raise Wrong(f"two updates have one version: {self.tags}")

    def _read(self, node):
        """Return the version that a reader would be shown there, None if it is refused."""
        replica = node.replica
        if not node.up or not node.leased or replica is None:
            return None
        if replica.refuse_read(CHUNK, replica.version, False):
            return None
        return replica.committed(CHUNK)

    def at_rest(self):
        """Verify what must hold when nothing is left to do."""
        if any(client.left for client in self.clients):
            raise Wrong(f"clients are stuck: {self.clients}")
        if len(self.chain.serving) != 3:
            raise Wrong(f"not all serve: {self.chain} {[n.life for n in self.nodes]}")
        images = set()
        for node in self.nodes:
            if node.replica.holders or list(node.store.pending()):
                raise Wrong(f"target {node.id} holds {node.replica.holders}")
            meta = node.store.get(CHUNK)
            into = memoryview(bytearray(8))
            count = node.store.read(CHUNK, 0, into)[0]
            images.add((meta and meta[:4], bytes(into[:count])))
        if len(images) != 1:
            raise Wrong(f"replicas differ: {images}")

    # ------------------------------------------------------------------ fingerprint

    def freeze(self):
        """Return the state as bytes, without what only the last step left behind."""
        for node in self.nodes:
            node.queue = None
            node.life._out = []
            if node.replica is not None:
                node.replica._out = None
        return pickle.dumps(self, 5)

    def fingerprint(self):
        """Return what tells this state from others, free of numbers that only name things."""
        return hash(
            (
                self.chain,
                self.begun,
                self.crashes,
                self.changes,
                self.floor,
                self.acked,
                tuple(sorted(self.tags.items())),
                tuple(client.fingerprint(self.bound) for client in self.clients),
                tuple(node.fingerprint() for node in self.nodes),
                tuple(sorted(map(self._message, self.messages))),
            )
        )

    def _message(self, message):
        kind = message[0]
        if kind == "forward":
            _, target, items, _, sender, life, pairs = message
            return repr((kind, target, items, self.pairs(sender, life, pairs)))
        if kind == "answer":
            _, target, life, outcomes = message
            live = self.pairs(target, life, [(o, n) for o, n, _ in outcomes])
            return repr((kind, target, live, live and [each for _, _, each in outcomes]))
        if kind == "job":
            _, target, life, what, operations, version = message
            node = self.node(target)
            return repr((kind, target, life == node.lives, what, operations, version))
        if kind in ("list", "tell"):
            return repr((kind, message[1], self._mine(*message[2:]) is not None))
        if kind == "synced":
            return repr((kind, message[1], self._mine(*message[1:4]) is not None, message[4]))
        if kind == "retry":
            return repr((kind, message[1], message[2] == self.node(message[1]).lives))
        return repr(message)

    def pairs(self, sender, life, pairs):
        """Return a forward's operations as far as its answer will still count."""
        node = self.node(sender)
        if node.lives != life or node.replica is None:
            return ()
        holders = node.replica.holders
        return tuple(
            (o.tag, o.version, o.kind) if holders.get(o.chunk) is o and o.attempt == n else None
            for o, n in pairs
        )


class Client:
    """Updates one after the other; ``sequence`` is that of the one under way."""

    def __init__(self, number, updates, removes):
        self.number = number
        self.left = updates
        self.removes = removes
        self.sequence = 1
        self.flying = 0
        self.sent_at = 0

    def __repr__(self):
        return f"<client {self.number} at {self.sequence}, {self.left} left, {self.flying} sent>"

    def fingerprint(self, bound):
        return self.sequence, self.left, self.flying, self.sent_at if bound.copies > 1 else 0

    def item(self, chain_version):
        remove = self.removes and self.sequence == 1
        kind = Kind.REMOVE if remove else Kind.WRITE
        payload = b"" if remove else bytes((64 + 16 * self.number + self.sequence,))
        epoch = 2 if self.removes else 1
        return WriteItem(
            CHUNK, 1, chain_version, kind, self.number - 1, len(payload), crc32c(payload), epoch,
            CHUNK_BYTES, self.number, 0, self.sequence,
        )  # fmt: skip

    def advance(self):
        self.sequence += 1
        self.left -= 1
        self.flying = 0
        self.sent_at = 0


def item_payload(item):
    return bytes((64 + 16 * item.client + item.sequence,)) if item.length else b""


class Node:
    """One process with one target: what ``targets.py`` and ``shell.py`` do, in one thread."""

    def __init__(self, world, target):
        self.world = world
        self.id = target
        self.store = MemoryStore()
        self.lives = 0
        self.start(new=True)

    def start(self, new=False):
        self.up, self.lost, self.leased = True, False, True
        self.replica = self.sync = None
        self.requests = {}
        self.routed = 0 if new else self.world.chain.version
        self.life = Lifecycle(self.id)
        self.live(lifecycle.Found(new, self.world.chain))

    def crash(self):
        self.up, self.lost = False, True
        self.lives += 1
        self.replica = self.sync = None
        world = self.world
        world.messages = [m for m in world.messages if m[0] != "job" or m[1] != self.id]
        requests, self.requests = self.requests, {}
        for waits, outcomes in requests.values():
            gone = [events.Outcome(Code.CONNECTION)] * len(outcomes)
            if waits[0] != "sync":
                world._answered(waits, gone)

    # ------------------------------------------------------------------ the lifecycle

    def live(self, event):
        waiting = deque((event,))
        self.queue = waiting
        while waiting:
            for effect in self.life.handle(waiting.popleft()):
                self._carry(effect, waiting)

    def _carry(self, effect, queue):
        match effect:
            case lifecycle.Open():
                queue.append(lifecycle.Opened())
            case lifecycle.Begin():
                self.lives += 1
                self.replica = Replica(
                    self.id, self.store.get, self.store.pending(), self.store.tags(), inspect=check
                )
                if not STORY[0]:
                    self.replica.story = deque(maxlen=0)
            case lifecycle.Route(chain):
                self.handle(events.RoutingChanged(chain), queue)
            case lifecycle.Sync(chain, successor):
                if self.replica is not None:
                    self.sync = recovery.Sync(chain.version)
                    self.peer = successor
                    self.carry_sync(self.sync.start())
            case lifecycle.EndSync():
                self.sync = None
            case lifecycle.StopReplica(code, reason):
                self.handle(events.StoreFailed(code, reason), queue)
            case lifecycle.Drain():
                self.world.messages.append(("drain", self.id))
            case lifecycle.LookLater():
                if ("look", self.id) not in self.world.messages:
                    self.world.messages.append(("look", self.id))
            case lifecycle.Alarm(code, reason):
                raise Wrong(f"target {self.id} is held: {Code(code).name} {reason}")

    # ------------------------------------------------------------------ the replica

    def ask(self, waits, count, event):
        self.world.requests += 1
        self.requests[self.world.requests] = waits, [None] * count
        self.handle(event(self.world.requests))

    def handle(self, event, queue=None):
        if self.replica is None:
            return
        stop = None
        todo = deque(self.replica.handle(event))
        while todo:
            effect = todo.popleft()
            name = type(effect).__name__
            if name == "Stop":
                stop = effect
            else:
                more = getattr(self, "_do_" + name.lower())(effect)
                if more:
                    todo.extend(more)
        if stop is not None:
            if stop.code != Code.NOT_SERVING:
                raise Wrong(f"target {self.id} stops: {stop.reason}\n{stop.story}")
            self.replica = self.sync = None
            self.lives += 1
            self.requests = {}
            stopped = lifecycle.Stopped(stop.code, stop.reason)
            if queue is not None:
                queue.append(stopped)
            else:
                self.live(stopped)

    def _do_prepare(self, effect):
        return self._job("prepare", effect)

    def _do_commit(self, effect):
        return self._job("commit", effect)

    def _job(self, kind, effect):
        job = (kind, list(effect.operations), effect.chain_version)
        if self.world.bound.slow_store:
            self.world.messages.append(("job", self.id, self.lives, *job))
            return None
        return self.replica.handle(self._done(*job))

    def job(self, life, kind, operations, chain_version):
        event = self._done(kind, operations, chain_version)
        if self.lives == life and self.replica is not None:
            self.handle(event)

    def _done(self, kind, operations, chain_version):
        if kind == "commit":
            self.store.commit([(o.chunk, o.version, chain_version) for o in operations])
            return events.Committed(operations)
        updates = [
            Update(
                o.chunk, o.version, o.kind, o.offset, o.length, o.payload or b"", o.checksum,
                o.tag, o.epoch, chain_version, o.chunk_bytes,
            )
            for o in operations
        ]  # fmt: skip
        images = self.store.prepare(updates)
        made = [i if isinstance(i, Image) else i.code for i in images]
        return events.Prepared(list(zip(operations, made, strict=True)))

    def _do_forward(self, effect):
        items, payloads = [], []
        for o, _ in effect.operations:
            payload = o.payload
            if payload is None:
                into = memoryview(bytearray(8))
                payload = bytes(into[: self.store.read_pending(o.chunk, into)])
            items.append(
                ForwardItem(
                    o.chunk, 1, effect.chain_version, o.kind, o.offset, o.length, o.checksum,
                    o.epoch, o.chunk_bytes, *o.tag, o.version, *o.image,
                )
            )  # fmt: skip
            payloads.append(payload)
        self._send(effect, items, payloads)

    def _do_transfer(self, effect):
        items, payloads = [], []
        for o, _ in effect.operations:
            meta = self.store.get(o.chunk)
            there = meta is not None and not meta.removed
            into = memoryview(bytearray(8))
            count = self.store.read(o.chunk, 0, into)[0] if there else 0
            data = bytes(into[:count])
            tag = meta.tag if meta is not None else (0, 0, 0)
            image = (meta.length, meta.checksum) if meta is not None else (0, 0)
            items.append(
                ForwardItem(
                    o.chunk, 1, effect.chain_version, Kind.REPLACE if there else Kind.REMOVE, 0,
                    count, crc32c(data), meta.epoch if meta else 0, CHUNK_BYTES, *tag,
                    meta.version if meta else 0, *image,
                )
            )  # fmt: skip
            payloads.append(data)
        self._send(effect, items, payloads)

    def _send(self, effect, items, payloads):
        pairs = list(effect.operations)
        self.world.messages.append(
            ("forward", effect.target, items, payloads, self.id, self.lives, pairs)
        )

    def _do_discard(self, effect):
        for chunk in effect.chunks:
            self.store.discard(chunk)

    def _do_replies(self, effect):
        for answer in effect.answers:
            waits, outcomes = self.requests[answer.request]
            if outcomes[answer.item] is not None:
                raise Wrong("answered twice")
            outcomes[answer.item] = events.Outcome(*answer[2:])
            if None not in outcomes:
                del self.requests[answer.request]
                self.world._answered(waits, outcomes)

    def _do_finish(self, effect):
        pass

    def _do_retrylater(self, effect):
        self.world.messages.append(("retry", self.id, self.lives))

    def stalled(self):
        """Tell whether anything waits for the replica's retry."""
        holders = self.replica.holders.values() if self.replica is not None else ()
        return any(operation.link == Link.STALLED for operation in holders)

    # ------------------------------------------------------------------ the resync

    def carry_sync(self, effects):
        sync, messages = self.sync, self.world.messages
        for effect in effects:
            match effect:
                case recovery.List():
                    messages.append(("list", self.peer, self.id, self.lives, sync))
                case recovery.Scan():
                    held = frozenset(self.replica.holders)
                    event = recovery.Scanned(dict(self.store.scan()), held)
                    self.carry_sync(sync.handle(event))
                case recovery.SendBatch(_, chunks, _):
                    waits = ("sync", self.id, self.lives, sync, effect)
                    version = sync.chain_version
                    self.ask(
                        waits,
                        len(chunks),
                        lambda n, c=chunks, v=version: events.SyncArrived(n, v, c),
                    )
                case recovery.Complete():
                    waits = ("sync", self.id, self.lives, sync, effect)
                    version = sync.chain_version
                    self.ask(waits, 1, lambda n, v=version: events.SyncCompleting(n, v))
                case recovery.TellTags():
                    messages.append(("tell", self.peer, self.id, self.lives, sync))
                case recovery.Refuse(_, reason):
                    raise Wrong(f"a conflict in a sync: {reason}")
                case recovery.Wait():
                    messages.append(("synced", self.id, self.lives, sync, recovery.RetryDue()))

    # ------------------------------------------------------------------ fingerprint

    def fingerprint(self):
        replica, life, store = self.replica, self.life, self.store
        sync = None
        if self.sync is not None:
            s = self.sync
            sync = (
                s.chain_version, s.finished, repr(s._step), tuple(s._queue), tuple(s._again),
                s._failed, s._waiting, len(s._flying), s.progress.compared_all,
            )  # fmt: skip
        return (
            self.up, self.lost, self.leased, self.routed,
            life.local, life.version, life.living, life._taken_up, life._draining,
            tuple(store._chunks.items()), tuple((c, w[0], w[2]) for c, w in store._waiting.items()),
            tuple(sorted(store._tags.items())), sync,
            None if replica is None else self._replica(replica),
        )  # fmt: skip

    def _replica(self, r):
        return (
            r.version, r.state, r.waits, r._syncing, r._retry_asked,
            None if r._completing is None else self._waits(r._completing),
            tuple(self._operation(o) for o in r.holders.values()),
            tuple(self._operation(o) for line in r.waiting.values() for o in line),
            tuple(sorted(r.channels._done.items())), tuple(sorted(r.channels.flying)),
        )  # fmt: skip

    def _operation(self, o):
        return (
            o.kind, o.tag, o.version, o.stage, o.link, o.exposed, o.forwarded, o.image,
            o.expected, o.chain_version, o.payload is None, o.epoch,
            tuple(sorted(self._waits(n) for n, _ in o.waiters)),
        )  # fmt: skip

    def _waits(self, number):
        waits = self.requests[number][0]
        if waits[0] == "forward":
            return repr(("forward", waits[1], self.world.pairs(*waits[1:])))
        if waits[0] == "sync":
            return repr(("sync", type(waits[4]).__name__))
        return repr(waits)


STORY = [False]
"""Whether replicas keep their stories: only while a counterexample is told."""


class Explored:
    """What a search found out."""

    def __init__(self):
        self.states = self.steps = self.rests = self.depth = 0
        self.actions = Counter()


def explore(bound, limit_s=None, limit_states=None):
    """Go through every state that can be reached; raise ``Wrong`` with the way to a wrong one."""
    gc.disable()  # it would walk over all that waits to be visited, again and again
    try:
        return _explore(bound, limit_s, limit_states)
    finally:
        gc.enable()


def _explore(bound, limit_s, limit_states):
    found, began = Explored(), time.monotonic()
    world = World(bound)
    seen = {world.fingerprint()}
    stack = [(world.freeze(), (), 0)]
    while stack:
        if limit_s is not None and time.monotonic() - began > limit_s:
            break
        if limit_states is not None and found.states >= limit_states:
            break
        frozen, way, depth = stack.pop()
        world = pickle.loads(frozen)
        found.states += 1
        found.depth = max(found.depth, depth)
        actions = world.actions()
        if not any(a[0] not in ("crash", "unlease") for a in actions):
            found.rests += 1
            _judge(world.at_rest, bound, way, None)
        fresh = True
        for action in actions:
            if not fresh:
                world = pickle.loads(frozen)
            fresh = False
            found.steps += 1
            found.actions[action[0]] += 1
            _judge(lambda: world.do(action), bound, way, action)  # noqa: B023
            mark = world.fingerprint()
            if mark not in seen:
                seen.add(mark)
                stack.append((world.freeze(), (way, action), depth + 1))
    found.left = len(stack)
    return found


WALK_STEPS = 2000
"""After so many a walk has met a livelock."""
WALKS = 500
FAULT = 0.04
"""How likely a fault is chosen where one may happen."""


def walk(bound, seed, walks):
    """Go ``walks`` ways at random; for what the whole search is too slow for. Replays exactly."""
    chance, found = random.Random(seed), Explored()
    for _ in range(walks):
        world, way = World(bound), ()
        while True:
            actions = world.actions()
            faults = [a for a in actions if a[0] in ("crash", "unlease")]
            others = [a for a in actions if a[0] not in ("crash", "unlease")]
            if faults and (not others or chance.random() < FAULT * len(faults)):
                others = faults
            if not others:
                break
            action = chance.choice(others)
            found.steps += 1
            found.actions[action[0]] += 1
            _judge(lambda: world.do(action), bound, way, action)  # noqa: B023
            way = way, action
            if found.steps > WALK_STEPS * walks:
                raise Wrong("no walk ends")
        found.rests += 1
        _judge(world.at_rest, bound, way, None)
    return found


def _judge(work, bound, way, action):
    try:
        work()
    except Exception as exc:
        steps = [] if action is None else [action]
        while way:
            way, last = way
            steps.append(last)
        raise Wrong(f"{exc}\n{tell(bound, steps[::-1])}") from exc


def tell(bound, steps):
    """Go the way again and tell what happened on it."""
    STORY[0] = True
    lines = []
    try:
        world = World(bound)
        for step in steps:
            what = step
            if step[0] == "deliver":
                what = ("deliver", *map(str, world.messages[step[1]]))
            lines.append(f"{len(lines) + 1:3} {' '.join(map(str, what))}")
            try:
                world.do(step)
            except Exception as exc:
                lines.append(f"    {type(exc).__name__}: {exc}")
                break
        lines.append(f"    chain {world.chain}")
        lines += [f"    {n.id}: {n.life} {n.replica and n.replica.holders}" for n in world.nodes]
    finally:
        STORY[0] = False
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bound", type=int, choices=BOUNDS, default=1)
    parser.add_argument("--seconds", type=float, default=None)
    parser.add_argument(
        "--walk", type=int, default=None, metavar="SEED", help="at random, 500 ways"
    )
    options = parser.parse_args()
    began = time.monotonic()
    if options.walk is not None:
        found = walk(BOUNDS[options.bound], options.walk, WALKS)
        print(f"bound {options.bound}: {found.rests} walks, {found.steps} steps, all holds")
        return
    found = explore(BOUNDS[options.bound], options.seconds)
    took = time.monotonic() - began
    print(
        f"bound {options.bound}: {found.states} states, {found.steps} steps, {found.rests} at "
        f"rest, depth {found.depth}, {found.left} left unvisited, {took:.1f} s"
    )
    print(dict(found.actions))


if __name__ == "__main__":
    sys.setrecursionlimit(10000)
    main()
