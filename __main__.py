"""`python -m lfm_onnx` and `lfm-onnx`: the command line, interrupted in one line even while it is being imported."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and exit."""
    try:
        from .cli.main import main as command_line

        command_line(prog_name="lfm-onnx")
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        sys.exit(130)
    except ImportError as error:
        print(f"Error: {error}; the installation is not complete: install lfm-onnx again", file=sys.stderr)
        sys.exit(70)


if __name__ == "__main__":
    main()
