"""The page as a file: complete, escaped, reproducible, self-contained, written whole or not at all."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from jinja2 import UndefinedError

from report.made_campaign import claim
from report.made_campaign import record as campaign
from ticketry.errors import StoreError
from ticketry.experiments.run import run
from ticketry.records.evidence import read_evidence
from ticketry.records.run import read_run
from ticketry.report import page as page_module
from ticketry.report import write_report
from ticketry.report.figures import stability_figures, verify_figures
from ticketry.report.figures.layout import to_svg
from ticketry.report.figures.style import COLOURS, figure_style
from ticketry.report.page import PagePart, template_macro, with_no_break_spaces
from ticketry.report.subject import read_report_subject
from ticketry.report.tables.results import Results

_VOID = {"meta", "use", "path", "rect", "input"}


class _Reader(HTMLParser):
    """Elements in order, the text outside styles and scripts, and whether each is closed where it should be."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.text, self.open, self.rows = [], [], [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in _VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.text.append(data)
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data


pytestmark = pytest.mark.usefixtures("dots")


@pytest.fixture
def whole_page(dots, full_record, evidence):
    """A page with every section; in test_browser.py its figures are drawn too."""
    return _page(full_record, evidence)


def _page(records, evidence=()):
    return page_module.render_report(read_report_subject(records, evidence))


def _told(records, evidence=()):
    """The text of the page, with plain spaces."""
    return "".join(_Reader(_page(records, evidence)).text).replace("\N{NO-BREAK SPACE}", " ")


def test_the_table_has_the_numbers(make_record):
    record = make_record(levels=2, replicates=3, controls=("shuffled",))
    scores = {"dense": 90.0, "ticket": 90.5, "shuffled": 80.0}
    for point in record["points"]:
        point["test"]["accuracy"] = scores[point["role"]] + point["replicate"]
    rows = _Reader(_page(record)).rows
    assert rows[1] == ["0", "100.0", "0.0", "91.0 ± 1.0", "the dense network, n = 3", "100.0"]
    assert rows[2] == ["1", "80.0", "20.0", "91.5 ± 1.0", "+0.5 ± 0.0", "81.0 ± 1.0", "80.0"]
    assert rows[3][:3] == ["2", "64.0", "36.0"]


def test_shares_of_all_parameters_count_what_is_never_pruned(make_record):
    record = make_record(levels=1, replicates=1, controls=())
    record["task"].update(parameters=1000, prunable=800)
    for point in record["points"]:
        point["layers"] = None
    page = _Reader(_page(record))
    assert page.rows[2][-1] == "84.0"  # (0.8 * 800 + 200) / 1000
    assert "the last column refers to all 1,000 parameters, 200 of which" in " ".join("".join(page.text).split())


def test_everything_of_the_record_is_on_the_page(make_record):
    text = _told(make_record(levels=2))
    for part in (
        "Iterative magnitude pruning with rewinding",
        "iterative-fashion-mnist-3f2a91c0",
        "lenet-300-100 on fashion-mnist",
        "ticketry search iterative --task fashion-mnist --rewind 1%",
        'rewind = "1%"',
        "18 × dense",
        "120 of 174",
        "54 came from the store: 31 % of 731,430 steps",
        "11 min 30 s",
        "Density by layer",
        "weight_decay",
        "AMD EPYC",
        "retrain: continue",
        "not yet a statistical verdict",
    ):
        assert part in text


HOSTILE = """"><script>alert(1)</script><img src=http://example.org/x onerror=alert(2)>'&amp;</style>]]>{{}}"""


_KEPT = ("kind", "role", "verdict", "data", "asked", "where")


def _poison(node):
    """Every text of the record, keys of open mappings included, made hostile; words and structure stay."""
    if isinstance(node, dict):
        return {key: item if key in _KEPT else _poison(item) for key, item in node.items()}
    if isinstance(node, list):
        return [_poison(item) for item in node]
    return HOSTILE + node if isinstance(node, str) else node


def _poisoned_run(record):
    poisoned = _poison(record)
    name = poisoned["task"]["metric"]["name"]
    for point in poisoned["points"]:
        point["test"] = {name: point["test"]["accuracy"]}
        point["validation"] = {name: point["validation"]["accuracy"]}
    for row in poisoned.get("rounds", ()):
        row["validation"] = row["soft_validation"] = {name: 88.0}
    for key in ("settings", "recipe", "steps", "environment"):
        poisoned[key][HOSTILE] = {HOSTILE: [HOSTILE]}
    return poisoned


