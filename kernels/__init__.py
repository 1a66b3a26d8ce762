"""GPU kernels fed by the KV-cache tier."""
