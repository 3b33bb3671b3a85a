//! Everything that is printed of a table: its views, one below the other.

use std::fmt::Write;

use super::bars::bar_lines;
use super::columns::Columns;
use super::graph::of_table;
use super::heatmap::{HeatmapOptions, heatmap};
use super::items::{Item, items};
use super::panel::panels;
use super::ranked::ranked_table;
use crate::error::Result;
use crate::scores::{Layers, Lists, Scores, View};
use crate::text::{Align, aligned, cut, padded, width};

/// Edges of a graph that are listed on a terminal.
const LISTED_EDGES: usize = 40;

const INFALLIBLE: &str = "a String takes all";

/// How to print a table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PageOptions {
    pub heatmap: HeatmapOptions,
    /// Columns that lists and tables may take; as many as they need if `None`.
    pub list_width: Option<usize>,
    /// Strongest rows of each component; as the table suggests if `None`.
    pub top: Option<usize>,
}

/// The views of a table, one below the other: those its method asked for, or grids and the strongest rows.
/// # Errors
/// [`crate::Error::Invalid`] if [`HeatmapOptions::panel`] names no grid.
pub fn page(scores: &Scores, options: &PageOptions) -> Result<String> {
    let mut views = scores.provenance.views.clone();
    if views.is_empty() {
        views = vec![View::Grids, View::Strongest];
    }
    if options.heatmap.panel.is_some() {
        views = vec![View::Grids];
    }
    if options.top.is_some() && !views.contains(&View::Strongest) {
        views.push(View::Strongest);
    }
    let whole = scores.with_sides()?;
    let columns = Columns::of(&whole);
    let most = options.list_width.unwrap_or(usize::MAX);
    let mut parts = Vec::new();
    for view in &views {
        parts.push(match view {
            View::Grids if is_worth_drawing(scores, options) => heatmap(scores, &options.heatmap)?,
            View::Grids => String::new(),
            View::Graph => graphs(scores, options),
            View::Layers(layers) => layer_table(&columns, layers, most),
            View::Lists(lists) => list_lines(&columns, lists, most),
            View::Bars(bars) => bar_lines(&columns, bars, most),
            View::Strongest if options.top == Some(0) => String::new(),
            View::Strongest => ranked_table(scores, &whole, options.top, most),
        });
    }
    parts.retain(|part| !part.is_empty());
    Ok(parts.join("\n"))
}

/// The views that are lists or lines of layers, one below the other.
/// # Errors
/// Those of joining the side tables.
pub(super) fn listed(scores: &Scores) -> Result<String> {
    let whole = scores.with_sides()?;
    let columns = Columns::of(&whole);
    let parts = scores
        .provenance
        .views
        .iter()
        .filter_map(|view| match view {
            View::Layers(layers) => Some(layer_table(&columns, layers, usize::MAX)),
            View::Lists(lists) => Some(list_lines(&columns, lists, usize::MAX)),
            View::Bars(bars) => Some(bar_lines(&columns, bars, usize::MAX)),
            View::Grids | View::Graph | View::Strongest => None,
        });
    Ok(parts
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join("\n"))
}

/// The graphs of a table, each from its last node down.
fn graphs(scores: &Scores, options: &PageOptions) -> String {
    let most = options.list_width.unwrap_or(usize::MAX);
    let mut text = String::new();
    for graph in of_table(scores) {
        let n_all = graph.edges.len();
        let title = Some(graph.title.clone()).filter(|title| !title.is_empty());
        let left_out = format!("the {LISTED_EDGES} strongest of {n_all} edges");
        let left_out = (n_all > LISTED_EDGES).then_some(left_out);
        let heading: Vec<String> = title.into_iter().chain(left_out).collect();
        if !heading.is_empty() {
            writeln!(text, "{}", cut(&heading.join(": "), most)).expect(INFALLIBLE);
        }
        let graph = graph.strongest(LISTED_EDGES);
        text += &narrowed(&graph.listed(options.top.filter(|&top| top > 0)), most);
    }
    text
}

/// A grid of one cell says no more than the table does.
fn is_worth_drawing(scores: &Scores, options: &PageOptions) -> bool {
    options.heatmap.panel.is_some()
        || panels(scores)
            .iter()
            .any(|panel| panel.rows.len() * panel.columns.len() > 1)
}

/// The items that share a key, in the order of first appearance.
fn grouped<K: PartialEq>(items: Vec<Item>, key: impl Fn(&Item) -> K) -> Vec<(K, Vec<Item>)> {
    let mut groups: Vec<(K, Vec<Item>)> = Vec::new();
    for item in items {
        let key = key(&item);
        match groups.iter_mut().find(|(known, _)| *known == key) {
            Some((_, group)) => group.push(item),
            None => groups.push((key, vec![item])),
        }
    }
    groups
}

