"""Tables of configuration keys: legal values and defaults from the schema, words from its files.

A line `<!-- keys NAME -->` in a page becomes the table of that class. What a key means is said
once: in the comments of config.yaml and defaults.yaml, elsewhere in the string below each field.
"""

import ast
import inspect
import itertools
import re
import textwrap
from pathlib import Path

from loraudit.base.yaml_file import read_yaml
from loraudit.studies import claims, entries, method_settings, spec, study_file
from loraudit.studies.grid import legal_fields
from loraudit.studies.methods import METHODS

ROOT = Path(__file__).parents[2]
CLASSES = {
    **{
        name: getattr(study_file, name)
        for name in ("Config", "StudyFile", "Contrast", "AblationFile", "TuneFile")
    },
    **{name: getattr(study_file, name) for name in ("ProtocolFile", "PublishedFile")},
    "RunSpec": spec.RunSpec,
    **{name: getattr(method_settings, name) for name in ("ALoRASettings", "AdaLoRASettings")},
    "ProbeSettings": method_settings.ProbeSettings,
    "Source": claims.Source,
    "Claim": claims.Claim,
    "Scope": claims.Scope,
    **{name: getattr(entries, name) for name in ("ListedTask", "RatingRule", "ListedModel")},
    "FusedPart": entries.FusedPart,
    **{name: getattr(entries, name) for name in ("WheelSource", "PartsSource")},
    **{name: getattr(entries, name) for name in ("FolderSource", "HubSource")},
}
ANCHORS = {
    "AblationFile": "ablation",
    "Contrast": "contrasts",
    "TuneFile": "tune",
    "ALoRASettings": "alora",
    "AdaLoRASettings": "adalora",
    "ProbeSettings": "probe",
    "RatingRule": "rating",
    "Scope": "scope",
    "ListedTask": "a-task",
    "TaskEntry": "a-task",
    "ListedModel": "a-model",
    "ModelEntry": "a-model",
    "FusedPart": "a-part-of-a-fused-layer",
    "WheelSource": "a-source",
    "PartsSource": "a-source",
    "FolderSource": "a-source",
    "HubSource": "a-source",
}
WORDS = {
    "object": "keys and values",
    "string": "text",
    "boolean": "true or false",
    "AblationFile": "an ablation",
    "Contrast": "a contrast",
    "TuneFile": "what to try",
    "RatingRule": "a rating",
    "Scope": "a scope",
    "TaskEntry": "name of a task",
    "ModelEntry": "name of a model",
    "FusedPart": "part of a layer",
    "WheelSource": "a wheel",
    "PartsSource": "several wheels",
    "FolderSource": "a folder",
    "HubSource": "the hub",
    "ALoRASettings": "settings of ALoRA",
    "AdaLoRASettings": "settings of AdaLoRA",
    "ProbeSettings": "settings of the probe",
    "WarmStart": "`task` and `tensors`",
}
LIMITS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def keys_of(name: str) -> list[str]:
    """Return the keys that a class has in its file; those of a run stand side by side there."""
    return legal_fields() if name == "RunSpec" else list(CLASSES[name].model_fields)


def schema_of(name: str) -> dict[str, dict]:
    """Return the JSON schema of each key of a class."""
    schema = CLASSES[name].model_json_schema()["properties"]
    if name == "RunSpec":
        schema |= spec.AdapterSpec.model_json_schema()["properties"]
        schema["method"] = {"enum": list(METHODS)}
        for method in METHODS.values():
            if method.settings:
                settings = {"$ref": method.settings.replace(":", "/")}
                schema[method.name] = {"anyOf": [settings, {"type": "null"}]}
    return schema


def described(name: str) -> dict[str, str]:
    """Return what each key of a class means; "" where nothing says so."""
    if name == "Config":
        meanings = comments_above((ROOT / "config/config.yaml").read_text())
    elif name == "RunSpec":
        meanings = comments_beside((ROOT / "config/defaults.yaml").read_text())
    else:
        meanings = strings_below(CLASSES[name])
    return {key: meanings.get(key, "") for key in keys_of(name)}


