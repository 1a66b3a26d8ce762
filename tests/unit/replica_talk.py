"""Transcripts of a replica: say events to it, read its effects as short lines."""

# mypy: ignore-errors

from hillfire.cluster import Chain, PublicState
from hillfire.errors import Code
from hillfire.proto.wire.chunks import ForwardItem, Kind, WriteItem
from hillfire.storage.craq import events
from hillfire.storage.craq.check import check
from hillfire.storage.craq.effects import (
    Commit,
    Discard,
    Fetch,
    Finish,
    Forward,
    Lost,
    Prepare,
    Replies,
    RetryLater,
    Stop,
    Transfer,
)
from hillfire.storage.craq.events import Copy, Outcome
from hillfire.storage.craq.replica import Replica
from hillfire.storage.store.base import ChunkMeta, Image, Tag
from hillfire.types import ChainId, TargetId, chunk_id

A, B = chunk_id(7, 0), chunk_id(7, 1)
S, Y, W, OFF, L = (
    PublicState.SERVING,
    PublicState.SYNCING,
    PublicState.WAITING,
    PublicState.OFFLINE,
    PublicState.LAST_SERVING,
)


class Talk:
    """A replica with a record table in place of a store, and a transcript of its effects."""

    def __init__(self, target, *, metas=None, pending=(), tags=()):
        self.metas = dict(metas or {})
        self.replica = Replica(TargetId(target), self.metas.get, pending, tags, inspect=check)
        self.request = 0
        self.operations = {}

    def say(self, event):
        return [self.line(effect) for effect in self.replica.handle(event)]

    def line(self, effect):
        match effect:
            case Prepare(operations):
                self.operations.update((o.chunk, o) for o in operations)
                return "prepare", [(o.chunk, o.version) for o in operations]
            case Forward(target, version, pairs):
                self.operations.update((o.chunk, o) for o, _ in pairs)
                return "forward", target, version, [(o.chunk, o.version, n) for o, n in pairs]
            case Transfer(target, version, pairs):
                self.operations.update((o.chunk, o) for o, _ in pairs)
                return "transfer", target, version, [(o.chunk, n) for o, n in pairs]
            case Fetch(target, version, pairs):
                self.operations.update((o.chunk, o) for o, _ in pairs)
                return "fetch", target, version, [(o.chunk, n) for o, n in pairs]
            case Lost(chunks):
                return "lost", list(chunks)
            case Commit(operations, version):
                self.operations.update((o.chunk, o) for o in operations)
                return "commit", version, [(o.chunk, o.version) for o in operations]
            case Discard(chunks):
                return "discard", list(chunks)
            case Replies(answers):
                return "reply", [(a.request, a.item, Code(a.code), a.version) for a in answers]
            case Finish(operations):
                return "finish", len(operations)
            case RetryLater():
                return ("retry",)
            case Stop(code):
                return "stop", Code(code)
        raise AssertionError(effect)

    def chain(self, version, *members, min_serving=1):
        pairs = tuple((TargetId(t), s) for t, s in members)
        return self.say(events.RoutingChanged(Chain(ChainId(1), version, pairs, min_serving)))

    def clone(self, chunk, source, sequence=1, *, version=2, epoch=1):
        self.request += 1
        item = write_item(chunk, sequence, kind=Kind.CLONE, version=version, epoch=epoch)
        made = [item._replace(source=source, length=0)]
        return self.say(events.WritesArrived(self.request, made, [b""]))

    def repair(self, *chunks, version=2):
        self.request += 1
        return self.say(events.RepairArrived(self.request, version, chunks))

    def fetched(self, chunk, copy=None, *, version=None, length=4, checksum=None):
        """Hand in another target's copy, by default the very one; or a code."""
        o = self.operations[chunk]
        if copy is None:
            known = self.metas[chunk]
            number = known.version if version is None else version
            copy = Copy(number, length, known.checksum if checksum is None else checksum, 9, b"c")
        return self.say(events.Fetched([(o, o.repair.attempt, copy)]))

    def unreadable(self, chunk):
        o = self.operations[chunk]
        return self.say(events.Unreadable([(o, o.attempt)]))

    def write(self, *items, **more):
        self.request += 1
        made = [write_item(*item, **more) for item in items]
        return self.say(events.WritesArrived(self.request, made, [b"p"] * len(made)))

    def forward(self, *items, **more):
        self.request += 1
        made = [forward_item(*item, **more) for item in items]
        return self.say(events.ForwardsArrived(self.request, made, [b"p"] * len(made)))

    def prepared(self, *chunks, code=None, image=None):
        outcomes = [
            (self.operations[c], code or image or Image(4, self.operations[c].version))
            for c in chunks
        ]
        return self.say(events.Prepared(outcomes))

    def answered(self, chunk, code=Code.OK, *, attempt=None, checksum=None):
        o = self.operations[chunk]
        number = o.attempt if attempt is None else attempt
        image = Outcome(code, o.version, 4, o.version if checksum is None else checksum)
        return self.say(events.Forwarded([(o, number, image)]))

    def committed(self, *chunks):
        for chunk in chunks:
            o = self.operations[chunk]
            self.metas[chunk] = meta(o.version, o.tag, o.epoch, o.kind == Kind.REMOVE)
        return self.say(events.Committed([self.operations[c] for c in chunks]))


def meta(version, tag=(1, 0, 1), epoch=1, removed=False):
    return ChunkMeta(version, 4, version, Tag(*tag), 1, epoch, removed)


def write_item(chunk, sequence=1, channel=0, *, client=1, version=2, kind=Kind.WRITE, epoch=1):
    return WriteItem(chunk, 1, version, kind, 0, 4, 0, epoch, 65536, client, channel, sequence)


def forward_item(
    chunk,
    u,
    sequence=1,
    channel=0,
    *,
    client=1,
    version=2,
    kind=Kind.WRITE,
    checksum=None,
    serial=0,
):
    return ForwardItem(
        chunk, 1, version, kind, 0, 4, 0, 1, 65536, client, channel, sequence, u, 4,
        u if checksum is None else checksum, serial=serial,
    )  # fmt: skip


def head(**more):
    talk = Talk(1, **more)
    talk.chain(2, (1, S), (2, S), (3, S))
    return talk


def middle(**more):
    talk = Talk(2, **more)
    talk.chain(2, (1, S), (2, S), (3, S))
    return talk


def tail(**more):
    talk = Talk(3, **more)
    talk.chain(2, (1, S), (2, S), (3, S))
    return talk
