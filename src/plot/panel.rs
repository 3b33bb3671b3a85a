//! What to draw: a table of scores becomes one grid for each component.
//!
//! Layers are rows, from the first on top; columns are positions, roles, heads or neurons, whichever the sweep has. A sweep
//! over heads and positions has one axis too many: when its rows would not fit a screen it is folded into two grids, each
//! cell showing the strongest value along the axis that is left out. Pattern cells give a grid for each head.

use std::collections::{BTreeMap, BTreeSet};

use crate::scores::{Scores, visible};

/// Rows of a head-by-position grid that still fit a screen.
const MOST_ROWS: usize = 40;
/// Heads of a pattern sweep, or neurons, that are drawn; the table has the others.
const STRONGEST: usize = 24;

/// A grid of values, ready to draw. All text in it is safe to show.
#[derive(Debug, Clone, PartialEq)]
pub struct Panel {
    pub title: String,
    /// What the rows and the columns are.
    pub axes: (String, String),
    pub rows: Vec<String>,
    pub columns: Vec<Label>,
    /// `[row][column]`; `None` where nothing was measured.
    pub values: Vec<Vec<Option<f64>>>,
    /// What the values are, e.g. `normalised` or `score (logits)`.
    pub unit: String,
}

/// What stands over and under a column.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Label {
    /// A number, a role or a name.
    pub name: String,
    pub token: Option<String>,
    pub role: Option<String>,
}

impl Panel {
    /// The largest magnitude, which the ends of the colour scale stand for.
    pub fn limit(&self) -> f64 {
        self.values
            .iter()
            .flatten()
            .flatten()
            .filter(|value| value.is_finite())
            .fold(0.0, |most, v| most.max(v.abs()))
    }
}

/// A row or a column, in the order of drawing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Number(i64),
    Pair(i64, i64),
    Role(usize),
    All,
}

/// One row of the table, as far as drawing needs it.
#[derive(Debug, Clone)]
struct Point {
    layer: Option<i64>,
    head: Option<i64>,
    pos: Option<i64>,
    key: Option<i64>,
    neuron: Option<i64>,
    /// Index into the roles, where a role stands for the position.
    role: Option<usize>,
    token: Option<String>,
    role_name: Option<String>,
    value: f64,
}

/// The grids of a table, in the order of its components, one for each target that is watched. Edges (`src`, `dst`) are not
/// drawn, nor parts that stand outside of all layers, nor what is measured beside the table's own metric; per-example rows
/// are averaged.
pub fn panels(scores: &Scores) -> Vec<Panel> {
    let (unit, points) = points(scores);
    points
        .into_iter()
        .flat_map(|(component, points)| component_panels(&visible(&component), &unit, &points))
        .collect()
}

fn points(scores: &Scores) -> (String, Vec<(String, Vec<Point>)>) {
    let height = scores.table.height();
    let per_example = scores.integers("example").is_some();
    // The mean of normalised values of single examples is not the normalised mean: only scores can be averaged.
    let normalised = scores.floats("normalised").filter(|_| !per_example);
    let unit = match &normalised {
        Some(_) => "normalised effect".to_string(),
        None => format!("score ({})", visible(&scores.provenance.unit)),
    };
    let values = normalised
        .or_else(|| scores.floats("score"))
        .unwrap_or_default();
    let numbers = |name: &str| scores.integers(name).unwrap_or_else(|| vec![None; height]);
    let texts = |name: &str| scores.texts(name).unwrap_or_else(|| vec![None; height]);
    let [layer, head, pos, key, neuron] = ["layer", "head", "pos", "key", "neuron"].map(numbers);
    let [component, token, role, src, target, metric] =
        ["component", "token", "role", "src", "target", "metric"].map(texts);
    let own = |row: usize| metric[row].is_none_or(|m| m == scores.provenance.metric);
    let outside = |row: usize| layer[row].is_none() && pos[row].is_none() && role[row].is_none();

    let mut roles: Vec<&str> = Vec::new();
    let mut components: Vec<(String, Vec<Point>)> = Vec::new();
    for row in (0..height).filter(|&row| src[row].is_none() && own(row) && !outside(row)) {
        let Some(value) = values.get(row).copied().flatten() else {
            continue;
        };
        let in_place_of_pos = role[row].filter(|_| pos[row].is_none());
        let role_index = in_place_of_pos.map(|name| {
            roles
                .iter()
                .position(|&known| known == name)
                .unwrap_or_else(|| {
                    roles.push(name);
                    roles.len() - 1
                })
        });
        let point = Point {
            layer: layer[row],
            head: head[row],
            pos: pos[row],
            key: key[row],
            neuron: neuron[row],
            role: role_index,
            token: token[row].map(visible),
            role_name: role[row].map(visible),
            value,
        };
        let name = match target[row] {
            Some(target) => format!("{} for {target}", component[row].unwrap_or_default()),
            None => component[row].unwrap_or_default().to_string(),
        };
        match components.iter_mut().find(|(known, _)| *known == name) {
            Some((_, points)) => points.push(point),
            None => components.push((name, vec![point])),
        }
    }
    (unit, components)
}

