"""The names of our spans, events and attributes; docs/telemetry.md says what each means.

The `gen_ai.*` names follow the GenAI semantic conventions. Their Python constants are deprecated
since the conventions moved to a repository of their own, so the names are spelled out here.
"""

from __future__ import annotations

from typing import Final

INSTRUMENTATION: Final = "keyrot_middleware"
"""The instrumentation scope, and the logger."""

# The span of a call.
GEN_AI_OPERATION: Final = "gen_ai.operation.name"
GEN_AI_PROVIDER: Final = "gen_ai.provider.name"
GEN_AI_REQUEST_MODEL: Final = "gen_ai.request.model"
GEN_AI_REQUEST_STREAM: Final = "gen_ai.request.stream"
GEN_AI_RESPONSE_ID: Final = "gen_ai.response.id"
GEN_AI_RESPONSE_MODEL: Final = "gen_ai.response.model"
GEN_AI_FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
GEN_AI_FIRST_CHUNK: Final = "gen_ai.response.time_to_first_chunk"
GEN_AI_INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
GEN_AI_OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
GEN_AI_CACHED_TOKENS: Final = "gen_ai.usage.cache_read.input_tokens"
GEN_AI_THOUGHT_TOKENS: Final = "gen_ai.usage.reasoning.output_tokens"
SERVER_ADDRESS: Final = "server.address"
SERVER_PORT: Final = "server.port"
PROVIDER: Final = "gcp.gemini"
EXPRESS_PROVIDER: Final = "gcp.vertex_ai"
ATTEMPT_COUNT: Final = "keyrot.attempt.count"

# Both kinds of span.
ERROR_TYPE: Final = "error.type"
POOL: Final = "keyrot.pool.name"
KEY_ID: Final = "keyrot.key.id"
COST: Final = "keyrot.cost"

# An attempt.
HTTP_STATUS: Final = "http.response.status_code"
KEY_PROJECT: Final = "keyrot.key.project"
ATTEMPT_NUMBER: Final = "keyrot.attempt.number"
ATTEMPT_OUTCOME: Final = "keyrot.attempt.outcome"
FAILURE_CLASS: Final = "keyrot.failure.class"
WAIT_TIME: Final = "keyrot.acquire.wait_time"

# Events: cooldown and retired on the attempt that caused them, the others on the call.
EVENT_WAIT: Final = "keyrot.wait"
WAIT_SECONDS: Final = "keyrot.wait.seconds"
WAIT_REASON: Final = "keyrot.wait.reason"
EVENT_COOLDOWN: Final = "keyrot.cooldown"
EVENT_RETIRED: Final = "keyrot.key.retired"
COOLDOWN_SCOPE: Final = "keyrot.cooldown.scope"
COOLDOWN_DURATION: Final = "keyrot.cooldown.duration"
EVENT_DEGRADED: Final = "keyrot.state.degraded"
EVENT_FALLBACK: Final = "keyrot.model_fallback"
FALLBACK_FROM: Final = "keyrot.model_fallback.from"
FALLBACK_TO: Final = "keyrot.model_fallback.to"
EVENT_EXHAUSTED: Final = "keyrot.pool.exhausted"
BLOCKED_KEYS: Final = "keyrot.pool.blocked_keys"

# Metrics only; their names are in metrics.py.
KEY_STATE: Final = "keyrot.key.state"
QUOTA: Final = "keyrot.quota"
TOKEN_TYPE: Final = "gen_ai.token.type"
