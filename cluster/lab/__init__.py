"""Four nodes on one Linux machine: the stage of the multi-node tests and drills, and a way to see what survives what.

Each node is a network, a PID and a mount namespace, and runs what a real one would. Nothing leaves the machine.
"""

from cluster.lab.lab import Lab

__all__ = ["Lab"]