fn component_panels(component: &str, unit: &str, points: &[Point]) -> Vec<Panel> {
    let has = |of: fn(&Point) -> bool| points.iter().any(of);
    let place = if has(|p| p.role.is_some()) {
        "role"
    } else {
        "position"
    };
    let grid =
        |title: String,
         axes: (&str, &str),
         points: &[Point],
         row: fn(&Point) -> Key,
         column: fn(&Point) -> Key| { draw(title, axes, unit, points, row, column) };
    if has(|p| p.key.is_some()) {
        return pattern_panels(component, unit, points);
    }
    if has(|p| p.neuron.is_some()) {
        let title = format!("{component}: the strongest neurons");
        return vec![grid(
            title,
            ("layer", "neuron"),
            &strongest_neurons(points),
            by_layer,
            by_neuron,
        )];
    }
    match (
        has(|p| p.head.is_some()),
        has(|p| p.pos.is_some() || p.role.is_some()),
    ) {
        (true, true) => {
            let rows: BTreeSet<Key> = points.iter().map(by_head_of_layer).collect();
            if rows.len() <= MOST_ROWS {
                return vec![grid(
                    component.to_string(),
                    ("head", place),
                    points,
                    by_head_of_layer,
                    by_place,
                )];
            }
            vec![
                grid(
                    format!("{component}: the strongest head"),
                    ("layer", place),
                    points,
                    by_layer,
                    by_place,
                ),
                grid(
                    format!("{component}: the strongest {place}"),
                    ("layer", "head"),
                    points,
                    by_layer,
                    by_head,
                ),
            ]
        }
        (true, false) => vec![grid(
            component.to_string(),
            ("layer", "head"),
            points,
            by_layer,
            by_head,
        )],
        (false, true) => vec![grid(
            component.to_string(),
            ("layer", place),
            points,
            by_layer,
            by_place,
        )],
        (false, false) => vec![grid(
            component.to_string(),
            ("layer", "all positions"),
            points,
            by_layer,
            |_| Key::All,
        )],
    }
}

/// A grid of query by key for each of the strongest heads.
fn pattern_panels(component: &str, unit: &str, points: &[Point]) -> Vec<Panel> {
    let mut heads: BTreeMap<(Option<i64>, Option<i64>), Vec<Point>> = BTreeMap::new();
    for point in points {
        heads
            .entry((point.layer, point.head))
            .or_default()
            .push(point.clone());
    }
    let strength = |points: &[Point]| {
        points
            .iter()
            .fold(0.0, |most: f64, p| most.max(p.value.abs()))
    };
    let mut heads: Vec<_> = heads.into_iter().collect();
    heads.sort_by(|(_, a), (_, b)| strength(b).total_cmp(&strength(a)));
    heads.truncate(4);
    let name = |index: Option<i64>| index.map_or("?".to_string(), |index| index.to_string());
    heads
        .into_iter()
        .map(|((layer, head), points)| {
            let title = format!("{component} of a{}.h{}", name(layer), name(head));
            // The label of a key column is the token there, which the row of the query at that position knows.
            let tokens: BTreeMap<i64, String> = points
                .iter()
                .filter_map(|p| Some((p.pos?, p.token.clone()?)))
                .collect();
            let mut panel = draw(title, ("query", "key"), unit, &points, by_place, by_key);
            for (label, key) in panel
                .columns
                .iter_mut()
                .zip(points.iter().filter_map(|p| p.key).collect::<BTreeSet<_>>())
            {
                *label = Label {
                    name: key.to_string(),
                    token: tokens.get(&key).cloned(),
                    role: None,
                };
            }
            let queries: BTreeSet<i64> = points.iter().filter_map(|p| p.pos).collect();
            for (label, query) in panel.rows.iter_mut().zip(queries) {
                if let Some(token) = tokens.get(&query) {
                    *label = format!("{token} {label}");
                }
            }
            panel
        })
        .collect()
}

