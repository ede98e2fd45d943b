"""Whatever a chat template does, it takes no more than its budget of time and memory, and fails with one line."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lfm_onnx.checkpoint.chat_template import ChatTemplate
from lfm_onnx.checkpoint.template_renderer import footprint, process
from lfm_onnx.checkpoint.template_renderer.outcome import Outcome
from lfm_onnx.checkpoint.template_renderer.renderer import RENDERER, TemplateRenderer
from lfm_onnx.errors import InputError, TokenizerError

HI = [{"role": "user", "content": "hi"}]
TIME, MEMORY = "of processor time", "MB of memory"
BUDGET = f"{TIME}|{MEMORY}|characters"

ATTACKS = {
    "a macro that calls itself twice": (
        "{% macro f(n) %}{% if n > 0 %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        TIME,
    ),
    "loops in loops": ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", TIME),
    "loops that keep nothing": (
        "{% for i in range(99999) %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}",
        TIME,
    ),
    "sums": ("{% for i in range(99999) %}{% set x = range(99999) | sum %}{% endfor %}", TIME),
    "one long call of C code": ("{{ 42 | round(-2000000000) }}", TIME),
    "lipsum": ("{{ lipsum(n=3000000) | length }}", BUDGET),
    "a wide field": ("{{ 'a' | center(3000000000) | length }}", MEMORY),
    "a wide format": ("{{ '{:>3000000000}'.format('a') | length }}", MEMORY),
    "a percent format": ("{{ '%999999999d' % 1 }}", MEMORY),
    "tabs": ("{{ ('\\t'*100).expandtabs(30000000) | length }}", MEMORY),
    "a repeated tuple, joined": ("{{ (('a'*16000000,)*400) | join | length }}", MEMORY),
    "replacements": ("{{ ('a'*16000000).replace('a','b'*400) | length }}", MEMORY),
    "slices": ("{{ [1] | slice(900000000) | list | length }}", BUDGET),
    "batches": ("{{ [1] | batch(900000000, 'x') | list | length }}", MEMORY),
    "indented JSON": ("{{ [1,2,3] | tojson(indent=1500000000) | length }}", MEMORY),
    "bytes": ("{{ (1).to_bytes(3000000000,'big') | length }}", MEMORY),
    "products": ("{{ 'a' * 10**10 }}", MEMORY),
    "lists of numbers": ("{{ 10**10 * [1] }}", MEMORY),
    "powers": ("{{ 9 ** 9999999999 }}", BUDGET),
    "squares of squares": (
        "{% set n = namespace(i=9) %}{% for i in range(99) %}{% set n.i = n.i * n.i %}{% endfor %}",
        BUDGET,
    ),
    "texts that double": (
        "{% set n = namespace(t='aa') %}{% for i in range(99) %}{% set n.t = n.t ~ n.t %}{% endfor %}",
        MEMORY,
    ),
    "lists that double": (
        "{% set n = namespace(l=[1]) %}{% for i in range(99) %}{% set n.l = n.l + n.l %}{% endfor %}",
        MEMORY,
    ),
    "texts that are kept": (
        "{% set n = namespace(l=()) %}{% for i in range(900) %}{% set n.l = (n.l, 'a'*15000000 ~ i) %}{% endfor %}",
        BUDGET,
    ),
    "much text": ("{% for i in range(9999) %}{{ 'a' * 9999 }}{% endfor %}", "16000000 characters"),
}


@pytest.mark.parametrize(("template", "limit"), ATTACKS.values(), ids=ATTACKS)
def test_what_takes_more_than_the_budget_is_refused_in_one_line(template: str, limit: str) -> None:
    with pytest.raises(TokenizerError, match=limit) as failure:
        ChatTemplate(template).render(HI)
    assert "\n" not in str(failure.value)
    assert ChatTemplate("{{ messages[0].content }}").render(HI) == "hi"


# Operations that grow a value or the time for it, with an operand that the property chooses.
_STEPS = (
    "{v} * {n}",
    "{v} | center({n})",
    "{v}.replace('a', 'b' * {n})",
    "[{v}] | batch({n}, {v}) | list | string",
    "{v} ~ {v}",
    "({v},) * {n} | join",
    "{v} | indent({n})",
    "lipsum(n={n} % 2000)",
    "range({n}) | join({v})",
    "{v} | list | string",
    "{v} | wordwrap(1 + {n})",
    "{v} | tojson | tojson",
)


@settings(max_examples=12, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(_STEPS), st.sampled_from((2, 300, 99999, 10**8))), min_size=1, max_size=4))
def test_any_chain_of_operations_renders_or_is_refused(steps: list[tuple[str, int]]) -> None:
    lines = ["{% set v = 'aaaa' %}"]
    lines += ["{% set v = " + step.format(v="v", n=number) + " %}" for step, number in steps]
    try:
        ChatTemplate("".join(lines) + "{{ v | length }}").render(HI)
    except TokenizerError as error:
        assert "\n" not in str(error)


@pytest.mark.skipif(sys.platform == "win32", reason="peak memory is read from getrusage")
def test_neither_process_takes_more_memory_than_the_budget() -> None:
    code = (
        "import resource, sys\n"
        "from lfm_onnx.checkpoint.chat_template import ChatTemplate\n"
        "from lfm_onnx.errors import TokenizerError\n"
        "try: ChatTemplate('{% set n = namespace(l=[]) %}{% for i in range(9999) %}{% set n.l = n.l + [n.l|string] %}"
        "{% endfor %}').render([])\n"
        "except TokenizerError as error: assert 'MB of memory' in str(error), error\n"
        "from lfm_onnx.checkpoint.template_renderer.renderer import RENDERER\n"
        "from lfm_onnx.hardware.memory import peak_rss_bytes\n"
        "RENDERER.close()\n"
        "children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << (0 if sys.platform == 'darwin' else 10)\n"
        "print(max(children, peak_rss_bytes()))\n"
    )
    peak = int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
    assert peak < 700 << 20


def test_threads_may_render_at_once() -> None:
    template = ChatTemplate("{% for i in range(1000) %}{{ messages[0].content }}{% endfor %}")
    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(lambda i: template.render([{"role": "user", "content": str(i)}]), range(64)))
    assert texts == [str(i) * 1000 for i in range(64)]


def test_a_renderer_that_was_killed_is_replaced() -> None:
    template = ChatTemplate("{{ messages[0].content }}")
    for _ in range(2):
        assert RENDERER.pid is not None
        os.kill(RENDERER.pid, signal.SIGTERM)
        assert template.render(HI) == "hi"


def test_memory_that_others_left_behind_does_not_fail_a_template(monkeypatch: pytest.MonkeyPatch) -> None:
    ChatTemplate("a").render(HI)
    ask = process.RendererProcess.ask

    def short_of_memory(self: process.RendererProcess, request: bytes) -> tuple[Outcome, str]:
        if self.used:
            self.end()
            return Outcome.OUT_OF_MEMORY, "left behind"
        return ask(self, request)

    monkeypatch.setattr(process.RendererProcess, "ask", short_of_memory)
    assert RENDERER.render("{{ messages }}", {"messages": 1}) == "1"


def _answer(queue: multiprocessing.SimpleQueue[str]) -> None:
    queue.put(ChatTemplate("{{ messages[0].content }}").render([{"role": "user", "content": str(os.getpid())}]))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_starts_a_renderer_of_its_own() -> None:
    template = ChatTemplate("{{ messages[0].content }}")
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_answer, args=(queue,))
    child.start()
    assert template.render(HI) == "hi"
    assert queue.get() == str(child.pid)
    child.join()
    assert child.exitcode == 0


def test_an_interrupt_while_rendering_leaves_no_half_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    template = ChatTemplate("{{ messages[0].content }}")

    def interrupt(pipe: object) -> bytes:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(process, "read_frame", interrupt)
        with pytest.raises(KeyboardInterrupt):
            template.render([{"role": "user", "content": "lost"}])
    assert template.render(HI) == "hi"


def test_a_process_that_does_not_answer_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "WALL_SECONDS", 0.3)
    monkeypatch.setattr(process, "PROGRAM", "import time; time.sleep(60)")
    with pytest.raises(TokenizerError, match=r"more than 0\.3 s"):
        TemplateRenderer().compile("a")


def test_where_the_system_keeps_no_limit_the_memory_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process.sys, "platform", "darwin")
    monkeypatch.setattr(process, "footprint", lambda pid: 1 << 40)
    with pytest.raises(TokenizerError, match=MEMORY):
        TemplateRenderer().compile("{{ range(99999) | map('string') | join | length }}" * 20)


@pytest.mark.skipif(sys.platform != "darwin", reason="asks macOS")
def test_the_memory_of_a_process_is_known() -> None:
    assert 1 << 20 < footprint.footprint(os.getpid()) < 1 << 40
    assert footprint.footprint(-1) == 0


@pytest.mark.parametrize("executable", ["", None, "/nowhere/python"])
def test_without_an_interpreter_it_is_said_so(executable: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", executable)
    renderer = TemplateRenderer()
    renderer.start()
    with pytest.raises(TokenizerError, match="process"):
        renderer.compile("a")


def test_what_no_other_process_can_be_given_is_refused() -> None:
    with pytest.raises(InputError, match="plain data"):
        ChatTemplate("a").render([{"role": "user", "content": threading.Lock()}])


def test_lone_surrogates_come_through() -> None:
    assert ChatTemplate("{{ messages[0].content }}\\ud800").render([{"role": "user", "content": "\udfff"}]) == (
        "\udfff\\ud800"
    )
