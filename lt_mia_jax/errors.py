"""The one error that means: the input is at fault, and here is the fix."""


class InputError(ValueError):
    """Bad input from the user, explained in one line.

    The message names what was found, what was expected and how to mend it. The
    command line prints it to stderr and exits with code 2, without a traceback.
    """

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))
