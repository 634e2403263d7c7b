"""Writes docs/configuration.md from the settings models of the three processes; `--check` fails when it is stale."""

import argparse
import sys
from collections.abc import Iterator

from pydantic.fields import FieldInfo

from compute.config import ComputeSettings
from gateway.config import GatewaySettings
from holdfast.settings import COMMON, PREFIX, Common, choices
from kvmanager.config import KvManagerSettings
from tools.service import ROOT

PAGE = ROOT / "docs" / "configuration.md"
SECTIONS: dict[str, type[Common]] = {
    "kvmanager": KvManagerSettings,
    "compute": ComputeSettings,
    "gateway": GatewaySettings,
}
HEAD = """# Configuration

<!-- made by tools/settings_table.py (`make docs`); do not edit -->

A flag wins over its environment variable, a variable over the YAML file (`--config FILE`, `HOLDFAST_CONFIG`), the file
over the default. Unknown flags, `HOLDFAST_*` variables and YAML keys are errors. Sizes read `256MiB`, `4GiB`. One file
serves all processes: common keys at the top, the others in the section of their process.

```yaml
run_dir: /run/holdfast
kvmanager: {kv_memory: 4GiB}
compute: {model: /models/llama, max_num_seqs: 64}
gateway: {model: /models/llama, port: 50051}
```

The command lines themselves also read `HOLDFAST_CONFIG`, `HOLDFAST_OUTPUT` (`kvmanager`) and `HOLDFAST_API_KEY`
(`gateway generate`).
"""


def page() -> str:
    parts = [HEAD, "## All processes\n", table("", Common, sorted(COMMON))]
    for section, model in SECTIONS.items():
        own = [name for name in model.model_fields if name not in COMMON]
        parts += [f"## `{section} serve`\n", table(f"{section.upper()}__", model, own)]
    return "\n".join(parts)


def table(prefix: str, model: type[Common], names: list[str]) -> str:
    return "\n".join(
        ["| flag | variable | default | |", "|---|---|---|---|", *rows(prefix, model, names), ""]
    )


def rows(prefix: str, model: type[Common], names: list[str]) -> Iterator[str]:
    for name in names:
        field = model.model_fields[name]
        flag = "--" + name.replace("_", "-")
        about = "; ".join(filter(None, (field.description, values(field)))).replace("|", "\\|")
        yield f"| `{flag}` | `{PREFIX}{prefix}{name.upper()}` | {default(name, field)} | {about} |"


def values(field: FieldInfo) -> str:
    """What a field with a list of values allows, in words."""
    allowed = [f"`{value}`" for value in choices(field.annotation)]
    return f"one of {', '.join(allowed)}" if allowed else ""


def default(name: str, field: FieldInfo) -> str:
    if name == "run_dir":
        return "`$XDG_RUNTIME_DIR/holdfast`, else `holdfast-UID` under the temporary directory"
    if name == "threads":
        return "the number of cores"
    if field.is_required():
        return "required"
    value = field.default
    return "" if value in (None, "") else f"`{value}`"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    if not parser.parse_args().check:
        PAGE.write_text(page(), "utf8")
        return 0
    fresh = PAGE.exists() and PAGE.read_text("utf8") == page()
    print("" if fresh else "stale: docs/configuration.md (run `make docs`)", file=sys.stderr)
    return 0 if fresh else 1


if __name__ == "__main__":
    sys.exit(main())
