//! What is drawn of a table: its grids, for the mean and for each pair, its strongest rows as bars, and the tokens of a lens.

use std::collections::{BTreeSet, HashMap};

use polars::prelude::{IdxCa, NewChunkedArray};
use serde_json::{Value, json};

use super::rows::Rows;
use crate::plot::columns::{Columns, Values};
use crate::plot::panel::{Label, Panel, panels_of};
use crate::plot::scale::Scale;
use crate::scores::{Direction, Provenance, Scores, View};
use crate::text::visible;

/// Cells of all grids of a result.
const MOST_CELLS: usize = 200_000;
/// Bars of a picture.
const BARS: usize = 20;
/// Pairs that have bars of their own.
const PAIRS: usize = 200;
/// A sum is the metric if it misses it by no more than this share of it (or of 1).
const CLOSES: f64 = 1e-3;

/// Some rows of a table, by number.
struct Part {
    scores: Scores,
    rows: Vec<u32>,
}

/// The rows of each pair, if the table keeps pairs apart.
fn pairs(scores: &Scores) -> Vec<(i64, Vec<u32>)> {
    let mut order: Vec<(i64, Vec<u32>)> = Vec::new();
    let mut known = HashMap::new();
    let examples = scores.integers("example").unwrap_or_default();
    for (row, example) in examples.into_iter().enumerate() {
        let Some(example) = example else { continue };
        let at = *known.entry(example).or_insert_with(|| {
            order.push((example, Vec::new()));
            order.len() - 1
        });
        order[at].1.push(row as u32);
    }
    order
}

/// The rows of one pair as a table that knows only this pair's prompts.
fn of_pair(scores: &Scores, example: i64, rows: &[u32]) -> Part {
    let index = IdxCa::from_slice("row".into(), rows);
    let about = &scores.provenance;
    let is_it = |known: usize| i64::try_from(known).is_ok_and(|known| known == example);
    let prompts = about.prompts.iter().filter(|prompt| is_it(prompt.example));
    let provenance = Provenance {
        metric: about.metric.clone(),
        unit: about.unit.clone(),
        direction: about.direction,
        prompts: prompts.cloned().collect(),
        token_texts: about.token_texts.clone(),
        ..Provenance::default()
    };
    let table = scores.table.take(&index);
    Part {
        scores: Scores {
            table: table.expect("the rows were counted from this table"),
            provenance,
            sides: Vec::new(),
        },
        rows: rows.to_vec(),
    }
}

/// The grids of every measure, for the mean and for each pair; and how many pairs were left out because there are too many.
pub(super) fn grids(scores: &Scores, whole: &Scores, rows: &Rows) -> (Vec<Value>, usize) {
    let columns = Columns::of(whole);
    let own = scores.provenance.metric.as_str();
    let others: BTreeSet<&str> = columns.metric.found().copied().collect();
    let others = others.into_iter().filter(|&metric| metric != own);
    let measures: Vec<Option<&str>> = std::iter::once(None).chain(others.map(Some)).collect();
    let mut grids = Vec::new();
    let mut n_cells = 0;
    let mut draw = |part: &Scores, pair: Option<i64>, of: &dyn Fn(usize) -> usize| {
        for &measure in &measures {
            let mut panels = panels_of(part, measure);
            panels.retain(|panel| panel.rows.len() * panel.columns.len() > 1);
            if panels.is_empty() {
                continue;
            }
            n_cells += panels
                .iter()
                .map(|p| p.rows.len() * p.columns.len())
                .sum::<usize>();
            let place = |row: usize| rows.place(of(row));
            grids.push(grid(&panels, &part.provenance, measure, pair, &place));
        }
        n_cells < MOST_CELLS
    };
    draw(whole, None, &|row| row);
    let pairs = pairs(whole);
    for (done, (example, of_example)) in pairs.iter().enumerate() {
        let part = of_pair(whole, *example, of_example);
        if !draw(&part.scores, Some(*example), &|row| part.rows[row] as usize) {
            return (grids, pairs.len() - done - 1);
        }
    }
    (grids, 0)
}

fn grid(
    panels: &[Panel],
    about: &Provenance,
    measure: Option<&str>,
    pair: Option<i64>,
    place: &dyn Fn(usize) -> Option<usize>,
) -> Value {
    let scale = Scale::of_run(panels);
    let is_normalised = panels.iter().any(|panel| panel.is_normalised);
    let quantity = match measure {
        Some(measure) => visible(measure),
        None => scale.caption(is_normalised, about),
    };
    // The bars beneath have the sign of the metric's change, which in one direction is the other one.
    let caption = match (is_normalised && measure.is_none(), about.direction) {
        (true, Direction::Denoise) => format!("{quantity}; 1 is as in the clean run"),
        (true, Direction::Noise) => format!("{quantity}; 1 is as in the corrupted run"),
        _ => quantity.clone(),
    };
    json!({
        "measure": visible(measure.unwrap_or(&about.metric)),
        "pair": pair,
        "caption": caption,
        "quantity": quantity,
        "reach": scale.reach,
        "panels": panels.iter().map(|p| panel(p, place)).collect::<Vec<_>>(),
    })
}

