"""How old a release may be before people are told."""

import os
from datetime import timedelta


def max_release_age() -> timedelta:
    """Return how old the newest look at releases may become: CEM_ASSETS_RELEASE_MAX_AGE_DAYS, else 31 days."""
    text = os.environ.get("CEM_ASSETS_RELEASE_MAX_AGE_DAYS", "31")
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"CEM_ASSETS_RELEASE_MAX_AGE_DAYS is {text!r}; expected a whole number of at least 1.")
    return timedelta(days=int(text))
