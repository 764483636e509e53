"""Getting leave to read from one endpoint: basic authentication, and bearer tokens.

Protocols: CNCF distribution's token specification (``spec/auth/token``, ``spec/auth/oauth``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from threading import Lock

from microsandbox_oci._challenge import Challenge, parse_challenges
from microsandbox_oci._credentials import Credentials
from microsandbox_oci._errors import ImageInvalid, RegistryDenied, RegistryInvalid, RegistryUnreachable
from microsandbox_oci._http import Response
from microsandbox_oci._json import Node
from microsandbox_oci._registry_options import RegistryOptions
from microsandbox_oci._transport import Reach, Transport
from microsandbox_oci._url import Url, UrlInvalid

_MAX_TOKEN_ANSWER = 1 << 20
_CLIENT = "microsandbox"
# What the specification says a token lasts whose answer does not say it.
_DEFAULT_SECONDS = 60
# Not used in its last seconds: it must still hold when the request arrives.
_MARGIN_SECONDS = 10


class Authorization:
    """The ``Authorization`` header of one endpoint, kept up to date; used by several threads.

    Args:
        registry: the domain, for errors.
        credentials: asked for once, when the endpoint wants some; may return None.
        home: where the endpoint is. By TLS and not insecure: then its token service has to be so too.
        options: of the endpoint; that it is insecure holds for a token service on the same host only.
        reach: of a token service elsewhere.
    """

    def __init__(
        self,
        transport: Transport,
        registry: str,
        credentials: Callable[[], Credentials | None],
        *,
        home: Url,
        options: RegistryOptions,
        reach: Reach,
    ) -> None:
        self._transport = transport
        self._registry = registry
        self._ask = credentials
        self._asked: tuple[Credentials | None] | None = None
        self._home = home
        self._options = options
        self._secure = home.scheme == "https" and not options.insecure
        self._reach = reach
        self._current: str | None = None
        self._until = 0.0
        self._lock = Lock()

    @property
    def header(self) -> str | None:
        """What to send, as far as is known; None before the endpoint has asked."""
        with self._lock:
            return self._current if time.monotonic() < self._until else None

    def answer(self, asked: Sequence[str], used: str | None) -> str:
        """Return the header that a 401 asks for.

        Args:
            asked: its ``WWW-Authenticate`` headers.
            used: what was sent with the refused request.

        Raises:
            RegistryDenied: there are no credentials, or they were refused.
            RegistryInvalid: no challenge that is known, or the token service answers nonsense.
        """
        challenges = parse_challenges(asked)
        with self._lock:
            if self._current is not None and self._current != used and time.monotonic() < self._until:
                return self._current  # another thread has got it meanwhile
            if used is not None and used == self._current and self._until == float("inf"):
                raise self.denied()
            self._current, self._until = self._meet(challenges)
            if self._current == used:
                raise self.denied()
            return self._current

    def _meet(self, challenges: list[Challenge]) -> tuple[str, float]:
        for challenge in challenges:
            if challenge.scheme == "bearer" and "realm" in challenge.parameters:
                token, until = self._token(challenge)
                return f"Bearer {token}", until
        for challenge in challenges:
            if challenge.scheme == "basic":
                credentials = self._credentials()
                if credentials is None or not credentials.username:
                    raise self.denied()
                return credentials.basic, float("inf")
        raise RegistryInvalid(
            self._registry, f"{self._registry} wants authentication but names no way that is known"
        )

    def _credentials(self) -> Credentials | None:
        if self._asked is None:
            self._asked = (self._ask(),)
        return self._asked[0]

    def denied(self) -> RegistryDenied:
        """Return the error for what the endpoint or its token service has refused."""
        if self._credentials() is None:
            return RegistryDenied(
                self._registry,
                f"{self._registry} wants credentials",
                status=401,
                hint=f"msb registry login {self._registry}; or the name is wrong and there is no such image",
            )
        return RegistryDenied(
            self._registry,
            f"{self._registry} refuses the credentials",
            status=401,
            hint=f"they may be wrong, have expired or not allow this: msb registry login {self._registry}",
        )

    def _token(self, challenge: Challenge) -> tuple[str, float]:
        parameters = challenge.parameters
        try:
            url = Url.parse(parameters["realm"])
        except UrlInvalid as error:
            raise RegistryInvalid(
                self._registry, f"{self._registry} names no usable token service"
            ) from error
        if self._secure and url.scheme != "https":
            raise RegistryInvalid(self._registry, f"{self._registry} has a token service without TLS")
        asked = {name: parameters[name] for name in ("service", "scope") if name in parameters}
        credentials = self._credentials()
        headers: dict[str, str] = {"Accept": "application/json"}
        form = None
        if credentials is not None and credentials.identity_token:
            form = {
                **asked,
                "client_id": _CLIENT,
                "grant_type": "refresh_token",
                "refresh_token": credentials.identity_token,
            }
        else:
            url = url.with_query(asked)
            if credentials is not None:
                headers["Authorization"] = credentials.basic
        with self._transport.request(
            "GET" if form is None else "POST",
            url,
            headers,
            registry=self._registry,
            reach=Reach.ANY if url.host == self._home.host else self._reach,
            insecure=self._options.insecure,
            ca=self._options.ca,
            form=form,
        ) as response:
            if response.status in (400, 401, 403):
                raise self.denied()
            if response.status == 429 or response.status >= 500:
                raise RegistryUnreachable(
                    self._registry,
                    f"the token service of {self._registry} answers {response.status}",
                    passing=True,
                )
            if response.status != 200:
                raise RegistryInvalid(
                    self._registry,
                    f"the token service of {self._registry} answers {response.status}",
                    status=response.status,
                )
            data = read_bounded(response, _MAX_TOKEN_ANSWER, self._registry)
        return self._parse(data)

    def _parse(self, data: bytes) -> tuple[str, float]:
        try:
            node = Node.parse(data, "answer of the token service")
            token = node.text("token") or node.text("access_token")
            seconds = node.members.get("expires_in", _DEFAULT_SECONDS)
        except ImageInvalid as error:
            raise RegistryInvalid(self._registry, f"{self._registry}: {error}") from error
        if not token or not token.isascii() or not token.isprintable() or " " in token:
            raise RegistryInvalid(self._registry, f"the token service of {self._registry} gives no token")
        lifetime = seconds if isinstance(seconds, int) and 0 < seconds < 1 << 31 else _DEFAULT_SECONDS
        return token, time.monotonic() + max(lifetime - _MARGIN_SECONDS, 1)


def read_bounded(response: Response, limit: int, registry: str) -> bytes:
    """Return a body of at most ``limit`` bytes.

    Raises:
        RegistryInvalid: there are more (O11).
    """
    data = bytearray()
    for chunk in response.chunks():
        data += chunk
        if len(data) > limit:
            raise RegistryInvalid(registry, f"{registry} sends more than the {limit} bytes that are allowed")
    return bytes(data)
