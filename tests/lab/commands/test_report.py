import json

from lab.__main__ import main
from tests.lab.bench.example import comparison


def test_it_writes_the_page(tmp_path, capsys):
    (tmp_path / "comparison.json").write_text(json.dumps(comparison()))
    out = tmp_path / "page.html"
    assert main(["report", str(tmp_path), "--out", str(out)]) == 0
    assert out.read_text().startswith("<!doctype html>")
    assert "page.html" in capsys.readouterr().out


def test_mistakes_are_one_sentence_and_exit_code_2(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "holds neither" in capsys.readouterr().err
    (tmp_path / "history.json").write_text("[")
    assert main(["report", str(tmp_path)]) == 2
    assert "history.json is not JSON" in capsys.readouterr().err
