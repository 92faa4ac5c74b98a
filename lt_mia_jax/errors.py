"""What a command ends with when the user is to know: a mistake, or a stop."""


class InputError(ValueError):
    """Bad input from the user, explained in one line.

    The message names what was found, what was expected and how to mend it. The
    command line prints it to stderr and exits with code 2, without a traceback.
    """

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


class Diverged(InputError):
    """A run whose numbers are no longer finite, under settings that were asked for."""


class Unavailable(Exception):
    """Something outside of the run did not answer; no mistake, and worth another try.

    The command line prints it to stderr and exits with code 75, without a traceback.
    """


class Stopped(Exception):
    """A run was asked to stop, and its state is saved; no mistake.

    The command line prints it to stderr and exits with code 143, without a traceback.
    """

    def __init__(self, step: int, unit: str = "step"):
        super().__init__(
            f"stopped by SIGTERM after {unit} {step}; the same command continues"
        )
        self.step = step
