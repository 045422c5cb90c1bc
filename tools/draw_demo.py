"""Draw docs/images/demo.svg: the output of `keyrot demo`, from a run of it."""

from __future__ import annotations

import re
import sys
from io import StringIO
from pathlib import Path

from rich.console import Console

from keyrot_middleware.cli.fake import demo

IMAGE = Path(__file__).parents[1] / "docs" / "images" / "demo.svg"
WEB_FONT = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)
"""In rich's SVG: loads a font from another host."""


def main() -> int:
    """Run the demo, and write the picture."""
    out = Console(
        file=StringIO(),
        record=True,
        width=96,
        force_terminal=True,
        color_system="truecolor",
        highlight=False,
    )
    code = demo(out)
    if code == 0:
        out.print()  # rich cuts the lower edge off the last line
        svg = WEB_FONT.sub("", out.export_svg(title="keyrot demo", unique_id="demo"))
        IMAGE.write_text(svg, "utf-8")
        print(f"{IMAGE.name}: {IMAGE.stat().st_size / 1000:.0f} kB")
    return code


if __name__ == "__main__":
    sys.exit(main())
