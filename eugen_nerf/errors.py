"""Errors whose message is written for the person at the keyboard, not for a developer."""

from __future__ import annotations


class UserError(Exception):
    """A mistake in what the user supplied: files, options, checkpoints.

    The message must name the file (and frame, where there is one), say what is wrong and how to mend
    it. Command-line entry points print it on its own, without a traceback, and exit with status 1.
    """


class SceneError(UserError):
    """A scene directory, or a file in it, that cannot be used."""
