"""A quantization report shows what was chosen and measured, in one file, whatever the names in it hold."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from lfm_onnx.artifact.method import Method
from lfm_onnx.errors import InputError, OutputError
from lfm_onnx.quantize.report.contents import (
    ExpertUsage,
    Promise,
    QuantizationReport,
    TensorResult,
    VariantResult,
    by_class,
)
from lfm_onnx.quantize.report.document import write_report
from lfm_onnx.reporting.byte_size import byte_size

HOSTILE = "<script>alert('1')</script> & \"x\" $\\frac$ \x00\n| `y` \ud800 مرحبا"


def example(layers: int = 6, experts: int = 8, name: str = "q4 gptq") -> QuantizationReport:
    tensors = [
        TensorResult("model.embed_tokens", "embedding", None, "int8-block32", 8.5, 68_000, 64_000, Method.SEARCH, 0.01)
    ]
    usage = []
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        kind, role = ("attention", "self_attn.out_proj") if layer % 3 == 2 else ("conv", "conv.out_proj")
        tensors.append(
            TensorResult(prefix + role, kind, layer, "int4-block32", 4.5, 2_304, 4_096, Method.GPTQ, 0.06, 0.08, 1e-3)
        )
        if layer >= 2:
            tokens = tuple((layer * 37 + expert * 53) % 200 for expert in range(experts))
            fell_back = tuple(expert for expert, count in enumerate(tokens) if count < 40)
            usage.append(ExpertUsage(layer, tokens, fell_back, "fewer than 40 tokens" if fell_back else ""))
            tensors.append(
                TensorResult(
                    prefix + "feed_forward.experts",
                    "experts",
                    layer,
                    "int4-block32",
                    4.5,
                    92_160,
                    163_840,
                    Method.GPTQ,
                    0.09,
                    0.1,
                )
            )
    variants = (
        VariantResult("fp16", None, "float16", 1_600_000, 16.0, 1e-6, 1e-7, 0.9996),
        VariantResult("q4 rtn", Method.RTN, "int4-block32", 450_000, 4.5, 0.09, 0.01, 0.88, seconds=4.0),
        VariantResult(name, Method.GPTQ, "mixed", 470_000, 4.7, 0.04, 0.005, 0.93, chosen=True, seconds=61.5),
        VariantResult("q8", Method.SEARCH, "int8-block32", 850_000, 8.5),
    )
    return QuantizationReport(
        identity={"checkpoint": "LFM2-sample", "method": "gptq"},
        variants=variants,
        tensors=tuple(tensors),
        experts=tuple(usage),
        promises=(Promise("--max-kld", 0.04, 0.1, "nats"), Promise("--budget", 470_000, 480_000, "bytes")),
        calibration_tokens=2048,
        measured_tokens=1024,
        seconds=72.0,
        peak_memory_bytes=2_500_000_000,
    )


class Page(HTMLParser):
    """Elements with their attributes, ids, links, headings, and the text of tables by title."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.rows: list[list[str]] = []
        self.in_cell = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self.in_cell = self.in_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        if self.in_cell:
            self.rows[-1][-1] += data

    def attributes(self, name: str) -> list[str]:
        return [value for _, attributes in self.tags if (value := attributes.get(name)) is not None]


def written(report: QuantizationReport, folder: Path) -> tuple[str, Page]:
    write_report(folder / "report.html", report)
    text = (folder / "report.html").read_text(encoding="utf-8")
    return text, Page(text)


def test_the_page_needs_nothing_from_outside(tmp_path: Path) -> None:
    text, page = written(example(), tmp_path)
    assert not {"script", "link", "img", "iframe", "object", "image", "base"} & {tag for tag, _ in page.tags}
    ids = set(page.attributes("id"))
    links = page.attributes("href") + page.attributes("xlink:href")
    assert links and all(link.startswith("#") and link[1:] in ids for link in links)
    assert not page.attributes("src") and not re.findall(r"@import|url\((?!#)", text)
    assert len(page.attributes("id")) == len(ids), "an id stands for one element"


def test_every_plot_follows_the_pages_colours_and_links_to_its_table(tmp_path: Path) -> None:
    text, _ = written(example(), tmp_path)
    svgs = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(svgs) == 5
    for svg in svgs:
        assert 'role="img" aria-label="' in svg
        assert "var(--" in svg and "#0102" not in svg
    assert text.count("The figures as a table.") == len(svgs)
    assert "prefers-color-scheme: dark" in text


def test_the_tables_hold_the_figures_of_the_plots(tmp_path: Path) -> None:
    report = example()
    _, page = written(report, tmp_path)
    cells = {row[0]: row for row in page.rows if row}
    for variant in report.variants:
        row = cells[variant.name + (" (written)" if variant.chosen else "")]
        assert f"{variant.bytes:,}" in row
        assert (variant.kld is None) == (row[5] == "")
    assert cells["q4 gptq (written)"][5:8] == ["0.04 ± 0.005", "93%", "61.5 s"]
    for tensor in report.tensors:
        row = cells[tensor.name]
        assert tensor.format in row and f"{tensor.bytes:,}" in row and tensor.method in row
    assert cells["model.layers.0.conv.out_proj"][6:10] == ["0.06", "0.08", "-25.0%", "0.001"]
    for usage in report.experts:
        expected = [f"{count:,}{' *' if e in usage.fell_back else ''}" for e, count in enumerate(usage.tokens)]
        assert [str(usage.layer), *expected] in page.rows


