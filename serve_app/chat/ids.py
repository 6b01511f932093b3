"""Identifiers: their forms, and how new ones are made.

Ids become Redis keys and travel in URLs, so each form is a closed alphabet with a bounded length. Nothing here
asks whether an id exists.
"""

import base64
import re
import secrets

CLIENT_ID = r"^[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}$"
CONVERSATION_ID = r"^conv_[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}_[0-9]{1,12}(-[0-9]{1,6})?$"
TURN_ID = r"^turn_[a-z0-9]{26}$"
PERSONALITY_NAME = r"^[a-z][a-z0-9_-]{0,31}$"
IDEMPOTENCY_KEY = r"^[A-Za-z0-9_.:@-]{1,128}$"
NODE_NAME = r"^[A-Za-z0-9][A-Za-z0-9.-]{0,62}$"

_TURN = re.compile(TURN_ID)
_CONVERSATION = re.compile(CONVERSATION_ID)
_CLIENT = re.compile(CLIENT_ID)


def new_turn_id() -> str:
    """Return a fresh turn id: 128 random bits, so that ingresses need not agree on anything."""
    return "turn_" + base64.b32encode(secrets.token_bytes(16))[:26].decode().lower()


def new_token() -> str:
    """Return a fresh holder's token (law 3): whoever holds a turn proves it with this."""
    return secrets.token_hex(12)


def is_turn_id(value: str) -> bool:
    """Say whether `value` has the form of a turn id."""
    return _TURN.fullmatch(value) is not None


def is_conversation_id(value: str) -> bool:
    """Say whether `value` has the form of a conversation id, `conv_{client_id}_{unix}`, with `-2`, `-3` … where taken."""
    return _CONVERSATION.fullmatch(value) is not None


def is_client_id(value: str) -> bool:
    """Say whether `value` has the form of a client id."""
    return _CLIENT.fullmatch(value) is not None
