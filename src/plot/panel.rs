//! What to draw: a table of scores becomes grids, one for each component.
//!
//! Positions and roles are rows, because their labels are words, which are read from left to right; layers, heads or neurons
//! stand over the columns as numbers. Without positions the longer of layers and heads goes down. A sweep over heads and
//! positions has one axis too many: when its columns would not fit a screen it is folded into two grids, each cell showing
//! the strongest value along the axis that is left out. Pattern cells give a grid for each of the strongest heads.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;

use super::columns::Columns;
use super::places::Places;
use crate::error::{Error, Result};
use crate::scores::Scores;
use crate::text::{visible, width};

/// Heads of a head-by-position grid that still fit a screen.
const MOST_HEADS: usize = 40;
/// Neurons that are drawn side by side; more are read better as a ranked list.
const MOST_NEURONS: usize = 24;
/// Heads whose patterns are drawn.
const PATTERNS: usize = 4;
/// The longest role that can stand over a column.
const LONGEST_COLUMN: usize = 8;

/// A grid of values, ready to draw. All text in it is safe to show.
#[derive(Debug, Clone, PartialEq)]
pub struct Panel {
    pub title: String,
    /// What the rows and the columns are.
    pub axes: (String, String),
    pub rows: Vec<Label>,
    pub columns: Vec<Label>,
    /// `[row][column]`; `None` where nothing was measured.
    pub values: Vec<Vec<Option<f64>>>,
    /// The row of the table behind a cell; `None` where it is a mean of several.
    pub table_rows: Vec<Vec<Option<usize>>>,
    /// Whether the values are normalised effects; else they are scores, in the unit of the metric.
    pub is_normalised: bool,
}

/// What stands beside a row or over a column.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Label {
    /// A number, a role or a name.
    pub name: String,
    /// `clean/corrupted` where the two runs differ; `~` where pairs do.
    pub token: Option<String>,
    pub role: Option<String>,
}

impl Panel {
    /// The largest magnitude.
    pub fn limit(&self) -> f64 {
        self.values
            .iter()
            .flatten()
            .flatten()
            .filter(|value| value.is_finite())
            .fold(0.0, |most, v| most.max(v.abs()))
    }
}

/// The grids of a table, in the order of its components, one for each target that is watched and each template. Edges (`src`,
/// `dst`) are not drawn, nor parts that stand outside of all layers, nor what is measured beside the table's own metric;
/// per-example rows are averaged.
pub fn panels(scores: &Scores) -> Vec<Panel> {
    panels_of(scores, None)
}

/// The grids of another measure, if one is named.
pub(super) fn panels_of(scores: &Scores, measure: Option<&str>) -> Vec<Panel> {
    let columns = Columns::of(scores);
    // The mean of normalised values of single examples is not the normalised mean: only scores can be averaged.
    let is_normalised = columns.is_averaged() && columns.normalised.found().next().is_some();
    let places = Places::of(&scores.provenance);
    points(&columns, &places, is_normalised, measure)
        .into_iter()
        .flat_map(|(component, points)| component_panels(&component, &points))
        .map(|panel| Panel {
            is_normalised,
            ..panel
        })
        .collect()
}

/// The grids whose title is `name` or begins with it.
/// # Errors
/// [`Error::Invalid`] with the titles that there are.
pub fn chosen_panels(panels: Vec<Panel>, name: &str) -> Result<Vec<Panel>> {
    let titles: Vec<String> = panels.iter().map(|panel| panel.title.clone()).collect();
    let is_chosen = |title: &str| {
        let short = title.rsplit_once("hook_").map_or(title, |(_, short)| short);
        title.starts_with(name) || short.starts_with(name)
    };
    let chosen: Vec<Panel> = panels
        .into_iter()
        .filter(|panel| is_chosen(&panel.title))
        .collect();
    if !chosen.is_empty() {
        return Ok(chosen);
    }
    let known = if titles.is_empty() {
        "this table has none: its rows are edges, tokens or neurons, which are shown as a list"
            .to_string()
    } else {
        format!("there are: {}", titles.join(", "))
    };
    Err(Error::invalid(format!(
        "no panel is called `{}`; {known}",
        visible(name)
    )))
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
    /// Its row in the table.
    row: usize,
    layer: Option<i64>,
    head: Option<i64>,
    pos: Option<i64>,
    key: Option<i64>,
    neuron: Option<i64>,
    /// Index into the roles, where a role stands for the position.
    role: Option<usize>,
    token: Option<Rc<str>>,
    key_token: Option<Rc<str>>,
    role_name: Option<Rc<str>>,
    value: f64,
}

