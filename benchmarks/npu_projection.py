"""Tokens per second to expect of the NPU plans on the known chips, for LFM2.5-8B-A1B and the dense models.

    python benchmarks/npu_projection.py [--config CONFIG.json] [--weights int8] [--context 4096] [--json]

A projection: the assumptions and what the same formulas give for published figures are printed with it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from lfm_onnx.checkpoint.config import LfmConfig
from lfm_onnx.hardware.chips import CHIPS, chip
from lfm_onnx.mobile_bridge.projection import PLANS, PUBLISHED, assumptions, projections, speed_of
from rich.console import Console
from rich.table import Table

_DENSE_16 = (2, 5, 8, 10, 12, 14)
_SHAPES: dict[str, dict[str, Any]] = {
    "LFM2.5-8B-A1B": {
        "model_type": "lfm2_moe", "vocab_size": 128000, "hidden_size": 2048, "num_hidden_layers": 24,
        "num_attention_heads": 32, "intermediate_size": 7168, "moe_intermediate_size": 1792, "num_experts": 32,
        "num_experts_per_tok": 4, "num_dense_layers": 2, "use_expert_bias": True, "norm_topk_prob": True,
        "attention": (2, 6, 10, 14, 18, 21),
    },
    "LFM2-350M": {"hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4608},
    "LFM2-700M": {"hidden_size": 1536, "num_attention_heads": 24, "intermediate_size": 6912},
    "LFM2-1.2B": {"hidden_size": 2048, "num_attention_heads": 32, "intermediate_size": 8192},
    "LFM2-2.6B": {
        "hidden_size": 2048, "num_attention_heads": 32, "intermediate_size": 10752, "num_hidden_layers": 30,
        "attention": (2, 5, 9, 13, 17, 21, 24, 27),
    },
}  # fmt: skip


def published_config(name: str) -> LfmConfig:
    """The configuration of a published model by its name."""
    shape: dict[str, Any] = {
        "model_type": "lfm2", "vocab_size": 65536, "num_hidden_layers": 16, "num_key_value_heads": 8,
        "conv_L_cache": 3, "max_position_embeddings": 128000, "norm_eps": 1e-5, "rope_theta": 1e6,
        "tie_word_embeddings": True, "attention": _DENSE_16, **_SHAPES[name],
    }  # fmt: skip
    attention = shape.pop("attention")
    layers = range(shape["num_hidden_layers"])
    shape["layer_types"] = ["full_attention" if i in attention else "conv" for i in layers]
    if shape["model_type"] == "lfm2":
        shape |= {"block_auto_adjust_ff_dim": False}
    return LfmConfig.from_dict(shape, file="config.json")


@click.command()
@click.option("--config", type=click.Path(path_type=Path), help="config.json of another model.")
@click.option("--weights", type=click.Choice(["int4", "int8"]), default="int4", show_default=True)
@click.option("--context", type=int, default=512, show_default=True, help="Tokens in the cache.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(config: Path | None, weights: str, context: int, as_json: bool) -> None:
    """Print the projection for every chip and plan."""
    models = (
        {config.parent.name: LfmConfig.load(config.parent)} if config else {n: published_config(n) for n in _SHAPES}
    )
    found = {name: projections(model, weights=weights, context=context) for name, model in models.items()}
    lines = assumptions(weights, context)
    if as_json:
        data = {name: [item.to_dict() for item in items] for name, items in found.items()}
        click.echo(json.dumps({"projection": data, "assumptions": lines}))
        return
    console = Console(highlight=False, width=140)
    for name, items in found.items():
        table = Table(title=f"{name}: projected tokens/s, decode (prefill)", title_justify="left")
        for heading in ("chip", "memory", *PLANS, "MB a token", "parts"):
            table.add_column(heading, justify="left" if heading == "chip" else "right")
        for item in CHIPS:
            own = {p.plan: p for p in items if p.chip == item.name}
            cells = [f"{own[plan].decode_tokens_per_s:.0f} ({own[plan].prefill_tokens_per_s:.0f})" for plan in PLANS]
            npu = own["npu"]
            table.add_row(
                item.title, f"{item.memory_bandwidth / 1e9:.0f} GB/s", *cells, f"{npu.bytes_per_token / 1e6:.0f}",
                str(npu.parts),
            )  # fmt: skip
        console.print(table)
    console.print("Assumptions:")
    for line in lines:
        console.print(f"- {line}", markup=False)
    console.print("The same formulas on published figures:")
    for figure in PUBLISHED:
        where, speed = chip(figure.chip), speed_of(chip(figure.chip))
        share = speed.npu_bandwidth_share if figure.plan == "npu" else speed.cpu_bandwidth_share
        rate = share * where.memory_bandwidth / figure.weight_bytes
        console.print(
            f"- {figure.model} on {where.title}, {figure.plan}: {rate:.1f} projected, "
            f"{figure.tokens_per_s:g} published ({figure.source})",
            markup=False,
        )


if __name__ == "__main__":
    main()
