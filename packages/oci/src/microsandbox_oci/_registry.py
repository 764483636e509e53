"""Reading from registries: manifests, blobs and tags of a repository.

Protocol: OCI distribution specification 1.1, the "pull" and "content discovery" parts.
"""

from __future__ import annotations

import email.utils
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from microsandbox_oci._authorization import Authorization, read_bounded
from microsandbox_oci._credentials import CredentialSource
from microsandbox_oci._digest import digest_of, is_digest
from microsandbox_oci._errors import (
    DigestMismatch,
    ImageInvalid,
    RedirectRefused,
    RegistryBusy,
    RegistryDenied,
    RegistryError,
    RegistryInvalid,
    RegistryNotFound,
    RegistryUnreachable,
)
from microsandbox_oci._http import Broken, Response
from microsandbox_oci._json import Node
from microsandbox_oci._manifest import INDEX_TYPES, MANIFEST_TYPES
from microsandbox_oci._reference import DEFAULT_DOMAIN, LEGACY_DEFAULT_DOMAIN, Reference
from microsandbox_oci._registry_options import Registries, host_of
from microsandbox_oci._transport import Reach, Transport
from microsandbox_oci._url import Url, UrlInvalid

_ACCEPT = ", ".join(sorted((*MANIFEST_TYPES, *INDEX_TYPES)))
_MAX_REDIRECTS = 5
_MAX_ERROR = 64 << 10
_MAX_TAG_PAGE = 16 << 20
_MAX_TAGS = 1_000_000
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_PASSING = frozenset({408, 429, 500, 502, 503, 504})
_LINK = re.compile(r"<([^<>]*)>([^<>]*)")
_IS_NEXT = re.compile(r';\s*rel\s*=\s*"?next"?\s*(?:[;,]|$)', re.IGNORECASE)
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")

T = TypeVar("T")


class Fetched(NamedTuple):
    """A manifest or index as the registry sent it; ``digest`` is that of its bytes."""

    data: bytes
    digest: str


@dataclass(frozen=True, slots=True)
class _Endpoint:
    """One place where a repository may be found."""

    registry: str
    base: Url
    path: str
    authorization: Authorization

    @property
    def place(self) -> tuple[str, str]:
        """What tells it from others: two may be on one host."""
        return self.registry, self.path


class RegistryClient:
    """Everything that one pull, login or listing needs of registries. Close it after use.

    Args:
        options: how registries are reached.
        credentials: who the user is to them.
        wait: waits some seconds between attempts; replaced in tests.
        warn: gets one line, from any thread, about what went wrong and was made good; logged by default.
    """

    def __init__(
        self,
        options: Registries,
        credentials: CredentialSource,
        *,
        wait: Callable[[float], None] | None = None,
        warn: Callable[[str], None] | None = None,
    ) -> None:
        self._options = options
        self._credentials = credentials
        self._transport = Transport(options)
        self._wait = wait or self._transport.pause
        self.warn = warn or _log

    def __enter__(self) -> RegistryClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._transport.close()

    def repository(self, reference: Reference) -> Repository:
        """Return the repository that ``reference`` names."""
        return Repository(self, reference)

    def check(self, domain: str) -> None:
        """Ask a registry whether it accepts the credentials for it.

        Raises:
            RegistryDenied: it does not.
            RegistryError: it cannot be asked.
        """
        repository = Repository(self, Reference(domain, "check", None, None))
        repository.check()

    @property
    def options(self) -> Registries:
        """How registries are reached."""
        return self._options

    @property
    def transport(self) -> Transport:
        """The connections."""
        return self._transport

    def endpoints(self, domain: str, path: str) -> list[_Endpoint]:
        """Return the mirrors of a registry in their order, then the registry itself."""
        found = []
        for mirror in self._options.of(domain).mirrors:
            host, slash, prefix = mirror.rstrip("/").partition("/")
            found.append(self._endpoint(host, f"{prefix}{slash}{path}"))
        found.append(self._endpoint(domain, path))
        return found

    def _endpoint(self, domain: str, path: str) -> _Endpoint:
        host = LEGACY_DEFAULT_DOMAIN if domain == DEFAULT_DOMAIN else domain
        base = self._base(domain, host)
        local = self._transport.is_private(host_of(host))
        return _Endpoint(
            registry=domain,
            base=base,
            path=path,
            authorization=Authorization(
                self._transport,
                domain,
                lambda: self._credentials.get(domain),
                home=base,
                options=self._options.of(domain),
                reach=Reach.NEIGHBOUR if local else Reach.PUBLIC,
            ),
        )

    def _base(self, domain: str, host: str) -> Url:
        """Return the root of the registry's API, by TLS unless it is insecure and has none."""
        secure = Url.parse(f"https://{host}/v2/")
        options = self._options.of(domain)
        if not options.insecure:
            return secure
        try:
            with self._transport.request(
                "GET", secure, {}, registry=domain, reach=Reach.ANY, insecure=True, ca=options.ca
            ):
                return secure
        except RegistryUnreachable:
            return Url.parse(f"http://{host}/v2/")

    def attempts(self, registry: str, action: Callable[[], T]) -> T:
        """Do something, again after a while if it fails in a way that may pass.

        Raises:
            RegistryError: the last failure.
        """
        for attempt in range(1, self._options.attempts + 1):
            try:
                return action()
            except RegistryUnreachable as error:
                if not error.passing:
                    raise
                failure: _Passing | RegistryUnreachable = error
            except _Passing as error:
                failure = error
            seconds = min(0.25 * 2**attempt, self._options.patience) * random.uniform(0.5, 1.0)
            if isinstance(failure, _Passing) and failure.after is not None:
                if failure.after > self._options.patience:
                    break
                seconds = failure.after
            if self._transport.aborted:
                break
            if attempt < self._options.attempts:
                self._wait(seconds)
        raise failure.plain() if isinstance(failure, _Passing) else failure


