"""Opens reports in a real browser, from a file and without a network: what they show, what moves, and that nothing hostile runs.

`browser.py BINARY [PICTURES]` brings Chromium (apt) and a driver (pip) by name, makes reports with the binary, and tries them; with
PICTURES, a folder, it leaves pictures of the pages there. `browser.py --check FOLDER` is the part that runs with the driver.
"""

import hashlib
import json
import math
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
DRIVER = ["playwright==1.65.2"]
# A browser's own word for work that a reader feels is 50 ms; more than this many is a page that hangs.
LONGEST_TASK = 200
RESULTS = [
    "patch --out patch.parquet",
    "patch --per-example --n-pairs 6 --out pairs.parquet",
    "logits --out dla.parquet",
    "logits --lens logit --out lens.parquet",
    "heads --samples 2 --out heads.parquet",
    "attribute --method eap --n-pairs 4 --out edges.parquet",
    "attention --value-weighted --out attention.parquet",
]
ATTACK = "<img src=x onerror=hit()></script><script>hit()</script>"
PROMPTS = ["<img src=x onerror=hit()>", "</script><script>hit()</script>", "\u202e gave", "שלום"]
HOSTILE = [ATTACK, "\u202eevil\u2066", "\x1b[31m", "javascript:hit()", "a" * 3000, "\u0301" * 60, "'\"><svg onload=hit()>", "שלום"]


def skip(reason):
    print(f"skipped: {reason}")
    sys.exit(0)


