import tomllib
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hillfire.config import (
    KINDS,
    ManagerConfig,
    MetaConfig,
    MountConfig,
    StorageConfig,
    default_toml,
    format_size,
    load,
    parse,
    parse_size,
    to_toml,
)
from hillfire.errors import Code, Error

MINIMAL = {
    "manager": 'directory = "/d"',
    "meta": 'directory = "/d"\nmanager = "127.0.0.1:1"',
    "storage": 'node = 7\ndirectory = "/d"\nmanager = "127.0.0.1:1"',
    "mount": 'address = "h:1"\nmountpoint = "/m"',
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_printed_default_is_the_default(kind: str) -> None:
    printed = parse(kind, default_toml(kind))
    minimal = parse(kind, MINIMAL[kind])
    for field in fields(KINDS[kind]):
        if field.default is not MISSING:
            assert getattr(printed, field.name) == getattr(minimal, field.name) == field.default


@pytest.mark.parametrize("kind", KINDS)
def test_the_printed_default_names_and_explains_every_key(kind: str) -> None:
    lines = default_toml(kind).splitlines()
    for field in fields(KINDS[kind]):
        at = next(
            i for i, line in enumerate(lines) if line.lstrip("# ").startswith(field.name + " = ")
        )
        assert lines[at - 1].startswith("# "), field.name


@pytest.mark.parametrize("kind", KINDS)
def test_to_toml_is_read_back_as_the_same(kind: str) -> None:
    config = parse(kind, MINIMAL[kind])
    assert parse(kind, to_toml(config)) == config
    assert is_dataclass(config)


@pytest.mark.parametrize(
    ("kind", "text", "wanted"),
    [
        ("storage", "pool_byte = 1", "unknown key 'pool_byte'; did you mean 'pool_bytes'?"),
        ("manager", "zzz = 1", "unknown key 'zzz'; known are directory, listen"),
        ("storage", "io_threads = '4'", 'io_threads = "4" is no whole number'),
        ("storage", "io_threads = true", "io_threads = true is no whole number"),
        ("storage", "io_threads = 0", "io_threads = 0 is not between 1 and 256"),
        ("storage", "pool_bytes = '64 MoB'", 'pool_bytes = "64 MoB" is no size'),
        ("storage", "directory = 3", "directory = 3 is no path in quotes"),
        ("meta", "engine = 'rocksbd'", "did you mean 'rocksdb'?"),
        ("meta", "chunk_bytes = 100000", "no power of two: use for example 65536"),
        ("manager", "heartbeat_interval_ms = 1900", "use at most 500"),
        ("storage", "manager = '10.0.0.1:9700'", 'listen = "127.0.0.1:0" is reached from this'),
        ("meta", "listen = '0.0.0.0:9702'", "cannot be published: name the address at which"),
        ("manager", "listen = '10.0.0.1:9700'", 'grpc_listen = "127.0.0.1:0" is reached from'),
        ("mount", "transport = 'rdmaa'", 'is none of "shm", "rdma", "tcp"'),
        ("mount", "io_timeout_s = 'x'", "is no number"),
    ],
)
def test_an_error_names_file_key_and_remedy(
    kind: str, text: str, wanted: str, tmp_path: Path
) -> None:
    path = tmp_path / "service.toml"
    rest = "\n".join(
        line for line in MINIMAL[kind].splitlines() if line.split()[0] != text.split()[0]
    )
    path.write_text(f"{rest}\n{text}\n")
    with pytest.raises(Error) as caught:
        load(kind, path)
    assert caught.value.code is Code.CONFIGURATION
    assert str(path) in str(caught.value)
    assert wanted in str(caught.value)


def test_a_missing_key_a_missing_file_and_no_toml_are_named(tmp_path: Path) -> None:
    with pytest.raises(Error, match="'directory' is missing: add for example directory = "):
        parse("manager", "")
    with pytest.raises(Error, match="hillfire config meta"):
        load("meta", tmp_path / "absent.toml")
    with pytest.raises(Error, match="is not TOML"):
        parse("manager", "directory = ")
    with pytest.raises(Error, match="did you mean 'storage'"):
        parse("storag", "")


def test_values_take_their_types() -> None:
    storage = parse("storage", MINIMAL["storage"] + '\npool_bytes = "1.5 GiB"')
    assert isinstance(storage, StorageConfig)
    assert storage.pool_bytes == 3 << 29
    assert storage.directory == Path("/d")
    mount = parse("mount", MINIMAL["mount"] + "\nio_timeout_s = 3")
    assert isinstance(mount, MountConfig)
    assert type(mount.io_timeout_s) is float
    assert isinstance(parse("meta", MINIMAL["meta"]), MetaConfig)
    assert isinstance(parse("manager", MINIMAL["manager"]), ManagerConfig)


def test_sizes() -> None:
    assert parse_size("64 MiB") == 64 << 20
    assert parse_size("64mib") == 64 << 20
    assert parse_size("1 MB") == 1_000_000
    assert parse_size("17") == 17
    assert format_size(64 << 20) == "64 MiB"
    assert format_size(1000) == "1000 B"
    for wrong in ("", "MiB", "1 XiB", "0.3 B", "-1"):
        with pytest.raises(ValueError, match="no "):
            parse_size(wrong)


@given(st.text())
def test_any_text_is_quoted_so_that_toml_reads_it_back(text: str) -> None:
    try:
        config = ManagerConfig(directory=Path("/d"), listen=text, grpc_listen=text)
        encoded = to_toml(config).encode()
    except UnicodeEncodeError:
        return
    assert tomllib.loads(encoded.decode())["listen"] == text


def storage(*lines: str) -> StorageConfig:
    base = ("node = 1", 'directory = "/a"', 'manager = "127.0.0.1:1"')
    found = parse("storage", "\n".join([*base, *lines]))
    assert isinstance(found, StorageConfig)
    return found


def test_a_list_of_directories_is_read_and_written() -> None:
    found = storage('disks = ["/x", "/y"]')
    assert found.disks == (Path("/x"), Path("/y"))
    assert parse("storage", to_toml(found)) == found
    assert storage().disks == ()


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('disks = "/x"', "is no list"),
        ('disks = ["/x", 1]', "its 2. value 1 is no path"),
        ('disks = ["/x", "/x"]', "names a directory twice"),
        ("no_new_chunks_percent = 99.5", "the first must come first"),
        ("recovery_share = 0", "is not between 0.01 and 1"),
        ('durability = "sometimes"', "is none of"),
    ],
)
def test_what_a_storage_node_cannot_be_told(line: str, told: str) -> None:
    with pytest.raises(Error) as caught:
        storage(line)
    assert caught.value.code is Code.CONFIGURATION
    assert told in str(caught.value)
