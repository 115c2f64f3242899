"""How numbers are written: densities and sparsities that add up, decimals that suit the spread."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ticketry.records.run import read_run
from ticketry.report.tables.results import Results, Summary
from ticketry.report.wording import Style, format_duration, json_text, percent, printable, removed_percent, role_name


@pytest.mark.parametrize(
    ("density", "remaining", "removed"),
    [
        (1.0, "100.0", "0.0"),
        (0.8**3, "51.2", "48.8"),
        (0.8**12, "6.9", "93.1"),
        (0.0092, "0.92", "99.08"),
        (0.00018, "0.018", "99.982"),
        (0.0, "0.0", "100.0"),
    ],
)
def test_density_and_sparsity(density, remaining, removed):
    assert (percent(density), removed_percent(density)) == (remaining, removed)


@given(st.floats(1e-9, 1))
def test_density_and_sparsity_add_up_to_100(density):
    assert Decimal(percent(density)) + Decimal(removed_percent(density)) == 100


def _style(make_record, sd, **options):
    record = make_record(levels=1, replicates=2, controls=(), **options)
    for point in record["points"]:
        point["test"][record["task"]["metric"]["name"]] = 50 + point["replicate"] * sd * 2**0.5
    return Style.for_results(Results(read_run(record)))


@pytest.mark.parametrize(("sd", "decimals"), [(0.41, 2), (0.043, 3), (2.3, 1), (12.0, 0), (120.0, 0)])
def test_decimals_show_two_digits_of_the_spread(make_record, sd, decimals):
    assert _style(make_record, sd).decimals == decimals


@pytest.mark.parametrize(
    ("means", "sd", "told"),
    [
        ((4.349e-06, 8.337e-08), 3.1e-08, ["4.349e−6 ± 3.1e−8", "8.3e−8 ± 3.1e−8"]),
        ((4.349e-06, 8.337e-08), 1.5e-06, ["4.3e−6 ± 1.5e−6", "8.3e−8 ± 1.5e−6"]),  # two digits at least
        ((8.337e-08, 0.0), None, ["8.337e−8", "0.00000000000"]),
        ((0.02, 0.019), 2.1e-07, ["0.02000000 ± 2.1e−7", "0.01900000 ± 2.1e−7"]),
        ((0.0031, 0.0036), 0.0002, ["0.00310 ± 0.00020", "0.00360 ± 0.00020"]),
        ((98.1, 97.9), 3e-08, ["98.100000 ± 0.000000", "97.900000 ± 0.000000"]),  # not the digits of rounding
    ],
)
def test_small_numbers_are_not_zero(means, sd, told):
    summaries = [Summary(mean, sd, 3) for mean in means]
    assert [Style.for_summaries(summaries, "").format_summary(one) for one in summaries] == told


def test_a_summary_in_full():
    style = Style(2, "%")
    assert style.format_with_count(Summary(96.2345, 0.4142, 3)) == "96.23 ± 0.41 % (n = 3)"
    assert style.format_with_count(Summary(96.2345, None, 1)) == "96.23 % (n = 1)"
    assert Style(3, "").format_with_count(Summary(0.3312, 0.0214, 5)) == "0.331 ± 0.021 (n = 5)"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(4.26, "4.3 s"), (42, "42 s"), (59.7, "1 min 00 s"), (690, "11 min 30 s"), (11100, "3 h 05 min")],
)
def test_durations(seconds, text):
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("item", "text"),
    [
        (True, "yes"),
        (None, "–"),
        ([], "–"),
        (["a", 2], "a, 2"),
        (1e-4, "0.0001"),
        ({"a": 1}, '{"a": 1}'),
        (4300, "4,300"),
    ],
)
def test_values(item, text):
    assert json_text(item) == text


def test_clean_takes_what_steers_a_terminal_or_breaks_xml():
    assert printable("a\x1b[31mb\x00\ud800\ufffe\u202e") == "a\ufffd[31mb\ufffd\ufffd\ufffd\ufffd"
    assert printable("tab\tline\nœ 漢 🎟") == "tab\tline\nœ 漢 🎟"


def test_roles():
    assert role_name("random_reinit") == "random re-initialisation"
    assert role_name("small_dense") == "small dense network"
    assert role_name("my_control") == "my control"
