"""Verdicts: of a run level by level, of one ticket or of a repeated search, with the numbers that they rest on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ticketry.records.evidence import VerifyRecord
from ticketry.records.network import DENSE
from ticketry.records.run import RunRecord
from ticketry.records.schema import as_json
from ticketry.records.verdict import About, Judgement, LevelVerdict
from ticketry.report.figures import FOREST, SEEDS, Drawing
from ticketry.report.html.blocks import (
    Byline,
    Cell,
    Facts,
    Folded,
    Items,
    Notes,
    Place,
    Row,
    Section,
    Table,
    Text,
    made_by,
)
from ticketry.report.tables.evidence import network_name, seed_style
from ticketry.report.tables.results import Results, summarise
from ticketry.report.tables.rows import seed_rows, verify_rows
from ticketry.report.wording import (
    NONE,
    Style,
    metric_label,
    p_value,
    percent,
    points,
    probability_text,
    role_name,
    short_p,
)


def seeds_text(judged: Judgement) -> str:
    """How many more seeds would likely decide: none where it is decided."""
    if judged.decided:
        return "none"
    return "too many" if judged.more_seeds is None else f"about {judged.more_seeds:,}"


# -- of a run ----------------------------------------------------------------------------------------------------------


def verdicts_section(results: Results, place: Place) -> Section | None:
    """A row a level; or the reason why there is no verdict; None where the record has neither."""
    run = results.run
    if not run.verdicts:
        if not run.verdict_error:
            return None
        text = Text(f"No verdict could be made: {run.verdict_error}", "remark")
        return Section(place.id("verdicts"), "Verdicts", [text, _left_out(run)])
    style, most = Style.of(results), max(run.verdicts, key=lambda one: len(one.comparisons) + len(one.beside))
    controls, longer = [one.role for one in most.comparisons if one.role != DENSE], [one.role for one in most.beside]
    # Differences are positive where tickets are better: of what is better when less, it is they that are taken away.
    less = not run.task.metric.higher_is_better

    def minus(name: str) -> str:
        return f"{name} minus tickets" if less else f"minus {name}"

    head: list[Cell | str] = [
        *("level", "weights remaining, %", Cell("verdict", "verdict")),
        *(("as good as dense", "better than every control") if _answered(run.verdicts) else ()),
        minus("dense") if less else "tickets minus dense",
        f"{percent(most.confidence, 0)} % interval",
        *([f"P(difference > {style.number(-most.margin)})"] if _probable(run.verdicts) else []),
        *(minus(role_name(role)) for role in controls),
        *(f"{minus(role_name(role))} (shown only)" for role in longer),
        *("n", "p", "p, Holm", "likely more seeds"),
    ]
    columns = _answered(run.verdicts), _probable(run.verdicts)
    rows = [_verdict_row(style, one, [*controls, *longer], *columns) for one in run.verdicts]
    reasons = [
        (f"level {one.level}, {percent(one.density)} %", "; ".join(one.reasons), one.verdict)
        for one in run.verdicts
        if one.reasons
    ]
    return Section(
        place.id("verdicts"),
        "Verdicts",
        [
            Table(place.id("table-verdicts"), _verdicts_caption(results, most), head, rows, "verdicts"),
            Folded("Why, level by level", [Notes(reasons)]) if reasons else None,
            _left_out(run),
            _assumed(most, style, place),
        ],
    )


def _left_out(run: RunRecord) -> Notes | None:
    """Controls that levels do not have, and why."""
    notes = [(f"{role_name(one.role)}, level {one.level}", one.why, "") for one in run.left_out]
    return Notes(notes, "Left out") if notes else None


def _answered(verdicts: Sequence[LevelVerdict]) -> bool:
    """Whether the record has the two answers, which older ones do not."""
    return any(one.as_good_as_dense is not None for one in verdicts)


def _probable(verdicts: Sequence[LevelVerdict]) -> bool:
    """Whether any level has a probability, which verdicts by an earlier rule and single replicates do not have."""
    return any(one.probability is not None for one in verdicts)


def _better(judged: Judgement) -> str:
    """Better than every control, and if not, which are not beaten."""
    if judged.better_than_controls is None or len(judged.comparisons) < 2:
        return NONE
    names = ", ".join(role_name(role) for role in judged.not_beaten)
    return f"{judged.better_than_controls}: {names}" if names else judged.better_than_controls


def _verdict_row(style: Style, one: LevelVerdict, others: list[str], answered: bool, probable: bool) -> Row:
    means = {each.role: style.number(each.mean, sign=True) for each in (*one.comparisons, *one.beside)}
    cells: list[Cell | str] = [
        percent(one.density),
        Cell(one.verdict, "verdict", chip=True),
        *((one.as_good_as_dense or NONE, Cell(_better(one), "note")) if answered else ()),
        style.number(one.difference, sign=True),
        style.interval(one.interval),
        *([probability_text(one.probability)] if probable else []),
        *(means.get(role, NONE) for role in others),
        *(str(one.n), short_p(one.p), short_p(one.p_holm), seeds_text(one)),
    ]
    return Row(str(one.level), cells)


def _verdicts_caption(results: Results, most: LevelVerdict) -> str:
    unit = points(results.run.task.metric)
    others = "the dense network and controls" if len(most.comparisons) > 1 else "the dense network"
    some = any(one.claim != most.claim for one in results.run.verdicts)
    claim = f"{most.claim}{', but matches where there are no controls' if some else ''}"
    text = (
        f"Each level's tickets against {others}, paired by replicate; a difference above 0 is in the tickets' favour. "
        f"Claim: {claim}; margin {most.margin:.4g}{unit}; confidence {percent(most.confidence, 0)} %. The "
        f"verdict rests on p after Holm's correction for the {len(results.run.verdicts)} levels. It wins where it is "
        "as good as dense (worse by less than the margin) and better than every control, matches where it is as good "
        "as dense, and loses where it is shown not to be. "
        f"{_tests_of(most)}"
        f"It is about {most.claims_of}, the search with its settings at that density: what its next ticket will do."
    )
    if results.run.settings.get("budget"):
        text += " The whole search has the budget of one training by the recipe, which the dense network is."
    if most.beside:
        text += " Shown only: networks trained for as long as the whole search, that no verdict rests on."
    return text


def _tests_of(most: LevelVerdict) -> str:
    """What the verdicts' standard deviations come from; empty for verdicts by an earlier rule."""
    if not most.rule:
        return "These verdicts were made by an earlier version, which did not pool levels. "
    return (
        "Each level is tested with its own standard deviation or the one pooled over the search's levels, whichever is "
        "larger; intervals and probabilities are of these tests, before Holm's correction. "
    )


