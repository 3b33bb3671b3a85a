"""Runs the notebooks in the real kernel, and holds what they print against what is committed.

`notebooks.py [NAME..]` sets the kernel up, runs the notebooks whose file name begins so (else all), and fails where a number or
a word differs. `notebooks.py --write [NAME..]` writes the new outputs into the files instead: what to do after editing one.
"""

import html
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

from tables import environment

PACKAGES = ["nbclient==0.10.2", "nbformat==5.10.4"]
FOLDER = pathlib.Path(__file__).resolve().parent.parent / "notebooks"
# A cell that has to compile what `setup` should have compiled takes minutes.
LONGEST_FIRST_CELL = 90
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")
TIMING = re.compile(r"\d[\d.]* ?(?:ms|s|seconds|minutes|hours)\b")


def main(arguments):
    """Brings what is needed, and goes on in the Python that has it."""
    python = environment(PACKAGES)
    with tempfile.TemporaryDirectory() as data:
        # What Jupyter knows of kernels stays as it is on this machine.
        place = dict(os.environ, JUPYTER_DATA_DIR=data)
        subprocess.run([FOLDER / "setup"], env=place, check=True)
        run = [python, __file__, "--run"] + arguments
        sys.exit(subprocess.run(run, env=place).returncode)


def run_all(arguments):
    import nbformat

    writes = "--write" in arguments
    names = [name for name in arguments if name != "--write"]
    files = sorted(FOLDER.glob("*.ipynb"))
    chosen = [file for file in files if not names or any(file.name.startswith(name) for name in names)]
    assert chosen, f"no notebook of {FOLDER} begins with {names}"
    failed = 0
    for file in chosen:
        committed = nbformat.read(file, as_version=4)
        fresh, seconds = executed(file)
        problems = problems_of(fresh)
        if writes:
            nbformat.write(fresh, file)
        else:
            problems += differences(committed, fresh)
        if seconds[0] > LONGEST_FIRST_CELL:
            problems.append(f"the first cell took {seconds[0]:.0f} s: it compiles what `notebooks/setup` should have compiled")
        print(f"{file.name}: first cell {seconds[0]:.1f} s, the longest of the others {max(seconds[1:]):.1f} s", flush=True)
        for problem in problems:
            print(f"  {problem}")
        failed += bool(problems)
    print(f"{len(chosen) - failed} passed, {failed} failed")
    return 1 if failed else 0


def executed(file):
    """The notebook with new outputs, and how long each cell of code took."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(file, as_version=4)
    seconds = []

    class Timed(NotebookClient):
        async def async_execute_cell(self, cell, *arguments, **named):
            began = time.monotonic()
            done = await super().async_execute_cell(cell, *arguments, **named)
            if cell.cell_type == "code":
                seconds.append(time.monotonic() - began)
            return done


    client = Timed(
        notebook,
        kernel_name=notebook.metadata.kernelspec.name,
        timeout=900,
        startup_timeout=120,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(FOLDER)}},
    )
    client.execute()
    notebook.metadata.pop("language_info", None)
    return notebook, seconds


def problems_of(notebook):
    """What every notebook keeps to."""
    setup = (FOLDER / "setup").read_text()
    features = re.search(r"default-features = false, features = \[[^]]*\]", setup.replace("\\", "")).group()
    problems = []
    if notebook.metadata.kernelspec.name != "candlewick":
        problems.append("its kernel is not `candlewick`")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if f':dep candlewick = {{ path = "..", {features} }}' not in code[0].source:
        problems.append("its first cell does not depend on Candlewick as `setup` compiles it")
    pictures = [at for at, cell in enumerate(notebook.cells) if "<svg" in str(cell.get("outputs", ""))]
    if not pictures or pictures[0] >= 12:
        problems.append("there is no figure within a dozen cells")
    return problems


def differences(committed, fresh):
    found = []
    for at, (old, new) in enumerate(zip(committed.cells, fresh.cells)):
        if old.cell_type != "code":
            continue
        old_text, new_text = printed(old), printed(new)
        if not is_same(old_text, new_text):
            found.append(f"cell {at} prints something else than is committed:\n--- committed\n{old_text}\n--- now\n{new_text}")
    return found


def printed(cell):
    """What a reader sees of a cell's outputs, as text, without timings; of pictures the texts and what stands behind each cell."""
    texts = []
    for output in cell.outputs:
        if output.output_type == "stream":
            texts.append(output.text)
        elif output.output_type == "error":
            texts.append(output.evalue)
        else:
            data = output.data
            if "text/html" in data:
                texts.append(html.unescape(re.sub(r"<[^>]*>", " ", data["text/html"])))
            texts.append(data.get("text/plain", ""))
    return TIMING.sub("", "\n".join(texts))


def is_same(old, new):
    """Whether words are equal, and numbers up to rounding: a thousandth, or two of the last place that is printed."""
    if NUMBER.sub("#", old).split() != NUMBER.sub("#", new).split():
        return False
    pairs = zip(NUMBER.findall(old), NUMBER.findall(new))
    return all(abs(float(a) - float(b)) <= max(1e-3 * abs(float(a)), 2.01 * last_place(a)) for a, b in pairs)


def last_place(number):
    """What one more in the last place of a number is; 0 for a whole number, which counts something."""
    digits, _, exponent = number.partition("e")
    _, point, decimals = digits.partition(".")
    return 10.0 ** (int(exponent or 0) - len(decimals)) if point else 0.0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        sys.exit(run_all(sys.argv[2:]))
    main(sys.argv[1:])
