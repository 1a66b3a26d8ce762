"""The overwrite of one whole page, by far the most frequent small update, in one call of C.

``native.overwrite(update, record, TYPES)`` verifies the payload, copies it, and returns what
``prepare`` answers (``Image``), the ``PendingRecord``, its entry for the log and its image: what
``Placer.place`` and ``frames.pack_prepare`` make of it, which are its twins. It returns None for
whatever is not plain: a page that is not whole, one whose grain's pages are not known, a chunk
that ends within a page, a wrong checksum. Then the twins do it, or say what is wrong.

Both know the order of the fields of ``Update``, ``Record``, ``ChunkMeta``, ``Pending`` and
``PendingRecord``; tests/unit/test_store_overwrite.py holds them against each other.
"""

from hillfire import native
from hillfire.storage.store.base import Image, Pending
from hillfire.storage.store.records import PendingRecord, Placement

overwrite = native.overwrite
TYPES = (Pending, PendingRecord, Image, Placement.PATCH)
