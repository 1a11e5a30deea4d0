"""Hooks in the scheduler: forward passes, what is checked, told and counted there, new weights."""
