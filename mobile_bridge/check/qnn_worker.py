"""The process that puts one graph through the NPU's compiler and says which node went where.

Request: graph (a path), provider_options, folder (for the compiler's dump). What ONNX Runtime logs goes to standard
error; the reasons of refused nodes are in there. A crash of the compiler ends this process and not the check.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ...errors import reason_of
from ...runtime.npu.provider import open_session
from ...runtime.worker_process import serve

_LOG_EVERYTHING = 0
_ASSIGNMENT = {"session.record_ep_graph_assignment_info": "1"}


def check_graph(request: dict[str, Any]) -> dict[str, Any]:
    """Compile with the fallback to the CPU disabled; where that fails, once more with it, to see what is left over."""
    graph, folder = Path(request["graph"]), Path(request["folder"])
    strict = {
        **_ASSIGNMENT,
        "ep.context_enable": "1",
        "ep.context_embed_mode": "0",
        "ep.context_file_path": str(folder / "check_ctx.onnx"),
    }
    dump = {"dump_json_qnn_graph": "1", "json_qnn_graph_dir": str(folder)}
    options = {**request["provider_options"], **dump}
    started = time.perf_counter()
    try:
        session = open_session(graph, provider_options=options, config=strict, log_severity=_LOG_EVERYTHING)
        return {"nodes": _assignment(session), "seconds": time.perf_counter() - started, "error": ""}
    except Exception as error:  # ONNX Runtime's exceptions share no other base
        first = reason_of(error)
    for written in folder.glob("*.json"):
        written.unlink()
    try:
        session = open_session(
            graph, provider_options=options, config=_ASSIGNMENT, fallback=True, log_severity=_LOG_EVERYTHING
        )
        return {"nodes": _assignment(session), "seconds": time.perf_counter() - started, "error": first}
    except Exception as error:  # as above
        return {"nodes": [], "seconds": time.perf_counter() - started, "error": f"{first}; {reason_of(error)}"}


def _assignment(session: Any) -> list[dict[str, str]]:
    return [
        {"provider": part.ep_name, "name": node.name, "op_type": node.op_type}
        for part in session.get_provider_graph_assignment_info()
        for node in part.get_nodes()
    ]


if __name__ == "__main__":
    serve(check_graph)
