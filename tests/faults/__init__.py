"""Real processes under faults: hosts as namespaces, clients that record histories, a schedule.

Used by tests/integration/test_faults.py (short, in CI) and tests/long/test_faults.py.
"""
