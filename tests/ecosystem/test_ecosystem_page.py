"""Every snippet of docs/ecosystem.md that needs more than CI installs. Budget: 60 s."""

from pathlib import Path

import pytest

from tests.cluster import LocalCluster
from tests.integration.test_docs import marked, run

SNIPPETS = marked("ecosystem")


@pytest.mark.parametrize("snippet", SNIPPETS, ids=[where for where, *_ in SNIPPETS])
def test_a_snippet_runs(
    running: LocalCluster, tmp_path: Path, snippet: tuple[str, str, str, str]
) -> None:
    for package in ("torch", "pyarrow", "duckdb", "pandas", "safetensors"):
        pytest.importorskip(package)
    _, _, language, text = snippet
    environment = {**running.environment, "HILLFIRE_ADDRESS": running.address}
    run(language, text, environment, tmp_path)