def test_the_verdict_says_whether_each_promise_was_kept(tmp_path: Path) -> None:
    text, _ = written(example(), tmp_path)
    assert '<header class="ok">' in text and "NOT KEPT" not in text
    broken = replace(example(), promises=(Promise("--max-kld", 0.3, 0.1, "nats"),))
    text, _ = written(broken, tmp_path)
    assert '<header class="missed">' in text and "0.3 nats, limit 0.1 nats: NOT KEPT" in text
    assert not Promise("--max-kld", math.nan, 0.1, "nats").kept


def hostile_tensor(tensor: TensorResult) -> TensorResult:
    return replace(tensor, name=HOSTILE, tensor_class=HOSTILE, format=HOSTILE)


def test_hostile_names_are_shown_and_never_run(tmp_path: Path) -> None:
    base = example(layers=3)
    hostile = replace(
        base,
        identity={"checkpoint": HOSTILE, HOSTILE: HOSTILE},
        variants=(replace(base.variants[2], name=HOSTILE, formats=HOSTILE),),
        tensors=tuple(hostile_tensor(t) for t in base.tensors),
        experts=(ExpertUsage(2, (1, 2), (1, 99), HOSTILE),),
        promises=(Promise(HOSTILE, 1.0, 2.0, HOSTILE),),
    )  # fmt: skip
    _, page = written(hostile, tmp_path)
    assert "script" not in {tag for tag, _ in page.tags}
    assert "alert('1')" in "".join(page.text)
    known = {
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "main",
        "header",
        "div",
        "h1",
        "h2",
        "p",
        "ul",
        "li",
        "b",
    }
    known |= {"section", "span", "small", "figure", "figcaption", "a", "details", "summary", "table", "thead", "tbody"}
    known |= {"tr", "th", "td", "svg", "g", "path", "defs", "use", "text", "rect", "clippath", "tspan"}
    assert {tag for tag, _ in page.tags} <= known
    write_report(tmp_path / "report.md", hostile)
    lines = (tmp_path / "report.md").read_text(encoding="utf-8").splitlines()
    assert not any("<script" in line.replace("\\<", "") for line in lines)
    widths = [re.sub(r"\\.", "", line).count("|") for line in lines if line.startswith("|")]
    assert widths and min(widths) >= 3


@pytest.mark.parametrize(
    "report",
    [
        QuantizationReport({}, (), ()),
        replace(example(), experts=(), promises=(), tensors=()),
        replace(example(), variants=tuple(replace(v, kld=math.nan, top1=None) for v in example().variants)),
        replace(example(), tensors=tuple(replace(t, error=math.inf, bits_per_weight=0.0) for t in example().tensors)),
        replace(example(), experts=(ExpertUsage(0, ()), ExpertUsage(1, (0, 0, 0)))),
        example(layers=40, experts=64),
    ],
    ids=["empty", "no details", "no KLD", "no errors", "no tokens", "large"],
)
def test_a_report_with_little_or_much_in_it_is_still_written(report: QuantizationReport, tmp_path: Path) -> None:
    text, page = written(report, tmp_path)
    assert text.rstrip().endswith("</html>")
    assert [
        "calibration",
        f"{report.calibration_tokens:,} tokens" if report.calibration_tokens else "none",
    ] in page.rows
    assert len(text) < 4_000_000


def test_the_same_report_gives_the_same_bytes(tmp_path: Path) -> None:
    assert written(example(), tmp_path)[0] == written(example(), tmp_path)[0]


def test_classes_add_up_to_all_tensors() -> None:
    report = example()
    classes = by_class(report.tensors)
    assert sum(c.bytes for c in classes) == sum(t.bytes for t in report.tensors)
    assert [c.tensor_class for c in classes] == ["embedding", "conv", "attention", "experts"]
    embedding = classes[0]
    assert embedding.bits_per_weight == pytest.approx(8.5) and embedding.round_to_nearest_error is None
    two = (
        TensorResult("a", "x", 0, "f", 4.5, 9, 16, Method.RTN, 3.0),
        TensorResult("b", "x", 1, "f", 4.5, 9, 16, Method.RTN, 4.0),
    )
    assert by_class(two)[0].error == pytest.approx(math.sqrt(12.5))


def test_sizes_are_in_decimal_units() -> None:
    assert [byte_size(n) for n in (999, 1_000, 4_812_345_678)] == ["999 B", "1 kB", "4.812 GB"]


def test_a_report_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\.html or \.md"):
        write_report(tmp_path / "report.pdf", example())
    with pytest.raises(OutputError, match="folder that exists"):
        write_report(tmp_path / "missing" / "report.html", example())
