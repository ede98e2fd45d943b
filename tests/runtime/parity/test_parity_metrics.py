"""Parity's figures equal their formulas, its verdict follows from them, and its reports show both."""

from __future__ import annotations

import json
import math
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from lfm_onnx.errors import InputError, OutputError
from lfm_onnx.reporting.file import require_report_file
from lfm_onnx.runtime.parity.layers import layer_error
from lfm_onnx.runtime.parity.metrics import LogitComparison, clustered_mean, row_metrics
from lfm_onnx.runtime.parity.report.contents import (
    Check,
    GreedyAgreement,
    LayerError,
    ParityReport,
    TaskAccuracy,
    TaskAnswer,
    Thresholds,
)
from lfm_onnx.runtime.parity.report.document import markdown_report, write_report

logit = st.floats(-30, 30, width=32)
shapes = st.tuples(st.integers(1, 6), st.integers(2, 9))


@st.composite
def logit_pairs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    shape = draw(shapes)
    arrays = hnp.arrays(np.float32, shape, elements=logit)
    return draw(arrays), draw(arrays)


def softmax(row: np.ndarray) -> list[float]:
    exps = [math.exp(float(x) - float(max(row))) for x in row]
    return [e / sum(exps) for e in exps]


@settings(max_examples=60, deadline=None)
@given(logit_pairs())
def test_row_metrics_equal_their_formulas(pair: tuple[np.ndarray, np.ndarray]) -> None:
    reference, model = pair
    ids = [i % reference.shape[1] for i in range(reference.shape[0] - 1)]
    found = row_metrics(reference, model, ids)
    for t, (r, m) in enumerate(zip(reference, model, strict=True)):
        p, q = softmax(r), softmax(m)
        assert found.kld[t] == pytest.approx(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)), abs=1e-9)
        assert found.max_abs_diff[t] == max(abs(float(a) - float(b)) for a, b in zip(r, m, strict=True))
        assert found.top1_equal[t] == (list(r).index(max(r)) == list(m).index(max(m)))
        if r.any() and m.any():
            dot = sum(float(a) * float(b) for a, b in zip(r, m, strict=True))
            norms = math.hypot(*map(float, r)) * math.hypot(*map(float, m))
            if norms > 1e-300:
                assert found.cosine[t] == pytest.approx(dot / norms, abs=1e-6)
        if t < len(ids):
            assert found.nll_reference[t] == pytest.approx(-math.log(p[ids[t]]), abs=1e-9)
            assert found.nll_model[t] == pytest.approx(-math.log(q[ids[t]]), abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.lists(logit_pairs(), min_size=1, max_size=4))
def test_figures_of_several_passages_equal_those_of_all_rows_together(
    pairs: list[tuple[np.ndarray, np.ndarray]],
) -> None:
    width = min(r.shape[1] for r, _ in pairs)
    passages = [(r[:, :width], m[:, :width]) for r, m in pairs]
    comparison = LogitComparison()
    for r, m in passages:
        comparison.add("passage", [0] * len(r), r, m)
    summary = comparison.summary()
    reference, model = (np.concatenate(side).astype(np.float64) for side in zip(*passages, strict=True))
    rows = row_metrics(reference, model)
    assert summary.tokens == len(reference)
    assert summary.kld_mean == pytest.approx(rows.kld.mean(), abs=1e-12)
    assert summary.logit_std == pytest.approx(reference.std(), rel=1e-9, abs=1e-9)
    assert summary.mean_abs_diff == pytest.approx(np.abs(model - reference).mean(), abs=1e-9)
    assert summary.max_abs_diff == np.abs(model - reference).max()
    assert summary.top1 == pytest.approx(rows.top1_equal.mean())


def test_rows_are_the_same_whether_they_fit_one_block_or_several() -> None:
    random = np.random.default_rng(1)
    reference, model = random.normal(size=(2, 40, 50)).astype(np.float32)
    whole = row_metrics(reference, model, range(39))
    blocks = row_metrics(reference, model, range(39), block_bytes=7 * 50 * 8)
    np.testing.assert_array_equal(whole.kld, blocks.kld)
    np.testing.assert_array_equal(whole.nll_model, blocks.nll_model)


