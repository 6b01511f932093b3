"""The drills: forty clients talk while something dies, and a checker counts what they saw (`make drills`).

`crowd` says who asks what, `load` lets them do it and records what they see (`seen`), `faults` names what happens meanwhile,
`stage` brings the lab into a known state before and waits for it to be whole after, `reading` and `checker` compare what was
seen with the laws, `records` keeps one JSON per run, `page` writes docs/drills.md from the records and from nothing else.
"""
