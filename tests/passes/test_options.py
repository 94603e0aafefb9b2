import pytest

from bevel.errors import UsageError
from bevel.passes.options import build, render, schema
from bevel.passes.recipe import Pipeline, from_recipe, from_table, parse
from tests.stub_passes import Nothing, Options, Scale


def test_the_schema_is_read_from_the_fields():
    assert [str(option) for option in schema(Options)] == [
        "ratio: float from 0 to 1 = 0.5  a share",
        "round-to: int of at least 1 = 1",
        "scope: local|global = local",
        "only: names = ",
        'label: str = ""',
        "fast: bool = false",
        "most: int or none = none",
    ]


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"ratio": 0.25, "fast": True},
        {"only": ("a", "layer 1", 'with "quotes"', "back\\slash", "")},
        {"only": ("",)},
        {"label": "none"},
        {"label": "{x=1},"},
        {"label": "'single'"},
        {"label": "layer's"},
        {"most": 3},
        {"scope": "global", "round_to": 8, "ratio": 1e-05},
    ],
)
def test_options_survive_the_trip_through_text(stubs, values):
    instance = Options(**values)
    assert parse(str(instance)) == Pipeline((instance,))


def test_a_pipeline_survives_the_trip_through_text(stubs):
    text = "nothing,scale{factor=0.5 weight=b1},nothing,scale"
    assert str(parse(text)) == text
    assert parse("  nothing , scale { factor = 0.5  weight=b1 },nothing,\nscale{}") == parse(text)


def test_quotes_are_double_or_single(stubs):
    one, other = (
        parse("""options{label='macs="0.5"' only='a b',"it's"}"""),
        Options(label='macs="0.5"', only=("a b", "it's")),
    )
    assert one.passes == (other,)


def test_an_empty_list_is_written_and_read(stubs):
    assert parse("options{only= fast=true}").passes == (Options(fast=True),)
    assert parse("options{only=}").passes == (Options(),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothin", "no pass is called 'nothin'"),
        ("options{ratoi=0.5}", "did you mean 'ratio'?"),
        ("options{ratio=2}", "ratio=2.0 is not a float from 0 to 1"),
        ("options{ratio=nan}", "ratio=nan is not"),
        ("options{ratio=much}", "ratio=much is not"),
        ("options{round-to=0}", "round-to=0 is not an int of at least 1"),
        ("options{round-to=1.5}", "round-to=1.5 is not"),
        ("options{scope=globl}", "did you mean 'global'?"),
        ("options{fast=1}", "fast=1 is not"),
        ("options{ratio=1,2}", "ratio=1,2 is not"),
        ("options{ratio=}", "ratio= is not"),
        ("options{ratio=0.1 ratio=0.2}", "given twice"),
        ("options{ratio}", "expected '=' after option 'ratio'"),
        ("options{ratio=0.5", "expected an option or '}', found the end"),
        ("options}", "expected ',' or the end"),
        ("options,", "expected the name of a pass, found the end"),
        ("", "expected the name of a pass"),
        ('options{label="a}', "a quote is not closed"),
        ("options{label='a}", "a quote is not closed"),
    ],
)
def test_mistakes_are_errors_that_say_where(stubs, text, message):
    with pytest.raises(UsageError) as error:
        parse(text)
    assert message in str(error.value)


def test_values_are_checked_when_a_pass_is_made_in_python():
    with pytest.raises(UsageError, match=r"scale: factor=11.0 is not a float from 0 to 10"):
        Scale(factor=11.0)
    assert Scale(factor=2) == Scale(factor=2.0)
    assert type(Scale(factor=2).factor) is float


def test_a_recipe_is_typed_like_the_text(stubs, tmp_path):
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        '[[pass]]\nname = "options"\nratio = 1\nround-to = 8\nonly = ["a", "b"]\n[[pass]]\nname = "nothing"\n'
    )
    assert from_recipe(recipe) == parse("options{ratio=1.0 round-to=8 only=a,b},nothing")
    assert from_table({"passes": "nothing"}, "") == Pipeline((Nothing(),))


def test_a_project_file_holds_a_recipe(stubs, tmp_path):
    project = tmp_path / "pyproject.toml"
    project.write_text('[tool.bevel]\npasses = "scale{factor=2}"\n')
    assert from_recipe(project) == Pipeline((Scale(factor=2.0),))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"pass": [{"name": "options", "ratio": "0.5"}]}, "ratio=0.5 is not a float"),
        ({"pass": [{"name": "options", "fast": 1}]}, "fast=1 is not a bool"),
        ({"pass": [{"name": "options", "only": "a"}]}, "only=a is not a list of names"),
        ({"pass": [{"name": "options", "round_two": 1}]}, "did you mean 'round-to'?"),
        ({"pass": [{"ratio": 1}]}, "pass 1: has no name"),
        ({"passes": "nothing", "pass": []}, "either"),
        ({}, "either"),
        ({"passs": []}, "unknown key 'passs'"),
        ({"passes": 3}, "`passes` is a text"),
    ],
)
def test_mistakes_in_recipes_are_errors(stubs, table, message):
    with pytest.raises(UsageError) as error:
        from_table(table, "r.toml")
    assert message in str(error.value)


def test_a_broken_recipe_is_an_error(tmp_path):
    with pytest.raises(UsageError, match="cannot be read as TOML"):
        from_recipe(tmp_path / "absent.toml")


def test_an_option_without_a_usable_type_or_default_is_a_bug_in_the_pass():
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Wrong:
        name = "wrong"
        table: dict = None

    @dataclass(frozen=True)
    class Bare:
        name = "bare"
        ratio: float

    for cls in (Wrong, Bare):
        with pytest.raises(TypeError, match="option"):
            schema(cls)


def test_text_leaves_defaults_out():
    assert render(build(Options, {"ratio": 0.5})) == "options"
