"""``hillfire ...``: one module a command group; each imports what it needs when it is called.

Errors are one line with cause and remedy and exit status 1; ``HILLFIRE_DEBUG=1`` shows where they
came from.
"""

import os
import sys


def main() -> None:
    """Run the command line."""
    from hillfire.cli.app import app
    from hillfire.errors import Error

    try:
        app()
    except Error as error:
        _fail(str(error.strerror or error))
    except OSError as error:
        _fail(
            str(error) if _has_directory() else f"{error}: this directory is gone; `cd` elsewhere"
        )
    except Exception as error:
        _fail(
            f"unexpected {type(error).__name__}: {error}\n"
            "This is a defect of hillfire; HILLFIRE_DEBUG=1 shows where."
        )


def _has_directory() -> bool:
    """Tell whether the working directory is there: it may lie on a mount that has ended."""
    try:
        os.stat(".")
    except OSError:
        return False
    return True


def _fail(message: str) -> None:
    """Print the error that is being handled and end."""
    if os.environ.get("HILLFIRE_DEBUG"):
        raise
    print(f"hillfire: {message}", file=sys.stderr)
    sys.exit(1)