/// The points of each grid, under its title.
fn points<'a>(
    columns: &Columns<'a>,
    places: &Places,
    is_normalised: bool,
    measure: Option<&str>,
) -> Vec<(String, Vec<Point>)> {
    let wanted = |row: usize| {
        let is_measured = match measure {
            Some(measure) => columns.metric[row] == Some(measure),
            None => columns.is_own(row),
        };
        let is_outside = columns.layer[row].is_none()
            && columns.pos[row].is_none()
            && columns.role[row].is_none();
        is_measured && !is_outside && columns.src[row].is_none()
    };
    let n_templates = columns.template.found().collect::<BTreeSet<_>>().len();
    let mut roles: Vec<&str> = Vec::new();
    // A text is made once, however many rows it labels.
    let mut tokens: HashMap<_, Option<Rc<str>>> = HashMap::new();
    let mut token_at = |pos: i64, template: Option<i64>, known: Option<&'a str>| {
        let made = || places.token(pos, template, known).map(Rc::from);
        (tokens.entry((pos, template, known)))
            .or_insert_with(made)
            .clone()
    };
    let mut names = HashMap::new();
    let mut titles = BTreeMap::new();
    let mut grids: Vec<(String, Vec<Point>)> = Vec::new();
    for row in (0..columns.height).filter(|&row| wanted(row)) {
        let value = if is_normalised {
            columns.normalised[row]
        } else {
            columns.score[row]
        };
        let Some(value) = value else { continue };
        let pos = columns.pos[row];
        let role = columns.role[row].filter(|_| pos.is_none());
        let role = role.map(|name| {
            let known = roles.iter().position(|&known| known == name);
            known.unwrap_or_else(|| {
                roles.push(name);
                roles.len() - 1
            })
        });
        let template = columns.template[row].filter(|_| n_templates > 1);
        let [role_name, role_token] = columns.role[row].map_or([None, None], |role| {
            let made = || {
                let texts = [Some(visible(role)), places.role(role, template)];
                texts.map(|text| text.map(Rc::<str>::from))
            };
            names.entry((role, template)).or_insert_with(made).clone()
        });
        let point = Point {
            row,
            layer: columns.layer[row],
            head: columns.head[row],
            pos,
            key: columns.key[row],
            neuron: columns.neuron[row],
            role,
            token: match pos {
                Some(pos) => token_at(pos, template, columns.token[row]),
                None => role_token,
            },
            key_token: columns.key[row].and_then(|key| token_at(key, template, None)),
            role_name,
            value,
        };
        let key = (columns.component[row], columns.target[row], template);
        let at = *titles.entry(key).or_insert_with(|| {
            let mut title = visible(columns.component[row].unwrap_or_default());
            if let Some(target) = columns.target[row] {
                title += &format!(" for {}", visible(target));
            }
            if let Some(template) = template {
                title += &format!(", template {template}");
            }
            grids.push((title, Vec::new()));
            grids.len() - 1
        });
        grids[at].1.push(point);
    }
    grids
}

fn component_panels(title: &str, points: &[Point]) -> Vec<Panel> {
    let has = |is_filled: fn(&Point) -> bool| points.iter().any(is_filled);
    let count = |key: fn(&Point) -> Key| points.iter().map(key).collect::<BTreeSet<Key>>().len();
    let place = if has(|p| p.role.is_some()) {
        "role"
    } else {
        "position"
    };
    let title = title.to_string();
    let has_place = has(|p| p.pos.is_some() || p.role.is_some());
    if has(|p| p.key.is_some()) {
        return pattern_panels(&title, points);
    }
    if has(|p| p.neuron.is_some()) {
        if count(by_neuron) > MOST_NEURONS {
            return Vec::new();
        }
        let down = if has_place { by_place } else { by_layer };
        let axes = (if has_place { place } else { "layer" }, "neuron");
        return vec![draw(title, axes, points, down, by_neuron)];
    }
    if !has(|p| p.head.is_some()) {
        return vec![if has_place {
            draw(title, (place, "layer"), points, by_place, by_layer)
        } else {
            draw(title, ("layer", "all positions"), points, by_layer, |_| {
                Key::All
            })
        }];
    }
    if !has_place {
        return vec![if count(by_head) > count(by_layer) {
            draw(title, ("head", "layer"), points, by_head, by_layer)
        } else {
            draw(title, ("layer", "head"), points, by_layer, by_head)
        }];
    }
    let longest_role = points
        .iter()
        .filter_map(|p| p.role_name.as_deref())
        .map(width)
        .max();
    if place == "role" && longest_role.is_some_and(|longest| longest <= LONGEST_COLUMN) {
        return vec![draw(
            title,
            ("head", place),
            points,
            by_head_of_layer,
            by_place,
        )];
    }
    if count(by_head_of_layer) <= MOST_HEADS {
        return vec![draw(
            title,
            (place, "head"),
            points,
            by_place,
            by_head_of_layer,
        )];
    }
    let folded = |over: &str| format!("{title}: the strongest {over}");
    vec![
        draw(folded("head"), (place, "layer"), points, by_place, by_layer),
        draw(folded(place), ("layer", "head"), points, by_layer, by_head),
    ]
}

