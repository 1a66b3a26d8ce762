"""Ecosystems' own interfaces over the client: fsspec, torch.distributed.checkpoint.

Each adapter imports its ecosystem's package, which hillfire does not need otherwise; so nothing
here is imported by the rest of the client.
"""
