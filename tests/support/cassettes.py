"""Record and replay a pool's traffic with vcrpy, without keys in the cassettes.

    with recorder({"key_1": first, "key_2": second}).use_cassette("cassettes/failover_sync.yaml"):
        keyrot_middleware.install(keys=[first, second])
        genai.Client().models.generate_content(…)

The file holds the name of each key in this mapping, in a header that requests are matched by, so
the 429 of one key is not replayed for another. It needs vcrpy 9.4 or newer, which buffers streams,
and sees of aiohttp what the program sends, not the pool's requests.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import vcr

from keyrot_middleware.providers.keys import mask_keys

KEY_NAME = "x-key-name"
GOOGLE = "https://generativelanguage.googleapis.com"
KEPT = {"content-type", "retry-after"}
"""Other headers are not recorded: credentials, cookies, dates, versions."""


def recorder(keys: Mapping[str, str], **more: Any) -> Any:
    """Return a `vcr.VCR` whose cassettes hold the names of *keys* in place of their values."""
    made = vcr.VCR(
        before_record_request=partial(_name, {value: name for name, value in keys.items()}),
        before_record_response=_hide,
        decode_compressed_response=True,
        match_on=("method", "host", "same_call", "same_key"),
        **more,
    )
    made.register_matcher("same_key", lambda a, b: a.headers[KEY_NAME] == b.headers[KEY_NAME])
    # The version of the API, which the path begins with, differs between versions of the SDK.
    made.register_matcher("same_call", lambda a, b: a.path.split("/")[2:] == b.path.split("/")[2:])
    return made


def _name(names: Mapping[str, str], request: Any) -> Any:
    """Replace a key by its name, and the address of a fake by Google's; vcrpy calls it twice."""
    name = request.headers.get(KEY_NAME) or names[request.headers["x-goog-api-key"]]
    request.headers = {KEY_NAME: name, "content-type": "application/json"}
    request.uri = GOOGLE + urlsplit(request.uri)._replace(scheme="", netloc="").geturl()
    return request


def _hide(response: Any) -> Any:
    """Leave out most headers, and what has the form of a key."""
    headers = response["headers"].items()
    text = mask_keys(response["body"]["string"].decode())
    return {
        **response,
        "headers": {name: values for name, values in headers if name.lower() in KEPT},
        "body": {"string": text.encode()},
    }
