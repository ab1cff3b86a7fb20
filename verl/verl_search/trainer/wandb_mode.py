"""Whether wandb can be used, asked in seconds before a run starts: by itself it tries for minutes, then ends the run.

Without a key wandb works offline, and also where its server cannot be reached. A key that is refused is a mistake,
which is better known before a run than after it. Does not cover: a failure later on (tracking.py).
"""

import os
from collections.abc import Collection, Mapping
from typing import NamedTuple

import httpx
from omegaconf import DictConfig
from pydantic import ValidationError

from flashrag.errors import UserError
from flashrag.system.network import client_settings, detour

KEY_VARIABLE, MODE_VARIABLE, FOLDER_VARIABLE = "WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR"
OFFLINE = "offline"
WITHOUT_SERVER = (OFFLINE, "dryrun", "disabled")  # values of WANDB_MODE
TIMEOUT_S = 5.0
REMEDY = f"correct it, or unset it to keep the metrics offline ({MODE_VARIABLE}={OFFLINE} does, too)"
WHO_AM_I = {"query": "query Viewer { viewer { id } }"}


class WandbChoice(NamedTuple):
    """The value that WANDB_MODE gets, None to leave it, and a line for the user."""

    mode: str | None = None
    note: str = ""


def configured_wandb(config: DictConfig) -> WandbChoice:
    """The choice for the run of a training config in this process's environment; raises `UserError` likewise."""
    environ = {FOLDER_VARIABLE: config.trainer.default_local_dir, **os.environ}
    return choose_wandb(environ, config.trainer.logger, config.trainer.get("wandb_proxy"))


def choose_wandb(environ: Mapping[str, str], loggers: str | Collection[str], proxy: str | None) -> WandbChoice:
    """How a run with these loggers is to use wandb; raises `UserError` for a key or a setting that is refused.

    `proxy` is verl's `trainer.wandb_proxy`.
    """
    if "wandb" not in loggers or environ.get(MODE_VARIABLE) in WITHOUT_SERVER:
        return WandbChoice()
    if not (key := environ.get(KEY_VARIABLE, "").strip()):
        return WandbChoice(OFFLINE)
    from wandb.sdk.lib.wbauth.validation import check_api_key

    if problem := check_api_key(key):
        raise UserError(f"wandb cannot use the key in {KEY_VARIABLE}: {problem} Please {REMEDY}")
    url = _server_url()
    if not (problem := ask_wandb(url, key, _wandb_proxies(environ, proxy))):
        return WandbChoice()
    return WandbChoice(OFFLINE, (
        f"wandb cannot be used ({problem}), so its metrics are kept offline; to upload them later: "
        f"wandb sync {environ.get(FOLDER_VARIABLE, '.')}/wandb/offline-run-*"
    ))  # fmt: skip


def ask_wandb(url: str, key: str, environ: Mapping[str, str]) -> str:
    """Why the server at `url` cannot be used, "" if it can; raises `UserError` if it refuses the key."""
    try:
        with httpx.Client(timeout=TIMEOUT_S, **client_settings(url, environ)) as client:
            reply = client.post(f"{url}/graphql", json=WHO_AM_I, auth=("api", key))
    except (httpx.HTTPError, UserError) as error:
        told = str(error) if isinstance(error, UserError) else f"{type(error).__name__} {error}{detour(url, environ)}"
        return f"{url} cannot be reached: {told}"
    if reply.status_code == httpx.codes.UNAUTHORIZED:
        raise UserError(f"wandb at {url} refuses the key in {KEY_VARIABLE} (401); {REMEDY}")
    return "" if reply.is_success else f"{url}/graphql answered {reply.status_code}{detour(url, environ)}"


def _server_url() -> str:
    """The server's address: WANDB_BASE_URL, else that of `wandb login`, else wandb's own."""
    from wandb.errors import UsageError
    from wandb.sdk import wandb_setup

    try:
        return wandb_setup.singleton().settings.base_url.rstrip("/")
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"wandb refuses WANDB_{'_'.join(map(str, first['loc'])).upper()}: {first['msg']}") from None
    except UsageError as error:
        raise UserError(f"wandb refuses its settings (WANDB_…): {error}") from error


def _wandb_proxies(environ: Mapping[str, str], proxy: str | None) -> dict[str, str]:
    """The proxy variables as wandb's service reads them: it has some of its own, and knows no ALL_PROXY."""
    found = {name: value for name, value in environ.items() if name.lower() != "all_proxy"}
    for scheme in ("http", "https"):
        own = (proxy if scheme == "https" else None) or environ.get(f"WANDB_{scheme.upper()}_PROXY")
        found |= {f"{scheme}_proxy": own} if own else {}
    return found
