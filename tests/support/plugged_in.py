"""Distributions of others, with entry points of ours."""

from pathlib import Path


def write_distribution(folder: Path, package: str, group: str, **points: str) -> None:
    """Write the metadata of a distribution with these entry points; *folder* is to import from."""
    info = folder / f"{package.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    lines = "".join(f"{name} = {value}\n" for name, value in points.items())
    (info / "entry_points.txt").write_text(f"[{group}]\n{lines}")
