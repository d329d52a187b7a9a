"""The store server: one per node, owns the host pool, speaks gRPC. Imports no framework."""
