"""The table of environment variables in `docs/configuration.md`; `python -m cem_assets_tests.configuration_table` prints it."""

from cem_assets import environment


def table() -> str:
    """Render every variable of `cem_assets.environment` as a row of a Markdown table."""
    rows = ["| variable | meaning | default |", "|---|---|---|"]
    for variable in environment.VARIABLES:
        default = variable.default_told or (f"`{variable.default}`" if variable.default else "not set")
        rows.append(f"| `{variable.name}` | {variable.meaning} | {default} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    print(table(), end="")
