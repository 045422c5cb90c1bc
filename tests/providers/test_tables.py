"""The failure tables of the providers, beside the refusals of refusals.jsonl."""

import pytest

from keyrot_middleware import providers
from keyrot_middleware.core.failures import (
    CLASSES,
    FIRST_RULES,
    KEY_REJECTIONS,
    LAST_RULES,
    METHOD_FAILURES,
    OF_PROJECT,
    REJECTIONS,
    REQUEST_FAILURES,
    FailureFacts,
    Implies,
    Rule,
    find_problem,
    of_billing,
    of_model,
    refusal_codes,
    rejected,
)
from keyrot_middleware.core.model import MODEL_SCOPES, CallInfo, Scope

METHOD_SCOPES = (Scope.KEY_VERB, Scope.PROJECT_CACHE)

NOW = 1_790_000_000.0
"""21 September 2026, 14:13:20 UTC; the next minute begins in 40 s."""


@pytest.mark.parametrize("platform", providers.platforms())
def test_a_failure_class_is_about_the_same_everywhere(platform: str) -> None:
    """What a block means to selection and reports follows from its name alone."""
    for rule in providers.of(platform).rules:
        assert rule.rejected == (rule.name in REJECTIONS), rule.name
        assert (rule.rejected and rule.scope is Scope.KEY) == (rule.name in KEY_REJECTIONS)
        is_of_model = rule.scope is not Scope.NONE and Implies.MODEL in CLASSES[rule.name]
        assert (rule.scope in MODEL_SCOPES) == is_of_model, rule.name
        assert (rule.scope in METHOD_SCOPES) == (rule.name in METHOD_FAILURES), rule.name
        assert (rule.scope is Scope.PROJECT) == (rule.name in OF_PROJECT), rule.name


def test_what_is_not_the_fault_of_the_request_does_not_say_so() -> None:
    """A judgement separates a program's own mistakes from calls that fail for another reason."""
    own = {"bad_request", "not_found", "too_large", "conflict", "cancelled", "affinity"}
    assert own == REQUEST_FAILURES


OF_ALL = {r.name: r.implies for r in (*FIRST_RULES, *LAST_RULES) if r.implies is not None}


@pytest.mark.parametrize("platform", providers.platforms())
def test_a_table_defines_its_classes_alone_and_as_all_others_do(platform: str) -> None:
    """Another provider may not be loaded, or be loaded first."""
    rules = providers.of(platform).rules
    assert find_problem(rules, OF_ALL) == find_problem(rules) == ""


@pytest.mark.parametrize(
    ("rule", "problem"),
    [
        (Rule("key_invald", (401,)), '"key_invald". Did you mean "key_invalid"?'),
        (Rule("something_else", (401,)), 'no row defines its failure class "something_else".'),
        (
            rejected("too_large"),
            '"too_large" implies VALUE|REFUSAL|PERSON|NEW_VALUE, elsewhere REQUEST; ',
        ),
    ],
)
def test_a_row_without_a_meaning_or_with_another_one_is_a_problem(rule: Rule, problem: str) -> None:
    """The nearest name is one of the table or of those that are loaded."""
    own = rejected("key_invalid"), Rule("key_invalid", (403,))
    assert problem in find_problem((*own, rule), OF_ALL)
    assert find_problem(own, OF_ALL) == ""


def test_two_meanings_in_one_table_are_a_problem() -> None:
    """Those of a class that no other table has."""
    problem = find_problem((of_model("no_seat"), of_billing("no_seat")))
    assert problem == (
        'its failure class "no_seat" implies PERSON, elsewhere MODEL; give it another name'
    )


@pytest.mark.parametrize(
    ("rules", "code"),
    [
        ([rejected("key_invalid", (403, 401)), rejected("key_invalid", (401,))], 403),
        ([rejected("key_invalid", (403, 401), exhausted_code=401)], 401),
        ([rejected("key_invalid", text="^no")], 401),
        ([of_billing("credit_depleted", (402,))], None),
    ],
)
def test_the_code_of_a_class_is_the_first_of_its_first_row(rules: list[Rule], code: object) -> None:
    """Unless the row names one; what time ends has none."""
    assert refusal_codes(rules).get(rules[0].name) == code


def test_a_rejection_that_no_row_of_a_provider_has_is_a_401() -> None:
    """Another version of its table, which shared the state, had one; an unknown word says none."""
    provider = providers.of("openai")
    assert provider.rejection_code(["key_expired"]) == (401, "key_expired")
    assert provider.rejection_code(["key_of_tomorrow"]) == (429, "")


@pytest.mark.parametrize("name", providers.platforms())
def test_a_body_that_is_nobodys_penalizes_no_key(name: str) -> None:
    """A proxy or a login page stands in front of the provider; a 429 of a gateway cools a model."""
    for status in (400, 401, 402, 403, 404, 412, 429, 498, 500, 503, 529):
        for body in ("<html></html>", "", None, [], {}, {"error": 1}, {"detail": 2}):
            facts = FailureFacts(status, body)
            verdict = providers.of(name).classify(facts, CallInfo("m", "chat"), NOW)
            assert verdict.scope in (Scope.NONE, Scope.KEY_MODEL), (status, body)


def test_what_people_write_names_no_stored_thing() -> None:
    """A message that is an id and nothing else goes with any key; a field for ids does not."""
    provider = providers.of("openai")
    route = provider.route("POST", "https://api.openai.com/v1/responses")
    assert route is not None
    said = provider.read_request(route, {"model": "m", "input": "file-abcdefgh"})
    named = provider.read_request(route, {"model": "m", "tools": [{"file_ids": ["file-abcdefgh"]}]})
    assert (said.resources, said.bound_to_owner) == ((), False)
    assert (named.resources, named.bound_to_owner) == (("file-abcdefgh",), True)


def test_a_background_response_is_a_job_that_is_not_made_twice() -> None:
    """It costs money though its connection is lost; what a program waits for may be sent again."""
    provider = providers.of("openai")
    route = provider.route("POST", "https://api.openai.com/v1/responses")
    assert route is not None
    given = [provider.read_request(route, {"model": "m", "background": b}) for b in (True, False)]
    assert [info.idempotent for info in given] == [False, True]


@pytest.mark.parametrize("platform", providers.platforms())
@pytest.mark.parametrize(("exact", "delay"), [("1500", 1.5), ("0", 2.0), ("soon", 2.0)])
def test_the_exact_header_of_a_delay_is_read_first(platform: str, exact: str, delay: float) -> None:
    """OpenAI and Azure send both headers, and Azure a 0 in the exact one."""
    headers = {"retry-after-ms": exact, "retry-after": "2"}
    facts = FailureFacts(
        429, {"error": {"message": "Slow."}}, headers["retry-after"], headers=headers
    )
    assert providers.of(platform).parse_error(facts, NOW).retry_delay_s == delay
