"""FakeGemini: the Gemini API on a port of this machine, for tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from keyrot_middleware.core.model import Limits
from keyrot_middleware.testing.answers import ModelAnswer, count_tokens
from keyrot_middleware.testing.keys import Clock, FakeKey, QuotaUsage, Style, Tier, make_value
from keyrot_middleware.testing.replies import Scripted
from keyrot_middleware.testing.server import FakeServer, LoopbackServer
from keyrot_middleware.testing.service import Service


class FakeGemini(FakeServer):
    """A real HTTP and websocket server on 127.0.0.1 that behaves like the Gemini API.

    It has keys, projects, billing accounts and models, counts quotas in wall-clock minutes and
    Pacific days, and fails on demand in every observed way. Chats,
    embeddings and models are also served in OpenAI's protocol, under `/v1beta/openai/`. As Cloud
    Quotas it lists the limits of its projects, without a login. All methods may be called from any
    thread, before and while it runs.

    Examples:
        >>> with FakeGemini() as gemini:
        ...     key = gemini.add_key("free-1", tier="free", rpm=5)
        ...     client = genai.Client(api_key=key.value, http_options=gemini.http_options)

    Args:
        clock: The time of quota windows; None: the system clock. Delays are always real.
        keep_log: How many of the newest requests `log` keeps; None keeps all.
    """

    def __init__(self, clock: Clock | None = None, *, keep_log: int | None = None) -> None:
        super().__init__(clock, keep_log)
        self._service = Service(self.clock, self._log, self._keys, self._scripts, lambda: self.url)
        self._server = LoopbackServer(self._service.handle, self._service.upgrade)

    @property
    def http_options(self) -> dict[str, Any]:
        """The `http_options` of `genai.Client` for this server.

        The address, and no certificates: the client would load them although it uses plain HTTP,
        and take 100 ms to construct instead of 2.
        """
        return {
            "base_url": self.url,
            "client_args": {"verify": False},
            "async_client_args": {"verify": False, "ssl": False},
        }

    # Keys, projects and models.

    def add_key(
        self,
        label: str,
        *,
        project: str | None = None,
        billing_account: str | None = None,
        tier: Tier = "free",
        rpm: int | None = None,
        tpm: int | None = None,
        rpd: int | None = None,
        style: Style = "standard",
        value: str | None = None,
    ) -> FakeKey:
        """Add a key that the service accepts.

        Args:
            label: The key's name in the test.
            project: Keys of one project share quota and resources; None: its own, `project-LABEL`.
            billing_account: The project's; None: its own, `billing-PROJECT`.
            tier: `free` or `paid`; selects the quotas that an error names.
            rpm: Requests a minute of the project for every model; None: no change.
            tpm: Input tokens a minute, likewise.
            rpd: Requests a Pacific day, likewise.
            style: `standard` for `AIza…`, `auth` for `AQ.…`.
            value: The key's value; None: a random one.

        Raises:
            ValueError: If the label is taken or the style unknown.
        """
        project = project or f"project-{label}"
        account = billing_account or f"billing-{project}"
        key = self._keys.add(label, value or make_value(style), project, account, tier)
        self.limit(project, rpm=rpm, tpm=tpm, rpd=rpd)
        return key

    def limit(
        self,
        project: str,
        model: str | None = None,
        *,
        rpm: int | None = None,
        tpm: int | None = None,
        rpd: int | None = None,
    ) -> None:
        """Set limits of a project for one model's bucket, or for all; None: no change."""
        bucket = None if model is None else self._service.models.bucket(model)
        self._service.quotas.limit(project, Limits(rpm, tpm, rpd), bucket)

    def used(self, label: str, model: str) -> QuotaUsage:
        """Return the usage of the key's project for a model in this minute and day."""
        project = self.key(label).project
        bucket = self._service.models.bucket(model)
        return self._service.quotas.used(project, bucket, self.clock.time())

    def spend(self, label: str, model: str, requests: int = 1, tokens: int = 0) -> None:
        """Count requests and tokens against the key's project as if they had been sent."""
        project, clock = self.key(label).project, self.clock
        bucket = self._service.models.bucket(model)
        self._service.quotas.count(project, bucket, clock.time(), requests=requests, tokens=tokens)

    def alias(self, model: str, bucket: str) -> None:
        """Count requests for `model` under the quota of `bucket`, which errors then name."""
        self._service.models.aliases[model] = bucket

    def replace_model(self, model: str, by: str) -> None:
        """Answer requests for a model by another one, with whose quota they count.

        From the start the models that Google has replaced are answered so
        (docs/gemini-api.md#models-that-answer-under-old-names).

        Args:
            model: As in requests; itself as *by* ends that it is replaced.
            by: `modelVersion` of the replies.
        """
        self._service.models.answering[model] = by

    def remove_model(self, model: str, version: str = "") -> None:
        """Answer 404 for a model from now on.

        Args:
            model: Such as `gemini-3.1-pro-preview`; `v1` has no `-latest` alias in any case.
            version: The API version that lacks it, such as `v1`; empty: all of them.
        """
        self._service.models.removed.add((model, version))

    # The answers.

    def script_any(self, *replies: Scripted) -> None:
        """Answer the next requests of any key with these."""
        self._scripts.next[None].extend(replies)

    def always_any(self, reply: Scripted | None) -> None:
        """Answer every request with this, whatever its key, until changed; None ends it."""
        self._scripts.set_default(None, reply)

    def clear_scripts(self) -> None:
        """Remove all scripted replies."""
        self._scripts.clear()

    def pending(self, label: str | None = None) -> int:
        """Return how many scripted replies of a key, or of any, are unused."""
        return len(self._scripts.next.get(label, ()))

    def answer(self, content: ModelAnswer | Callable[[dict[str, Any]], ModelAnswer] | None) -> None:
        """Set what models answer.

        Args:
            content: A text; a part (`{"functionCall": …}`); a whole response (it has `candidates`);
                a function of the request's body (the native one, also for a request in OpenAI's
                protocol) that returns one of these, called in the server's thread; None: the
                default.
        """
        self._service.answers.answer = content

    def function_args(self, args: dict[str, Any] | None) -> None:
        """Set the arguments of function calls; None takes them from the schemas."""
        self._service.answers.function_args = args

    def tokens(self, count: Callable[[dict[str, Any]], int] | None) -> None:
        """Set how input tokens of a request's body are counted; None is a quarter of the text."""
        self._service.count_tokens = count or count_tokens

    def thoughts(self, count: int) -> None:
        """Set the `thoughtsTokenCount` of answers; 5 by default."""
        self._service.answers.thoughts = count

    def sign_thoughts(self, sign: bool = True) -> None:
        """Give answers a `thoughtSignature`, and answer 400 to a model that gets another's."""
        self._service.answers.signs_thoughts = sign

    # What is stored.

    def add_file(self, label: str, data: bytes, name: str = "") -> str:
        """Store a file that can be downloaded, of the key's project; return its name.

        Args:
            label: The key.
            data: The bytes.
            name: Such as `files/abc` or `fileSearchStores/x/media/y`; empty: a new file.
        """
        project, now = self.key(label).project, self.clock.time()
        return self._service.stored.add_file(project, data, name, now)

    def hold_operations(self, hold: bool = True) -> None:
        """Keep new operations pending until `finish_operation`; else the next read is done."""
        self._service.stored.holds_operations = hold

    def finish_operation(self, name: str, data: bytes = b"video") -> str:
        """End an operation with a video of its project; return the name of the video's file.

        Raises:
            KeyError: If there is no such operation.
        """
        return self._service.stored.finish_operation(name, data, self.clock.time())

    def delay(self, seconds: float) -> None:
        """Set the delay before every answer, in real seconds; 0 by default."""
        self._service.latency_s = seconds

    # The requests.

    def peak(self, label: str) -> int:
        """Return the highest number of concurrent requests and Live sessions of a key."""
        return self._log.peak(self.key(label).label)

    def sessions(self, label: str) -> int:
        """Return how many Live sessions of a key are open now.

        Raises:
            KeyError: If there is no such key.
        """
        return self._service.sessions[self.key(label).label]

    @property
    def quota_reads(self) -> list[str]:
        """The projects whose quotas were listed, as Cloud Quotas lists them; a page each."""
        return list(self._service.quota_reads)

    def wait_idle(self, timeout: float = 60.0) -> bool:
        """Wait until no request is in flight and no Live session open.

        Returns:
            False if `timeout` seconds passed.
        """
        return self._log.wait_idle(timeout)

    def reset_log(self) -> None:
        """Clear the log; used quota stays."""
        self._log.reset()
