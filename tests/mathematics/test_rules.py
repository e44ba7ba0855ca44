"""Each rule of the reader and the comparison by itself."""

from fractions import Fraction

import pytest
from mpmath import mp

from polaris_jax.mathematics import intervals, letters, relations, units, words
from polaris_jax.mathematics import nodes as n
from polaris_jax.mathematics.arithmetic import NeedsPrecision, NotANumber, TooLarge, add, inexact, power
from polaris_jax.mathematics.evaluate import Env, evaluate
from polaris_jax.mathematics.numeric import proportion, same_value
from polaris_jax.mathematics.reader import Reading, read
from polaris_jax.mathematics.tokens import MAX_DEPTH, Unreadable, tokenize


def value(text):
    """Exact value of a constant."""
    return evaluate(read(text), Env())


@pytest.mark.parametrize(
    ("text", "exact"),
    [
        ("1,234,567", 1234567),
        ("14{,}916", 14916),
        ("11,\\! 111", 11111),
        ("1.50", Fraction(3, 2)),
        (".5", Fraction(1, 2)),
        ("3{,}5", Fraction(7, 2)),
        ("1.5e-3", Fraction(3, 2000)),
        ("0.\\overline{142857}", Fraction(1, 7)),
        ("0.1\\dot{6}", Fraction(1, 6)),
        ("204_5", 54),
        ("FF_{16}", 255),
        ("2\\frac58", Fraction(21, 8)),
        ("-2\\frac12", Fraction(-5, 2)),
        ("3 1/7", Fraction(22, 7)),
        ("\\frac12", Fraction(1, 2)),
        ("\\frac123", Fraction(3, 2)),
        ("2^10", 1024),
        ("-2^2", -4),
        ("2^{-1}", Fraction(1, 2)),
        ("\\sqrt{\\frac{9}{4}}", Fraction(3, 2)),
        ("\\sqrt[3]{-8}", -2),
        ("8^{2/3}", 4),
        ("5!", 120),
        ("6!!", 48),
        ("\\binom{5}{2}", 10),
        ("|{-3}|", 3),
        ("\\lfloor -2.5\\rfloor", -3),
        ("\\lceil 2.1\\rceil", 3),
        ("12\\%", Fraction(3, 25)),
        ("6:4", Fraction(3, 2)),
        ("\\sum_{k=1}^{10} k", 55),
        ("\\prod_{k=1}^{5} k", 120),
        ("17 \\bmod 5", 2),
        ("\\gcd(12,18)", 6),
        ("\\begin{vmatrix}1&2\\\\3&4\\end{vmatrix}", -2),
        ("\\text{24}", 24),
        ("2 \\text{ dozen}", 24),
    ],
)
def test_a_constant_is_exact_where_it_can_be(text, exact):
    assert value(text) == exact


@pytest.mark.parametrize("text", ["1/0", "0^0", "\\ln 0", "(-1)!", "\\tan 90^\\circ", "\\infty+1", "5 \\bmod 0"])
def test_what_has_no_value_is_no_number(text):
    with pytest.raises(NotANumber):
        value(text)


@pytest.mark.parametrize("text", ["9^{9^{9^9}}", "(10^{10})!", "\\sum_{k=1}^{99999} k", "\\binom{10^9}{10^8}"])
def test_a_value_not_worth_its_cost_is_refused(text):
    with pytest.raises(TooLarge):
        value(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\\frac{1}{",
        "1)",
        "(1",
        "3 8 5",
        "42?",
        "\\cancel{42}",
        "1,,2",
        "\\int_0^1 x dx",
        "19_5",
        "4\x002",
        "\u202e24",
    ],
)
def test_what_the_reader_does_not_know_is_unreadable(text):
    with pytest.raises(Unreadable):
        read(text)