class Repository:
    """One repository, through whichever of its endpoints has what is asked for."""

    def __init__(self, client: RegistryClient, reference: Reference) -> None:
        self._client = client
        self._reference = reference
        self._endpoints: list[_Endpoint] | None = None
        self._givers: dict[str, set[tuple[str, str]]] = {}

    def check(self) -> None:
        """See `RegistryClient.check`."""

        def ask(endpoint: _Endpoint) -> None:
            with self._get(endpoint, endpoint.base):
                return

        # Not the mirrors: they are not who the credentials are for.
        endpoint = self._places()[-1]
        self._client.attempts(endpoint.registry, lambda: ask(endpoint))

    def manifest(self, selector: str, *, limit: int) -> Fetched:
        """Fetch a manifest or index by tag or digest; by digest it is compared with it.

        Raises:
            RegistryError: it cannot be had.
            DigestMismatch: these are not the bytes that were asked for.
        """

        def fetch(endpoint: _Endpoint) -> Fetched:
            url = endpoint.base.join(f"{endpoint.path}/manifests/{selector}")
            with self._get(endpoint, url, accept=_ACCEPT) as response:
                data = read_bounded(response, limit, endpoint.registry)
                said = response.header("docker-content-digest")
            seen = digest_of(data)
            expected = selector if ":" in selector else said
            if expected is not None and is_digest(expected) and seen != expected:
                raise DigestMismatch(f"manifest {selector}", expected=expected, seen=seen)
            return Fetched(data, seen)

        return self._anywhere(fetch)

    def document(self, digest: str, *, limit: int) -> bytes:
        """Fetch a small blob whole.

        Raises:
            RegistryError: it cannot be had.
            DigestMismatch: these are not the bytes that were asked for.
        """

        def fetch(endpoint: _Endpoint) -> bytes:
            url = endpoint.base.join(f"{endpoint.path}/blobs/{digest}")
            with self._get(endpoint, url) as response:
                data = read_bounded(response, limit, endpoint.registry)
            if (seen := digest_of(data)) != digest:
                raise DigestMismatch(f"blob {digest}", expected=digest, seen=seen)
            return data

        return self._anywhere(fetch)

    def blob(self, digest: str, size: int, start: int, write: Callable[[bytes], None]) -> None:
        """Fetch the bytes of a blob from ``start`` on, again from where it broke off if it does.

        ``write`` gets them in order, each once; what it raises ends the transfer. They are not verified: see
        `distrust`.

        Raises:
            RegistryError: no endpoint has them, or the transfer broke too often without any progress.
        """
        position = start

        def fetch(endpoint: _Endpoint) -> None:
            nonlocal position
            url = endpoint.base.join(f"{endpoint.path}/blobs/{digest}")
            while position < size:
                begun = position
                try:
                    with self._get(endpoint, url, start=position) as response:
                        for chunk in _body_from(response, position, endpoint.registry):
                            if position + len(chunk) > size:
                                raise RegistryInvalid(
                                    endpoint.registry,
                                    f"{endpoint.registry} sends more than the {size} bytes of blob {digest}",
                                )
                            position += len(chunk)
                            self._givers.setdefault(digest, set()).add(endpoint.place)
                            write(chunk)
                except RegistryUnreachable:
                    if position == begun:
                        raise
                else:
                    if position < size:
                        # The body ended as if it were whole: a failure unless it brought something.
                        if position == begun:
                            raise RegistryUnreachable(
                                endpoint.registry,
                                f"{endpoint.registry} ends blob {digest} after {position} of {size} bytes",
                                passing=True,
                            )
                        continue

        self._anywhere(fetch)

    def distrust(self, digest: str) -> bool:
        """Ask no mirror any more that has given bytes of a blob which turned out to be wrong.

        Returns whether there was one, so that asking again makes sense.
        """
        *mirrors, last = self._places()
        givers = self._givers.pop(digest, set()) - {last.place}
        for mirror in mirrors:
            if mirror.place in givers:
                self._client.warn(
                    f"mirror {mirror.registry}: what it gives as layer {digest} cannot be used; "
                    "it is not asked any more"
                )
        self._endpoints = [*(mirror for mirror in mirrors if mirror.place not in givers), last]
        return bool(givers)

    def tags(self) -> Iterator[str]:
        """Yield the repository's tags in the registry's order, page by page."""
        endpoint = self._places()[-1]
        url: Url | None = endpoint.base.join(f"{endpoint.path}/tags/list").with_query({"n": "1000"})
        count = 0
        while url is not None:
            page = url

            def fetch(page: Url = page) -> tuple[tuple[str, ...], Url | None]:
                with self._get(endpoint, page) as response:
                    data = read_bounded(response, _MAX_TAG_PAGE, endpoint.registry)
                    follow = _next(response)
                try:
                    following = None if follow is None else page.join(follow)
                except UrlInvalid as error:
                    raise RegistryInvalid(
                        endpoint.registry, f"{endpoint.registry} continues its tags nowhere"
                    ) from error
                return _tags_of(data, endpoint.registry), following

            names, url = self._client.attempts(endpoint.registry, fetch)
            if url is not None and url.origin != page.origin:
                raise RedirectRefused(endpoint.registry, f"{endpoint.registry} continues its tags elsewhere")
            count += len(names)
            if count > _MAX_TAGS or (url is not None and not names):
                raise RegistryInvalid(endpoint.registry, f"{endpoint.registry} lists tags without end")
            yield from names

    def _places(self) -> list[_Endpoint]:
        if self._endpoints is None:
            self._endpoints = self._client.endpoints(self._reference.domain, self._reference.path)
        return self._endpoints

    def _anywhere(self, action: Callable[[_Endpoint], T]) -> T:
        """Try the mirrors, then the registry, whose failure is the one that is told."""
        *mirrors, last = self._places()
        for endpoint in mirrors:
            try:
                return self._client.attempts(endpoint.registry, lambda endpoint=endpoint: action(endpoint))  # type: ignore[misc]
            except DigestMismatch as error:
                self._client.warn(f"mirror {endpoint.registry}: {error}")
            except RegistryError:
                continue
        return self._client.attempts(last.registry, lambda: action(last))

    @contextmanager
    def _get(
        self, endpoint: _Endpoint, url: Url, *, accept: str | None = None, start: int = 0
    ) -> Iterator[Response]:
        """Give the response to a GET after authentication and redirects; its status is 200 or 206."""
        options = self._client.options.of(endpoint.registry)
        wanted = {"Accept": accept} if accept else {}
        if start:
            wanted["Range"] = f"bytes={start}-"
        home = url.origin
        refused = False
        for _ in range(_MAX_REDIRECTS + 2):
            at_home = url.origin == home
            headers = dict(wanted)
            header = endpoint.authorization.header if at_home else None
            if header is not None:
                headers["Authorization"] = header
            with self._client.transport.request(
                "GET",
                url,
                headers,
                registry=endpoint.registry,
                reach=Reach.ANY if at_home else Reach.PUBLIC,
                insecure=options.insecure,
                ca=options.ca,
            ) as response:
                status = response.status
                if status in (200, 206):
                    yield response
                    return
                if status in _REDIRECTS:
                    url = _target(response, url, endpoint.registry)
                    continue
                if status == 401 and at_home:
                    if refused:
                        raise endpoint.authorization.denied()
                    endpoint.authorization.answer(response.headers("www-authenticate"), header)
                    refused = True
                    continue
                raise _failure(response, endpoint.registry, url)
        raise RegistryInvalid(
            endpoint.registry, f"{endpoint.registry} redirects more than {_MAX_REDIRECTS} times"
        )


