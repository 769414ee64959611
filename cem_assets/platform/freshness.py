"""How old a release may be before people get an alert."""

from datetime import timedelta

from cem_assets import environment


def max_release_age() -> timedelta:
    """Return the greatest age of the newest release that is not overdue: CEM_ASSETS_RELEASE_MAX_AGE_DAYS, else 31 days."""
    return timedelta(days=environment.whole_number(environment.RELEASE_MAX_AGE_DAYS))
