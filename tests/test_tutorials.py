"""The tutorials run, in a short form."""

from __future__ import annotations

import runpy
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_digits(tmp_path, capsys):
    main = runpy.run_path(str(ROOT / "tutorials/digits.py"))["main"]
    figure = tmp_path / "digits.png"
    rows = main(["--steps", "150", "--samples", "20", "--out", str(figure)])
    assert figure.stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert all(name in printed for name in rows)
    assert len(rows) == 6
    for row in rows.values():
        assert row["accuracy, test"] > 0.9
        assert row["AUROC, unknown"] > 0.7