def test_hostile_text_stays_text(full_record, evidence, whole_page):
    poisoned = [_poison(one) for one in evidence]
    for record, figures in zip(map(read_evidence, poisoned), (verify_figures, stability_figures), strict=False):
        with figure_style():
            for make in figures(record).values():
                ElementTree.fromstring(to_svg(make(False)))
    plain, page = _Reader(whole_page), _Reader(_page(_poisoned_run(full_record), poisoned))
    assert {tag for tag, _ in page.elements} <= {tag for tag, _ in plain.elements}
    allowed = {(tag, name) for tag, attributes in plain.elements for name in attributes}
    assert {(tag, name) for tag, attributes in page.elements for name in attributes} <= allowed
    assert "<script>alert(1)</script>" in "".join(page.text)


def test_nothing_is_loaded_and_only_the_own_script_runs(whole_page, make_record):
    for page in (whole_page, _page(make_record(levels=0))):
        for tag, attributes in _Reader(page).elements:
            assert tag not in ("link", "img", "iframe", "object", "base", "form")
            for name, value in attributes.items():
                assert not name.startswith("on")
                assert name not in ("src", "srcset", "action")
                if name.endswith("href"):
                    picture = tag == "image" and value.startswith("data:image/png;base64,")
                    data = tag == "a" and "download" in attributes and value.startswith("data:text/csv;")
                    assert value.startswith("#") or picture or data
        assert all(reference.startswith("#") for reference in re.findall(r"url\(([^)]*)", page))
        assert "@import" not in page
        (script,) = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert page.count("<script") == 1
        policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
        assert [part.strip() for part in policy.split(";")] == [
            "default-src 'none'",
            "base-uri 'none'",
            "form-action 'none'",
            "img-src data:",
            "style-src 'unsafe-inline'",
            f"script-src 'sha256-{digest}'",
        ]
        assert not re.search(r"\beval\b|Function\(|innerHTML|fetch\(|XMLHttpRequest|import\(", script)


@pytest.mark.parametrize("several", [False, True])
def test_links_lead_somewhere_ids_are_unique_and_figures_are_numbered(
    full_record, rewind_runs, evidence, make_bench, whole_page, several
):
    several_runs = ([*rewind_runs, full_record], [*evidence, make_bench(batches=(4,))])
    page = _Reader(_page(*several_runs) if several else whole_page)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.elements:
        for name, value in attributes.items():
            if name.endswith("href") and not value.startswith("data:"):
                assert value[1:] in ids
            if name == "aria-labelledby":
                assert value in ids
    numbers = [int(number) for number in re.findall(r"Figure (\d+)\.", "".join(page.text))]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) >= 12


def test_runs_are_compared_in_a_table_and_folded_away(rewind_runs):
    page = _Reader(_page(rewind_runs))
    assert page.rows[0][:5] == ["run", "method", "rewind", "levels", "replicates"]
    assert [row[:5] for row in page.rows[1:5]] == [
        [f"iterative, rewind {asked}", "iterative", asked, "10", "3"] for asked in ("0", "1%", "3%", "10%")
    ]
    assert all(row[-1] == "120 / 174" for row in page.rows[1:5])
    runs = [attributes for tag, attributes in page.elements if attributes.get("class") == "run"]
    assert [(run["id"], "open" in run) for run in runs] == [(f"run-{number}", False) for number in (1, 2, 3, 4)]
    networks = sum(len(run["points"]) for run in rewind_runs)
    labels = [f"iterative, rewind {asked}" for asked in ("0", "1%", "3%", "10%")]
    assert sum(row[:1] in ([label] for label in labels) for row in page.rows) == 4 + networks


def test_verdicts_level_by_level(full_record):
    page = _Reader(_page(full_record))
    text = "".join(page.text)
    rows = [row for row in page.rows if len(row) == 13 and row[2] in ("wins", "loses", "undecided")]
    assert len(rows) == 9
    assert rows[0][:3] == ["1", "80.0", "undecided"]
    assert rows[0][-1] == "about 4"
    assert rows[0][5] == "> 0.999"
    assert any(cell.startswith("P(difference > ") for row in page.rows for cell in row)
    assert rows[-1][2:5:2] == ["loses", "–"]
    assert "Holm's correction for the 9 levels" in text
    assert "wins at 7 of them, loses at 1, undecided at 1; the sparsest that wins keeps 16.8" in text
    assert "not yet a statistical verdict" not in text