def comments_above(text: str) -> dict[str, str]:
    """Read `# key: meaning` above `key: value`; several keys may share a comment."""
    found = {}
    for block in text.split("\n\n"):
        words = " ".join(line[1:].strip() for line in block.splitlines() if line[:1] == "#")
        meaning = words.partition(": ")[2]
        found |= {key: meaning for key in re.findall(r"^(\w+):", block, re.M)}
    return found


def comments_beside(text: str) -> dict[str, str]:
    """Read `key: value  # meaning`, with further comment lines below it."""
    found, key = {}, None
    for line in text.splitlines():
        first = re.match(r"(\w+):.*?(?:#\s*(.*))?$", line)
        more = re.match(r"\s+#\s*(.*)", line)
        if first:
            key, meaning = first[1], first[2] or ""
            found[key] = meaning
        elif more and key:
            found[key] = f"{found[key]} {more[1]}".strip()
        else:
            key = None
    return found


def strings_below(cls: type) -> dict[str, str]:
    """Read the string literal below each field, of base classes too."""
    found = {}
    for base in reversed(cls.__mro__):
        if base.__module__.startswith("loraudit"):
            body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body
            for field, below in itertools.pairwise(body):
                if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
                    found[field.target.id] = inspect.cleandoc(below.value.value).replace("\n", " ")
    return found


def legal(part: dict) -> str:
    """Say in a few words which values a part of a JSON schema allows."""
    if "$ref" in part:
        name = part["$ref"].rpartition("/")[2]
        return f"[{WORDS[name]}](#{ANCHORS[name]})" if name in ANCHORS else WORDS[name]
    if either := part.get("anyOf") or part.get("oneOf"):
        return " or ".join(dict.fromkeys(legal(one) for one in either))
    if "enum" in part:
        return " \\| ".join(f"`{value}`" for value in part["enum"])
    if part.get("type") == "array":
        return f"list of {legal(part.get('items', {}))}"
    limits = [f"{sign} {part[key]:g}" for key, sign in LIMITS.items() if key in part]
    kind = part.get("type", "anything")
    return " ".join(filter(None, [WORDS.get(kind, kind), ", ".join(limits)]))


def table(name: str) -> str:
    """Return the Markdown table of a class's keys."""
    schema = schema_of(name)
    defaults = {key: part["default"] for key, part in schema.items() if "default" in part}
    if name == "RunSpec":
        defaults = read_yaml(ROOT / "config/defaults.yaml")
    lines = ["| key | legal | default | meaning |", "|---|---|---|---|"]
    for key, meaning in described(name).items():
        default = defaults.get(key, "")
        shown = "`null`" if default is None else f"`{default}`" if default != "" else ""
        meaning = meaning.replace("<", "&lt;").replace("|", "\\|")
        lines.append(f"| `{key}` | {legal(schema[key])} | {shown} | {meaning} |")
    return "\n".join(lines)


def filled(markdown: str, page: str) -> str:
    """Fill in the tables of a page; what a cell links to stands in configuration.md."""
    here = set(re.findall(r"<!-- keys (\w+) -->", markdown))

    def linked(match: re.Match) -> str:
        elsewhere = match[1] not in {ANCHORS[name] for name in here & ANCHORS.keys()}
        return f"](configuration.md#{match[1]})" if elsewhere else match[0]

    def shown(match: re.Match) -> str:
        made = table(match[1])
        return made if page == "configuration.md" else re.sub(r"\]\(#([\w-]+)\)", linked, made)

    return re.sub(r"<!-- keys (\w+) -->", shown, markdown)


def on_page_markdown(markdown, page, config, files):
    """Fill in the tables."""
    return filled(markdown, page.file.src_uri)
