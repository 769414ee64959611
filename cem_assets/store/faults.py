"""Recognising the error of a writer that lost the race to create an object."""


def was_refused(error: BaseException) -> bool:
    """Tell whether an exclusive create failed because the object existed already, and not for another reason.

    s3fs reports a refused conditional put as `OSError(EINVAL)`; the answer of the server is among its causes.
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
