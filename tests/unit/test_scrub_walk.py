"""Where a slow walk of the scrubber goes on after the node was started again. Budget: 2 s."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from hillfire.storage.scrub import DAY_S, Walk
from hillfire.types import chunk_id


def walk(directory: Path, period_s: float = 14 * DAY_S) -> Walk:
    target = SimpleNamespace(id=7, chain=1, disk=SimpleNamespace(directory=directory))
    return Walk(cast(Any, target), cast(Any, SimpleNamespace(period_s=period_s)))


def test_a_walk_goes_on_where_it_was(tmp_path: Path) -> None:
    at = chunk_id(9, 5)  # type: ignore[arg-type]
    assert walk(tmp_path)._resume() == (None, 0, 0.0)
    before = walk(tmp_path)
    before.bytes_done = 123
    before._save(at, 4000.0)
    assert walk(tmp_path)._resume() == (at, 123, 4000.0)


def test_a_place_that_is_damaged_or_too_old_begins_anew(tmp_path: Path) -> None:
    at = chunk_id(9, 5)  # type: ignore[arg-type]
    walk(tmp_path)._save(at, 4000.0)
    assert walk(tmp_path, period_s=3999)._resume() == (None, 0, 0.0)
    for text in ("", "2 00 1 1", "1 zz 1 1", "1 00", "\n"):
        (tmp_path / "scrub" / "7").write_text(text)
        assert walk(tmp_path)._resume() == (None, 0, 0.0)
