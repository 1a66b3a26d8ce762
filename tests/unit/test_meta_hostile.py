"""Requests that nobody sane sends: an answer or an error of ours; the name space stays whole."""

import asyncio
import inspect
from collections.abc import Awaitable
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import given, settings
from hypothesis import strategies as st

from hillfire.errors import Code, Error
from hillfire.proto import meta_pb2 as pb
from hillfire.proto.dispatch import methods
from hillfire.proto.service import Method
from hillfire.proto.wire.base import Incoming
from tests.unit.meta_world import World, fails, world

METHODS = methods("Meta")
INTEGERS = {
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_ENUM: (0, 9),
}
BYTES = st.one_of(
    st.sampled_from([b"", b".", b"..", b"/", b"a", b"d/f", b"d", b"l", b"user.x", b"a/" * 3000]),
    st.binary(max_size=300),
)


def values(field: Any) -> st.SearchStrategy[Any]:
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        return messages(GetMessageClass(field.message_type))
    if field.type == FieldDescriptor.TYPE_BOOL:
        return st.booleans()
    if field.type == FieldDescriptor.TYPE_BYTES:
        return BYTES
    low, high = INTEGERS[field.type]
    return st.one_of(st.sampled_from([0, 1, 2, 3, 4, high]), st.integers(low, high))


def messages(kind: type[Message]) -> st.SearchStrategy[Message]:
    fields = {}
    for field in kind.DESCRIPTOR.fields:
        made = values(field)
        fields[field.name] = st.lists(made, max_size=3) if field.is_repeated else made
    return st.fixed_dictionaries({}, optional=fields).map(lambda given: kind(**given))


def answered(w: World, called: Method, body: bytes) -> None:
    try:
        answer: Any = w.dispatcher.handle(
            Incoming(called.id, memoryview(body), (), (), 1.0, "hostile")
        )
        if inspect.isawaitable(answer):
            asyncio.run(wait(answer))
    except Error as error:
        assert error.code is not Code.INTERNAL
        assert error.code is not Code.CORRUPT


async def wait(answer: Awaitable[Any]) -> None:
    await answer


def furnished() -> World:
    """Directory 2, file 3 in it, link 4."""
    with world() as w:
        w.make(b"d")
        w.create(b"d/f")
        w.make(b"l", pb.SYMLINK, symlink=b"../d/./l")
    return w


@pytest.mark.parametrize("called", METHODS, ids=lambda called: called.function)
def test_any_fields(called: Method) -> None:
    @settings(max_examples=40, deadline=None)
    @given(st.lists(messages(called.request_type), min_size=1, max_size=3))
    def check(requests: list[Message]) -> None:
        w = furnished()
        for request in requests:
            answered(w, called, request.SerializeToString())
        w.collect()
        w.check()

    check()


@pytest.mark.parametrize("called", METHODS, ids=lambda called: called.function)
def test_any_bytes(called: Method) -> None:
    @settings(max_examples=40, deadline=None)
    @given(st.binary(max_size=60))
    def check(body: bytes) -> None:
        w = furnished()
        answered(w, called, body)
        w.check()

    check()


def test_holds_are_bounded() -> None:
    with world() as w, fails(Code.TOO_LARGE):
        w.session(1, held=range(1, 70_000))
