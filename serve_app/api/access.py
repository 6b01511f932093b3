"""Who the caller is, and what is theirs: the one place that decides.

Open for now: a caller is who they say they are. Tokens, keys and limits come in here; the routes will not notice.
"""

from dataclasses import dataclass

from starlette.requests import HTTPConnection

from serve_app.chat.errors import ConversationNotFound, InvalidRequest, TurnNotFound
from serve_app.chat.ids import is_client_id


@dataclass(frozen=True)
class Caller:
    """Who is asking. `client_id` is empty for somebody who did not say."""

    client_id: str

    def owns(self, client_id: str) -> bool:
        """Say whether what belongs to `client_id` is theirs. Who does not say who they are sees what they can name."""
        return not self.client_id or self.client_id == client_id


class Access:
    """Decides about callers."""

    async def caller(self, connection: HTTPConnection, claimed: str = "") -> Caller:
        """Return who is behind `connection`, which claims to be `claimed`.

        Raises:
            InvalidRequest: the claim has not the form of a client id.
        """
        if claimed and not is_client_id(claimed):
            raise InvalidRequest("client_id: 1 to 64 of A-Z a-z 0-9 _ . @ -, beginning with a letter or digit.")
        return Caller(claimed)

    def check_conversation(self, caller: Caller, owner: str) -> None:
        """Return if a conversation of `owner` may be seen by `caller`.

        Raises:
            ConversationNotFound: somebody else's looks like none.
        """
        if not caller.owns(owner):
            raise ConversationNotFound()

    def check_turn(self, caller: Caller, owner: str) -> None:
        """Return if a turn of `owner` may be seen and stopped by `caller`.

        Raises:
            TurnNotFound: somebody else's looks like none.
        """
        if not caller.owns(owner):
            raise TurnNotFound()
