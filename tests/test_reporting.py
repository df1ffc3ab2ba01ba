import json
import math

import pytest
import torch
from IPython.core.formatters import DisplayFormatter

from priormatch.reporting import MissingStandardError, NonFiniteResultError, Result, table


@pytest.mark.parametrize("standard_error", [None, 0.0, -0.1])
def test_a_monte_carlo_result_needs_a_positive_standard_error(standard_error):
    with pytest.raises(MissingStandardError, match="standard error"):
        Result(0.5, "Monte Carlo", standard_error)


@pytest.mark.parametrize(
    ("value", "standard_error"), [(math.nan, 0.1), (math.inf, 0.1), (0.5, math.nan)]
)
def test_a_result_is_finite(value, standard_error):
    with pytest.raises(NonFiniteResultError, match="overflows"):
        Result(value, "Monte Carlo", standard_error)


def test_a_kind_that_does_not_exist_is_refused():
    # Through a plain variable: the type checker would refuse it first.
    kind = "guess"
    with pytest.raises(Exception, match="guess"):
        Result(0.5, kind)


@pytest.mark.parametrize(
    ("value", "standard_error", "text"),
    [
        (0.118234, 0.0052, "0.1182 ± 0.0052"),
        (118.234, 5.2, "118.2 ± 5.2"),
        (118234.5, 520.0, "118234 ± 520"),
        (0.00012345678, None, "0.00012346"),
        (2.0, None, "2.0000"),
        (0.0, None, "0"),
    ],
)
def test_a_result_shows_the_digits_that_are_known(value, standard_error, text):
    kind = "closed form" if standard_error is None else "Monte Carlo"
    assert str(Result(value, kind, standard_error)) == text


def test_a_table_carries_its_numbers_in_the_metadata_of_the_output():
    half = Result(0.5, "Monte Carlo", 0.1, "nats", seeds=5, meaning="One of two.")
    results = {"half": half, "two": Result(2.0, "ordering")}
    bundle, metadata = DisplayFormatter().format(table(results))
    assert set(bundle) == {"text/html", "text/plain"}
    assert json.loads(json.dumps(metadata)) == {
        "priormatch": {
            "results": {
                "half": {
                    "value": 0.5,
                    "kind": "Monte Carlo",
                    "standard_error": 0.1,
                    "unit": "nats",
                    "seeds": 5,
                    "meaning": "One of two.",
                },
                "two": {
                    "value": 2.0,
                    "kind": "ordering",
                    "standard_error": None,
                    "unit": "",
                    "seeds": None,
                    "meaning": "",
                },
            }
        }
    }


def test_a_table_can_be_read_by_everybody():
    html = table({"half<": Result(0.5, "Monte Carlo", 0.1, "nats")})._repr_html_()
    assert html.count('<th scope="col">') == 5
    assert '<th scope="row"><code>half&lt;</code></th><td>0.50</td><td>0.10</td>' in html


def test_a_table_tells_trainings_and_meanings_where_there_are_any():
    half = Result(0.5, "trained model", 0.1, "nats", seeds=5, meaning="One < two.")
    shown = table({"half": half, "two": Result(2.0, "ordering")})
    assert shown.lines()[0][-2:] == ("Trainings", "Meaning")
    assert [line[-2:] for line in shown.lines()[1:]] == [("5", "One < two."), ("", "")]
    assert "<td>5</td><td>One &lt; two.</td></tr>" in shown._repr_html_()
    assert '<tr id="result-two">' in shown._repr_html_()


@pytest.mark.parametrize(("field", "value"), [("seeds", 0), ("meaning", "Two\nlines.")])
def test_seeds_and_meaning_that_cannot_be_shown_are_refused(field, value):
    with pytest.raises(ValueError, match=r"must be one|more than a line"):
        Result(0.5, "closed form", **{field: value})


def test_numbers_of_torch_become_plain_floats():
    result = Result(torch.tensor(0.5).item(), "closed form")
    assert type(result.value) is float


def test_a_table_keeps_what_it_was_given():
    results = {"half": Result(0.5, "closed form")}
    shown = table(results)
    results["later"] = Result(1.0, "closed form")
    assert "later" not in repr(shown)
