"""Every environment variable that this package reads, with its meaning and default. Only this module reads them.

`docs/configuration.md` has the same table for people; a test compares the two. Libraries read further variables: botocore
AWS_*, Dagster DAGSTER_*, and MLflow MLFLOW_*.
"""

import os
from dataclasses import dataclass

from cem_assets.errors import DataError


@dataclass(frozen=True)
class Variable:
    """An environment variable.

    Attributes:
        meaning: What the variable decides, for people.
        default: The text that is used if the variable is unset or empty.
        default_told: A description of the default for people, if `default` alone does not say it.
    """

    name: str
    meaning: str
    default: str = ""
    default_told: str = ""

    def __str__(self) -> str:
        return self.name


ROOT = Variable("CEM_ASSETS_ROOT", "the store: `s3://bucket/prefix` or a folder", "./.cem_assets/store")
WORKERS = Variable("CEM_ASSETS_WORKERS", "worker processes for one step", default_told="the number of cores, at most 16")
ENGINE = Variable("CEM_ASSETS_ENGINE", "`local`, or `ray`: one dataset over several machines", "local")
RAY_ADDRESS = Variable("RAY_ADDRESS", "the Ray cluster", "auto")
RAY_STALL_SECONDS = Variable(
    "CEM_ASSETS_RAY_STALL_SECONDS", "after how long without any result a Ray cluster counts as stuck", default_told="600"
)
SCRATCH = Variable("CEM_ASSETS_SCRATCH", "local disk for decoding", default_told="the temporary folder")
CACHE = Variable(
    "CEM_ASSETS_CACHE", "local disk for decoded patches while training", default_told="memory, or the temporary folder"
)
CACHE_GIB = Variable("CEM_ASSETS_CACHE_GIB", "size limit of that cache, in GiB", "64")

CLASSIFIER_WEIGHTS = Variable("CEM_ASSETS_CLASSIFIER_WEIGHTS", "file of the patch classifier for `source: auto`")
WEIGHTS_FOLDER = Variable("CEM_ASSETS_WEIGHTS_FOLDER", "local copies of published weights")
BENCHMARKS_FOLDER = Variable("CEM_ASSETS_BENCHMARKS_FOLDER", "local copies of published benchmarks")
TEST_DATA = Variable("CEM_ASSETS_TEST_DATA", "real data for tests and the demo")
GIT_STATE = Variable("CEM_ASSETS_GIT_STATE", "recorded with trainings where there is no checkout")

INBOX_SECONDS = Variable("CEM_ASSETS_INBOX_SECONDS", "pause between two looks at the inbox", "30")
RECONCILIATION_SECONDS = Variable(
    "CEM_ASSETS_RECONCILIATION_SECONDS", "pause between two comparisons of the store with what should be there", "60"
)
RELEASE_CRON = Variable("CEM_ASSETS_RELEASE_CRON", "when releases are made, where anything changed", "0 3 * * *")
CATALOGUE_CRON = Variable("CEM_ASSETS_CATALOGUE_CRON", "when rows of the catalogue are fetched", "0 1 * * *")
MAINTENANCE_CRON = Variable("CEM_ASSETS_MAINTENANCE_CRON", "when the store is swept and measured", "0 4 * * *")
CATALOGUE_PER_DAY = Variable("CEM_ASSETS_CATALOGUE_PER_DAY", "rows of the catalogue that are fetched a day", "3")
RELEASE_MAX_AGE_DAYS = Variable("CEM_ASSETS_RELEASE_MAX_AGE_DAYS", "after how many days a release counts as overdue", "31")

REMOTE_S3_ENDPOINT = Variable(
    "CEM_ASSETS_REMOTE_S3_ENDPOINT", "S3 server of remote volumes that are sampled", default_told="AWS"
)
REMOTE_S3_SIGNED = Variable("CEM_ASSETS_REMOTE_S3_SIGNED", "`yes` signs the requests to it", default_told="unsigned")
MIRROR_FOLDERS = Variable(
    "CEM_ASSETS_MIRROR_FOLDERS", "folders that `file://` mirrors may lie in, separated by `:`", default_told="none"
)
ALLOW_PRIVATE_SOURCES = Variable(
    "CEM_ASSETS_ALLOW_PRIVATE_SOURCES", "`yes` lets sources lie on private addresses", default_told="no"
)

ALERT_WEBHOOK = Variable("CEM_ASSETS_ALERT_WEBHOOK", "URL that takes JSON, for alerts", default_told="off")
ALERT_EMAIL = Variable("CEM_ASSETS_ALERT_EMAIL", "who gets mail about failures", default_told="off")
SMTP_HOST = Variable("CEM_ASSETS_SMTP_HOST", "server that sends the mail")
SMTP_PORT = Variable("CEM_ASSETS_SMTP_PORT", "its port", "587")
SMTP_FROM = Variable("CEM_ASSETS_SMTP_FROM", "sender of the mail")
SMTP_USER = Variable("CEM_ASSETS_SMTP_USER", "name to log in with", default_told="no login")
SMTP_PASSWORD = Variable("CEM_ASSETS_SMTP_PASSWORD", "password to log in with")

MLFLOW_TRACKING_URI = Variable("MLFLOW_TRACKING_URI", "MLflow", default_told="a SQLite file in `./.cem_assets/mlflow`")
MLFLOW_UI = Variable("CEM_ASSETS_MLFLOW_UI", "address of MLflow's pages, for links, if the tracking URI is not a web address")
DAGSTER_HOME = Variable("DAGSTER_HOME", "Dagster's instance", "./.cem_assets/dagster")
AWS_MAX_ATTEMPTS = Variable("AWS_MAX_ATTEMPTS", "how often a request to S3 is tried", "8")
AWS_CA_BUNDLE = Variable("AWS_CA_BUNDLE", "certificates that S3 servers are checked with", default_told="the system's")
TORCH_HOME = Variable(
    "TORCH_HOME",
    "torch's folder, whose `hub/checkpoints` is searched for published weights",
    default_told="`$XDG_CACHE_HOME/torch`",
)
XDG_CACHE_HOME = Variable("XDG_CACHE_HOME", "caches of the user", "~/.cache")

VARIABLES: tuple[Variable, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Variable))
"""All variables, in the order of the table for people."""


def text(variable: Variable) -> str:
    """Return a variable's text, or its default if it is unset or empty."""
    return os.environ.get(variable.name) or variable.default


def required(variable: Variable) -> str:
    """Return a variable's text.

    Raises:
        DataError: It is unset, and has no default.
    """
    found = text(variable)
    if not found:
        raise DataError(f"{variable} is not set; expected {variable.meaning}.")
    return found


def export(variable: Variable, value: str) -> None:
    """Set a variable for this process and the processes it starts."""
    os.environ[variable.name] = value


def is_yes(variable: Variable) -> bool:
    """Tell whether a variable is `yes`; any other text means no."""
    return text(variable) == "yes"


def whole_number(variable: Variable, lowest: int = 1) -> int:
    """Return a variable as a whole number; 0 if it is unset and has no default.

    Raises:
        DataError: It is no whole number, or is below `lowest`.
    """
    found = text(variable)
    if not found:
        return 0
    if not found.isdecimal() or int(found) < lowest:
        raise DataError(f"{variable} is {found!r}; expected a whole number of at least {lowest}.")
    return int(found)
