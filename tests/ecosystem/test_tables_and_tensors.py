"""Parquet by PyArrow and DuckDB, safetensors, each by the package itself. Budget: 60 s.

Needs pyarrow, duckdb, safetensors, torch: ``deploy/test ecosystem`` installs them.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import fsspec
import numpy as np
import pytest

from hillfire.client.adapters.fsspec import HillfireFileSystem
from hillfire.client.adapters.lending import lender
from hillfire.errors import Code, Error
from tests.cluster import LocalCluster

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
ds = pytest.importorskip("pyarrow.dataset")
duckdb = pytest.importorskip("duckdb")

ROWS = 200_000


@pytest.fixture
def fs(running: LocalCluster) -> HillfireFileSystem:
    found = fsspec.filesystem("hillfire")
    assert isinstance(found, HillfireFileSystem)
    return found


@pytest.fixture
def top(fs: HillfireFileSystem, request: pytest.FixtureRequest) -> Iterator[str]:
    path = f"/{request.node.name}"
    yield path
    fs.rm(path, recursive=True)


def table() -> Any:
    chance = np.random.default_rng(7)
    return pa.table(
        {
            "key": np.arange(ROWS),
            "shard": (np.arange(ROWS) % 4).astype("int32"),
            "value": chance.random(ROWS),
            "text": [f"row {number}" for number in range(ROWS)],
        }
    )


def test_pyarrow_datasets(fs: HillfireFileSystem, top: str) -> None:
    whole = table()
    ds.write_dataset(
        whole, f"{top}/set", format="parquet", partitioning=["shard"], filesystem=fs,
        partitioning_flavor="hive", max_rows_per_group=10_000,
    )  # fmt: skip
    assert len(fs.glob(f"{top}/set/shard=*/*.parquet")) == 4
    found = ds.dataset(f"{top}/set", filesystem=fs, partitioning="hive")
    assert found.count_rows() == ROWS
    some = found.to_table(columns=["key", "value"], filter=ds.field("key") < 1000)
    assert some.sort_by("key").column("value").equals(whole.column("value").slice(0, 1000))
    # by URL, by a file object, by many threads at once
    pq.write_table(whole, f"fsspec+hillfire://{top}/one.parquet", row_group_size=20_000)
    assert pq.read_table(f"fsspec+hillfire://{top}/one.parquet").equals(whole)
    with fs.open(f"{top}/one.parquet") as file:
        parquet = pq.ParquetFile(file, pre_buffer=True)
        assert parquet.read_row_group(3).equals(whole.slice(60_000, 20_000))

    def column(name: str) -> Any:
        return pq.read_table(f"{top}/one.parquet", columns=[name], filesystem=fs)[name]

    with ThreadPoolExecutor(4) as pool:
        names = whole.column_names * 3
        for name, read in zip(names, pool.map(column, names), strict=True):
            assert read.equals(whole[name])


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_arrow_takes_the_memory_that_servers_filled(fs: HillfireFileSystem, top: str) -> None:
    """It lives as long as Arrow needs it, then the next read has it; with none left, bytes do."""
    data = np.random.default_rng(1).bytes(24 << 20)
    fs.pipe(f"{top}/x", data)
    size = 1 << 20
    with fs.open(f"{top}/x") as file:
        arrow = pa.PythonFile(file, mode="r")

        def read_at(count: int, offset: int) -> Any:
            arrow.seek(offset)
            return arrow.read_buffer(count)

        held = [read_at(size, size * number) for number in (7, 3, 21)]
        memory = lender()._buffers.region
        for buffer, number in zip(held, (7, 3, 21), strict=True):
            assert buffer == pa.py_buffer(data[size * number : size * (number + 1)])
            assert 0 <= buffer.address - memory.address < memory.size
        first = held[0].address
        kept = held[1].slice(1000, 100)
        del held, buffer
        again = {n: read_at(size, size * n) for n in reversed(range(20))}
        assert first in {buffer.address for buffer in again.values()}  # lent again
        assert kept == pa.py_buffer(data[3 * size + 1000 : 3 * size + 1100])
        many = [read_at(8 * size, 0) for _ in range(9)]  # more than there is
        assert all(buffer == pa.py_buffer(data[: 8 * size]) for buffer in many)
        assert not all(0 <= each.address - memory.address < memory.size for each in many)
        pid = os.fork()
        if pid == 0:  # what it inherited is never lent again
            os._exit(0 if lender()._buffers.region is not memory and again[5].equals(
                pa.py_buffer(data[5 * size : 6 * size])) else 1)  # fmt: skip
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert lender()._buffers.region is not memory
        assert read_at(100, 24 * size - 50) == pa.py_buffer(data[-50:])
        assert read_at(size, 25 * size).size == 0
    table = pa.table({"value": np.random.default_rng(1).random(500_000)})
    with fs.open(f"{top}/x.arrow", "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    with fs.open(f"{top}/x.arrow") as file:
        assert pa.ipc.open_file(file).read_all().equals(table)


def test_duckdb(fs: HillfireFileSystem, top: str) -> None:
    pq.write_table(table(), f"{top}/a.parquet", filesystem=fs, row_group_size=20_000)
    with duckdb.connect() as connection:
        connection.register_filesystem(fs)
        source = f"hillfire://{top}/*.parquet"
        query = f"SELECT shard, count(*), min(key), max(text) FROM '{source}' GROUP BY shard"
        assert sorted(connection.sql(query).fetchall())[1] == (1, ROWS // 4, 1, "row 99997")
        connection.sql(
            f"COPY (SELECT key, value FROM '{source}' WHERE key % 1000 = 0) "
            f"TO 'hillfire://{top}/out/b.parquet' (FORMAT parquet)"
        )
        count = connection.sql(f"SELECT count(*) FROM 'hillfire://{top}/out/b.parquet'")
        assert count.fetchall() == [(ROWS // 1000,)]
        with pytest.raises(duckdb.Error):
            connection.sql(f"SELECT * FROM 'hillfire://{top}/none.parquet'").fetchall()
    assert pq.read_table(f"{top}/out/b.parquet", filesystem=fs).num_rows == ROWS // 1000


def test_pandas(fs: HillfireFileSystem, top: str) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": range(1000), "b": [f"{number}" for number in range(1000)]})
    frame.to_parquet(f"hillfire://{top}/new/directory/a.parquet")
    frame.to_csv(f"hillfire://{top}/a.csv.gz", index=False)
    assert pandas.read_parquet(f"hillfire://{top}/new/directory/a.parquet").equals(frame)
    assert len(pandas.read_csv(f"hillfire://{top}/a.csv.gz")) == 1000


def test_safetensors(fs: HillfireFileSystem, top: str) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("safetensors")
    from safetensors.torch import load, save

    from hillfire.client.adapters.safetensors import load_file

    state = {
        "weight": torch.arange(9 << 20, dtype=torch.float32).reshape(9, -1),  # 36 MiB
        "half": torch.arange(4096).to(torch.bfloat16),
        "odd": torch.arange(7, dtype=torch.uint8),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "eight": torch.ones(16).to(torch.float8_e4m3fn),
        "empty": torch.empty(0, 8),
        **{f"layer.{number}": torch.full((3, 5), number) for number in range(1000)},
    }
    url = f"hillfire://{top}/model.safetensors"
    data = save(state, metadata={"step": "1000"})
    fs.pipe(url, data)
    for found in (load(fs.cat(url)), load_file(url)):
        assert found.keys() == state.keys()
        for name, tensor in state.items():
            assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape
            raw, wanted = (each.reshape(-1).view(torch.uint8) for each in (found[name], tensor))
            assert torch.equal(raw, wanted)
    some = load_file(url, names=["half", "layer.7"])
    assert list(some) == ["half", "layer.7"] and torch.equal(some["layer.7"], state["layer.7"])
    some["half"] += 1  # they are the caller's own
    with pytest.raises(KeyError):
        load_file(url, names=["none"])
    for wrong in (b"", data[:7], data[:100], data[:-1], b"\xff" * 100, b"\2\0\0\0\0\0\0\0[]"):
        fs.pipe(f"{top}/wrong", wrong)
        with pytest.raises(Error) as raised:
            load_file(f"hillfire://{top}/wrong")
        assert raised.value.code is Code.CORRUPT
