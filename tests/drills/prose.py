"""The words of the page, between its tables."""

HEAD = """# Drills

Written by `make drills` from the records in `drills/`; do not edit. Forty clients talk with a lab of four nodes while something
dies, freezes or is cut off, and a checker compares what every one of them saw with the laws.
"""

MEASURED = """## What is measured

**The crowd.** {kinds}. Each asks for an answer of 15 to 30 s at 2 to 4 words a second (the scripted engine), and after it for
further ones until the fault is over. They come in within 2 s and are spread evenly over the nodes. *Once* is a client that tries
nothing again; *goes on* is one that reconnects and resumes: bare SSE or WebSocket with a time limit, or our client library. Every
second run is *divergent*: each word carries the mark of the attempt that wrote it.

**The fault** comes 3 to 10 s after all answers are under way, and is undone 12 s later (control Redis: 10 s; head away: 10 min).
A run counts only if it hit at least {enough} turns between their first piece and their end: those that the victim generated, or
whose client was connected to its door, as the fault says; of Redis, any; and only if the load itself was never late by more than
half a second: else the machine had other work, and what clients saw is not the system's doing. The Redis primary is on star,
Ray's control Redis on iceland, the head is aurora.

**Complete**: the client has the whole answer on every device, to the letter the undisturbed one (divergent: its words, in one
stretch per attempt, cut exactly at the `after_seq` of each takeover), proven by its receipt, and two nodes have stored just that.
**In the store**: the same, for a client that tries once and was cut off. **Refused**: the request failed, its client knows it,
and nothing was kept. **Wrong**: everything else. **Lost**, **repeated**: pieces missing from, or twice in, what one connection
brought. **Taken back**: by a `rewind`.

**Pause**: the longest time in which a reading client saw nothing new, from its asking to the end, beyond the script's rhythm; for
REST, the delay of the answer beyond its undisturbed duration. One figure for each device and answer, of clients that go on or ask
through the balancer; pooled over the runs of a fault. *Once*: of those that try once at a node's own door, where they had their
answer; *all clients*: of both. *Met*: of those whose turn or connection was with the victim. *Detection*: from the fault to the
`takeover`, as its client hears it. **Whole again**: from the fault until all four nodes answer on :8000,
every replica runs, and the Redis primary has both replicas in sync; the time for which the victim was left alone is in it.
"""

AVAILABILITY = """Every door (each node that lives, and the balancer) is knocked at four times a second, once with a message. A
second of a door is *bad* if any request that began in it failed or took longer than 2 s; it is *dark* if no door at all answered
anything. That a node leaves is an answer of its health, too. Where all nodes are restarted, a door's seconds end when its node
goes down; in runs before 2026-11-30 when it begins to leave, 20 s before. {target} of a month allows {allowed} bad seconds, so it
holds for so many faults of a kind a month: for who uses one node, on average over the doors, and for who comes by the balancer.
"""

FROZEN = """Both replicas of the chat's Redis stand still for {seconds:g} s. {asked_before} clients had asked before, and
{due_meanwhile} of their answers are due meanwhile; {asked_meanwhile} more ask meanwhile, and the probe goes on. Pieces are not
waited for: {pieces} came.
"""

KILLED = """Ten messages at a time, and with one of their answers of 200 the primary is killed, {kills} times. {before} answers
had come before their kill, half of them at most {median} ms before it, the oldest {oldest} ms. The next answer of 200 came
{again} s after the kill (median; longest {longest} s).
"""

RUNNING = """## Running them

```
sudo .venv/bin/aurora-cli lab up
sudo make drills
```

`make drills` does the runs whose records are missing, and writes this page; interrupted, it goes on with the next start. A
record's seed gives its crowd and its moment again; delete a record to have its run done again. In parts:

```
sudo .venv/bin/python -m tests.drills --fault head --runs 2
.venv/bin/python -m tests.drills --list
.venv/bin/python -m tests.drills --page
```
"""
