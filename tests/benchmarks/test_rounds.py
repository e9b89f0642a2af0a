"""How several rounds of a benchmark become one result."""

from benchmarks.inflight.rounds import middle


def test_the_middle_of_rounds_is_the_median_of_each_figure_and_every_sample():
    rounds = [
        {"p99_s": 9.0, "jobs": {"throughput": 1.0, "latencies_s": [1.0]}},
        {"p99_s": 1.0, "jobs": {"throughput": 2.0, "latencies_s": [2.0, 3.0]}},
        {"p99_s": 2.0, "jobs": {"throughput": 9.0, "latencies_s": []}},
    ]
    assert middle(rounds) == {
        "p99_s": 2.0,
        "jobs": {"throughput": 2.0, "latencies_s": [1.0, 2.0, 3.0]},
    }


def test_one_round_stays_as_it_is():
    assert middle([{"p50_s": 1.5, "plot": [0.25]}]) == {"p50_s": 1.5, "plot": [0.25]}
