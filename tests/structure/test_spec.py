import pytest

from flatwing import Chain
from strategies import as_user


@pytest.mark.parametrize(
    ("text", "chain"),
    [
        ("monarch(1024,1024,blocks=32)", Chain.monarch(1024, 1024, blocks=32)),
        ("  monarch( m=12, n = 18, blocks=3, rank=2 ) ", Chain.monarch(12, 18, blocks=3, rank=2)),
        ("butterfly(12, radices=(3, 4))", Chain.butterfly(12, radices=(3, 4))),
        ("butterfly(12, radices=[3, 4], rank=2)", Chain.butterfly(12, radices=(3, 4), rank=2)),
        ("butterfly(12, None)", Chain.butterfly(12)),
        ("kronecker([(2,3),(4,5)])", Chain.kronecker([(2, 3), (4, 5)])),
        ("from_radices((2,2),(2,2),(1,))", Chain.butterfly(4)),
        ("(1,2,2,2)\n(2,2,2,1)", Chain.butterfly(4)),
    ],
)
def test_specifications(text: str, chain: Chain) -> None:
    assert Chain.parse(text) == chain


FORM = r"is not a chain\. Rule: 'butterfly\(64\)'.*or patterns such as"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "butterfly",
        "butterfly(8",
        "8",
        "butterfly(8); butterfly(4)",
        "butterfly(8)\0",
        "__import__('os').system('x')",
        "(lambda: butterfly(8))()",
        "Chain.butterfly(8)",
        "butterfly(8)(8)",
        "x := butterfly(8)",
        "(1,2,2,2)(2,2,2,1",
        "(1,2,2,2)+(2,2,2,1)",
        "(" * 100_000,
        "butterfly(" + "9" * 5_000 + ")",
    ],
    ids=lambda text: repr(text[:30]),
)
def test_text_of_another_form_is_refused_and_not_run(text: str) -> None:
    with pytest.raises(ValueError, match=FORM) as caught:
        Chain.parse(text)
    assert len(str(caught.value)) < 300, "a long text is shown from its beginning only"


@pytest.mark.parametrize("sign", ["-", "1+", "[", "(", "butterfly("])
@pytest.mark.parametrize("depth", [90, 1_000, 100_000])
def test_depth_is_no_danger(sign: str, depth: int) -> None:
    """Where the parser of Python gives up depends on its version; the error does not."""
    with pytest.raises(ValueError, match=r"is not a chain|not a literal|whole numbers|whilst typechecking") as caught:
        Chain.parse(f"butterfly({sign * depth}8)")
    assert len(str(caught.value)) < 4_000


@pytest.mark.parametrize(
    "argument",
    [
        "__import__('os').system('x')",
        "(lambda: 8)()",
        "(lambda: (lambda: 8)())()",
        "2**3",
        "n",
        "[8 for _ in range(1)]",
        "f'{8}'",
        "*[8]",
        "{[8]: 8}",
        "(" * 50 + "-x" + ")" * 50,
    ],
)
def test_arguments_are_literals_and_nothing_is_run(argument: str) -> None:
    with pytest.raises(
        ValueError, match=r"has an argument that is not a literal\. Rule: butterfly\(n, radices=None, ra"
    ):
        Chain.parse(f"butterfly({argument})")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("butterfli(8)", r"unknown chain family 'butterfli', did you mean 'butterfly'\? Known: .*monarch"),
        ("print(8)", r"unknown chain family 'print'"),
        ("search(4, 4, 8)", r"unknown chain family 'search'"),
        ("monarch(4, 4)", r"missing a required argument: 'blocks'\. Rule: monarch\(m, n, blocks, rank=1\)"),
        ("monarch(4, 4, 2, 1, 1)", r"too many positional arguments\. Rule: monarch\("),
        ("monarch(4, 4, block=2)", r"missing a required argument: 'blocks'"),
        ("monarch(4, 4, blocks=2, blocks=4)", r"an argument is given twice\. Rule: monarch\("),
        ("monarch(4, 4, 2, blocks=4)", r"multiple values for argument 'blocks'"),
        ("dense(**{'m': 4, 'n': 4})", r"missing a required argument: 'm'"),
        ("monarch(4, 6, blocks=4)", r"blocks=4 does not divide 4 and 6"),
        ("monarch(4.5, 6, blocks=2)", r"'monarch\(4\.5, 6, blocks=2\)': m, n, blocks and rank must be whole numbers"),
        ("monarch('4', 6, blocks=2)", r"must be whole numbers, got \['4', 6, 2, 2, 1\]"),
        ("(1,2,2)", r"'\(1,2,2\)' is not a pattern\. Rule: four whole numbers"),
        ("(1,2,2,2)(2,3,2,1)", r"factors 0 and 1 do not fit: \(1,2,2,2\) has 4 columns, \(2,3,2,1\) has 6 rows"),
        ("(0,2,2,1)", r"entries >= 1, got a=0"),
    ],
)
def test_what_is_wrong_is_named(text: str, message: str) -> None:
    with as_user(), pytest.raises(ValueError, match=message):
        Chain.parse(text)
