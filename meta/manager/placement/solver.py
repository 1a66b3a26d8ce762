"""CP-SAT of OR-Tools, for the designs that are found neither by a formula nor by search.

Not part of what hillfire needs (the extra ``placement``), and imported only where a person plans
chains: never in a service. Chosen by measuring against HiGHS on twenty problems: three to eight
times faster on the hard ones (28 nodes in fours, each pair once: 1.5 s against 5.1), and it alone
found 24 nodes in fives, and proved that 22 nodes in sevens have no symmetric answer.

The limit is in the solver's own units of work and not in seconds, so that the same problem has the
same answer on any machine.
"""

from collections.abc import Callable
from importlib.util import find_spec

from hillfire.meta.manager.placement.orbits import Program

MAX_WORK = 6.0
"""Of one program, in CP-SAT's deterministic time: about as many seconds, to a factor of two."""

Solve = Callable[[Program], list[int] | None]


def available() -> Solve | None:
    """Return the solver, if OR-Tools is installed."""
    return cp_sat if find_spec("ortools") is not None else None


def cp_sat(program: Program) -> list[int] | None:
    """Return how often each column is taken, or None if there is no way or none was found."""
    from ortools.sat.python import cp_model

    model = cp_model.CpModel()
    taken = [model.new_int_var(0, program.most, "") for _ in program.columns]
    for row in program.rows:
        terms = cp_model.LinearExpr.weighted_sum(
            [taken[column] for column, _ in row.terms], [weight for _, weight in row.terms]
        )
        model.add_linear_constraint(terms, row.low, row.high)
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = 1
    solver.parameters.max_deterministic_time = MAX_WORK
    if solver.solve(model) not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return None
    return [solver.value(variable) for variable in taken]
