"""Keep the state of this version for tests/state/test_versions.py, when the version is out.

    .venv/bin/python tools/last_version.py

It writes tests/state/last_version.zip: the modules of the states and all of ours that they import.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "keyrot_middleware"
IMPORTED = f"""
import sys
import {PACKAGE}.state.redis, {PACKAGE}.state.sqlite
print(*[m.__file__ for name, m in sys.modules.items() if name.partition(".")[0] == "{PACKAGE}"])
"""
SAME_DAY = (2026, 1, 1, 0, 0, 0)
"""Of all files, so that the same version is the same archive."""


def main() -> None:
    """Write the archive."""
    ran = subprocess.run(
        [sys.executable, "-c", IMPORTED], cwd=ROOT, check=True, capture_output=True, text=True
    )
    files = [Path(name).relative_to(ROOT) for name in ran.stdout.split()]
    files.append(Path(PACKAGE) / "state" / "ledger.lua")
    with ZipFile(ROOT / "tests" / "state" / "last_version.zip", "w") as archive:
        for file in sorted(files):
            info = ZipInfo(file.as_posix(), SAME_DAY)
            info.compress_type, info.external_attr = ZIP_DEFLATED, 0o644 << 16
            archive.writestr(info, (ROOT / file).read_bytes(), compresslevel=9)


if __name__ == "__main__":
    main()
