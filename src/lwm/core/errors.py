"""The one exception that means: the input is at fault, and this sentence says how to mend it."""


class UserError(Exception):
    """Bad input from the user: one clear sentence naming the file, line, field or number, and what to do.

    The command line prints it without a traceback and exits with code 2.
    """
