"""The client: routing, planning, retries, batches; the faces that users import."""