def _log(text: str) -> None:
    import logging

    logging.getLogger("microsandbox_oci").warning(text)


class _Passing(Exception):
    """A failure on the registry's side that may pass; ``after`` is what ``Retry-After`` says, in seconds."""

    def __init__(self, registry: str, status: int, after: float | None) -> None:
        super().__init__(registry, status)
        self._registry = registry
        self._status = status
        self.after = after

    def plain(self) -> RegistryBusy:
        """Return the error to tell."""
        wait = f" and asks to wait {self.after:.0f} s" if self.after else ""
        return RegistryBusy(
            self._registry, f"{self._registry} answers {self._status}{wait}", status=self._status
        )


def _target(response: Response, url: Url, registry: str) -> Url:
    try:
        target = url.join(response.header("location") or "//")
    except UrlInvalid as error:
        raise RegistryInvalid(registry, f"{registry} redirects to an unusable address") from error
    # Without TLS before, a redirect cannot make it worse; never the other way.
    if url.scheme == "https" and target.scheme != "https":
        raise RedirectRefused(registry, f"{registry} redirects from https to http")
    return target


def _next(response: Response) -> str | None:
    """Return where a list goes on: the ``Link`` header, RFC 8288."""
    for header in response.headers("link"):
        for target, parameters in _LINK.findall(header):
            if _IS_NEXT.search(parameters):
                return str(target)
    return None


