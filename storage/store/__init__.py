"""The chunk store: where a target keeps its chunks (base.py says what it promises)."""
