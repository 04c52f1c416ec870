"""What can be wrong with documents and with the folder that tokens are written to."""

from pipelinejob_trainer.base.errors import UserError


class FolderError(UserError):
    """The folder cannot be written, is in use, or holds something else."""

    def __init__(self, message: str) -> None:
        super().__init__("DataFolder", message)


class BadDocumentError(Exception):
    """A document cannot be used: `what` names the kind of mistake, the message says it of this one."""

    def __init__(self, what: str, message: str) -> None:
        super().__init__(message)
        self.what = what
