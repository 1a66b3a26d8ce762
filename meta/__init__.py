"""The metadata service: the name space and the cluster manager."""