def _failure(response: Response, registry: str, url: Url) -> Exception:
    status = response.status
    if status in _PASSING:
        return _Passing(registry, status, _retry_after(response.header("retry-after")))
    detail = _detail(response, registry)
    what = _spoken(url.path)
    if status == 404:
        return RegistryNotFound(registry, f"{registry} has no {what}{detail}", status=status)
    if status in (401, 403):
        return RegistryDenied(
            registry,
            f"{registry} does not allow reading {what}{detail}",
            status=status,
            hint=f"log in as somebody who may: msb registry login {registry}",
        )
    return RegistryInvalid(registry, f"{registry} answers {status} for {what}{detail}", status=status)


def _spoken(path: str) -> str:
    """Return what an API path is about, in the words of a reference."""
    for kind in ("manifests", "blobs", "tags"):
        name, found, rest = path.removeprefix("/v2/").partition(f"/{kind}/")
        if found and kind == "tags":
            return name
        if found and kind == "blobs":
            return f"blob {rest} of {name}"
        if found:
            return f"{name}{'@' if ':' in rest else ':'}{rest}"
    return path


def _detail(response: Response, registry: str) -> str:
    """Return what the registry says about an error, fit for one line of a terminal."""
    try:
        node = Node.parse(read_bounded(response, _MAX_ERROR, registry), "error")
        texts = [child.text("message") or child.text("code") for child in node.children("errors")]
    except (ImageInvalid, RegistryError, Broken):
        return ""
    text = "".join(c if c.isprintable() else " " for c in "; ".join(filter(None, texts)))
    return f": {text[:200]}" if text else ""


def _retry_after(value: str | None) -> float | None:
    """Return the seconds that a ``Retry-After`` header asks for (RFC 9110, section 10.2.3)."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value.strip()[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _body_from(response: Response, position: int, registry: str) -> Iterator[bytes]:
    """Yield the body from ``position`` of the blob on, whether the server resumed there or began anew."""
    skip = position
    if response.status == 206:
        matched = _CONTENT_RANGE.fullmatch(response.header("content-range") or "")
        if matched is None or int(matched[1]) > position:
            raise RegistryInvalid(registry, f"{registry} sends another range than the one asked for")
        skip = position - int(matched[1])
    for chunk in response.chunks():
        if skip >= len(chunk):
            skip -= len(chunk)
            continue
        yield chunk[skip:] if skip else chunk
        skip = 0


def _tags_of(data: bytes, registry: str) -> tuple[str, ...]:
    try:
        node = Node.parse(data, "list of tags")
        return node.texts("tags") if node.members.get("tags") is not None else ()
    except ImageInvalid as error:
        raise RegistryInvalid(registry, f"{registry}: {error}") from error
