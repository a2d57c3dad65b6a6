"""One form for all messages."""

from tn_extensions.errors import describe


def test_message_names_callable_argument_rule_and_value():
    assert describe("f", "x", "be 1", 2) == "f: x must be 1, got 2."


def test_remedy_is_a_sentence_of_its_own():
    assert describe("f", "x", "be 1", 2, "Add") == "f: x must be 1, got 2. Add."
