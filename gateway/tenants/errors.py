"""What the control store raises. No text of these holds a secret, a digest or the connection string."""

from __future__ import annotations


class ControlError(Exception):
    """The control plane cannot do what was asked. The text is for a person: what is wrong, what to do."""


class StoreUnavailable(ControlError):
    """Postgres is away, refused us or did not answer in time. Trying again later may help."""


class NotAcceptable(ControlError):
    """An argument is not one this can take."""


class AlreadyThere(ControlError):
    """The name is taken."""


class Missing(ControlError):
    """There is nothing by that name."""


class MigrationError(ControlError):
    """The migration files and the database do not agree."""
