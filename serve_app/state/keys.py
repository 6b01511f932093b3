"""Every Redis key and channel, with type, lifetime and owner. Nothing else in Aurora spells one.

| key | type | lifetime | written by |
|---|---|---|---|
| `aurora:session:{client_id}` | string, JSON | `SESSION_SECONDS` after the last activity | begin, session |
| `aurora:sessions` | zset, client_id by expiry (ms) | – | begin, session |
| `aurora:conversation:{conversation_id}` | hash | until deleted; the tombstone `TOMBSTONE_SECONDS` | begin, finish, delete |
| `aurora:conversations:{client_id}` | zset, id by last use (ms) | – | begin, finish, delete |
| `aurora:message:{conversation_id}:{seq}` | string, JSON | until deleted | begin, finish, delete |
| `aurora:turn:{turn_id}` | hash | `TOMBSTONE_SECONDS` after the end | begin, claim, append, finish … |
| `aurora:turn:{turn_id}:log` | stream | `LOG_SECONDS` after the end | claim, append, finish |
| `aurora:turns:open` | zset, turn_id by end of lease (ms) | – | every script of a turn |
| `aurora:turns:client:{client_id}` | zset, turn_ids by begin (ms) | `TOMBSTONE_SECONDS` after the last end | begin, finish |
| `aurora:idempotency:{client_id}:{key}` | string, JSON | `TOMBSTONE_SECONDS` after the end | begin, finish |
| `aurora:personality:{name}:{version}` | string, JSON | `TOMBSTONE_SECONDS` after the last claim with it | claim |
| `aurora:sweep` | string, ms of the last sweep | – | sweep |
| `aurora:takeover:last` | string, JSON: when, which turn, from where to where | – | claim |
| `aurora:barrier` | string, of no meaning | – | whoever waits for replicas and has nothing to write |
| `aurora:node:{node}` | string, JSON | `NODE_SECONDS` after the node's last word | register |
| `aurora:node:{node}:drain` | string, JSON: until when, since when, by whom | `DRAIN_SECONDS` | `aurora-cli node drain` |
| `aurora:node:{node}:left` | hash, by replica: JSON, what it has in hand | `DRAIN_SECONDS` | drain |
| `aurora:nodes` | zset, node by expiry (ms) | – | register, registered |
| `aurora:replica:{replica}` | string, JSON | `REPLICA_SECONDS` after the replica's last word | register |
| `aurora:replicas` | zset, replica by expiry (ms) | – | register, registered |

| channel | what |
|---|---|
| `aurora:chat:message` | a message was stored (the mission's) |
| `aurora:user:session` | a session was created (the mission's) |
| `aurora:client:{client_id}` | everything a client's devices should see: a JSON list of events |

The scripts get these names through `prelude()`, so that Lua and Python cannot disagree.
"""

from serve_app.chat.turns import BARREN_ATTEMPTS, LEASE_MS

SWEEP_GAP_MS = 2_000
"""A longer silence of the sweepers means that time cannot be trusted: everyone gets `GRACE_MS` first."""
GRACE_MS = 1_500
"""What a holder that lives needs to renew once Redis is back; shorter than a lease, as everybody tries all the time then."""
SESSION_SECONDS = 3_600
LOG_SECONDS = 600
TOMBSTONE_SECONDS = 26 * 3_600
DRAIN_SECONDS = 900
"""A node that was told to leave and has not left within this serves as before."""

_PREFIXES = {
    "session": "aurora:session:",
    "sessions": "aurora:sessions",
    "conversation": "aurora:conversation:",
    "conversations": "aurora:conversations:",
    "message": "aurora:message:",
    "turn": "aurora:turn:",
    "open": "aurora:turns:open",
    "client_turns": "aurora:turns:client:",
    "idempotency": "aurora:idempotency:",
    "personality": "aurora:personality:",
    "sweep": "aurora:sweep",
    "last_takeover": "aurora:takeover:last",
    "barrier": "aurora:barrier",
    "node": "aurora:node:",
    "nodes": "aurora:nodes",
    "replica": "aurora:replica:",
    "replicas": "aurora:replicas",
    "chat_channel": "aurora:chat:message",
    "session_channel": "aurora:user:session",
    "client_channel": "aurora:client:",
}

CHAT_CHANNEL = _PREFIXES["chat_channel"]
SESSION_CHANNEL = _PREFIXES["session_channel"]
CLIENT_CHANNEL = _PREFIXES["client_channel"]
OPEN_TURNS = _PREFIXES["open"]
LAST_TAKEOVER = _PREFIXES["last_takeover"]


def turn(turn_id: str) -> str:
    """Key of a turn's hash."""
    return _PREFIXES["turn"] + turn_id


def log(turn_id: str) -> str:
    """Key of a turn's log."""
    return _PREFIXES["turn"] + turn_id + ":log"


def conversation(conversation_id: str) -> str:
    """Key of a conversation's hash."""
    return _PREFIXES["conversation"] + conversation_id


def message(conversation_id: str, seq: int) -> str:
    """Key of one message."""
    return f"{_PREFIXES['message']}{conversation_id}:{seq}"


def session(client_id: str) -> str:
    """Key of a client's session."""
    return _PREFIXES["session"] + client_id


def prelude(replicas: int) -> str:
    """Lua source that every script begins with: these names and numbers as locals `K` and constants.

    `replicas`: on how many a write must be before it is shown (law 8).
    """
    names = ", ".join(f"{name} = '{value}'" for name, value in _PREFIXES.items())
    return (
        f"local K = {{ {names} }}\n"
        f"local LEASE_MS, SWEEP_GAP_MS, GRACE_MS, BARREN_ATTEMPTS = {LEASE_MS}, {SWEEP_GAP_MS}, {GRACE_MS}, {BARREN_ATTEMPTS}\n"
        f"local REPLICAS = {replicas}\n"
        f"local SESSION_SECONDS, LOG_SECONDS, TOMBSTONE_SECONDS = {SESSION_SECONDS}, {LOG_SECONDS}, {TOMBSTONE_SECONDS}\n"
        f"local DRAIN_SECONDS = {DRAIN_SECONDS}\n"
    )
