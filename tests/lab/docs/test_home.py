import re

import pytest

from tests.docs.pages import PAGES, ROOT


def test_the_first_page_is_the_readme_and_its_links_are_pages():
    pytest.importorskip("mkdocs")
    from mkdocs.config import load_config
    from mkdocs.structure.files import Files

    config = load_config(str(ROOT / "mkdocs.yml"))
    files = config.plugins.run_event("files", Files([]), config=config)
    text = files.get_file_from_path("index.md").content_string
    assert text.splitlines()[0] == PAGES["README.md"].splitlines()[0]
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    assert len(links) > 10
    assert all((ROOT / "docs" / link).is_file() for link in links)
