//! Attention patterns of a table, head by head, for the viewer of the page.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::hooks::Kind;
use crate::plot::columns::Columns;
use crate::plot::places::Places;
use crate::scores::{Direction, Provenance, Scores};
use crate::text::{clipped, visible};

/// Values of all patterns on the page.
const MOST_VALUES: usize = 1_000_000;
/// Longer prompts make pictures of more pixels than a screen has.
const LONGEST: usize = 512;
/// The strongest value in the file.
const WHOLE: f64 = 1000.0;

/// What tells grids apart: the measure, the template, the pair.
type Key<'a> = (Option<&'a str>, Option<i64>, Option<i64>);

/// The patterns of a measure on one pair, or their mean.
#[derive(Default)]
struct Grid {
    n: usize,
    /// Values by query and key, of each layer and head.
    heads: BTreeMap<(i64, i64), BTreeMap<(usize, usize), f64>>,
}

/// For each measure, template and pair the patterns of all heads in thousandths of the largest value; and how many of these grids
/// were left out because they are too large. Nothing where rows are no patterns, or are changes and no attention.
pub(super) fn attention(whole: &Scores) -> (Vec<Value>, usize) {
    let columns = Columns::of(whole);
    let about = &whole.provenance;
    if about.direction != Direction::Direct {
        return (Vec::new(), 0);
    }
    let mut grids: BTreeMap<Key, Grid> = BTreeMap::new();
    for row in 0..columns.height {
        let place = |index: Option<i64>| index.and_then(|index| usize::try_from(index).ok());
        let (Some(query), Some(key)) = (place(columns.pos[row]), place(columns.key[row])) else {
            continue;
        };
        let (Some(layer), Some(head)) = (columns.layer[row], columns.head[row]) else {
            continue;
        };
        let is_pattern = columns.component[row] == Some(Kind::Pattern.name());
        let Some(value) = columns.score[row].filter(|v| is_pattern && *v >= 0.0) else {
            continue;
        };
        let which = (
            columns.metric[row],
            columns.template[row],
            columns.example[row],
        );
        let grid = grids.entry(which).or_default();
        grid.n = grid.n.max(query + 1);
        grid.heads
            .entry((layer, head))
            .or_default()
            .insert((query, key), value);
    }
    let mut n_values = 0;
    let all = grids.len();
    let mut drawn = Vec::new();
    // The table's own metric stands first.
    let own = |key: &Key| key.0 != Some(about.metric.as_str());
    let mut grids: Vec<(Key, Grid)> = grids.into_iter().collect();
    grids.sort_by_key(|(key, _)| own(key));
    for (key, grid) in grids {
        n_values += grid.heads.len() * grid.n * (grid.n + 1) / 2;
        if grid.n <= LONGEST && n_values <= MOST_VALUES {
            drawn.push(one(&key, &grid, about));
        }
    }
    let left_out = all - drawn.len();
    (drawn, left_out)
}

fn one(&(measure, template, example): &Key, grid: &Grid, about: &Provenance) -> Value {
    let is_it = |known: usize| example.is_none_or(|wanted| known as i64 == wanted);
    let prompts: Vec<_> = about
        .prompts
        .iter()
        .filter(|prompt| is_it(prompt.example))
        .collect();
    let shown = Provenance {
        prompts: prompts.iter().map(|&prompt| prompt.clone()).collect(),
        token_texts: about.token_texts.clone(),
        ..Provenance::default()
    };
    let places = Places::of(&shown);
    let token = |pos: usize| places.token(pos as i64, template, None);
    let tokens: Vec<String> = (0..grid.n)
        .map(|pos| token(pos).unwrap_or_default())
        .collect();
    let name = match (example, template, prompts.first()) {
        (Some(example), _, Some(prompt)) => {
            format!("{example}: {}", clipped(&visible(&prompt.clean_text), 60))
        }
        (Some(example), _, None) => example.to_string(),
        (None, Some(template), _) => format!("mean of template {template}"),
        (None, None, _) => "mean of all".to_string(),
    };
    let values = grid.heads.values().flat_map(|values| values.values());
    let scale = values.fold(0.0, |most: f64, value| most.max(*value));
    let heads: Vec<Value> = grid
        .heads
        .iter()
        .map(|((layer, head), values)| {
            let at = |query, key| values.get(&(query, key)).copied().unwrap_or(0.0);
            let thousandths = |value: f64| match scale > 0.0 {
                true => (value / scale * WHOLE).round() as i64,
                false => 0,
            };
            let cells = (0..grid.n).flat_map(|query| (0..=query).map(move |key| (query, key)));
            let cells: Vec<i64> = cells
                .map(|(query, key)| thousandths(at(query, key)))
                .collect();
            json!({
                "name": format!("a{layer}.h{head}"),
                "sharp": sharpness(grid.n, at),
                "values": cells,
            })
        })
        .collect();
    json!({
        "measure": visible(measure.unwrap_or(&about.metric)),
        "prompts": name,
        "tokens": tokens,
        "scale": scale,
        "heads": heads,
    })
}

/// The mean over queries of the most that goes to one token other than the first, which is where a head looks that rests.
fn sharpness(n: usize, at: impl Fn(usize, usize) -> f64) -> f64 {
    let most = |query: usize| (1..=query).map(|key| at(query, key)).fold(0.0, f64::max);
    (1..n).map(most).sum::<f64>() / n.saturating_sub(1).max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scores::{Cell, Detail, ExampleScores, ScoresMeta};

    #[test]
    fn patterns_are_triangles_in_thousandths() {
        let values = [1.0, 0.25, 0.75];
        let cells = [(0, 0), (1, 0), (1, 1)].map(|(pos, key)| Cell {
            head: Some(2),
            pos: Some(pos),
            key: Some(key),
            ..Cell::in_layer("attn.hook_pattern", 1)
        });
        let example = ExampleScores {
            cells: [0, 1, 2].into(),
            values: values.into(),
            ..ExampleScores::default()
        };
        let table = |direction| {
            let meta = ScoresMeta {
                metric: "attention".into(),
                direction,
                ..ScoresMeta::default()
            };
            let example = example.clone();
            Scores::assemble(
                &cells,
                &[example],
                &meta,
                Detail::Mean,
                Provenance::default(),
            )
            .unwrap()
        };
        let (grids, left_out) = attention(&table(Direction::Direct));
        assert_eq!((grids.len(), left_out), (1, 0));
        let head = &grids[0]["heads"][0];
        assert_eq!(head["name"], "a1.h2");
        assert_eq!(head["values"], json!([1000, 250, 750]));
        assert_eq!(head["sharp"], 0.75);
        assert_eq!(attention(&table(Direction::Denoise)).0, [Value::Null; 0]);
    }
}
