"""The scoring server of the tests, against transformers itself."""

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support.running import ROOT
from tests.support.scoring_server import scoring_server
from tests.support.tiny_model import make_tiny_model, teach

TEXT = "What is the capital of France? É 🦜"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_tiny_model(tmp_path_factory.mktemp("scored"))
    prompt = f"<|im_start|>user\n{QUESTION[0]['content']}<|im_end|>\n<|im_start|>assistant\n"
    teach(folder, prompt, f"{ANSWER}<|im_end|>")
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def direct(folder: Path) -> Callable[[list[int]], Tensor]:
    """Token ids -> (T, V): row t is what the model expects at token t; row 0 is not a number."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def logprobs(ids: list[int]) -> Tensor:
        with torch.no_grad():
            rows = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0].double(), -1)
        return torch.cat([torch.full_like(rows[:1], float("nan")), rows])

    return logprobs


def refused(call: Callable[[], Any]) -> tuple[int, str]:
    """The status and the message of a call that the server refuses."""
    with pytest.raises(urllib.error.HTTPError) as caught:
        call()
    with caught.value as error:
        return error.code, json.load(error)["error"]["message"]


def test_every_log_probability_of_a_prompt_is_the_models_own(folder: Path, tokenizer: Any, direct: Any) -> None:
    ids = tokenizer(TEXT)["input_ids"]
    with scoring_server(folder, max_logprobs=-1) as server:
        asked = {"prompt": ids, "max_tokens": 1, "prompt_logprobs": -1}
        got = server.ask("/v1/completions", asked)["choices"][0]["prompt_logprobs"]
    want = direct(ids)
    assert got[0] is None
    assert len(got) == len(ids)
    for place in range(1, len(ids)):
        seen = {int(token): entry["logprob"] for token, entry in got[place].items()}
        assert sorted(seen) == list(range(want.shape[1]))
        assert torch.tensor([seen[token] for token in sorted(seen)]).double() == pytest.approx(want[place], abs=1e-5)


def test_the_k_most_probable_tokens_and_the_prompts_own_with_their_ranks(
    folder: Path, tokenizer: Any, direct: Any
) -> None:
    ids = tokenizer(TEXT)["input_ids"]
    with scoring_server(folder) as server:
        asked = {"prompt": TEXT, "max_tokens": 1, "prompt_logprobs": 3}
        got = server.ask("/v1/completions", asked)["choices"][0]["prompt_logprobs"]
    for place, row in enumerate(direct(ids)[: len(ids)]):
        if place == 0:
            continue
        order = row.argsort(descending=True).tolist()
        want = {str(token): order.index(token) + 1 for token in [ids[place], *order[:3]]}
        assert {token: entry["rank"] for token, entry in got[place].items()} == want
        assert next(iter(got[place])) == str(ids[place])
        for token, entry in got[place].items():
            assert entry["logprob"] == pytest.approx(row[int(token)].item(), abs=1e-5)


def test_texts_in_flight_together_score_as_they_do_alone(folder: Path, tokenizer: Any, direct: Any) -> None:
    ids = tokenizer(TEXT * 4)["input_ids"]
    prompts = [ids[:length] for length in (1, 2, 40, 17, 17, 60, 3, 33)]
    got: dict[int, list[Any]] = {}
    with scoring_server(folder, latency_s=0.2) as server:

        def ask(n: int) -> None:
            body = {"prompt": [prompts[n], prompts[n - 1]], "max_tokens": 1, "prompt_logprobs": 0}
            got[n] = [choice["prompt_logprobs"] for choice in server.ask("/v1/completions", body)["choices"]]

        threads = [threading.Thread(target=ask, args=(n,)) for n in range(len(prompts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        stats = server.stats()
    for n in range(len(prompts)):
        for prompt, scored in zip((prompts[n], prompts[n - 1]), got[n], strict=True):
            want = direct(prompt)
            own = [entry[str(token)]["logprob"] for token, entry in zip(prompt[1:], scored[1:], strict=True)]
            assert own == pytest.approx([want[t, token].item() for t, token in enumerate(prompt) if t], abs=1e-5)
    assert stats["requests"] == stats["peak_in_flight"] == 8
    assert stats["prompts"] == 16
    assert stats["prompt_tokens"] == 2 * sum(map(len, prompts))
    assert stats["completion_tokens"] == 16


def test_vllm_caps_what_is_asked_for_and_wants_a_token_to_generate(folder: Path) -> None:
    with scoring_server(folder) as server:
        too_many = {"prompt": [5, 6], "max_tokens": 1, "prompt_logprobs": 21}
        assert refused(lambda: server.ask("/v1/completions", too_many)) == (
            400,
            "Requested prompt logprobs of 21, which is greater than max allowed: 20 "
            "(parameter=prompt_logprobs, value=21)",
        )
        none = {"prompt": [5, 6], "max_tokens": 0, "prompt_logprobs": 1}
        assert refused(lambda: server.ask("/v1/completions", none)) == (
            400,
            "max_tokens must be at least 1, got 0. (parameter=max_tokens, value=0)",
        )
        echoed = server.ask("/v1/completions", none | {"echo": True, "logprobs": 1})["choices"][0]
        assert len(echoed["logprobs"]["tokens"]) == 2
        long = {"prompt": [5] * 256, "max_tokens": 1}
        status, message = refused(lambda: server.ask("/v1/completions", long))
        assert (status, "maximum context length is 256 tokens" in message) == (400, True)
        assert refused(lambda: server.ask("/generate", {"input_ids": [5]})) == (404, "Not Found")


@pytest.mark.parametrize("dialect", ["vllm", "openai", "together", "fireworks", "sglang"])
def test_an_echoed_prompt_has_its_log_probabilities(folder: Path, tokenizer: Any, direct: Any, dialect: str) -> None:
    ids = tokenizer(ANSWER)["input_ids"]
    want = direct(ids)
    with scoring_server(folder, dialect=dialect) as server:
        asked = {"prompt": ids, "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 2}
        whole = server.ask("/v1/completions", asked)
    choice = whole["choices"][0]
    scored = whole["prompt"][0] if dialect == "together" else choice
    logprobs = scored["logprobs"]
    following = int(want[-1].argmax())
    told = [*ids] if dialect == "together" else [*ids, following]
    assert scored["text"].startswith(ANSWER)
    assert logprobs["tokens"] == [tokenizer.decode([token]) for token in told]
    assert logprobs["token_logprobs"][0] is logprobs["top_logprobs"][0] is None
    own = [want[t, token].item() for t, token in enumerate(told) if t]
    assert logprobs["token_logprobs"][1:] == pytest.approx(own, abs=1e-5)
    for place in range(1, len(ids)):
        best = {tokenizer.decode([token]) for token in want[place].topk(2).indices.tolist()}
        if dialect != "together":
            best.add(tokenizer.decode([ids[place]]))
        assert set(logprobs["top_logprobs"][place]) == best
    assert ("token_ids" in logprobs) == (dialect in ("together", "fireworks"))
    if dialect == "together":
        assert choice["logprobs"]["token_ids"] == [following]
        assert choice["text"] == ""  # the answer is the end of the turn
    assert logprobs["text_offset"][2] == len("".join(logprobs["tokens"][:2]))


def test_fireworks_content_and_echo_last(folder: Path, tokenizer: Any, direct: Any) -> None:
    ids = tokenizer(TEXT)["input_ids"]
    with scoring_server(folder, dialect="fireworks") as server:
        asked = {"prompt": ids, "max_tokens": 0, "echo_last": 5, "logprobs": True, "top_logprobs": 2}
        [choice] = server.ask("/v1/completions", asked)["choices"]
    content = choice["logprobs"]["content"]
    want = direct(ids)
    assert [entry["token_id"] for entry in content] == ids[-5:]
    # The last four tokens are the four bytes of the parrot.
    assert [bytes(entry["bytes"]) for entry in content[-4:]] == [b"\xf0", b"\x9f", b"\xa6", b"\x9c"]
    for n, entry in enumerate(content):
        row = want[len(ids) - 5 + n]
        assert entry["logprob"] == pytest.approx(row[entry["token_id"]].item(), abs=1e-5)
        assert [one["token_id"] for one in entry["top_logprobs"]] == row.topk(2).indices.tolist()


def test_sglang_pads_the_first_entry_wherever_it_starts(folder: Path, tokenizer: Any, direct: Any) -> None:
    ids = tokenizer(TEXT)["input_ids"]
    body = {
        "input_ids": [ids, ids[:9]],
        "sampling_params": {"max_new_tokens": 0, "temperature": 0},
        "return_logprob": True,
        "top_logprobs_num": 2,
    }
    with scoring_server(folder, dialect="sglang") as server:
        for start in (0, 4):
            answers = server.ask("/generate", body | {"logprob_start_len": start})
            for answer, prompt in zip(answers, (ids, ids[:9]), strict=True):
                meta, want = answer["meta_info"], direct(prompt)
                own, named = meta["input_token_logprobs"], meta["input_top_logprobs"]
                assert [entry[1] for entry in own] == prompt[start:]
                assert own[0] == [None, prompt[start], None]
                assert named[0] is None
                for place in range(1, len(own)):
                    row = want[start + place]
                    assert own[place][0] == pytest.approx(row[own[place][1]].item(), abs=1e-5)
                    assert [entry[1] for entry in named[place]] == row.topk(2).indices.tolist()
                assert meta["output_token_logprobs"] == []
                assert meta["prompt_tokens"] == len(prompt)
        single = body | {"input_ids": ids, "return_text_in_logprobs": True, "logprob_start_len": 0}
        texts = [entry[2] for entry in server.ask("/generate", single)["meta_info"]["input_token_logprobs"]]
        assert texts[:3] == [tokenizer.decode([token]) for token in ids[:3]]


def chat(server: Any, messages: list[dict[str, str]], **options: Any) -> dict[str, Any]:
    return server.ask("/v1/chat/completions", {"messages": messages, "temperature": 0, "max_tokens": 20} | options)


def said(answer: dict[str, Any]) -> str:
    return answer["choices"][0]["message"]["content"]


def test_a_prefill_is_continued_begun_anew_or_continued_on_demand(folder: Path, tokenizer: Any, direct: Any) -> None:
    messages = [*QUESTION, {"role": "assistant", "content": "The capital of"}]
    rendered = tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True) + "The capital of"
    ids = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    for _ in range(4):
        ids.append(int(direct(ids)[-1].argmax()))
    expected = tokenizer.decode(ids)[len(rendered) :]
    wanted = {"continue_final_message": True, "add_generation_prompt": False}
    with scoring_server(folder) as server:
        assert said(chat(server, messages, max_tokens=4)) == expected
        assert said(chat(server, messages)) == " France is Paris."
        server.config(prefill="flags")
        flagged = chat(server, messages, **wanted)
        assert said(flagged) == " France is Paris."
        anew = chat(server, messages)
        assert refused(lambda: chat(server, messages, continue_final_message=True))[0] == 400
        server.config(prefill="ignore")
        assert said(chat(server, messages, **wanted)) != " France is Paris."
    turn = len(tokenizer("<|im_end|>\n<|im_start|>assistant\n")["input_ids"])
    assert anew["usage"]["prompt_tokens"] == flagged["usage"]["prompt_tokens"] + turn


def test_a_chats_log_probabilities_and_its_end_of_turn(folder: Path, tokenizer: Any, direct: Any) -> None:
    rendered = tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
    asked = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    answer = [*tokenizer(ANSWER)["input_ids"], tokenizer.eos_token_id]
    want = direct(asked + answer)[len(asked) :]
    with scoring_server(folder, dialect="chat", prompt_price=2e-6, completion_price=3e-6) as server:
        whole = chat(server, QUESTION, logprobs=True, top_logprobs=4)
        content = whole["choices"][0]["logprobs"]["content"]
        server.config(end_in_logprobs=False)
        without = chat(server, QUESTION, logprobs=True, top_logprobs=4)["choices"][0]
        assert chat(server, QUESTION)["choices"][0]["logprobs"] is None
        assert refused(lambda: chat(server, QUESTION, logprobs=True, top_logprobs=21))[0] == 400
        models = server.ask("/v1/models")["data"]
        assert refused(lambda: server.ask("/v1/completions", {"prompt": "a"})) == (404, "Not Found")
    assert said(whole) == ANSWER
    assert whole["choices"][0]["finish_reason"] == "stop"
    assert [bytes(entry["bytes"]) for entry in content] == [tokenizer.decode([token]).encode() for token in answer]
    assert [entry["token"] for entry in without["logprobs"]["content"]] == [entry["token"] for entry in content[:-1]]
    for entry, row, token in zip(content, want, answer, strict=False):
        assert entry["logprob"] == pytest.approx(row[token].item(), abs=1e-5)
        best = row.topk(4)
        assert [one["token"] for one in entry["top_logprobs"]] == [tokenizer.decode([n]) for n in best.indices]
        assert [one["logprob"] for one in entry["top_logprobs"]] == pytest.approx(best.values.tolist(), abs=1e-5)
    usage = whole["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (len(asked), len(answer))
    assert usage["cost"] == pytest.approx(len(asked) * 2e-6 + len(answer) * 3e-6)
    assert models[0]["pricing"] == {"prompt": "0.000002000000", "completion": "0.000003000000"}


def test_a_draw_repeats_with_its_seed_and_follows_the_temperature(folder: Path, direct: Any, tokenizer: Any) -> None:
    ids = tokenizer(TEXT)["input_ids"]
    chances = direct(ids)[-1].mul(1 / 2).softmax(-1)
    with scoring_server(folder, dialect="openai") as server:
        body = {"prompt": [ids] * 400, "max_tokens": 1, "temperature": 2, "logprobs": 1}

        def drawn(**more: Any) -> list[str]:
            return [choice["text"] for choice in server.ask("/v1/completions", body | more)["choices"]]

        assert len(set(drawn(seed=7, prompt=[ids] * 3))) == 1
        assert drawn(seed=7, prompt=[ids]) == drawn(seed=7, prompt=[ids])
        best = int(chances.argmax())
        seen = [drawn(seed=seed, prompt=[ids])[0] for seed in range(150)]
        share = seen.count(tokenizer.decode([best])) / 150
        expected = chances[best].item()
        assert abs(share - expected) < 4 * (expected * (1 - expected) / 150) ** 0.5


def test_log_probabilities_after_the_temperature_and_with_noise(folder: Path, tokenizer: Any, direct: Any) -> None:
    ids = tokenizer(TEXT)["input_ids"]
    raw = direct(ids)

    def own(server: Any, **more: Any) -> list[float]:
        body = {"prompt": ids, "max_tokens": 1, "prompt_logprobs": 0} | more
        scored = server.ask("/v1/completions", body)["choices"][0]["prompt_logprobs"]
        return [entry[str(token)]["logprob"] for token, entry in zip(ids[1:], scored[1:], strict=True)]

    places = list(range(1, len(ids)))
    before = raw[places, ids[1:]].tolist()
    after = torch.log_softmax(raw / 0.5, -1)[places, ids[1:]].tolist()
    with scoring_server(folder) as server:
        assert own(server, temperature=0.5) == pytest.approx(before, abs=1e-5)
        server.config(temperature_processed=True)
        assert own(server, temperature=0.5) == pytest.approx(after, abs=1e-5)
        assert own(server, temperature=0) == pytest.approx(before, abs=1e-5)
        server.config(temperature_processed=False, noise=0.3)
        one, other = own(server), own(server)
        gaps = torch.tensor(one) - torch.tensor(other)
        # Two draws of 0.3 differ by 0.3 sqrt(2) = 0.42, and their normalisers by less.
        assert 0.25 < gaps.std().item() < 0.65


def test_faults_that_are_answers(folder: Path) -> None:
    with scoring_server(folder, retry_after_s=3) as server:

        def ask() -> Any:
            return server.ask("/v1/completions", {"prompt": [5, 6, 7], "max_tokens": 1, "prompt_logprobs": 1})

        for fault, status in (("rate_limit", 429), ("server_error", 500), ("overloaded", 503)):
            server.config(faults={fault: 2})
            ask()
            with pytest.raises(urllib.error.HTTPError) as caught:
                ask()
            with caught.value as error:
                assert error.code == status
                assert error.headers.get("Retry-After") == ("3" if status == 429 else None)
            ask()
        server.config(faults={"drop": 1})
        with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
            ask()
        server.config(faults={"not_json": 1})
        with pytest.raises(json.JSONDecodeError):
            ask()
        server.config(faults={"server_error": 0.5})
        failures = 0
        for _ in range(60):
            try:
                ask()
            except urllib.error.HTTPError as error:
                error.close()
                failures += 1
        assert 15 <= failures <= 45
        struck = server.stats()["faults"]
        assert struck == {"rate_limit": 1, "server_error": 1 + failures, "overloaded": 1, "drop": 1, "not_json": 1}
        with pytest.raises(urllib.error.HTTPError) as caught:
            server.config(faults={"earthquake": 1})
        with caught.value as error:
            assert "no faults earthquake" in json.load(error)["error"]


def test_faults_that_damage_log_probabilities(folder: Path, tokenizer: Any, direct: Any) -> None:
    ids = tokenizer(TEXT)["input_ids"]
    with scoring_server(folder) as server:

        def scored(**faults: float) -> Any:
            server.config(faults=faults)
            body = {"prompt": ids, "max_tokens": 1, "prompt_logprobs": 4}
            return server.ask("/v1/completions", body)["choices"][0]["prompt_logprobs"]

        whole = scored()
        assert scored(null_logprobs=1) is None
        assert [place for place, entry in enumerate(scored(null_entries=1)) if entry is None] == [
            0,
            *range(2, len(ids), 3),
        ]
        assert {len(entry) for entry in scored(fewer=1)[1:]} <= {2, 3}
        left = scored(own_missing=1)
        outside = [place for place in range(1, len(ids)) if len(whole[place]) == 5]
        assert outside
        assert all(str(ids[place]) not in left[place] and len(left[place]) == 4 for place in outside)
        assert len(scored(wrong_length=1)) == len(ids) - 1

        server.config(dialect="together", faults={"no_ids": 1, "own_missing": 1})
        body = {"prompt": ids, "max_tokens": 0, "echo": True, "logprobs": 4}
        logprobs = server.ask("/v1/completions", body)["prompt"][0]["logprobs"]
        assert "token_ids" not in logprobs
        assert [place for place, value in enumerate(logprobs["token_logprobs"]) if value is None] == [0, *outside]

        server.config(dialect="chat", faults={"own_missing": 1})
        hot = chat(server, QUESTION, temperature=50, logprobs=True, top_logprobs=1, max_tokens=8)
        assert -9999.0 in [entry["logprob"] for entry in hot["choices"][0]["logprobs"]["content"]]


def test_how_parts_of_characters_are_written(folder: Path, tokenizer: Any) -> None:
    ids = tokenizer("is 🦜")["input_ids"]
    with scoring_server(folder, dialect="openai") as server:

        def names(**faults: float) -> list[str]:
            server.config(faults=faults)
            body = {"prompt": ids, "max_tokens": 0, "echo": True, "logprobs": 1}
            return server.ask("/v1/completions", body)["choices"][0]["logprobs"]["tokens"][-4:]

        assert names() == ["\ufffd"] * 4
        assert names(as_bytes=1) == ["bytes:\\xf0", "bytes:\\x9f", "bytes:\\xa6", "bytes:\\x9c"]
        assert names(as_pieces=1) == ["<0xF0>", "<0x9F>", "<0xA6>", "<0x9C>"]
        assert names(as_ids=1) == [f"token_id:{token}" for token in ids[-4:]]
        server.config(dialect="vllm")
        assert names() == ["", "", "", "🦜"]
        body = {"prompt": ids, "max_tokens": 1, "echo": True, "logprobs": 1, "return_tokens_as_token_ids": True}
        tokens = server.ask("/v1/completions", body)["choices"][0]["logprobs"]["tokens"]
        assert tokens[: len(ids)] == [f"token_id:{token}" for token in ids]


def test_llama_server_scores_answers_only_and_merges_parts_of_characters(
    folder: Path, tokenizer: Any, direct: Any
) -> None:
    messages = [*QUESTION, {"role": "assistant", "content": "The capital of"}]
    ids = tokenizer("The capital of")["input_ids"]
    best = direct(ids)[-1].topk(2).indices.tolist()
    with scoring_server(folder, dialect="llama-server") as server:
        body = {"prompt": ids, "max_tokens": 0, "echo": True, "logprobs": 2, "temperature": 0}
        [entry] = server.ask("/v1/completions", body)["choices"][0]["logprobs"]["content"]
        assert [entry["id"], *[one["id"] for one in entry["top_logprobs"]]] == [best[0], *best]
        answer = chat(server, messages, logprobs=True, top_logprobs=2)
        hot = {"prompt": ids, "max_tokens": 200, "temperature": 50, "logprobs": 0, "seed": 3}
        drawn = server.ask("/v1/completions", hot)
    assert said(answer) == "The capital of France is Paris."
    content = answer["choices"][0]["logprobs"]["content"]
    assert [entry["token"] for entry in content] == [" France", " is", " Paris", ".", ""]
    assert content[-1]["id"] == tokenizer.eos_token_id
    assert answer["usage"]["completion_tokens"] == 5
    assert len(drawn["choices"][0]["logprobs"]["content"]) < drawn["usage"]["completion_tokens"]


def test_a_shifted_echo_scores_each_token_with_what_follows_it(folder: Path, tokenizer: Any, direct: Any) -> None:
    ids = tokenizer(ANSWER)["input_ids"]
    with scoring_server(folder, dialect="openai", faults={"shifted": 1}) as server:
        body = {"prompt": ids, "max_tokens": 0, "echo": True, "logprobs": 1}
        own = server.ask("/v1/completions", body)["choices"][0]["logprobs"]["token_logprobs"]
    want = direct(ids)
    assert own[1:] == pytest.approx([want[t + 1, token].item() for t, token in enumerate(ids) if t], abs=1e-5)


def test_whether_a_key_came_is_known_but_not_which(folder: Path) -> None:
    with scoring_server(folder) as server:
        body = json.dumps({"prompt": [5], "max_tokens": 1}).encode()
        server.ask("/v1/completions", json.loads(body))
        assert server.stats()["authorization"] == "absent"
        request = urllib.request.Request(f"{server.url}/completions", body, {"Authorization": "Bearer sk-1"})
        with urllib.request.urlopen(request, timeout=60):
            stats = server.stats()
        assert stats["authorization"] == "present"
        assert "sk-1" not in json.dumps(stats)


def test_the_server_in_a_process_of_its_own(folder: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.scoring_server", "--model", str(folder), "--dialect", "sglang"],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
    )
    assert process.stdout is not None
    with process, process.stdout:
        try:
            words = process.stdout.readline().split()
            assert words[:3] == ["scoring", "server", "on"]
            assert int(words[5]) == process.pid
            with urllib.request.urlopen(f"http://{words[3]}/v1/models", timeout=30) as answer:
                assert json.load(answer)["data"][0]["owned_by"] == "sglang"
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
