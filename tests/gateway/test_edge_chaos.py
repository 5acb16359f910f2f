"""A replica and the gateway are killed under load; the benchmark's own comparison is the judge."""

from benchmarks.gateway_chaos import measure


def test_no_answer_is_lost_when_a_replica_and_the_gateway_are_killed() -> None:
    figures = measure(sessions=24, turns=8)
    assert figures["finished"] == 24
    assert figures["answers"] == 24 * 8
    assert figures["lost"] == 0
    assert figures["never_delivered_but_trained"] == 0
    assert figures["not_contiguous"] == 0
    assert figures["wrong_answers"] == []
    assert figures["resent_by_clients"] > 0
    assert figures["retried_on_another_replica"] > 0
