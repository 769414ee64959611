"""Telling errors of the store apart: a lost race, trouble that may pass, and faults that stay."""

import errno

from botocore.exceptions import BotoCoreError, HTTPClientError


def was_refused(error: BaseException) -> bool:
    """Tell a lost race for an exclusive create from every other trouble.

    s3fs reports a refused conditional put as `OSError(EINVAL)`; the server's answer is its cause.
    """
    if isinstance(error, FileExistsError):
        return True
    seen: BaseException | None = error
    while seen is not None:
        response = getattr(seen, "response", None)
        if isinstance(response, dict):
            code = str(response.get("Error", {}).get("Code", ""))
            if code in ("PreconditionFailed", "ConditionalRequestConflict", "412"):
                return True
        seen = seen.__cause__ or seen.__context__
    return False


def is_transient(error: BaseException) -> bool:
    """Tell trouble with the store or the network, which another attempt may not meet, from faults of the data.

    A full disk, a refused key and a missing object stay what they are however often one tries.
    """
    if isinstance(error, FileNotFoundError | FileExistsError | PermissionError | NotADirectoryError | IsADirectoryError):
        return False
    if isinstance(error, OSError):
        return error.errno != errno.ENOSPC
    return isinstance(error, BotoCoreError | HTTPClientError)
