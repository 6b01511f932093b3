"""The client library: ask over any nodes, and have the answer whole, once, whatever dies meanwhile.

Stands alone beside the vocabulary of `serve_app.chat.events`; needs neither FastAPI nor Redis nor Ray.
"""

from serve_app.chat.events import Accepted, Done, End, Event, Failed, Piece, Queued, Rewind, Started, Stopped, Takeover
from serve_app.client.assembly import Assembly, Stretch
from serve_app.client.client import AuroraClient
from serve_app.client.promises import Broken, BrokenPromise
from serve_app.client.retry import NobodyAnswers, RequestRefused

__all__ = [
    "Accepted",
    "Assembly",
    "AuroraClient",
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
    "Started",
    "Stopped",
    "Stretch",
    "Takeover",
]
