"""A chunk's checksums at two grains: 64 KiB always, 4 KiB where a small request made them worth it.

With the native extension every write computes both in one pass, 21 µs a MiB. Without it a large
write computes the grains only: sixteen sums a MiB, where 256 would cost as much as writing does.
The pages of a grain become *known* when they are written with their sums, or when a small read
verified the grain once (``learn``); from then on 4 KiB are read and verified by
themselves, and an update of a page brings its grain up to date by arithmetic on checksums, with no
look at the other bytes. What replicas compare is a digest of the grains alone, so it is the same
whatever each of them knows. Pure.
"""

from array import array
from collections.abc import Iterable, Sequence

from hillfire import native
from hillfire.storage.store.checksum import (
    GRAIN_BYTES,
    GRAIN_SHIFT,
    PAGE_BYTES,
    PAGE_SHIFT,
    combine_pages,
    extend_grains,
    extend_grains_with_zeros,
    extend_pages,
    extend_pages_with_zeros,
    packed_sums,
    shift,
    shift_pages,
)

FINE_BYTES = 64 * 1024
"""Bytes of an update up to which its pages' checksums are computed with it in any case."""
GRAIN_PAGES = GRAIN_BYTES // PAGE_BYTES
_GRAIN_PAGES_SHIFT = GRAIN_SHIFT - PAGE_SHIFT

Fine = tuple["array[int]", bytearray]


