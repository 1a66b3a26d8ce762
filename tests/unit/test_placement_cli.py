"""`hillfire placement`: what it prints, what it hands on, what it refuses."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hillfire.cli.app import app
from hillfire.cli.placement_table import existing, read_table
from hillfire.cli.placement_view import show
from hillfire.errors import Code, Error
from hillfire.meta.manager.decide import Wish, evaluate, home_of, with_chains
from hillfire.meta.manager.placement import Domain, make_plan
from hillfire.meta.manager.placement.evenness import evenness
from hillfire.types import NodeId
from tests.unit.test_placement_parts import cluster_in_racks


def run(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["placement", "--no-solver", *arguments], env={"COLUMNS": "120"})
    if done.exception is not None:
        raise done.exception
    return done.output


def test_a_person_sees_what_follows_from_a_death() -> None:
    text = run("--nodes", "7", "--targets-per-disk", "3")
    assert "7 chains of 3 over 7 nodes, 1 disk each, 3 targets a disk: a known design" in text
    assert "two replicas of a chain are never on one host" in text
    assert " a node                    6 of 6          1.00      1.00      1.00" in text
    assert " 102   1   .   1   1   1   1   1" in text
    assert "No table spreads a dead node's reads more evenly than this." in text


def test_many_nodes_are_shades_and_racks_are_blank() -> None:
    text = run("--nodes", "48", "--disks", "2", "--racks", "4")
    lines = [line for line in text.splitlines() if line.startswith("  ") and len(line) == 74]
    assert len(lines) == 36
    assert all(line[2 + 2 * i : 4 + 2 * i] == "  " for i, line in enumerate(lines))
    assert "(a square is 1 x 1 nodes" in text
    assert "never on one rack" in text


def test_what_is_relaxed_or_left_over_is_said() -> None:
    text = run("--nodes", "11", "--racks", "3", "--apart", "rack")
    assert "8 places stay empty: another chain would need a rack" in text
    text = run("--nodes", "6", "--racks", "2")
    assert "at most 2 replicas of a chain are in one rack" in text
    text = run("--nodes", "28", "--targets-per-disk", "9", "--replicas", "4")
    assert "pip install 'hillfire[placement]'" in text
    assert "nothing takes over" in run("--nodes", "1", "--replicas", "1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nodes", "2"], "3 replicas need 3 storage nodes, there are 2"),
        (["--racks", "9"], "there are only 3 hosts"),
        (["--nodes", "0"], "choose 1 or more"),
        (["--nodes-per-host", "0"], "choose 1 or more"),
        (["--disks", "0"], "choose 1 or more"),
        (["--racks", "2", "--apart", "rack"], "need 3 racks, there are 2"),
        (["--nodes", "4096", "--disks", "16"], "nodes x targets_per_node = 262144"),
    ],
)
def test_impossible_numbers_are_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(Error, match=message) as caught:
        run(*arguments)
    assert caught.value.code is Code.CONFIGURATION


def test_the_table_that_a_cluster_has_is_judged(capsys: pytest.CaptureFixture[str]) -> None:
    routing = cluster_in_racks(9, 2, 3)
    with pytest.raises(Error, match="has no chains yet: `hillfire create-chains`"):
        existing(routing)
    made = with_chains(routing, Wish(9, 8, 3))
    assert made is not None
    # A death reorders a chain; its preferred order is what is judged.
    without = evaluate(made, set(made.nodes) - {NodeId(101)}, {})
    assert without is not None
    judged = existing(without)
    plan = make_plan([home_of(node) for node in routing.nodes.values()], 4, 3)
    assert judged.plan.chains == plan.chains and judged.evenness == evenness(plan)
    assert (judged.plan.domain, judged.plan.unused) == (Domain.RACK, 0)
    show(judged)
    text = capsys.readouterr().out
    assert "24 chains of 3 over 9 nodes in 3 racks, 2 disks each, 4 targets a disk\n" in text


def test_a_table_is_read_back(tmp_path: Path) -> None:
    text = run("--nodes", "9", "--disks", "2", "--racks", "3", "--json")
    table = json.loads(text)
    assert (table["method"], table["apart"], table["unused"]) == ("search", "rack", 0)
    assert table["evenness"]["nodes"]["ratio"] >= 1
    (tmp_path / "table.json").write_text(text)
    chains = read_table(tmp_path / "table.json")
    assert [[list(place) for place in chain] for chain in chains] == table["chains"]
    assert len(chains) == 24 and chains[0][0].node >= 101


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"chains": [[1]]}', '{"chains": [[[1, "x"]]]}'])
def test_what_is_no_table_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text(text)
    with pytest.raises(Error, match="is no chain table: write one with"):
        read_table(path)
    with pytest.raises(Error, match="cannot be read"):
        read_table(tmp_path / "none.json")
