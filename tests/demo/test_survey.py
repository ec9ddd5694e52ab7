import pytest

from lwm.demo.survey import DEPTHS, MAX_ROUNDS, Survey, survey

LENGTHS = (1024, 2048, 4096, 8192, 16384)


class Machine:
    """A task that takes time: so many seconds to compile each shape, then so many a token."""

    def __init__(self, compiling, per_token):
        self.now, self.compiling, self.per_token = 0.0, compiling, per_token
        self.shapes, self.asked = set(), []

    def run(self, cells):
        length = cells[0].context_length
        assert {cell.context_length for cell in cells} == {length}
        if (length, len(cells)) not in self.shapes:
            self.shapes.add((length, len(cells)))
            self.now += self.compiling
        self.now += self.per_token * length * len(cells)
        self.asked += cells
        return [vars(cell) for cell in cells]

    def survey(self, seconds):
        found = survey(self.run, LENGTHS, float(seconds), clock=lambda: self.now)
        assert [vars(cell) for cell in self.asked] == found.rows
        return found


def lengths(found):
    return [row["context_length"] for row in found.rows]


def test_with_time_enough_the_whole_grid_is_asked_once():
    machine = Machine(1.0, 1e-6)
    machine.survey(1000)
    assert len(machine.asked) == len(set(machine.asked)) == len(LENGTHS) * len(DEPTHS) * MAX_ROUNDS


def test_seconds_per_prompt_leave_compiling_out():
    found = Machine(5.0, 1e-3).survey(10_000)
    assert found.seconds_per_prompt == pytest.approx({length: 1e-3 * length for length in LENGTHS})


def test_it_ends_in_time_and_a_slower_machine_gets_less_far():
    reached = []
    for per_token in (1e-5, 1e-4, 1e-3, 1e-2):
        machine = Machine(2.0, per_token)
        reached.append(len(machine.survey(100.0).rows))
        assert machine.now <= 100
    assert reached == sorted(reached, reverse=True)
    assert reached[0] > reached[-1]


def test_long_lengths_keep_their_share_of_the_time():
    found = Machine(1.0, 3e-4).survey(60.0)
    assert set(lengths(found)) >= {1024, 2048, 4096, 8192}


def test_the_shortest_length_is_always_asked_once():
    assert lengths(Machine(50.0, 1.0).survey(1.0)) == [1024] * len(DEPTHS)


def test_a_length_cut_short_spans_the_text():
    asked = [row["depth_percent"] for row in Machine(0.0, 1e-3).survey(165.0).rows if row["context_length"] == 16384]
    assert 0 < len(asked) < 5
    assert asked == list(DEPTHS[: len(asked)])


def test_what_can_be_read_grows_with_the_root_of_the_time_and_shrinks_with_the_time():
    grid = Survey(seconds_per_prompt={1024: 0.5, 4096: 2.0})
    assert [grid.readable_tokens(seconds) for seconds in (2.0, 8.0, 0.5)] == [4096, 8192, 1024]
