"""The one exception that means: the user can fix this."""


class UserError(Exception):
    """A mistake the user can correct.

    Its message is one line: what is wrong, the offending value, and what to do. The command line prints
    it without a traceback and exits with status 2; nothing has been half-written when it is raised.
    """
