"""Training on a cluster: crops by Ray Data, processes by Ray Train."""
