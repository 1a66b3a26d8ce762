"""A small seeded world: one chain of three targets, two clients, crashes and restarts.

Production code under test: the replica, recovery's comparison, the manager's next chain and the
memory store. Budget: 20 s. A failing seed replays exactly: ``run(seed)``.
"""

# mypy: ignore-errors

import heapq
import random

import pytest

from hillfire.cluster import Chain, LocalState, PublicState
from hillfire.errors import Code, Error
from hillfire.meta.manager.chains import LOST, Report, new_chain, next_chain
from hillfire.proto.wire.chunks import ForwardItem, Kind, WriteItem
from hillfire.storage import comparison
from hillfire.storage.craq import events
from hillfire.storage.craq.check import check
from hillfire.storage.craq.operation import Operation
from hillfire.storage.craq.replica import Replica
from hillfire.storage.store.base import Image, Update
from hillfire.storage.store.checksum import crc32c
from hillfire.storage.store.memory import MemoryStore
from hillfire.types import ChainId, TargetId, chunk_id

CHUNKS = [chunk_id(7, index) for index in range(2)]
CHUNK_BYTES = 65536
SEEDS = 300


class World:
    def __init__(self, seed):
        self.random = random.Random(seed)
        self.now = 0.0
        self.queue = []
        self.count = 0
        self.targets = [Target(self, TargetId(n)) for n in (1, 2, 3)]
        self.chain: Chain = new_chain(ChainId(1), tuple(t.id for t in self.targets))
        self.requests = 0
        self.history = []
        self.epochs = {}
        self.contents = {}
        self.quiet = False
        self.faults = 0

    def later(self, delay, action):
        self.count += 1
        moment = self.now + delay * (0.2 + self.random.random() * 1.6)
        heapq.heappush(self.queue, (moment, self.count, action))

    def run(self, until):
        while self.queue and self.queue[0][0] <= until:
            self.now, _, action = heapq.heappop(self.queue)
            action()
        self.now = until

    def target(self, number):
        return self.targets[number - 1]

    # the manager

    def evaluate(self):
        self.decide()
        if self.queue or not self.quiet:
            self.later(0.3, self.evaluate)

    def decide(self):
        reports = {t.id: t.report for t in self.targets if t.report is not None}
        following = next_chain(self.chain, reports)
        if following is not None:
            self.chain = following
            for target in self.targets:
                self.publish(target)

    def publish(self, target):
        chain, life = self.chain, target.life

        def arrive():
            if target.life == life and target.replica is not None:
                target.routed(chain)

        self.later(0.2, arrive)

    # messages

    def forward(self, sender, receiver, items, payloads, answered):
        """Deliver a FORWARD; ``answered(outcomes or None)`` at the sender if it still lives."""
        lives = sender.life, receiver.life
        done = []

        def answer(outcomes):
            if not done and sender.life == lives[0]:
                done.append(True)
                answered(outcomes)

        def arrive():
            if receiver.life != lives[1] or receiver.replica is None:
                self.later(0.1, lambda: answer(None))
                return
            if self.random.random() < (0 if self.quiet else 0.03):
                self.later(0.5, lambda: answer(None))  # the answer gets lost
                receiver.serve(items, payloads, lambda outcomes: None)
                return
            receiver.serve(
                items, payloads, lambda outcomes: self.later(0.05, lambda: answer(outcomes))
            )

        if self.random.random() < (0 if self.quiet else 0.03):
            self.later(0.5, lambda: answer(None))
        else:
            self.later(0.05, arrive)
        self.later(8, lambda: answer(None))


