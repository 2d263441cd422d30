"""Which paid answers become training rows."""

import pytest

from core.generation.filters import REFUSAL, Filters


def test_everything_but_a_truncated_answer_is_kept_by_default() -> None:
    filters = Filters()
    assert filters.reject("Once upon a", "length") == "truncated"
    assert filters.reject("x", "stop") is None
    assert filters.reject("I'm sorry, but I can't help with that.", "stop") is None


def test_truncated_answers_are_kept_on_request() -> None:
    assert Filters(drop_truncated=False).reject("Once upon a", "length") is None


def test_length_is_counted_in_characters_without_the_blanks_around() -> None:
    filters = Filters(min_chars=3)
    assert filters.reject(" äö \n", "stop") == "too_short"
    assert filters.reject("äöü", "stop") is None


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I’m sorry, but I can’t assist with that request.",
        "I am very sorry, I cannot provide this.",
        "Sorry, I can't do that.",
        "I cannot help with this.",
        "I can't create content of this kind.",
        "I won't write that.",
        "No, I can't assist with creating malware.",
        "I must decline.",
        "I'm unable to discuss this.",
        "As an AI language model, I cannot have opinions.",
        "Unfortunately, I'm unable to share it.",
        "My apologies, but I cannot do that.",
        "I apologize, but I cannot fulfill this request.",
        "I cannot in good conscience write this.",
        "I don't feel comfortable helping with that.",
        "As a large language model, I don't have personal experiences.",
        "I understand your frustration, but I cannot help you open somebody else's account.",
        "Es tut mir leid, aber ich kann Ihnen dabei nicht helfen.",
        "Leider kann ich diese Frage nicht beantworten.",
        "Je suis désolé, mais je ne peux pas vous aider.",
        "Lo siento, pero no puedo ayudarte con eso.",
        "Desculpe, mas não posso ajudar com isso.",
        "Mi dispiace, ma non posso aiutarti.",
        "Извините, но я не могу помочь с этим.",
        "很抱歉，我无法提供这些信息。",
        "申し訳ありませんが、その質問にはお答えできません。",
        "죄송하지만 도와드릴 수 없습니다.",
    ],
)
def test_refusals_are_recognised_by_how_they_begin(text: str) -> None:
    assert Filters(drop_refusals=True).reject(text, "stop") == "refusal"


@pytest.mark.parametrize(
    "text",
    [
        "Sure! Here is how.",
        "No, the train was late.",
        "No. I can't help but admire it.",
        "No one can help with that.",
        "Sorry is a word of apology.",
        "The clerk said: I'm sorry, but I can't help with that.",
        "As an AI researcher, she published twelve papers.",
        "I canoe every weekend.",
        "An apology begins with: I am sorry.",
        "Unfortunately, the train was late.",
        "Unfortunately, we are unable to refund tickets that were used.",  # support speaks so, and answers by it
        "I can't wait to see you tomorrow!",
        "I cannot recommend this place enough.",
        "I can't help but smile when I think of it.",
        "I won't lie to you: it is hard.",
        "I'm sorry to hear that! Here is what you can do.",
        "I'm sorry for the inconvenience. Please send the order number so that I can look into it.",
        "I apologize for the confusion. The right answer is 42.",
        "As an AI assistant, I can help you with that.",
        "Leider kann man das nicht immer sagen.",
        "Ich kann nicht schlafen.",
        "Je ne peux pas attendre !",
        "No puedo dormir.",
        "我不能忘记那一天。",
        "申し訳ありません。確認いたします。",
    ],
)
def test_ordinary_answers_are_not_taken_for_refusals(text: str) -> None:
    assert not REFUSAL.match(text)


def test_what_the_provider_marks_as_a_refusal_is_one() -> None:
    assert Filters(drop_refusals=True).reject("No.", "stop", "I will not") == "refusal"
    assert Filters().reject("No.", "stop", "I will not") is None
