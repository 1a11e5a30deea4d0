"""Hooks in the process that takes requests and makes replies."""
