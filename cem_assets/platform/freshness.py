"""How old a release may be before people are told."""

from datetime import timedelta

from cem_assets import environment


def max_release_age() -> timedelta:
    """Return how old the newest look at releases may become: CEM_ASSETS_RELEASE_MAX_AGE_DAYS, else 31 days."""
    return timedelta(days=environment.whole_number(environment.RELEASE_MAX_AGE_DAYS))
