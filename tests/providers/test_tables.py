"""The tables of all providers use one vocabulary of failure classes."""

from __future__ import annotations

import pytest

from keyrot_middleware import providers
from keyrot_middleware.core.failures import (
    KEY_REJECTIONS,
    METHOD_FAILURES,
    MODEL_FAILURES,
    REJECTIONS,
)
from keyrot_middleware.core.model import MODEL_SCOPES, Scope

METHOD_SCOPES = (Scope.KEY_VERB, Scope.PROJECT_CACHE)


@pytest.mark.parametrize("platform", providers.platforms())
def test_a_failure_class_is_about_the_same_everywhere(platform: str) -> None:
    """What a block means to selection and reports follows from its name alone."""
    for rule in providers.of(platform).rules:
        assert rule.rejected == (rule.name in REJECTIONS), rule.name
        assert (rule.rejected and rule.scope is Scope.KEY) == (rule.name in KEY_REJECTIONS)
        assert (rule.scope in MODEL_SCOPES) == (rule.name in MODEL_FAILURES), rule.name
        assert (rule.scope in METHOD_SCOPES) == (rule.name in METHOD_FAILURES), rule.name
