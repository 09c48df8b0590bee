"""Personal access tokens in Postgres: their digests, and who they were made for.

Every SQL statement about tokens is here; the connections are the control store's, and so are the
errors: NotAcceptable, StoreUnavailable.
"""

from __future__ import annotations

from typing import Any

from gateway.tenants.minting import PAT_PREFIX, digest_of, mint
from gateway.tenants.postgres import ControlStore, check_name, uuid_of
from gateway.tenants.records import PatRecord

_COLUMNS = "id, name, created_at, revoked_at"
_CREATE = f"INSERT INTO personal_access_tokens (sha256, name) VALUES ($1, $2) RETURNING {_COLUMNS}"  # noqa: S608
_FIND = f"SELECT {_COLUMNS} FROM personal_access_tokens WHERE sha256 = $1 AND revoked_at IS NULL"  # noqa: S608
_LIST = f"SELECT {_COLUMNS} FROM personal_access_tokens ORDER BY created_at, id"  # noqa: S608
_REVOKE = "UPDATE personal_access_tokens SET revoked_at = now() WHERE id = $1 AND revoked_at IS NULL RETURNING id"


class PatStore:
    """The tokens of a control store."""

    def __init__(self, store: ControlStore) -> None:
        self._store = store

    async def create(self, name: str) -> tuple[PatRecord, str]:
        """A new token and its secret, which is given out here and never again. Raises NotAcceptable (the name)."""
        check_name(name)
        secret = mint(PAT_PREFIX)
        async with self._store.connection() as connection:
            return _pat(await connection.fetchrow(_CREATE, digest_of(secret), name)), secret

    async def find(self, sha256: bytes) -> PatRecord | None:
        """The token with this digest; None when there is none or it is revoked."""
        async with self._store.connection() as connection:
            row = await connection.fetchrow(_FIND, sha256)
        return _pat(row) if row else None

    async def all(self) -> list[PatRecord]:
        """Every token, revoked ones too, oldest first."""
        async with self._store.connection() as connection:
            return [_pat(row) for row in await connection.fetch(_LIST)]

    async def revoke(self, pat_id: str) -> bool:
        """Revokes for ever; every gateway that reaches Postgres obeys within a second. False: no such live token."""
        identity = uuid_of(pat_id)
        if identity is None:
            return False
        async with self._store.connection() as connection:
            return await connection.fetchval(_REVOKE, identity) is not None


def _pat(row: Any) -> PatRecord:
    return PatRecord(str(row["id"]), row["name"], row["created_at"], row["revoked_at"])
