"""The client library: ask over any nodes, and have the answer whole, once, whatever dies meanwhile.

Stands alone beside the vocabulary of `serve_app.chat.events`; needs neither FastAPI nor Redis nor Ray.
"""

from serve_app.chat.events import Accepted, Done, End, Event, Failed, Piece, Queued, Rewind, Started, Stopped, Takeover
from serve_app.client.assembly import Assembly, Stretch
from serve_app.client.client import AuroraClient
from serve_app.client.promises import Broken, BrokenPromise
from serve_app.client.retry import NobodyAnswers, RequestRefused
from serve_app.client.seen import Seen
from serve_app.client.socket import AuroraSocket

__all__ = [
    "Accepted",
    "Assembly",
    "AuroraClient",
    "AuroraSocket",
    "Broken",
    "BrokenPromise",
    "Done",
    "End",
    "Event",
    "Failed",
    "NobodyAnswers",
    "Piece",
    "Queued",
    "RequestRefused",
    "Rewind",
    "Seen",
    "Started",
    "Stopped",
    "Stretch",
    "Takeover",
]
