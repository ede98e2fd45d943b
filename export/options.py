"""What the caller of an export chooses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..artifact.formats import BlockFormat
from ..artifact.method import Method
from ..artifact.precision import FP32, PRECISIONS, Q4, Precision
from ..errors import InputError
from ..quantize.calibration_text import DEFAULT_CALIBRATION_TOKENS
from ..quantize.recipe import Recipe
from .ops import OpsProfile


@dataclass(frozen=True)
class ExportOptions:
    """What an export is to write, and how; ``resolve_export`` checks it and settles what is left open.

    The first group is for every precision, the second for those that store blocks (q8, q4, q4f16), the third lets
    ``export_checkpoint`` choose each tensor's bits: at most one promise of size and one of quality, or a recipe that
    says what was chosen before.

    >>> import lfm_onnx
    >>> options = lfm_onnx.ExportOptions(precision="q8", context_length=512)
    >>> lfm_onnx.export_checkpoint("tiny_lfm", "lfm-512", options).plan.context_length
    512
    """

    precision: Precision | str | None = None
    """"fp32", "fp16", "q8", "q4" or "q4f16"; None: the recipe's, q4 with a promise, else fp32."""
    ops_profile: OpsProfile | str = OpsProfile.CUSTOM
    """"custom": ONNX Runtime's contrib operators where they are faster; "standard": ai.onnx alone."""
    context_length: int | None = None
    """Positions to support; None: all that the checkpoint was made for."""
    replace: bool = False
    """Whether an artifact that stands in the output folder gives way."""
    tokenizer: bool = True
    """False exports a checkpoint without tokenizer files."""
    threads: int | None = None
    """None: one for each processor. Bytes do not depend on them."""

    method: Method | str | None = None
    """"rtn", "search" or "gptq"; None: the precision's best."""
    block_size: int | None = None
    """Weights per scale: 32 (default), 64 or 128."""
    scale_dtype: str | None = None
    """"float16" (default) or "float32"."""
    zero_points: bool = False
    """Whether each block has a zero point."""
    calibration: Path | str | None = None
    """Text that calibrates: .txt, .jsonl or a folder of them; None: what ships with the package."""
    calibration_tokens: int = DEFAULT_CALIBRATION_TOKENS
    """Most tokens of it."""

    budget: int | None = None
    """Bytes that the weights may take at most."""
    max_kld: float | None = None
    """Nats of KLD from the original at most, on held-out text."""
    recipe: Recipe | Path | str | None = None
    """A recipe, or the file or artifact that holds one."""

    def settled_precision(self, recipe: Recipe | None) -> Precision:
        """The precision with the block format that is asked for. InputError where there is none."""
        base = self.precision
        if isinstance(base, str):
            if base not in PRECISIONS:
                raise InputError(f"`precision` is {base!r}, expected one of {', '.join(PRECISIONS)}")
            base = PRECISIONS[base]
        elif base is None and recipe is not None:
            base = PRECISIONS[recipe.precision]
        elif base is None:
            base = Q4 if self.budget is not None or self.max_kld is not None else FP32
        try:
            return base.with_blocks(self.block_size, self.scale_dtype, zero_points=self.zero_points)
        except ValueError as error:
            raise InputError(str(error)) from None

    def settled_ops_profile(self) -> OpsProfile:
        """The profile by its name. InputError for an unknown one."""
        try:
            return OpsProfile(self.ops_profile)
        except ValueError:
            names = ", ".join(item.value for item in OpsProfile)
            raise InputError(f"`ops_profile` is {self.ops_profile!r}, expected one of {names}") from None

    def settled_method(self) -> Method | None:
        """The method, None for the precision's best. InputError for an unknown one."""
        try:
            return None if self.method is None else Method(self.method)
        except ValueError:
            known = ", ".join(method.value for method in Method)
            raise InputError(f"`method` is {self.method!r}, expected one of {known}") from None

    def check(self, precision: Precision) -> None:
        """InputError where options contradict one another or hold what cannot be."""
        names = [
            name for name in ("method", "calibration", "budget", "max_kld", "recipe") if getattr(self, name) is not None
        ]
        if names and not isinstance(precision.weights, BlockFormat):
            raise InputError(
                f"`{names[0]}` is for precisions that store blocks, q4, q8 and q4f16; {precision.name} does not"
            )
        promises = [name for name in ("budget", "max_kld") if name in names]
        for name in promises:
            if not getattr(self, name) > 0:
                raise InputError(f"`{name}` is {getattr(self, name)}, expected a number above 0")
        if promises and self.block_size is not None:
            raise InputError(f"`{promises[0]}` chooses the block size of each tensor: leave out `block_size`")
        blocks = self.block_size is not None or self.scale_dtype is not None or self.zero_points
        if self.recipe is not None and (promises or blocks):
            other = f"`{promises[0]}`" if promises else "a block format"
            raise InputError(f"`recipe` says the format of every tensor: leave out {other}")
