"""How messages write names, times and numbers."""

from datetime import timedelta

from keyrot_middleware.core.wording import did_you_mean, of_all, plural, remaining, short_time, utc


def test_a_part_of_a_number_has_a_noun_in_the_right_form() -> None:
    """Only the one of one is singular."""
    counts = (0, 1), (1, 1), (1, 2), (2, 2), (0, 1_200)
    assert [of_all(*one, "key") for one in counts] == [
        "0 of 1 keys",
        "1 of 1 key",
        "1 of 2 keys",
        "2 of 2 keys",
        "0 of 1,200 keys",
    ]


def test_times_numbers_and_names_as_people_read_them() -> None:
    """In one unit, precise enough to decide whether to wait; beyond the calendar at its end."""
    seconds = (-3, 89, 840, 18_000, 259_200)
    spoken = ["in 0 s", "in 89 s", "in 14 min", "in 5 h", "in 3 days"]
    assert [remaining(s) for s in seconds] == spoken
    assert [plural(n, "key") for n in (0, 1, 1200)] == ["0 keys", "1 key", "1,200 keys"]
    assert short_time("2026-01-02T08:00:59Z") == "2026-01-02 08:00Z"
    moments = (0.0, 253402300799.9, 1e12, 1e300, -1e12)
    assert [utc(moment).year for moment in moments] == [1970, 9999, 9999, 9999, 1]
    assert utc(1e12).utcoffset() == timedelta(0)
    assert did_you_mean("Stratgy", ("strategy", "pool")) == ' Did you mean "strategy"?'
    assert did_you_mean("STRATGY", ("STRATEGY", "POOL")) == ' Did you mean "STRATEGY"?'
    assert did_you_mean("xyz", ("strategy", "pool")) == ""
