import pytest

from lwm.evals.score import fraction_found, wilson_interval


@pytest.mark.parametrize(
    ("response", "numbers", "fraction"),
    [
        (" 1234567", ["1234567"], 1.0),
        ("The special magic Oslo number is 1234567.", ["1234567"], 1.0),
        ("123456", ["1234567"], 0.0),
        ("1,234,567", ["1234567"], 0.0),
        ("", ["1234567"], 0.0),
        ("Oslo: 1111111, Rome: 2222222", ["1111111", "2222222"], 1.0),
        ("Oslo: 1111111, Rome: 1111111", ["1111111", "2222222"], 0.5),
    ],
)
def test_a_number_is_found_when_all_its_digits_stand_in_the_response(response, numbers, fraction):
    assert fraction_found(response, numbers) == fraction


# Values of scipy.stats.binomtest(k, n).proportion_ci(method="wilson").
@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [
        (0, 10, 0.0, 0.2775327998628898),
        (10, 10, 0.7224672001371107, 1.0),
        (5, 10, 0.236593090512564, 0.763406909487436),
        (3, 3, 0.43850294916391415, 1.0),
        (97, 100, 0.9154797162205, 0.9897454759758),
        (0, 0, 0.0, 1.0),
    ],
)
def test_wilson_interval(correct, total, low, high):
    assert wilson_interval(correct, total) == pytest.approx((low, high), abs=1e-6)
