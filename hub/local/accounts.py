"""Who asks: one account with a write and a read token, both made at the first start and kept in the hub's folder."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from hub.errors import StoreError

USER = "modelpress"
ORGANISATIONS = ("modelpress-lab",)


@dataclass(frozen=True, kw_only=True)
class Account:
    """The holder of a token; `role` is write or read."""

    name: str
    role: str

    def owns(self, namespace: str) -> bool:
        """Tell whether the namespace is the account's own or that of one of its organisations."""
        return namespace.lower() in (self.name.lower(), *ORGANISATIONS)


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """The tokens, and the secret that signs upload addresses."""

    write_token: str
    read_token: str
    secret: str

    def account(self, token: str) -> Account | None:
        """Return the token's account, or None for an unknown token."""
        for known, role in ((self.write_token, "write"), (self.read_token, "read")):
            if hmac.compare_digest(token.encode(), known.encode()):
                return Account(name=USER, role=role)
        return None

    def sign(self, text: str, lifetime_s: int) -> str:
        """Return `expires=…&signature=…` for an address that needs no token."""
        expires = int(time.time()) + lifetime_s
        return f"expires={expires}&signature={self._signature(text, expires)}"

    def check(self, text: str, expires: str, signature: str) -> bool:
        """Tell whether a signature is ours, for this text, and not expired."""
        if not expires.isascii() or not expires.isdecimal() or int(expires) < time.time():
            return False
        return hmac.compare_digest(self._signature(text, int(expires)).encode(), signature.encode())

    def _signature(self, text: str, expires: int) -> str:
        return hmac.new(self.secret.encode(), f"{expires} {text}".encode(), hashlib.sha256).hexdigest()


def load(root: Path) -> Credentials:
    """Read the credentials of a hub's folder, or make them; the file is readable by its owner alone. A damaged one raises `StoreError`."""
    path = root / "credentials.json"
    try:
        return Credentials(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        pass
    except (ValueError, TypeError) as error:
        raise StoreError(f"{path} is damaged: {error}", hint="Delete it; new tokens are made at the next start.") from error
    made = {"write_token": f"hf_{secrets.token_hex(17)}", "read_token": f"hf_{secrets.token_hex(17)}", "secret": secrets.token_hex(32)}
    unfinished = path.with_suffix(".new")
    unfinished.unlink(missing_ok=True)
    handle = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(made, file)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
    return Credentials(**made)