def test_equal_logits_show_no_difference_and_equal_perplexity() -> None:
    logits = np.random.default_rng(0).normal(0, 3, (20, 30)).astype(np.float32)
    comparison = LogitComparison()
    comparison.add("same", np.arange(20), logits, logits.copy())
    summary = comparison.summary()
    assert (summary.max_abs_diff, summary.kld_mean, summary.top1) == (0, 0, 1)
    assert summary.perplexity_model == summary.perplexity_reference
    assert summary.kld_standard_error is None
    assert comparison.samples.equal == 20 * 30 and not comparison.samples.histogram.any()


def test_perplexity_of_uniform_logits_is_the_vocabulary_size() -> None:
    comparison = LogitComparison()
    comparison.add("uniform", [3, 1, 4, 1, 5], np.zeros((5, 32), np.float32), np.full((5, 32), 7, np.float32))
    assert comparison.summary().perplexity_model == pytest.approx(32)


def test_a_single_token_has_no_perplexity() -> None:
    comparison = LogitComparison()
    comparison.add("one", [3], np.eye(1, 8, dtype=np.float32), np.eye(1, 8, dtype=np.float32))
    assert comparison.summary().perplexity_model is None


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_logit_that_is_not_finite_is_counted_and_fails_every_limit(bad: float) -> None:
    reference = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    model = reference.copy()
    model[2, 3] = bad
    comparison = LogitComparison()
    comparison.add("bad", [0, 1, 2, 3], reference, model)
    # A later passage without fault must not cover it up.
    comparison.add("good", [0, 1, 2, 3], reference, reference)
    summary = comparison.summary()
    assert summary.non_finite == 1
    assert not Check("logits", "", summary.relative_max_diff, 1e9).passed
    assert not Check("kld", "", summary.kld_mean, 1e9).passed


def test_standard_error_of_equal_clusters_is_the_usual_one() -> None:
    means = [0.1, 0.4, 0.25, 0.3]
    mean, error = clustered_mean(means, [64] * 4)
    assert mean == pytest.approx(np.mean(means))
    assert error == pytest.approx(np.std(means, ddof=1) / 2)


def test_a_larger_cluster_weighs_more() -> None:
    assert clustered_mean([0.0, 1.0], [30, 10])[0] == pytest.approx(0.25)


def test_layer_error_is_relative_to_the_reference() -> None:
    expected = np.asarray([[3.0, 4.0]])
    error = layer_error("0", "conv", expected, expected * 1.1)
    assert error.relative == pytest.approx(0.1)
    assert error.max_abs_diff == pytest.approx(0.4)
    assert error.cosine == pytest.approx(1)


def test_a_check_passes_at_its_limit_and_never_with_nan() -> None:
    assert Check("a", "", 1.0, 1.0).passed and Check("a", "", 1.0, 1.0, ">=").passed
    assert not Check("a", "", 1.1, 1.0).passed and not Check("a", "", 0.9, 1.0, ">=").passed
    assert not Check("a", "", math.nan, 1.0).passed and not Check("a", "", math.nan, 1.0, ">=").passed


def test_limits_follow_the_precision_and_can_be_overridden() -> None:
    fp32, fp16 = Thresholds.of_variant("fp32"), Thresholds.of_variant("fp16")
    assert (fp32.max_logit_diff, fp32.max_kld, fp32.greedy_equal) == (1e-3, None, True)
    assert (fp16.max_logit_diff, fp16.max_kld, fp16.min_top1) == (None, 1e-3, 0.99)
    looser = Thresholds.of_variant("fp16", max_kld=0.2)
    assert (looser.max_kld, looser.consistency, looser.min_top1) == (0.2, 0.2, 0.99)
    assert Thresholds.of_variant("fp32", max_kld=0.2).max_logit_diff == 1e-3