fn layer_table(columns: &Columns, layers: &Layers, most: usize) -> String {
    let positions = || columns.pos.found().copied();
    let end = if positions().any(|pos| pos < 0) {
        Some(-1)
    } else {
        positions().max()
    };
    let is_list =
        |row: usize| layers.tokens.is_some() && columns.metric[row] == layers.tokens.as_deref();
    let is_measure = |row: usize| {
        let measures = layers.columns.iter().map(|column| column.measure.as_str());
        columns.src[row].is_none()
            && columns.head[row].is_none()
            && columns.pos[row] == end
            && measures
                .into_iter()
                .any(|measure| columns.metric[row] == Some(measure))
    };
    let wanted = |row: usize| columns.layer[row].is_some() && (is_list(row) || is_measure(row));
    let rows = items(columns, wanted);
    if rows.is_empty() {
        return String::new();
    }
    let place = if end.is_some() {
        "at the last position"
    } else {
        "after"
    };
    let heading = layers.heading.as_deref().unwrap_or(place);
    let mut lines = vec![vec![heading.to_string()]];
    lines[0].extend(layers.columns.iter().map(|column| column.title.clone()));
    lines[0].extend(layers.tokens.as_ref().map(|_| "likeliest".to_string()));
    // A role is a place of its own where there is no position.
    let place_of = |item: &Item| {
        let role = item.pos.is_none().then(|| item.role.clone());
        (
            item.layer,
            item.component.clone(),
            role.filter(|role| !role.is_empty()),
        )
    };
    for ((layer, component, role), rows) in grouped(rows, place_of) {
        let short = component.trim_start_matches("hook_");
        let role = role.map_or(String::new(), |role| format!(" @{role}"));
        let mut line = vec![format!("{short}{}{role}", layer.unwrap_or(0))];
        for column in &layers.columns {
            let is_it =
                |item: &&Item| item.measure == column.measure && item.target == column.target;
            let value = rows
                .iter()
                .find(is_it)
                .map(|item| format!("{:.3}", item.score));
            line.push(value.unwrap_or_default());
        }
        if let Some(measure) = &layers.tokens {
            let tokens = rows.iter().filter(|item| item.measure == *measure);
            let tokens = tokens.map(|item| entry(item.dst.as_deref().unwrap_or(""), item.score));
            line.push(tokens.collect::<Vec<_>>().join("  "));
        }
        lines.push(line);
    }
    let mut align = vec![Align::Left];
    align.extend(layers.columns.iter().map(|_| Align::Right));
    align.push(Align::Left);
    narrowed(&aligned(&lines, &align), most)
}

fn list_lines(columns: &Columns, lists: &Lists, most: usize) -> String {
    let mut lines: Vec<(String, Vec<String>)> = Vec::new();
    for measure in &lists.measures {
        let wanted = |row: usize| {
            columns.metric[row] == Some(measure)
                && lists
                    .component
                    .as_deref()
                    .is_none_or(|name| columns.component[row] == Some(name))
        };
        for (title, mut group) in grouped(items(columns, wanted), |item| item.fill(&lists.title)) {
            let least = lists.at_least.unwrap_or(0.0);
            group.retain(|item| item.score.is_nan() || item.score.abs() >= least);
            if lists.highest.is_some() || lists.below_zero.is_some() {
                group.sort_by(|a, b| b.score.total_cmp(&a.score));
            }
            let below: Vec<Item> = match lists.below_zero {
                Some(_) => group.extract_if(.., |item| item.score < 0.0).collect(),
                None => Vec::new(),
            };
            group.truncate(lists.highest.unwrap_or(usize::MAX));
            let entries = |items: &mut dyn Iterator<Item = &Item>| -> Vec<String> {
                items
                    .map(|item| entry(&item.fill(&lists.item), item.score))
                    .collect()
            };
            lines.push((title, entries(&mut group.iter())));
            if let (Some(first), Some(title)) = (below.first(), &lists.below_zero) {
                lines.push((first.fill(title), entries(&mut below.iter().rev())));
            }
        }
    }
    lines.retain(|(_, entries)| !entries.is_empty());
    if lines.is_empty() {
        return String::new();
    }
    let widest = lines
        .iter()
        .map(|(title, _)| width(title))
        .max()
        .unwrap_or(0);
    let mut text = String::new();
    if let Some(heading) = &lists.heading {
        writeln!(text, "{}", cut(heading, most)).expect(INFALLIBLE);
    }
    for (title, entries) in lines {
        let line = format!(
            "{}  {}",
            padded(&title, widest, Align::Left),
            entries.join("  ")
        );
        text.push_str(&narrowed(&(line.trim_end().to_string() + "\n"), most));
    }
    text
}

