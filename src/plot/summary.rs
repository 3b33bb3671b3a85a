//! What a grid cannot show: lists of tokens, and several measures of one layer side by side. Each method that has such rows has
//! its own few lines here, made from its table alone, so that a file prints as the run did.

use std::fmt::Write;

use crate::scores::{Scores, visible, visible_width};

/// Lines under the heatmap; empty for methods whose grid says it all.
pub fn summary(scores: &Scores) -> String {
    let whole = scores.with_sides();
    let rows = rows(whole.as_ref().unwrap_or(scores));
    match scores.provenance.method.as_str() {
        "direct_logit_attribution" => written(&rows),
        "logit_lens" => lens(&rows, &scores.provenance.metric),
        "head_statistics" => heads(&rows),
        "source_classes" => classes(&rows),
        "early_decoding" => early(&rows),
        _ => String::new(),
    }
}

/// A row of the table, examples averaged. All text in it is safe to show.
#[derive(Debug, Clone, PartialEq)]
struct Row {
    component: String,
    metric: String,
    layer: Option<i64>,
    head: Option<i64>,
    neuron: Option<i64>,
    pos: Option<i64>,
    role: Option<String>,
    src: Option<String>,
    dst: Option<String>,
    target: Option<String>,
    class: Option<String>,
    score: f64,
}

fn rows(scores: &Scores) -> Vec<Row> {
    let height = scores.table.height();
    let numbers = |name: &str| scores.integers(name).unwrap_or_else(|| vec![None; height]);
    let texts = |name: &str| scores.texts(name).unwrap_or_else(|| vec![None; height]);
    let [layer, head, neuron, pos, example] =
        ["layer", "head", "neuron", "pos", "example"].map(numbers);
    let [component, metric, role, src, dst, target, class] = [
        "component",
        "metric",
        "role",
        "src",
        "dst",
        "target",
        "class",
    ]
    .map(texts);
    let values = scores.floats("score").unwrap_or_default();
    let is_averaged = example.iter().all(Option::is_none);
    let mut rows: Vec<Row> = Vec::new();
    let mut counts: Vec<f64> = Vec::new();
    let mut known: std::collections::HashMap<String, usize> = std::collections::HashMap::new();
    for i in 0..height {
        let safe = |texts: &[Option<&str>]| texts[i].map(visible);
        let row = Row {
            component: safe(&component).unwrap_or_default(),
            metric: safe(&metric).unwrap_or_default(),
            layer: layer[i],
            head: head[i],
            neuron: neuron[i],
            pos: pos[i],
            // A position's role is a label of it, and can differ between examples.
            role: safe(&role).filter(|_| pos[i].is_none()),
            src: safe(&src),
            dst: safe(&dst),
            target: safe(&target),
            class: safe(&class),
            score: 0.0,
        };
        let score = values.get(i).copied().flatten().unwrap_or(f64::NAN);
        let at = match is_averaged {
            true => rows.len(),
            false => *known.entry(format!("{row:?}")).or_insert(rows.len()),
        };
        if at == rows.len() {
            rows.push(row);
            counts.push(0.0);
        }
        rows[at].score += score;
        counts[at] += 1.0;
    }
    rows.iter_mut()
        .zip(counts)
        .for_each(|(row, n)| row.score /= n);
    rows
}

/// The items of a list that share a key, in the order of first appearance.
fn grouped<'a, K: PartialEq>(
    rows: impl Iterator<Item = &'a Row>,
    key: impl Fn(&Row) -> K,
) -> Vec<(K, Vec<&'a Row>)> {
    let mut groups: Vec<(K, Vec<&Row>)> = Vec::new();
    for row in rows {
        let key = key(row);
        match groups.iter_mut().find(|(known, _)| *known == key) {
            Some((_, group)) => group.push(row),
            None => groups.push((key, vec![row])),
        }
    }
    groups
}

/// Columns aligned, the first to the left and numbers to the right; the last one is free.
fn aligned(lines: &[Vec<String>]) -> String {
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = lines.iter().filter_map(|line| line.get(column));
        cells.map(|cell| visible_width(cell)).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for line in lines {
        let mut shown = String::new();
        for (column, cell) in line.iter().enumerate() {
            let gap = " ".repeat(widths[column] - visible_width(cell));
            let is_last = column + 1 == columns;
            match column == 0 || is_last {
                true => shown += &format!("{cell}{gap}  "),
                false => shown += &format!("{gap}{cell}  "),
            }
        }
        text.push_str(shown.trim_end());
        text.push('\n');
    }
    text
}

fn name_of(row: &Row) -> String {
    let layer = row.layer.unwrap_or(0);
    match row.head {
        Some(head) => format!("a{layer}.h{head}"),
        None => format!("{layer}"),
    }
}

fn token_list(rows: &[&Row]) -> String {
    let item = |row: &&Row| format!("{} {:+.2}", row.dst.as_deref().unwrap_or(""), row.score);
    rows.iter().map(item).collect::<Vec<_>>().join("  ")
}

