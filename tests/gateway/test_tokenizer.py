"""Text to ids and back; incremental text equals the text of all ids at once."""

import json
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from gateway.output import Output
from gateway.tokenizer import IN_PLACE_CHARACTERS, MAX_HELD_IDS, TextCodec

SHIPPED = sorted(Path(__file__).parents[2].glob("models/*/tokenizer.json"))


@pytest.fixture(scope="session")
def codec(model_folder):
    return TextCodec.from_folder(model_folder)


def streamed(codec, ids, prompt=(), skip=True):
    detokenizer = codec.stream(prompt, skip)
    return "".join(detokenizer.push(i) for i in ids) + detokenizer.flush()


@settings(deadline=None)
@given(ids=st.lists(st.integers(0, 400), max_size=60))
def test_random_ids_stream_to_the_text_of_all_of_them(codec, ids):
    """Malformed UTF-8 included: what is shown is never taken back, and nothing is missing at the end."""
    detokenizer, shown = codec.stream((), True), ""
    whole = codec.decode(ids)
    for i in ids:
        shown += detokenizer.push(i)
        assert whole.startswith(shown) or "\ufffd" in shown
    text = shown + detokenizer.flush()
    assert text.replace("\ufffd", "") == whole.replace("\ufffd", "")


@settings(deadline=None)
@given(text=st.text(st.sampled_from("ab 日本🙂🦊é\n"), max_size=30), prompt=st.text("fox 🙂", max_size=8))
def test_text_streams_to_itself_after_any_prompt(codec, text, prompt):
    ids = codec._encode(text, False)
    assert streamed(codec, ids, codec._encode(prompt, False)) == text


def test_a_prompt_that_ends_within_a_character_is_not_repeated(codec):
    half = codec._encode("fox 🙂", False)[:-1]
    assert streamed(codec, codec._encode("sea", False), half) == "sea"


def test_a_character_appears_when_its_last_token_comes(codec):
    ids = codec._encode("🦊", False)
    detokenizer = codec.stream((), True)
    assert len(ids) > 1 or pytest.skip("one token")
    assert [detokenizer.push(i) for i in ids] == [""] * (len(ids) - 1) + ["🦊"]


def test_endless_malformed_output_is_shown_and_costs_no_more_each_time(codec):
    """A client can force one id for ever; each step must stay cheap."""
    part = (
        codec._encode("日", False)[0]
        if len(codec._encode("日", False)) > 1
        else codec._encode("\x80", False)[0]
    )
    detokenizer = codec.stream((), True)
    began = time.process_time()
    text = "".join(detokenizer.push(part) for _ in range(5000)) + detokenizer.flush()
    assert time.process_time() - began < 10
    assert len(text) >= 5000 // (MAX_HELD_IDS + 1)


def test_the_first_word_keeps_its_space_after_a_prompt():
    """SentencePiece-like tokenizers drop the first space of a text; a continuation is no beginning."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator(
        ["upon a time fox"] * 3, trainers.BpeTrainer(vocab_size=60, show_progress=False)
    )
    codec = TextCodec(tokenizer)
    prompt, ids = codec._encode("upon a", False), codec._encode("time fox", False)
    assert streamed(codec, ids, prompt) == " time fox"
    assert streamed(codec, ids) == "time fox"


@pytest.fixture(scope="session")
def fallback_codec():
    """Bytes that are no words are tokens <0xNN>, as in SentencePiece models."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    parts = [
        decoders.Replace("\u2581", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ]
    tokenizer.decoder = decoders.Sequence(parts)
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(["hello world once upon a time"] * 3, trainer)
    return TextCodec(tokenizer)


@settings(deadline=None)
@given(st.lists(st.integers(0, 290), max_size=40), st.lists(st.integers(0, 290), max_size=8), st.booleans())
def test_malformed_bytes_of_a_byte_fallback_tokenizer_never_fail(fallback_codec, ids, prompt, skip):
    """DecodeStream itself gives up when later bytes change what earlier ones meant."""
    text = streamed(fallback_codec, ids, prompt, skip)
    words = [i for i in ids if i >= 259]
    assert all(letter in text for letter in fallback_codec.decode(words).replace(" ", ""))


def test_bytes_of_one_character_come_as_that_character(fallback_codec):
    ids = [3 + byte for byte in "🦊".encode()]
    detokenizer = fallback_codec.stream([270], False)  # in this tokenizer the bytes are special
    assert [detokenizer.push(i) for i in ids] == ["", "", "", "🦊"]


async def test_long_texts_are_encoded_in_a_thread_with_the_same_result(codec):
    text = "the small fox lived by the sea " * 1000
    ids = await codec.encode(text)
    assert ids == codec._encode(text, True)
    assert len(ids) > IN_PLACE_CHARACTERS
    assert await codec.decode_long(ids, True) == text


async def test_truncation_in_the_tokenizer_file_is_ignored(tokenizer, tmp_path):
    document = json.loads(tokenizer.to_str())
    document["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    assert len(await TextCodec.from_folder(tmp_path).encode("the small fox lived by the sea")) > 4


def test_no_tokenizer_file_is_none_and_a_broken_one_an_error(tmp_path):
    assert TextCodec.from_folder(tmp_path) is None
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        TextCodec.from_folder(tmp_path)


@settings(deadline=None)
@given(st.data())
def test_output_equals_decode_everything_and_find_the_first_match(codec, data):
    """Tokens in, deltas out, against the naive model; ids stop with the token that completes the match."""
    ids = codec._encode(data.draw(st.text(st.sampled_from("fox sea🙂日"), min_size=1, max_size=20)), False)
    stops = data.draw(st.lists(st.text("fox se🙂", min_size=1, max_size=3), max_size=3))
    output = Output(codec.stream((), True), stops, False, 0)
    text, got, matched = "", [], None
    for i in ids:
        delta = output.push([i])
        text, got, matched = text + delta.text, got + delta.token_ids, delta.matched
        if matched:
            break
    else:
        tail = output.end()
        text, matched = text + tail.text, tail.matched
    whole = codec.decode(ids)
    ends = sorted((whole.find(s) + len(s), -len(s), s) for s in stops if s in whole)
    expected = (whole[: ends[0][0] + ends[0][1]], ends[0][2]) if ends else (whole, None)
    assert (text, matched) == expected
    assert got == ids[: len(got)]
    assert output.count == len(got)
    if matched is not None:
        before = codec.decode(got[:-1])  # text that ends within a character is judged with its next token
        assert matched in codec.decode(got)
        assert matched not in before or before.endswith("\ufffd")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.parent.name)
def test_the_shipped_models_tokenizer_streams_to_itself(path):
    codec = TextCodec.from_folder(path.parent)
    text = 'Once upon a time there was a fox. It said: "Hello!"\n'
    assert streamed(codec, codec._encode(text, False), codec._encode("Tell a story. ", True)) == text
