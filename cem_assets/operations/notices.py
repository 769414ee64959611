"""Notices to people: a webhook, an e-mail, or both; off where nothing is configured.

Configured by variables, because addresses of webhooks and passwords are secrets: CEM_ASSETS_ALERT_WEBHOOK (any URL that
takes JSON; Slack, Mattermost and Teams show its `text`), CEM_ASSETS_ALERT_EMAIL (addresses joined by commas) with
CEM_ASSETS_SMTP_HOST, _PORT, _FROM, and optionally _USER, _PASSWORD (then over STARTTLS).
"""

import json
import os
import smtplib
import ssl
import urllib.request
from collections.abc import Mapping
from email.message import EmailMessage

WEBHOOK_VARIABLE = "CEM_ASSETS_ALERT_WEBHOOK"
EMAIL_VARIABLE = "CEM_ASSETS_ALERT_EMAIL"
_SMTP = "CEM_ASSETS_SMTP_"
_TIMEOUT_SECONDS = 15


def is_configured() -> bool:
    """Tell whether anyone is to be told anything."""
    return bool(os.environ.get(WEBHOOK_VARIABLE) or os.environ.get(EMAIL_VARIABLE))


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
        ("webhook", _post, bool(os.environ.get(WEBHOOK_VARIABLE))),
        ("e-mail", _mail, bool(os.environ.get(EMAIL_VARIABLE))),
    ):
        if not is_on:
            continue
        try:
            send(subject, text, facts)
        except (OSError, ValueError, KeyError, smtplib.SMTPException) as error:
            problems.append(f"the {name} could not be delivered ({type(error).__name__}); check its variables")
    return problems


def _post(subject: str, text: str, facts: Mapping[str, str]) -> None:
    url = os.environ[WEBHOOK_VARIABLE]
    if not url.startswith(("https://", "http://")):
        raise ValueError("expected an https:// address")
    body = json.dumps({"text": f"{subject}\n{text}", "subject": subject, **facts}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})  # noqa: S310  checked above
    with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS):  # noqa: S310
        pass


def _mail(subject: str, text: str, facts: Mapping[str, str]) -> None:
    host = os.environ[f"{_SMTP}HOST"]
    port = int(os.environ.get(f"{_SMTP}PORT", "587"))
    message = EmailMessage()
    message["Subject"] = " ".join(subject.split())
    message["From"] = os.environ[f"{_SMTP}FROM"]
    message["To"] = os.environ[EMAIL_VARIABLE]
    message.set_content(text + "\n\n" + "\n".join(f"{name}: {value}" for name, value in facts.items()))
    with smtplib.SMTP(host, port, timeout=_TIMEOUT_SECONDS) as server:
        if user := os.environ.get(f"{_SMTP}USER"):
            server.starttls(context=ssl.create_default_context())
            server.login(user, os.environ[f"{_SMTP}PASSWORD"])
        server.send_message(message)