# -- of one ticket, or of a repeated search ----------------------------------------------------------------------------


def verify_section(verify: VerifyRecord, drawings: Mapping[str, Drawing], place: Place) -> Section:
    """Verdict, differences, seeds, budgets, and what was left out and why."""
    style = seed_style(verify)
    which = "" if verify.replicate is None else f"replicate {verify.replicate}"
    facts = [verify.task.title, verify.method, which]
    label = metric_label(verify.task.metric)
    differences = (
        f"Mean differences in test {label} over paired seeds, with their two-sided {percent(verify.confidence, 0)} % "
        "intervals; to the right of 0 the ticket is better. Shaded: worse by less than the margin of "
        f"{style.number(verify.margin)}, which still counts as equally good. "
    )
    if verify.noise is not None:
        differences += "Hollow: the ticket minus itself under other seeds, what no difference looks like. "
    values = f"Test {label} of every network trained; to the right: mean ± sd. "
    left_out = [(role_name(one.role), one.why, "") for one in verify.left_out]
    return Section(
        place.id("verification"),
        f"Verification of {verify.claims_of}: level {verify.level}, {percent(verify.density)} % of the weights",
        [
            Byline([fact for fact in facts if fact], verify.run or verify.ticket),
            Text(_sentence(verify, style), "lead", chip=verify.verdict),
            Text(_CLAIMS[verify.about], "remark"),
            Items(verify.reasons) if verify.reasons else None,
            Facts(_facts(verify, style)),
            _assumed(verify, style, place),
            place.figure(drawings, FOREST, differences, verify_rows([verify])),
            place.figure(drawings, SEEDS, values, seed_rows([verify])),
            _budgets(verify, style, place),
            Notes(left_out, "Left out") if left_out else None,
            made_by(verify.command, as_json(verify.cost), verify.environment),
        ],
        name=f"Verification at {percent(verify.density)} %",
    )


_CLAIMS: dict[About, str] = {
    "ticket": "The verdict is about this ticket: its mask and its start, trained again with other orders of the data.",
    "procedure": "The verdict is about this procedure: the whole search with its settings, repeated from fresh seeds. "
    "No replicate of the run is among them, for the settings may have been chosen by those.",
}


