"""Interactions, agents and environments belong to a project: calls about them go with its key."""

from typing import Any

import pytest
from support.interactions import SDK, SDK_WARNINGS, create, error_type, keys_of
from support.modes import MODEL, MODES

pytestmark = SDK_WARNINGS
since_2 = pytest.mark.skipif(SDK < (2, 0), reason="1.x has interactions and webhooks only")


def made_by(key: str, gemini: Any, client: Any) -> str:
    """Create an interaction with this key, of which the pool learns the id."""
    while True:
        name = client.interactions.create(model=MODEL, input="hello").id
        if gemini.log[-1].key == key:
            gemini.reset_log()
            return str(name)


@pytest.mark.parametrize("mode", MODES)
def test_the_next_turn_goes_with_the_key_of_the_last(mode, gemini, pool, connect) -> None:
    """However many keys are free, and with any other client too."""
    pool("A", "B", "C")
    name = made_by("B", gemini, connect())
    other = connect(gemini.key("C").value)
    assert create(mode, other, 4, previous_interaction_id=name) == ["ok from B"] * 4
    assert keys_of(gemini) == ["B"] * 4


def test_the_id_of_a_stream_is_learned(gemini, pool, connect) -> None:
    """From its first event on: a stream that is closed early has created an interaction."""
    pool("A", "B", "C")
    client = connect()
    stream = client.interactions.create(model=MODEL, input="hello", stream=True)
    name = next(iter(stream)).model_dump(mode="json")["interaction"]["id"]
    stream.close()
    create("sync", client, 2, previous_interaction_id=name)
    assert len(set(keys_of(gemini))) == 1


def test_what_is_stored_is_read_cancelled_and_deleted_with_its_key(gemini, pool, connect) -> None:
    pool("A", "B", "C")
    client = connect(gemini.key("C").value)
    name = made_by("B", gemini, client)
    assert client.interactions.get(name).id == name
    client.interactions.cancel(name)
    client.interactions.delete(name)
    with pytest.raises(error_type("NotFoundError"), match=f"{name} not found"):
        client.interactions.get(name)
    assert keys_of(gemini) == ["B"] * 4


@since_2
def test_an_agent_of_the_program_goes_with_its_owner(gemini, pool, connect) -> None:
    """Also an environment; Google's own have no owner, and any key serves them."""
    pool("A", "B", "C", strategy="fill")
    client = connect(gemini.key("B").value)
    client.agents.create(id="mine", base_agent="deep-research-preview")
    place = client.environments.create()
    assert keys_of(gemini) == ["B", "B"]
    gemini.reset_log()
    other = connect(gemini.key("C").value)
    create("sync", other, agent="mine", background=False)
    create("sync", other, environment=place.id)
    other.agents.get("mine")
    other.environments.delete(place.id)
    create("sync", other, agent="deep-research-preview")
    assert [(request.verb, request.key) for request in gemini.log] == [
        ("interactions.create", "B"),
        ("interactions.create", "B"),
        ("agents.get", "B"),
        ("environments.delete", "B"),
        ("interactions.create", "A"),
    ]


# One process creates it, another goes on ---------------------------------------------------------
