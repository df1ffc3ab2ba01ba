import math

import pandas as pd
import pytest

from priormatch.experiments.claims import (
    ClaimError,
    ConditionError,
    check,
    check_leave_one_out,
    clearly,
    comparisons,
    parse,
    standard_errors,
    table,
)
from priormatch.reporting import Result

GOOD = """
"The sky is blue", or
so they say.
= true by day: blue > red > 0.1; blue > 2 * red
It is {blue}, of which
{red.value:.1f} is red.
~ a night
@ 04-why-the-mixture-nearly-matches.ipynb#bound-the-mismatch

A description | of the sky.
= not a claim
We look up.
~ -
@ evidence/11-the-sky.ipynb
"""


@pytest.fixture
def trainings():
    return pd.DataFrame(
        {
            "blue": [0.61, 0.62, 0.60, 0.63, 0.61],
            "red": [0.20, 0.21, 0.19, 0.22, 0.20],
            "dull": [0.59, 0.64, 0.61, 0.62, 0.60],
            "near": [0.30, 0.50, 0.20, 0.60, 0.15],  # above 0.1, by 2.9 standard errors
            "exact": 0.5,
        }
    )


@pytest.fixture
def results():
    return {"blue": Result(0.6142, "record", 0.0051, "nats"), "red": Result(0.2, "record")}


def claim(verdict="true: blue > red", reason="It is {blue} and {red}."):
    return f"Blue.\n= {verdict}\n{reason}\n~ a night\n@ 04-why.ipynb"


def test_the_parts_of_a_claim_are_read():
    sky, description = parse(GOOD)
    assert sky.words == '"The sky is blue", or so they say.'
    assert sky.verdict == "true by day"
    assert sky.condition == "blue > red > 0.1; blue > 2 * red"
    assert sky.reason == "It is {blue}, of which {red.value:.1f} is red."
    assert sky.overturned_by == "a night"
    assert sky.link == "04-why-the-mixture-nearly-matches.ipynb#bound-the-mismatch"
    assert sky.line == 4
    assert sky.names == {"blue", "red"}
    assert (description.condition, description.names, description.line) == ("", set(), 11)
    assert parse("\n\n") == []


def test_claims_become_a_table_with_their_numbers(results):
    header, rule, sky, description = table(parse(GOOD), results).splitlines()
    assert header.count("|") == rule.count("|") == 3
    assert sky == (
        '| "The sky is blue", or so they say. **True by day.** '
        "| It is 0.6142 ± 0.0051 nats, of which 0.2 is red. *What would change it:* a night. "
        "[Chapter 4](04-why-the-mixture-nearly-matches.ipynb#bound-the-mismatch) |"
    )
    # A bar within a cell would begin another one.
    assert description == (
        "| A description \\| of the sky. **Not a claim.** "
        "| We look up. [Chapter 11](evidence/11-the-sky.ipynb) |"
    )


@pytest.mark.parametrize(
    ("missing", "line", "problem"),
    [
        ("= ", 3, "`~` before its verdict"),
        ("It ", 3, "`~` before its reason"),
        ("~ ", 4, "`@` before what would overturn it"),
        ("@ ", 6, "`=` before its link"),  # of the next claim, whose words seemed to be more of `~`
    ],
)
def test_a_missing_line_is_named(missing, line, problem):
    lines = [line for line in claim().splitlines() if not line.startswith(missing)]
    with pytest.raises(ClaimError, match=rf"line {line}, 'Blue\..*': {problem}"):
        parse("\n".join([*lines, claim()]))


def test_a_text_that_ends_within_a_claim_is_refused():
    with pytest.raises(ClaimError, match=r"line 13, 'A description.*ends before its link"):
        parse(GOOD.partition("@ evidence")[0])


def test_a_claim_without_words_is_refused():
    with pytest.raises(ClaimError, match="line 2, '': `=` before its words"):
        parse("\n" + claim().removeprefix("Blue.\n"))


