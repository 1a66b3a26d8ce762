"""How many chains there can be, and how many of its places each node gives. Pure, exact.

A chain takes at most one target of a node and at most ``most`` of a failure domain. So a domain
with more than its share of all targets cannot use them all: some of its places stay empty rather
than two replicas meet in it. How many chains there can be then follows by counting alone: that
many can always be completed (the constraints are nested, hence a network with whole solutions),
as long as nobody is left with more places than there are chains to come.
"""

from collections.abc import Sequence


def shares(
    room: Sequence[int], domain: Sequence[int], most: int, replicas: int
) -> tuple[int, list[int]]:
    """Return the number of chains, and how many places of each node they use.

    ``room``: places of each node; ``domain``: the failure domain of each, numbered from 0.
    """

    def places(chains: int) -> int:
        inside = [0] * (max(domain, default=0) + 1)
        for i, places_there in enumerate(room):
            inside[domain[i]] += min(places_there, chains)
        return sum(min(n, most * chains) for n in inside)

    least, greatest = 0, sum(room) // replicas
    while least < greatest:
        middle = (least + greatest + 1) // 2
        if places(middle) >= replicas * middle:
            least = middle
        else:
            greatest = middle - 1
    return least, _trimmed(room, domain, most * least, least, replicas)


def _trimmed(
    room: Sequence[int], domain: Sequence[int], of_domain: int, chains: int, replicas: int
) -> list[int]:
    """Take places from whoever has most, until the sum is what ``chains`` need."""
    used = [min(n, chains) for n in room]
    inside = [0] * (max(domain, default=0) + 1)
    for i, n in enumerate(used):
        inside[domain[i]] += n
    for d, n in enumerate(inside):
        members = [i for i in range(len(room)) if domain[i] == d]
        _take(used, members, max(0, n - of_domain))
    _take(used, range(len(room)), sum(used) - replicas * chains)
    return used


def _take(used: list[int], members: Sequence[int], surplus: int) -> None:
    """Take ``surplus`` places from ``members``, the fullest first, the last of equals first."""
    for _ in range(surplus):
        fullest = max(members, key=lambda i: (used[i], i))
        used[fullest] -= 1
