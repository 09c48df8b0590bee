"""Who is asking, and may they: a key and an origin in, a Tenant out. The only source of a Tenant.

Everything is answered from memory (``keys.py``, ``quotas.py``, ``rates.py``). An Origin is a filter and
not a secret: it keeps a key that anyone can read in a web page from being used on other pages, no more.
"""

from __future__ import annotations

from dataclasses import dataclass

from gateway.errors import OriginRefused, SubscriptionRequired, Unauthorized
from gateway.tenants.keys import Keys
from gateway.tenants.minting import is_damaged
from gateway.tenants.origins import normal_origin
from gateway.tenants.quotas import WARNING_PERCENT, Quotas
from gateway.tenants.rates import Headers, Rates
from gateway.tenants.records import KeyRecord


@dataclass(frozen=True, slots=True)
class Tenant:
    """Whose rows these are, and by which key. ``dialect`` is the key's, not the path's; ``kind`` server or browser.

    ``notices`` are headers for the reply, whatever it will be. ``genai_content_bytes``: how much its
    project keeps of what GenAI events were told and answered; None is all. ``durability``: what a 2xx
    means for its rows; empty: as the settings say.
    """

    project_id: str
    project_slug: str
    key_id: str
    dialect: str
    kind: str
    notices: Headers = ()
    genai_content_bytes: int | None = None
    durability: str = ""


class Gate:
    """Turns keys into tenants, and counts what they send."""

    def __init__(self, keys: Keys, rates: Rates, quotas: Quotas) -> None:
        self._keys = keys
        self._rates = rates
        self._quotas = quotas

    def authorize(self, key: str | None, origin: str | None) -> Tenant:
        """The tenant of a key as sent, used from ``origin`` (the Origin header, None when there is none).

        Unauthorized: no key, an unknown or a revoked one. OriginRefused: a browser key without an
        origin or from one that is not on its list. SubscriptionRequired: the project is not active, or
        its month's quota is spent. RateLimited: one request too many. KeysUnavailable: the key cannot
        be checked now.
        """
        if not key:
            raise Unauthorized(
                "No API key. Send it as 'Authorization: Bearer <key>' or as 'X-API-Key: <key>'.", log="no key"
            )
        record = self._keys.find(key)
        if record is None:
            hint = (
                "Its checksum does not fit: it was probably cut or mistyped."
                if is_damaged(key)
                else ("Check that it was copied whole and is meant for this gateway, or create a new one.")
            )
            raise Unauthorized(f"The API key is unknown or was revoked. {hint}", log="unknown or revoked key")
        if record.kind == "browser":
            _check_origin(record, origin)
        if not record.active:
            raise SubscriptionRequired(
                "The project's subscription is not active: nothing is accepted for it.",
                log=f"project {record.project_slug} is inactive",
            )
        self._quotas.check(record.project_id, record.monthly_records)
        notices = self._rates.take(record)
        return Tenant(
            record.project_id,
            record.project_slug,
            record.id,
            record.dialect,
            record.kind,
            notices,
            record.genai_content_bytes,
            record.durability,
        )

    def count(self, project_id: str, records: int) -> Headers:
        """Counts accepted records; returns headers for the reply: from 80 % on, how much of the quota is used."""
        percent = self._quotas.count(project_id, records)
        return (("X-Quota-Warning", str(percent)),) if percent >= WARNING_PERCENT else ()

    def allows_origin(self, origin: str) -> bool:
        """Whether some browser key may be used from this origin: a CORS preflight carries no key."""
        return normal_origin(origin) in self._keys.origins


def _check_origin(record: KeyRecord, origin: str | None) -> None:
    if origin is None:
        raise OriginRefused(
            "This is a browser key, and the request has no Origin header. Outside a browser use a server key.",
            log=f"browser key {record.id} without an origin",
        )
    normal = normal_origin(origin)
    if normal is None or normal not in record.origins:
        # Only an origin we have spelled ourselves is repeated: nothing else a sender wrote is.
        named = f"The origin {normal}" if normal else "What the Origin header says"
        raise OriginRefused(
            f"{named} is not on this browser key's list. Scheme, host and port must all be the same.",
            log=f"browser key {record.id} from an origin that is not on its list",
        )
