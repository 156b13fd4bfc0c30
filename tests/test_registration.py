import pytest

from revformers.registration import add, require_own_name


class Base:
    name = "base"


class Own(Base):
    name = "own"


def named(name):
    return type("Other", (Base,), {"name": name})


def test_a_class_is_added_under_its_name_as_often_as_one_likes():
    registry = {}
    assert add(Own, Base, registry) is add(Own, Base, registry) is Own
    assert registry == {"own": Own}


def test_a_name_that_nobody_has_need_not_be_registered():
    require_own_name(Own, {})
    require_own_name(Own, {"base": Base, "own": Own})


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        (named("own"), ValueError, "The name 'own' belongs to Own; give Other another one, and register it"),
        (named("own:1"), ValueError, "The name 'own:1' of Other is empty or has a colon"),
        (named(""), ValueError, "is empty or has a colon"),
        (named(3), TypeError, "Other needs a name for recipes and saved models; set one in the class"),
        (Own(), TypeError, r"register takes a subclass of Base, not <.*Own object"),
        (int, TypeError, "register takes a subclass of Base, not <class 'int'>"),
    ],
)
def test_what_nothing_could_refer_to_is_refused(kind, error, message):
    registry = {"own": Own}
    with pytest.raises(error, match=message):
        add(kind, Base, registry)
    assert registry == {"own": Own}
