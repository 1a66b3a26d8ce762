"""People, and what stands for them: the supervisor that sees processes end, and the operator."""

from typing import TYPE_CHECKING, Any

from hillfire.cluster import Order
from hillfire.errors import Error
from hillfire.meta.manager.events import Command, CommandKind
from hillfire.types import NodeId
from tests.simulation.member import Member
from tests.simulation.process import Process

if TYPE_CHECKING:
    from tests.simulation.world import World

TIMEOUT_S = 1.0
AGAIN_S = 0.1
LOOK_S = 1.0


class Person(Process):
    """Somebody who asks the managers until one of them has answered."""

    def __init__(self, world: "World", name: str) -> None:
        super().__init__(name, world.scheduler, world.story, 1.0)
        self.world = world
        self.start()

    def ask(self, method: str, body: Any, turn: int = 0) -> None:
        """Ask each manager in turn; an answer that is final is taken as it is."""

        def answered(reply: object) -> None:
            if isinstance(reply, Error) and reply.retry:
                self.after(AGAIN_S, lambda: self.ask(method, body, turn + 1))

        managers = self.world.managers
        manager = managers[turn % len(managers)]
        self.world.network.call(self, manager, method, body, TIMEOUT_S, answered)


class Supervisor(Person):
    """Sees the processes of storage nodes end, where there is one."""

    def __init__(self, world: "World") -> None:
        super().__init__(world, "supervisor")
        self._random = world.scheduler.stream("supervisor")

    def saw_end(self, process: Process) -> None:
        """Attest the end of a process, if this is one that is supervised."""
        assert isinstance(process, Member)
        if self._random.random() < self.world.plan.attested:
            incarnation = process.incarnation
            self.story.tell(self.name, f"attests the end of {process}'s process {incarnation}")
            self.ask("attest_exit", (process.node, incarnation))


class Operator(Person):
    """Orders things, and takes all back at the end."""

    def __init__(self, world: "World") -> None:
        super().__init__(world, "operator")

    def order(self, command: Command) -> None:
        """Give a command; one that is refused had its reason."""
        if self.story.on:
            given = {k: v for k, v in command._asdict().items() if v and k not in ("who", "why")}
            self.story.tell(self.name, f"orders {given}")
        self.ask("command", (command, 0))

    def undo(self) -> None:
        """See to it that no order stands: a late one may still come, so look again and again."""
        routing = self.world.directory.routing
        who, why = self.name, "all is well"
        for node in routing.nodes.values():
            if node.draining:
                self.order(Command(CommandKind.NODE_UNDRAIN, who, why, node=NodeId(node.id)))
        for target in routing.targets.values():
            if target.order is Order.OFFLINE:
                self.order(Command(CommandKind.TARGET_ONLINE, who, why, target=target.id))
        for chain in routing.chains.values():
            if chain.min_serving > 1:
                kind = CommandKind.CHAIN_MIN_SERVING
                self.order(Command(kind, who, why, chain=chain.id, min_serving=1))
        self.after(LOOK_S, self.undo)