class Target:
    """One process and its disk; mirrors what the shell does."""

    def __init__(self, world, number):
        self.world = world
        self.id = number
        self.store = MemoryStore()
        self.life = 0
        self.replica = None
        self.local = LocalState.UP_TO_DATE
        self.report = None
        self.open_requests = {}
        self.versions = {}
        self.syncing_at = 0
        self.start()

    def start(self):
        self.life += 1
        self.replica = None
        self.open_requests = {}
        self.syncing_at = 0
        self.take_up = self.life == 1
        self.seen = 0
        self.open()
        self.heartbeat()
        if hasattr(self.world, "chain"):
            self.world.publish(self)

    def open(self):
        self.local = LocalState.ONLINE
        self.replica = Replica(
            self.id, self.store.get, self.store.pending(), self.store.tags(), inspect=check
        )

    def crash(self):
        self.world.faults += 1
        self.life += 1
        self.replica = None
        self.report = LOST

    def heartbeat(self):
        life = self.life

        def beat():
            if self.life != life:
                return
            report = Report(self.local, self.replica.version)

            def arrive():
                if self.life == life:
                    self.report = report

            self.world.later(0.05, arrive)
            self.world.later(0.2, beat)

        self.report = None
        if self.life > 1:  # a new incarnation counts as a death, at once
            self.report = LOST
            self.world.decide()
        self.world.later(0.6, beat)

    def routed(self, chain):
        if chain.version < self.seen:
            return
        self.seen = chain.version
        if self.life > 1 and not self.take_up:
            # a restarted node does not take its targets up until routing shows them not serving
            if chain.state_of(self.id) is PublicState.SERVING:
                self.local = LocalState.OFFLINE
                return
            self.take_up = True
            self.local = LocalState.ONLINE
        version = self.replica.version
        self.handle(events.RoutingChanged(chain))
        if self.replica.version > version and chain.state_of(self.id) is not PublicState.SERVING:
            self.local = LocalState.ONLINE
        self.resync(chain)

    def resync(self, chain):
        successor, replica = chain.successor(self.id), self.replica
        if successor is None or chain.state_of(successor) is not PublicState.SYNCING:
            return
        if chain.version <= self.syncing_at or chain.version != replica.version:
            return
        self.syncing_at = chain.version
        life, peer = self.life, self.world.target(successor)

        def alive():
            return (
                self.life == life and self.replica is replica and replica.version == chain.version
            )

        def listing():
            if not alive():
                return
            if peer.replica is None or peer.replica.version != chain.version:
                self.world.later(0.3, listing)
                return
            pending = {name: each.version for name, each in peer.store.pending()}
            remote = {
                name: comparison.Remote(
                    m.version, pending.get(name, 0), m.length, m.checksum, m.chain_version,
                    m.epoch, m.removed,
                )
                for name, m in peer.store.scan()
            }  # fmt: skip
            self.world.later(0.1, lambda: sending(remote))

        def sending(remote):
            if not alive():
                return
            found = list(comparison.compare(dict(self.store.scan()), remote))
            assert all(each.verdict is not comparison.Verdict.CONFLICT for each in found), found
            if not found:
                completing()
                return
            request = self.request(len(found), sent)
            names = [each.chunk for each in found]
            self.handle(events.SyncArrived(request, chain.version, names))

        def sent(outcomes):
            if alive():
                if all(each.code == Code.OK for each in outcomes):
                    completing()
                else:
                    self.world.later(0.2, listing)

        def completing():
            request = self.request(1, completed)
            self.handle(events.SyncCompleting(request, chain.version))

        def completed(outcomes):
            if alive() and outcomes[0].code == Code.OK:
                self.world.later(0.05, finished)

        def finished():
            if peer.replica is None or not alive():
                return
            if peer.replica.version != chain.version:
                return
            peer.store.remember(list(self.store.tags()))
            peer.handle(events.TagsArrived(list(self.store.tags())))
            peer.local = LocalState.UP_TO_DATE

        self.world.later(0.1, listing)

    # requests and effects

    def request(self, count, done):
        self.world.requests += 1
        self.open_requests[self.world.requests] = [count, [None] * count, done]
        return self.world.requests

    def serve(self, items, payloads, done):
        request = self.request(len(items), done)
        if isinstance(items[0], ForwardItem):
            self.handle(events.ForwardsArrived(request, items, payloads))
        else:
            self.handle(events.WritesArrived(request, items, payloads))

    def handle(self, event):
        if self.replica is None:
            return
        for effect in self.replica.handle(event):
            getattr(self, "_" + type(effect).__name__.lower())(effect)

    def local_step(self, delay, work, make_event):
        """Run ``work`` on the disk and hand its event in, unless the process dies before."""
        life, replica = self.life, self.replica

        def act():
            if self.life != life:
                return
            if self.replica is not replica:
                return
            result = work()

            def report():
                if self.life == life and self.replica is replica:
                    self.handle(make_event(result))

            self.world.later(delay, report)

        self.world.later(delay, act)

    def _prepare(self, effect):
        def work():
            updates = [
                Update(
                    o.chunk, o.version, o.kind, o.offset, o.length, o.payload or memoryview(b""),
                    o.checksum, o.tag, o.epoch, effect.chain_version, o.chunk_bytes,
                )
                for o in effect.operations
            ]  # fmt: skip
            return [
                (o, r if isinstance(r, Image) else r.code)
                for o, r in zip(effect.operations, self.store.prepare(updates), strict=True)
            ]

        self.local_step(0.02, work, events.Prepared)

    def _commit(self, effect):
        def work():
            for o in effect.operations:
                meta = self.store.get(o.chunk)
                version = meta.version if meta else 0
                serving = self.replica.state is PublicState.SERVING
                assert not serving or o.version >= version, "a version went back"
            self.store.commit(
                [(o.chunk, o.version, effect.chain_version) for o in effect.operations]
            )
            return effect.operations

        self.local_step(0.02, work, events.Committed)

    def _forward(self, effect):
        items, payloads = [], []
        for o, _ in effect.operations:
            payload = o.payload
            if payload is None:
                into = memoryview(bytearray(CHUNK_BYTES))
                payload = into[: self.store.read_pending(o.chunk, into)]
            items.append(item_of(o, effect.chain_version))
            payloads.append(payload)
        self._send(effect, items, payloads)

    def _transfer(self, effect):
        items, payloads = [], []
        for o, _ in effect.operations:
            meta = self.store.get(o.chunk)
            into = memoryview(bytearray(CHUNK_BYTES))
            if meta is None or meta.removed:
                version = 0 if meta is None else meta.version
                tag = (0, 0, 0) if meta is None else meta.tag
                epoch = 0 if meta is None else meta.epoch
                checksum = 0 if meta is None else meta.checksum
                image, kind, data = (0, checksum), Kind.REMOVE, into[:0]
            else:
                n, _, _ = self.store.read(o.chunk, 0, into)
                data, version, tag, epoch = into[:n], meta.version, meta.tag, meta.epoch
                image, kind = (meta.length, meta.checksum), Kind.REPLACE
            items.append(
                ForwardItem(
                    o.chunk, 1, effect.chain_version, kind, 0, len(data), crc32c(data), epoch,
                    CHUNK_BYTES, *tag, version, *image,
                )
            )  # fmt: skip
            payloads.append(data)
        self._send(effect, items, payloads)

    def _send(self, effect, items, payloads):
        operations, replica = effect.operations, self.replica

        def answered(outcomes):
            if self.replica is not replica:
                return
            if outcomes is None:
                outcomes = [events.Outcome(Code.CONNECTION)] * len(operations)
            pairs = [(o, n, each) for (o, n), each in zip(operations, outcomes, strict=True)]
            self.handle(events.Forwarded(pairs))

        self.world.forward(self, self.world.target(effect.target), items, payloads, answered)

    def _discard(self, effect):
        for chunk in effect.chunks:
            self.store.discard(chunk)

    def _replies(self, effect):
        for answer in effect.answers:
            entry = self.open_requests.get(answer.request)
            if entry is None:
                continue
            entry[1][answer.item] = events.Outcome(*answer[2:])
            entry[0] -= 1
            assert entry[0] >= 0, "answered twice"
            if not entry[0]:
                del self.open_requests[answer.request]
                entry[2](entry[1])

    def _finish(self, effect):
        pass

    def _retrylater(self, effect):
        self.local_step(0.2, lambda: None, lambda _: events.RetryDue())

    def _stop(self, effect):
        assert effect.code == Code.NOT_SERVING, effect.reason + "\n" + effect.story
        # the process lives on, its target opens again
        self.open_requests = {}
        self.syncing_at = 0
        self.open()
        life = self.life

        def look_again():
            if self.life == life:
                self.world.publish(self)

        look_again()


