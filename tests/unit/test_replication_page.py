"""docs/replication.md says what the code says: rules, states, and files that are there.

``python -m tests.unit.test_replication_page`` writes the two tables anew.
"""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from hillfire.meta.manager import chains
from hillfire.meta.manager import rules as manager_rules
from hillfire.storage.craq.rules import RULES

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "replication.md"


def rules_table() -> str:
    """Return the rules as the page has to have them."""
    rows = ["| rule | says | in `storage/` | source |", "|---|---|---|---|"]
    for number, rule in RULES.items():
        place = rule.place.replace(".", "/")
        rows.append(f"| R{number} | {rule.sentence} | `{place}.py` | {rule.source} |")
    return "\n".join(rows)


def manager_table() -> str:
    """Return the manager's rules as the page has to have them."""
    rows = ["| rule | says | in `meta/manager/` | source |", "|---|---|---|---|"]
    for number, rule in manager_rules.RULES.items():
        rows.append(f"| R{number} | {rule.sentence} | `{rule.place}.py` | {rule.source} |")
    return "\n".join(rows)


def states_table() -> str:
    """Return the manager's table as the page has to have it."""
    rows = ["| local | public now | next |", "|---|---|---|"]
    for row in chains.TABLE:
        local = {1: min(row.local).name, 2: "alive"}[len(row.local)]
        public = ", ".join(_shown(each.name) for each in sorted(row.public))
        then, otherwise = _shown(row.then.name), _shown(row.otherwise.name)
        following = then
        if row.condition is not chains.If.ALWAYS:
            following = f"{then} if {row.condition.value}, else {otherwise}"
        rows.append(f"| {_shown(local)} | {public} | {following} |")
    return "\n".join(rows)


def _shown(name: str) -> str:
    return name.lower().replace("_", "-").replace("up-to-date", "up to date")


TABLES: dict[str, Callable[[], str]] = {
    "rules": rules_table,
    "manager": manager_table,
    "states": states_table,
}


def section(name: str) -> re.Pattern[str]:
    """Match what stands between a table's marks."""
    return re.compile(rf"(<!-- {name}: [^\n]*-->\n)(.*?)(<!-- end of {name} -->)", re.DOTALL)


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_the_code_s(name: str) -> None:
    found = section(name).search(PAGE.read_text())
    assert found is not None
    assert found[2].strip() == TABLES[name](), "python -m tests.unit.test_replication_page"


def test_every_rule_is_cited_where_it_is_carried_out() -> None:
    for number, rule in RULES.items():
        path = ROOT / "storage" / f"{rule.place.replace('.', '/')}.py"
        named = re.search(rf"\bR{number}\b|rule\({number}\)", path.read_text())
        assert named, f"{path} does not name R{number}"
    assert not RULES.keys() & manager_rules.RULES.keys()
    for number, place in ((n, rule.place) for n, rule in manager_rules.RULES.items()):
        path = ROOT / "meta" / "manager" / f"{place}.py"
        named = re.search(rf"\bR{number}\b|rule\({number}\)", path.read_text())
        assert named, f"{path} does not name R{number}"


def test_what_the_page_names_is_there() -> None:
    text = PAGE.read_text()
    for path in re.findall(r"`((?:storage|meta|tests|deploy|client)/[\w./]+)`", text):
        assert (ROOT / path).exists(), path


def test_the_page_is_as_wide_as_others() -> None:
    wide = [line for line in PAGE.read_text().splitlines() if len(line) > 120 and line[0] != "|"]
    assert not wide


def write() -> None:
    """Put the tables of today into the page."""
    page = PAGE.read_text()
    for name, table in TABLES.items():
        found = section(name).search(page)
        assert found is not None, name
        page = f"{page[: found.start(2)]}{table()}\n{page[found.end(2) :]}"
    PAGE.write_text(page)


if __name__ == "__main__":
    write()
