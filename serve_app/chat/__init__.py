"""The core: what a turn is and what may happen to it. Standard library and pydantic only."""
