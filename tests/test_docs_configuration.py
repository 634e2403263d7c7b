"""docs/configuration.md is what the settings say today, with the values that each one allows."""

import pytest

from holdfast.settings import choices
from tools.settings_table import PAGE, SECTIONS, page


def test_the_page_is_fresh():
    assert PAGE.read_text("utf8") == page()


LISTED = [
    (f"--{name.replace('_', '-')}", choices(field.annotation))
    for model in SECTIONS.values()
    for name, field in model.model_fields.items()
    if choices(field.annotation)
]


@pytest.mark.parametrize(("flag", "values"), LISTED, ids=str)
def test_a_setting_with_a_list_of_values_shows_them_all(flag, values):
    row = next(line for line in PAGE.read_text("utf8").splitlines() if line.startswith(f"| `{flag}` |"))
    assert [value for value in values if f"`{value}`" not in row.split("|")[-2]] == []
