"""Transactional ordered key-value engines; ``base`` is the interface."""