@pytest.mark.parametrize(
    ("wrong", "line", "problem"),
    [
        (claim("turned: blue > red"), 2, "no verdict 'turned'"),
        (claim("true"), 2, "a verdict has a condition"),
        (claim("not a claim: blue > red"), 2, "'not a claim' has none"),
        # Nothing would be compared, and nothing is always true.
        (claim("true: blue < red"), 2, "'blue < red' is no comparison"),
        (claim("true: blue > red; red"), 2, "'red' is no comparison"),
        (claim("true: blue >= red"), 2, "'blue >= red' is no comparison"),
        (claim("true: blue > red >"), 2, "no comparison"),
        (claim("true: blue > red;"), 2, "'' is no comparison"),
        (claim("true: blue == red > 0"), 2, "'blue == red > 0' is no comparison"),
        (claim("true: blue > 2 > 1"), 2, "'blue > 2 > 1' is no comparison"),
        (claim("true: blue > red", "It is {blue}."), 3, "does not tell red"),
        (claim(reason="It is {blue} and {red."), 3, "expected '}'"),
        (claim(reason="It is {blue} and red}, {red}."), 3, "Single '}'"),
        (claim().replace("04-why", "estimators"), 5, "'estimators.ipynb' is no link"),
        (claim().replace("04-why.ipynb", "04-why.ipynb yes"), 5, "is no link"),
    ],
)
def test_a_claim_that_is_written_wrongly_is_refused(wrong, line, problem):
    with pytest.raises(ClaimError, match=f"line {line}, 'Blue.': .*{problem}"):
        parse(wrong)


def test_one_number_is_clearly_more_in_every_training_and_by_three_errors(trainings):
    assert clearly("blue", "red", trainings)
    assert not clearly("red", "blue", trainings)
    assert not clearly("blue", "dull", trainings)  # less in two trainings
    # In all trainings, but by 2.9 standard errors.
    assert (trainings.near > 0.1).all()
    assert not clearly("near", "0.1", trainings)
    assert clearly("near", "0.1", trainings, errors=2.5)
    assert not clearly("exact", "0.5", trainings)
    assert clearly("exact", "0.4", trainings)


def test_every_comparison_of_a_condition_counts(trainings):
    check(parse(claim("true: blue > 2 * red > 0.1; red > 0.1")), trainings)
    for condition in ("blue > red > 0.3", "0.3 > red; red > blue", "red > blue > 0.1"):
        with pytest.raises(ConditionError, match=r"line 2, 'Blue\.': `.*` is not clear: the diff"):
            check(parse(claim(f"true: {condition}")), trainings)


def test_an_undecided_verdict_wants_no_comparison_to_be_clear(trainings):
    undecided = claim("undecided, as it seems: blue > dull", "{blue}, {dull}")
    check(parse(undecided), trainings)
    for condition in ("blue > red", "red > blue", "blue > dull; red > blue"):
        with pytest.raises(ConditionError, match=r"clearly more: the differences are -?0\.41"):
            check(
                parse(claim(f"undecided: {condition}", "{blue}, {red}, {dull}")),
                trainings,
            )


def test_a_number_that_a_training_lacks_is_named(trainings):
    with pytest.raises(ClaimError, match="not every training has green") as caught:
        check(parse(claim("true: green > 0", "{green}")), trainings)
    assert not isinstance(caught.value, ConditionError)
    # What is not a number is neither more nor less, and would leave a verdict undecided.
    trainings.loc[3, "dull"] = math.nan
    with pytest.raises(ClaimError, match="not every training has dull"):
        check(parse(claim("undecided: blue > dull", "{blue}, {dull}")), trainings)


def test_a_verdict_that_hangs_on_one_training_is_found(trainings):
    stands = parse(claim())
    check_leave_one_out(stands, trainings)
    # The error grows when one in the middle is left out.
    trainings["just"] = [0.1, 0.5, 0.3, 0.3, 0.3]
    hangs = parse(claim("true: just > 0.07", "{just}"))
    check(hangs, trainings)
    with pytest.raises(
        ConditionError, match=r"line 2, 'Blue\.': without training 2, `just > 0.07` is"
    ):
        check_leave_one_out([*stands, *hangs], trainings)


def test_standard_errors_are_of_each_comparison_between_trainings(trainings):
    claims = parse(claim("true: blue > red > 0.1; exact > 0.4", "{blue} {red} {exact}"))
    found = standard_errors([*claims, *claims], trainings)
    difference = trainings.blue - trainings.red
    assert set(found.index) == {"blue > red", "red > 0.1"}  # once, and not of constants
    assert found["blue > red"] == pytest.approx(difference.mean() / difference.sem())


def test_comparisons_are_of_neighbours():
    assert comparisons("a > b > c; d>2 * e") == [("a", "b"), ("b", "c"), ("d", "2 * e")]
    assert comparisons("") == []


@pytest.mark.parametrize(
    ("reason", "problem"),
    [
        ("{blue}, {red} and {green}.", "KeyError 'green'"),
        ("{blue}, {red.vlaue}.", "AttributeError"),
        ("{blue}, {red.value:.3q}.", "ValueError"),
        ("{blue}, {red}, {}.", "ValueError"),
    ],
)
def test_a_placeholder_that_shows_no_number_is_named(results, reason, problem):
    with pytest.raises(ClaimError, match=rf"line 3, 'Blue\.': {problem}"):
        table(parse(claim(reason=reason)), results)
