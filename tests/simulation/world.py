"""World: a cluster, its clients, its network and its bad luck, from one seed."""

from collections.abc import Sequence
from functools import partial

from hillfire.cluster import (
    Chain,
    ChainTable,
    Endpoint,
    LocalState,
    Node,
    NodeKind,
    PublicState,
    Routing,
    Target,
)
from hillfire.layout import Layout
from hillfire.meta.manager.chains import new_chain
from hillfire.types import ChainId, NodeId, TargetId
from tests.history import Recorder
from tests.simulation.checks import Checks, Failure
from tests.simulation.client import Client
from tests.simulation.coverage import Coverage
from tests.simulation.faults import Faults
from tests.simulation.home import Home
from tests.simulation.manager_node import ManagerDirectory, ManagerNode
from tests.simulation.member import Member
from tests.simulation.meta_node import MetaNode
from tests.simulation.network import Network, Weather
from tests.simulation.people import Operator, Supervisor
from tests.simulation.plan import Plan
from tests.simulation.process import Process
from tests.simulation.scheduler import Scheduler
from tests.simulation.stamps import CHUNK_BYTES
from tests.simulation.storage_node import StorageNode
from tests.simulation.story import Story

START_S = 30.0
FAULTS_S = 60.0
"""The longest that things go wrong; what is left to do then is done in peace."""
HEAL_S = 60.0
META = NodeId(99)


