"""MkDocs hook: one API page for each package, made from its docstrings."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

PACKAGE = Path(__file__).parent.parent / "lt_mia_jax"
HIDDEN = {"commands", "__pycache__"}
"""Commands are described by `lt-mia COMMAND --help`."""


def packages() -> dict[str, list[str]]:
    """Dotted name of each documented package, with its modules in order."""
    found = {}
    for init in sorted(PACKAGE.rglob("__init__.py")):
        parts = init.parent.relative_to(PACKAGE.parent).parts
        if not HIDDEN & set(parts):
            found[".".join(parts)] = [
                path.stem
                for path in sorted(init.parent.glob("*.py"))
                if not path.stem.startswith("_")
            ]
    return found


def page(package: str, modules: list[str]) -> str:
    """Markdown of one package: its docstring, then the members of each module."""
    lines = [f"# {package.removeprefix('lt_mia_jax.')}", "", f"::: {package}"]
    lines += ["    options:", "      members: false", ""]
    for module in modules:
        lines += [f"## {module}", "", f"`{package}.{module}`", ""]
        lines += [f"::: {package}.{module}", "    options:", "      heading_level: 3"]
        lines += [""]
    return "\n".join(lines)


def _nested(names: list[str]) -> list:
    """Navigation: a package with subpackages is a section that starts with itself."""
    nav = []
    for name in names:
        parent, _, leaf = name.rpartition(".")
        path = f"api/{name.removeprefix('lt_mia_jax.').replace('.', '/')}"
        inner = [n for n in names if n.startswith(f"{name}.")]
        if parent in names:
            continue
        if inner:
            nav.append({leaf: [f"{path}/index.md", *_nested(inner)]})
        else:
            nav.append({leaf: f"{path}.md"})
    return nav


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the pages to the navigation."""
    names = [name for name in packages() if name != "lt_mia_jax"]
    assert config.nav is not None
    config.nav.append({"API": ["api/index.md", *_nested(names)]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages themselves."""
    found = packages()
    for name, modules in found.items():
        path = "api/" + name.removeprefix("lt_mia_jax").lstrip(".").replace(".", "/")
        inner = any(other.startswith(f"{name}.") for other in found)
        uri = f"{path.rstrip('/')}/index.md" if inner else f"{path}.md"
        files.append(File.generated(config, uri, content=page(name, modules)))
    return files