def test_nesting_is_bounded():
    read("(" * (MAX_DEPTH // 2 - 2) + "1" + ")" * (MAX_DEPTH // 2 - 2))
    with pytest.raises(Unreadable):
        read("(" * 200 + "1" + ")" * 200)


def test_commas_are_groups_of_digits_or_separate():
    assert read("1,234") == read("1234")
    assert isinstance(read("1,234", Reading(comma_groups=False)), n.Seq)
    assert isinstance(read("(1,234)"), n.Seq)


def test_letters_after_explicit_space_are_units_or_factors():
    assert isinstance(read("5\\,m"), n.Quantity)
    assert read("5\\,m", Reading(unit_letters=False)) == n.Call("mul", (read("5"), n.Sym("m")))
    assert not isinstance(read("5 m"), n.Quantity)


def test_a_letter_before_a_parenthesis_is_a_function_only_where_it_looks_like_one():
    assert isinstance(read("f(x+1)"), n.Apply)
    assert isinstance(read("x(t)"), n.Apply)
    assert isinstance(read("I(0)"), n.Apply)
    assert isinstance(read("n(n+1)"), n.Call)


@pytest.mark.parametrize(
    ("run", "tokens"),
    [
        ("ab", [("sym", "a"), ("sym", "b")]),
        ("abcd", [("sym", "a"), ("sym", "b"), ("sym", "c"), ("sym", "d")]),
        ("sin", [("func", "sin")]),
        ("SRAC", [("sym", "SRAC")]),
        ("ellipse", [("text", "ellipse")]),
        ("or", [("sep", "or")]),
        ("e", [("const", "e")]),
    ],
)
def test_letters_without_markup(run, tokens):
    assert letters.letter_tokens(run, after_number=False) == tokens


def test_fonts_and_spacing_make_no_difference_to_tokens():
    plain = [token.text for token in tokenize("x+1")]
    assert [token.text for token in tokenize("\\displaystyle \\mathbf{x}\\;+\\, 1")] == plain


def test_an_approximation_is_dropped_with_its_brackets():
    exact = read("\\frac13")
    for tail in ("\\approx 0.33", "\\ (\\approx 0.33)", "\\text{ (approximately } 0.33)", "\\text{ or about } 0.33"):
        assert read("\\frac13" + tail) == exact
    assert read("\\approx 3.14") == read("3.14")


@pytest.mark.parametrize(
    ("gold", "other", "factor"),
    [
        ("cm", "m", 100),
        ("cm^2", "m^{2}", 10_000),
        ("square inches", "inches ^2", 1),
        ("km/h", "km per hour", 1),
        ("hours", "minutes", Fraction(1, 60)),
        ("$", "cents", Fraction(1, 100)),
        ("people", "students", 1),
        ("miles", "km", Fraction(1000, 1) / Fraction(1609344, 1000)),
        ("cm", "cm^2", None),
        ("kg", "hours", None),
    ],
)
def test_units_convert_clash_or_are_unknown(gold, other, factor):
    assert units.factor_between(gold, other) == factor


@pytest.mark.parametrize("text", ["or 43", "is not right", "= 42", "more", "if n is odd", "minus 3"])
def test_words_that_change_a_value(text):
    assert units.changes_value(text)
    assert not units.changes_value("(square units)")


@pytest.mark.parametrize(
    ("gold", "box", "same"),
    [
        ("\\text{ellipse}", "The Ellipse.", True),
        ("\\text{odd}", "\\text{odd or even}", False),
        ("\\text{4:30 p.m.}", "16:30", True),
        ("\\text{4:30 p.m.}", "4:30 a.m.", False),
        ("", "", False),
    ],
)
def test_words(gold, box, same):
    assert words.same_words(gold, box) == same


@pytest.mark.parametrize(
    ("gold", "box", "same"),
    [
        ("C", "\\textbf{(C)}\\ 12", True),
        ("C", "(c)", True),
        ("C", "c", False),
        ("C", "\\text{(A), (C)}", False),
        ("ABD", "A, B, D", True),
        ("5", "5", False),
    ],
)
def test_choices(gold, box, same):
    assert words.same_choice(gold, box) == same


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("(0,2)", "(0,1]\\cup(1,2)"),
        ("x<1\\text{ or }x>2", "\\mathbb{R}\\setminus[1,2]"),
        ("x>0\\text{ and }x\\le 3", "(0,3]"),
        ("|x|\\ge 2", "(-\\infty,-2]\\cup[2,\\infty)"),
        ("\\{x\\mid x\\ne 0\\}", "(-\\infty,0)\\cup(0,\\infty)"),
        ("(0,3)\\cap(2,5)", "(2,3)"),
        ("[\\sqrt8,3)", "[2\\sqrt2,3)"),
    ],
)
def test_sets_of_reals(a, b):
    assert intervals.same_set(intervals.real_set(read(a)), intervals.real_set(read(b)))


@pytest.mark.parametrize("text", ["(2,1)", "[1,\\infty]", "(a,b)", "x^2<4", "(1,1)"])
def test_what_is_no_known_set_of_reals(text):
    with pytest.raises(intervals.NoRealSet):
        intervals.real_set(read(text))


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("\\sqrt{5+2\\sqrt6}", "\\sqrt2+\\sqrt3", True),
        ("\\sin\\pi", "0", True),
        ("1+e^{-1000}", "1", False),
        ("\\cos(10^{-50})", "1", False),
        ("e^{\\pi\\sqrt{163}}", "640320^3+744", False),
        ("\\sqrt{r^2}", "r", True),
        ("|x|", "x", False),
        ("\\lfloor n/2\\rfloor", "\\frac{2n-1+(-1)^n}{4}", True),
        ("\\lfloor x\\rfloor", "x", False),
        ("x-x", "0", False),
        ("\\log 100", "2", True),
        ("\\log 2", "\\ln 2", True),
        ("\\ln 2", "\\log_{10}2", False),
    ],
)
def test_values_are_equal_exactly_and_for_the_same_symbols(a, b, same):
    assert same_value(read(a), read(b)) == same


def test_proportion_is_a_constant_other_than_zero():
    assert proportion(read("2x+4y"), read("x+2y")) == 2
    assert proportion(read("x^2"), read("x")) is None
    assert proportion(read("0\\cdot x"), read("x")) is None
    assert proportion(read("x"), read("y")) is None


def test_assignments_name_a_variable():
    assert relations.assigned(read("5=x")) == (n.Sym("x"), read("5"))
    assert relations.assigned(read("f(x)=2x")) is not None
    for equation in ("x+y=2", "7=11a+c", "SRAC=LRAC", "x^2=4"):
        assert relations.assigned(read(equation)) is None


def test_plus_and_minus_go_together():
    upper, lower = n.both_signs(read("1\\pm x\\mp y"))
    assert same_value(upper, read("1+x-y"))
    assert same_value(lower, read("1-x+y"))


def test_precision_is_asked_for_where_digits_would_be_lost():
    with mp.workdps(40), pytest.raises(NeedsPrecision):
        add(mp.mpf(1), mp.mpf(10) ** -60)
    with mp.workdps(40), pytest.raises(NeedsPrecision):
        inexact(Fraction(10**60 + 1, 10**60))
    with mp.workdps(40):
        assert add(mp.sqrt(2) ** 2, mp.mpf(-2)) == 0


def test_roots_of_negative_numbers_are_real_where_odd():
    assert power(Fraction(-8), Fraction(1, 3)) == -2
    assert power(Fraction(-4), Fraction(1, 2)) == mp.mpc(0, 2)