class World:
    """Everything there is."""

    def __init__(self, seed: int, *, told: bool = False, verbose: bool = False) -> None:
        self.plan = plan = Plan(seed)
        self.scheduler = Scheduler(seed)
        self.story = Story(self.scheduler, told, verbose)
        self.coverage = Coverage()
        self.weather = Weather()
        self.network = Network(self.scheduler, self.weather)
        self.checks = Checks(self)
        self.recorder = Recorder(lambda: self.scheduler.now_ns)
        self.inspect = True
        self.cluster = "simulated"
        self.incarnations = 1
        self.clients_made = 0
        self._stamps = 0
        self._begun = 0
        self._rates = self.scheduler.stream("rates")
        self._slow = self.scheduler.stream("slow reads")
        numbers = [NodeId(n) for n in range(1, plan.nodes + 1)]
        self.directory = ManagerDirectory(self._first_routing(numbers))
        names = [f"m{number}" for number in range(1, plan.managers + 1)]
        self.managers = [ManagerNode(self, name, self.directory) for name in names]
        self.manager_endpoint = Endpoint("", ",".join(names), "", "")
        self.layout = Layout(CHUNK_BYTES, tuple(self.directory.routing.chains))
        self.meta = MetaNode(self, META)
        self.nodes: dict[NodeId, Member] = {n: StorageNode(self, n) for n in numbers}
        self.nodes[META] = self.meta
        self.clients = [Client(self, n, plan.workers) for n in range(1, plan.clients + 1)]
        self.supervisor = Supervisor(self)
        self.operator = Operator(self)
        self.faults = Faults(self)
        self._by_name = {each.name: each for each in (*self.managers, *self.nodes.values())}
        for process in self.processes():
            process.on_death.append(self.network.died)
        for node in self.storage():
            node.on_death.append(self.supervisor.saw_end)

    def _first_routing(self, nodes: Sequence[NodeId]) -> Routing:
        """Return a routing with chains that have never served, over nodes that never came."""
        plan, rng = self.plan, self.scheduler.stream("placement")
        chains: dict[ChainId, Chain] = {}
        targets: dict[TargetId, Target] = {}
        for number in range(1, plan.chains + 1):
            members = rng.sample(nodes, min(plan.replicas, len(nodes)))
            ids = tuple(TargetId(node * 100 + number) for node in members)
            for target, node in zip(ids, members, strict=True):
                targets[target] = Target(
                    target, node, ChainId(number), 0, PublicState.OFFLINE, LocalState.OFFLINE
                )
            chains[ChainId(number)] = new_chain(ChainId(number), ids)
        tables = {1: ChainTable(1, tuple(chains))}
        known = {n: Node(n, NodeKind.STORAGE, _endpoint(n), 1, False) for n in nodes}
        return Routing(self.cluster, 1, None, known, targets, chains, tables)

    # ------------------------------------------------------------------ a seed

    def live(self) -> None:
        """Start, work among faults, heal, and be judged.

        Raises:
            AssertionError: something that must hold does not.
        """
        for process in self.processes():
            process.start()
        self._until("every chain serves", START_S, self.checks.whole)
        self.faults.begin()
        self.scheduler.run(FAULTS_S, self._worked)
        self.faults.heal()
        self._until("every chain serves again", HEAL_S, self._healed)
        for node in self.storage():
            node.bound(node.scrub)()
        self.scheduler.run(1.0)
        self._until("repairs end", HEAL_S, lambda: self._idle() and self.checks.whole())
        reads = len(self.storage())
        for _ in range(reads):
            self._read_all()
        self._rest()
        if self.plan.blackout:
            self._black_out()
            self._read_all()
            self._rest()
        self.checks.linearizable()

    def _rest(self) -> None:
        self.scheduler.run(0.5)
        self._until("nothing is under way", HEAL_S, self._idle)
        self.checks.at_rest()

    def _black_out(self) -> None:
        """Everything was synced, then all hosts lose their power at once: nothing may be lost."""
        left = set(self.plan.inodes)
        for inode in self.plan.inodes:
            self.clients[0].sync_now(inode, partial(left.discard, inode))
        self._until("the last sync", HEAL_S, lambda: not left)
        self.coverage.count("blackouts")
        for node in self.storage():
            node.kill("loses its power, as all do")
            node.disk.lose_power()
        for node in self.storage():
            node.start()
        self._until("every chain serves after a blackout", HEAL_S, self.checks.whole)

    def _until(self, what: str, seconds: float, enough: object) -> None:
        if not self.scheduler.run(seconds, enough):  # type: ignore[arg-type]
            raise Failure(f"not within {seconds:.0f} s: {what}; {self._state()}")

    def _worked(self) -> bool:
        return not self.more() and not any(client.busy for client in self.clients)

    def _healed(self) -> bool:
        return self.checks.whole() and self._worked()

    def _idle(self) -> bool:
        return all(home.idle() for node in self.storage() for home in node.homes.values())

    def _read_all(self) -> None:
        done = []
        self.clients[0].read_all(lambda: done.append(True))
        self._until("the last reads", HEAL_S, lambda: bool(done))

    def _state(self) -> str:
        routing = self.directory.routing
        homes = [
            f"{home.life} {'' if home.idle() else home.busy()}"
            for node in self.storage()
            for home in node.homes.values()
        ]
        busy = {client.name: client.busy for client in self.clients}
        return f"{list(routing.chains.values())} {homes} {busy}"

    # ------------------------------------------------------------------ what others ask

    def more(self) -> bool:
        """Tell whether a client shall begin another operation, and count it."""
        faults = self.faults
        short = faults.on and faults.count < self.plan.faults
        return self._begun < self.plan.operations or short

    def begin(self) -> None:
        """Count an operation."""
        self._begun += 1
        self.coverage.count("operations")

    def stamp(self) -> int:
        """Return a stamp that nobody has written before."""
        self._stamps += 1
        return self._stamps

    def key(self, inode: int, index: int) -> str:
        """Return a chunk's name in the history."""
        return f"{inode}/{index}"

    def rate(self) -> float:
        """Draw how fast a host's clock runs."""
        return 1 + self._rates.uniform(-1, 1) * self.plan.drift

    def slow_read(self) -> bool:
        """Draw whether a read goes through a thread."""
        return self._slow.random() < self.plan.slow_reads

    def processes(self) -> list[Process]:
        """List everyone but people."""
        return [*self.managers, *self.nodes.values(), *self.clients]

    def storage(self) -> list[StorageNode]:
        """List the storage nodes."""
        return [node for node in self.nodes.values() if isinstance(node, StorageNode)]

    def node_of(self, node: NodeId) -> Member:
        """Return a node by its number."""
        return self.nodes[node]

    def process_at(self, endpoint: Endpoint) -> Process:
        """Return who listens at an endpoint."""
        return self._by_name[endpoint.tcp]

    def home_of(self, target: TargetId) -> Home | None:
        """Return a target, if its process is up and knows of it."""
        placed = self.directory.routing.targets[target]
        node = self.nodes[placed.node]
        assert isinstance(node, StorageNode)
        return node.homes.get(placed.chain)

    def published(self, before: Routing, after: Routing) -> None:
        """Note what the manager has made public."""
        for chain in after.chains.values():
            if before.chains.get(chain.id) != chain:
                self.coverage.count("chain changes")
                if self.story.on:
                    states = " ".join(f"t{t}:{state.name}" for t, state in chain.targets)
                    text = f"publishes chain {chain.id} version {chain.version}: {states}"
                    self.story.tell("manager", text)


def _endpoint(node: NodeId) -> Endpoint:
    return Endpoint(f"n{node}", f"n{node}", "", f"host-{node}")
