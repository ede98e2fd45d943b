"""What all custom ops share: the domain, the op-set versions and the two styles of function bodies."""

from __future__ import annotations

from enum import Enum

DOMAIN = "ai.liquid"
DOMAIN_VERSION = 1

OPSET_VERSION = 21
"""ai.onnx version of graph and bodies: the newest that every client in the field runs, Windows ML included."""

CONTRIB_DOMAIN = "com.microsoft"
CONTRIB_VERSION = 1


class BodyStyle(str, Enum):
    """Which operators a graph and its function bodies may use."""

    CUSTOM = "custom"
    """ai.onnx and those of ONNX Runtime's contrib ops that exist since 1.24."""

    STANDARD = "standard"
    """ai.onnx only: runs on onnx's ReferenceEvaluator and on any other runtime."""

    def opset_imports(self) -> dict[str, int]:
        """Operator sets that a body of this style imports: domain to version."""
        imports = {"": OPSET_VERSION}
        if self is BodyStyle.CUSTOM:
            imports[CONTRIB_DOMAIN] = CONTRIB_VERSION
        return imports
