//! From measurements to the table, and to the table of side quantities beside it.

use std::collections::{HashMap, HashSet};

use polars::prelude::DataFrame;
use rayon::prelude::*;

use super::cell::{Cell, Detail, ExampleScores, ScoresMeta};
use super::column::Column;
use super::provenance::{Baseline, Provenance};
use super::report::TaskReport;
use super::rows::Rows;
use super::{MEASURES, Scores};
use crate::error::{Error, Result};

impl Scores {
    /// Builds the table from what was measured. Cells with a `measure` of their own go to the table of side quantities, so that
    /// a site and an example have one row.
    /// # Units
    /// `value` and `score` are in the metric's unit; `score` is the metric with the change minus the metric without, and
    /// `base` names the run that was changed; `normalised` has no unit.
    /// # Errors
    /// [`Error::Invalid`] if there is no example, or an example's lists do not fit the cells.
    pub fn assemble(
        cells: &[Cell],
        examples: &[ExampleScores],
        meta: &ScoresMeta,
        detail: Detail,
        provenance: Provenance,
    ) -> Result<Scores> {
        check(cells, examples)?;
        let of = [provenance.model.full_id(), provenance.task.clone()];
        let prompts: HashSet<usize> = (provenance.prompts.iter())
            .map(|prompt| prompt.example)
            .collect();
        let is_pair = |example: &&ExampleScores| prompts.contains(&example.example);
        // What is made of pairs has numbers of its own.
        let pairs = match examples.iter().filter(is_pair).count() {
            0 => prompts.len(),
            n => n,
        };
        let report = TaskReport::of(examples, pairs, meta, provenance.drops.clone())?;
        let mut provenance = describe(examples, meta, provenance);
        // Where effects are never shares of a gap, none is missed.
        if meta.direction.ends(0.0, 0.0).1.is_some() {
            provenance.warnings.extend(report.no_gap_warning());
        }
        let normalise = report.has_gap();
        let (rows, doubled) = rayon::join(
            || Rows::new(cells, examples, meta, detail, normalise),
            || doubled(cells, meta),
        );
        provenance.warnings.extend(doubled);
        let rows = rows.of_run(&of);
        provenance.examples_per_row = rows.examples_per_row();
        // Without prompts there is no task to do well.
        provenance.report = (!provenance.prompts.is_empty()).then_some(report);
        let is_side = |cell: &Cell| cell.metric(meta) != meta.metric;
        let table = table(&rows, |cell| !is_side(cell))?;
        let mut sides = Vec::new();
        if cells.iter().any(is_side) {
            let side = Scores {
                table: self::table(&rows, is_side)?,
                provenance: provenance.of_side(MEASURES),
                sides: Vec::new(),
            };
            provenance.sides.push(MEASURES.into());
            sides.push((MEASURES.to_string(), side));
        }
        Ok(Scores {
            table,
            provenance,
            sides,
        })
    }
}

fn check(cells: &[Cell], examples: &[ExampleScores]) -> Result<()> {
    if examples.is_empty() {
        return Err(Error::invalid(
            "a table of scores needs at least one example",
        ));
    }
    for example in examples {
        let ascending = example.cells.windows(2).all(|pair| pair[0] < pair[1]);
        let inside = example
            .cells
            .last()
            .is_none_or(|&last| (last as usize) < cells.len());
        if !ascending || !inside || example.cells.len() != example.values.len() {
            return Err(Error::invalid(format!(
                "example {}: {} values for {} cells, which must be ascending indices below {}",
                example.example,
                example.values.len(),
                example.cells.len(),
                cells.len()
            )));
        }
    }
    Ok(())
}

/// A warning if two cells have one key: their rows could not be told apart. (The measurements are right all the same, and are
/// not thrown away.)
fn doubled(cells: &[Cell], meta: &ScoresMeta) -> Option<String> {
    let mut known: HashMap<_, usize> = HashMap::with_capacity(cells.len());
    let doubled = cells.iter().enumerate().find_map(|(index, cell)| {
        let before = known.insert(cell.key(meta), index)?;
        Some((before, index))
    });
    doubled.map(|(first, second)| {
        format!(
            "cells {first} and {second} are one site ({}), so their rows cannot be told apart; please report the command",
            cells[second]
        )
    })
}

fn describe(examples: &[ExampleScores], meta: &ScoresMeta, provenance: Provenance) -> Provenance {
    let mean = |of: fn(&ExampleScores) -> f64| {
        examples.iter().map(of).sum::<f64>() / examples.len() as f64
    };
    Provenance {
        version: crate::BUILD.to_string(),
        method: meta.method.clone(),
        metric: meta.metric.clone(),
        unit: meta.unit.clone(),
        direction: meta.direction,
        seed: meta.seed,
        mean_clean: mean(|e| e.clean),
        mean_corrupted: mean(|e| e.corrupted),
        baselines: examples
            .iter()
            .map(|e| Baseline {
                example: e.example,
                clean: e.clean,
                corrupted: e.corrupted,
            })
            .collect(),
        examples: examples.len(),
        ..provenance
    }
}

