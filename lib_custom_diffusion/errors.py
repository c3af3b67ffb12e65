"""The one exception for mistakes that a user can mend."""


class UserError(Exception):
    """Something the user gave is wrong.

    The message is one line: what was wrong, with the value, and what to do about it. The command line prints it and
    exits with 2; the WebUI shows it where the result would have been. Neither prints a traceback.
    """