fn strongest_neurons(points: &[Point]) -> Vec<Point> {
    let mut sorted: Vec<&Point> = points.iter().collect();
    sorted.sort_by(|a, b| b.value.abs().total_cmp(&a.value.abs()));
    let mut chosen = BTreeSet::new();
    for point in sorted {
        if chosen.len() < STRONGEST {
            chosen.insert(point.neuron);
        }
    }
    points
        .iter()
        .filter(|point| chosen.contains(&point.neuron))
        .cloned()
        .collect()
}

fn by_layer(point: &Point) -> Key {
    point.layer.map_or(Key::All, Key::Number)
}

fn by_head(point: &Point) -> Key {
    point.head.map_or(Key::All, Key::Number)
}

fn by_neuron(point: &Point) -> Key {
    point.neuron.map_or(Key::All, Key::Number)
}

fn by_key(point: &Point) -> Key {
    point.key.map_or(Key::All, Key::Number)
}

fn by_head_of_layer(point: &Point) -> Key {
    Key::Pair(point.layer.unwrap_or(0), point.head.unwrap_or(0))
}

/// Positions counted from the end stand after those counted from the start.
fn by_place(point: &Point) -> Key {
    match (point.role, point.pos) {
        (Some(role), _) => Key::Role(role),
        (None, Some(pos @ 0..)) => Key::Number(pos),
        (None, Some(pos)) => Key::Pair(i64::MAX, pos),
        (None, None) => Key::All,
    }
}

/// Fills a grid; where several points share a cell, repeats of one coordinate (examples) are averaged and of the rest
/// (an axis that is folded away) the strongest shows.
fn draw(
    title: String,
    axes: (&str, &str),
    unit: &str,
    points: &[Point],
    row: fn(&Point) -> Key,
    column: fn(&Point) -> Key,
) -> Panel {
    let rows: BTreeSet<Key> = points.iter().map(row).collect();
    let columns: BTreeSet<Key> = points.iter().map(column).collect();
    let (rows, columns): (Vec<Key>, Vec<Key>) =
        (rows.into_iter().collect(), columns.into_iter().collect());
    let mut sums: BTreeMap<(usize, usize), BTreeMap<_, (f64, f64)>> = BTreeMap::new();
    let mut labels: Vec<Option<Label>> = vec![None; columns.len()];
    for point in points {
        let at = |keys: &[Key], key: Key| {
            keys.binary_search(&key)
                .expect("the key was collected from these points")
        };
        let (r, c) = (at(&rows, row(point)), at(&columns, column(point)));
        let folded = (point.head, point.pos, point.role, point.key, point.neuron);
        let (sum, count) = sums
            .entry((r, c))
            .or_default()
            .entry(folded)
            .or_insert((0.0, 0.0));
        *sum += point.value;
        *count += 1.0;
        label(&mut labels[c], &columns[c], point, axes.1);
    }
    let mut values = vec![vec![None; columns.len()]; rows.len()];
    for ((r, c), means) in sums {
        let means = means.into_values().map(|(sum, count)| sum / count);
        values[r][c] = means.max_by(|a, b| a.abs().total_cmp(&b.abs()));
    }
    Panel {
        title,
        axes: (axes.0.to_string(), axes.1.to_string()),
        rows: rows.iter().map(|key| name(key, axes.0)).collect(),
        columns: labels.into_iter().map(Option::unwrap_or_default).collect(),
        values,
        unit: unit.to_string(),
    }
}

/// Adds what a point knows of its column: a token or role stays only while all points agree.
fn label(known: &mut Option<Label>, key: &Key, point: &Point, axis: &str) {
    let is_role = matches!(key, Key::Role(_));
    let is_position = axis == "position";
    let here = Label {
        name: if is_role {
            point.role_name.clone().unwrap_or_default()
        } else {
            name(key, axis)
        },
        token: point.token.clone().filter(|_| is_position),
        role: point.role_name.clone().filter(|_| is_position),
    };
    match known {
        None => *known = Some(here),
        Some(label) => {
            label.token = label
                .token
                .take()
                .filter(|token| here.token.as_ref() == Some(token));
            label.role = label
                .role
                .take()
                .filter(|role| here.role.as_ref() == Some(role));
        }
    }
}

fn name(key: &Key, axis: &str) -> String {
    match key {
        Key::Number(number) => number.to_string(),
        Key::Pair(i64::MAX, pos) => pos.to_string(),
        Key::Pair(layer, head) => format!("a{layer}.h{head}"),
        Key::All => "all".to_string(),
        Key::Role(_) => axis.to_string(),
    }
}
