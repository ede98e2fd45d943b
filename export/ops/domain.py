"""What all custom ops share: the domain, the op-set versions and the two profiles of function bodies."""

from __future__ import annotations

from enum import Enum

import onnx_ir as ir

DOMAIN = "ai.liquid"
DOMAIN_VERSION = 1

HALF_DOMAIN = "ai.liquid.half"
"""The same ops on float16 activations. A domain of their own: kernels for ``ai.liquid`` take float32, and a library
that declares them must not be asked to run these."""

OPSET_VERSION = 21
"""ai.onnx version of graph and bodies: the newest that every client in the field runs, Windows ML included."""

CONTRIB_DOMAIN = "com.microsoft"
CONTRIB_VERSION = 1


def domain_of(activations: ir.DataType) -> str:
    """The domain of the ops on activations of this type."""
    return DOMAIN if activations == ir.DataType.FLOAT else HALF_DOMAIN


class OpsProfile(str, Enum):
    """Which operators a graph and its function bodies may use."""

    CUSTOM = "custom"
    """ai.onnx and those of ONNX Runtime's contrib ops that exist since 1.24."""

    STANDARD = "standard"
    """ai.onnx only: runs on onnx's ReferenceEvaluator and on any other runtime."""

    def opset_imports(self) -> dict[str, int]:
        """Operator sets that a body of this profile imports: domain to version."""
        imports = {"": OPSET_VERSION}
        if self is OpsProfile.CUSTOM:
            imports[CONTRIB_DOMAIN] = CONTRIB_VERSION
        return imports
