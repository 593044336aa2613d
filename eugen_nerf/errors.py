"""Errors whose messages are written for users, not for developers."""

from __future__ import annotations


class UserError(Exception):
    """A mistake in what the user supplied: files, options, checkpoints.

    The message must name the file (and the frame, if there is one), say what is wrong and how to fix
    it. Command-line entry points print the message alone, without a traceback, and exit with status 1.
    """


class SceneError(UserError):
    """A scene directory, or a file in it, that cannot be used."""