def item_of(o: Operation, chain_version):
    return ForwardItem(
        o.chunk, 1, chain_version, o.kind, o.offset, o.length, o.checksum, o.epoch, o.chunk_bytes,
        *o.tag, o.version, o.image.length, o.image.checksum,
    )  # fmt: skip


class Client:
    """Writes and reads, one at a time, with retries; records what it saw and when."""

    def __init__(self, world, number, operations):
        self.world = world
        self.number = number
        self.sequence = 0
        self.left = operations
        self.next()

    def next(self):
        if not self.left:
            return
        self.left -= 1
        chunk = self.world.random.choice(CHUNKS)
        if self.world.random.random() < 0.55:
            self.sequence += 1
            kind = self.world.random.random()
            data = f"{self.number}/{self.sequence}".encode()
            remove = kind < 0.1
            if remove:  # as a truncate does: what it removes is of older epochs
                self.world.epochs[chunk] = self.world.epochs.get(chunk, 1) + 1
            epoch = self.world.epochs.get(chunk, 1)
            item = (chunk, self.number, self.sequence, data, remove, epoch)
            self.world.later(0.1, lambda: self.write(item, self.world.now))
        else:
            self.world.later(0.1, lambda: self.read(chunk, self.world.now))

    def send(self, target, action, answered):
        """One attempt: ``answered(None)`` when nothing came back."""
        done = []

        def answer(value):
            if not done:
                done.append(True)
                answered(value)

        life = target.life

        def arrive():
            if target.life == life and target.replica is not None:
                action(lambda value: self.world.later(0.05, lambda: answer(value)))
            else:
                answer(None)

        self.world.later(0.05, arrive)
        self.world.later(self.world.random.choice((0.3, 3)), lambda: answer(None))

    def write(self, item, began):
        world = self.world
        chunk, client, sequence, data, remove, epoch = item
        chain = world.chain
        if not chain.serving:
            world.later(0.3, lambda: self.write(item, began))
            return
        target = world.target(chain.serving[0])
        kind = Kind.REMOVE if remove else Kind.WRITE
        payload = b"" if remove else data.ljust(16)
        request = WriteItem(
            chunk, 1, chain.version, kind, 0, len(payload), crc32c(payload), epoch, CHUNK_BYTES,
            client, 0, sequence,
        )  # fmt: skip

        def answered(outcomes):
            if outcomes is not None and outcomes[0].code == Code.OK:
                version = outcomes[0].version
                # removing what is removed changes nothing and answers with the version it found
                # (a write of the same epoch that came first stands: then nothing was removed)
                if not remove or not outcomes[0].length:
                    what = "remove" if remove else "write"
                    world.history.append((began, world.now, chunk, version, what, payload))
                self.next()
            elif outcomes is not None and outcomes[0].code == Code.STALE_EPOCH:
                self.next()  # somebody removed the chunk since: too late, and without effect
            else:
                if outcomes is not None:
                    assert Error(Code(outcomes[0].code)).retry, Code(outcomes[0].code)
                again = world.random.choice((0.01, 0.1, 0.4))
                world.later(again, lambda: self.write(item, began))

        view = [memoryview(payload)]
        self.send(target, lambda done: target.serve([request], view, done), answered)

    def read(self, chunk, began):
        world = self.world
        chain = world.chain
        if not chain.serving:
            world.later(0.3, lambda: self.read(chunk, began))
            return
        target = world.target(world.random.choice(chain.serving))

        def action(done):
            code = target.replica.refuse_read(chunk, chain.version, False)
            if code != Code.OK:
                done((code, 0, b""))
                return
            into = memoryview(bytearray(32))
            n, _, version = target.store.read(chunk, 0, into)
            done((code, version, bytes(into[:n])))

        def answered(value):
            if value is not None and value[0] == Code.OK:
                world.history.append((began, world.now, chunk, value[1], "read", value[2]))
                self.next()
            else:
                world.later(0.2, lambda: self.read(chunk, world.now))

        self.send(target, action, answered)