fn table(rows: &Rows, keep: impl Fn(&Cell) -> bool + Sync) -> Result<DataFrame> {
    let kept = || rows.iter().filter(|row| keep(row.cell));
    let height = kept().count();
    let columns = Column::ALL.par_iter();
    let columns = columns.map(|column| column.fill(height, kept));
    Ok(DataFrame::new(height, columns.collect())?)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::*;
    use crate::scores::Direction;

    fn cell(layer: u32, pos: i32) -> Cell {
        Cell {
            component: "hook_resid_pre".into(),
            layer: Some(layer),
            pos: Some(pos),
            ..Cell::default()
        }
    }

    fn example(
        example: usize,
        clean: f64,
        corrupted: f64,
        cells: &[u32],
        values: &[f64],
    ) -> ExampleScores {
        ExampleScores {
            example,
            clean,
            corrupted,
            tokens: ["When", if example == 0 { " Mary" } else { " Tom" }, " gave"]
                .map(String::from)
                .to_vec(),
            roles: BTreeMap::from([("IO".to_string(), vec![1])]),
            cells: Arc::from(cells),
            values: values.to_vec(),
            ..ExampleScores::default()
        }
    }

    fn assembled(
        cells: &[Cell],
        examples: &[ExampleScores],
        direction: Direction,
        detail: Detail,
    ) -> Scores {
        let meta = ScoresMeta {
            method: "m".into(),
            metric: "logit_diff".into(),
            direction,
            ..ScoresMeta::default()
        };
        Scores::assemble(cells, examples, &meta, detail, Provenance::default()).unwrap()
    }

    fn column(scores: &Scores, name: &str) -> Vec<Option<f64>> {
        scores
            .floats(name)
            .unwrap_or_else(|| panic!("no column {name}"))
    }

    #[test]
    fn normalised_is_a_ratio_of_means_in_either_direction() {
        // Means: clean 3, corrupted -1, patched 1. Denoising restores 2 of 4, noising destroys 2 of 4.
        let examples = [
            example(0, 4.0, 0.0, &[0], &[3.0]),
            example(1, 2.0, -2.0, &[0], &[-1.0]),
        ];
        for (direction, score) in [(Direction::Denoise, 2.0), (Direction::Noise, -2.0)] {
            let scores = assembled(&[cell(0, 0)], &examples, direction, Detail::Mean);
            assert_eq!(column(&scores, "value"), [Some(1.0)]);
            assert_eq!(column(&scores, "score"), [Some(score)]);
            assert_eq!(column(&scores, "normalised"), [Some(0.5)]);
            assert_eq!(scores.texts("base").unwrap(), [Some(direction.base())]);
        }
        let ablated = assembled(&[cell(0, 0)], &examples, Direction::Ablate, Detail::Mean);
        assert!(ablated.floats("normalised").is_none() && ablated.warnings().is_empty());
    }

    #[test]
    fn a_cell_that_some_examples_lack_is_measured_on_the_others() {
        let examples = [
            example(0, 4.0, 0.0, &[0, 1], &[1.0, 2.0]),
            example(1, 8.0, 0.0, &[1, 2], &[6.0, 7.0]),
        ];
        let scores = assembled(
            &[cell(0, 0), cell(0, 1), cell(0, -1)],
            &examples,
            Direction::Denoise,
            Detail::Mean,
        );
        assert_eq!(column(&scores, "score"), [Some(1.0), Some(4.0), Some(7.0)]);
        // 1 of 4, 4 of 6, 7 of 8.
        assert_eq!(
            column(&scores, "normalised"),
            [Some(0.25), Some(4.0 / 6.0), Some(0.875)]
        );
        let low = column(&scores, "ci_low");
        assert_eq!(
            (low[0], low[2]),
            (None, None),
            "one example has no interval"
        );
        assert_eq!(
            low[1],
            Some(2.0),
            "of two examples the lower end is the lower one"
        );
        assert_eq!(column(&scores, "ci_high")[1], Some(6.0));
        // The two examples have different names at position 1, and one role.
        assert_eq!(
            scores.texts("token").unwrap(),
            [Some("When"), None, Some(" gave")]
        );
        assert_eq!(scores.texts("role").unwrap(), [None, Some("IO"), None]);
        assert_eq!(scores.provenance.examples_per_row, Some((1, 2)));
    }

    #[test]
    fn every_table_has_the_same_columns_and_nulls_where_they_do_not_apply() {
        for (direction, detail) in [
            (Direction::Denoise, Detail::Mean),
            (Direction::Denoise, Detail::PerExample),
            (Direction::Direct, Detail::Mean),
        ] {
            let examples = [example(3, 1.0, 0.0, &[0], &[0.5])];
            let scores = assembled(&[cell(0, 1)], &examples, direction, detail);
            let schema = scores.table.schema().clone();
            let expected = Column::ALL.iter().map(|c| (c.name().into(), c.dtype()));
            assert_eq!(*schema, expected.collect());
            let per_example = detail == Detail::PerExample;
            assert_eq!(scores.integers("example").is_some(), per_example);
            assert_eq!(scores.integers("n"), Some(vec![Some(1)]));
            assert_eq!(scores.floats("contribution").is_none(), per_example);
            let is_direct = direction == Direction::Direct;
            assert_eq!(scores.floats("normalised").is_none(), is_direct);
            for name in ["head", "template", "ci_low", "exact"] {
                let column = scores.table.column(name).unwrap();
                assert_eq!(column.null_count(), 1, "{name}");
            }
        }
    }

    #[test]
    fn the_interval_of_a_share_is_that_of_the_ratio() {
        // Scores and gaps rise together, so that their ratio is a half in every resample, however the two means vary.
        let pairs = [(1.0, 0.5), (2.0, 1.0), (4.0, 2.0), (8.0, 4.0)];
        let examples: Vec<ExampleScores> = (pairs.iter().enumerate())
            .map(|(i, (clean, value))| example(i, *clean, 0.0, &[0], &[*value]))
            .collect();
        let scores = assembled(&[cell(0, 0)], &examples, Direction::Denoise, Detail::Mean);
        let of = |name| column(&scores, name)[0].unwrap();
        assert!(of("ci_high") - of("ci_low") > 1.0);
        for name in ["normalised", "normalised_low", "normalised_high"] {
            assert!((of(name) - 0.5).abs() < 1e-12, "{name}");
        }
    }

    #[test]
    fn other_quantities_of_a_site_go_to_a_table_beside_it() {
        let entropy = Cell {
            measure: Some("entropy".into()),
            ..cell(0, 0)
        };
        let examples = [example(0, 1.0, 0.0, &[0, 1], &[0.5, 7.0])];
        let cells = [cell(0, 0), entropy.clone()];
        let scores = assembled(&cells, &examples, Direction::Denoise, Detail::Mean);
        assert_eq!(column(&scores, "value"), [Some(0.5)]);
        let side = scores.side(MEASURES).unwrap();
        assert_eq!(side.texts("metric").unwrap(), [Some("entropy")]);
        assert_eq!(column(side, "value"), [Some(7.0)]);
        assert_eq!(side.provenance.side.as_deref(), Some(MEASURES));
        let whole = scores.with_sides().unwrap();
        assert_eq!(column(&whole, "value"), [Some(0.5), Some(7.0)]);
        assert!(scores.warnings().is_empty());
        let twice = [entropy.clone(), entropy];
        let scores = assembled(&twice, &examples, Direction::Denoise, Detail::Mean);
        assert!(scores.warnings()[0].contains("cells 0 and 1 are one site (resid_pre 0 @0"));
    }

    #[test]
    fn a_metric_that_the_corruption_does_not_move_gives_a_warning_instead_of_a_ratio() {
        let scores = assembled(
            &[cell(0, 0)],
            &[example(0, 1.0, 1.0 + 1e-9, &[0], &[2.0])],
            Direction::Noise,
            Detail::Mean,
        );
        assert!(scores.floats("normalised").is_none());
        assert_eq!(scores.warnings().len(), 1);
    }

    #[test]
    fn blocks_and_groups_keep_the_order_of_the_cells() {
        let cells: Vec<Cell> = (0..3000).map(|layer| cell(layer, 0)).collect();
        let all: Vec<u32> = (0..cells.len() as u32).collect();
        let even: Vec<u32> = all.iter().copied().filter(|i| i % 2 == 0).collect();
        let values = |cells: &[u32]| cells.iter().map(|&i| i as f64).collect::<Vec<_>>();
        let examples = [
            example(0, 1.0, 0.0, &all, &values(&all)),
            example(1, 1.0, 0.0, &even, &values(&even)),
        ];
        let scores = assembled(&cells, &examples, Direction::Denoise, Detail::Mean);
        assert_eq!(
            column(&scores, "value"),
            all.iter().map(|&i| Some(i as f64)).collect::<Vec<_>>()
        );
    }

    #[test]
    fn lists_that_do_not_fit_are_refused() {
        for (cells, values) in [
            (vec![1, 0], vec![0.0, 0.0]),
            (vec![0], vec![]),
            (vec![9], vec![0.0]),
        ] {
            let examples = [example(0, 1.0, 0.0, &cells, &values)];
            let refused = Scores::assemble(
                &[cell(0, 0), cell(0, 1)],
                &examples,
                &ScoresMeta::default(),
                Detail::Mean,
                Provenance::default(),
            );
            assert!(matches!(refused, Err(Error::Invalid(_))));
        }
    }
}
