"""Notices to people: a webhook, an e-mail, or both; off where nothing is configured.

Configured by variables, because addresses of webhooks and passwords are secrets: CEM_ASSETS_ALERT_WEBHOOK (any URL that
takes JSON; Slack, Mattermost and Teams show its `text`), CEM_ASSETS_ALERT_EMAIL (addresses joined by commas) with
CEM_ASSETS_SMTP_HOST, _PORT, _FROM, and optionally _USER, _PASSWORD (then over STARTTLS).
"""

import json
import smtplib
import ssl
import urllib.request
from collections.abc import Mapping
from email.message import EmailMessage

from cem_assets import environment
from cem_assets.errors import DataError

_TIMEOUT_SECONDS = 15


def is_configured() -> bool:
    """Tell whether anyone is to be told anything."""
    return bool(environment.text(environment.ALERT_WEBHOOK) or environment.text(environment.ALERT_EMAIL))


def deliver(subject: str, text: str, facts: Mapping[str, str]) -> list[str]:
    """Send a notice over every configured channel; one that fails does not keep back the others.

    Args:
        subject: One line.
        text: The message.
        facts: Names and values besides, such as run and dataset.

    Returns:
        What went wrong, one line a channel, without any address or password; empty when all was delivered.
    """
    problems = []
    for name, send, is_on in (
        ("webhook", _post, bool(environment.text(environment.ALERT_WEBHOOK))),
        ("e-mail", _mail, bool(environment.text(environment.ALERT_EMAIL))),
    ):
        if not is_on:
            continue
        try:
            send(subject, text, facts)
        except (OSError, ValueError, KeyError, smtplib.SMTPException) as error:
            problems.append(f"the {name} could not be delivered ({type(error).__name__}); check its variables")
    return problems


def _post(subject: str, text: str, facts: Mapping[str, str]) -> None:
    url = environment.text(environment.ALERT_WEBHOOK)
    if not url.startswith(("https://", "http://")):
        raise DataError("expected an https:// address")
    body = json.dumps({"text": f"{subject}\n{text}", "subject": subject, **facts}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})  # noqa: S310  checked above
    with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS):  # noqa: S310
        pass


def _mail(subject: str, text: str, facts: Mapping[str, str]) -> None:
    host, port = environment.required(environment.SMTP_HOST), environment.whole_number(environment.SMTP_PORT)
    message = EmailMessage()
    message["Subject"] = " ".join(subject.split())
    message["From"] = environment.required(environment.SMTP_FROM)
    message["To"] = environment.text(environment.ALERT_EMAIL)
    message.set_content(text + "\n\n" + "\n".join(f"{name}: {value}" for name, value in facts.items()))
    with smtplib.SMTP(host, port, timeout=_TIMEOUT_SECONDS) as server:
        if user := environment.text(environment.SMTP_USER):
            server.starttls(context=ssl.create_default_context())
            server.login(user, environment.required(environment.SMTP_PASSWORD))
        server.send_message(message)