/// A name and its number.
fn entry(name: &str, value: f64) -> String {
    format!("{name} {value:.2}").trim_start().to_string()
}

/// Lines cut to a width.
fn narrowed(text: &str, most: usize) -> String {
    text.lines().map(|line| cut(line, most) + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scores::{
        Cell, Detail, Direction, ExampleScores, LayerColumn, Provenance, ScoresMeta,
    };

    /// Two heads with two measures, a list of tokens, and one stream of two layers.
    fn scores(views: Vec<View>) -> Scores {
        let head = |layer, head, measure: Option<&str>| Cell {
            component: "attn.hook_pattern".into(),
            layer: Some(layer),
            head: Some(head),
            measure: measure.map(String::from),
            ..Cell::default()
        };
        let stream = |layer, measure: Option<&str>| Cell {
            component: "hook_resid_post".into(),
            layer: Some(layer),
            pos: Some(-1),
            measure: measure.map(String::from),
            ..Cell::default()
        };
        let written = |dst: &str| Cell {
            component: "attn.ov".into(),
            layer: Some(1),
            src: Some("a1.h0".into()),
            dst: Some(dst.into()),
            measure: Some("written".into()),
            ..Cell::default()
        };
        let cells = [
            (head(0, 1, None), 0.25),
            (head(1, 0, None), 0.75),
            (head(0, 1, Some("duplicate")), 0.5),
            (stream(0, None), 1.0),
            (stream(0, Some("rank")), 40.0),
            (stream(1, None), 2.0),
            (stream(1, Some("rank")), 1.0),
            (written("·Mary"), 0.7),
            (written("\x1bJohn"), -0.6),
            (written("the"), -0.9),
        ];
        let example = ExampleScores {
            cells: (0..cells.len() as u32).collect(),
            values: cells.iter().map(|(_, value)| *value).collect(),
            ..ExampleScores::default()
        };
        let meta = ScoresMeta {
            metric: "induction".into(),
            direction: Direction::Direct,
            ..ScoresMeta::default()
        };
        let about = Provenance {
            views,
            ..Provenance::default()
        };
        let cells: Vec<Cell> = cells.into_iter().map(|(cell, _)| cell).collect();
        Scores::assemble(&cells, &[example], &meta, Detail::Mean, about).unwrap()
    }

    fn printed(view: View) -> String {
        page(&scores(vec![view]), &PageOptions::default()).unwrap()
    }

    #[test]
    fn lists_gather_rows_under_titles_made_from_them() {
        let highest = Lists {
            heading: Some("heads by kind".into()),
            component: Some("attn.hook_pattern".into()),
            measures: vec!["induction".into(), "duplicate".into()],
            title: "{measure}".into(),
            item: "{head}".into(),
            highest: Some(1),
            at_least: Some(0.5),
            ..Lists::default()
        };
        assert_eq!(
            printed(View::Lists(highest)),
            "heads by kind\ninduction  a1.h0 0.75\nduplicate  a0.h1 0.50\n"
        );
        let written = Lists {
            measures: vec!["written".into()],
            title: "{src} writes for".into(),
            below_zero: Some("{src} writes against".into()),
            item: "{dst}".into(),
            ..Lists::default()
        };
        assert_eq!(
            printed(View::Lists(written)),
            "a1.h0 writes for      ·Mary 0.70\na1.h0 writes against  the -0.90  \\u{1b}John -0.60\n"
        );
    }

    #[test]
    fn layers_show_their_measures_side_by_side() {
        let layers = Layers {
            heading: None,
            columns: vec![LayerColumn::of("induction"), LayerColumn::of("rank")],
            tokens: None,
        };
        assert_eq!(
            printed(View::Layers(layers)),
            "at the last position  induction    rank\n\
             resid_post0               1.000  40.000\n\
             resid_post1               2.000   1.000\n"
        );
    }

    #[test]
    fn no_list_is_wider_than_the_terminal() {
        let options = PageOptions {
            list_width: Some(20),
            ..PageOptions::default()
        };
        let view = View::Lists(Lists {
            measures: vec!["written".into()],
            title: "{src} writes for".into(),
            item: "{dst}".into(),
            ..Lists::default()
        });
        let text = page(&scores(vec![view]), &options).unwrap();
        assert_eq!(text, "a1.h0 writes for  ·…\n");
    }
}
