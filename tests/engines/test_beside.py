"""Adapters that stand beside the weights, in the batching engine: its answers are those of generate, one request alone."""

from __future__ import annotations

import asyncio

import pytest
import torch

from tests.engines.conftest import ask
from tests.engines.test_transformers import FP32, QUESTIONS, answers, generated
from tunesmith.core.errors import DataError
from tunesmith.engines.batch import Batch, Row
from tunesmith.engines.contract import Sampling
from tunesmith.engines.transformers import Transformers
from tunesmith.models.load import find, load_model, load_tokenizer
from tunesmith.models.methods import Bottleneck, Prefix, Prompt, PTuning

pytestmark = pytest.mark.usefixtures("one_thread")

METHODS = {
    "prompt": Prompt(tokens=6), "prefix": Prefix(tokens=6), "projected": Prefix(tokens=6, projection=True, hidden=16),
    "p_tuning": PTuning(tokens=6, hidden=16), "bottleneck": Bottleneck(after="both"),
}  # fmt: skip


@pytest.fixture(scope="module", params=METHODS)
def adapter(request, lively_model, tmp_path_factory):
    """A folder with a stirred adapter, and the model with it on as the trainer holds it."""
    method, folder = METHODS[request.param], tmp_path_factory.mktemp("adapters") / request.param
    torch.manual_seed(2)
    model = method.put(load_model(find(str(lively_model))))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    method.save(model, folder)
    return folder, model.eval()


@pytest.mark.parametrize("gap", [0.0, 0.004])
def test_rows_side_by_side_are_those_of_generate_alone(adapter, lively_model, gap):
    folder, model = adapter
    tokenizer = load_tokenizer(find(str(folder)))
    requests = [ask(question, max_tokens=10 + 5 * n) for n, question in enumerate(QUESTIONS)]
    replies = answers(requests, model=str(folder), gap=gap)
    plain = answers(requests, model=str(lively_model))
    for n, (question, reply) in enumerate(zip(QUESTIONS, replies, strict=True)):
        wanted = generated((model, tokenizer), question, 10 + 5 * n)
        assert reply.text == tokenizer.decode(wanted, skip_special_tokens=True)
        assert reply.prompt_tokens == plain[n].prompt_tokens, "virtual tokens are not the person's"
    assert [reply.text for reply in replies] != [reply.text for reply in plain]


def test_rows_come_and_go_without_disturbing_each_other(adapter):
    folder, model = adapter
    tokenizer = load_tokenizer(find(str(folder)))
    prompts = [tokenizer(text)["input_ids"] for text in ("short", "a much longer prompt " * 9, "middle sized")]
    batch, rows = Batch(model), [Row(Sampling(), prompt) for prompt in prompts]
    for row in rows:
        batch.add(row)
        batch.step()
    while len(rows[0].ids) < 8:
        batch.step()
    rows[1].is_over = True
    while min(len(rows[0].ids), len(rows[2].ids)) < 20:
        batch.step()
    for row in (rows[0], rows[2]):
        ids = torch.tensor([row.prompt])
        alone = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False, eos_token_id=None
        )
        assert alone[0, len(row.prompt) :].tolist() == row.ids[:20]


def test_virtual_tokens_count_in_the_context(adapter):
    folder, model = adapter
    virtual = 0 if "bottleneck" in str(folder) else 6
    small = Transformers(precision="fp32", threads=1, context=64)
    reply = answers([ask("abc", max_tokens=500)], config=small, model=str(folder))[0]
    assert (reply.finish, reply.prompt_tokens + reply.completion_tokens) == ("length", 64 - virtual)
    said = "the model takes less than 58 beside its 6 virtual tokens" if virtual else "takes less than 64. Shorten"
    with pytest.raises(DataError, match=said):
        answers([ask("x" * 60)], config=small, model=str(folder))
    engine = FP32.open(str(folder))
    asyncio.run(engine.close())
    assert engine.context == model.config.max_position_embeddings - virtual
