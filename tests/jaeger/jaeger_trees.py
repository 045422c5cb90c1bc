"""The trees that Jaeger must show for the cases of examples/jaeger, in their order.

A line for each span: name, kind, status, then what tells the story. `!` is an event of the span.
"""

from __future__ import annotations

__all__ = ["TREES"]

TREES = (
    """
1 the first key serves  internal
  generate_content gemini-2.5-flash  client  count=1
    attempt free_1  internal  number=1  outcome=success
""",
    """
2 the second key serves  internal
  generate_content gemini-2.5-flash  client  count=2
    attempt free_1  internal  ERROR 429 quota_minute  number=1  outcome=retry  error.type=429
      ! keyrot.cooldown free_1 quota_minute project_model
    attempt free_2  internal  number=2  outcome=success
""",
    """
3 the third key serves  internal
  generate_content gemini-2.5-flash  client  count=3
    attempt free_1  internal  ERROR 429 quota_day  number=1  outcome=retry  error.type=429
      ! keyrot.cooldown free_1 quota_day project_model
    attempt free_2  internal  ERROR 400 key_invalid  number=2  outcome=retry  error.type=400
      ! keyrot.key.retired free_2 key_invalid key
    attempt paid_1  internal  number=3  outcome=success
""",
    """
4 a stream  internal
  generate_content gemini-2.5-flash  client  stream=True  count=2
    attempt free_1  internal  ERROR 429 quota_minute  number=1  outcome=retry  error.type=429
      ! keyrot.cooldown free_1 quota_minute project_model
    attempt free_2  internal  number=2  outcome=success
""",
    """
5 every key is busy for a second  internal
  generate_content gemini-2.5-flash  client  count=4
    ! keyrot.wait key
    attempt free_1  internal  ERROR 429 rate_limit  number=1  outcome=retry  error.type=429
      ! keyrot.cooldown free_1 rate_limit project_model
    attempt free_2  internal  ERROR 429 rate_limit  number=2  outcome=retry  error.type=429
      ! keyrot.cooldown free_2 rate_limit project_model
    attempt paid_1  internal  ERROR 429 rate_limit  number=3  outcome=retry  error.type=429
      ! keyrot.cooldown paid_1 rate_limit project_model
    attempt free_1  internal  number=4  outcome=success
""",
    """
6 a tool call  internal
  generate_content gemini-2.5-flash  client  count=2
    ! keyrot.wait retry
    attempt free_1  internal  ERROR 503 overloaded  number=1  outcome=retry  error.type=503
    attempt free_1  internal  number=2  outcome=success
  look at the sky  internal
  generate_content gemini-2.5-flash  client  count=1
    attempt free_1  internal  number=1  outcome=success
""",
    """
7 no key can serve  internal
  generate_content gemini-2.5-flash  client  ERROR 402 credit_depleted  count=3  error.type=402
    attempt free_1  internal  ERROR 429 quota_day  number=1  outcome=retry  error.type=429
      ! keyrot.cooldown free_1 quota_day project_model
    attempt free_2  internal  ERROR 403 key_leaked  number=2  outcome=retry  error.type=403
      ! keyrot.key.retired free_2 key_leaked key
    attempt paid_1  internal  ERROR 402 credit_depleted  number=3  outcome=fail  error.type=402
      ! keyrot.cooldown paid_1 credit_depleted billing
  generate_content gemini-2.5-flash  client  ERROR no key can serve  count=0  error.type=429
    ! keyrot.pool.exhausted free_1: quota_day, free_2: key_leaked, …, paid_1: credit_depleted
""",
    """
8 a bad request  internal
  generate_content gemini-2.5-flash  client  ERROR 400 bad_request  count=1  error.type=400
    attempt free_1  internal  ERROR 400 bad_request  number=1  outcome=fail  error.type=400
""",
)
