"""The reference lists every public name, and the site has every page."""

import re
from types import ModuleType

import yaml

import revformers as rf
from tests.docs.pages import PAGES, ROOT


def test_the_reference_lists_every_public_name():
    listed = re.findall(r"^::: revformers\.(\w+)$", PAGES["docs/reference/api.md"], re.MULTILINE)
    public = {name for name in rf.__all__ if not isinstance(getattr(rf, name), ModuleType)}
    assert sorted(set(listed) - {"errors"}) == sorted(public - {name for name in public if hasattr(rf.errors, name)})


def test_the_site_has_every_page():
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    listed = set(re.findall(r"[\w/-]+\.md", nav)) - {"index.md"}
    assert {f"docs/{page}" for page in listed} == PAGES.keys() - {"README.md"}
    assert yaml.safe_load(f"nav:{nav}")["nav"]
