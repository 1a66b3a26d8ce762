"""How a chain table is shown to a person: what follows from a death, and who helps whom."""

from itertools import pairwise

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from hillfire.cli.placement_table import Made
from hillfire.meta.manager.placement import Domain, Plan
from hillfire.meta.manager.placement.evenness import Spread, recovery_load

MAX_NUMBERS = 16
"""Up to so many nodes the matrix shows numbers, beyond it shades."""
MAX_CELLS = 36
"""Cells of the matrix a side; of more nodes, several share a cell."""
_SHADES = " ░▒▓█"
_EVEN = 1e-9


def show(table: Made) -> None:
    """Print it."""
    plan = table.plan
    parts: list[RenderableType] = [Text(headline(table)), Text(kept_apart(plan)), Text()]
    alone = plan.replicas == 1
    parts += [] if alone else [_deaths(table), Text(_disks(table.evenness.disks))]
    parts.append(Text(_places(table)))
    if plan.unused:
        parts.append(Text(f"{plan.unused} places stay empty: {_why_unused(plan)}."))
    parts += [] if alone else [Text(), *matrix(plan), Text(), Text(_verdict(table))]
    Console(highlight=False, soft_wrap=True).print(Group(*parts))


def headline(table: Made) -> str:
    """Return how many chains there are, of what, and how long they took."""
    plan = table.plan
    disks = {home.disks for home in plan.homes}
    racks = len({home.rack for home in plan.homes if home.rack})
    hosts = len({home.host for home in plan.homes if home.host})
    where = f" on {_counted(hosts, 'host')}" if 0 < hosts < len(plan.homes) else ""
    where += f" in {_counted(racks, 'rack')}" if racks else ""
    each = "/".join(map(str, sorted(disks))) + (" disk" if disks == {1} else " disks")
    nodes = _counted(len(plan.homes), "node")
    return (
        f"{len(plan.chains)} chains of {plan.replicas} over {nodes}{where}, "
        f"{each} each, {plan.targets_per_disk} targets a disk"
        + (f": {_how(plan)}, in {table.seconds:.1f} s" if plan.method else "")
    )


def _counted(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def kept_apart(plan: Plan) -> str:
    """Return what no two replicas of a chain share."""
    if plan.replicas == 1:
        return "one replica: nothing takes over from a dead node"
    if plan.most == 1:
        return f"two replicas of a chain are never on one {plan.domain.name.lower()}"
    return (
        f"at most {plan.most} replicas of a chain are in one {plan.domain.name.lower()}, "
        "never two on one host: there are fewer racks than replicas"
    )


def _how(plan: Plan) -> str:
    return {
        "known": "a known design",
        "search": "found by search",
        "solver": "found by the solver",
    }[plan.method]


def _deaths(table: Made) -> Table:
    grid = Table(box=box.SIMPLE, padding=(0, 1), pad_edge=False)
    for title in ("when this dies", "its reads go to", "most / mean", "average", "at best"):
        grid.add_column(title, justify="left" if title == "when this dies" else "right")
    for name, spread in (("a node", table.evenness.nodes), ("a host", table.evenness.hosts)):
        if spread is not None:
            grid.add_row(name, *_spread(spread))
    return grid


def _disks(spread: Spread) -> str:
    return (
        f"A dead disk's reads go to {spread.takers} of the {spread.count - 1} other disks; none "
        f"takes over more than {spread.most} of its chains (at best {spread.most_bound})."
    )


def _spread(spread: Spread) -> tuple[str, ...]:
    return (
        f"{spread.takers} of {spread.count - 1}",
        f"{spread.ratio:.2f}",
        f"{spread.mean_ratio:.2f}",
        f"{spread.bound:.2f}",
    )


def _places(table: Made) -> str:
    def span(pair: tuple[int, int]) -> str:
        return f"{pair[0]}" if pair[0] == pair[1] else f"{pair[0]} to {pair[1]}"

    even = table.evenness

    def ends(ranges: tuple[tuple[int, int], ...]) -> str:
        return f"head of {span(ranges[0])} and tail of {span(ranges[-1])} chains"

    return f"Each node is {ends(even.node_places)}, each disk is {ends(even.places)}."


def _why_unused(plan: Plan) -> str:
    if plan.unused < plan.replicas:
        return "too few for another chain"
    return f"another chain would need a {plan.domain.name.lower()} that has all its places in use"


def _verdict(table: Made) -> str:
    nodes = table.evenness.nodes
    if nodes.ratio <= nodes.bound + _EVEN:
        return "No table spreads a dead node's reads more evenly than this."
    text = f"No table reaches less than {nodes.bound:.2f}; whether one reaches that is not known."
    if not table.solver:
        text += " A solver may find one: pip install 'hillfire[placement]'"
    return text


def matrix(plan: Plan) -> list[Text]:
    """Return the picture of who takes over with whom: numbers for few nodes, shades for many."""
    load = recovery_load(plan)
    title = "Chains that each node (across) takes over when a node (down) dies"
    count = len(load)
    if count <= MAX_NUMBERS:
        width = max(len(str(home.node)) for home in plan.homes) + 1
        head = " " * width + "".join(f"{home.node:>{width}}" for home in plan.homes)
        rows = [
            f"{home.node:>{width}}" + "".join(f"{n if n else '.':>{width}}" for n in row)
            for home, row in zip(plan.homes, load, strict=True)
        ]
        return [Text(line) for line in (title, head, *rows)]
    order = sorted(range(count), key=lambda i: (plan.homes[i].within(_grouping(plan)), i))
    cells = min(count, MAX_CELLS)
    edges = [count * i // cells for i in range(cells + 1)]
    means = [
        [
            _mean([load[x][y] for x in order[a:b] for y in order[c:d] if x != y])
            for c, d in pairwise(edges)
        ]
        for a, b in pairwise(edges)
    ]
    most = max(max(row) for row in means) or 1.0
    shades = ["".join(2 * _shade(n / most) for n in row) for row in means]
    unit = f"a square is {count / cells:.0f} x {count / cells:.0f} nodes, " if cells < count else ""
    legend = f"({unit}darkest: {most:.2f} chains)"
    return [Text(f"{title} {legend}"), *(Text("  " + line) for line in shades)]


def _grouping(plan: Plan) -> Domain:
    """Nodes of one rack stand together in the picture: what they never share shows as blank."""
    return Domain.RACK if any(home.rack for home in plan.homes) else Domain.HOST


def _mean(values: list[int]) -> float:
    return sum(values) / len(values) if values else 0.0


def _shade(part: float) -> str:
    return _SHADES[min(len(_SHADES) - 1, round(part * (len(_SHADES) - 1) + 0.49 * (part > 0)))]