def test_both_answers_stand_in_words_and_a_tie_with_a_control_does_not_lose(full_record, make_verify):
    answers = {"verdict": "matches", "as_good_as_dense": "yes", "better_than_controls": "undecided"}
    told = {"not_beaten": ["random_prune"], "assumptions": ["seeds share no randomness"], "p_as_good": 0.01}
    seen = {"skewness": -1.5, "correlation": 0.25, "low": [4], "high": [], "collapse_rate": 0.26}
    for one in full_record["verdicts"]:
        one |= answers | told
    verify = make_verify() | answers | told
    verify["comparisons"][0] |= {"sd": 0.4, "diagnosis": seen}
    page = _Reader(_page(full_record, [verify]))
    rows = [row for row in page.rows if len(row) == 15 and row[2] == "matches"]
    assert len(rows) == 9
    assert rows[0][3:5] == ["yes", "undecided: random pruning"]
    text = "".join(page.text).replace("\N{NO-BREAK SPACE}", " ")
    for part in ("As good as dense", "Better than every control", "not shown to beat random pruning", "matches at 9"):
        assert part in text
    assert ["dense", "0.40", "-1.5", "+0.25", "4", "26 %"] in page.rows
    assert "seeds share no randomness" in text
    assert "loses at" not in text


def test_what_a_ticket_saves(make_record, make_bench):
    page = _Reader(_page(make_record(levels=1), [make_bench(), make_bench(curves=True)]))
    text = "".join(page.text).replace("\N{NO-BREAK SPACE}", " ")
    for part in (
        "What it saves",
        "lenet-300-100 on fashion-mnist",
        "16.8 % of the weights",
        "fp32, 1 thread, hot caches, 15 rounds, wall time",
        "a call takes 75 % less at batch 1 (against openvino), 75 % less at batch 8",
        "Time saved, batch 64",
        "72.0 to 77.0 %; against openvino",
        "interval of 96 % by ranks",
        "no C++ compiler on this machine",
        "the engine has no kernel for erfinv",
        "ticketry bench replicate-0-level-08 --batch 1,8,64",
        "Time against density",
        "synthetic masks (unstructured)",
    ):
        assert part in text, part
    assert ["eager", "0.75 (0.735 to 0.773)", "6 (5.88 to 6.18)", "48 (47 to 49.4)"] in page.rows
    assert ["fc1", "linear", "sums", "15.0 %", "1", "2.000", "57.1 %", "75 %", ""] in [
        [cell.replace("\N{NO-BREAK SPACE}", " ") for cell in row] for row in page.rows
    ]


def test_controls_that_a_level_does_not_have_are_told_beside_verdicts_and_where_there_are_none(
    make_record, full_record
):
    told = {"left_out": [{"role": "shuffled", "why": "it has too few steps", "level": 4}]}
    for record in (full_record, {**make_record(levels=1), "verdict_error": "budgets differ"}):
        text = "".join(_Reader(_page({**record, **told})).text)
        assert ("No verdict could be made: budgets differ" in text) == ("verdict_error" in record)
        assert "shuffled masks, level 4" in text
        assert "it has too few steps" in text


def test_a_verification_tells_everything(make_record, make_verify):
    whole = {**make_verify(noise=False), "name": "verify-whole", "about": "procedure", "replicate": None}
    text = _told(make_record(levels=1), [make_verify(), whole])
    for part in (
        "Verification of this procedure: level 8, 16.8 % of the weights",
        "Over 7 paired seeds its tickets' test accuracy is",
        "Verification of this ticket: level 8, 16.8 % of the weights",
        "The verdict is about this ticket: its mask and its start",
        "Over 7 paired seeds the ticket's test accuracy is",
        "interim analyses planned at 3, 5, 7, 10 seeds",
        "the same ticket, other seeds; sd of 3 differences",
        "worse than dense by less than the margin",
        "dense, at the whole cost",
        "as long as the search",
        "no width has as many weights",
        "ticketry verify iterative-fashion-mnist-3f2a91c0 --level 8",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("cost", "text"), [({}, "Energy: not measured on this machine"), ({"energy_kwh": 0.0123}, "0.0123 kWh")]
)
def test_energy_only_where_it_was_measured(make_record, cost, text):
    record = make_record(levels=1)
    record["cost"].update(cost, energy_by="the processor's own counter")
    page = _told(record)
    assert text in page
    assert ("own counter" in page) == bool(cost)


def test_a_run_in_progress(partial_record):
    page = _Reader(_page(partial_record))
    assert any("(2)" in cell for row in page.rows for cell in row)
    assert "or over as many as n or the number in brackets says" in "".join(page.text)
    assert "repeat" not in {attributes.get("id") for _, attributes in page.elements}


