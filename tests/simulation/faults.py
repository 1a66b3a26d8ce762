"""Faults: what goes wrong, and when. Each fault ends by itself after a while; ``heal`` ends all."""

from collections.abc import Callable
from functools import partial
from random import Random
from typing import TYPE_CHECKING

from hillfire.cluster import PublicState
from hillfire.meta.manager.events import Command as AnyCommand
from hillfire.meta.manager.events import CommandKind as Kind
from tests.simulation.process import Process
from tests.simulation.storage_node import StorageNode

if TYPE_CHECKING:
    from tests.simulation.world import World


Command = partial(AnyCommand, who="simulator", why="to see what happens")


class Faults:
    """The bad luck of one world."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self.plan = world.plan
        self.on = False
        self.count = 0
        self._random: Random = world.scheduler.stream("faults")

    def begin(self) -> None:
        """Let things go wrong from now on."""
        weather, plan = self.world.weather, self.plan
        self.on = True
        weather.delay_s, weather.loss, weather.twice = plan.delay_s, plan.loss, plan.twice
        weather.damage, weather.late = plan.damage, plan.late
        self._later()

    def _later(self) -> None:
        self.world.scheduler.later(
            self._random.expovariate(1 / self.plan.fault_every_s), self._strike
        )

    def _strike(self) -> None:
        if not self.on:
            return
        kinds, weights = list(self.plan.mix), list(self.plan.mix.values())
        kind = self._random.choices(kinds, weights)[0]
        if _KINDS[kind](self):
            self.count += 1
            self.world.coverage.fault(kind)
        self._later()

    def heal(self) -> None:
        """End all that is wrong; what is down is started."""
        self.on = False
        world = self.world
        world.story.tell("world", "everything heals")
        world.weather.clear()
        for sender, receiver in list(world.network.blocked):
            world.network.unblock(sender, receiver)
        for node in world.storage():
            node.disk.slow = node.disk.broken = node.disk.away = node.dark = False
            node.disk.fill(0.0)
        for process in world.processes():
            process.doom = 0
            if process.alive:
                process.resume()
            else:
                process.start()
        world.directory.full = False
        world.operator.undo()

    # ------------------------------------------------------------------ helpers

    def _node(self) -> StorageNode | None:
        up = [node for node in self.world.storage() if node.alive]
        return self._random.choice(up) if up else None

    def _away_s(self) -> float:
        """Return how long something is away: much less than a lease, about one, much more."""
        lease_s = self.plan.lease_ms / 1000
        return self._random.choice((0.02, 0.3, 0.6, 1.2, 3.0)) * lease_s * self._random.random()

    def _back(self, process: Process, seconds: float) -> None:
        def start() -> None:
            dark = isinstance(process, StorageNode) and process.dark
            if self.on and not process.alive and not dark:
                process.start()

        self.world.scheduler.later(seconds, start)

    def _down(self, process: Process, seconds: float, why: str = "is killed") -> None:
        process.kill(why)
        self._back(process, seconds)

    def _block(self, pairs: list[tuple[Process, Process]], seconds: float) -> None:
        names = [(one.name, other.name) for one, other in pairs]
        if self.world.story.on:
            text = ", ".join(f"{one} -> {other}" for one, other in names)
            self.world.story.tell("network", f"nothing passes {text}")
        for one, other in names:
            self.world.network.block(one, other)

        def end() -> None:
            for one, other in names:
                self.world.network.unblock(one, other)

        self.world.scheduler.later(seconds, end)

    # ------------------------------------------------------------------ kinds

    def crash(self) -> bool:
        node = self._node()
        if node is not None:
            self._down(node, self._away_s())
        return node is not None

    def instant(self) -> bool:
        """A process ends and is started again at once, well within its lease."""
        node = self._node()
        if node is not None:
            self._down(node, 0.001 + self._random.random() * 0.02)
        return node is not None

    def step(self) -> bool:
        """A process dies between two effects of what it does next."""
        node = self._node()
        if node is None or node.doom:
            return False
        node.doom = self._random.choice((1, 2, 3, 5, 8, 13, 21, 34))
        away_s = self._away_s()

        def died(process: Process) -> None:
            process.on_death.remove(died)
            self._back(process, away_s)

        node.on_death.append(died)
        return True

    def together(self) -> bool:
        """Several nodes die at one moment, maybe all; some come back sooner than others."""
        up = [node for node in self.world.storage() if node.alive]
        if len(up) < 2:
            return False
        victims: list[Process] = [*self._random.sample(up, self._random.randint(2, len(up)))]
        if self._random.random() < 0.3:
            victims += self.world.managers
        for node in victims:
            self._down(node, self._away_s())
        return True

    def pause(self) -> bool:
        node = self._node()
        if node is None or node.paused:
            return False
        node.pause()
        self.world.scheduler.later(self._away_s(), node.resume)
        return True

    def isolate(self) -> bool:
        """A node reaches nobody, or everybody but the manager, or only the manager."""
        node = self._node()
        if node is None:
            return False
        others = [p for p in self.world.processes() if p is not node]
        managers: list[Process] = [*self.world.managers]
        kind = self._random.randrange(3)
        if kind == 1:
            others = managers
        elif kind == 2:
            others = [each for each in others if each not in managers]
        pairs: list[tuple[Process, Process]] = []
        for other in others:
            pairs += ((node, other), (other, node))
        self._block(pairs, self._away_s())
        return True

    def partition(self) -> bool:
        """The processes fall into two groups."""
        everyone = self.world.processes()
        side = {p: self._random.random() < 0.5 for p in everyone}
        pairs = [(p, q) for p in everyone for q in everyone if side[p] is not side[q]]
        if pairs:
            self._block(pairs, self._away_s())
        return bool(pairs)

    def one_way(self) -> bool:
        """Some links work in one direction only."""
        everyone = self.world.processes()
        pairs = [tuple(self._random.sample(everyone, 2)) for _ in range(self._random.randint(1, 4))]
        self._block(pairs, self._away_s())  # type: ignore[arg-type]
        return True

    def reset(self) -> bool:
        """Connections break."""
        for _ in range(self._random.randint(1, 5)):
            self.world.network.cut(*self._random.sample(self.world.processes(), 2))
        return True

    def storm(self) -> bool:
        """For a while the network is bad all over."""
        weather = self.world.weather
        if weather.loss > self.plan.loss:
            return False
        weather.loss, weather.twice, weather.late = 0.2, 0.2, 0.2
        weather.late_s = self._random.choice((0.1, 1.0, 4.0))
        self.world.story.tell("network", "a storm begins")

        def end() -> None:
            if self.on:
                weather.loss, weather.twice = self.plan.loss, self.plan.twice
                weather.late, weather.late_s = self.plan.late, 1.0
                self.world.story.tell("network", "the storm ends")

        self.world.scheduler.later(self._away_s(), end)
        return True

    def manager_crash(self) -> bool:
        manager = self._random.choice(self.world.managers)
        if not manager.alive:
            return False
        self._down(manager, self._away_s())
        return True

    def manager_pause(self) -> bool:
        manager = self._random.choice(self.world.managers)
        if not manager.alive or manager.paused:
            return False
        manager.pause()
        self.world.scheduler.later(self._away_s(), manager.resume)
        return True

    def manager_disk(self) -> bool:
        """The managers' disk is full for a while."""
        directory = self.world.directory
        if directory.full:
            return False
        directory.full = True
        self.world.story.tell("managers", "their disk is full")

        def end() -> None:
            directory.full = False

        self.world.scheduler.later(self._away_s(), end)
        return True

    def order(self) -> bool:
        """An operator takes a target or a node out of service, and back after a while."""
        rng, routing = self._random, self.world.directory.routing
        target = rng.choice(list(routing.targets.values()))
        chain = routing.chains[target.chain]
        order = tuple(rng.sample(sorted(chain.preferred), len(chain.preferred)))
        there, back = rng.choice(
            (
                (Command(Kind.TARGET_OFFLINE, target=target.id),
                 Command(Kind.TARGET_ONLINE, target=target.id)),
                (Command(Kind.NODE_DRAIN, node=target.node),
                 Command(Kind.NODE_UNDRAIN, node=target.node)),
                (Command(Kind.CHAIN_PREFER, chain=chain.id, order=order),
                 Command(Kind.CHAIN_ROTATE, chain=chain.id)),
            )
        )  # fmt: skip
        self.world.operator.order(there)
        seconds = self._away_s() + self._away_s()
        self.world.scheduler.later(seconds, lambda: self.world.operator.order(back))
        return True

    def quorum(self) -> bool:
        """An operator asks for more serving replicas than one for a write, for a while."""
        rng, routing = self._random, self.world.directory.routing
        chain = rng.choice(list(routing.chains.values()))
        count = rng.randint(2, len(chain.targets))
        more = Command(Kind.CHAIN_MIN_SERVING, chain=chain.id, min_serving=count)
        self.world.operator.order(more)
        back = more._replace(min_serving=1)
        self.world.scheduler.later(self._away_s(), lambda: self.world.operator.order(back))
        return True

    def client_crash(self) -> bool:
        client = self._random.choice(self.world.clients)
        if not client.alive:
            return False
        self._down(client, 0.05)
        return True

    def client_cut(self) -> bool:
        """A client loses some nodes, in one direction or in both."""
        client = self._random.choice(self.world.clients)
        nodes = self._random.sample(self.world.storage(), 2)
        pairs: list[tuple[Process, Process]] = [(client, node) for node in nodes]
        if self._random.random() < 0.5:
            pairs += [(node, client) for node in nodes]
        if self._random.random() < 0.3:
            pairs = [(node, client) for node in nodes]
        self._block(pairs, self._away_s())
        return True

    def power(self) -> bool:
        """A host loses its power, and with it what its disk was not told to keep.

        What was acknowledged is in the memory of every serving replica, so a host that comes back
        must not find its targets serving: it stays away until the manager has taken them out,
        unless each write waits for the disks (``durable``).
        """
        node = self._node()
        if node is None or node.dark:
            return False
        node.dark = True
        node.kill("loses its power")
        self._come_back(node)
        return True

    def _come_back(self, node: StorageNode) -> None:
        away_s = self._away_s() + 0.01

        def again() -> None:
            if not node.dark:
                return  # all was healed, and nothing lost
            if not self.plan.durable and self._counts(node):
                self._come_back(node)
                return
            node.dark = False
            node.disk.lose_power()
            self.world.coverage.count("disks that lost power")
            self.world.story.tell(node.name, "what was not synced is lost, in part")
            node.start()

        self.world.scheduler.later(away_s, again)

    def _counts(self, node: StorageNode) -> bool:
        """Whether a target of a node may serve again as it is."""
        routing = self.world.directory.routing
        return any(
            target.node == node.node
            and target.state in (PublicState.SERVING, PublicState.LAST_SERVING)
            for target in routing.targets.values()
        )

    def flip(self) -> bool:
        """A bit of a disk changes; sometimes a scrubber comes along soon."""
        node = self._random.choice(self.world.storage())
        if not node.disk.flip():
            return False
        self.world.story.tell(node.name, "a bit of its disk flips")
        if self._random.random() < 0.5:
            self.world.scheduler.later(self._away_s(), lambda: self._scrub(node))
        return True

    def _scrub(self, node: StorageNode) -> None:
        if node.alive:
            node.bound(node.scrub)()

    def full_disk(self) -> bool:
        node = self._random.choice(self.world.storage())
        if node.disk.full:
            return False
        node.disk.fill(self._random.choice((0.975, 0.985, 0.995, 1.0)))
        self.world.story.tell(node.name, "its disk is full")
        self.world.scheduler.later(self._away_s(), lambda: node.disk.fill(0.0))
        return True

    def broken_disk(self) -> bool:
        """A disk refuses writes for a while, or is not there when its node starts again."""
        node = self._random.choice(self.world.storage())
        if node.disk.broken or node.disk.away:
            return False
        if self._random.random() < 0.3:
            if not node.alive:
                return False
            node.disk.away = True
            self._down(node, self._away_s(), "is killed, and its disk is gone")
        else:
            node.disk.broken = True
            self.world.story.tell(node.name, "its disk fails")

        def end() -> None:
            node.disk.broken = node.disk.away = False

        self.world.scheduler.later(self._away_s(), end)
        return True

    def memory(self) -> bool:
        """A node's memory changes what a target makes of its next forwarded write, unseen."""
        homes = [
            home
            for node in self.world.storage()
            for home in node.homes.values()
            if home.serves() and home.chain.targets[0][0] != home.target
        ]
        if not homes:
            return False
        home = self._random.choice(homes)
        home.wrong_memory = True
        home.tell("its memory is about to change a byte")
        return True

    def slow_disk(self) -> bool:
        node = self._random.choice(self.world.storage())
        if node.disk.slow:
            return False
        node.disk.slow = True
        self.world.story.tell(node.name, "its disk is slow")

        def end() -> None:
            node.disk.slow = False
            self.world.story.tell(node.name, "its disk is fast again")

        self.world.scheduler.later(self._away_s(), end)
        return True


_KINDS: dict[str, Callable[[Faults], bool]] = {
    "crash": Faults.crash,
    "instant": Faults.instant,
    "step": Faults.step,
    "together": Faults.together,
    "pause": Faults.pause,
    "isolate": Faults.isolate,
    "partition": Faults.partition,
    "one-way": Faults.one_way,
    "reset": Faults.reset,
    "storm": Faults.storm,
    "manager-crash": Faults.manager_crash,
    "manager-pause": Faults.manager_pause,
    "manager-disk": Faults.manager_disk,
    "order": Faults.order,
    "quorum": Faults.quorum,
    "client-crash": Faults.client_crash,
    "client-cut": Faults.client_cut,
    "slow-disk": Faults.slow_disk,
    "power": Faults.power,
    "flip": Faults.flip,
    "full-disk": Faults.full_disk,
    "broken-disk": Faults.broken_disk,
    "memory": Faults.memory,
}