/// A grid of query by key for each of the strongest heads.
fn pattern_panels(component: &str, points: &[Point]) -> Vec<Panel> {
    let mut heads: BTreeMap<(Option<i64>, Option<i64>), Vec<&Point>> = BTreeMap::new();
    for point in points {
        heads
            .entry((point.layer, point.head))
            .or_default()
            .push(point);
    }
    // The first position sees itself alone, which says nothing of a head.
    let strength = |points: &[&Point]| {
        let points = points.iter().filter(|p| p.pos != Some(0));
        points.fold(0.0, |most: f64, p| most.max(p.value.abs()))
    };
    let mut heads: Vec<_> = heads.into_iter().collect();
    heads.sort_by(|(_, a), (_, b)| strength(b).total_cmp(&strength(a)));
    heads.truncate(PATTERNS);
    let number = |index: Option<i64>| index.map_or("?".to_string(), |index| index.to_string());
    heads
        .into_iter()
        .map(|((layer, head), points)| {
            let title = format!("{component} of a{}.h{}", number(layer), number(head));
            let points: Vec<Point> = points.into_iter().cloned().collect();
            let mut panel = draw(title, ("query", "key"), &points, by_place, by_key);
            // A key is a position like a query.
            for key in &mut panel.columns {
                let as_query = panel.rows.iter().find(|query| query.name == key.name);
                key.role = as_query.and_then(|query| query.role.clone());
            }
            panel
        })
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

/// The mean of the points that share a cell and all coordinates.
#[derive(Default)]
struct Mean {
    sum: f64,
    count: f64,
    /// The row of the only point.
    row: Option<usize>,
}

impl Mean {
    fn add(&mut self, point: &Point) {
        self.row = (self.count == 0.0).then_some(point.row);
        self.sum += point.value;
        self.count += 1.0;
    }

    fn value(&self) -> f64 {
        self.sum / self.count
    }
}

/// Fills a grid; where several points share a cell, repeats of one coordinate (examples) are averaged and of the rest
/// (an axis that is folded away) the strongest shows.
fn draw(
    title: String,
    axes: (&str, &str),
    points: &[Point],
    row: fn(&Point) -> Key,
    column: fn(&Point) -> Key,
) -> Panel {
    let rows: BTreeSet<Key> = points.iter().map(row).collect();
    let columns: BTreeSet<Key> = points.iter().map(column).collect();
    let (rows, columns): (Vec<Key>, Vec<Key>) =
        (rows.into_iter().collect(), columns.into_iter().collect());
    let mut sums: BTreeMap<(usize, usize), BTreeMap<_, Mean>> = BTreeMap::new();
    let mut row_labels: Vec<Option<Label>> = vec![None; rows.len()];
    let mut column_labels: Vec<Option<Label>> = vec![None; columns.len()];
    for point in points {
        let index_in = |keys: &[Key], key: Key| {
            keys.binary_search(&key)
                .expect("the key was collected from these points")
        };
        let (r, c) = (
            index_in(&rows, row(point)),
            index_in(&columns, column(point)),
        );
        let coordinates = (point.layer, point.head, point.pos, point.role, point.neuron);
        let mean = sums.entry((r, c)).or_default();
        mean.entry(coordinates).or_default().add(point);
        add_label(&mut row_labels[r], &rows[r], point, axes.0);
        add_label(&mut column_labels[c], &columns[c], point, axes.1);
    }
    let mut values = vec![vec![None; columns.len()]; rows.len()];
    let mut table_rows = vec![vec![None; columns.len()]; rows.len()];
    for ((r, c), means) in sums {
        let strength = |mean: &Mean| mean.value().abs();
        let strongest = means
            .into_values()
            .max_by(|a, b| strength(a).total_cmp(&strength(b)));
        values[r][c] = strongest.as_ref().map(Mean::value);
        table_rows[r][c] = strongest.and_then(|mean| mean.row);
    }
    let finished = |labels: Vec<Option<Label>>| labels.into_iter().map(Option::unwrap_or_default);
    Panel {
        title,
        axes: (axes.0.to_string(), axes.1.to_string()),
        rows: finished(row_labels).collect(),
        columns: finished(column_labels).collect(),
        values,
        table_rows,
        is_normalised: false,
    }
}

/// Adds what a point knows of its row or column: a token or role stays only while all points agree.
fn add_label(known: &mut Option<Label>, key: &Key, point: &Point, axis: &str) {
    let is_position = matches!(axis, "position" | "query");
    let is_place = is_position || axis == "role";
    let token = match axis {
        "key" => point.key_token.as_deref(),
        _ => point.token.as_deref().filter(|_| is_place),
    };
    let role = point.role_name.as_deref().filter(|_| is_position);
    match known {
        None => {
            let name = match key {
                Key::Role(_) => point.role_name.as_deref().unwrap_or_default().to_string(),
                key => name(key),
            };
            *known = Some(Label {
                name,
                token: token.map(String::from),
                role: role.map(String::from),
            });
        }
        Some(label) => {
            label.token.take_if(|own| token != Some(own.as_str()));
            label.role.take_if(|own| role != Some(own.as_str()));
        }
    }
}

fn name(key: &Key) -> String {
    match key {
        Key::Number(number) => number.to_string(),
        Key::Pair(i64::MAX, pos) => pos.to_string(),
        Key::Pair(layer, head) => format!("a{layer}.h{head}"),
        Key::All => "all".to_string(),
        Key::Role(index) => index.to_string(),
    }
}