def judge(world):
    """Versions order the operations of a chunk; real time must not contradict them."""
    for chunk in CHUNKS:
        ours = [each for each in world.history if each[2] == chunk]
        content, written = {0: b""}, {}
        for _, _, _, version, what, data in ours:
            assert content.setdefault(version, data) == data, (version, data, content[version])
            if what == "write":
                assert version not in written, f"version {version} acknowledged twice"
                written[version] = data
        whose = {}
        for version, data in content.items():
            if data:
                assert whose.setdefault(data, version) == version, f"{data} was applied twice"
        for began, _, _, version, what, _ in ours:
            for _, ended, _, earlier, _, _ in ours:
                if ended < began:
                    assert version >= earlier, "an operation was forgotten"
                    assert what != "write" or version > earlier, "a write went back in time"
        for target in world.targets:
            meta = target.store.get(chunk)
            newest = max(content)
            assert (meta.version if meta else 0) >= newest, "an acknowledged write is lost"
            into = memoryview(bytearray(32))
            n, _, _ = target.store.read(chunk, 0, into)
            if meta and meta.version in content:
                assert bytes(into[:n]) == content[meta.version]


def faults(world):
    """Crash one, two or three targets at random moments, and start them again."""
    rng = world.random

    def strike():
        if world.quiet:
            return
        for target in rng.sample(world.targets, rng.choice((1, 1, 1, 2, 3))):
            if target.replica is not None:
                target.crash()
                world.later(rng.choice((0.2, 1.0, 4.0)), target.start)
        world.later(rng.choice((2, 6)), strike)

    world.later(rng.choice((1, 4)), strike)


def run(seed):
    world = World(seed)
    world.evaluate()
    world.run(2)
    clients = [Client(world, number, 30) for number in (1, 2)]
    faults(world)
    world.run(40)
    world.quiet = True
    world.run(110)
    assert len(world.chain.serving) == 3, (world.chain, [t.local for t in world.targets])
    assert not any(client.left for client in clients), "clients are stuck"
    for target in world.targets:
        assert not target.replica.holders, target.replica.holders
        assert not list(target.store.pending())
    images = [
        [(n, m._replace(chain_version=0)) for n, m in target.store.scan() if m.version]
        for target in world.targets
    ]
    assert images[0] == images[1] == images[2]
    judge(world)
    return world


@pytest.mark.parametrize("block", range(8))
def test_acknowledged_updates_survive_and_replicas_agree(block):
    faults_seen = writes = 0
    for seed in range(block * SEEDS // 8, (block + 1) * SEEDS // 8):
        try:
            world = run(seed)
        except BaseException as exc:
            exc.add_note(f"seed {seed}")
            raise
        faults_seen += world.faults
        writes += sum(1 for each in world.history if each[4] == "write")
    assert faults_seen > SEEDS // 4 and writes > SEEDS, "the world is too quiet to show anything"
