"""Configurations of load balancers in front of all nodes: printed, not run."""
