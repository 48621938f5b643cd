"""The site's pages from outside docs/: what the navigation names, and what pages link to.

A link that leads out of docs/ (to a config file, a figure, a source file) stays as it is in the
repository; on the site it leads to a copy: Markdown as a page, pictures and HTML as they are, other
text shown as code, a folder as a list. MkDocs then checks every link.
"""

import os
import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[2]
CODE = re.compile(r"(^```.*?^```|^~~~~~.*?^~~~~~|`[^`\n]*`)", re.M | re.S)
LINK = re.compile(r"(?<=\]\()[^)#\s]+")
AS_THEY_ARE = (".png", ".svg", ".html")
LANGUAGES = {".py": "python", ".smk": "python", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml"}
HIDDEN = "---\nsearch:\n  exclude: true\n---\n"
_origin: dict[str, str] = {}
"""Page of the site -> path in the repository."""


def site_path(path: str) -> str:
    """Return where a repository path is on the site."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if (ROOT / path).is_dir():
        return f"repository/{path}/index.md"
    shown = path.endswith((".md", *AS_THEY_ARE))
    return f"repository/{path}" if shown else f"repository/{path}.md"


def links(text: str, path: str) -> list[str]:
    """Return the repository paths that a page links to, where there is something."""
    prose = "".join(CODE.split(text)[::2])
    folder = posixpath.dirname(path)
    found = [posixpath.normpath(posixpath.join(folder, link)) for link in LINK.findall(prose)]
    return [target for target in found if (ROOT / target).exists()]


def rewritten(text: str, path: str) -> str:
    """Turn a page's links to repository paths into links between the site's pages."""
    here, folder = posixpath.dirname(site_path(path)), posixpath.dirname(path)

    def target(match: re.Match) -> str:
        found = posixpath.normpath(posixpath.join(folder, match[0]))
        exists = "://" not in match[0] and (ROOT / found).exists()
        return posixpath.relpath(site_path(found), here or ".") if exists else match[0]

    parts = CODE.split(text)
    parts[::2] = [LINK.sub(target, part) for part in parts[::2]]
    return "".join(parts)


def content(path: str) -> str:
    """Return the Markdown of a repository file or folder."""
    file = ROOT / path
    if path.endswith(".md"):
        return file.read_text()
    if file.is_dir():
        names = sorted(entry.name for entry in file.iterdir() if entry.name[0] not in "._")
        lines = [f"- [{name}]({file.name}/{name})" for name in names]
        return "\n".join([f"{HIDDEN}# {path}", "", *lines])
    language = LANGUAGES.get(file.suffix, "python" if file.name == "Snakefile" else "text")
    return f"{HIDDEN}# {path}\n\n~~~~~{language}\n{file.read_text()}\n~~~~~\n"


def on_files(files, config):
    """Add the pages of the navigation from outside docs/, and all that pages link to."""
    _origin.clear()
    pending = _named(config["nav"])
    for file in files.documentation_pages():
        pending += links(Path(file.abs_src_path).read_text(), f"docs/{file.src_uri}")
        _origin[file.src_uri] = f"docs/{file.src_uri}"
    while pending:
        path = pending.pop()
        uri = site_path(path)
        if path.startswith("docs/") or uri in files.src_uris:
            continue
        if path.endswith(AS_THEY_ARE):
            files.append(File.generated(config, uri, abs_src_path=os.fspath(ROOT / path)))
            continue
        text = content(path)
        files.append(File.generated(config, uri, content=text))
        _origin[uri] = path
        pending += links(text, path)
    return files


def _named(nav) -> list[str]:
    """Return the repository paths that the navigation names."""
    if isinstance(nav, str):
        return [nav.removeprefix("repository/")] if nav.startswith("repository/") else []
    values = nav.values() if isinstance(nav, dict) else nav
    return [path for value in values for path in _named(value)]


def on_page_markdown(markdown, page, config, files):
    """Make a page's links lead to the site's copies."""
    return rewritten(markdown, _origin[page.file.src_uri])


SEARCH = 'data-md-component="search" role="dialog"'
"""The theme's field of search, a dialog without a name."""


def on_post_page(output, page, config):
    """Give the field of search a name for those who do not see it."""
    return output.replace(SEARCH, f'{SEARCH} aria-label="Search"')
