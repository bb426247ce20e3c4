import pytest
from vall_e.text import pieces, printable


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("Take fruit, e.g. Apples. Or not.", ["Take fruit, e.g. Apples.", "Or not."]),
        ("That is, i.e. Now. Go!", ["That is, i.e. Now.", "Go!"]),
        ("Prof. Lee met Mrs. Day. They spoke.", ["Prof. Lee met Mrs. Day.", "They spoke."]),
        ("Cats vs. Dogs. It ended.", ["Cats vs. Dogs.", "It ended."]),
        ("On Jan. 5 it snowed. Good.", ["On Jan. 5 it snowed.", "Good."]),
        ("This is Jan. He sings.", ["This is Jan.", "He sings."]),
        ("House No. 5 burned. No. It did not.", ["House No. 5 burned.", "No.", "It did not."]),
        ("Pens, ink etc. are here. Pens etc. Go.", ["Pens, ink etc. are here.", "Pens etc.", "Go."]),
        ("It is 5. Go. J. R. did!", ["It is 5.", "Go.", "J. R. did!"]),
        ('He said "Stop." Then he left.', ['He said "Stop."', "Then he left."]),
        ("all in small. letters too.", ["all in small.", "letters too."]),
        ("He is 12. She is 13.", ["He is 12.", "She is 13."]),
    ],
)
def test_points_that_end_no_sentence(text, sentences):
    assert pieces(text, "sentence") == sentences


def test_german_ordinals():
    text = "Am 1. Mai kam er, z. B. Nr. 3. Im Jahr 1999. Danach ging er."
    assert pieces(text, "sentence", "de")[-1] == "Danach ging er."
    assert pieces("Am 1. Mai kam er.", "sentence", "de") == ["Am 1. Mai kam er."]


def test_control_characters_are_spaces():
    assert printable("a\0b\tc\x1bd é\u200d") == "a b c d é\u200d"
