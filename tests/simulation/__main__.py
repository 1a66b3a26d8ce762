"""``python -m tests.simulation``: run seeds, or one with its story.

``--seed N`` replays one seed exactly and prints what happened; ``--seeds N`` runs many on all
cores; ``--seconds S`` as many as fit. A failing seed prints the command that replays it.
"""

import sys

from tests.simulation.command import main

sys.exit(main(sys.argv[1:]))