fn written(rows: &[Row]) -> String {
    let of_tokens = rows.iter().filter(|row| row.metric == "written_logit");
    let mut text = String::new();
    for (src, tokens) in grouped(of_tokens, |row| row.src.clone().unwrap_or_default()) {
        let (up, down): (Vec<&Row>, Vec<&Row>) = tokens.iter().partition(|row| row.score >= 0.0);
        let down: Vec<&Row> = down.into_iter().rev().collect();
        writeln!(text, "{src} writes for      {}", token_list(&up)).expect(INFALLIBLE);
        writeln!(text, "{src} writes against  {}", token_list(&down)).expect(INFALLIBLE);
    }
    text
}

const INFALLIBLE: &str = "a String takes all";

/// A line for each stream, at the last position.
fn lens(rows: &[Row], metric: &str) -> String {
    let positions = || rows.iter().filter_map(|row| row.pos);
    let end = match positions().any(|pos| pos < 0) {
        true => -1,
        false => positions().max().unwrap_or(-1),
    };
    let measures = [metric, "prob", "rank", "top1", "entropy", "kl"];
    let mut lines = vec![vec!["at the last position".to_string()]];
    lines[0].extend(measures.map(String::from));
    lines[0].push("likeliest".into());
    let wanted = rows
        .iter()
        .filter(|row| row.pos == Some(end) || row.src.is_some());
    let by_stream = grouped(wanted, |row| (row.layer, row.component.clone()));
    for ((layer, component), rows) in by_stream {
        let of = |measure: &str| {
            let row = rows
                .iter()
                .find(|row| row.metric == measure && row.src.is_none());
            row.map_or(String::new(), |row| format!("{:.3}", row.score))
        };
        let short = component.trim_start_matches("hook_");
        let mut line = vec![format!("{short}{}", layer.unwrap_or(0))];
        line.extend(measures.map(of));
        let tokens: Vec<&Row> = rows
            .iter()
            .copied()
            .filter(|row| row.src.is_some())
            .collect();
        line.push(token_list(&tokens).replace(" +", " "));
        lines.push(line);
    }
    aligned(&lines)
}

fn heads(rows: &[Row]) -> String {
    let of_heads = rows
        .iter()
        .filter(|row| row.metric == "induction" && row.src.is_none());
    let mut lines = vec![vec!["head".to_string(), "looks like".to_string()]];
    lines.extend(of_heads.map(|row| vec![name_of(row), row.class.clone().unwrap_or_default()]));
    let mut text = aligned(&lines);
    let entries = rows.iter().filter(|row| row.src.is_some());
    let key = |row: &Row| (name_of(row), row.component.clone(), row.src.clone());
    let mut lines = Vec::new();
    for ((head, circuit, src), tokens) in grouped(entries, key) {
        let verb = match circuit.as_str() {
            "attn.ov" => "seen, it writes for",
            _ => "asking, it looks for",
        };
        let src = src.unwrap_or_default();
        lines.push(vec![
            format!("{head} with {src} {verb}"),
            token_list(&tokens),
        ]);
    }
    if !lines.is_empty() {
        text.push('\n');
        text.push_str(&aligned(&lines));
    }
    text
}

fn classes(rows: &[Row]) -> String {
    let at_ratio = rows.iter().filter(|row| row.metric == "at_ratio");
    let key = |row: &Row| (row.target.clone(), row.class.clone());
    let mut text = String::new();
    for ((target, class), heads) in grouped(at_ratio, key) {
        let item = |row: &&Row| format!("{} {:+.2}", name_of(row), row.score);
        let heads: Vec<String> = heads.iter().map(item).collect();
        let (target, class) = (target.unwrap_or_default(), class.unwrap_or_default());
        writeln!(text, "{target}, {class}: {}", heads.join("  ")).expect(INFALLIBLE);
    }
    text
}

fn early(rows: &[Row]) -> String {
    let measures = [
        ("gap", None),
        ("accuracy_calibrated", Some("true demonstrations")),
        ("accuracy_calibrated", Some("false demonstrations")),
        ("follows_demonstrations", Some("false demonstrations")),
    ];
    let titles = [
        "gap",
        "right after true",
        "right after false",
        "follows false",
    ];
    let mut lines = vec![vec!["after".to_string()]];
    lines[0].extend(titles.map(String::from));
    let streams = rows
        .iter()
        .filter(|row| row.head.is_none() && row.src.is_none());
    for ((layer, component), rows) in grouped(streams, |row| (row.layer, row.component.clone())) {
        let of = |(measure, target): (&str, Option<&str>)| {
            let is = |row: &&&Row| row.metric == measure && row.target.as_deref() == target;
            let row = rows.iter().find(is);
            row.map_or(String::new(), |row| format!("{:.3}", row.score))
        };
        let short = component.trim_start_matches("hook_");
        let mut line = vec![format!("{short}{}", layer.unwrap_or(0))];
        line.extend(measures.map(of));
        lines.push(line);
    }
    let mut text = aligned(&lines);
    for row in rows.iter().filter(|row| row.metric == "gap_ablated") {
        let name = |text: &Option<String>| text.clone().unwrap_or_default();
        let (src, dst) = (name(&row.src), name(&row.dst));
        writeln!(text, "gap {:.3} without {src} ({dst})", row.score).expect(INFALLIBLE);
    }
    text
}
