"""Notices to people by webhook, by e-mail, or by both; none are sent where neither is configured.

They are configured by environment variables, because addresses of webhooks and passwords are secrets. CEM_ASSETS_ALERT_WEBHOOK
is any URL that takes JSON; Slack, Mattermost and Teams show its `text`. CEM_ASSETS_ALERT_EMAIL has addresses joined by commas,
and needs CEM_ASSETS_SMTP_HOST, _PORT and _FROM. With _USER and _PASSWORD the mail is sent over STARTTLS.
"""

import http.client
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
    """Tell whether a webhook or an e-mail address is configured."""
    return bool(environment.text(environment.ALERT_WEBHOOK) or environment.text(environment.ALERT_EMAIL))


def deliver(subject: str, text: str, facts: Mapping[str, str]) -> list[str]:
    """Send a notice over every configured channel; a channel that fails does not stop the others.

    Args:
        subject: One line.
        facts: Further names and values, such as the run and the dataset.

    Returns:
        One line for each channel that failed, without any address or password; empty when all was delivered.
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
        except (OSError, ValueError, http.client.HTTPException, smtplib.SMTPException) as error:
            problems.append(f"the {name} could not be delivered ({type(error).__name__}); check its variables")
    return problems


def _post(subject: str, text: str, facts: Mapping[str, str]) -> None:
    url = environment.text(environment.ALERT_WEBHOOK)
    if not url.startswith(("https://", "http://")):
        raise DataError(f"{environment.ALERT_WEBHOOK} is no address; expected one that begins with https://.")
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