def n_grains(length: int) -> int:
    """Return how many grains a chunk has."""
    return -(-length // GRAIN_BYTES)


def n_pages(length: int) -> int:
    """Return how many pages a chunk has."""
    return -(-length // PAGE_BYTES)


def _zeros(count: int) -> "array[int]":
    return array("I", bytes(4 * count))


class Sums:
    """The checksums of one image of a chunk. Does not change, except that it may learn."""

    __slots__ = ("fine", "grains")

    def __init__(self, grains: "array[int]", fine: Fine | None = None) -> None:
        """``fine``: the pages' checksums, and which grains' pages are known."""
        self.grains = grains
        self.fine = fine

    def __repr__(self) -> str:
        """Tell how much is known."""
        known = 0 if self.fine is None else sum(self.fine[1])
        return f"<Sums {len(self.grains)} grains, pages of {known} known>"

    def __eq__(self, other: object) -> bool:
        """Tell whether the grains are the same."""
        return isinstance(other, Sums) and self.grains == other.grains

    __hash__ = None  # type: ignore[assignment]

    def knows(self, first: int, last: int) -> bool:
        """Tell whether the pages of all grains from ``first`` to ``last`` are known."""
        fine = self.fine
        if fine is None:
            return False
        if first == last:
            return fine[1][first] == 1
        return all(fine[1][first : last + 1])

    def learn(self, length: int, grain: int, pages: Iterable[int]) -> None:
        """Take up the checksums of a grain's pages, which were found to make the grain's."""
        fine = self.fine
        if fine is None:
            fine = _zeros(n_pages(length)), bytearray(len(self.grains))
        first = grain << _GRAIN_PAGES_SHIFT
        fine[0][first : first + GRAIN_PAGES] = array("I", pages)
        fine[1][grain] = 1
        self.fine = fine

    # ------------------------------------------------------------------ other images

    def cut(self, length: int, last: Sequence[int]) -> "Sums":
        """Return those of the first ``length`` bytes; ``last``: the page sums of the last grain.

        ``last`` is empty where the cut leaves whole grains.
        """
        count = n_grains(length)
        grains, fine = self.grains[:count], self.fine
        if fine is not None:
            fine = fine[0][: n_pages(length)], fine[1][:count]
        sums = Sums(grains, fine)
        if last:
            grains[-1] = combine_pages(last, length % GRAIN_BYTES)
            sums.learn(length, count - 1, last)
        return sums

    def extended(
        self, length: int, n_zeros: int, data: memoryview, value: int = 0
    ) -> tuple["Sums", int]:
        """Return those after ``length`` bytes, zeros and data, and the CRC32C of the data."""
        start = length + n_zeros
        grains = extend_grains_with_zeros(self.grains, length, n_zeros)
        grains, crc = extend_grains(grains, start, data, value)
        after = start + len(data)
        known = bytearray(len(self.grains)) if self.fine is None else self.fine[1][:]
        pages = _zeros(n_pages(length)) if self.fine is None else self.fine[0][:]
        within = length % GRAIN_BYTES != 0
        cheap = _is_fine(len(data)) and (not within or known[-1])
        if cheap:
            pages = extend_pages_with_zeros(pages, length, n_zeros)
            pages = extend_pages(pages, start, data)
        else:
            pages.extend(_zeros(n_pages(after) - len(pages)))
            if within:
                known[-1] = 0
        known.extend((b"\1" if cheap else b"\0") * (len(grains) - len(known)))
        return Sums(grains, (pages, known) if any(known) else None), crc

    def patched(self, length: int, after: int, first_page: int, fresh: Sequence[int]) -> "Sums":
        """Return those of a chunk that had ``length`` bytes once its pages were replaced.

        The pages of the grains that are touched must be known.
        """
        assert self.fine is not None, "pages are learnt before they are patched"
        old, known = self.fine
        pages, grains = old[:], self.grains[:]
        if len(fresh) == 1 and after == length:
            return self._one_page(pages, grains, after, first_page, fresh[0])
        known = known[:]
        last = first_page + len(fresh) - 1
        if after > length:
            pages.extend(_zeros(n_pages(after) - len(pages)))
            grown = n_grains(after) - len(grains)
            grains.extend(_zeros(grown))
            known.extend(b"\1" * grown)
        pages[first_page : last + 1] = array("I", fresh)
        for grain in range(first_page >> _GRAIN_PAGES_SHIFT, (last >> _GRAIN_PAGES_SHIFT) + 1):
            start = grain << _GRAIN_PAGES_SHIFT
            n_bytes = min(grain + 1 << GRAIN_SHIFT, after) - (grain << GRAIN_SHIFT)
            grains[grain] = combine_pages(pages[start : start + GRAIN_PAGES], n_bytes)
        return Sums(grains, (pages, known))

    def _one_page(
        self, pages: "array[int]", grains: "array[int]", length: int, page: int, crc: int
    ) -> "Sums":
        """Replace a page where all others stay: by arithmetic alone."""
        assert self.fine is not None, "pages are learnt before they are patched"
        grain = page >> _GRAIN_PAGES_SHIFT
        end, stop = page + 1 << PAGE_SHIFT, grain + 1 << GRAIN_SHIFT
        behind = (stop if stop < length else length) - end
        change = pages[page] ^ crc
        whole = behind & PAGE_BYTES - 1 == 0
        if native.replace_page is not None and whole:
            native.replace_page(grains, pages, page, crc)
            return Sums(grains, (pages, self.fine[1][:]))
        if behind > 0:
            change = shift_pages(change, behind >> PAGE_SHIFT) if whole else shift(change, behind)
        grains[grain] ^= change
        pages[page] = crc
        return Sums(grains, (pages, self.fine[1][:]))

    # ------------------------------------------------------------------ packed

    def pack(self, first: int, count: int) -> bytes:
        """Return the sums of ``count`` grains from ``first`` on: grains, what is known, pages."""
        grains, fine = self.grains[first : first + count].tobytes(), self.fine
        if fine is None:
            return grains + bytes(count)
        pages, known = fine
        parts: list[bytes | bytearray] = [grains, known[first : first + count]]
        if count == 1:
            if known[first]:
                at = first << _GRAIN_PAGES_SHIFT
                parts.append(pages[at : at + GRAIN_PAGES].tobytes())
        elif 0 not in parts[1]:
            stop = first + count << _GRAIN_PAGES_SHIFT
            parts.append(pages[first << _GRAIN_PAGES_SHIFT : stop].tobytes())
        else:
            for grain in range(first, first + count):
                if known[grain]:
                    at = grain << _GRAIN_PAGES_SHIFT
                    parts.append(pages[at : at + GRAIN_PAGES].tobytes())
        return b"".join(parts)


def none() -> Sums:
    """Return the sums of no bytes."""
    return Sums(array("I"))


def whole(data: memoryview) -> tuple[Sums, int]:
    """Return the sums of a chunk that holds ``data``, and its CRC32C."""
    if not _is_fine(len(data)):
        return none().extended(0, 0, data)
    grains, pages, crc = native.chunk_sums(data)
    known = bytearray(b"\1" * (len(grains) // 4))
    return Sums(array("I", grains), (array("I", pages), known) if known else None), crc


def _is_fine(n_bytes: int) -> bool:
    """Tell whether the pages of an update's bytes are summed with it."""
    return native.FAST or n_bytes <= FINE_BYTES


def unpack(
    packed: memoryview | bytes, length: int, first: int, count: int, old: Sums | None = None
) -> Sums:
    """Return the sums of a chunk of ``length`` bytes.

    Those of ``count`` grains from ``first`` on are ``packed``, the others are ``old``'s.
    """
    total = n_grains(length)
    grains = array("I", bytes(packed[: 4 * count]))
    known = bytearray(packed[4 * count : 5 * count])
    if old is not None and count < total:
        grains = old.grains[:first] + grains + old.grains[first + count : total]
    at = 5 * count
    if not any(known) and (old is None or old.fine is None):
        return Sums(grains)
    if count == total and 0 not in known:
        return Sums(grains, (array("I", bytes(packed[at : at + 4 * n_pages(length)])), known))
    pages = _zeros(n_pages(length))
    everything = bytearray(total)
    if old is not None and old.fine is not None:
        behind = first + count
        if first:
            everything[:first] = old.fine[1][:first]
            stop = first << _GRAIN_PAGES_SHIFT
            pages[:stop] = old.fine[0][:stop]
        if behind < total:
            everything[behind:] = old.fine[1][behind:total]
            start = behind << _GRAIN_PAGES_SHIFT
            pages[start:] = old.fine[0][start : len(pages)]
    for grain, is_known in enumerate(known, first):
        if is_known:
            start = grain << _GRAIN_PAGES_SHIFT
            n = min(GRAIN_PAGES, len(pages) - start)
            pages[start : start + n] = array("I", bytes(packed[at : at + 4 * n]))
            at += 4 * n
    everything[first : first + count] = known
    return Sums(grains, (pages, everything))


def check(sums: Sums, length: int) -> bool:
    """Tell whether a chunk's sums fit its length and each other."""
    if len(sums.grains) != n_grains(length):
        return False
    if sums.fine is None:
        return True
    pages, known = sums.fine
    if len(pages) != n_pages(length) or len(known) != len(sums.grains):
        return False
    for grain, is_known in enumerate(known):
        if not is_known:
            continue
        start = grain << _GRAIN_PAGES_SHIFT
        n_bytes = min(grain + 1 << GRAIN_SHIFT, length) - (grain << GRAIN_SHIFT)
        if combine_pages(pages[start : start + GRAIN_PAGES], n_bytes) != sums.grains[grain]:
            return False
    return True


def page_sums(data: memoryview) -> list[int]:
    """Return the checksums of the pages of ``data``, the last of which may be short."""
    return packed_sums(data, PAGE_BYTES).tolist()