def chromium():
    """The path of Chromium, brought by name if it is not there."""
    names = ["chromium", "chromium-browser", "google-chrome"]
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None and shutil.which("apt-get"):
        prefix = [] if os.geteuid() == 0 else ["sudo", "-n"]
        for command in (["update", "-q"], ["install", "-y", "-q", "chromium"]):
            subprocess.run(prefix + ["apt-get"] + command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        found = next(filter(None, map(shutil.which, names)), None)
    return found or skip("there is no Chromium here, and it could not be installed")


def environment():
    """The Python of a virtual environment that has the driver."""
    name = hashlib.sha256(repr((sys.version, DRIVER)).encode()).hexdigest()[:12]
    cache = os.environ.get("CANDLEWICK_BROWSER") or "~/.cache/candlewick-browser"
    folder = pathlib.Path(cache).expanduser() / name
    python = folder / "bin" / "python"
    if not (folder / "whole").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        install = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        if subprocess.run(install + DRIVER).returncode != 0:
            skip("the driver of the browser could not be installed")
        (folder / "whole").touch()
    return python


def main(binary, pictures):
    binary = pathlib.Path(binary).resolve()
    browser, python = chromium(), environment()
    with tempfile.TemporaryDirectory() as folder:
        def run(*arguments):
            subprocess.run([binary, "--quiet", *arguments], cwd=folder, check=True, stdout=subprocess.DEVNULL)

        for command in RESULTS:
            run(*command.split())
        files = [command.split()[-1] for command in RESULTS]
        run("report", *files, "--out", "all.html")
        run("report", "patch.parquet", "--out", "one.html")
        # Prompts and the name of a file are markup, and turn the reading direction.
        pairs = pathlib.Path(folder, "pairs.csv")
        pairs.write_text(
            "clean,corrupted,answer,wrong\n"
            + "".join(f'"A {text} is","B {text} is",A,B\n' for text in PROMPTS)
        )
        named = "<img src=x onerror=hit()>\u202e.parquet"
        model = str(ROOT / "tests/fixtures/gpt2-tiny-random")
        run("patch", "--model", model, "--pairs", "pairs.csv", "--sites", "z,resid_pre", "--per-example", "--out", named)
        run("report", named, "--out", "attack.html")
        if pictures:
            pathlib.Path(folder, "pictures").symlink_to(pathlib.Path(pictures).resolve())
        check = [python, __file__, "--check", folder, browser]
        return subprocess.run(check).returncode


def large(folder):
    """A page of a 30 by 15 heatmap, a graph of 271 nodes and 1,000 rows, whose every text is an attack."""
    page = pathlib.Path(folder, "one.html").read_text()
    before, rest = page.split('<script type="application/json" id="data">')
    text, after = rest.split("</script>", 1)
    data = json.loads(text)
    section = data["sections"][0]
    hostile = lambda at: HOSTILE[at % len(HOSTILE)]
    values = [[math.sin(3 * row + column) for column in range(30)] for row in range(15)]
    panel = {
        "title": ATTACK,
        "axes": ["position", "layer"],
        "rows": [[str(row), hostile(row), hostile(row + 1)] for row in range(15)],
        "columns": [[str(column), None, None] for column in range(30)],
        "values": values,
        "table_rows": [[row * 30 + column for column in range(30)] for row in range(15)],
        "reach": 1.0,
    }
    section["grids"] = [{"measure": ATTACK, "pair": pair, "caption": ATTACK, "reach": 1.0, "panels": [panel]} for pair in (None, 0)]
    # 30 layers of 8 heads and an MLP, and the input: 271 nodes; every head reads the input and writes to the next MLP and the logits.
    nodes = [["input", 0, "middle"]]
    for layer in range(30):
        nodes += [[f"a{layer}.h{head}", 1 + 2 * layer, head] for head in range(8)] + [[f"m{layer}", 2 + 2 * layer, "beside"]]
    nodes = nodes[:270] + [["logits", 2**53, "middle"]]
    last = len(nodes) - 1
    edges = []
    for at, (name, level, _) in enumerate(nodes[1:last], 1):
        edges.append([0, at, "q" if name[0] == "a" else None, 0, None])
        edges.append([at, last, None, 0, None])
        above = [other for other in range(at + 1, last) if nodes[other][1] > level][:12]
        edges += [[at, other, "v" if nodes[other][0][0] == "a" else None, 0, None] for other in above]
    for number, edge in enumerate(edges):
        edge[3] = math.cos(number) / (1 + number / 300)
        edge.append("")
    edges.sort(key=lambda edge: -abs(edge[3]))
    nodes = [node + [node[0]] for node in nodes]
    section["graphs"] = [{"title": "", "all": len(edges), "nodes": nodes, "edges": edges, "columns": []}]
    text = lambda name, texts: {"name": name, "texts": texts, "shown": {}, "at": [row % len(texts) for row in range(1000)]}
    section["table"] = {
        "all": 1000,
        "n": 1000,
        "columns": [
            text("component", HOSTILE),
            {"name": "layer", "values": [row % 30 for row in range(1000)]},
            {"name": "score", "values": [math.sin(row) for row in range(1000)]},
        ],
    }
    section.update(name=ATTACK, command=ATTACK, folder=ATTACK, notes=[ATTACK], text=ATTACK, model=ATTACK)
    section["facts"] += [["note", ATTACK], ["warning", ATTACK]]
    section["prompts"] = [[number, hostile(number), hostile(number + 1)] for number in range(8)]
    section["bars"][0]["bars"][0][0] = ATTACK
    section["tokens"] = [{"measure": ATTACK, "pair": None, "lines": [[ATTACK, [[hostile(at), 0.3, 1] for at in range(5)]]]}]
    shares = [0.001, 0.01, 0.1, 0.5, 1]
    section["curves"] = [
        {"name": name, "points": [[share, share**power, share**power - 0.05, share**power + 0.05, row] for row, share in enumerate(shares)]}
        for name, power in ((ATTACK, 0.3), ("absolute", 0.5))
    ]
    data["title"], data["notices"] = ATTACK, [ATTACK]
    second = dict(section, id="r2")
    data["sections"] = [section, second]
    text = json.dumps(data)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    large = before + '<script type="application/json" id="data">' + text + "</script>" + after
    pathlib.Path(folder, "large.html").write_text(large)


def check(folder, browser):
    """Raises where a page does not do what it should; prints how many things were tried."""
    from playwright.sync_api import sync_playwright

    large(folder)
    with sync_playwright() as driver:
        chrome = driver.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        tries = [results_are_shown, hovering_says_the_value, keys_do_what_the_mouse_does, the_slider_shows_fewer_edges,
                 a_node_shows_its_edges, tokens_show_where_they_look, curves_say_their_points, rows_are_sorted_filtered_and_saved, pairs_are_chosen, nothing_hostile_runs, nothing_takes_long,
                 narrow_pages_do_not_overflow]
        for one in tries:
            one(Pages(chrome, pathlib.Path(folder)))
            print("ok", one.__name__, flush=True)
        if pathlib.Path(folder, "pictures").exists():
            take_pictures(chrome, pathlib.Path(folder))
        chrome.close()
    print(f"{len(tries)} passed, 0 failed")


class Pages:
    """Opens pages from files with the network off, and keeps what they complain of and what they ask for."""

    def __init__(self, chrome, folder):
        self.chrome, self.folder = chrome, folder

    def open(self, name, width=1280, scheme="light"):
        context = self.chrome.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
        context.set_default_timeout(20_000)
        page = context.new_page()
        page.complaints, page.asked = [], []
        page.on("console", lambda message: page.complaints.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.on("dialog", lambda dialog: page.complaints.append("a dialog"))
        page.on("request", lambda request: page.asked.append(request.url))
        page.add_init_script("window.hits = 0; window.hit = window.alert = () => { window.hits += 1; };")
        page.goto((self.folder / name).as_uri())
        page.wait_for_selector("section.result .rows")
        return page


def is_quiet(page):
    assert page.complaints == [], page.complaints
    others = [url for url in page.asked if not url.startswith(("file:", "blob:"))]
    assert others == [], others


def results_are_shown(pages):
    page = pages.open("all.html")
    assert page.locator("section.result").count() == len(RESULTS)
    assert page.locator("nav li").count() == len(RESULTS)
    assert page.locator("#r3 .bars").inner_text().count("add up to") == 1
    assert page.locator("#r4 table.tokens td").count() >= 20
    assert page.locator("#r6 .graph [data-edge]").count() == 40
    assert "candlewick --quiet patch" in page.locator("#r1 pre.command").inner_text()
    for picture in page.locator("svg[role]").all():
        assert len(picture.get_attribute("aria-label")) > 20
    # Two methods that measure differently are not compared by mistake.
    assert "metrics" in page.locator(".notice").first.inner_text()
    is_quiet(page)


def hovering_says_the_value(pages):
    page = pages.open("one.html")
    picture = page.locator(".heatmaps svg").first
    label = picture.get_attribute("aria-label")
    cell = picture.locator(".cell.plus").first
    cell.hover(force=True)
    first = page.locator("#tip").inner_text()
    assert "layer" in first and "95% interval" in first, first
    picture.locator(".cell.plus").last.hover(force=True)
    assert page.locator("#tip").inner_text() != first
    assert "strongest is" in label
    page.locator(".bars .row-hit").first.hover(force=True)
    assert "score" in page.locator("#tip").inner_text()
    # A double click leads to the row.
    cell.dblclick(force=True)
    assert page.locator("tr.found").count() == 1
    is_quiet(page)


def keys_do_what_the_mouse_does(pages):
    page = pages.open("all.html")
    page.locator("#r1 .heatmaps svg").first.focus()
    page.keyboard.press("ArrowDown")
    first = page.locator("#tip").inner_text()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert page.locator("#tip").inner_text() != first
    page.keyboard.press("Enter")
    assert page.locator("#r1 tr.found").count() == 1
    page.locator("#r6 .graph svg").focus()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    assert page.locator("#r6 .node.chosen").count() == 1
    page.keyboard.press("Escape")
    assert page.locator("#r6 .node.chosen").count() == 0
    is_quiet(page)


def the_slider_shows_fewer_edges(pages):
    page = pages.open("all.html")
    slider = page.locator("#r6 input[type=range]")
    edges = page.locator("#r6 [data-edge]")
    slider.fill("0")
    assert edges.count() == 1
    slider.fill(slider.get_attribute("max"))
    assert edges.count() > 100
    strongest = float(edges.first.evaluate("edge => parseFloat(edge.style.strokeWidth)"))
    weakest = float(edges.last.evaluate("edge => parseFloat(edge.style.strokeWidth)"))
    assert strongest > weakest
    is_quiet(page)


def a_node_shows_its_edges(pages):
    page = pages.open("all.html")
    page.locator("#r6 .graph select").select_option(label="a3.h1")
    said = page.locator("#r6 .graph").inner_text()
    assert "edges in" in said and "a3.h1 → logits" in said and "strongest path" in said, said
    path = page.locator("#r6 .edge.path")
    assert path.count() >= 2
    is_quiet(page)


def tokens_show_where_they_look(pages):
    page = pages.open("all.html")
    viewer = page.locator("#r7 .attention")
    heads = viewer.locator(".head")
    assert heads.count() == 16
    tokens = viewer.locator(".token")
    assert tokens.count() == 15
    said = lambda: viewer.locator(".picked p").inner_text()
    tokens.nth(10).hover()
    first = said()
    assert "looks at" in first and "(10)" in first, first
    viewer.get_by_label("show").select_option("from")
    assert "is looked at by" in said()
    heads.nth(3).click()
    assert heads.nth(3).get_attribute("aria-pressed") == "true"
    assert said() != first
    tokens.nth(4).focus()
    assert "(4)" in said()
    viewer.get_by_label("order").select_option("layer")
    assert heads.first.inner_text() == "a0.h0"
    weighted = viewer.locator(".picked svg").get_attribute("aria-label")
    viewer.get_by_label("measure").select_option("value_weighted")
    assert viewer.locator(".picked svg").get_attribute("aria-label") != weighted
    # The small pictures are no blank ones.
    inks = heads.first.locator("canvas").evaluate("canvas => new Set(canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data).size")
    assert inks > 10, inks
    is_quiet(page)


def curves_say_their_points(pages):
    page = pages.open("large.html")
    curve = page.locator("#r1 .curves svg")
    assert curve.locator(".dot").count() == 10 and curve.locator(".band").count() == 2
    curve.locator(".dot").first.hover(force=True)
    first = page.locator("#tip").inner_text()
    assert "faithfulness" in first and "95% interval" in first, first
    curve.focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert page.locator("#tip").inner_text() != first
    page.keyboard.press("Enter")
    assert page.locator("#r1 tr.found").count() == 1
    is_quiet(page)


def rows_are_sorted_filtered_and_saved(pages):
    page = pages.open("one.html")
    rows = page.locator(".rows tbody tr")
    column = page.locator(".rows thead th").all_inner_texts().index("score") + 1
    scores = lambda: [float(text) for text in page.locator(f".rows td:nth-child({column})").all_inner_texts()]
    page.get_by_role("button", name="score", exact=True).click()
    assert scores() == sorted(scores(), reverse=True)
    page.get_by_role("button", name="score").first.click()
    assert scores() == sorted(scores())
    search = page.locator(".rows input")
    search.fill("component=attn.hook_z layer>2")
    assert rows.count() == 4, rows.count()
    search.fill("layers>2")
    assert "no column layers" in page.locator(".rows .notice").inner_text()
    search.fill("component=attn.hook_z")
    with page.expect_download() as download:
        page.get_by_role("button", name="save as CSV").click()
    saved = pathlib.Path(download.value.path()).read_text().splitlines()
    assert len(saved) == 17 and saved[0].startswith("method,metric,direction,component"), saved[:2]
    with page.expect_download() as download:
        page.get_by_role("button", name="save as JSON lines").click()
    first = json.loads(pathlib.Path(download.value.path()).read_text().splitlines()[0])
    assert first["component"] == "attn.hook_z"
    is_quiet(page)


def pairs_are_chosen(pages):
    page = pages.open("all.html")
    values = lambda: page.locator("#r2 .heatmaps text.number").all_text_contents()
    mean = values()
    page.locator("#r2 .heatmaps select").first.select_option("1")
    assert values() != mean
    measures = page.locator("#r5 .heatmaps select").first
    kinds = measures.locator("option").all_inner_texts()
    assert "previous_token" in kinds
    measures.select_option("entropy")
    is_quiet(page)


def nothing_hostile_runs(pages):
    for name in ("attack.html", "large.html"):
        page = pages.open(name)
        for picture in page.locator("svg[role]").all()[:4]:
            picture.focus()
            page.keyboard.press("ArrowDown")
            page.keyboard.press("ArrowDown")
        page.wait_for_timeout(300)
        assert page.evaluate("window.hits") == 0, name
        assert page.locator("img, iframe, object, main script, [onload], [onerror]").count() == 0, name
        # What changes the reading direction stands as an escape in what the program wrote.
        if name == "attack.html":
            assert "\u202e" not in page.locator("main").inner_text()
            assert "\u202e" not in page.title()
        is_quiet(page)


def nothing_takes_long(pages):
    # Others use the machine too: the best of three tries is the page's own time.
    longest = min(longest_task(pages) for _ in range(3))
    assert longest <= LONGEST_TASK, f"{longest} ms"
    print(f"   the longest task of an interaction: {longest:.0f} ms")


def longest_task(pages):
    page = pages.open("large.html")
    page.wait_for_timeout(500)
    page.evaluate("""window.long = 0;
        new PerformanceObserver((list) => { for (const task of list.getEntries()) window.long = Math.max(window.long, task.duration); })
            .observe({ type: "longtask" });""")
    first = page.locator("#r1")
    for cell in first.locator(".heatmaps .cell").all()[::90]:
        cell.hover(force=True)
    first.locator(".heatmaps select").nth(0).select_option(index=1)
    slider = first.locator("input[type=range]")
    for value in ("0", "200", "400", "300"):
        slider.fill(value)
    first.locator(".graph select").select_option(label="a12.h3")
    first.locator(".graph select").select_option(label="a0.h0")
    for text in ("hit", "layer>20", "score<0.5 layer=3", ""):
        first.locator(".rows input").fill(text)
    for button in first.locator(".rows thead button").all():
        button.click()
        button.click()
    first.get_by_role("button", name="next").click()
    page.wait_for_timeout(300)
    is_quiet(page)
    longest = page.evaluate("window.long")
    # The watch is awake: it sees a task that does take long.
    page.evaluate("setTimeout(() => { const end = performance.now() + 150; while (performance.now() < end); })")
    page.wait_for_timeout(500)
    assert page.evaluate("window.long") >= 140, "long tasks are not seen"
    return longest


def narrow_pages_do_not_overflow(pages):
    for name in ("all.html", "large.html"):
        page = pages.open(name, width=400)
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= 400, (name, wide)
        is_quiet(page)


def take_pictures(chrome, folder):
    pages = Pages(chrome, folder)
    for name in ("all.html", "large.html"):
        for width, scheme in ((420, "light"), (1280, "light"), (1280, "dark")):
            page = pages.open(name, width, scheme)
            stem = f"{name[:-5]}-{width}-{scheme}"
            for section in page.locator("section.result").all():
                section.screenshot(path=folder / "pictures" / f"{stem}-{section.get_attribute('id')}.png")
            page.screenshot(path=folder / "pictures" / f"{stem}.png")


if __name__ == "__main__":
    if sys.argv[1] == "--check":
        check(sys.argv[2], sys.argv[3])
    else:
        sys.exit(main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None))
