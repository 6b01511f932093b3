"""Brings Aurora up and down on a machine, and shows how it is: the command `aurora-cli`.

Talks to a running system over HTTP, Redis and processes; imports nothing of the chat itself, and starts Ray as a program.
"""
