"""C sources beside the Python, compiled on first use."""
import hashlib
import os
import subprocess
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.join(HERE, "..", "..")


def compiled(name, sources, flags, headers=()):
    """The path of a shared library in .build/, compiled (by CC, or cc) unless one of exactly these sources, headers, flags and
    this compiler is there. Paths are relative to this folder. The sources' includes start at the repository's root."""
    command = [os.environ.get("CC", "cc"), *flags, "-shared", "-fPIC"]
    digest = hashlib.sha256(" ".join(command).encode())
    for path in (*sources, *headers):
        with open(os.path.join(HERE, path), "rb") as file:
            digest.update(file.read())
    folder = os.path.join(HERE, ".build")
    library = os.path.join(folder, f"{name}-{digest.hexdigest()[:16]}.so")
    if not os.path.exists(library):
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:  # others may compile the same at this moment
            made = os.path.join(scratch, name + ".so")
            files = [os.path.join(HERE, path) for path in sources]
            subprocess.run([*command, "-I", ROOT, "-o", made, *files, "-lm"], check=True)
            os.replace(made, library)
    return library
