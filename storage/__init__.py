"""The storage service: CRAQ over a chunk store."""