fn panel(panel: &Panel, place: &dyn Fn(usize) -> Option<usize>) -> Value {
    let label = |label: &Label| json!([label.name, label.token, label.role]);
    let places = panel.table_rows.iter().map(|row| {
        let places = row.iter().map(|row| row.and_then(place));
        places.collect::<Vec<_>>()
    });
    json!({
        "title": panel.title,
        "axes": panel.axes,
        "rows": panel.rows.iter().map(label).collect::<Vec<_>>(),
        "columns": panel.columns.iter().map(label).collect::<Vec<_>>(),
        "values": panel.values,
        "table_rows": places.collect::<Vec<_>>(),
        "reach": panel.limit(),
    })
}

/// The strongest rows of the table's own metric, for the mean and for each pair; where all rows add up to the metric, what the
/// others add, and the sum.
pub(super) fn bars(scores: &Scores, rows: &Rows) -> Vec<Value> {
    let about = &scores.provenance;
    let identity: Vec<u32> = (0..scores.table.height() as u32).collect();
    let mean = bars_of(scores, &identity, rows, None, about.mean_clean);
    let each = pairs(scores).into_iter().take(PAIRS).map(|(example, of)| {
        let part = of_pair(scores, example, &of);
        let baseline = |known: &&crate::scores::Baseline| known.example as i64 == example;
        let clean = about
            .baselines
            .iter()
            .find(baseline)
            .map_or(f64::NAN, |b| b.clean);
        bars_of(&part.scores, &part.rows, rows, Some(example), clean)
    });
    std::iter::once(mean).chain(each).flatten().collect()
}

fn bars_of(
    scores: &Scores,
    of: &[u32],
    rows: &Rows,
    pair: Option<i64>,
    clean: f64,
) -> Option<Value> {
    let columns = Columns::of(scores);
    let floats = |name: &str| {
        scores
            .floats(name)
            .unwrap_or_else(|| vec![None; columns.height])
    };
    let (low, high) = (floats("ci_low"), floats("ci_high"));
    let mut known = HashMap::new();
    // The rows of a cell: where they are several (pairs), their mean is drawn.
    let mut cells: Vec<(Vec<usize>, f64)> = Vec::new();
    for row in (0..columns.height).filter(|&row| columns.is_own(row)) {
        let Some(score) = columns.score[row].filter(|score| score.is_finite()) else {
            continue;
        };
        let at = *known.entry(columns.cell(row)).or_insert_with(|| {
            cells.push((Vec::new(), 0.0));
            cells.len() - 1
        });
        cells[at].0.push(row);
        cells[at].1 += score;
    }
    let mut bars: Vec<(usize, f64, bool)> = cells
        .into_iter()
        .map(|(rows, sum)| (rows[0], sum / rows.len() as f64, rows.len() == 1))
        .collect();
    // Where all are equally strong, none is the strongest.
    let strength = |bar: &(usize, f64, bool)| bar.1.abs();
    if bars.len() < 2 || bars.iter().all(|bar| strength(bar) == strength(&bars[0])) {
        return None;
    }
    let sum: f64 = bars.iter().map(|(_, score, _)| score).sum();
    let is_direct = scores.provenance.direction == Direction::Direct;
    let closes = is_direct && (sum - clean).abs() <= CLOSES * clean.abs().max(1.0);
    bars.sort_by(|a, b| b.1.abs().total_cmp(&a.1.abs()));
    let n_all = bars.len();
    let others: f64 = bars.iter().skip(BARS).map(|(_, score, _)| score).sum();
    bars.truncate(BARS);
    let drawn = bars.iter().map(|&(row, score, is_one)| {
        let end = |ends: &[Option<f64>]| ends[row].filter(|_| is_one);
        let place = rows.place(of[row] as usize).filter(|_| is_one);
        json!([name(&columns, row), score, end(&low), end(&high), place])
    });
    Some(json!({
        "pair": pair,
        "all": n_all,
        "bars": drawn.collect::<Vec<_>>(),
        "others": others,
        "sum": closes.then_some(sum),
        "metric": closes.then_some(clean),
    }))
}