@pytest.mark.parametrize("keep", [0, 1, 2])
def test_a_run_that_has_just_begun(make_record, keep):
    record = make_record(levels=1)
    record["points"] = record["points"][:keep]
    _Reader(_page(record))


def test_a_bare_record(make_record):
    record = make_record(levels=2, replicates=1, controls=())
    for key in ("title", "settings", "recipe", "steps", "cost", "environment", "command", "config", "store"):
        del record[key]
    text = "".join(_Reader(_page(record)).text)
    assert "one replicate" in text
    assert "±" in text  # explained in the notes, used nowhere
    assert not any("±" in cell for row in _Reader(_page(record)).rows for cell in row)


def test_the_dark_theme_sets_every_colour_and_text_can_be_read(make_record):
    parts = _page(make_record(levels=1)).split("prefers-color-scheme")[:2]
    themes = [dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6})", part)) for part in parts]
    assert themes[0] == COLOURS
    assert themes[1].keys() == COLOURS.keys()
    for theme in themes:
        for text in ("ink", "muted", "ticket", "random-reinit", "shuffled", "random-prune"):
            needed = 4.5 if text in ("ink", "muted") else 3.0  # WCAG 2.2: text; graphical objects
            for ground in ("paper", "shade"):
                assert _contrast(theme[text], theme[ground]) >= needed, (text, ground)


def _contrast(one, other):
    """WCAG's contrast ratio of two #rrggbb colours."""

    def luminance(colour):
        parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_a_bad_record_leaves_the_old_report(make_record, tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(StoreError):
        write_report({**make_record(levels=1), "points": None}, path)
    assert path.read_text() == "old"


def test_text_of_macros_is_escaped_and_cleaned():
    rows = template_macro("parts.html", "rows")([["<tr>", "1 < 2", "a\x1b"]])
    assert str(rows).strip() == '<tr><th scope="row">&lt;tr&gt;</th><td>1 &lt; 2</td><td>a\ufffd</td></tr>'
    assert with_no_break_spaces("96.2 ± 0.4 % (n = 3)") == "96.2_±_0.4_% (n_=_3)".replace("_", "\N{NO-BREAK SPACE}")
    assert with_no_break_spaces("a <\n  b") == "a &lt; b"


def test_what_a_template_does_not_get_is_an_error():
    with pytest.raises(UndefinedError):
        page_module._template_environment().get_template("page.html").render()


@pytest.mark.parametrize(
    ("controls", "metric", "rule"),
    [
        (("shuffled",), ("accuracy", "%", True), "within 0.5 points of dense and better than every control"),
        ((), ("rmse", "", False), "within 1 % of dense"),
    ],
)
def test_the_marked_level_is_named_by_its_rule_and_not_by_a_verdict(make_record, controls, metric, rule):
    record = make_record(levels=2, replicates=2, controls=controls, metric=metric)
    for point in record["points"]:
        point["test"][metric[0]] = 80.0 if point["role"] == "shuffled" else 90.0
    table = template_macro("results.html", "results_table")(Results(read_run(record)), "test", PagePart())
    table = table.replace("\N{NO-BREAK SPACE}", " ")
    assert f"Marked: the sparsest level whose mean is {rule}, which is no verdict." in table
    assert re.findall('<tr class="(.*?)"', table)[-2:] == ["level", "chosen"]


def test_a_claim_and_its_replication_name_each_other():
    first, second = claim("better", "undecided"), claim("better-again", "confirmed", "better")
    page = page_module.render_campaign(campaign(first, second))
    assert page.count("Replicated on fresh replicates as better-again: confirmed.") == 1
    assert page.count("A replication of better, on fresh replicates.") == 1
    assert (
        "eplicat"
        not in page_module.render_campaign(campaign(first)).partition('<dl class="notes">')[2].partition("</dl>")[0]
    )


def test_controls_beside_some_levels_alone_leave_the_other_rows_as_wide(tmp_path):
    options = {"levels": 2, "rate": 0.5, "replicates": 1, "recipe": {"length": "5it"}, "workers": 0}
    controls = {"controls": ["shuffled", "cyclic"], "control_densities": 0.25}
    found = run("iterative", "digits", store=tmp_path, **options, **controls)
    page = found.report(tmp_path / "page.html").read_text()
    section = page[page.index('<section id="verdicts">') :]
    assert "Claim: wins, but matches where there are no controls;" in section
    read = _Reader(section[section.index("<table") : section.index("</table>") + len("</table>")])
    head, *rows = read.rows
    assert [len(row) for row in rows] == [len(head)] * 2
