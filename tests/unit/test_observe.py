import io
import logging
import re
from collections.abc import Iterator

import pytest

from hillfire import observe
from hillfire.errors import Error


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield root
    root.handlers[:] = before
    root.setLevel(level)
    logging.captureWarnings(False)


def test_a_record_is_one_line_of_key_value(
    root_logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HILLFIRE_LOG", raising=False)
    stream = io.StringIO()
    observe.setup("storage-101", "info", stream)
    log = logging.getLogger("hillfire.storage.shell")
    log.info("chain_changed chain=%d version=%d", 3, 7)
    log.debug("not shown")
    log.warning("two\nlines")
    try:
        raise ValueError("bad")
    except ValueError:
        log.exception("failed request=%d", 9)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3
    assert re.fullmatch(
        r"time=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z level=info process=storage-101 "
        r"logger=hillfire\.storage\.shell chain_changed chain=3 version=7",
        lines[0],
    )
    assert lines[1].endswith(r'message="two\nlines"')
    assert "failed request=9 exception=" in lines[2]
    assert "ValueError: bad" in lines[2]


def test_the_environment_goes_first_and_must_be_a_level(
    root_logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HILLFIRE_LOG", "error")
    observe.setup("meta", "debug")
    assert root_logger.level == logging.ERROR
    monkeypatch.setenv("HILLFIRE_LOG", "loud")
    with pytest.raises(Error, match="'loud' is none of"):
        observe.setup("meta")
