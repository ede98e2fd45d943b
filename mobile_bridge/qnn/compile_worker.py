"""The process that compiles one part: opens its graphs one after another and leaves context binaries in a folder.

Request: graphs (absolute paths), names (of the EPContext models), folder, provider_options, shared. A process of its
own, since the compiler gives memory back only at its end, and may end in a crash.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ...errors import reason_of
from ...hardware.memory import peak_rss_bytes
from ...reporting.byte_size import byte_size
from ...runtime.npu.provider import open_session
from ...runtime.worker_process import WorkerError, serve

_LOG_WARNINGS = 2


def compile_graphs(request: dict[str, Any]) -> dict[str, Any]:
    """Compile and return seconds by graph. Raises what ONNX Runtime raises."""
    folder = Path(request["folder"])
    seconds = []
    sessions = []  # sharing needs all of them alive until the last has written the binary
    last = len(request["graphs"]) - 1
    for at, (graph, name) in enumerate(zip(request["graphs"], request["names"], strict=True)):
        config = {
            "ep.context_enable": "1",
            "ep.context_embed_mode": "0",
            "ep.context_file_path": str(folder / name),
        }
        if request["shared"]:
            config["ep.share_ep_contexts"] = "1"
            if at == last:
                config["ep.stop_share_ep_contexts"] = "1"
        started, worked = time.perf_counter(), time.process_time()
        session = open_session(
            Path(graph), provider_options=request["provider_options"], config=config, log_severity=_LOG_WARNINGS
        )
        if request["shared"]:
            sessions.append(session)
        del session
        seconds.append(time.perf_counter() - started)
        print(
            f"compiled {name} in {seconds[-1]:.1f} s, {time.process_time() - worked:.1f} s of processor time, at most "
            f"{byte_size(peak_rss_bytes())} of memory",
            flush=True,
        )
    return {"seconds": seconds}


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """The result of ``compile_graphs`` with this process's peak memory; WorkerError says what the compiler said."""
    try:
        result = compile_graphs(request)
    except Exception as error:  # ONNX Runtime's exceptions share no other base
        raise WorkerError(reason_of(error), "refused") from error
    return {**result, "peak_rss_bytes": peak_rss_bytes()}


if __name__ == "__main__":
    serve(answer)
