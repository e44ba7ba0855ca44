"""The error for mistakes that a user can mend: what was found, where, and what is expected instead."""


class UserError(ValueError):
    """A wrong setting, file or checkpoint. Its message is shown to the user as one line, without a traceback."""
