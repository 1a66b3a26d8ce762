"""The operations of the name space, one file each.

``operation(txn, request, host) -> reply``: everything that it reads and writes goes through the
transaction, so it may be run again. One that needs storage is ``async`` and runs its own.
"""
