"""The command ``laprox``: one module a command, imported when it is asked for."""


class CommandError(ValueError):
    """Why a command cannot do what it was asked; the message is one line for whoever typed it."""
