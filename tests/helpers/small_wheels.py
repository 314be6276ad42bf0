"""Wheels of a few hundred bytes, as an index without network: a folder for pip's find-links."""

import zipfile


def write_wheel(folder, name, version="1.0", needs=(), tag="py3-none-any", padding=b""):
    """Write a wheel whose module says its version; return its path."""
    package = name.replace("-", "_")
    info = f"{package}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    metadata += "".join(f"Requires-Dist: {need}\n" for need in needs)
    path = folder / f"{package}-{version}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{package}/__init__.py", f"version = {version!r}\n")
        wheel.writestr(f"{package}/data.bin", padding)
        wheel.writestr(f"{info}/METADATA", metadata)
        wheel.writestr(
            f"{info}/WHEEL",
            f"Wheel-Version: 1.0\nGenerator: test\nTag: {tag}\nRoot-Is-Purelib: true\n",
        )
        wheel.writestr(f"{info}/RECORD", "")
    return path