def _sentence(verify: VerifyRecord, style: Style) -> str:
    metric = verify.task.metric
    interval = f" ({style.interval(verify.interval)})" if verify.interval else ""
    side = "better" if verify.difference >= 0 else "worse"
    whose = "the ticket's" if verify.about == "ticket" else "its tickets'"
    return (
        f"Over {verify.n} paired seeds {whose} test {metric.words} is "
        f"{style.number(abs(verify.difference))}{points(metric)} {side} than the dense network's{interval}."
    )


def _facts(verify: VerifyRecord, style: Style) -> list[tuple[str, str, str]]:
    noise = verify.noise
    number, remark = NONE, "not measured"
    if noise is not None and noise.sd is None:
        number, remark = style.number(noise.mean, sign=True), "the same ticket, other seeds"
    elif noise is not None and noise.sd is not None:
        number = f"± {style.number(noise.sd)}{points(verify.task.metric)}"
        remark = f"the same ticket, other seeds; sd of {noise.n} differences"
    analyses = f"interim analyses planned at {', '.join(map(str, verify.interim))} seeds" if verify.interim else ""
    passed = f"the first {verify.after} fresh ones passed over" if verify.after else ""
    answers = [
        ("As good as dense", verify.as_good_as_dense, verify.p_as_good, "worse by less than the margin"),
        ("Better than every control", verify.better_than_controls, verify.p_better, _not_beaten(verify)),
    ]
    if len(verify.comparisons) < 2:
        answers.pop()
    return [
        *(
            (name, word, f"{p_value(p)}; {detail}" if p is not None else detail)
            for name, word, p, detail in answers
            if word is not None
        ),
        (f"Claim: {verify.claim}", p_value(verify.p), f"at {percent(verify.confidence, 0)} % confidence"),
        ("Seeds", str(verify.n), "; ".join(filter(None, (analyses, passed)))),
        ("Likely more seeds", seeds_text(verify), "to decide with a probability of 80 %"),
        *([("Noise floor (A/A)", number, remark)] if verify.about == "ticket" else []),
    ]


def _not_beaten(judged: Judgement) -> str:
    names = ", ".join(role_name(role) for role in judged.not_beaten)
    return f"not shown to beat {names}" if names else "each by itself"


def _assumed(judged: Judgement, style: Style, place: Place) -> Folded | None:
    """What the tests assume, and what the differences tell of it."""
    if not judged.assumptions:
        return None
    rows = [
        Row(
            role_name(one.role),
            [
                NONE if one.sd is None else style.number(one.sd),
                f"{found.skewness:+.1f}",
                f"{found.correlation:+.2f}",
                ", ".join(map(str, (*found.low, *found.high))) or "none",
                NONE if found.collapse_rate is None else f"{100 * found.collapse_rate:.0f} %",
            ],
        )
        for one in judged.comparisons
        if (found := one.diagnosis) is not None
    ]
    head = ["ticket minus", "sd", "skewness", "correlation in order", "outlying seeds", "collapse not excluded"]
    caption = "What the differences tell: of normal, independent seeds the second and third columns are near 0."
    table = Table(place.id("table-assumptions"), caption, head, rows, "assumptions") if rows else None
    return Folded("What the tests assume", [Items(judged.assumptions), *([table] if table else [])])


def _budgets(verify: VerifyRecord, style: Style, place: Place) -> Table | None:
    told = [(one.role, one.values, one.budget, one.parameters, one.model) for one in verify.networks]
    told += [(one.role, one.values, one.steps, None, one.note) for one in verify.references]
    rows = [
        Row(
            network_name(role),
            [
                style.summary(summarise(values)) if values else NONE,
                str(len(values)),
                *(NONE if count is None else f"{count:,}" for count in (steps, parameters)),
                Cell(note, "note"),
            ],
        )
        for role, values, steps, parameters, note in told
    ]
    head = ["network", f"test {metric_label(verify.task.metric)}", "n", "steps each", "weights not 0", ""]
    caption = (
        "What each network was given; counts are means over seeds. Those compared have equally many training steps"
    )
    even = len({one.budget for one in verify.networks}) == 1
    caption += "." if even else ", but for the dense one."
    return Table(place.id("table-budgets"), caption, head, rows, "budgets") if rows else None
