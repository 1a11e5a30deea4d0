"""Tools around the engine: the command ``laprox``, a folder a command, and the task of the 7M model.

The engine never imports them.
"""


class CommandError(ValueError):
    """Why a command cannot do what it was asked; the message is one line for whoever typed it."""
