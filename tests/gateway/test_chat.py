"""Chat templates: as transformers renders them, in a sandbox with limits."""

from pathlib import Path

import jinja2
import pytest
from conftest import TEMPLATE
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import chat
from gateway.chat import ChatTemplate
from gateway.errors import Refusal

SHIPPED = sorted(
    path.parent
    for path in (Path(__file__).parents[2] / "models").glob("*/tokenizer_config.json")
    if "chat_template" in path.read_text("utf8") or (path.parent / "chat_template.jinja").exists()
)
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
HI = [{"role": "user", "content": "hi"}]
TEMPLATES = {
    "plain": TEMPLATE,
    "chatml": (
        "{% for message in messages %}\n  {{ '<|im_start|>' + message['role'] + '\\n' + message['content'] }}"
        "<|im_end|>\n{% endfor %}\n{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
    "json": "{{ messages | tojson }}{{ messages | tojson(indent=2) }}{{ add_generation_prompt }}",
    "control": (
        "{% set ns = namespace(first=true) %}{% for m in messages %}{% if m.role == 'system' %}{% continue %}"
        "{% endif %}{% if loop.index > 3 %}{% break %}{% endif %}{{ loop.index0 }}:{{ m.content | upper }}"
        "{% set ns.first = false %}{{ '|' if not loop.last }}{% endfor %}{{ eos_token }}"
    ),
    "tools": "{% if tools is not none %}{{ tools | tojson }}{% endif %}{% for m in messages %}{{ m.role }}{% endfor %}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
}
messages = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["system", "user", "assistant"]),
            "content": st.text("<&'\"é🙂 \nab", max_size=9),
        }
    ),
    min_size=1,
    max_size=6,
)


@pytest.fixture(scope="session")
def reference(tokenizer):
    transformers = pytest.importorskip("transformers")
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **TOKENS)


@pytest.mark.parametrize("name", sorted(TEMPLATES))
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_renders_as_transformers_does(reference, name, data):
    given_messages, opened = data.draw(messages), data.draw(st.booleans())
    expected = reference.apply_chat_template(
        given_messages, chat_template=TEMPLATES[name], tokenize=False, add_generation_prompt=opened
    )
    assert ChatTemplate(TEMPLATES[name], TOKENS)._render(given_messages, opened) == expected


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda path: path.name)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_the_shipped_models_template_renders_as_transformers_does(folder, data):
    reference = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(folder)
    template, turns, opened = ChatTemplate.from_folder(folder), data.draw(messages), data.draw(st.booleans())
    try:
        expected = reference.apply_chat_template(turns, tokenize=False, add_generation_prompt=opened)
    except jinja2.TemplateError:
        with pytest.raises((jinja2.TemplateError, chat.TemplateError)):
            template._render(turns, opened)
    else:
        assert template._render(turns, opened) == expected


async def refused(source, given_messages=HI):
    with pytest.raises(Refusal) as caught:
        await ChatTemplate(source, TOKENS).render(given_messages, True)
    assert caught.value.code.name == "INVALID_ARGUMENT"
    assert caught.value.reason == "CHAT_TEMPLATE_FAILED"
    return caught.value.message


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ messages.clear() }}",
        "{{ strftime_now.__globals__.os }}",
        "{{ raise_exception('no') }}",
        "{{ nothing.at.all }}",
        "{{ 1 / 0 }}",
        "{{ messages[99].content.x }}",
        "{% include 'other' %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
async def test_what_a_template_may_not_do_is_invalid_argument(source):
    await refused(source)


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) %}aaaaaaaaaaaa{% endfor %}{% endfor %}",
        "{{ 'a' * 1000000000 }}",
        "{{ 1000000000 * [1] }}",
        "{{ 9 ** 9 ** 9 }}",
        "{{ '%1000000000d' % 1 }}",
        "{% set ns = namespace(s='aaaa') %}{% for i in range(90) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    ],
)
async def test_time_and_size_are_bounded(source, monkeypatch):
    monkeypatch.setattr(chat, "MAX_SECONDS", 0.3)
    await refused(source)


async def test_the_templates_own_words_reach_the_client():
    assert "only users" in await refused("{{ raise_exception('only users') }}")


def folder_with(tmp_path, **files):
    for name, text in files.items():
        (tmp_path / name.replace("__", ".")).write_text(text)
    return tmp_path


def test_the_jinja_file_wins_over_tokenizer_config(tmp_path):
    folder = folder_with(
        tmp_path,
        tokenizer_config__json='{"chat_template": "old", "bos_token": {"content": "<b>"}}',
        chat_template__jinja="{{ bos_token }}{{ eos_token }}new",
        special_tokens_map__json='{"bos_token": "<x>", "eos_token": "<e>"}',
    )
    assert ChatTemplate.from_folder(folder)._render(HI, True) == "<b><e>new"


def test_of_named_templates_the_default_counts(tmp_path):
    config = '{"chat_template": [{"name": "tool", "template": "t"}, {"name": "default", "template": "d"}]}'
    assert (
        ChatTemplate.from_folder(folder_with(tmp_path, tokenizer_config__json=config))._render(HI, True)
        == "d"
    )


def test_no_template_is_none_and_a_broken_one_an_error_at_the_start(tmp_path):
    assert ChatTemplate.from_folder(tmp_path) is None
    with pytest.raises(ValueError, match="line 1"):
        ChatTemplate.from_folder(folder_with(tmp_path, chat_template__jinja="{% for %}"))
