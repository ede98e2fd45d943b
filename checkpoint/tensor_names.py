"""What the names of a file's tensors say where they are not those of an LFM2 checkpoint: which prefix, and why."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

# Names that are looked at: the first few layers' say what all do.
_EXPECTED, _STORED = 400, 2000

# Part of a tensor's name, what puts it there, and what to do. The first that is found explains the name.
_WRAPPERS = (
    ("_orig_mod.", "torch.compile", "save the module inside (model._orig_mod.save_pretrained)"),
    ("_fsdp_wrapped_module.", "FSDP", "gather the full state dict and save that"),
    ("_checkpoint_wrapped_module.", "activation checkpointing", "save the model before it is wrapped"),
    ("_forward_module.", "Lightning Fabric", "save the module inside"),
    ("base_model.", "PEFT", "merge the adapter (merge_and_unload) and save the result"),
    ("base_layer.", "PEFT", "merge the adapter (merge_and_unload) and save the result"),
    ("language_model.", "a vision-language or audio model around it", "save its language model alone"),
    ("text_model.", "a vision-language or audio model around it", "save its text model alone"),
    ("module.", "DistributedDataParallel", "save the module inside (model.module.save_pretrained)"),
)


def foreign_names(stored: Iterable[str], expected: Iterable[str]) -> str | None:
    """One clause on names among ``stored`` that are those of ``expected`` with something added; None without any."""
    full = list(islice(expected, _EXPECTED))
    bare = [name.removeprefix("model.") for name in full]
    names = sorted(stored)[:_STORED]
    for tail in (*full, *bare):
        for name in names:
            prefix = name.removesuffix(tail)
            if prefix not in ("", "model.", name) and prefix.endswith(".") and prefix.isprintable():
                known = next((wrapper for wrapper in _WRAPPERS if wrapper[0] in prefix), None)
                origin, remedy = known[1:] if known is not None else ("no known tool", "rename them to model.…")
                return f'its tensors have the prefix "{prefix[:80]}", as {origin} names them: {remedy}'
    for name in names:
        for part, origin, remedy in _WRAPPERS:
            if part in name and name.replace(part, "") in (*full, *bare):
                return f'names of its tensors hold "{part}", as {origin} names them: {remedy}'
    return None
