"""Opens files that candlewick wrote with the programs that people read them with: pyarrow 15 and current, pandas, polars, DuckDB.

`tables.py BINARY` brings those programs by name, makes some files, checks them under each set of versions, and runs the recipes
of docs/python.md on the files of the commands that stand there. `tables.py --check FOLDER` is the part that runs under one set.
"""

import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

# Pinned, so that a failure here means that something of ours has changed.
NOW = ["polars==2.1.0", "pandas==3.1.1", "pyarrow==26.0.1", "duckdb==2.0.1", "numpy==2.4.6", "safetensors==0.8.0"]
OLD = ["pandas==2.2.3", "pyarrow==15.0.2", "numpy==1.26.4"]
DOCS = pathlib.Path(__file__).resolve().parent.parent / "docs" / "python.md"
TEXT = "method metric direction template component token role src dst target class base checked model task".split()
INTEGER = "layer head pos key neuron example n seed".split()


def environment(packages):
    """The Python of a virtual environment that has the packages."""
    name = hashlib.sha256(repr((sys.version, packages)).encode()).hexdigest()[:12]
    cache = os.environ.get("CANDLEWICK_TABLES") or "~/.cache/candlewick-tables"
    folder = pathlib.Path(cache).expanduser() / name
    python = folder / "bin" / "python"
    if not (folder / "whole").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        install = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run(install + packages, check=True)
        (folder / "whole").touch()
    return python


def main(binary):
    binary = pathlib.Path(binary).resolve()
    with tempfile.TemporaryDirectory() as folder:
        text = DOCS.read_text()
        commands = re.findall(r"^candlewick (.*)$", text, re.M)
        assert len(commands) >= 6, "docs/python.md has lost its commands"
        for command in commands + ["patch --sites z --n-pairs 8 --out text.csv"]:
            run = [binary, "--quiet"] + command.split()
            subprocess.run(run, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        passed = 0
        for packages in (OLD, NOW):
            print("with", ", ".join(packages), flush=True)
            python = environment(packages)
            check = [python, __file__, "--check", folder]
            passed += int(subprocess.run(check, check=True, stdout=subprocess.PIPE).stdout)
        # The recipes as they stand in the docs, under the current versions, which the docs name too.
        assert f"pip install {' '.join(NOW)}\n" in text, "docs/python.md names other versions than CI has"
        recipes = re.findall(r"```python\n(.*?)```", text, re.S)
        assert len(recipes) >= 10, "docs/python.md has lost its recipes"
        for recipe in recipes:
            ran = subprocess.run([python, "-c", recipe], cwd=folder, stdout=subprocess.DEVNULL)
            assert ran.returncode == 0, f"this recipe of docs/python.md fails:\n{recipe}"
        print(f"{passed + len(recipes)} passed, 0 failed")


def check(folder):
    """Raises where a file does not open as it should; prints how many things were tried."""
    os.chdir(folder)
    tried = [files_say_their_types, pandas_reads_filters_and_sorts, rows_have_one_key, the_footer_tells]
    try:
        import duckdb, polars  # noqa: F401
    except ImportError:
        pass
    else:
        tried += [polars_reads, duckdb_counts]
    for one in tried:
        one()
    print(len(tried))


def files_say_their_types():
    import pyarrow.parquet as pq

    schemas = [pq.read_schema(name) for name in ("scores.parquet", "pairs.parquet", "heads.measures.parquet")]
    for schema in schemas:
        assert schema.names == schemas[0].names
        for field in schema:
            wanted = "large_string" if field.name in TEXT else "int32" if field.name in INTEGER else "double"
            assert str(field.type) == wanted, field


def pandas_reads_filters_and_sorts():
    import pandas as pd
    import pyarrow.csv
    import pyarrow.dataset as ds
    import pyarrow.parquet as pq

    name = "scores.parquet"
    frame = pd.read_parquet(name)
    heads = frame[frame.component == "attn.hook_z"]
    assert 0 < len(heads) < len(frame)
    for filters in ([("component", "==", "attn.hook_z")], [("component", "in", ["attn.hook_z"])]):
        assert len(pd.read_parquet(name, filters=filters)) == len(heads)
        assert pq.read_table(name, filters=filters).num_rows == len(heads)
    one = ds.field("component") == "attn.hook_z"
    assert ds.dataset(name).to_table(filter=one).num_rows == len(heads)
    table = pq.read_table(name)
    ordered = table.sort_by([("component", "ascending"), ("score", "descending")])
    assert ordered.num_rows == len(frame)
    pyarrow.csv.write_csv(table, "again.csv")
    # A column with gaps is a float to plain pandas; the nullable types keep it whole.
    assert frame["layer"].dtype == "int32" and frame["head"].dtype == "float64"
    for backend, wanted in (("numpy_nullable", "Int32"), ("pyarrow", "int32[pyarrow]")):
        typed = pd.read_parquet(name, dtype_backend=backend)
        assert str(typed["head"].dtype) == wanted, typed["head"].dtype
        assert (typed["component"] == "attn.hook_z").sum() == len(heads)
        assert typed.groupby("component")["score"].max().notna().all()
        assert typed["layer"].min() - 1 == -1
    grid = heads.pivot(index="layer", columns="head", values="normalised")
    assert grid.notna().all().all()
    text = pd.read_csv("text.csv")
    assert list(text.columns) == list(frame.columns) and len(text) > 0


def rows_have_one_key():
    import pandas as pd

    site = "template component layer head pos key role neuron src dst target example".split()
    for name in ("scores", "pairs", "ablation", "heads"):
        frame = pd.read_parquet(f"{name}.parquet")
        assert not frame.duplicated(site).any(), name
        assert frame["metric"].nunique() == 1, name
    frame = pd.read_parquet("heads.measures.parquet")
    assert not frame.duplicated(site + ["metric"]).any() and frame["metric"].nunique() > 1


def the_footer_tells():
    import pyarrow.parquet as pq

    about = json.loads(pq.read_metadata("scores.parquet").metadata[b"candlewick"])
    assert about["command"][:2] == ["candlewick", "--quiet"] and about["folder"]
    prompt = about["prompts"][0]
    texts = about["token_texts"]
    assert all(str(token) in texts for token in prompt["clean"] + prompt["corrupted"] + prompt["wrong"])
    assert texts[str(prompt["clean"][-1])].strip() == prompt["clean_text"].split()[-1]
    assert texts[str(prompt["answers"][0])].strip()
    beside = json.loads(pathlib.Path("text.csv.provenance.json").read_text())
    assert beside["table"] == "text.csv" and beside["method"] == about["method"]


def polars_reads():
    import polars as pl

    frame = pl.read_parquet("scores.parquet")
    assert frame.schema["component"] == pl.String and frame.schema["head"] == pl.Int32
    lazy = pl.scan_parquet("scores.parquet").filter(pl.col("component") == "attn.hook_z")
    assert 0 < lazy.collect().height < frame.height


def duckdb_counts():
    import duckdb

    lowest = duckdb.sql("select min(layer - 1) from 'scores.parquet'").fetchall()[0][0]
    assert lowest == -1
    wide = "pivot (select layer, head, score from 'pairs.parquet') on head using avg(score)"
    assert len(duckdb.sql(wide).fetchall()) > 1
    assert duckdb.sql("select * from parquet_kv_metadata('scores.parquet')").fetchall()


if __name__ == "__main__":
    if sys.argv[1] == "--check":
        check(sys.argv[2])
    else:
        main(sys.argv[1])
