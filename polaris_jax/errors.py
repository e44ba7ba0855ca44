"""What ends a run before its end, the codes that scripts exit with then, and what no message may hold."""

import os
import re

USER_ERROR = 2  # (0: done, 1: a bug, with its traceback)
NOT_FINITE = 3  # too many updates in a row were not finite: the state and the batch are saved
PREEMPTED = 75  # SIGTERM: the state is saved; start again
STUCK = 76  # the watchdog: nothing had moved for too long; start again
LOST = 77  # another process of the run died or fell silent; start all again

SECRET_VARIABLES = ("HF_TOKEN", "WANDB_API_KEY", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_PASSWORD")

# Tokens of the hub, passwords in URLs, and what a URL's query calls a secret.
_SECRETS = re.compile(
    r"()\bhf_[A-Za-z0-9]{20,}|(://)[^/@\s]+(?=@)|([?&](?:access_token|token|api_key|key|password)=)[^&\s]+"
)


class UserError(Exception):
    """A mistake that the user can mend: bad config, data or checkpoint. The message says where, what, what instead.

    Secrets in it are replaced by three asterisks.
    """

    def __init__(self, message: str):
        super().__init__(redact(message))


class NonFiniteUpdates(RuntimeError):
    """Too many updates in a row were skipped because the loss, a gradient or a log-prob was not finite."""


def redact(text: str) -> str:
    """The text without hub tokens, passwords in URLs, and the values of the environment's `SECRET_VARIABLES`."""
    for name in SECRET_VARIABLES:
        if len(secret := os.environ.get(name, "")) >= 8:
            text = text.replace(secret, "***")
    return _SECRETS.sub(lambda match: f"{match[match.lastindex]}***", text)
