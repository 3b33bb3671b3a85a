//! The table of differences.

use std::collections::HashMap;
use std::time::{SystemTime, UNIX_EPOCH};

use polars::prelude::{Column as Filled, DataFrame, IntoColumn, NewChunkedArray, StringChunked};

use super::by::ComparedBy;
use super::cells::{CELL, Measured};
use crate::error::Result;
use crate::scores::interval::Bootstrap;
use crate::scores::{Column, Direction, Provenance, Scores};

/// A cell of both, compared.
struct Row {
    value: f64,
    difference: f64,
    interval: Option<(f64, f64)>,
    n: i32,
}

/// A row for each cell of both, in the order of the first.
pub(super) fn table(
    first: &Scores,
    second: &Scores,
    joined: &[(&Measured, &Measured)],
    by: ComparedBy,
    is_paired: bool,
) -> Result<Scores> {
    let height = joined.len();
    let mut bootstraps: HashMap<usize, Bootstrap> = HashMap::new();
    let seed = first.provenance.seed;
    let mut rows: Vec<Row> = Vec::with_capacity(height);
    for (one, other) in joined {
        if !is_paired {
            let half = |cell: &Measured| cell.interval.map(|(low, high)| (high - low) / 2.0);
            let difference = other.mean() - one.mean();
            let half = half(one).zip(half(other)).map(|(a, b)| a.hypot(b));
            let interval = half.map(|half| (difference - half, difference + half));
            rows.push(Row {
                value: other.mean(),
                difference,
                interval,
                n: one.n.min(other.n) as i32,
            });
            continue;
        }
        let differences: Vec<f64> = (one.values.iter())
            .filter_map(|(pair, value)| Some(other.values.get(pair)? - value))
            .collect();
        let n = differences.len();
        let bootstrap = bootstraps
            .entry(n)
            .or_insert_with(|| Bootstrap::new(seed, n));
        let mean = differences.iter().sum::<f64>() / n as f64;
        rows.push(Row {
            value: other.mean(),
            difference: mean,
            interval: bootstrap.interval_of_mean(&differences),
            n: n as i32,
        });
    }
    let metric = match by {
        ComparedBy::Score => format!("difference of {}", second.provenance.metric),
        ComparedBy::Normalised => "difference of normalised".into(),
    };
    let once = |column: Column, text: &str| {
        StringChunked::from_iter_values(column.name().into(), std::iter::repeat_n(text, height))
            .into_column()
    };
    let float =
        |column: Column, values: Vec<Option<f64>>| Filled::new(column.name().into(), values);
    let places = polars::prelude::IdxCa::from_vec(
        "row".into(),
        joined.iter().map(|(one, _)| one.row as u32).collect(),
    );
    let of_first = first.table.take(&places)?;
    let columns = Column::ALL.iter().map(|&column| {
        Ok(match column {
            Column::Method => once(column, "compare"),
            Column::Metric => once(column, &metric),
            Column::Direction => once(column, &Direction::Direct.to_string()),
            Column::N => Filled::new(
                column.name().into(),
                rows.iter().map(|row| row.n).collect::<Vec<_>>(),
            ),
            Column::Value => float(column, rows.iter().map(|row| Some(row.value)).collect()),
            Column::Score => float(
                column,
                rows.iter().map(|row| Some(row.difference)).collect(),
            ),
            Column::CiLow => float(
                column,
                rows.iter().map(|row| Some(row.interval?.0)).collect(),
            ),
            Column::CiHigh => float(
                column,
                rows.iter().map(|row| Some(row.interval?.1)).collect(),
            ),
            Column::Model => once(column, &second.provenance.model.id),
            Column::Task => once(column, &second.provenance.task),
            column if CELL.contains(&column) => of_first.column(column.name())?.clone(),
            column => column.empty(height),
        })
    });
    let columns: Vec<Filled> = columns.collect::<Result<_>>()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let unit = match by {
        ComparedBy::Score => second.provenance.unit.clone(),
        ComparedBy::Normalised => "of the gap".into(),
    };
    Ok(Scores {
        table: DataFrame::new(height, columns)?,
        provenance: Provenance {
            version: crate::BUILD.into(),
            created: now.map_or(0, |time| time.as_secs()),
            dtype: second.provenance.dtype.clone(),
            device: second.provenance.device.clone(),
            bos: second.provenance.bos,
            chat: second.provenance.chat,
            task_text: second.provenance.task_text.clone(),
            dropped: second.provenance.dropped,
            drops: second.provenance.drops.clone(),
            method: "compare".into(),
            metric,
            unit,
            direction: Direction::Direct,
            seed,
            model: second.provenance.model.clone(),
            spec: second.provenance.spec.clone(),
            task: second.provenance.task.clone(),
            prompts: second.provenance.prompts.clone(),
            token_texts: second.provenance.token_texts.clone(),
            examples: rows.iter().map(|row| row.n).max().unwrap_or(0) as usize,
            mean_clean: f64::NAN,
            mean_corrupted: f64::NAN,
            ..Provenance::default()
        },
        sides: Vec::new(),
    })
}