/// A row in few words: `z a3.h1`, `resid_pre 1 @10 S2`, `a3.h1 → logits`.
fn name(columns: &Columns, row: usize) -> String {
    let text = |of: &Values<&str>| of[row].map(visible);
    let component = text(&columns.component).unwrap_or_default();
    if let (Some(src), Some(dst)) = (text(&columns.src), text(&columns.dst)) {
        return match component.as_str() {
            "pair" => format!("{src} + {dst}"),
            // What flows from state to state can do so in several ways.
            "stream" | "mlp" | "attention" | "bias" => format!("{src} → {dst} ({component})"),
            "head" => match columns.head[row] {
                Some(head) => format!("{src} → {dst} (head {head})"),
                None => format!("{src} → {dst}"),
            },
            _ => format!("{src} → {dst}"),
        };
    }
    if let (Some(src), "circuit" | "set") = (text(&columns.src), component.as_str()) {
        return src;
    }
    let mut parts = vec![component.replace("attn.", "").replace("hook_", "")];
    parts.extend(match (columns.layer[row], columns.head[row]) {
        (Some(layer), Some(head)) => Some(format!("a{layer}.h{head}")),
        (Some(layer), None) => Some(layer.to_string()),
        (None, head) => head.map(|head| head.to_string()),
    });
    parts.extend(columns.neuron[row].map(|neuron| format!("neuron {neuron}")));
    parts.extend(columns.pos[row].map(|pos| format!("@{pos}")));
    parts.extend(columns.key[row].map(|key| format!("key {key}")));
    parts.extend(text(&columns.role).or_else(|| text(&columns.token)));
    let part = text(&columns.src).or_else(|| text(&columns.dst));
    parts.extend(part.map(|part| match part.parse::<f64>() {
        Ok(_) => format!("× {part}"),
        Err(_) => part,
    }));
    parts.extend(text(&columns.target).map(|target| format!("for {target}")));
    parts.join(" ")
}

/// A layer, and its tokens with their scores and rows.
type TokenLine = (String, Vec<Value>);

/// The likeliest tokens after each layer, where the table's views list them.
pub(super) fn token_grids(whole: &Scores, rows: &Rows) -> Vec<Value> {
    let columns = Columns::of(whole);
    let listed = whole.provenance.views.iter().filter_map(|view| match view {
        View::Layers(layers) => layers.tokens.as_deref(),
        _ => None,
    });
    let mut grids = Vec::new();
    for measure in listed {
        let mut order: Vec<(Option<i64>, Vec<TokenLine>)> = Vec::new();
        for row in rows
            .kept()
            .filter(|&row| columns.metric[row] == Some(measure))
        {
            let pair = columns.example[row];
            if order.last().is_none_or(|(last, _)| *last != pair) {
                order.push((pair, Vec::new()));
            }
            let lines = &mut order.last_mut().expect("it was pushed").1;
            let component = visible(columns.component[row].unwrap_or_default());
            let layer = columns.layer[row].unwrap_or(0);
            let label = format!("{}{layer}", component.trim_start_matches("hook_"));
            if lines.last().is_none_or(|(last, _)| *last != label) {
                lines.push((label, Vec::new()));
            }
            let token = visible(columns.dst[row].unwrap_or_default());
            let item = json!([token, columns.score[row], rows.place(row)]);
            lines.last_mut().expect("it was pushed").1.push(item);
        }
        let grid =
            |(pair, lines)| json!({ "measure": visible(measure), "pair": pair, "lines": lines });
        grids.extend(order.into_iter().map(grid));
    }
    grids
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plot::test_scores;
    use crate::scores::{Cell, Detail, ExampleScores, ScoresMeta};

    /// Three parts of two pairs, which add up to 3 and 5.
    fn direct(detail: Detail) -> Scores {
        let cells = [0, 1, 2].map(|layer| Cell {
            component: "hook_mlp_out".into(),
            layer: Some(layer),
            ..Cell::default()
        });
        let example = |example, clean, values: [f64; 3]| ExampleScores {
            example,
            clean,
            cells: [0, 1, 2].into(),
            values: values.into(),
            ..ExampleScores::default()
        };
        let examples = [
            example(0, 3.0, [4.0, -2.0, 1.0]),
            example(1, 5.0, [5.0, -1.0, 1.0]),
        ];
        let meta = ScoresMeta {
            metric: "logit".into(),
            direction: Direction::Direct,
            ..ScoresMeta::default()
        };
        Scores::assemble(&cells, &examples, &meta, detail, Provenance::default()).unwrap()
    }

    #[test]
    fn bars_that_add_up_say_so_for_the_mean_and_for_each_pair() {
        for (detail, sums) in [
            (Detail::Mean, vec![4.0]),
            (Detail::PerExample, vec![4.0, 3.0, 5.0]),
        ] {
            let scores = direct(detail);
            let bars = bars(&scores, &Rows::of(&scores));
            let found: Vec<f64> = bars
                .iter()
                .map(|bars| bars["sum"].as_f64().unwrap())
                .collect();
            assert_eq!(found, sums);
            assert_eq!(bars[0]["bars"][0][1], 4.5);
            assert_eq!(bars[0]["bars"][0][0], "mlp_out 0");
        }
        let mut changed = direct(Detail::Mean);
        changed.provenance.mean_clean += 0.1;
        assert_eq!(bars(&changed, &Rows::of(&changed))[0]["sum"], Value::Null);
    }

    #[test]
    fn a_cell_of_a_grid_knows_its_row() {
        let scores = test_scores(&["a", "b"], 3);
        let (grids, left_out) = grids(&scores, &scores, &Rows::of(&scores));
        assert_eq!((grids.len(), left_out), (1, 0));
        let panel = &grids[0]["panels"][0];
        // Positions go down and layers across; the table has layer by layer.
        assert_eq!(panel["table_rows"], json!([[0, 2, 4], [1, 3, 5]]));
        assert_eq!(panel["values"][1][2], -1.0);
    }
}
