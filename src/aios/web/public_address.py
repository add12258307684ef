"""The address that browsers see, where it is not the one that is listened on.

Behind a proxy that speaks TLS a page's origin is ``https://name``, while requests come in by plain
HTTP. The address is taken from the settings (``serve.public_url``) and from nowhere else: headers
that a proxy may add (``X-Forwarded-Proto``, ``Forwarded``) can be written by anybody, and are not
read.
"""

from __future__ import annotations

from dataclasses import dataclass

from aios.core.config.serving_schemas import ServeConfig

_USUAL_PORTS = {"https": "443", "http": "80"}


@dataclass(frozen=True, slots=True)
class PublicAddress:
    """An address of the settings.

    Attributes:
        origin: As browsers send it in the header ``Origin``.
    """

    origin: str

    @classmethod
    def of(cls, settings: ServeConfig) -> PublicAddress | None:
        """The address of the settings; None where there is none."""
        return None if settings.public_url is None else cls(settings.public_url)

    @property
    def secure(self) -> bool:
        """Whether browsers reach it over TLS alone."""
        return self.origin.startswith("https://")

    @property
    def authority(self) -> str:
        """Its name, and its port where that is not the usual one."""
        return self.origin.partition("://")[2]

    def names(self, host: str) -> bool:
        """Whether a ``Host`` header names it; many proxies leave the port out."""
        scheme, _, authority = self.origin.partition("://")
        name, colon, port = authority.rpartition(":")
        if not colon or authority.endswith("]"):
            name, port = authority, _USUAL_PORTS[scheme]
        return host.lower() in (name, f"{name}:{port}")
