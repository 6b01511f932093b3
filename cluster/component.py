"""A line of `aurora-cli status`."""

from pydantic import BaseModel


class Component(BaseModel):
    """One thing that runs, or should: what, how it is, where, and what else there is to say."""

    name: str
    state: str
    where: str = ""
    note: str = ""
