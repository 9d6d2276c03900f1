"""The batching engine against model.generate, row by row, on a random two-layer model in fp32."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest
import torch

from tests.conftest import write_tiny_model
from tests.engines.conftest import ask
from tunesmith.core.errors import DataError, ModelError, ServiceError
from tunesmith.engines.batch import Batch, Row, _draw
from tunesmith.engines.contract import Reply, Request, Sampling, complete
from tunesmith.engines.transformers import Transformers, end_token_ids
from tunesmith.models.load import find, load_model, load_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

FP32 = Transformers(precision="fp32", threads=1)
QUESTIONS = ["a", "What colour has the lamp?", "你好，世界", "x" * 200, "yes or no", "1 2 3 4 5 6 7 8 9 10", "zz top"]


@pytest.fixture(scope="module")
def loaded(lively_model):
    found = find(str(lively_model))
    return load_model(found, "fp32"), load_tokenizer(found)


def generated(loaded, question: str, tokens: int) -> list[int]:
    """What model.generate makes of one row alone, greedy, the end token left out."""
    model, tokenizer = loaded
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
    )
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    out = model.generate(**ids, max_new_tokens=tokens, do_sample=False)[0, ids.input_ids.shape[1] :].tolist()
    return out[:-1] if out[-1] in end_token_ids(model, tokenizer) else out


def answers(requests: list[Request], *, config: Transformers = FP32, model: str, gap: float = 0.0) -> list[Reply]:
    """All answers of one engine; request n comes n gaps later, into the running batch."""

    async def late(engine, n, request):
        await asyncio.sleep(n * gap)
        return await complete(engine, request)

    async def run() -> list[Reply]:
        engine = config.open(model)
        try:
            return await asyncio.gather(*(late(engine, n, request) for n, request in enumerate(requests)))
        finally:
            await engine.close()

    return asyncio.run(run())


@pytest.mark.parametrize("gap", [0.0, 0.004])
def test_greedy_rows_of_a_batch_are_those_of_generate_alone(loaded, lively_model, gap):
    _, tokenizer = loaded
    requests = [ask(question, max_tokens=10 + 9 * n) for n, question in enumerate(QUESTIONS)]
    replies = answers(requests, model=str(lively_model), gap=gap)
    for n, (question, reply) in enumerate(zip(QUESTIONS, replies, strict=True)):
        assert reply.text == tokenizer.decode(generated(loaded, question, 10 + 9 * n), skip_special_tokens=True)


def test_rows_that_come_and_go_leave_the_others_logits_alone(loaded):
    """Token by token and without an engine: rows join at every step, and one leaves in the middle."""
    model, tokenizer = loaded
    prompts = [tokenizer(text)["input_ids"] for text in ("short", "a much longer prompt " * 12, "middle sized prompt")]
    alone = []
    for prompt in prompts:
        batch, row = Batch(model), Row(Sampling(), prompt)
        batch.add(row)
        while len(row.ids) < 30:
            batch.step()
        alone.append(row.ids)
    batch, rows = Batch(model), [Row(Sampling(), prompt) for prompt in prompts]
    for row in rows:
        batch.add(row)
        batch.step()
        batch.step()
    while len(rows[0].ids) < 12:
        batch.step()
    rows[1].is_over = True
    while min(len(rows[0].ids), len(rows[2].ids)) < 30:
        batch.step()
    assert len(rows[1].ids) < 30
    assert rows[1].ids == alone[1][: len(rows[1].ids)]
    assert [rows[0].ids[:30], rows[2].ids[:30]] == [alone[0], alone[2]]
    assert batch._mask.shape == (
        2,
        max(len(rows[0].prompt) + len(rows[0].ids), len(rows[2].prompt) + len(rows[2].ids)) - 1,
    )


def test_more_requests_than_rows_wait_and_are_answered(lively_model):
    few = Transformers(precision="fp32", threads=1, rows=2)
    requests = [ask(f"question {n}", max_tokens=6) for n in range(7)]
    assert [r.text for r in answers(requests, config=few, model=str(lively_model))] == [
        r.text for r in answers(requests, model=str(lively_model))
    ]


def test_a_seed_repeats_an_answer_whoever_else_is_there(lively_model):
    drawn = [ask("tell me", max_tokens=20, temperature=1.0, seed=n) for n in (1, 2, 1)]
    alone = answers(drawn[:1], model=str(lively_model))[0]
    first, second, again = answers([*drawn, ask("noise", max_tokens=40, temperature=2.0)], model=str(lively_model))[:3]
    assert first.text == again.text == alone.text
    assert first.text != second.text
    free = answers([ask("tell me", max_tokens=20, temperature=1.0)] * 2, model=str(lively_model))
    assert free[0].text != free[1].text


def test_drawing_follows_temperature_and_top_p():
    scores = torch.log(torch.tensor([0.1, 0.5, 0.25, 0.15]))

    def share(**sampling) -> list[float]:
        row = Row(Sampling(**sampling), generator=torch.Generator().manual_seed(0))
        drawn = torch.tensor([_draw(scores, row) for _ in range(4000)])
        return (torch.bincount(drawn, minlength=4) / 4000).tolist()

    assert share(temperature=1.0) == pytest.approx([0.1, 0.5, 0.25, 0.15], abs=0.03)
    assert share(temperature=1.0, top_p=0.6) == pytest.approx([0, 2 / 3, 1 / 3, 0], abs=0.03)
    assert share(temperature=1.0, top_p=1e-6) == [0, 1, 0, 0]
    squared = [0.01, 0.25, 0.0625, 0.0225]
    assert share(temperature=0.5) == pytest.approx([x / sum(squared) for x in squared], abs=0.03)
    assert share(temperature=1e-30) == [0, 1, 0, 0]


def test_an_answer_ends_at_the_end_token_and_does_not_show_it(tmp_path, tokenizer):
    """A model that always says the end token: its output row for that token is by far the largest."""
    folder = write_tiny_model(tmp_path / "silent")
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.model.norm.weight.fill_(1.0)
        model.lm_head.weight.zero_()
        model.lm_head.bias = None
        model.lm_head.weight[tokenizer.eos_token_id] = 1.0
        model.model.embed_tokens.weight.fill_(1.0)
    model.save_pretrained(folder)
    reply = answers([ask("anything", max_tokens=9)], model=str(folder))[0]
    assert reply == Reply("", "stop", reply.prompt_tokens, 1)


def test_the_turn_end_of_the_tokenizer_ends_an_answer_beside_those_of_the_generation_config(loaded):
    model, tokenizer = loaded
    before = model.generation_config.eos_token_id
    model.generation_config.eos_token_id = [3, 5]
    try:
        assert end_token_ids(model, tokenizer) == {3, 5, tokenizer.eos_token_id}
    finally:
        model.generation_config.eos_token_id = before


def test_stop_strings_cut_within_tokens_and_across_them(lively_model):
    whole = answers([ask("lamp", max_tokens=30)], model=str(lively_model))[0]
    stop = whole.text[7:12]
    assert stop.strip()
    cut = answers([ask("lamp", max_tokens=30, stop=(stop, "never seen"))], model=str(lively_model))[0]
    assert cut.text == whole.text[: whole.text.find(stop)]
    assert cut.finish == "stop"
    assert cut.completion_tokens < whole.completion_tokens


def test_the_answer_stops_where_the_context_ends(lively_model):
    small = Transformers(precision="fp32", threads=1, context=64)
    reply = answers([ask("abc", max_tokens=500)], config=small, model=str(lively_model))[0]
    assert reply.finish == "length"
    assert reply.prompt_tokens + reply.completion_tokens == 64


def test_an_adapter_answers_as_it_does_in_peft(tmp_path, lively_model, loaded):
    from peft import LoraConfig, get_peft_model

    model = load_model(find(str(lively_model)), "fp32")
    torch.manual_seed(5)
    tuned = get_peft_model(
        model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    )
    tuned.peft_config["default"].base_model_name_or_path = str(lively_model)
    tuned.save_pretrained(tmp_path / "adapter")
    _, tokenizer = loaded
    expected = tokenizer.decode(generated((tuned.eval(), tokenizer), "lamp", 20), skip_special_tokens=True)
    assert answers([ask("lamp", max_tokens=20)], model=str(tmp_path / "adapter"))[0].text == expected
    assert answers([ask("lamp", max_tokens=20)], model=str(lively_model))[0].text != expected


def test_a_template_that_refuses_is_the_requests_fault_and_the_engine_lives_on(tmp_path):
    strict = (
        "{{ raise_exception('only questions please') if messages[0]['role'] != 'user' else messages[0]['content'] }}"
    )
    folder = write_tiny_model(tmp_path / "strict", template=strict)
    from tunesmith.core.examples import Message

    async def run() -> Reply:
        engine = FP32.open(str(folder))
        try:
            with pytest.raises(DataError, match="only questions please"):
                await complete(engine, Request((Message("system", "x"),)))
            return await complete(engine, ask("a question", max_tokens=2))
        finally:
            await engine.close()

    assert asyncio.run(run()).completion_tokens == 2


def test_closing_tells_those_who_wait(lively_model):
    async def run() -> None:
        engine = FP32.open(str(lively_model))
        async with aclosing(engine.stream(ask("x", max_tokens=400))) as pieces:
            await anext(pieces)
            await engine.close()
            with pytest.raises(ServiceError, match="closed"):
                async for _ in pieces:
                    pass

    asyncio.run(run())


def test_a_model_with_a_state_that_is_no_cache_is_refused():
    from transformers import Lfm2Config, Lfm2ForCausalLM

    model = Lfm2ForCausalLM(
        Lfm2Config(
            vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, layer_types=["conv", "full_attention"],
        )
    )  # fmt: skip
    with pytest.raises(ModelError, match="cannot be batched"):
        Batch(model)


def test_a_sliding_window_is_kept_in_a_padded_batch():
    """A window of 8 tokens, prompts of different length: rows equal generate alone."""
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(2)
    model = MistralForCausalLM(
        MistralConfig(
            vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, sliding_window=8, bos_token_id=None, eos_token_id=None,
        )
    ).eval()  # fmt: skip
    prompts = [[5, 6, 7], list(range(3, 33)), [9] * 11]
    batch, rows = Batch(model), [Row(Sampling(), prompt) for prompt in prompts]
    for row in rows:
        batch.add(row)
    while min(len(row.ids) for row in rows) < 15:
        batch.step()
    for row in rows:
        ids = torch.tensor([row.prompt])
        alone = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=15, do_sample=False, pad_token_id=0
        )
        assert row.ids[:15] == alone[0, len(row.prompt) :].tolist()


@pytest.mark.slow
def test_the_embedded_model_answers_as_generate_does():
    found = find("embedded")
    loaded = load_model(found, "fp32"), load_tokenizer(found)
    questions = ["What is the capital of France?", "Say hello.", "Count from one to ten, please, and then back again."]
    replies = answers([ask(question, max_tokens=24) for question in questions], model="embedded", gap=0.2)
    for question, reply in zip(questions, replies, strict=True):
        assert reply.text == loaded[1].decode(generated(loaded, question, 24), skip_special_tokens=True)