def synthetic_report(*, passed: bool = True, label: str = "prose") -> ParityReport:
    random = np.random.default_rng(0)
    comparison = LogitComparison()
    for number in range(3):
        reference = random.normal(0, 2, (40, 64)).astype(np.float32)
        model = reference + random.normal(0, 1e-3, reference.shape).astype(np.float32)
        comparison.add(f"{label} {number}", random.integers(0, 64, 40), reference, model)
    limit = 1.0 if passed else 1e-9
    summary = comparison.summary()
    return ParityReport(
        identity={"artifact": "out", "variant": "fp32, custom ops", "reference": "checkpoint (numpy)"},
        thresholds=Thresholds.of_variant("fp32", max_kld=1e-3, min_top1=0.9),
        logits=summary,
        passages=comparison.passages,
        samples=comparison.samples,
        greedy=[GreedyAgreement(label, 7, 32, 32), GreedyAgreement("other", 9, 32, 4, 0.02)],
        checks=[Check("logits", "largest difference / std", summary.relative_max_diff, limit, detail=label)],
        layers=[LayerError("0", "conv", 1e-7, 1e-6, 1.0), LayerError("1", "attention", 0.3, 2.0, 0.9)],
        tasks=TaskAccuracy({"sums": (3, 4)}, [TaskAnswer("t1", "sums", "19", label)]),
        reference_tasks=TaskAccuracy({"sums": (4, 4)}, []),
        seconds=1.5,
    )


def test_the_verdict_names_what_was_missed() -> None:
    assert synthetic_report().passed
    missed = synthetic_report(passed=False)
    assert not missed.passed
    assert missed.verdict == "parity missed: 1 of 1 checks (logits)"


def test_the_first_departing_layer_is_named() -> None:
    assert synthetic_report().first_departing_layer == "1"


def test_json_holds_every_figure_and_no_number_that_json_lacks() -> None:
    report = synthetic_report()
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert data["passed"] is True and data["checks"][0]["passed"] is True
    assert data["logits"]["kld_mean"] == report.logits.kld_mean
    assert data["tasks"]["accuracy"] == 0.75
    assert data["logits"]["chunks"] == len(data["chunks"]) == 3
    assert data["first_departing_layer"] == "1"
    nan = ParityReport(**{**vars(report), "checks": [Check("broken", "", math.nan, 1.0)]})
    assert json.loads(json.dumps(nan.to_dict(), allow_nan=False))["checks"][0]["value"] is None


HOSTILE = 'x<script>alert("1")</script> | $\\alpha$ & `y`'


class TagCollector(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.references: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]


def test_the_html_report_is_one_file_with_every_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "report.html"
    write_report(synthetic_report(label=HOSTILE), path)
    text = path.read_text(encoding="utf-8")
    page = TagCollector()
    page.feed(text)
    assert page.tags.count("svg") == 6
    assert all(reference.startswith("#") for reference in page.references), "nothing may be loaded from elsewhere"
    assert "url(http" not in text and "@import" not in text
    assert "Parity holds" in text
    assert "script" not in page.tags
    assert not re.search(r"#01020\d", text), "every stand-in colour must have become a variable of the page"


def test_plots_stand_figures_that_are_not_finite(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    report = synthetic_report()
    reference = np.zeros((3, 64), np.float32)
    comparison = LogitComparison()
    comparison.add("nan", [1, 2, 3], reference, np.full_like(reference, np.nan))
    parts = {"samples": comparison.samples, "passages": comparison.passages, "logits": comparison.summary()}
    broken = ParityReport(**{**vars(report), **parts, "checks": [Check("finite", "", 192, 0)]})
    write_report(broken, tmp_path / "report.html")
    assert "Parity missed" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_markdown_report_keeps_its_tables_whole_whatever_a_label_holds() -> None:
    text = markdown_report(synthetic_report(label=HOSTILE))
    assert "<script>" not in text
    for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1, table


def test_a_missed_limit_is_visible_in_markdown() -> None:
    assert "MISSED" in markdown_report(synthetic_report(passed=False))
    assert "MISSED" not in markdown_report(synthetic_report())


def test_an_html_report_without_matplotlib_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r'pip install "lfm-onnx\[report\]"'):
        require_report_file(tmp_path / "report.html")
    require_report_file(tmp_path / "report.md")


def test_a_report_that_cannot_be_written_is_refused_beforehand(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\.html or \.md"):
        require_report_file(tmp_path / "report.pdf")
    with pytest.raises(OutputError, match="a folder that exists"):
        require_report_file(tmp_path / "missing" / "report.md")
