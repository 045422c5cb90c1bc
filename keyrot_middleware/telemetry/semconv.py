"""The names of our spans, events and attributes.

The `gen_ai.*` names follow the GenAI semantic conventions. Their Python constants are deprecated
since the conventions moved to a repository of their own, so the names are spelled out here.
"""

from __future__ import annotations

from typing import Final

INSTRUMENTATION: Final = "keyrot_middleware"
"""The instrumentation scope, and the logger."""

# The logical span: one per model request, with all its attempts.
GEN_AI_OPERATION: Final = "gen_ai.operation.name"
GEN_AI_PROVIDER: Final = "gen_ai.provider.name"
GEN_AI_REQUEST_MODEL: Final = "gen_ai.request.model"
GEN_AI_REQUEST_STREAM: Final = "gen_ai.request.stream"
GEN_AI_RESPONSE_ID: Final = "gen_ai.response.id"
GEN_AI_RESPONSE_MODEL: Final = "gen_ai.response.model"
GEN_AI_FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
GEN_AI_FIRST_CHUNK: Final = "gen_ai.response.time_to_first_chunk"
"""Seconds."""
GEN_AI_INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
GEN_AI_OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
GEN_AI_CACHED_TOKENS: Final = "gen_ai.usage.cache_read.input_tokens"
GEN_AI_THOUGHT_TOKENS: Final = "gen_ai.usage.reasoning.output_tokens"
SERVER_ADDRESS: Final = "server.address"
SERVER_PORT: Final = "server.port"

PROVIDER: Final = "gcp.gemini"
"""The Developer API."""
EXPRESS_PROVIDER: Final = "gcp.vertex_ai"
"""Vertex AI in express mode."""

# Both kinds of span.
ERROR_TYPE: Final = "error.type"
HTTP_STATUS: Final = "http.response.status_code"
POOL: Final = "keyrot.pool.name"
KEY_ID: Final = "keyrot.key.id"
"""The key's id, never its value; on a logical span the last one used."""

ATTEMPT_COUNT: Final = "keyrot.attempt.count"
"""On the logical span, ours or that of a parent instrumentation."""

COST: Final = "keyrot.cost"
"""US dollars by the price list: of an attempt, and on a logical span of all its attempts."""

# An attempt.
KEY_PROJECT: Final = "keyrot.key.project"
KEYS_EXCLUDED: Final = "keyrot.key.excluded_count"
ATTEMPT_NUMBER: Final = "keyrot.attempt.number"
"""From 1."""
ATTEMPT_OUTCOME: Final = "keyrot.attempt.outcome"
FAILURE_CLASS: Final = "keyrot.failure.class"
WAIT_TIME: Final = "keyrot.acquire.wait_time"
"""Seconds it took to acquire the key."""
COOLDOWN_DURATION: Final = "keyrot.cooldown.duration"
"""Seconds."""

# Metrics only; their names are in instruments.py.
KEY_STATE: Final = "keyrot.key.state"
"""One of the six states, such as `available` or `cooling_down`."""
QUOTA: Final = "keyrot.quota"
"""`rpm`, `tpm`, `rpd` or `usd`."""
TOKEN_TYPE: Final = "gen_ai.token.type"
"""`input` or `output`."""
TOKEN_MODALITY: Final = "gen_ai.token.modality"
"""`unknown`: only the sum over text, images and audio is read from a response."""

# Values of ATTEMPT_OUTCOME.
SUCCESS: Final = "success"
RETRY: Final = "retry"
"""It failed, and another attempt followed."""
FAIL: Final = "fail"
"""It failed, and so did the call."""
ABANDONED: Final = "abandoned"
"""Cancelled, or its stream was closed before the end."""

# Events: cooldown and retired on the attempt that caused them, the others on the call.
EVENT_WAIT: Final = "keyrot.wait"
WAIT_SECONDS: Final = "keyrot.wait.seconds"
WAIT_REASON: Final = "keyrot.wait.reason"
"""`key` or `retry`."""
EVENT_COOLDOWN: Final = "keyrot.cooldown"
COOLDOWN_SCOPE: Final = "keyrot.cooldown.scope"
EVENT_RETIRED: Final = "keyrot.key.retired"
EVENT_REPLACED: Final = "keyrot.key.replaced"
EVENT_DEGRADED: Final = "keyrot.state.degraded"
EVENT_FALLBACK: Final = "keyrot.model_fallback"
FALLBACK_FROM: Final = "keyrot.model_fallback.from"
"""The model that could not serve the request."""
FALLBACK_TO: Final = "keyrot.model_fallback.to"
"""The model that the request went on to."""
EVENT_EXHAUSTED: Final = "keyrot.pool.exhausted"
BLOCKED_KEYS: Final = "keyrot.pool.blocked_keys"
"""Texts such as `flash_01: quota_day until 2026-01-02 08:00:00Z`."""
