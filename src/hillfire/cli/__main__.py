"""``python -m hillfire.cli``: how the supervisor starts its children."""

from hillfire.cli import main

if __name__ == "__main__":
    main()
