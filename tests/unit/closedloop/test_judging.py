from __future__ import annotations

import pytest

from closedloop.judging import chance, score, verdict

RIGHT_BEFORE = {"base": [0.1] * 20, "current": [1.0] * 20, "candidate": [1.0] * 20}


@pytest.mark.parametrize(
    ("wanted", "given", "low", "high"),
    [
        ("Open Account.", "open account.", 1, 1),
        ("Open Account.", "", 0, 0),
        ("a b c d", "a b x d", 0.7, 0.8),
        ("a b c d", "d c b a", 0.2, 0.3),
        ("Straße", "Strasse", 1, 1),
    ],
)
def test_a_score_is_of_words_in_order(wanted: str, given: str, low: float, high: float) -> None:
    assert low <= score(wanted, given) <= high


@pytest.mark.parametrize(("wins", "losses", "p"), [(0, 0, 1), (5, 0, 1 / 32), (4, 0, 1 / 16), (3, 1, 5 / 16)])
def test_chance(wins: int, losses: int, p: float) -> None:
    assert chance(wins, losses) == pytest.approx(p)


def held(candidate: list[float], current: float = 0.5, base: float = 0.1) -> dict[str, list[float]]:
    return {"base": [base] * len(candidate), "current": [current] * len(candidate), "candidate": candidate}


def broken(count: int, to: float = 0.0) -> dict[str, list[float]]:
    return {**RIGHT_BEFORE, "candidate": [to] * count + [1.0] * (20 - count)}


@pytest.mark.parametrize(
    ("heldout", "regression", "fails"),
    [
        (held([1.0] * 5), RIGHT_BEFORE, []),
        (held([1.0] * 4), RIGHT_BEFORE, [0, 3]),
        (held([]), RIGHT_BEFORE, [0, 1, 2, 3]),
        (held([0.54] * 9), RIGHT_BEFORE, [1]),
        (held([1.0] * 9, base=0.97), RIGHT_BEFORE, [2]),
        (held([1.0] * 4 + [0.4] * 3), RIGHT_BEFORE, [3]),
        (held([1.0] * 9), broken(1, 0.85), []),
        (held([1.0] * 9), broken(2, 0.85), [5]),
        (held([1.0] * 9), broken(1), [4]),
        (held([0.2] * 9), broken(9), [1, 3, 4, 5]),
        (held([1.0] * 9), {"base": [], "current": [], "candidate": []}, []),
    ],
)
def test_every_rule_decides(
    heldout: dict[str, list[float]], regression: dict[str, list[float]], fails: list[int]
) -> None:
    found = verdict(heldout, regression)
    assert [n for n, rule in enumerate(found["rules"]) if not rule["holds"]] == fails
    assert found["better"] == (not fails)


def test_the_rules_are_told_with_their_numbers() -> None:
    told = [rule["what"] for rule in verdict(held([1.0] * 8), broken(1))["rules"]]
    assert told == [
        "8 questions held out, at least 5 wanted",
        "+0.500 on them against the current adapter, at least +0.05 wanted",
        "+0.900 on them against the base, at least +0.05 wanted",
        "8 of them better and 0 worse, p = 0.004, at most 0.05 wanted",
        "-0.050 on the regression set, at most 0.02 less wanted",
        "1 of 20 answers that were right are not, at most 1 wanted",
    ]
