"""Whether a request may pass: by its credentials, by a script, or by the rules of the service."""

from __future__ import annotations

from dataclasses import replace

from keyrot_middleware.testing.asked import Asked
from keyrot_middleware.testing.catalogue import Catalogue
from keyrot_middleware.testing.key_errors import plain
from keyrot_middleware.testing.quota import QuotaBook
from keyrot_middleware.testing.replies import Reply
from keyrot_middleware.testing.routes import GENERATING, Route
from keyrot_middleware.testing.scripted import Scripted
from keyrot_middleware.testing.scripts import Scripts
from keyrot_middleware.testing.server import HttpRequest
from keyrot_middleware.testing.stored import StoredThings, named_things

__all__ = ["MODEL_VERBS", "SPEAKING", "Judge", "credentials"]

SPEAKING = frozenset({"generateContent", "streamGenerateContent"})
_CHARGED = GENERATING | {"interactions.create"}
MODEL_VERBS = _CHARGED | {"countTokens", "predictLongRunning", "batches.create"}
_NO_CONTENTS = Scripted(
    400,
    plain(
        400,
        "INVALID_ARGUMENT",
        "* GenerateContentRequest.contents: contents is not specified\n",
    ),
    name="NO_CONTENTS",
)
# The SDK sends no key with the bytes of an upload: the session's address is the credential.
_KEYLESS = frozenset({"upload.chunk"})


class Judge:
    """Decides on a reply, and books what it costs.

    Args:
        book: The quotas.
        scripts: What the test wants.
        models: Which models there are.
        things: Whose files and caches there are.
    """

    def __init__(
        self, book: QuotaBook, scripts: Scripts, models: Catalogue, things: StoredThings
    ) -> None:
        self._book = book
        self._scripts = scripts
        self._models = models
        self._things = things

    def decide(self, asked: Asked, request: HttpRequest) -> tuple[Asked, Scripted]:
        """Decide what the request gets: what its credentials, a script, or the rules say."""
        verb, keys = asked.route.verb, credentials(asked.route, request)
        if verb in _KEYLESS:
            return asked, Reply.OK
        if len(keys) != 1:
            return asked, _without_one_key(keys, request)
        read = verb.endswith((".list", ".get"))
        scripted = self._scripts.take(asked.key.label if asked.key else None, read=read)
        if scripted is not None:
            if scripted.counts:
                self._count(asked)
            return asked, scripted
        return self._by_rule(asked, request) if asked.key else (asked, Reply.KEY_INVALID)

    def _by_rule(self, asked: Asked, request: HttpRequest) -> tuple[Asked, Scripted]:
        verb = asked.route.verb
        if not verb:
            return asked, Reply.NOT_FOUND_HTML
        if foreign := self._foreign(asked, request):
            denied = Reply.FILE_DENIED if foreign.startswith("files/") else Reply.CACHE_DENIED
            return replace(asked, resource=foreign), denied
        if verb not in MODEL_VERBS:
            return asked, Reply.OK
        if not self._models.serves(asked.route.model):
            return asked, Reply.MODEL_NOT_FOUND
        return self._charge(asked) if verb in _CHARGED else (asked, Reply.OK)

    def _charge(self, asked: Asked) -> tuple[Asked, Scripted]:
        account, requests = self._account(asked), _requests(asked)
        broken = self._book.charge(*account, requests=requests, tokens=asked.tokens)
        if broken:
            wait_s = self._book.wait_s(*account, requests=requests, tokens=asked.tokens)
            return replace(asked, broken=tuple(broken), wait_s=wait_s), Reply.QUOTA
        if asked.route.verb in SPEAKING and not asked.body.get("contents"):
            return asked, _NO_CONTENTS
        return asked, Reply.OK

    def _count(self, asked: Asked) -> None:
        if asked.key and asked.route.verb in _CHARGED:
            self._book.count(*self._account(asked), requests=_requests(asked), tokens=asked.tokens)

    def _account(self, asked: Asked) -> tuple[str, str, float]:
        return (asked.key.project if asked.key else "", asked.bucket, asked.now)

    def _foreign(self, asked: Asked, request: HttpRequest) -> str:
        """Return the first stored thing that the body names and the key's project has not."""
        if b"files/" not in request.body and b"cachedContents/" not in request.body:
            return ""
        if asked.route.verb == "upload.start" or asked.key is None:
            return ""
        project = asked.key.project
        names = named_things(asked.body)
        return next((name for name in names if self._things.get(name, project) is None), "")


def credentials(route: Route, request: HttpRequest) -> list[str]:
    """Return every key of a request: those in headers, and the one in the query."""
    values = request.values("x-goog-api-key")
    return [*values, route.query["key"]] if "key" in route.query else values


def _without_one_key(keys: list[str], request: HttpRequest) -> Scripted:
    if keys:
        return Reply.MULTIPLE_KEYS
    # A key that is sent as a bearer token is taken for one of OAuth (GEMINI.md A5).
    return Reply.TOKEN_UNSUPPORTED if request.values("authorization") else Reply.UNREGISTERED


def _requests(asked: Asked) -> int:
    # One request an item of the batch (GEMINI.md B5).
    batch = asked.route.verb == "batchEmbedContents"
    return len(asked.body.get("requests") or ()) if batch else 1
